//! The watch cache: the current objects of every resource, their latest changes, and everybody who watches them.
//!
//! One [`feed`](feed::run) task reads the whole store's events in revision order and applies each to its resource's [`Cache`]; `observed`
//! then says up to which revision all caches are complete, so "at least revision r" is a wait on one number. A cache holds the
//! store's own bytes, in an order that can be frozen ([`objects`]); a list walks a frozen state and holds no lock. An event's
//! encodings are made once and shared. A watcher has a bounded queue ([`queue`]); when it is full the watcher is closed and told 410,
//! it is never skipped.

mod changes;
pub mod feed;
mod objects;
mod queue;
mod watchers;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use crate::object::{Object, scan};
use crate::selection::Selection;
pub use changes::Changes;
use objects::{Cursor, Objects};
pub use queue::{LENGTH_MAX, Next, Queue};
use watchers::Watchers;

/// Changes a client may be behind and still resume without the store's help: at least this many …
const WINDOW_MIN: usize = 256;
/// … and all of this age, …
const WINDOW_AGE: Duration = Duration::from_secs(75);
/// … unless they are more than this, or hold more bytes than that.
const WINDOW_MAX: usize = 65_536;
const WINDOW_BYTES_MAX: usize = 32 << 20;
/// The resource whose objects are also found by the node they are on.
const PODS: &[u8] = b"/registry/pods/";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

impl Change {
    pub fn word(self) -> &'static str {
        match self {
            Change::Added => "ADDED",
            Change::Modified => "MODIFIED",
            Change::Deleted => "DELETED",
        }
    }
}

/// One change of one object. `previous` is absent when the object was created; of a deletion, `object` is the last state under the
/// deletion's revision.
#[derive(Clone, Debug)]
pub struct Event {
    pub deleted: bool,
    pub object: Arc<Object>,
    pub previous: Option<Arc<Object>>,
}

impl Event {
    /// What a watcher is shown: of an object that left its selection the last state that was in it, at the revision of the change.
    pub fn shown(&self, change: Change) -> Arc<Object> {
        match &self.previous {
            Some(previous) if change == Change::Deleted && !self.deleted => Arc::new(previous.at(self.object.revision)),
            _ => self.object.clone(),
        }
    }
}

/// An event on its way to its watchers, with its encodings, which they share.
#[derive(Debug)]
pub struct Delivery {
    pub event: Event,
    json: [OnceLock<Bytes>; 3],
    protobuf: [OnceLock<Bytes>; 3],
    metadata: [OnceLock<Bytes>; 3],
}

impl Delivery {
    pub fn new(event: Event) -> Self {
        let none = || [const { OnceLock::new() }; 3];
        Self { event, json: none(), protobuf: none(), metadata: none() }
    }
    /// The frame of a protobuf stream of whole objects in their stored version, made by the first who needs it.
    pub fn protobuf(&self, change: Change, make: impl FnOnce() -> Bytes) -> Bytes {
        self.protobuf[change as usize].get_or_init(make).clone()
    }
    /// The line of a JSON stream of metadata alone.
    pub fn metadata(&self, change: Change, make: impl FnOnce() -> Bytes) -> Bytes {
        self.metadata[change as usize].get_or_init(make).clone()
    }
    /// `{"type":"ADDED","object":{…}}` and a line end.
    pub fn json(&self, change: Change) -> Bytes {
        self.json[change as usize].get_or_init(|| frame(change, &self.event.shown(change))).clone()
    }
}

/// One line of a JSON watch stream.
pub fn frame(change: Change, object: &Object) -> Bytes {
    line(change, object.bytes.len(), |out| object.write_json(out))
}

/// The same of an object's metadata alone; `None` where the object's layout is not the stored form.
pub fn metadata_frame(change: Change, object: &Object, version: &str) -> Option<Bytes> {
    let metadata = object.metadata(&[])?;
    Some(line(change, metadata.len() + 96, |out| object.write_metadata(metadata, version, out)))
}

fn line(change: Change, size: usize, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = Vec::with_capacity(size + 96);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(change.word().as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    write(&mut out);
    out.extend_from_slice(b"}\n");
    out.into()
}

/// All caches and how far they are.
pub struct Caches {
    by_prefix: RwLock<HashMap<Bytes, Arc<Cache>>>,
    /// What `arrived` says, for those who only look.
    observed: AtomicU64,
    arrived: watch::Sender<u64>,
    loaded: AtomicBool,
    /// Undelivered events that a watcher may have.
    backlog_max: usize,
}

/// The objects of one resource (of one key prefix such as `/registry/pods/`).
pub struct Cache {
    state: RwLock<State>,
    /// Locked before `state` by whoever needs both.
    watchers: Mutex<Watchers>,
    /// The newest change.
    revision: AtomicU64,
    backlog_max: usize,
}

struct State {
    objects: Objects,
    /// Keys by the node that a pod is on; only of pods.
    nodes: Option<HashMap<Box<str>, BTreeSet<Bytes>>>,
    window: Window,
    /// The newest change.
    revision: u64,
}

/// The latest changes.
#[derive(Default)]
struct Window {
    events: VecDeque<(Instant, Event)>,
    bytes: usize,
    /// Every change after this revision is in `events`.
    complete_after: u64,
}

/// A watcher's end: what was there, what happened since, and what happens. Dropping it ends the watch.
pub struct Subscription {
    /// Objects to announce first, in key order.
    pub initial: Option<Items>,
    /// Changes after the wanted revision that already happened.
    pub replay: Vec<(Change, Event)>,
    pub live: Arc<Queue>,
    /// The revision that `initial` and `replay` reach.
    pub revision: u64,
    /// The newest change of the resource that is not in `live`.
    pub applied: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.live.close(false);
    }
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// With the current objects.
    State,
    /// After this revision.
    Revision(u64),
}

/// One page of a list.
pub struct Page {
    pub objects: Vec<Arc<Object>>,
    pub revision: u64,
    /// There are more; the last key looked at.
    pub more_after: Option<Bytes>,
    /// How many keys come after, known only without selectors.
    pub remaining: Option<i64>,
}

/// Selected objects of one moment in key order, found while they are asked for.
pub struct Items {
    source: Source,
    selection: Arc<Selection>,
}

enum Source {
    All(Cursor),
    /// From an index.
    Few(std::vec::IntoIter<Arc<Object>>),
}

impl Iterator for Items {
    type Item = Arc<Object>;

    fn next(&mut self) -> Option<Arc<Object>> {
        let selection = &self.selection;
        match &mut self.source {
            Source::All(cursor) if selection.is_everything() => cursor.next(),
            Source::All(cursor) => cursor.find(|object| selection.matches(object)),
            Source::Few(few) => few.find(|object| selection.matches(object)),
        }
    }
}

impl Items {
    /// Objects that may follow: exactly those that do where nothing but the prefix selects.
    pub fn remaining(&self) -> usize {
        match &self.source {
            Source::All(cursor) => cursor.remaining(),
            Source::Few(few) => few.len(),
        }
    }
}

/// The wanted revision is older than the window.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {wanted} ({oldest})")]
pub struct TooOld {
    pub wanted: u64,
    pub oldest: u64,
}

impl Default for Caches {
    fn default() -> Self {
        Self::new(LENGTH_MAX)
    }
}

impl Caches {
    pub fn new(backlog_max: usize) -> Self {
        let (observed, loaded) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { by_prefix: RwLock::default(), observed, arrived: watch::Sender::new(0), loaded, backlog_max }
    }

    /// The cache of a key prefix; made empty where none is yet.
    pub fn of(&self, prefix: &[u8]) -> Arc<Cache> {
        if let Some(cache) = self.by_prefix.read().unwrap_or_else(PoisonError::into_inner).get(prefix) {
            return cache.clone();
        }
        let mut caches = self.by_prefix.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Arc::new(Cache::new(prefix == PODS, self.observed(), self.backlog_max));
        caches.entry(Bytes::copy_from_slice(prefix)).or_insert_with(fresh).clone()
    }

    /// All caches are complete up to this revision.
    pub fn observed(&self) -> u64 {
        self.observed.load(Ordering::Acquire)
    }

    fn arrive(&self, revision: u64) {
        self.observed.store(revision, Ordering::Release);
        self.arrived.send_replace(revision);
    }

    /// The store was read once.
    pub fn loaded(&self) -> bool {
        self.loaded.load(Ordering::Relaxed)
    }

    /// Waits for that.
    pub async fn wait_loaded(&self, patience: Duration) -> bool {
        let mut arrived = self.arrived.subscribe();
        let loaded = arrived.wait_for(|_| self.loaded());
        matches!(tokio::time::timeout(patience, loaded).await, Ok(Ok(_)))
    }

    /// Waits until all caches have reached `revision`. `false` when that took longer than `patience`.
    pub async fn reach(&self, revision: u64, patience: Duration) -> bool {
        if self.observed() >= revision {
            return true;
        }
        let mut arrived = self.arrived.subscribe();
        matches!(tokio::time::timeout(patience, arrived.wait_for(|at| *at >= revision)).await, Ok(Ok(_)))
    }

    /// Ends every watch: the server stops.
    pub fn close(&self) {
        self.all().iter().for_each(|(_, cache)| cache.watchers().end());
    }

    /// How many objects there are, by key prefix.
    pub fn counts(&self) -> Vec<(Bytes, usize)> {
        self.all().into_iter().map(|(prefix, cache)| (prefix, cache.read().objects.len())).collect()
    }

    /// Forgets changes that are too old to resume from. `true` when no window will get shorter by waiting.
    fn trim(&self) -> bool {
        self.all().iter().fold(true, |settled, (_, cache)| {
            let mut state = cache.state.write().unwrap_or_else(PoisonError::into_inner);
            state.window.trim();
            settled && state.window.events.len() <= WINDOW_MIN
        })
    }

    fn all(&self) -> Vec<(Bytes, Arc<Cache>)> {
        let caches = self.by_prefix.read().unwrap_or_else(PoisonError::into_inner);
        caches.iter().map(|(prefix, cache)| (prefix.clone(), cache.clone())).collect()
    }
}

impl Cache {
    fn new(of_pods: bool, revision: u64, backlog_max: usize) -> Self {
        let window = Window { complete_after: revision, ..Window::default() };
        let state = State { objects: Objects::default(), nodes: of_pods.then(HashMap::new), window, revision };
        Self { state: RwLock::new(state), watchers: Mutex::default(), revision: AtomicU64::new(revision), backlog_max }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn watchers(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: &[u8]) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    /// Selected objects whose key has `prefix`, in key order, after `after` (exclusive), at most `limit` (0: all).
    pub fn list(&self, prefix: &[u8], after: &[u8], limit: usize, selection: &Selection, observed: u64) -> Page {
        let state = self.read();
        let mut page = Page { objects: Vec::new(), revision: state.revision.max(observed), more_after: None, remaining: None };
        let mut keys = state.objects.range(prefix, after);
        drop(state);
        while let Some(object) = keys.find(|object| selection.matches(object)) {
            page.objects.push(object);
            if limit > 0 && page.objects.len() == limit {
                let rest = keys.remaining();
                if rest > 0 {
                    page.more_after = page.objects.last().map(|last| last.key.clone());
                    page.remaining = selection.is_everything().then_some(rest as i64);
                }
                break;
            }
        }
        page
    }

    /// What the selection chooses now, after the key `after` (exclusive), and the revision of that state.
    pub fn select(&self, after: &[u8], selection: Arc<Selection>, observed: u64) -> (Items, u64) {
        let state = self.read();
        (state.select(after, selection), state.revision.max(observed))
    }

    /// A number that stands for the objects below a prefix: another one when one of them changes, comes or goes.
    pub fn fingerprint(&self, prefix: &[u8]) -> u64 {
        let keys = self.read().objects.range(prefix, b"");
        let mut hasher = DefaultHasher::new();
        keys.for_each(|object| (&object.key, object.revision).hash(&mut hasher));
        hasher.finish()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// The newest change.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    pub fn watch(&self, since: Since, initial: bool, selection: Arc<Selection>, observed: u64) -> Result<Subscription, TooOld> {
        // Nothing is applied while this is held: what `state` has not is going to be in the queue.
        let mut watchers = self.watchers();
        let state = self.read();
        let (revision, applied) = (state.revision.max(observed), state.revision);
        let mut subscription = Subscription { initial: None, replay: Vec::new(), live: Queue::new(self.backlog_max), revision, applied };
        match since {
            _ if initial => subscription.initial = Some(state.select(b"", selection.clone())),
            Since::State => {}
            Since::Revision(wanted) => subscription.replay = state.window.after(wanted, &selection)?,
        }
        watchers.add(selection, subscription.live.clone());
        Ok(subscription)
    }

    /// Applies one event and hands it to the watchers.
    fn apply(&self, event: Event) {
        let mut watchers = self.watchers();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let nodes = match state.nodes.is_some() {
            true => [event.previous.as_ref().and_then(node_of), node_of(&event.object)],
            false => [None, None],
        };
        state.apply(&event, nodes);
        drop(state);
        self.revision.store(event.object.revision, Ordering::Release);
        watchers.notify(&event, nodes);
    }

    /// Replaces everything (after the feed was lost): watchers are closed, they have to list again.
    fn reset(&self, objects: Vec<Arc<Object>>, revision: u64) {
        let mut watchers = self.watchers();
        watchers.close(true);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(nodes) = &mut state.nodes {
            nodes.clear();
            for object in &objects {
                if let Some(node) = node_of(object) {
                    nodes.entry(node.into()).or_default().insert(object.key.clone());
                }
            }
        }
        state.objects = Objects::from_sorted(objects);
        state.window = Window { complete_after: revision, ..Window::default() };
        state.revision = revision;
        self.revision.store(revision, Ordering::Release);
    }
}

/// The node that a pod is on.
fn node_of(pod: &Arc<Object>) -> Option<&str> {
    pod.member(&["spec", "nodeName"]).and_then(scan::plain).filter(|node| !node.is_empty())
}

impl State {
    fn select(&self, after: &[u8], selection: Arc<Selection>) -> Items {
        let source = match (&self.nodes, selection.node()) {
            (Some(nodes), Some(node)) => {
                let keys = nodes
                    .get(node)
                    .into_iter()
                    .flat_map(|keys| keys.range::<[u8], _>((Bound::Included(selection.prefix.as_slice()), Bound::Unbounded)));
                let keys = keys.take_while(|key| key.starts_with(&selection.prefix)).filter(|key| key.as_ref() > after);
                Source::Few(keys.filter_map(|key| self.objects.get(key).cloned()).collect::<Vec<_>>().into_iter())
            }
            _ => Source::All(self.objects.range(&selection.prefix, after)),
        };
        Items { source, selection }
    }

    fn apply(&mut self, event: &Event, [was, is]: [Option<&str>; 2]) {
        let key = &event.object.key;
        self.revision = event.object.revision;
        if event.deleted {
            self.objects.remove(key);
        } else {
            self.objects.insert(event.object.clone());
        }
        if let Some(nodes) = &mut self.nodes {
            if let Some(keys) = was.filter(|was| event.deleted || is != Some(was)).and_then(|was| nodes.get_mut(was)) {
                keys.remove(key);
            }
            if let Some(is) = is.filter(|is| !event.deleted && was != Some(is)) {
                nodes.entry(is.into()).or_default().insert(key.clone());
            }
            if let Some(was) = was.filter(|was| nodes.get(*was).is_some_and(BTreeSet::is_empty)) {
                nodes.remove(was);
            }
        }
        self.window.remember(event.clone());
    }
}

impl Window {
    /// What a watcher of the selection missed after the wanted revision.
    fn after(&self, wanted: u64, selection: &Selection) -> Result<Vec<(Change, Event)>, TooOld> {
        if wanted < self.complete_after {
            return Err(TooOld { wanted, oldest: self.complete_after });
        }
        let from = self.events.partition_point(|(_, event)| event.object.revision <= wanted);
        let missed = self.events.range(from..).map(|(_, event)| event);
        Ok(missed.filter_map(|event| selection.classify(event).map(|change| (change, event.clone()))).collect())
    }

    fn remember(&mut self, event: Event) {
        self.bytes += event.object.bytes.len();
        self.events.push_back((Instant::now(), event));
        self.trim();
    }

    fn trim(&mut self) {
        let now = Instant::now();
        while let Some((at, oldest)) = self.events.front() {
            let too_many = self.events.len() > WINDOW_MAX || self.bytes > WINDOW_BYTES_MAX;
            let too_old = self.events.len() > WINDOW_MIN && now.duration_since(*at) > WINDOW_AGE;
            if self.events.len() <= 1 || !(too_many || too_old) {
                break;
            }
            self.complete_after = oldest.object.revision;
            self.bytes -= oldest.object.bytes.len();
            self.events.pop_front();
        }
        if self.events.capacity() > 4 * self.events.len().max(WINDOW_MIN) {
            self.events.shrink_to(2 * self.events.len());
        }
    }
}
