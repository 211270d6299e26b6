//! The watch cache: the current objects of every resource, their latest changes, and everybody who watches them.
//!
//! One [`feed`](feed::run) task reads the whole store's events in revision order and applies each to its resource's [`Cache`]; `observed`
//! then says up to which revision all caches are complete, so "at least revision r" is a wait on one number. A cache holds the
//! store's own bytes. A watcher has a bounded queue; when it is full the watcher is closed and told 410, it is never skipped.

pub mod feed;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::object::Object;
use crate::selection::Selection;

/// Undelivered events a watcher may have before it is closed.
const WATCHER_QUEUE: usize = 4_096;
/// Changes a client may be behind and still resume: at least this many …
const WINDOW_MIN: usize = 256;
/// … and all of this age, …
const WINDOW_AGE: Duration = Duration::from_secs(75);
/// … unless they are more than this, or hold more bytes than that.
const WINDOW_MAX: usize = 65_536;
const WINDOW_BYTES_MAX: usize = 32 << 20;

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

/// An event on its way to its watchers, with its encodings, which they share.
#[derive(Debug)]
pub struct Delivery {
    pub event: Event,
    json: [OnceLock<Bytes>; 3],
    protobuf: [OnceLock<Bytes>; 3],
}

impl Delivery {
    pub fn new(event: Event) -> Self {
        Self { event, json: [const { OnceLock::new() }; 3], protobuf: [const { OnceLock::new() }; 3] }
    }
    /// The frame of a protobuf stream of whole objects in their stored version, made by the first who needs it.
    pub fn protobuf(&self, change: Change, make: impl FnOnce() -> Bytes) -> Bytes {
        self.protobuf[change as usize].get_or_init(make).clone()
    }
    /// `{"type":"ADDED","object":{…}}` and a line end.
    pub fn json(&self, change: Change) -> Bytes {
        self.json[change as usize].get_or_init(|| frame(change, &self.event.object)).clone()
    }
}

/// One line of a JSON watch stream.
pub fn frame(change: Change, object: &Object) -> Bytes {
    let mut out = Vec::with_capacity(object.bytes.len() + 96);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(change.word().as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    object.write_json(&mut out);
    out.extend_from_slice(b"}\n");
    out.into()
}

/// All caches and how far they are.
pub struct Caches {
    by_prefix: RwLock<HashMap<Bytes, Arc<Cache>>>,
    observed: watch::Sender<u64>,
    loaded: AtomicBool,
}

/// The objects of one resource (of one key prefix such as `/registry/pods/`).
pub struct Cache {
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Bytes, Arc<Object>>,
    window: VecDeque<(Instant, Event)>,
    window_bytes: usize,
    /// Every change after this revision is in the window.
    complete_after: u64,
    /// The newest change.
    revision: u64,
    watchers: Vec<Watcher>,
}

struct Watcher {
    selection: Arc<Selection>,
    queue: mpsc::Sender<(Change, Arc<Delivery>)>,
    lagged: Arc<AtomicBool>,
}

/// A watcher's end: what was there, what happened since, and what happens.
pub struct Subscription {
    /// Objects to announce first, in key order.
    pub initial: Vec<Arc<Object>>,
    /// Changes after the wanted revision that already happened.
    pub replay: Vec<(Change, Event)>,
    pub live: mpsc::Receiver<(Change, Arc<Delivery>)>,
    /// The revision that `initial` and `replay` reach.
    pub revision: u64,
    lagged: Arc<AtomicBool>,
}

impl Subscription {
    /// Why `live` ended: the watcher was too slow (else the caches were reloaded or the server stops).
    pub fn lagged(&self) -> bool {
        self.lagged.load(Ordering::Relaxed)
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

/// The wanted revision is older than the window.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {wanted} ({oldest})")]
pub struct TooOld {
    pub wanted: u64,
    pub oldest: u64,
}

impl Default for Caches {
    fn default() -> Self {
        Self { by_prefix: RwLock::default(), observed: watch::Sender::new(0), loaded: AtomicBool::new(false) }
    }
}

impl Caches {
    /// The cache of a key prefix; made empty where none is yet.
    pub fn of(&self, prefix: &[u8]) -> Arc<Cache> {
        if let Some(cache) = self.by_prefix.read().unwrap_or_else(PoisonError::into_inner).get(prefix) {
            return cache.clone();
        }
        let mut caches = self.by_prefix.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            let revision = *self.observed.borrow();
            Arc::new(Cache { state: RwLock::new(State { complete_after: revision, revision, ..State::default() }) })
        };
        caches.entry(Bytes::copy_from_slice(prefix)).or_insert_with(fresh).clone()
    }

    /// All caches are complete up to this revision.
    pub fn observed(&self) -> u64 {
        *self.observed.borrow()
    }

    /// The store was read once.
    pub fn loaded(&self) -> bool {
        self.loaded.load(Ordering::Relaxed)
    }

    /// Waits for that.
    pub async fn wait_loaded(&self, patience: Duration) -> bool {
        let mut observed = self.observed.subscribe();
        let loaded = observed.wait_for(|_| self.loaded());
        matches!(tokio::time::timeout(patience, loaded).await, Ok(Ok(_)))
    }

    /// Waits until all caches have reached `revision`. `false` when that took longer than `patience`.
    pub async fn reach(&self, revision: u64, patience: Duration) -> bool {
        if self.observed() >= revision {
            return true;
        }
        let mut observed = self.observed.subscribe();
        matches!(tokio::time::timeout(patience, observed.wait_for(|at| *at >= revision)).await, Ok(Ok(_)))
    }

    /// Forgets changes that are too old to resume from. `true` when no window will get shorter by waiting.
    fn trim(&self) -> bool {
        self.all().iter().fold(true, |settled, cache| {
            let mut state = cache.state.write().unwrap_or_else(PoisonError::into_inner);
            state.trim();
            settled && state.window.len() <= WINDOW_MIN
        })
    }

    fn all(&self) -> Vec<Arc<Cache>> {
        self.by_prefix.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Cache {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: &[u8]) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    /// Selected objects whose key has `prefix`, in key order, after `after` (exclusive), at most `limit` (0: all).
    pub fn list(&self, prefix: &[u8], after: &[u8], limit: usize, selection: &Selection, observed: u64) -> Page {
        use std::ops::Bound;
        let state = self.read();
        let start = if after > prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        let mut page = Page { objects: Vec::new(), revision: state.revision.max(observed), more_after: None, remaining: None };
        let mut keys = state.objects.range::<[u8], _>((start, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix));
        while let Some((_, object)) = keys.next() {
            if !selection.matches(object) {
                continue;
            }
            page.objects.push(object.clone());
            if limit > 0 && page.objects.len() == limit {
                let last = object.key.clone();
                let rest = keys.count();
                if rest > 0 {
                    page.more_after = Some(last);
                    page.remaining = selection.is_everything().then_some(rest as i64);
                }
                break;
            }
        }
        page
    }

    /// The newest change.
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    pub fn watch(&self, since: Since, initial: bool, selection: Arc<Selection>, observed: u64) -> Result<Subscription, TooOld> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let (queue, live) = mpsc::channel(WATCHER_QUEUE);
        let lagged = Arc::new(AtomicBool::new(false));
        let mut subscription =
            Subscription { initial: Vec::new(), replay: Vec::new(), live, revision: state.revision.max(observed), lagged: lagged.clone() };
        match since {
            _ if initial => subscription.initial = state.objects.values().filter(|object| selection.matches(object)).cloned().collect(),
            Since::State => {}
            Since::Revision(wanted) => {
                if wanted < state.complete_after {
                    return Err(TooOld { wanted, oldest: state.complete_after });
                }
                let missed = state.window.iter().rev().take_while(|(_, event)| event.object.revision > wanted);
                subscription.replay =
                    missed.filter_map(|(_, event)| selection.classify(event).map(|change| (change, event.clone()))).collect();
                subscription.replay.reverse();
            }
        }
        state.watchers.push(Watcher { selection, queue, lagged });
        Ok(subscription)
    }

    /// Applies one event and hands it to the watchers.
    fn apply(&self, event: Event) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.revision = event.object.revision;
        if event.deleted {
            state.objects.remove(&event.object.key);
        } else {
            state.objects.insert(event.object.key.clone(), event.object.clone());
        }
        let mut delivery = None;
        state.watchers.retain(|watcher| {
            let Some(change) = watcher.selection.classify(&event) else {
                return !watcher.queue.is_closed();
            };
            let delivery = delivery.get_or_insert_with(|| Arc::new(Delivery::new(event.clone())));
            match watcher.queue.try_send((change, delivery.clone())) {
                Ok(()) => true,
                Err(refused) => {
                    watcher.lagged.store(matches!(refused, mpsc::error::TrySendError::Full(_)), Ordering::Relaxed);
                    false
                }
            }
        });
        state.remember(event);
    }

    /// Replaces everything (after the feed was lost): watchers are closed, they have to list again.
    fn reset(&self, objects: BTreeMap<Bytes, Arc<Object>>, revision: u64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for watcher in &state.watchers {
            watcher.lagged.store(true, Ordering::Relaxed);
        }
        *state = State { objects, complete_after: revision, revision, ..State::default() };
    }
}

impl State {
    fn remember(&mut self, event: Event) {
        self.window_bytes += event.object.bytes.len();
        self.window.push_back((Instant::now(), event));
        self.trim();
    }

    fn trim(&mut self) {
        let now = Instant::now();
        while let Some((at, oldest)) = self.window.front() {
            let too_many = self.window.len() > WINDOW_MAX || self.window_bytes > WINDOW_BYTES_MAX;
            let too_old = self.window.len() > WINDOW_MIN && now.duration_since(*at) > WINDOW_AGE;
            if self.window.len() <= 1 || !(too_many || too_old) {
                break;
            }
            self.complete_after = oldest.object.revision;
            self.window_bytes -= oldest.object.bytes.len();
            self.window.pop_front();
        }
        if self.window.capacity() > 4 * self.window.len().max(WINDOW_MIN) {
            self.window.shrink_to(2 * self.window.len());
        }
    }
}
