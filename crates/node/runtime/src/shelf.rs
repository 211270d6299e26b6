//! Things by their id, and by what else they are asked for: looking for one pod's among a thousand must not visit all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The label by which every kubelet finds a pod's sandboxes and containers again.
pub const LABEL_POD: &str = "io.kubernetes.pod.uid";

/// Fewer characters than this are no beginning of an id.
const PREFIX_MIN: usize = 6;

/// What a [`Shelf`] keeps.
pub trait Shelved {
    /// The names of the groups that it belongs to; they never change.
    fn groups(&self) -> Vec<String>;
}

pub struct Shelf<T>(Mutex<State<T>>);

struct State<T> {
    items: HashMap<String, Arc<T>>,
    /// Ids.
    groups: HashMap<String, Vec<String>>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(Mutex::new(State { items: HashMap::new(), groups: HashMap::new() }))
    }
}

impl<T: Shelved> Shelf<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn insert(&self, id: &str, item: Arc<T>) {
        let mut state = self.state();
        for group in item.groups() {
            state.groups.entry(group).or_default().push(id.to_owned());
        }
        state.items.insert(id.to_owned(), item);
    }

    pub fn remove(&self, id: &str) {
        let mut state = self.state();
        let Some(item) = state.items.remove(id) else { return };
        for group in item.groups() {
            let Some(members) = state.groups.get_mut(&group) else { continue };
            members.retain(|member| member != id);
            if members.is_empty() {
                state.groups.remove(&group);
            }
        }
    }

    pub fn get(&self, id: &str) -> Option<Arc<T>> {
        self.state().items.get(id).cloned()
    }

    /// By id or an unambiguous beginning of it.
    pub fn find(&self, id: &str) -> Option<Arc<T>> {
        let state = self.state();
        if let Some(found) = state.items.get(id) {
            return Some(found.clone());
        }
        let mut matching = state.items.iter().filter(|(key, _)| id.len() >= PREFIX_MIN && key.starts_with(id));
        match (matching.next(), matching.next()) {
            (Some((_, found)), None) => Some(found.clone()),
            _ => None,
        }
    }

    pub fn group(&self, name: &str) -> Vec<Arc<T>> {
        let state = self.state();
        state.groups.get(name).into_iter().flatten().filter_map(|id| state.items.get(id).cloned()).collect()
    }

    pub fn has_group(&self, name: &str) -> bool {
        self.state().groups.contains_key(name)
    }

    pub fn all(&self) -> Vec<Arc<T>> {
        self.state().items.values().cloned().collect()
    }

    /// Those that may match the labels: the pod's where they name one, else all.
    pub fn candidates(&self, labels: &HashMap<String, String>) -> Vec<Arc<T>> {
        match labels.get(LABEL_POD) {
            Some(uid) => self.group(&pod_group(Some(uid))),
            None => self.all(),
        }
    }
}

/// The group of everything with that pod label.
pub fn pod_group(uid: Option<&String>) -> String {
    format!("pod {}", uid.map_or("", String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Item(&'static str);
    impl Shelved for Item {
        fn groups(&self) -> Vec<String> {
            vec![self.0.to_owned()]
        }
    }

    #[test]
    fn an_item_is_found_by_id_by_an_unambiguous_beginning_and_by_its_group_until_it_is_removed() {
        let shelf = Shelf::default();
        for (id, group) in [("aaaaaaa1", "x"), ("aaaaaaa2", "x"), ("bbbbbbb1", "y")] {
            shelf.insert(id, Arc::new(Item(group)));
        }
        assert!(shelf.find("bbbbbb").is_some() && shelf.find("bbbbb").is_none());
        assert!(shelf.find("aaaaaaa").is_none() && shelf.find("aaaaaaa2").is_some());
        assert_eq!((shelf.group("x").len(), shelf.group("y").len(), shelf.group("z").len()), (2, 1, 0));
        shelf.remove("bbbbbbb1");
        assert!(shelf.get("bbbbbbb1").is_none() && !shelf.has_group("y"));
    }
}
