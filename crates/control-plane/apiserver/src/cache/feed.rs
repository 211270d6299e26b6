//! The one reader of the store's events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store::{Range, Store};

use super::{Caches, Event};
use crate::object::Object;

/// How often an idle feed forgets what is too old.
const TRIM_EVERY: Duration = Duration::from_secs(30);
/// Events applied before waiting readers are told.
const BATCH_MAX: usize = 256;
/// Every key of the API begins so.
pub const ROOT: &[u8] = b"/registry/";

/// Loads the caches and keeps them current until the store closes. Where the feed is lost (the store closed a slow reader), it goes on
/// from where it was; only what the store has forgotten meanwhile makes it load everything again and tell every watcher to list again.
pub async fn run(store: Arc<dyn Store>, caches: Arc<Caches>) {
    let mut backoff = stdx::Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
    loop {
        match follow(&*store, &caches).await {
            Err(store::Error::Closed) => return,
            Err(error) => tracing::warn!(%error, "watch cache: lost the store's events"),
            Ok(()) => tracing::warn!("watch cache: the store ended its events"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

async fn follow(store: &dyn Store, caches: &Caches) -> Result<(), store::Error> {
    let resumed = caches.loaded().then(|| store.watch(ROOT, caches.observed()));
    let mut watch = match resumed {
        Some(Ok(watch)) => watch,
        _ => {
            let snapshot = store.range(Range { prefix: Bytes::from_static(ROOT), ..Range::default() }).await?;
            let watch = store.watch(ROOT, snapshot.revision)?;
            load(caches, snapshot);
            watch
        }
    };
    let mut trimmed = true;
    loop {
        // While there is a past to forget, an idle feed looks up now and then; afterwards it sleeps until the next event.
        let event = match trimmed {
            true => watch.events.recv().await,
            false => match tokio::time::timeout(TRIM_EVERY, watch.events.recv()).await {
                Ok(event) => event,
                Err(_) => {
                    trimmed = caches.trim();
                    continue;
                }
            },
        };
        let Some(event) = event else { break };
        let mut revision = apply(caches, event?);
        // Every event is complete once it is applied: a later one that is an error does not take that back.
        let mut rest = Ok(());
        for _ in 0..BATCH_MAX {
            match watch.events.try_recv() {
                Ok(Ok(event)) => revision = apply(caches, event),
                Ok(Err(error)) => {
                    rest = Err(error);
                    break;
                }
                Err(_) => break,
            }
        }
        caches.arrive(revision);
        rest?;
        trimmed = false;
        // Watchers and readers get their turn between batches.
        tokio::task::yield_now().await;
    }
    Ok(())
}

fn load(caches: &Caches, snapshot: store::RangeResult) {
    let mut by_prefix: HashMap<Bytes, Vec<Arc<Object>>> = HashMap::new();
    for entry in snapshot.entries {
        let objects = by_prefix.entry(entry.key.slice(..prefix_len(&entry.key))).or_default();
        objects.extend(Object::new(entry.key, entry.value, entry.mod_revision).map(Arc::new));
    }
    for prefix in by_prefix.keys() {
        caches.of(prefix);
    }
    for (prefix, cache) in caches.all() {
        cache.reset(by_prefix.remove(&prefix).unwrap_or_default(), snapshot.revision);
    }
    caches.loaded.store(true, std::sync::atomic::Ordering::Relaxed);
    caches.arrive(snapshot.revision);
}

fn apply(caches: &Caches, event: store::Event) -> u64 {
    let revision = event.revision();
    let cache = caches.of(&event.key()[..prefix_len(event.key())]);
    // The cache's own copy knows already what selectors asked of it.
    match event_of(event, |entry| cache.get(&entry.key).filter(|object| object.revision == entry.mod_revision)) {
        Some(event) => cache.apply(event),
        None => tracing::error!(revision, "watch cache: a stored value is no object"),
    }
    revision
}

/// The store's event as watchers see it. `known` may have an object of an earlier version at hand. `None` for what is no object.
pub fn event_of(event: store::Event, known: impl Fn(&store::Entry) -> Option<Arc<Object>>) -> Option<Event> {
    let object = |entry: store::Entry| Object::new(entry.key, entry.value, entry.mod_revision).map(Arc::new);
    let earlier = |entry: store::Entry| known(&entry).or_else(|| object(entry));
    match event {
        store::Event::Put { entry, previous } => {
            let previous = previous.and_then(earlier);
            object(entry).map(|object| Event { deleted: false, object, previous })
        }
        store::Event::Delete { previous, revision, .. } => {
            earlier(previous).map(|last| Event { deleted: true, object: Arc::new(last.at(revision)), previous: Some(last) })
        }
    }
}

/// The part of a key that names its resource: `/registry/pods/`, `/registry/services/specs/`, `/registry/example.com/widgets/`.
fn prefix_len(key: &[u8]) -> usize {
    let segment =
        |from: usize| key.get(from..).and_then(|rest| rest.iter().position(|byte| *byte == b'/')).map_or(key.len(), |at| from + at + 1);
    let first = segment(ROOT.len());
    let name = &key[ROOT.len().min(first)..first];
    if name == b"services/" || name.contains(&b'.') { segment(first) } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_their_resource() {
        let cases = [
            ("/registry/pods/default/a", "/registry/pods/"),
            ("/registry/services/specs/default/a", "/registry/services/specs/"),
            ("/registry/example.com/widgets/default/a", "/registry/example.com/widgets/"),
            ("/registry/odd", "/registry/odd"),
        ];
        for (key, prefix) in cases {
            assert_eq!(&key[..prefix_len(key.as_bytes())], prefix);
        }
    }
}
