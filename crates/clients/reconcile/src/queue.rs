//! A work queue of keys: one key, one running reconcile.
//!
//! A key added while it waits is held once; added while its reconcile runs, it runs once more afterwards. A failed key comes back
//! after an exponential back-off of its own. The queue holds at most one entry per key, which bounds it by the number of objects.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stdx::{Backoff, Drain};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

/// The waits of a failing key, as upstream's controllers: 5 ms doubling up to 1,000 s; ours stops at 60 s, because a retry is cheap.
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A longer wait is cut short: users may ask for times that no clock reaches, and a look too early costs nothing.
const WAIT_MAX: Duration = Duration::from_secs(86_400);

/// What a reconcile ended with.
pub enum Outcome {
    /// Nothing to do until something changes.
    Done,
    /// Look again after so long, unless something changes before.
    RequeueAfter(Duration),
    /// Try again after the key's back-off.
    Err(Box<dyn std::error::Error + Send + Sync>),
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<Result<Outcome, E>> for Outcome {
    fn from(result: Result<Outcome, E>) -> Self {
        result.unwrap_or_else(|error| Outcome::Err(error.into()))
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<Result<(), E>> for Outcome {
    fn from(result: Result<(), E>) -> Self {
        result.map_or_else(|error| Outcome::Err(error.into()), |()| Outcome::Done)
    }
}

/// A shared queue; cloning shares it.
pub struct Queue<T>(Arc<Shared<T>>);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone + Eq + Hash + Ord> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

struct Shared<T> {
    inner: Mutex<Inner<T>>,
    changed: Notify,
}

/// Invariants: a key is in `ready` at most once; `ready` and `running` are disjoint; `again` ⊆ `running`.
struct Inner<T> {
    ready: VecDeque<T>,
    queued: HashSet<T>,
    running: HashSet<T>,
    /// Added while running: to be queued when that run ends.
    again: HashSet<T>,
    delayed: BTreeMap<(Instant, T), ()>,
    delayed_until: HashMap<T, Instant>,
    failures: HashMap<T, Backoff>,
}

impl<T: Clone + Eq + Hash + Ord> Queue<T> {
    pub fn new() -> Self {
        let inner = Inner {
            ready: VecDeque::new(),
            queued: HashSet::new(),
            running: HashSet::new(),
            again: HashSet::new(),
            delayed: BTreeMap::new(),
            delayed_until: HashMap::new(),
            failures: HashMap::new(),
        };
        Self(Arc::new(Shared { inner: Mutex::new(inner), changed: Notify::new() }))
    }

    pub fn add(&self, key: T) {
        if self.lock().add(key) {
            self.0.changed.notify_one();
        }
    }

    /// Adds `key` after `wait`; an earlier appointment of the same key stands.
    pub fn add_after(&self, key: T, wait: Duration) {
        if wait.is_zero() {
            return self.add(key);
        }
        self.lock().delay(key, Instant::now() + wait.min(WAIT_MAX));
        self.0.changed.notify_one();
    }

    /// Keys that wait to run now.
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the next key; [`Queue::finish`] must follow. Cancelling it loses nothing.
    pub async fn next(&self) -> T {
        loop {
            let changed = self.0.changed.notified();
            let due = {
                let mut inner = self.lock();
                inner.promote(Instant::now());
                if let Some(key) = inner.ready.pop_front() {
                    inner.queued.remove(&key);
                    inner.running.insert(key.clone());
                    return key;
                }
                inner.delayed.first_key_value().map(|((at, _), ())| *at)
            };
            match due {
                Some(at) => tokio::select! { () = changed => {}, () = tokio::time::sleep_until(at) => {} },
                None => changed.await,
            }
        }
    }

    /// The run of `key` ended.
    pub fn finish(&self, key: T, outcome: &Outcome) {
        let mut inner = self.lock();
        inner.running.remove(&key);
        let now = Instant::now();
        match outcome {
            Outcome::Done => drop(inner.failures.remove(&key)),
            Outcome::RequeueAfter(wait) => {
                inner.failures.remove(&key);
                inner.delay(key.clone(), now + (*wait).min(WAIT_MAX));
            }
            Outcome::Err(_) => {
                let backoff = inner.failures.entry(key.clone()).or_insert_with(|| Backoff::new(RETRY_FIRST, RETRY_MAX));
                let wait = backoff.next_wait();
                inner.delay(key.clone(), now + wait);
            }
        }
        if inner.again.remove(&key) {
            inner.add(key);
        }
        drop(inner);
        self.0.changed.notify_one();
    }

    /// How often the key failed since its last success.
    pub fn failures(&self, key: &T) -> u32 {
        self.lock().failures.get(key).map_or(0, Backoff::failures)
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + Eq + Hash + Ord> Inner<T> {
    /// True where a key became ready.
    fn add(&mut self, key: T) -> bool {
        if self.running.contains(&key) {
            self.again.insert(key);
            return false;
        }
        let new = self.queued.insert(key.clone());
        if new {
            self.ready.push_back(key);
        }
        new
    }

    fn delay(&mut self, key: T, at: Instant) {
        if let Some(earlier) = self.delayed_until.get(&key).copied() {
            if earlier <= at {
                return;
            }
            self.delayed.remove(&(earlier, key.clone()));
        }
        self.delayed_until.insert(key.clone(), at);
        self.delayed.insert((at, key), ());
    }

    fn promote(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, key), ()) = entry.remove_entry();
            self.delayed_until.remove(&key);
            self.add(key);
        }
    }
}

/// Marks the key's run as ended even if it panics.
struct Running<T: Clone + Eq + Hash + Ord> {
    queue: Queue<T>,
    key: Option<T>,
}

impl<T: Clone + Eq + Hash + Ord> Running<T> {
    fn end(mut self, outcome: &Outcome) {
        if let Some(key) = self.key.take() {
            self.queue.finish(key, outcome);
        }
    }
}

impl<T: Clone + Eq + Hash + Ord> Drop for Running<T> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.queue.finish(key, &Outcome::Err("the reconcile was cut off".into()));
        }
    }
}

/// Runs `reconcile` for the keys of `queue`, at most `workers` at once, until `drain`; runs under way are then finished first.
/// `name` is the controller's name in the log.
pub async fn run<T, F, R, O>(name: &'static str, queue: Queue<T>, workers: usize, drain: Drain, reconcile: F)
where
    T: Clone + Eq + Hash + Ord + Display + Send + Sync + 'static,
    F: Fn(T) -> R,
    R: Future<Output = O> + Send + 'static,
    O: Into<Outcome> + 'static,
{
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            () = drain.stopping() => break,
            key = queue.next(), if tasks.len() < workers => {
                let running = Running { queue: queue.clone(), key: Some(key.clone()) };
                let work = reconcile(key.clone());
                tasks.spawn(async move {
                    let outcome: Outcome = work.await.into();
                    if let Outcome::Err(error) = &outcome {
                        log_failure(name, &running.queue, &key, error.as_ref());
                    }
                    running.end(&outcome);
                });
            }
            Some(_) = tasks.join_next() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}

fn log_failure<T: Clone + Eq + Hash + Ord + Display>(
    name: &str,
    queue: &Queue<T>,
    key: &T,
    error: &(dyn std::error::Error + Send + Sync + 'static),
) {
    // Conflicts are the ordinary way to learn of another writer, and heal at once.
    let ordinary = error.downcast_ref::<client::Error>().is_some_and(client::Error::is_conflict);
    if ordinary || queue.failures(key) < 3 {
        debug!(controller = name, %key, %error, "reconcile failed; will retry");
    } else {
        warn!(controller = name, %key, %error, "reconcile keeps failing; will retry");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_wait_that_no_clock_reaches_is_a_long_one() {
        let queue = Queue::new();
        queue.add_after("a", Duration::MAX);
        queue.add("b");
        assert_eq!(queue.next().await, "b");
        queue.finish("b", &Outcome::RequeueAfter(Duration::MAX));
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn a_key_added_often_runs_once_and_once_more_if_added_while_running() {
        let queue = Queue::new();
        (0..5).for_each(|_| queue.add("a"));
        let key = queue.next().await;
        assert!(queue.is_empty());
        queue.add("a");
        queue.add("a");
        assert!(queue.is_empty(), "a running key is not ready");
        queue.finish(key, &Outcome::Done);
        assert_eq!(queue.len(), 1);
    }

    #[tokio::test]
    async fn a_failed_key_comes_back_and_an_earlier_appointment_stands() {
        let queue = Queue::new();
        queue.add("a");
        let key = queue.next().await;
        queue.finish(key, &Outcome::Err("no".into()));
        queue.add_after("a", Duration::from_secs(100));
        let before = Instant::now();
        assert_eq!(queue.next().await, "a");
        assert!(before.elapsed() < Duration::from_secs(1));
        assert_eq!(queue.failures(&"a"), 1);
        queue.finish("a", &Outcome::Done);
        assert_eq!(queue.failures(&"a"), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn runner_never_runs_two_instances_of_a_key_at_once_and_survives_a_panic() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let (queue, drain) = (Queue::new(), stdx::drain());
        let runner = tokio::spawn(run("test", queue.clone(), 8, drain.clone(), |_: String| async {
            assert_eq!(RUNNING.fetch_add(1, Ordering::SeqCst), 0);
            tokio::task::yield_now().await;
            RUNNING.fetch_sub(1, Ordering::SeqCst);
            if RUNS.fetch_add(1, Ordering::SeqCst) == 3 {
                panic!("the runner must survive this");
            }
            Outcome::Done
        }));
        while RUNS.load(Ordering::SeqCst) < 20 {
            queue.add("a".to_owned());
            tokio::task::yield_now().await;
        }
        drain.stop();
        runner.await.unwrap();
    }
}
