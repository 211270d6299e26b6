//! One kind's objects, kept up to date by a watch and shared by everybody in the process who reads that kind.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use client::{ApiResource, Client, Object};
use stdx::Drain;
use tokio::sync::{Notify, watch};

use crate::object::{Cached, ObjectKey};

mod reflector;

/// How long one's own write may take to come back.
const OWN_WRITE_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// Which objects a cache holds; the default is all.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub namespace: Option<String>,
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
}

impl Scope {
    pub fn all() -> Self {
        Self::default()
    }
    pub fn fields(selector: impl Into<String>) -> Self {
        Self { field_selector: Some(selector.into()), ..Self::default() }
    }
}

/// Looked at for each change, in the order of the changes: the object before and after (`None`: it was not, or is no longer, there).
type Callback<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send>;
/// Run on each object before it is kept, to drop what the readers do not need.
pub type Trim<K> = Arc<dyn Fn(&mut K) + Send + Sync>;
type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

/// A live copy of one kind; cloning shares it. Reads never wait for the server.
pub struct Cache<K>(Arc<Inner<K>>);

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<K> {
    state: RwLock<State<K>>,
    /// Held while one change is applied and told, so that callbacks see changes in order and none is missed at registration.
    callbacks: Mutex<Vec<Callback<K>>>,
    /// The newest revision of which everything up to it is in `state`.
    version: watch::Sender<u64>,
    synced: watch::Sender<bool>,
}

struct State<K> {
    /// Ordered, so that a namespace is a range.
    objects: BTreeMap<ObjectKey, Arc<K>>,
    indexes: HashMap<&'static str, Index<K>>,
}

struct Index<K> {
    of: IndexFn<K>,
    entries: HashMap<String, BTreeMap<ObjectKey, Arc<K>>>,
}

impl<K: Object> Cache<K> {
    /// Starts the cache's task; it ends with `drain`.
    pub fn start(client: &Client, scope: Scope, drain: Drain) -> Self {
        Self::start_of(client, ApiResource::of::<K>(), scope, false, drain)
    }

    /// The same with less of each object.
    pub fn start_trimmed(client: &Client, scope: Scope, trim: Trim<K>, drain: Drain) -> Self {
        Self::from(reflector::Source { client: client.clone(), resource: ApiResource::of::<K>(), scope, metadata_only: false, trim }, drain)
    }
}

impl<K: Cached> Cache<K> {
    /// A cache of any resource, decoded as `K`; `metadata_only` asks the server for `PartialObjectMetadata`.
    pub fn start_of(client: &Client, resource: ApiResource, scope: Scope, metadata_only: bool, drain: Drain) -> Self {
        Self::from(reflector::Source { client: client.clone(), resource, scope, metadata_only, trim: Arc::new(|_| {}) }, drain)
    }

    fn from(source: reflector::Source<K>, drain: Drain) -> Self {
        let cache = Self::detached();
        let target = cache.clone();
        tokio::spawn(async move {
            drain.run(reflector::follow(source, target.clone())).await;
            // Callbacks of one cache may hold another whose callbacks hold the first: nobody would ever free them.
            let callbacks = std::mem::take(&mut *target.callbacks());
            drop(callbacks);
        });
        cache
    }

    /// A cache that no server feeds: for tests of what reads it, together with [`Cache::apply`] and [`Cache::remove`].
    pub fn detached() -> Self {
        let state = State { objects: BTreeMap::new(), indexes: HashMap::new() };
        Self(Arc::new(Inner {
            state: RwLock::new(state),
            callbacks: Mutex::new(Vec::new()),
            version: watch::Sender::new(0),
            synced: watch::Sender::new(false),
        }))
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get_key(&ObjectKey::new(namespace, name))
    }

    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read().objects.get(key).cloned()
    }

    /// All objects in the order of their keys.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read().objects.values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn by_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = ObjectKey::new(namespace, "");
        let state = self.read();
        state.objects.range(from..).take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| object.clone()).collect()
    }

    /// Keeps objects findable by the values that `of` gives for them, from now on and for those already here. Registering a name
    /// again keeps the first.
    pub fn index(&self, name: &'static str, of: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { of: Box::new(of), entries: HashMap::new() };
        state.objects.iter().for_each(|(key, object)| index.insert(key, object));
        state.indexes.insert(name, index);
    }

    /// The objects with this value in that index, in the order of their keys; none where the index does not exist.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let state = self.read();
        let found = state.indexes.get(name).and_then(|index| index.entries.get(value));
        found.map(|objects| objects.values().cloned().collect()).unwrap_or_default()
    }

    /// How many objects [`Cache::by_index`] would give.
    pub fn count_by_index(&self, name: &str, value: &str) -> usize {
        let state = self.read();
        state.indexes.get(name).and_then(|index| index.entries.get(value)).map_or(0, BTreeMap::len)
    }

    /// Calls `callback` for every object already here and for each change after that, synchronously and in order. It must be quick
    /// and may read this cache, but not register another callback.
    pub fn on_change(&self, callback: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + 'static) {
        let mut callbacks = self.callbacks();
        self.list().iter().for_each(|object| callback(None, Some(object)));
        callbacks.push(Box::new(callback));
    }

    /// The keys of what changes, each once however often it changed since it was taken; first those already here.
    pub fn subscribe(&self) -> Wakeups {
        let shared = Arc::new(Pending::default());
        let weak: Weak<Pending> = Arc::downgrade(&shared);
        self.on_change(move |old, new| {
            if let (Some(pending), Some(object)) = (weak.upgrade(), new.or(old)) {
                pending.add(object.key());
            }
        });
        Wakeups(shared)
    }

    /// Resolves once the first list is complete.
    pub async fn synced(&self) {
        let _ = self.0.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub fn is_synced(&self) -> bool {
        *self.0.synced.borrow()
    }

    /// Everything up to this revision is in the cache.
    pub fn resource_version(&self) -> u64 {
        *self.0.version.borrow()
    }

    /// Resolves once the cache has seen `revision`: after waiting for the revision of one's own write to an object in the scope of
    /// this cache, a read shows it.
    pub async fn wait_for(&self, revision: u64) {
        let _ = self.0.version.subscribe().wait_for(|version| *version >= revision).await;
    }

    /// Resolves once the cache shows what the server answered to a write of one's own, so that the next decision sees it; or after [`OWN_WRITE_MAX`],
    /// as a watch that broke is no reason to wait for ever.
    pub async fn wait_for_own(&self, written: &K) {
        let revision = written.resource_version().parse().unwrap_or(0);
        let _ = tokio::time::timeout(OWN_WRITE_MAX, self.wait_for(revision)).await;
    }

    /// Puts `object` in, or in place of its former state, and tells everybody.
    pub fn apply(&self, object: K) {
        self.apply_at(object, true);
    }

    /// `advances`: the object's revision is the newest so far (false within a list, which is ordered by key).
    fn apply_at(&self, object: K, advances: bool) {
        let callbacks = self.callbacks();
        let object = Arc::new(object);
        let key = object.key();
        let old = self.get_key(&key);
        if old.as_ref().is_some_and(|old| old.resource_version() == object.resource_version() && !old.resource_version().is_empty()) {
            return;
        }
        self.write().replace(&key, old.as_ref(), Some(&object));
        if advances {
            self.advance(object.resource_version());
        }
        match old {
            // Deleted and made anew while we did not look: two objects, so two changes.
            Some(old) if old.uid() != object.uid() => {
                callbacks.iter().for_each(|callback| callback(Some(&old), None));
                callbacks.iter().for_each(|callback| callback(None, Some(&object)));
            }
            old => callbacks.iter().for_each(|callback| callback(old.as_ref(), Some(&object))),
        }
    }

    /// Takes the object of that key out, at `revision` (empty: unknown), and tells everybody.
    pub fn remove(&self, key: &ObjectKey, revision: &str) {
        let callbacks = self.callbacks();
        let Some(old) = self.get_key(key) else {
            self.advance(revision);
            return;
        };
        self.write().replace(key, Some(&old), None);
        self.advance(revision);
        callbacks.iter().for_each(|callback| callback(Some(&old), None));
    }

    /// Takes out whatever a complete list no longer held.
    fn retain(&self, seen: &HashSet<ObjectKey>) {
        let gone: Vec<ObjectKey> = self.read().objects.keys().filter(|key| !seen.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.remove(key, ""));
    }

    fn advance(&self, revision: &str) {
        let revision = revision.parse().unwrap_or(0);
        self.0.version.send_if_modified(|version| {
            let newer = revision > *version;
            *version = revision.max(*version);
            newer
        });
    }

    /// The list is complete up to `revision`.
    pub fn mark_synced(&self, revision: &str) {
        self.advance(revision);
        self.0.synced.send_replace(true);
    }

    // A panic in a callback poisons a lock but leaves the maps whole: each holds one complete change or none.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, State<K>> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }
    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State<K>> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }
    fn callbacks(&self) -> MutexGuard<'_, Vec<Callback<K>>> {
        self.0.callbacks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> State<K> {
    fn replace(&mut self, key: &ObjectKey, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        for index in self.indexes.values_mut() {
            if let Some(old) = old {
                index.remove(key, old);
            }
            if let Some(new) = new {
                index.insert(key, new);
            }
        }
        match new {
            Some(new) => self.objects.insert(key.clone(), new.clone()),
            None => self.objects.remove(key),
        };
    }
}

impl<K> Index<K> {
    fn insert(&mut self, key: &ObjectKey, object: &Arc<K>) {
        for value in (self.of)(object) {
            self.entries.entry(value).or_default().insert(key.clone(), object.clone());
        }
    }
    fn remove(&mut self, key: &ObjectKey, object: &Arc<K>) {
        for value in (self.of)(object) {
            if let Some(objects) = self.entries.get_mut(&value) {
                objects.remove(key);
                if objects.is_empty() {
                    self.entries.remove(&value);
                }
            }
        }
    }
}

/// A subscriber's pending keys; as many as there are objects at most, because each is held once.
pub struct Wakeups(Arc<Pending>);

#[derive(Default)]
struct Pending {
    keys: Mutex<(VecDeque<ObjectKey>, HashSet<ObjectKey>)>,
    arrived: Notify,
}

impl Pending {
    fn add(&self, key: ObjectKey) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.1.insert(key.clone()) {
            keys.0.push_back(key);
            self.arrived.notify_one();
        }
    }
}

impl Wakeups {
    /// The key that has waited longest.
    pub async fn next(&mut self) -> ObjectKey {
        loop {
            if let Some(key) = self.try_next() {
                return key;
            }
            self.0.arrived.notified().await;
        }
    }

    pub fn try_next(&mut self) -> Option<ObjectKey> {
        let mut keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let key = keys.0.pop_front()?;
        keys.1.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;
    use testkit::fake_api::FakeApi;

    use super::*;

    fn map(name: &str) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": name, "labels": {"app": name}}})).unwrap()
    }

    #[tokio::test]
    async fn a_cache_lists_then_follows_and_shows_our_own_write_after_waiting_for_its_revision() {
        let api = FakeApi::new();
        let client = api.client();
        client.create(&map("first")).await.unwrap();
        let cache = Cache::<ConfigMap>::start(&client, Scope::all(), stdx::drain());
        cache.synced().await;
        assert_eq!(cache.len(), 1);
        cache.index("app", |map| map.metadata.labels.iter().flatten().map(|(_, value)| value.clone()).collect());
        let mut wakeups = cache.subscribe();
        assert_eq!(wakeups.next().await.name, "first");

        let second = client.create(&map("second")).await.unwrap();
        cache.wait_for(second.resource_version().parse().unwrap()).await;
        assert_eq!(cache.by_index("app", "second").len(), 1);
        assert_eq!(cache.by_namespace("a").len(), 2);
        assert_eq!(wakeups.next().await.name, "second");

        client.delete::<ConfigMap>(Some("a"), "second", &Default::default()).await.unwrap();
        assert_eq!(wakeups.next().await.name, "second");
        assert!(cache.get("a", "second").is_none() && cache.by_index("app", "second").is_empty());
    }

    #[tokio::test]
    async fn caches_whose_callbacks_read_each_other_are_freed_when_they_are_stopped() {
        let (api, drain) = (FakeApi::new(), stdx::drain());
        let start = || Cache::<ConfigMap>::start(&api.client(), Scope::all(), drain.clone());
        let (one, two) = (start(), start());
        one.synced().await;
        let (first, second) = (one.clone(), two.clone());
        one.on_change(move |_, _| drop(second.list()));
        two.on_change(move |_, _| drop(first.list()));
        let left = Arc::downgrade(&one.0);
        drop((one, two));
        drain.stop();
        for _ in 0..500 {
            if left.strong_count() == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{} still hold the cache", left.strong_count());
    }

    #[test]
    fn an_object_made_anew_under_its_old_name_is_a_deletion_and_a_creation() {
        let cache = Cache::<ConfigMap>::detached();
        let with_uid = |uid: &str, revision: &str| {
            let mut object = map("x");
            object.metadata.uid = Some(uid.into());
            object.metadata.resource_version = Some(revision.into());
            object
        };
        cache.apply(with_uid("1", "1"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        cache.on_change(move |old, new| log.lock().unwrap().push((old.is_some(), new.is_some())));
        cache.apply(with_uid("2", "2"));
        cache.retain(&HashSet::new());
        assert_eq!(*seen.lock().unwrap(), [(false, true), (true, false), (false, true), (true, false)]);
    }
}
