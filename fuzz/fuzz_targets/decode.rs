//! Bodies in every encoding, decoded as a kind of the table, judged by its rules, written and read again.
//!
//! Byte 0 chooses the encoding, byte 1 the kind; the rest is the body.

#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::decode::{self, Mode, Parsed};
use schema::{cbor, default, model, protobuf, table};

fuzz_target!(|input: &[u8]| {
    let [encoding, choice, body @ ..] = input else { return };
    let kinds: Vec<_> = table::kinds().collect();
    let Some(((group, version, kind), found)) = kinds.get(usize::from(*choice) % kinds.len()).copied() else { return };
    let parsed = match encoding % 4 {
        0 => decode::parse_json(body).ok(),
        1 => decode::parse_yaml(body).ok(),
        2 => cbor::decode(body).ok().map(Parsed::from),
        _ => protobuf::decode(body, Some(found))
            .or_else(|_| protobuf::decode(&protobuf::envelope("", "", body), Some(found)))
            .ok()
            .map(|object| object.value.into()),
    };
    let Some(parsed) = parsed else { return };
    let Ok((object, _)) = decode::decode_type(parsed, found, Mode::Warn) else { return };
    let (again, unknown) = decode::decode_type(object.clone(), found, Mode::Warn).expect("what was decoded decodes");
    assert_eq!(again, object, "decoding is idempotent");
    assert!(unknown.is_empty(), "{unknown:?}");
    assert_eq!(cbor::decode(&cbor::encode(&object)).expect("our own CBOR"), object);
    protobuf::decode_message(&protobuf::encode_message(&object, found), found).expect("our own protobuf");
    let mut defaulted = object.clone();
    default::apply(&mut defaulted, &model::Schema::Object(model::Ref::Static(found)));
    if let Some(rules) = rules::of(group, version, kind) {
        rules.default(&mut defaulted);
        rules.prepare_create(&mut defaulted);
        rules.validate(&defaulted);
        rules.validate_update(&defaulted, &object, rules::Part::Main);
        rules.prepare_update(&mut defaulted, &object, rules::Part::Status);
        rules.selectable_fields(&defaulted);
        rules.cells(&defaulted, 0);
        rules.warnings(&defaulted, Some(&object));
    }
});
