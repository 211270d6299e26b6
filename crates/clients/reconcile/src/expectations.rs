//! Read-your-writes: an owner's reconcile must not count its dependents before the cache has seen its own writes to them.
//!
//! Upstream counts expected creations and deletions; we hold the revisions and uids of the writes themselves, so that an unrelated
//! event can never stand in for ours.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::cache::Cache;
use crate::object::{Cached, ObjectKey};

/// After this long an owner may act on what the cache shows (upstream: `ExpectationsTimeout`): a watch that slow is broken, and
/// level-triggered work has to go on.
const PATIENCE: Duration = Duration::from_secs(300);

struct Writes {
    /// The newest revision written.
    revision: u64,
    /// Deleted objects by key and uid: gone from the cache, or at `deletionTimestamp`, once seen.
    gone: Vec<(ObjectKey, String)>,
    since: Instant,
}

/// Our own unseen writes by owner.
pub struct Expectations<Owner>(Mutex<HashMap<Owner, Writes>>);

impl<Owner: Clone + Eq + Hash> Default for Expectations<Owner> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<Owner: Clone + Eq + Hash> Expectations<Owner> {
    /// A dependent was created or changed; `resource_version` is the answer's.
    pub fn wrote(&self, owner: &Owner, resource_version: Option<&str>) {
        let revision = resource_version.and_then(|revision| revision.parse().ok()).unwrap_or(0);
        let mut all = self.lock();
        let writes = entry(&mut all, owner);
        writes.revision = writes.revision.max(revision);
    }

    /// A dependent was deleted.
    pub fn deleted(&self, owner: &Owner, key: ObjectKey, uid: &str) {
        entry(&mut self.lock(), owner).gone.push((key, uid.to_owned()));
    }

    /// True once `cache` shows all writes for `owner`. `leaving` says of an object that its deletion has begun. When false, the event
    /// that makes it true wakes the owner: ending the reconcile is enough.
    pub fn seen<K: Cached>(&self, owner: &Owner, cache: &Cache<K>, leaving: impl Fn(&K) -> bool) -> bool {
        let mut all = self.lock();
        let Some(writes) = all.get_mut(owner) else { return true };
        let pending = |(key, uid): &(ObjectKey, String)| cache.get_key(key).is_some_and(|object| object.uid() == uid && !leaving(&object));
        writes.gone.retain(pending);
        let seen = writes.gone.is_empty() && cache.resource_version() >= writes.revision;
        if seen || writes.since.elapsed() > PATIENCE {
            all.remove(owner);
            return true;
        }
        false
    }

    /// The owner is gone.
    pub fn forget(&self, owner: &Owner) {
        self.lock().remove(owner);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Owner, Writes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry<'a, Owner: Clone + Eq + Hash>(all: &'a mut HashMap<Owner, Writes>, owner: &Owner) -> &'a mut Writes {
    let writes = all.entry(owner.clone()).or_insert_with(|| Writes { revision: 0, gone: Vec::new(), since: Instant::now() });
    writes.since = Instant::now();
    writes
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn object(name: &str, revision: u64) -> ConfigMap {
        let metadata = ObjectMeta {
            name: Some(name.into()),
            uid: Some(format!("uid-{name}")),
            resource_version: Some(revision.to_string()),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    #[tokio::test]
    async fn an_owner_waits_until_its_creations_and_deletions_are_in_the_cache() {
        let (cache, expectations) = (Cache::<ConfigMap>::detached(), Expectations::default());
        cache.apply(object("old", 1));
        let seen = || expectations.seen(&"owner", &cache, |_| false);
        assert!(seen());
        expectations.wrote(&"owner", Some("5"));
        expectations.deleted(&"owner", ObjectKey::new("", "old"), "uid-old");
        cache.apply(object("new", 5));
        assert!(!seen(), "the deletion has not arrived");
        cache.remove(&ObjectKey::new("", "old"), "6");
        assert!(seen());
    }
}
