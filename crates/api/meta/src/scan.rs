//! Finds members in JSON text without making a tree: what selectors ask about an object stands in a few of its bytes.
//!
//! The text is compact JSON that this server wrote itself. On anything else the answers are absent or wrong, never a panic.

/// The members of an object: raw names (without quotes) and raw values. `text` begins at the `{`.
pub fn members(text: &[u8]) -> Members<'_> {
    let rest = match text.first() {
        Some(b'{') => &text[1..],
        _ => &[],
    };
    Members { rest }
}

pub struct Members<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.first() == Some(&b',') {
            self.rest = &self.rest[1..];
        }
        if self.rest.first() != Some(&b'"') {
            return None;
        }
        let name_end = string_end(self.rest)?;
        let name = self.rest.get(1..name_end - 1)?;
        let value = self.rest.get(name_end..)?.strip_prefix(b":")?;
        let value_end = value_end(value)?;
        self.rest = value.get(value_end..)?;
        Some((name, &value[..value_end]))
    }
}

/// The raw value at a path of member names.
pub fn find<'a>(text: &'a [u8], path: &[&str]) -> Option<&'a [u8]> {
    path.iter().try_fold(text, |text, wanted| members(text).find(|(name, _)| *name == wanted.as_bytes()).map(|(_, value)| value))
}

/// A raw string value without its quotes; `None` where it has escapes or is no string.
pub fn plain(value: &[u8]) -> Option<&str> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if inner.contains(&b'\\') {
        return None;
    }
    std::str::from_utf8(inner).ok()
}

/// The value that `text` begins with.
pub fn value(text: &[u8]) -> Option<&[u8]> {
    text.get(..value_end(text)?)
}

/// Behind the closing quote of the string that `text` begins with.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += text.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// Behind the value that `text` begins with.
fn value_end(text: &[u8]) -> Option<usize> {
    match text.first()? {
        b'"' => string_end(text),
        b'{' | b'[' => container_end(text),
        _ => Some(text.iter().position(|byte| matches!(byte, b',' | b'}' | b']')).unwrap_or(text.len())),
    }
}

/// Bytes looked at together.
const BLOCK: usize = 64;

/// Behind the object or array that `text` begins with. Looks at a block of bytes at a time: objects are scanned at every change of them.
fn container_end(text: &[u8]) -> Option<usize> {
    let (mut depth, mut in_string, mut escapes_next) = (0_u32, 0_u64, false);
    for (number, chunk) in text.chunks(BLOCK).enumerate() {
        let mut found = match chunk.try_into() {
            Ok(block) => Found::of(block),
            // The last one. Copying each would cost more than looking at it.
            Err(_) => {
                let mut block = [b' '; BLOCK];
                block[..chunk.len()].copy_from_slice(chunk);
                Found::of(&block)
            }
        };
        found.quotes &= !escaped(found.backslashes, &mut escapes_next);
        // Ones from each opening quote to before its closing one.
        let strings = parity(found.quotes) ^ in_string;
        in_string = 0_u64.wrapping_sub(strings >> 63);
        let (opened, mut closed) = (found.opened & !strings, found.closed & !strings);
        if closed.count_ones() < depth {
            depth = depth + opened.count_ones() - closed.count_ones();
            continue;
        }
        let mut seen = 0_u64;
        while closed != 0 {
            let bit = closed & closed.wrapping_neg();
            // What was opened before this one.
            depth += (opened & !seen & (bit - 1)).count_ones();
            seen = bit - 1;
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return Some(number * BLOCK + bit.trailing_zeros() as usize + 1);
            }
            closed &= closed - 1;
        }
        depth += (opened & !seen).count_ones();
    }
    None
}

/// The characters that a backslash makes plain. `carried`: the last character of the block before was such a backslash.
fn escaped(mut backslashes: u64, carried: &mut bool) -> u64 {
    let mut escaped = u64::from(std::mem::take(carried));
    backslashes &= !escaped;
    while backslashes != 0 {
        let bit = backslashes & backslashes.wrapping_neg();
        let next = bit << 1;
        *carried = next == 0;
        escaped |= next;
        backslashes &= !(bit | next);
    }
    escaped
}

/// Each bit says whether the number of ones up to it, itself included, is odd.
fn parity(mut bits: u64) -> u64 {
    for shift in [1, 2, 4, 8, 16, 32] {
        bits ^= bits << shift;
    }
    bits
}

/// Where in a block the bytes are that matter, a bit for each.
#[derive(Default)]
struct Found {
    quotes: u64,
    backslashes: u64,
    opened: u64,
    closed: u64,
}

impl Found {
    /// Letters differ from their capitals in this bit, and braces from brackets.
    const CASE: u8 = 0x20;

    #[cfg(target_arch = "x86_64")]
    fn of(block: &[u8; BLOCK]) -> Self {
        // SAFETY: SSE2 is part of every x86-64 processor, and the function asks for nothing else.
        unsafe { Self::of_sse2(block) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "sse2")]
    fn of_sse2(block: &[u8; BLOCK]) -> Self {
        use std::arch::x86_64::{__m128i, _mm_cmpeq_epi8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x, _mm_set1_epi8};
        let mut found = Self::default();
        let (words, _) = block.as_chunks::<8>();
        let (pairs, _) = words.as_chunks::<2>();
        for (at, [low, high]) in pairs.iter().enumerate() {
            let bytes = _mm_set_epi64x(i64::from_le_bytes(*high), i64::from_le_bytes(*low));
            let folded = _mm_or_si128(bytes, _mm_set1_epi8(Self::CASE as i8));
            let place = |equal: __m128i| u64::from(_mm_movemask_epi8(equal) as u32) << (16 * at);
            found.quotes |= place(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"' as i8)));
            found.backslashes |= place(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\' as i8)));
            found.opened |= place(_mm_cmpeq_epi8(folded, _mm_set1_epi8(b'{' as i8)));
            found.closed |= place(_mm_cmpeq_epi8(folded, _mm_set1_epi8(b'}' as i8)));
        }
        found
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of(block: &[u8; BLOCK]) -> Self {
        let mut found = Self::default();
        for (at, byte) in block.iter().enumerate() {
            found.quotes |= u64::from(*byte == b'"') << at;
            found.backslashes |= u64::from(*byte == b'\\') << at;
            found.opened |= u64::from(byte | Self::CASE == b'{') << at;
            found.closed |= u64::from(byte | Self::CASE == b'}') << at;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn members_are_found_at_any_depth() {
        let text = br#"{"a":{"x":[1,{"b":"}"}],"b":"in a","":null},"e\"s\\":"q\"","labels":{"k":"v","l":""},"n":-1.5}"#;
        let cases: [(&[&str], Option<&str>); 8] = [
            (&["a", "b"], Some("\"in a\"")),
            (&["a", "x"], Some("[1,{\"b\":\"}\"}]")),
            (&["a", ""], Some("null")),
            (&["labels", "l"], Some("\"\"")),
            (&["n"], Some("-1.5")),
            (&["b"], None),
            (&["n", "b"], None),
            (&[], Some(std::str::from_utf8(text).unwrap())),
        ];
        for (path, wanted) in cases {
            assert_eq!(find(text, path).map(|found| std::str::from_utf8(found).unwrap()), wanted, "{path:?}");
        }
        assert_eq!((plain(b"\"v\""), plain(b"\"\\n\""), plain(b"1")), (Some("v"), None, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = members(&text).count();
            let _ = find(&text, &["a", "b"]);
        }

        #[test]
        fn a_value_ends_where_it_was_written_to_end(
            parts in prop::collection::vec((0..6_usize, "[a-z\\\\\"{}\\[\\],]{0,70}"), 1..12),
        ) {
            let items = parts.into_iter().map(|(depth, text)| (0..depth).fold(serde_json::Value::from(text), |inner, _| serde_json::json!({"k": [inner]})));
            let written = serde_json::Value::Array(items.collect()).to_string();
            let text = format!("{written}]}}\"");
            prop_assert_eq!(value(text.as_bytes()), Some(written.as_bytes()));
            prop_assert_eq!(value(&written.as_bytes()[..written.len() - 1]), None);
        }

        #[test]
        fn what_serde_writes_is_read(labels in prop::collection::btree_map(".{0,9}", ".{0,9}", 0..6)) {
            let text = serde_json::to_vec(&serde_json::json!({"a": [labels], "labels": labels})).unwrap();
            let found: Vec<_> = members(find(&text, &["labels"]).unwrap()).collect();
            prop_assert_eq!(found.len(), labels.len());
            for ((name, value), (wanted_name, wanted)) in found.into_iter().zip(&labels) {
                if let Some(value) = plain(value) {
                    prop_assert_eq!(value, wanted);
                }
                prop_assert_eq!(serde_json::from_slice::<String>(&[b"\"", name, b"\""].concat()).unwrap(), wanted_name.clone());
            }
        }
    }
}
