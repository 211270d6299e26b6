use bytes::Bytes;
use tokio::sync::mpsc;

/// A stored version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Bytes,
    pub value: Bytes,
    /// The revision that made the key (its first version since the last deletion).
    pub create_revision: u64,
    /// The revision of this version.
    pub mod_revision: u64,
}

/// What a write expects of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// The key's mod_revision is this.
    Revision(u64),
    /// The key exists, or not: the write always happens (a delete of an absent key is `NotFound`).
    Anything,
}

/// A range read.
#[derive(Clone, Debug, Default)]
pub struct Range {
    pub prefix: Bytes,
    /// Start at this key (inclusive); empty means the prefix's first.
    pub start: Bytes,
    /// At most this many entries; 0 means all.
    pub limit: usize,
    /// Read as of this revision; 0 means now.
    pub revision: u64,
    /// `remaining` need only say whether there is more (1) or not (0): counting costs a look at every key.
    pub uncounted: bool,
}

#[derive(Clone, Debug)]
pub struct RangeResult {
    pub entries: Vec<Entry>,
    /// The revision that was read.
    pub revision: u64,
    /// Entries of the prefix that come after the last one returned.
    pub remaining: usize,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `previous` is absent when the key was created.
    Put { entry: Entry, previous: Option<Entry> },
    /// `revision` is the deletion's own; `previous` the last version.
    Delete { key: Bytes, revision: u64, previous: Entry },
}

impl Event {
    pub fn revision(&self) -> u64 {
        match self {
            Event::Put { entry, .. } => entry.mod_revision,
            Event::Delete { revision, .. } => *revision,
        }
    }
    pub fn key(&self) -> &Bytes {
        match self {
            Event::Put { entry, .. } => &entry.key,
            Event::Delete { key, .. } => key,
        }
    }
}

/// A running watch. Events come in revision order; after an `Err` nothing follows. Dropping it ends the watch.
pub struct Watch {
    pub events: mpsc::Receiver<Result<Event, Error>>,
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The write's expectation did not hold; `current` is what stands there.
    #[error("the key is not in the expected state")]
    Conflict { current: Option<Entry> },
    #[error("key not found")]
    NotFound,
    /// The wanted revision was compacted, or the watcher fell behind.
    #[error("required revision has been compacted; the oldest available is {oldest}")]
    Compacted { oldest: u64 },
    #[error("required revision {wanted} is a future revision, the newest is {newest}")]
    Future { wanted: u64, newest: u64 },
    /// The disk is full: only deletions are accepted.
    #[error("database space exceeded")]
    NoSpace,
    #[error("value of {size} bytes is larger than the limit of {limit} bytes")]
    TooLarge { size: usize, limit: usize },
    /// The disk failed; the store accepts no more writes.
    #[error("the store failed: {0}")]
    Broken(String),
    #[error("the store is closed")]
    Closed,
}
