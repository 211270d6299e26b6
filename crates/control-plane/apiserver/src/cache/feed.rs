//! The one reader of the store's events.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store::{Range, Store};

use super::{Caches, Event};
use crate::object::Object;

/// How often an idle feed forgets what is too old.
const TRIM_EVERY: Duration = Duration::from_secs(30);
/// Every key of the API begins so.
pub const ROOT: &[u8] = b"/registry/";

/// Loads the caches and keeps them current until the store closes. Where the feed is lost (the store closed a slow reader, or
/// compacted), everything is loaded again and every watcher is told to list again.
pub async fn run(store: Arc<dyn Store>, caches: Arc<Caches>) {
    let mut backoff = stdx::Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
    loop {
        match follow(&*store, &caches).await {
            Err(store::Error::Closed) => return,
            Err(error) => tracing::warn!(%error, "watch cache: lost the store's events, loading again"),
            Ok(()) => tracing::warn!("watch cache: the store ended its events, loading again"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

async fn follow(store: &dyn Store, caches: &Caches) -> Result<(), store::Error> {
    let snapshot = store.range(Range { prefix: Bytes::from_static(ROOT), ..Range::default() }).await?;
    let mut watch = store.watch(ROOT, snapshot.revision)?;
    load(caches, snapshot);
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
        while let Ok(event) = watch.events.try_recv() {
            revision = apply(caches, event?);
        }
        caches.observed.send_replace(revision);
        trimmed = false;
    }
    Ok(())
}

fn load(caches: &Caches, snapshot: store::RangeResult) {
    let mut by_prefix: HashMap<Bytes, BTreeMap<Bytes, Arc<Object>>> = HashMap::new();
    for entry in snapshot.entries {
        let objects = by_prefix.entry(entry.key.slice(..prefix_len(&entry.key))).or_default();
        if let Some(object) = Object::new(entry.key, entry.value, entry.mod_revision) {
            objects.insert(object.key.clone(), Arc::new(object));
        }
    }
    for prefix in by_prefix.keys() {
        caches.of(prefix);
    }
    for cache in caches.all() {
        cache.reset(BTreeMap::new(), snapshot.revision);
    }
    for (prefix, objects) in by_prefix {
        caches.of(&prefix).reset(objects, snapshot.revision);
    }
    caches.loaded.store(true, std::sync::atomic::Ordering::Relaxed);
    caches.observed.send_replace(snapshot.revision);
}

fn apply(caches: &Caches, event: store::Event) -> u64 {
    let revision = event.revision();
    let cache = caches.of(&event.key()[..prefix_len(event.key())]);
    let previous = |entry: &store::Entry| {
        // The cache's own copy carries an index that may already be filled.
        cache.get(&entry.key).or_else(|| Object::new(entry.key.clone(), entry.value.clone(), entry.mod_revision).map(Arc::new))
    };
    let event = match event {
        store::Event::Put { entry, previous: before } => {
            let before = before.as_ref().and_then(previous);
            Object::new(entry.key, entry.value, revision).map(|object| Event { deleted: false, object: Arc::new(object), previous: before })
        }
        store::Event::Delete { previous: last, .. } => {
            previous(&last).map(|last| Event { deleted: true, object: Arc::new(last.at(revision)), previous: Some(last) })
        }
    };
    match event {
        Some(event) => cache.apply(event),
        None => tracing::error!(revision, "watch cache: a stored value is no object"),
    }
    revision
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
