//! Trees of stored objects that admission asks for at every write: the namespace, the service account, the classes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde_json::Value;

use crate::object::Object;

/// Objects kept at most; one more, and all are forgotten.
const OBJECTS_MAX: usize = 512;
/// Larger ones are not kept.
const BYTES_MAX: usize = 16 << 10;

/// The last trees that were asked for, by key, each of one revision.
#[derive(Default)]
pub struct Decoded(Mutex<HashMap<Bytes, (u64, Arc<Value>)>>);

impl Decoded {
    /// The tree of this very version, made by `decode` where it is not at hand.
    pub fn get<E>(&self, entry: &store::Entry, decode: impl FnOnce() -> Result<Value, E>) -> Result<Arc<Value>, E> {
        self.of(&entry.key, entry.mod_revision, entry.value.len(), decode)
    }

    /// The tree of an object out of a cache.
    pub fn value(&self, object: &Object) -> Arc<Value> {
        let made: Result<_, std::convert::Infallible> = self.of(&object.key, object.revision, object.bytes.len(), || Ok(object.value()));
        made.unwrap_or_else(|never| match never {})
    }

    fn of<E>(&self, key: &Bytes, revision: u64, size: usize, decode: impl FnOnce() -> Result<Value, E>) -> Result<Arc<Value>, E> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, value)) = lock().get(key).filter(|(known, _)| *known == revision) {
            return Ok(value.clone());
        }
        let value = Arc::new(decode()?);
        if size <= BYTES_MAX {
            let mut kept = lock();
            if kept.len() >= OBJECTS_MAX {
                kept.clear();
            }
            kept.insert(key.clone(), (revision, value.clone()));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, revision: u64) -> store::Entry {
        let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::from_static(b"{}"));
        store::Entry { key, value, create_revision: 1, mod_revision: revision }
    }

    #[test]
    fn a_tree_is_made_once_for_each_version() {
        let decoded = Decoded::default();
        let made = std::cell::Cell::new(0);
        let ask = |key: &str, revision: u64| {
            let make = || {
                made.set(made.get() + 1);
                Ok::<_, ()>(Value::from(revision))
            };
            decoded.get(&entry(key, revision), make).unwrap()
        };
        assert_eq!((ask("a", 1), ask("a", 1), made.get()), (Arc::new(1.into()), Arc::new(1.into()), 1));
        assert_eq!((ask("a", 2), ask("b", 2), made.get()), (Arc::new(2.into()), Arc::new(2.into()), 3));
        for number in 0..2 * OBJECTS_MAX {
            ask(&format!("n-{number}"), 7);
        }
        assert!(decoded.0.lock().unwrap().len() <= OBJECTS_MAX);
        assert_eq!(ask("a", 2), Arc::new(2.into()));
    }
}
