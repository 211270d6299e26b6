//! The current objects of one resource in key order: cheap to freeze, to page through and to count.
//!
//! A sorted list of sorted chunks, both shared copy-on-write: a snapshot costs one reference count, a write that finds a snapshot
//! copies one chunk, and counting what follows a page adds up chunk lengths.

use std::sync::Arc;

use bytes::Bytes;

use crate::object::Object;

/// A chunk is split beyond this. Small enough that copying one for a snapshot's sake takes microseconds.
const CHUNK_MAX: usize = 256;

/// Sorted by key; never empty inside [`Objects`].
type Chunk = Arc<Vec<Arc<Object>>>;

/// Objects in key order. Cloning makes a snapshot.
#[derive(Clone, Default)]
pub struct Objects {
    chunks: Arc<Vec<Chunk>>,
}

/// Where an object stands or would stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    chunk: usize,
    at: usize,
}

impl Objects {
    /// From objects in key order.
    pub fn from_sorted(objects: impl IntoIterator<Item = Arc<Object>>) -> Self {
        let mut chunks: Vec<Chunk> = Vec::new();
        let mut chunk = Vec::with_capacity(CHUNK_MAX / 2);
        for object in objects {
            chunk.push(object);
            if chunk.len() == CHUNK_MAX / 2 {
                chunks.push(Arc::new(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK_MAX / 2))));
            }
        }
        if !chunk.is_empty() {
            chunks.push(Arc::new(chunk));
        }
        Self { chunks: Arc::new(chunks) }
    }

    pub fn get(&self, key: &[u8]) -> Option<&Arc<Object>> {
        let place = self.lower_bound(key);
        self.chunks.get(place.chunk)?.get(place.at).filter(|object| object.key == key)
    }

    /// Puts the object in its place; the one that stood there goes.
    pub fn insert(&mut self, object: Arc<Object>) {
        let place = self.lower_bound(&object.key);
        let chunks = Arc::make_mut(&mut self.chunks);
        // Behind the last chunk: it grows at its end.
        let (index, at) = match chunks.len() {
            0 => {
                chunks.push(Arc::new(vec![object]));
                return;
            }
            len if place.chunk == len => (len - 1, chunks[len - 1].len()),
            _ => (place.chunk, place.at),
        };
        let chunk = Arc::make_mut(&mut chunks[index]);
        match chunk.get_mut(at).filter(|there| there.key == object.key) {
            Some(there) => *there = object,
            None => chunk.insert(at, object),
        }
        if chunk.len() > CHUNK_MAX {
            // Keys that only grow leave full chunks behind.
            let keep = if at + 1 == chunk.len() { CHUNK_MAX } else { CHUNK_MAX / 2 };
            let rest = chunk.split_off(keep);
            chunks.insert(index + 1, Arc::new(rest));
        }
    }

    pub fn remove(&mut self, key: &[u8]) {
        if self.get(key).is_none() {
            return;
        }
        let place = self.lower_bound(key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[place.chunk]);
        chunk.remove(place.at);
        if chunk.is_empty() {
            chunks.remove(place.chunk);
        } else if chunk.capacity() > 4 * chunk.len().max(16) {
            chunk.shrink_to(2 * chunk.len());
        }
    }

    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }

    /// The objects whose key has `prefix`, after the key `after` (exclusive; empty: from the first). Holds a snapshot.
    pub fn range(&self, prefix: &[u8], after: &[u8]) -> Cursor {
        let mut place = self.lower_bound(if after > prefix { after } else { prefix });
        let skip = self.chunks.get(place.chunk).and_then(|chunk| chunk.get(place.at)).is_some_and(|object| object.key == after);
        if skip && after > prefix {
            place.at += 1;
        }
        let end = upper_end(prefix).map_or(Place { chunk: self.chunks.len(), at: 0 }, |end| self.lower_bound(&end));
        Cursor { objects: self.clone(), next: place, end }
    }

    /// The first place whose key is not below `key`. `chunk == len` where all keys are below; else the place holds an object.
    fn lower_bound(&self, key: &[u8]) -> Place {
        let chunk = self.chunks.partition_point(|chunk| chunk.last().is_some_and(|last| last.key.as_ref() < key));
        let at = self.chunks.get(chunk).map_or(0, |chunk| chunk.partition_point(|object| object.key.as_ref() < key));
        Place { chunk, at }
    }
}

/// The first key beyond all that have `prefix`; `None` where there is none.
fn upper_end(prefix: &[u8]) -> Option<Bytes> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end.into());
        }
    }
    None
}

/// A walk over a snapshot.
pub struct Cursor {
    objects: Objects,
    next: Place,
    end: Place,
}

impl Cursor {
    /// How many are left, without looking at them.
    pub fn remaining(&self) -> usize {
        if self.next.chunk >= self.end.chunk {
            return if self.next.chunk == self.end.chunk { self.end.at.saturating_sub(self.next.at) } else { 0 };
        }
        let between = self.objects.chunks.get(self.next.chunk..self.end.chunk).unwrap_or_default();
        between.iter().map(|chunk| chunk.len()).sum::<usize>() - self.next.at + self.end.at
    }
}

impl Iterator for Cursor {
    type Item = Arc<Object>;

    fn next(&mut self) -> Option<Arc<Object>> {
        loop {
            if (self.next.chunk, self.next.at) >= (self.end.chunk, self.end.at) {
                return None;
            }
            let chunk = self.objects.chunks.get(self.next.chunk)?;
            if let Some(object) = chunk.get(self.next.at) {
                self.next.at += 1;
                return Some(object.clone());
            }
            self.next = Place { chunk: self.next.chunk + 1, at: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn object(key: &str, revision: u64) -> Arc<Object> {
        let bytes = Bytes::from_static(b"{\"metadata\":{}}");
        Arc::new(Object::new(Bytes::copy_from_slice(key.as_bytes()), bytes, revision).unwrap())
    }

    fn keys(objects: &Objects, prefix: &str, after: &str) -> Vec<String> {
        objects.range(prefix.as_bytes(), after.as_bytes()).map(|object| String::from_utf8(object.key.to_vec()).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn objects_behave_as_a_sorted_map_and_snapshots_stay(steps in prop::collection::vec((0..40_u16, any::<bool>(), 0..600_u16), 1..200)) {
            let (mut objects, mut model) = (Objects::default(), BTreeMap::new());
            let mut frozen = Vec::new();
            for (revision, (group, insert, number)) in steps.into_iter().enumerate() {
                let key = format!("/r/{}/{number:03}", group % 3);
                if insert {
                    objects.insert(object(&key, revision as u64));
                    model.insert(key, revision as u64);
                } else {
                    objects.remove(key.as_bytes());
                    model.remove(&key);
                }
                if group == 0 {
                    frozen.push((objects.clone(), model.clone()));
                }
            }
            frozen.push((objects, model));
            for (objects, model) in frozen {
                prop_assert_eq!(objects.len(), model.len());
                for (prefix, after) in [("/r/", ""), ("/r/1/", ""), ("/r/1/", "/r/1/300"), ("/r/2/", "/r/2/9999"), ("/x", "")] {
                    let wanted: Vec<String> = model.keys().filter(|key| key.starts_with(prefix) && key.as_str() > after).cloned().collect();
                    prop_assert_eq!(objects.range(prefix.as_bytes(), after.as_bytes()).remaining(), wanted.len());
                    prop_assert_eq!(keys(&objects, prefix, after), wanted);
                }
                for (key, revision) in &model {
                    prop_assert_eq!(objects.get(key.as_bytes()).unwrap().revision, *revision);
                }
            }
        }
    }

    #[test]
    fn many_objects_are_split_over_chunks_and_found_again() {
        let mut objects = Objects::default();
        for number in (0..3_000).rev().chain(3_000..6_000) {
            objects.insert(object(&format!("/r/{number:05}"), number));
        }
        assert!(objects.chunks.len() > 10 && objects.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK_MAX));
        assert_eq!(objects.range(b"/r/", b"/r/02999").remaining(), 3_000);
        let again = Objects::from_sorted(objects.range(b"", b""));
        assert_eq!(keys(&again, "/r/", ""), keys(&objects, "/r/", ""));
        for number in 0..6_000 {
            objects.remove(format!("/r/{number:05}").as_bytes());
        }
        assert_eq!((objects.len(), objects.chunks.len()), (0, 0));
    }
}
