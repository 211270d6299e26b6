use proptest::prelude::*;
use serde_json::json;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn what_is_written_is_what_go_writes() {
    let cases = [
        (json!(null), "f6"),
        (json!(true), "f5"),
        (json!(0), "00"),
        (json!(24), "1818"),
        (json!(-1), "20"),
        (json!(-500), "3901f3"),
        (json!(i64::MAX), "1b7fffffffffffffff"),
        (json!(1.5), "f93e00"),
        (json!(0.0), "f90000"),
        (json!(5.960464477539063e-8), "f90001"),
        (json!(100000.0), "fa47c35000"),
        (json!(1.1), "fb3ff199999999999a"),
        (json!("a"), "4161"),
        (json!([1, []]), "820180"),
        (json!({"bb": 1, "a": 2, "b": 3}), "a3416102416203426262 01".trim()),
    ];
    for (value, text) in cases {
        assert_eq!(encode(&value), hex(&format!("d9d9f7{}", text.replace(' ', ""))), "{value}");
    }
}

#[test]
fn what_other_encoders_write_is_read() {
    let cases = [
        ("6161", json!("a")),
        ("5f41614162ff", json!("ab")),
        ("9f0102ff", json!([1, 2])),
        ("bf616101ff", json!({"a": 1})),
        ("d64401020304", json!("AQIDBA==")),
        ("d74401020304", json!("01020304")),
        ("c074323031332d30332d32315432303a30343a30305a", json!("2013-03-21T20:04:00Z")),
        ("d9d9f7d9d9f7a0", json!({})),
        ("f97bff", json!(65504.0)),
    ];
    for (text, value) in cases {
        assert_eq!(decode(&hex(text)).unwrap(), value, "{text}");
    }
}

#[test]
fn damaged_and_foreign_items_are_refused() {
    let cases = [
        ("", "unexpected EOF"),
        ("4261", "unexpected EOF"),
        ("9bffffffffffffffff", "unexpected EOF"),
        ("0000", "cbor: 1 bytes of extraneous data starting at index 1"),
        ("a2416101416102", "cbor: found duplicate map key \"a\""),
        ("a10101", "cbor: map keys must be strings"),
        ("1bffffffffffffffff", "cbor: the integer overflows int64"),
        ("f97e00", "cbor: floating-point infinity and NaN are not supported"),
        ("f7", "cbor: simple value is not recognized"),
        ("ff", "cbor: simple value is not recognized"),
        ("41ff", "cbor: invalid UTF-8 string"),
        ("c24101", "cbor: arbitrary-precision integers are not supported"),
        ("1c", "cbor: invalid additional information"),
    ];
    for (text, sentence) in cases {
        assert_eq!(decode(&hex(text)).unwrap_err().to_string(), sentence, "{text}");
    }
    assert_eq!(decode(&vec![0x81; 100_000]), Err(Error::Depth));
    assert_eq!(decode(&vec![0xc6; 100_000]), Err(Error::Depth));
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::from),
        any::<i16>().prop_map(|number| Value::from(f64::from(number) / 8.0)),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_comes_back(value in any_value()) {
        prop_assert_eq!(decode(&encode(&value)).unwrap(), value);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(value) = decode(&bytes) {
            prop_assert_eq!(decode(&encode(&value)).unwrap(), value);
        }
    }
}
