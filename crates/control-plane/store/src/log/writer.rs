//! The one thread that writes: it takes all waiting writes as one group, checks their expectations, makes them durable with one
//! fdatasync, and only then shows and acknowledges them.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};

use super::index::Place;
use super::record::{self, HEADER, Header, Packed};
use super::segment::{self, FIRST_GROUP, Segment};
use super::{Options, Shared, recover};
use crate::{Entry, Error, Event, Expect};

/// A write waiting for its turn, with the place to answer.
pub(super) enum Write {
    Put { key: Bytes, value: Bytes, packed: Packed, expect: Expect, reply: oneshot::Sender<Result<u64, Error>> },
    Delete { key: Bytes, expect: Expect, reply: oneshot::Sender<Result<(u64, Entry), Error>> },
    Compact { revision: u64, reply: oneshot::Sender<Result<(), Error>> },
    Close { reply: oneshot::Sender<Result<(), Error>> },
}

/// The segment being written and how far.
pub(super) struct Tail {
    pub segment: Segment,
    pub at: u64,
    /// The last group's number.
    pub sequence: u64,
}

/// How many bytes one group gathers at most.
const GROUP_MAX: usize = 4 << 20;
/// How many bytes of old records the cleaner copies per group, so that it delays nobody for long.
const CLEAN_MAX: usize = 256 << 10;

pub(super) struct Writer {
    dir: PathBuf,
    options: Options,
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Write>,
    tail: Tail,
    /// Allocated files, ready to become the next segment. The last one is the reserve: only deletions, compaction and
    /// cleaning may use it.
    spares: Vec<PathBuf>,
    spare_number: u64,
    closed: VecDeque<u64>,
    cleaning: Option<Cleaning>,
    /// The last attempt to make a file failed, and that was said.
    short: bool,
}

/// A closed segment whose live records are being copied to the tail.
struct Cleaning {
    segment: u64,
    bytes: Vec<u8>,
    /// Where its records lie in `bytes`.
    records: VecDeque<Range<usize>>,
}

/// A group under construction.
#[derive(Default)]
struct Group {
    body: BytesMut,
    /// What keys look like after the writes of this group so far.
    overlay: HashMap<Bytes, Option<Entry>>,
    changes: Vec<(Event, u32)>,
    moves: Vec<(Bytes, u64, u32)>,
    replies: Vec<Reply>,
    revision: u64,
    compacted: u64,
}

enum Reply {
    Put(oneshot::Sender<Result<u64, Error>>, Result<u64, Error>),
    Delete(oneshot::Sender<Result<(u64, Entry), Error>>, Result<(u64, Entry), Error>),
    Done(oneshot::Sender<Result<(), Error>>),
}

impl Writer {
    pub(super) fn new(dir: PathBuf, options: Options, shared: Arc<Shared>, queue: mpsc::Receiver<Write>, from: recover::Parts) -> Self {
        let (tail, spares, closed) = from;
        let spare_number = tail.segment.id << 16;
        Self { dir, options, shared, queue, tail, spares, spare_number, closed: closed.into(), cleaning: None, short: false }
    }

    /// Runs until the store is closed or its last handle is gone.
    pub(super) fn run(mut self) {
        self.prepare_spares();
        while let Some(first) = self.queue.blocking_recv() {
            match self.turn(first) {
                Ok(None) => {}
                Ok(Some(closed)) => {
                    let _ = closed.send(Ok(()));
                    return;
                }
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// One group: gather, check, write, sync, show, answer. Returns the reply to send once closed.
    fn turn(&mut self, first: Write) -> io::Result<Option<oneshot::Sender<Result<(), Error>>>> {
        let mut group = self.begin();
        let mut closing = None;
        let mut next = Some(first);
        while let Some(write) = next.take() {
            if let Write::Close { reply } = write {
                closing = Some(reply);
                break;
            }
            self.check(write, &mut group)?;
            if group.body.len() < GROUP_MAX {
                next = self.queue.try_recv().ok();
            }
        }
        self.clean_some(&mut group)?;
        self.commit(group)?;
        self.shed_history()?;
        Ok(closing)
    }

    fn begin(&self) -> Group {
        let index = self.shared.index();
        Group { revision: index.revision, compacted: index.compacted, ..Group::default() }
    }

    fn check(&mut self, write: Write, group: &mut Group) -> io::Result<()> {
        match write {
            Write::Put { key, value, packed, expect, reply } => {
                let len_max = record::put_len_max(&key, &packed);
                if !self.room_or_reclaim(group, len_max)? {
                    group.replies.push(Reply::Put(reply, Err(Error::NoSpace)));
                    return Ok(());
                }
                let result = self.expected(group, &key, expect).map(|previous| group.put(key, value, &packed, previous));
                group.replies.push(Reply::Put(reply, result));
            }
            Write::Delete { key, expect, reply } => {
                let room = self.has_room(group, 64 + key.len(), true)?;
                let current = self.expected(group, &key, expect).and_then(|current| current.ok_or(Error::NotFound));
                let result = if room { current.map(|previous| group.delete(previous)) } else { Err(Error::NoSpace) };
                group.replies.push(Reply::Delete(reply, result));
            }
            Write::Compact { revision, reply } => {
                group.compacted = group.compacted.max(revision.min(group.revision));
                group.replies.push(Reply::Done(reply));
            }
            Write::Close { .. } => {}
        }
        Ok(())
    }

    fn expected(&self, group: &Group, key: &[u8], expect: Expect) -> Result<Option<Entry>, Error> {
        let current = match group.overlay.get(key) {
            Some(entry) => entry.clone(),
            None => self.shared.index().get(key).cloned(),
        };
        let holds = match (expect, &current) {
            (Expect::Anything, _) | (Expect::Absent, None) => true,
            (Expect::Revision(wanted), Some(entry)) => entry.mod_revision == wanted,
            _ => false,
        };
        if holds { Ok(current) } else { Err(Error::Conflict { current }) }
    }

    /// Makes sure that `len` more bytes fit behind the group; writes the group and moves on to the next segment where they do not.
    /// Only `frugal` writes (deletions, cleaning) may use the reserve.
    fn has_room(&mut self, group: &mut Group, len: usize, frugal: bool) -> io::Result<bool> {
        let needed = (HEADER + group.body.len() + len) as u64;
        let fits = self.tail.at + needed <= self.tail.segment.size;
        if fits && (frugal || !self.spares.is_empty()) {
            return Ok(true);
        }
        self.prepare_spares();
        if fits {
            return Ok(frugal || !self.spares.is_empty());
        }
        if FIRST_GROUP + (HEADER + len) as u64 > self.options.segment_bytes || self.spares.len() < if frugal { 1 } else { 2 } {
            return Ok(false);
        }
        let begun = self.begin();
        self.commit(std::mem::replace(group, begun))?;
        *group = self.begin();
        self.rotate()?;
        Ok(true)
    }

    /// Room for a put: when the log is full, segments that hold garbage are emptied first.
    fn room_or_reclaim(&mut self, group: &mut Group, len: usize) -> io::Result<bool> {
        while !self.has_room(group, len, false)? {
            if self.cleaning.is_none() && !self.start_cleaning()? {
                return Ok(false);
            }
            let oldest = self.closed.front().copied();
            self.clean_some(group)?;
            // Given up without having emptied it: not even the reserve has room. Trying again at once would be for ever.
            if self.cleaning.is_none() && self.closed.front().copied() == oldest {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let Some(spare) = self.spares.pop() else { return Err(io::Error::from(io::ErrorKind::StorageFull)) };
        let next = segment::promote(&self.dir, &spare, self.tail.segment.id + 1, self.tail.sequence + 1)?;
        self.closed.push_back(self.tail.segment.id);
        self.tail = Tail { segment: next, at: FIRST_GROUP, sequence: self.tail.sequence };
        self.prepare_spares();
        Ok(())
    }

    /// Keeps two files ready: the next segment and the reserve. A full disk is no error here: writes are then refused one by one.
    fn prepare_spares(&mut self) {
        while self.spares.len() < 2 {
            let files = (self.spares.len() + self.closed.len() + 1) as u64;
            if (files + 1) * self.options.segment_bytes > self.options.quota_bytes {
                break;
            }
            self.spare_number += 1;
            match segment::make_spare(&self.dir, self.spare_number, self.options.segment_bytes, self.options.write_zeros) {
                Ok(spare) => {
                    self.short = false;
                    self.spares.push(spare);
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.short, true) {
                        let dir = self.dir.display();
                        tracing::warn!(%error, %dir, "cannot allocate a log segment; only deletions are accepted once the last one is full");
                    }
                    break;
                }
            }
        }
    }

    /// Writes and syncs the group, then shows its changes and answers its writers.
    fn commit(&mut self, mut group: Group) -> io::Result<()> {
        let compacts = group.compacted > self.shared.index().compacted;
        if !group.body.is_empty() || compacts {
            self.write(&group)?;
        }
        let segment = self.tail.segment.id;
        let mut state = self.shared.state();
        for (event, len) in group.changes.drain(..) {
            let oldest = state.index.compacted;
            state.watchers.notify(&event, oldest);
            state.index.apply(event, Place { segment, len });
        }
        for (key, revision, len) in group.moves.drain(..) {
            state.index.moved(&key, revision, Place { segment, len });
        }
        if compacts {
            state.index.compact(group.compacted);
        }
        drop(state);
        group.replies.into_iter().for_each(Reply::send);
        Ok(())
    }

    fn write(&mut self, group: &Group) -> io::Result<()> {
        let header = Header {
            body_len: group.body.len() as u32,
            sequence: self.tail.sequence + 1,
            revision: group.revision,
            compacted: group.compacted,
            body_crc: crc32fast::hash(&group.body),
        };
        let mut bytes = Vec::with_capacity(HEADER + group.body.len());
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(&group.body);
        self.tail.segment.file.write_all_at(&bytes, self.tail.at)?;
        self.tail.segment.file.sync_data()?;
        self.tail.at += bytes.len() as u64;
        self.tail.sequence += 1;
        Ok(())
    }

    /// Frees the oldest closed segment step by step when the log is much larger than what it holds, or when space is short.
    fn clean_some(&mut self, group: &mut Group) -> io::Result<()> {
        if self.cleaning.is_none() && !self.start_cleaning()? {
            return Ok(());
        }
        let Some(mut cleaning) = self.cleaning.take() else { return Ok(()) };
        let enough = group.body.len() + CLEAN_MAX;
        while group.body.len() < enough {
            let Some(record) = cleaning.next(&self.shared) else {
                // The copies in this very group must be durable before their first home may go.
                let begun = self.begin();
                self.commit(std::mem::replace(group, begun))?;
                *group = self.begin();
                return self.recycle(cleaning.segment);
            };
            let (record, successor) = record;
            let mut copy = BytesMut::with_capacity(record.bytes.len() + 8);
            record::copy(&mut copy, &record, successor);
            let (key, revision) = (Bytes::copy_from_slice(record.key), record.mod_revision);
            if !self.has_room(group, copy.len(), true)? {
                // Not even the reserve has room: this segment cannot be emptied now.
                return Ok(());
            }
            group.moves.push((key, revision, copy.len() as u32));
            group.body.extend_from_slice(&copy);
        }
        self.cleaning = Some(cleaning);
        Ok(())
    }

    fn start_cleaning(&mut self) -> io::Result<bool> {
        let Some(&oldest) = self.closed.front() else { return Ok(false) };
        let (live, live_of_oldest) = {
            let index = self.shared.index();
            (index.live_bytes(), index.live_bytes_of(oldest))
        };
        let log = (self.closed.len() as u64 + 1) * self.options.segment_bytes;
        let wasteful = log > live * 3 + 4 * self.options.segment_bytes;
        let short_of_space = self.spares.len() < 2 && live + 2 * self.options.segment_bytes < log;
        if live_of_oldest > 0 && !wasteful && !short_of_space {
            return Ok(false);
        }
        let segment = segment::open(&self.dir, oldest)?;
        let bytes = if live_of_oldest == 0 { Vec::new() } else { recover::read_all(&segment.file, segment.size)? };
        self.cleaning = Some(Cleaning::new(&segment, bytes));
        Ok(true)
    }

    fn recycle(&mut self, id: u64) -> io::Result<()> {
        self.closed.pop_front();
        self.shared.state().index.forget_segment(id);
        let spare = segment::retire(&self.dir, id)?;
        if self.spares.len() < 2 {
            self.spares.push(spare);
            return Ok(());
        }
        std::fs::remove_file(spare)
    }

    /// History is bounded in memory even when nobody compacts.
    fn shed_history(&mut self) -> io::Result<()> {
        let too_much = self.shared.index().history_bytes() > self.options.history_bytes;
        if too_much {
            let mut group = self.begin();
            group.compacted = self.shared.index().half_of_history();
            self.commit(group)?;
        }
        Ok(())
    }

    /// The disk failed: nothing more is acknowledged.
    fn fail(mut self, error: &io::Error) {
        tracing::error!(%error, dir = %self.dir.display(), "the store's log cannot be written; no more writes are accepted");
        let broken = Error::Broken(error.to_string());
        self.shared.state().broken = Some(broken.clone());
        self.queue.close();
        while let Some(write) = self.queue.blocking_recv() {
            write.refuse(broken.clone());
        }
    }
}

impl Group {
    fn put(&mut self, key: Bytes, value: Bytes, packed: &Packed, previous: Option<Entry>) -> u64 {
        self.revision += 1;
        let create_revision = previous.as_ref().map_or(self.revision, |entry| entry.create_revision);
        let len = record::put(&mut self.body, &key, self.revision, create_revision, packed);
        let entry = Entry { key: key.clone(), value, create_revision, mod_revision: self.revision };
        self.overlay.insert(key, Some(entry.clone()));
        self.changes.push((Event::Put { entry, previous }, len));
        self.revision
    }

    fn delete(&mut self, previous: Entry) -> (u64, Entry) {
        self.revision += 1;
        let key = previous.key.clone();
        let len = record::delete(&mut self.body, &key, self.revision);
        self.overlay.insert(key.clone(), None);
        self.changes.push((Event::Delete { key, revision: self.revision, previous: previous.clone() }, len));
        (self.revision, previous)
    }
}

impl Cleaning {
    fn new(segment: &Segment, bytes: Vec<u8>) -> Self {
        let mut records = VecDeque::new();
        let (mut at, mut sequence) = (FIRST_GROUP as usize, segment.first_sequence);
        while let Some((_, body)) = recover::group(&bytes, at, sequence) {
            at += HEADER;
            for raw in record::records(body).flatten() {
                records.push_back(at..at + raw.bytes.len());
                at += raw.bytes.len();
            }
            sequence += 1;
        }
        Self { segment: segment.id, bytes, records }
    }

    /// The next record of the segment that is still needed, with the revision that replaced it if it is history.
    fn next(&mut self, shared: &Shared) -> Option<(record::Raw<'_>, Option<u64>)> {
        let state = shared.index();
        while let Some(range) = self.records.pop_front() {
            let Some(record) = self.bytes.get(range.clone()).and_then(record::raw) else { continue };
            if let Some(successor) = state.still_needed(record.key, record.mod_revision, self.segment) {
                return self.bytes.get(range).and_then(record::raw).map(|record| (record, successor));
            }
        }
        None
    }
}

impl Reply {
    fn send(self) {
        match self {
            Reply::Put(reply, result) => drop(reply.send(result)),
            Reply::Delete(reply, result) => drop(reply.send(result)),
            Reply::Done(reply) => drop(reply.send(Ok(()))),
        }
    }
}

impl Write {
    pub(super) fn refuse(self, error: Error) {
        match self {
            Write::Put { reply, .. } => drop(reply.send(Err(error))),
            Write::Delete { reply, .. } => drop(reply.send(Err(error))),
            Write::Compact { reply, .. } | Write::Close { reply } => drop(reply.send(Err(error))),
        }
    }
}
