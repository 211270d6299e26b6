//! Waking when anything of a few resources changes, for tasks that act from state.

use std::sync::Arc;

use super::{Caches, Next, Since, Subscription};
use crate::registry::catalog;
use crate::selection::Selection;

pub struct Changes(Vec<Subscription>);

impl Changes {
    /// Of built-in resources (group, plural); `None` where one of them cannot be watched.
    pub fn of(caches: &Caches, resources: &[(&str, &str)]) -> Option<Self> {
        let watch = |(group, plural): &(&str, &str)| {
            let kind = catalog::stored(group, plural)?;
            let selection = Arc::new(Selection::all(kind.prefix(""), kind.storage.rules.clone()));
            caches.of(kind.storage.prefix.as_bytes()).watch(Since::State, false, selection, 0).ok()
        };
        resources.iter().map(watch).collect::<Option<_>>().map(Self)
    }

    /// Waits; what happened until now is one change. `false` when a watch was closed: everything is to be looked at, and watched, anew.
    pub async fn next(&mut self) -> bool {
        let open = std::future::poll_fn(|poller| {
            let ready = self.0.iter().map(|watch| watch.live.poll_next(poller)).find(std::task::Poll::is_ready);
            ready.map_or(std::task::Poll::Pending, |next| next.map(|next| matches!(next, Next::Event(..))))
        });
        let open = open.await;
        self.0.iter().for_each(|watch| while watch.live.take_event().is_some() {});
        open
    }
}
