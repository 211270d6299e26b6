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
        b'{' | b'[' => {
            let (mut at, mut depth) = (0, 0_usize);
            loop {
                at += text.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'{' | b'}' | b'[' | b']'))?;
                match text[at] {
                    b'"' => at += string_end(&text[at..])?,
                    b'{' | b'[' => {
                        depth += 1;
                        at += 1;
                    }
                    _ => {
                        depth = depth.checked_sub(1)?;
                        at += 1;
                        if depth == 0 {
                            return Some(at);
                        }
                    }
                }
            }
        }
        _ => Some(text.iter().position(|byte| matches!(byte, b',' | b'}' | b']')).unwrap_or(text.len())),
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
