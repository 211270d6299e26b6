//! `shardSelector`: one part of a collection, by ranges of a hash (KEP-5866).
//!
//! `shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000') || shardRange(…)`; the hash is FNV-1a with 64 bits.

use std::ops::Range;

use crate::object::Object;

/// The end of the hash space, one beyond the largest hash.
const END: u128 = 1 << 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Uid,
    Namespace,
}

/// A parsed `shardSelector`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    field: Field,
    ranges: Vec<Range<u128>>,
}

impl Shard {
    /// The error is the sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("empty shard selector is not allowed; omit the parameter for unfiltered lists".into());
        }
        let mut shard: Option<Self> = None;
        for call in text.split("||") {
            let (field, range) = call_of(call.trim())?;
            let shard = shard.get_or_insert_with(|| Self { field, ranges: Vec::new() });
            if shard.field != field {
                let (one, other) = (shard.field.path(), field.path());
                return Err(format!("all shard ranges must use the same field, got {one:?} and {other:?}"));
            }
            shard.ranges.push(range);
        }
        shard.ok_or_else(|| "no shard range".into())
    }

    pub fn contains(&self, object: &Object) -> bool {
        let value = match self.field {
            Field::Uid => object.uid(),
            Field::Namespace => object.namespace(),
        };
        let hash = u128::from(fnv1a(value.as_bytes()));
        self.ranges.iter().any(|range| range.contains(&hash))
    }
}

impl std::fmt::Display for Shard {
    /// In the form that `parse` reads; lists say it back in `metadata.shardInfo`.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let or = if index == 0 { "" } else { " || " };
            write!(out, "{or}shardRange({}, '0x{:016x}', '0x{:016x}')", self.field.path(), range.start, range.end)?;
        }
        Ok(())
    }
}

impl Field {
    fn path(self) -> &'static str {
        match self {
            Field::Uid => "object.metadata.uid",
            Field::Namespace => "object.metadata.namespace",
        }
    }
}

fn call_of(text: &str) -> Result<(Field, Range<u128>), String> {
    let call = text.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).map_or(text, str::trim);
    let Some((function, arguments)) = call.strip_suffix(')').and_then(|call| call.split_once('(')) else {
        return Err(format!("expected shardRange() call or || operator, got {call:?}"));
    };
    if function.trim() != "shardRange" {
        return Err(format!("unsupported function {:?}; only shardRange() and || are allowed", function.trim()));
    }
    let arguments: Vec<&str> = arguments.split(',').map(str::trim).collect();
    let [field, start, end] = arguments.as_slice() else {
        return Err(format!("shardRange() requires exactly 3 arguments, got {}", arguments.len()));
    };
    let field = match *field {
        "object.metadata.uid" => Field::Uid,
        "object.metadata.namespace" => Field::Namespace,
        other => return Err(format!("unsupported field path {other:?}; supported: object.metadata.uid, object.metadata.namespace")),
    };
    let (from, to) = (hex("hexStart", start)?, hex("hexEnd", end)?);
    if from >= to {
        return Err(format!("shard range start {} must be less than end {}", unquoted(start), unquoted(end)));
    }
    Ok((field, from..to))
}

fn unquoted(text: &str) -> &str {
    let inner = |quote| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    inner('\'').or_else(|| inner('"')).unwrap_or(text)
}

fn hex(name: &str, literal: &str) -> Result<u128, String> {
    let text = unquoted(literal);
    if text == literal {
        return Err(format!("{name} must be a string literal (e.g. '0xff'), got {literal}"));
    }
    let digits = text.strip_prefix("0x").ok_or_else(|| format!("{name} must have '0x' prefix, got {text:?}"))?;
    if let Some(wrong) = digits.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
        return Err(format!("{name}: invalid hex character {wrong:?} in {text:?}"));
    }
    match (digits.len(), u128::from_str_radix(digits, 16)) {
        (16, Ok(value)) => Ok(value),
        (17, Ok(END)) => Ok(END),
        (17, _) => Err(format!("{name}: 17-digit hex value must be '0x10000000000000000' (2^64), got {text:?}")),
        (0, _) => Err(format!("{name}: hex value is required after '0x'")),
        (length, _) if length > 17 => Err(format!("{name}: hex value too long ({length} chars, max 17): {digits:?}")),
        _ => Err(format!("{name} must be a 0x-prefixed 16-digit hex value, got {text:?} (did you mean \"0x{digits:0>16}\"?)")),
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_halves_of_the_hash_space_are_the_whole() {
        let low = Shard::parse("shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000')").unwrap();
        let high = Shard::parse("shardRange(object.metadata.uid,'0x8000000000000000','0x10000000000000000')").unwrap();
        let both = Shard::parse(&format!("{low} || {high}")).unwrap();
        let mut counts = [0, 0];
        for number in 0..200_u64 {
            let uid = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let bytes = format!("{{\"metadata\":{{\"uid\":\"{uid:016x}\"}}}}");
            let object = Object::new("k".into(), bytes.into(), 1).unwrap();
            assert!(low.contains(&object) != high.contains(&object) && both.contains(&object));
            counts[usize::from(high.contains(&object))] += 1;
        }
        assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
        // The published test vectors of FNV-1a.
        assert_eq!((fnv1a(b""), fnv1a(b"a"), fnv1a(b"foobar")), (0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c, 0x8594_4171_f739_67e8));
    }

    #[test]
    fn what_is_no_shard_selector_is_refused_with_a_sentence() {
        let range = |field: &str, from: &str, to: &str| format!("shardRange({field}, {from}, {to})");
        let uid = "object.metadata.uid";
        let cases = [
            (" ".to_owned(), "empty shard selector"),
            ("x".into(), "expected shardRange() call"),
            ("f(1)".into(), "unsupported function \"f\""),
            ("shardRange(a)".into(), "requires exactly 3 arguments, got 1"),
            (range("object.spec", "'0x0'", "'0x1'"), "unsupported field path"),
            (range(uid, "'0x1'", "'0x2'"), "did you mean \"0x0000000000000001\"?"),
            (range(uid, "'1'", "'2'"), "must have '0x' prefix"),
            (range(uid, "0", "1"), "must be a string literal"),
            (range(uid, "'0xG000000000000000'", "'0x1'"), "invalid hex character 'G'"),
            (range(uid, "'0x8000000000000000'", "'0x0000000000000001'"), "must be less than end"),
            (range(uid, "'0x0000000000000000'", "'0x10000000000000001'"), "17-digit"),
        ];
        for (text, sentence) in cases {
            let error = Shard::parse(&text).unwrap_err();
            assert!(error.contains(sentence), "{text}: {error}");
        }
    }
}
