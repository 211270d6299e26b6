//! Who watches one resource, filed so that an event meets only those whom it may concern.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::queue::Queue;
use super::{Delivery, Event};
use crate::selection::Selection;

struct Watcher {
    selection: Arc<Selection>,
    queue: Arc<Queue>,
}

#[derive(Default)]
pub struct Watchers {
    /// Of a namespace or of everything.
    broad: Vec<Watcher>,
    /// Of one object, by its key: kubelets watch single ConfigMaps and Secrets.
    by_key: HashMap<Bytes, Vec<Watcher>>,
    /// Of one node's pods, by the node: every kubelet has one such watch.
    by_node: HashMap<Box<str>, Vec<Watcher>>,
    /// Since those whose reader is gone were last looked for.
    added: usize,
    /// The server stops: who comes now is closed at once, or its connection would hold up the end.
    ended: bool,
}

impl Watchers {
    pub fn add(&mut self, selection: Arc<Selection>, queue: Arc<Queue>) {
        if self.ended {
            return queue.close(false);
        }
        self.added += 1;
        if self.added > 64.max(2 * self.len()) {
            self.sweep();
        }
        let place = match (selection.key(), selection.node()) {
            (Some(key), _) => self.by_key.entry(Bytes::copy_from_slice(key)).or_default(),
            (None, Some(node)) => self.by_node.entry(node.into()).or_default(),
            (None, None) => &mut self.broad,
        };
        place.push(Watcher { selection, queue });
    }

    pub fn len(&self) -> usize {
        let filed = |lists: usize, list: &Vec<Watcher>| lists + list.len();
        self.broad.len() + self.by_key.values().fold(0, filed) + self.by_node.values().fold(0, filed)
    }

    /// Hands an event to those whom it concerns. `nodes`: the node that the pod was on and the one that it is on.
    pub fn notify(&mut self, event: &Event, nodes: [Option<&str>; 2]) {
        let mut delivery = None;
        offer(&mut self.broad, event, &mut delivery);
        if let Some(list) = self.by_key.get_mut(&event.object.key) {
            offer(list, event, &mut delivery);
            if list.is_empty() {
                self.by_key.remove(&event.object.key);
            }
        }
        let [was, is] = nodes;
        for node in [was, is.filter(|is| was != Some(is))].into_iter().flatten() {
            if let Some(list) = self.by_node.get_mut(node) {
                offer(list, event, &mut delivery);
            }
        }
    }

    /// Ends every watch. `lagged`: the watchers have to list again.
    pub fn close(&mut self, lagged: bool) {
        let filed = self.by_key.values().chain(self.by_node.values()).flatten();
        self.broad.iter().chain(filed).for_each(|watcher| watcher.queue.close(lagged));
        *self = Self { ended: self.ended, ..Self::default() };
    }

    /// Ends every watch, and those that are still to come.
    pub fn end(&mut self) {
        self.close(false);
        self.ended = true;
    }

    fn sweep(&mut self) {
        self.added = 0;
        self.broad.retain(|watcher| watcher.queue.is_open());
        for lists in [self.by_key.values_mut().collect::<Vec<_>>(), self.by_node.values_mut().collect()] {
            lists.into_iter().for_each(|list| list.retain(|watcher| watcher.queue.is_open()));
        }
        self.by_key.retain(|_, list| !list.is_empty());
        self.by_node.retain(|_, list| !list.is_empty());
    }
}

fn offer(list: &mut Vec<Watcher>, event: &Event, delivery: &mut Option<Arc<Delivery>>) {
    list.retain(|watcher| {
        let Some(change) = watcher.selection.classify(event) else {
            return true;
        };
        let delivery = delivery.get_or_insert_with(|| Arc::new(Delivery::new(event.clone())));
        watcher.queue.push(change, delivery)
    });
}
