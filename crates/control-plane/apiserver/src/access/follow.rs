//! What an authorizer has read of a resource, and what happened since.
//!
//! A follower is no task: it is brought up to date by the request that needs it. Its queue holds as many changes as any watcher's; when more
//! happened in between, everything is read again.

use std::sync::Arc;

use serde_json::Value;

use crate::cache::{Cache, Caches, Change, Event, Since, Subscription};
use crate::registry::catalog;
use crate::selection::Selection;

pub struct Follower {
    pub cache: Arc<Cache>,
    selection: Option<Arc<Selection>>,
    subscription: Option<Subscription>,
}

/// The changes are no longer known: read everything anew.
#[derive(Debug)]
pub struct Lost;

impl Follower {
    pub fn new(caches: &Caches, group: &str, plural: &str) -> Self {
        let kind = catalog::stored(group, plural);
        let prefix = kind.map_or_else(|| format!("/registry/{plural}/"), |kind| kind.storage.prefix.clone());
        let selection = kind.map(|kind| Arc::new(Selection::all(prefix.as_bytes(), kind.storage.rules.clone())));
        Self { cache: caches.of(prefix.as_bytes()), selection, subscription: None }
    }

    /// All objects, and from now on their changes.
    pub fn restart(&mut self, mut each: impl FnMut(&Value)) {
        let Some(selection) = self.selection.clone() else { return };
        let Ok(mut subscription) = self.cache.watch(Since::State, true, selection, 0) else { return };
        for object in subscription.initial.take().into_iter().flatten() {
            each(&object.value());
        }
        self.subscription = Some(subscription);
    }

    /// What happened since the last call, in order.
    pub fn catch_up(&mut self, mut each: impl FnMut(Change, &Event)) -> Result<(), Lost> {
        let Some(subscription) = &mut self.subscription else { return Err(Lost) };
        while let Some((change, delivery)) = subscription.live.take_event() {
            each(change, &delivery.event);
        }
        if subscription.live.is_open() { Ok(()) } else { Err(Lost) }
    }
}
