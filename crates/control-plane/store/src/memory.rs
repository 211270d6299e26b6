//! The contract in memory, for tests and simulation: every version since the last compaction in one ordered map.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::watchers::Watchers;
use crate::{Call, Entry, Error, Event, Expect, Range, RangeResult, Store, Watch};

#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    revision: u64,
    compacted: u64,
    keys: BTreeMap<Bytes, Vec<Version>>,
    events: Vec<Event>,
    watchers: Watchers,
}

struct Version {
    revision: u64,
    entry: Option<Entry>,
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn current(&self, key: &[u8]) -> Option<&Entry> {
        self.keys.get(key).and_then(|versions| versions.last()).and_then(|version| version.entry.as_ref())
    }

    fn check(&self, key: &[u8], expect: Expect) -> Result<Option<Entry>, Error> {
        let current = self.current(key).cloned();
        let holds = match (expect, &current) {
            (Expect::Anything, _) | (Expect::Absent, None) => true,
            (Expect::Revision(wanted), Some(entry)) => entry.mod_revision == wanted,
            _ => false,
        };
        if holds { Ok(current) } else { Err(Error::Conflict { current }) }
    }

    fn events_after(&self, prefix: &[u8], after: u64) -> Result<Vec<Event>, Error> {
        if after < self.compacted {
            return Err(Error::Compacted { oldest: self.compacted });
        }
        let from = self.events.partition_point(|event| event.revision() <= after);
        Ok(self.events[from..].iter().filter(|event| event.key().starts_with(prefix)).cloned().collect())
    }

    fn record(&mut self, event: Event) {
        self.revision = event.revision();
        let entry = match &event {
            Event::Put { entry, .. } => Some(entry.clone()),
            Event::Delete { .. } => None,
        };
        self.keys.entry(event.key().clone()).or_default().push(Version { revision: self.revision, entry });
        self.watchers.notify(&event, self.compacted);
        self.events.push(event);
    }
}

impl Store for Memory {
    fn revision(&self) -> u64 {
        self.lock().revision
    }

    fn get<'a>(&'a self, key: &'a [u8]) -> Call<'a, Option<Entry>> {
        let found = self.lock().current(key).cloned();
        Box::pin(async move { Ok(found) })
    }

    fn range(&self, request: Range) -> Call<'_, RangeResult> {
        let result = range(&self.lock(), &request);
        Box::pin(async move { result })
    }

    fn put<'a>(&'a self, key: &'a [u8], value: Bytes, expect: Expect) -> Call<'a, u64> {
        let mut state = self.lock();
        let result = state.check(key, expect).map(|previous| {
            let revision = state.revision + 1;
            let create_revision = previous.as_ref().map_or(revision, |entry| entry.create_revision);
            let entry = Entry { key: Bytes::copy_from_slice(key), value, create_revision, mod_revision: revision };
            state.record(Event::Put { entry, previous });
            revision
        });
        Box::pin(async move { result })
    }

    fn delete<'a>(&'a self, key: &'a [u8], expect: Expect) -> Call<'a, (u64, Entry)> {
        let mut state = self.lock();
        let result = state.check(key, expect).and_then(|current| current.ok_or(Error::NotFound)).map(|previous| {
            let revision = state.revision + 1;
            state.record(Event::Delete { key: previous.key.clone(), revision, previous: previous.clone() });
            (revision, previous)
        });
        Box::pin(async move { result })
    }

    fn watch(&self, prefix: &[u8], after: u64) -> Result<Watch, Error> {
        let mut state = self.lock();
        let missed = state.events_after(prefix, after)?;
        Ok(state.watchers.add(prefix, missed))
    }

    fn history(&self, prefix: &[u8], after: u64) -> Result<Vec<Event>, Error> {
        self.lock().events_after(prefix, after)
    }

    fn compact(&self, revision: u64) -> Call<'_, ()> {
        let mut state = self.lock();
        let revision = revision.min(state.revision);
        state.compacted = state.compacted.max(revision);
        state.events.retain(|event| event.revision() > revision);
        state.keys.retain(|_, versions| {
            let keep_from = versions.iter().rposition(|version| version.revision <= revision).unwrap_or(0);
            versions.drain(..keep_from);
            versions.len() > 1 || versions.first().is_some_and(|version| version.entry.is_some() || version.revision > revision)
        });
        Box::pin(async move { Ok(()) })
    }

    fn close(&self) -> Call<'_, ()> {
        Box::pin(async move { Ok(()) })
    }
}

fn range(state: &State, request: &Range) -> Result<RangeResult, Error> {
    let revision = if request.revision == 0 { state.revision } else { request.revision };
    if revision > state.revision {
        return Err(Error::Future { wanted: revision, newest: state.revision });
    }
    if revision < state.compacted {
        return Err(Error::Compacted { oldest: state.compacted });
    }
    let start = if request.start > request.prefix { request.start.clone() } else { request.prefix.clone() };
    let mut entries = Vec::new();
    let mut remaining = 0;
    for (key, versions) in state.keys.range(start..) {
        if !key.starts_with(&request.prefix) {
            break;
        }
        let version = versions.iter().rev().find(|version| version.revision <= revision);
        let Some(entry) = version.and_then(|version| version.entry.as_ref()) else {
            continue;
        };
        if request.limit > 0 && entries.len() == request.limit {
            remaining += 1;
            if request.uncounted {
                break;
            }
        } else {
            entries.push(entry.clone());
        }
    }
    Ok(RangeResult { entries, revision, remaining })
}
