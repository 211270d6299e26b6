//! Puts a member into JSON text without making a tree: what the server itself adds to an object is a few of its bytes.
//!
//! Like [`meta::scan`] this is for the compact JSON that this server wrote; names stay sorted, as a tree would write them.

use meta::scan;

/// Text to be put in at this place of the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insertion {
    pub at: usize,
    pub text: String,
}

/// The insertion that gives `object`, a part of `whole`, one more member; `None` where it has one of this name or is no object. `value` is JSON.
pub fn member(whole: &[u8], object: &[u8], name: &str, value: &str) -> Option<Insertion> {
    let end = object.strip_suffix(b"}")?.len();
    let mut next = None;
    let mut is_empty = true;
    for (there, _) in scan::members(object) {
        is_empty = false;
        match there.cmp(name.as_bytes()) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => return None,
            // The quote before the name.
            std::cmp::Ordering::Greater => {
                next = next.or_else(|| offset(whole, there)?.checked_sub(1));
            }
        }
    }
    match next {
        Some(at) => Some(Insertion { at, text: format!("\"{name}\":{value},") }),
        None => {
            let comma = if is_empty { "" } else { "," };
            Some(Insertion { at: offset(whole, object)? + end, text: format!("{comma}\"{name}\":{value}") })
        }
    }
}

/// The insertion that gives `array`, a part of `whole`, one more item at its end; `None` where it is no array.
pub fn item(whole: &[u8], array: &[u8], value: &str) -> Option<Insertion> {
    let items = array.strip_prefix(b"[")?.strip_suffix(b"]")?;
    let comma = if items.is_empty() { "" } else { "," };
    Some(Insertion { at: offset(whole, array)? + array.len() - 1, text: format!("{comma}{value}") })
}

/// `whole` with the insertions, which are in the order of their places.
pub fn apply(whole: &[u8], insertions: &[Insertion]) -> Option<Vec<u8>> {
    let added: usize = insertions.iter().map(|insertion| insertion.text.len()).sum();
    let mut out = Vec::with_capacity(whole.len() + added);
    let mut from = 0;
    for insertion in insertions {
        out.extend_from_slice(whole.get(from..insertion.at)?);
        out.extend_from_slice(insertion.text.as_bytes());
        from = insertion.at;
    }
    out.extend_from_slice(whole.get(from..)?);
    Some(out)
}

/// Where a part of `whole` begins.
fn offset(whole: &[u8], part: &[u8]) -> Option<usize> {
    (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize).filter(|at| at + part.len() <= whole.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    proptest! {
        #[test]
        fn a_member_stands_where_a_tree_would_write_it(names in prop::collection::btree_set("[a-e]{1,2}", 0..5), name in "[a-e]{1,2}", number: u8) {
            let inner: serde_json::Map<String, Value> = names.iter().map(|name| (name.clone(), json!([name]))).collect();
            let mut tree = json!({"a": 1, "inner": inner, "z": []});
            let text = tree.to_string().into_bytes();
            let object = scan::find(&text, &["inner"]).unwrap();
            let insertion = member(&text, object, &name, &number.to_string());
            prop_assert_eq!(insertion.is_none(), names.contains(&name));
            if let Some(insertion) = insertion {
                tree["inner"][&name] = number.into();
                prop_assert_eq!(apply(&text, &[insertion]).unwrap(), tree.to_string().into_bytes());
            }
        }

        #[test]
        fn any_bytes_are_survived(text in prop::collection::vec(any::<u8>(), 0..60)) {
            for insertion in [member(&text, &text, "b", "1"), item(&text, &text, "1")].into_iter().flatten() {
                let _ = apply(&text, &[insertion]);
            }
        }
    }

    #[test]
    fn items_are_added_at_the_end() {
        for (before, after) in [("{\"a\":[]}", "{\"a\":[7]}"), ("{\"a\":[1]}", "{\"a\":[1,7]}")] {
            let array = scan::find(before.as_bytes(), &["a"]).unwrap();
            let insertion = item(before.as_bytes(), array, "7").unwrap();
            assert_eq!(apply(before.as_bytes(), &[insertion]).unwrap(), after.as_bytes());
        }
        assert_eq!(item(b"{}", b"{}", "7"), None);
    }
}
