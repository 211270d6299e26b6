//! The embedded engine: a versioned, append-only, checksummed log with one fdatasync per group of waiting writes.
//!
//! One thread writes ([`writer`]); readers share an in-memory index that holds the very `Bytes` that were written. A write is shown to
//! readers and watchers only once it is durable. Segments that hold mostly garbage are copied forward and recycled, so the log is its own
//! snapshot: opening reads at most about three times the live data ([`recover`]).
//!
//! Channels: callers → writer, bounded (see [`QUEUE`]); writer → each watcher, bounded (`watchers`).

mod index;
mod record;
mod recover;
mod segment;
mod writer;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::watchers::Watchers;
use crate::{Call, Entry, Error, Event, Expect, Range, RangeResult, Store, Watch};
use index::Index;
use record::Packed;
use writer::{Write, Writer};

/// Waiting writes at most; further callers wait. A group takes all of them, so this bounds a group's length and its memory.
const QUEUE: usize = 4_096;
/// Keys are stored with a 16-bit length.
const KEY_MAX: usize = 4_096;

/// How the log uses its disk and memory.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of a segment file, in bytes; also bounds a single value.
    pub segment_bytes: u64,
    /// All segment files together, at most; puts beyond it answer [`Error::NoSpace`].
    pub quota_bytes: u64,
    /// Old versions kept for readers and watchers of the past, in bytes of values; the oldest half is forgotten beyond it.
    pub history_bytes: usize,
    /// A value's size at most, in bytes.
    pub value_bytes_max: usize,
    /// Write new segment files full of zeros once, so that later syncs change no metadata.
    pub write_zeros: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, quota_bytes: 8 << 30, history_bytes: 64 << 20, value_bytes_max: 3 << 20, write_zeros: false }
    }
}

/// An open log. Dropping it closes it and waits for its thread.
pub struct Log {
    /// Absent only while dropping.
    queue: Option<mpsc::Sender<Write>>,
    shared: Arc<Shared>,
    options: Options,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Held for its lock: one process writes a log.
    _lock: File,
}

/// What the writer and the readers share.
struct Shared(RwLock<State>);

struct State {
    index: Index,
    watchers: Watchers,
    broken: Option<Error>,
}

impl Shared {
    fn index(&self) -> ReadIndex<'_> {
        ReadIndex(self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
    fn state(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

struct ReadIndex<'a>(RwLockReadGuard<'a, State>);

impl std::ops::Deref for ReadIndex<'_> {
    type Target = Index;
    fn deref(&self) -> &Index {
        &self.0.index
    }
}

impl Log {
    /// Opens the log in `dir`, which is made when absent. Blocking. Errors: the folder is in use by another process, the disk fails,
    /// or acknowledged data is damaged (the message names the file).
    pub fn open(dir: &Path, options: Options) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let lock = lock(dir)?;
        let recovered = recover::recover(dir, &options)?;
        let state = State { index: recovered.index, watchers: Watchers::default(), broken: None };
        let shared = Arc::new(Shared(RwLock::new(state)));
        let (queue, receiver) = mpsc::channel(QUEUE);
        let parts = (recovered.tail, recovered.spares, recovered.closed);
        let writer = Writer::new(PathBuf::from(dir), options.clone(), shared.clone(), receiver, parts);
        let thread = std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run())?;
        Ok(Self { queue: Some(queue), shared, options, thread: Mutex::new(Some(thread)), _lock: lock })
    }

    /// Bytes of records that are still needed, on disk.
    pub fn live_bytes(&self) -> u64 {
        self.shared.index().live_bytes()
    }

    async fn submit<T>(&self, write: Write, reply: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
        let sent = match &self.queue {
            Some(queue) => queue.send(write).await.is_ok(),
            None => false,
        };
        if !sent {
            return Err(self.gone());
        }
        reply.await.unwrap_or_else(|_| Err(self.gone()))
    }

    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn gone(&self) -> Error {
        let state = self.shared.0.read().unwrap_or_else(PoisonError::into_inner);
        state.broken.clone().unwrap_or(Error::Closed)
    }

    fn check_size(&self, key: &[u8], value: &Bytes) -> Result<(), Error> {
        if key.len() > KEY_MAX {
            return Err(Error::TooLarge { size: key.len(), limit: KEY_MAX });
        }
        let limit = self.options.value_bytes_max.min(self.options.segment_bytes as usize / 2);
        if value.len() > limit { Err(Error::TooLarge { size: value.len(), limit }) } else { Ok(()) }
    }
}

impl Store for Log {
    fn revision(&self) -> u64 {
        self.shared.index().revision
    }

    fn get<'a>(&'a self, key: &'a [u8]) -> Call<'a, Option<Entry>> {
        let found = self.shared.index().get(key).cloned();
        Box::pin(async move { Ok(found) })
    }

    fn range(&self, request: Range) -> Call<'_, RangeResult> {
        let result = self.shared.index().range(&request);
        Box::pin(async move { result })
    }

    fn put<'a>(&'a self, key: &'a [u8], value: Bytes, expect: Expect) -> Call<'a, u64> {
        Box::pin(async move {
            self.check_size(key, &value)?;
            let packed = Packed::new(&value);
            let (reply, answer) = oneshot::channel();
            self.submit(Write::Put { key: Bytes::copy_from_slice(key), value, packed, expect, reply }, answer).await
        })
    }

    fn delete<'a>(&'a self, key: &'a [u8], expect: Expect) -> Call<'a, (u64, Entry)> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.submit(Write::Delete { key: Bytes::copy_from_slice(key), expect, reply }, answer).await
        })
    }

    fn watch(&self, prefix: &[u8], after: u64) -> Result<Watch, Error> {
        let mut state = self.shared.state();
        let missed: Vec<Event> = state.index.events_after(prefix, after)?;
        Ok(state.watchers.add(prefix, missed))
    }

    fn alive(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| !queue.is_closed())
    }

    fn history(&self, prefix: &[u8], after: u64) -> Result<Vec<Event>, Error> {
        self.shared.index().events_after(prefix, after)
    }

    fn compact(&self, revision: u64) -> Call<'_, ()> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.submit(Write::Compact { revision, reply }, answer).await
        })
    }

    fn close(&self) -> Call<'_, ()> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let closed = self.submit(Write::Close { reply }, answer).await;
            self.join();
            closed
        })
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue = None;
        self.join();
    }
}

/// How long a lock may still be held by a process that is just ending.
const LOCK_WAIT: Duration = Duration::from_secs(2);

fn lock(dir: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(dir.join("LOCK"))?;
    let deadline = Instant::now() + LOCK_WAIT;
    while let Err(error) = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        if Instant::now() > deadline {
            return Err(io::Error::new(error.kind(), format!("{} is in use by another process", dir.display())));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(file)
}
