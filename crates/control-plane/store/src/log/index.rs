//! What the log says, in memory: every version that is still readable, the events since the last compaction, and how much of
//! each segment is still needed.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

use crate::{Entry, Error, Event, Range, RangeResult};

/// Where a record lies: what the cleaner has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub segment: u64,
    pub len: u32,
}

/// One version of a key; a deletion has no entry.
struct Version {
    revision: u64,
    entry: Option<Entry>,
    place: Place,
}

/// What an event costs beside the values that it keeps, roughly, in bytes.
const EVENT_BYTES: usize = 256;

/// A key's versions, oldest first; never empty.
type Versions = Vec<Version>;

#[derive(Default)]
pub(super) struct Index {
    pub revision: u64,
    pub compacted: u64,
    keys: BTreeMap<Bytes, Versions>,
    /// Since `compacted`, in revision order.
    events: VecDeque<Event>,
    /// Bytes of records still needed, by segment.
    live: HashMap<u64, u64>,
    /// Bytes that are only history: old values and the events themselves.
    history_bytes: usize,
}

impl Index {
    pub(super) fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.keys.get(key)?.last()?.entry.as_ref()
    }

    /// Applies one new change. Revisions only grow.
    pub(super) fn apply(&mut self, event: Event, place: Place) {
        debug_assert!(event.revision() > self.revision);
        self.revision = event.revision();
        self.history_bytes += kept_for(&event);
        let entry = match &event {
            Event::Put { entry, .. } => Some(entry.clone()),
            Event::Delete { .. } => None,
        };
        *self.live.entry(place.segment).or_default() += u64::from(place.len);
        let version = Version { revision: self.revision, entry, place };
        // Most keys have one version: a vector that grows by itself would begin with room for four.
        self.keys.entry(event.key().clone()).or_insert_with(|| Vec::with_capacity(1)).push(version);
        self.events.push_back(event);
    }

    pub(super) fn history_bytes(&self) -> usize {
        self.history_bytes
    }

    /// The revision below which half of the history lies, to shed memory.
    pub(super) fn half_of_history(&self) -> u64 {
        self.events.get(self.events.len() / 2).map_or(self.compacted, Event::revision)
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.live.values().sum()
    }

    pub(super) fn live_bytes_of(&self, segment: u64) -> u64 {
        self.live.get(&segment).copied().unwrap_or(0)
    }

    pub(super) fn forget_segment(&mut self, segment: u64) {
        self.live.remove(&segment);
    }

    /// Whether this very record in this segment is what the index refers to, and then the revision of its successor, if any.
    pub(super) fn still_needed(&self, key: &[u8], revision: u64, segment: u64) -> Option<Option<u64>> {
        let versions = self.keys.get(key)?;
        let at = versions.binary_search_by_key(&revision, |version| version.revision).ok()?;
        (versions[at].place.segment == segment).then(|| versions.get(at + 1).map(|next| next.revision))
    }

    /// A record was copied to another segment.
    pub(super) fn moved(&mut self, key: &[u8], revision: u64, to: Place) {
        let versions = self.keys.get_mut(key);
        let Some(version) = versions.and_then(|versions| versions.iter_mut().find(|version| version.revision == revision)) else { return };
        let from = std::mem::replace(&mut version.place, to);
        release(&mut self.live, from);
        *self.live.entry(to.segment).or_default() += u64::from(to.len);
    }

    /// Forgets what only readers below `revision` could see.
    pub(super) fn compact(&mut self, revision: u64) {
        self.compacted = self.compacted.max(revision.min(self.revision));
        while self.events.front().is_some_and(|event| event.revision() <= self.compacted) {
            let Some(event) = self.events.pop_front() else { break };
            self.history_bytes -= kept_for(&event);
            self.prune(event.key());
        }
    }

    /// Drops versions of `key` that a successor at or below the compacted revision has replaced.
    fn prune(&mut self, key: &Bytes) {
        let Some(versions) = self.keys.get_mut(key) else { return };
        let newest_old = versions.iter().rposition(|version| version.revision <= self.compacted).unwrap_or(0);
        // A deletion that everybody must have seen needs no record: what it deleted is gone from the log before it.
        let settled = versions[newest_old].entry.is_none() && versions[newest_old].revision <= self.compacted;
        for version in versions.drain(..newest_old + usize::from(settled)) {
            release(&mut self.live, version.place);
        }
        if versions.is_empty() {
            self.keys.remove(key);
        } else if versions.len() == 1 {
            versions.shrink_to_fit();
        }
    }

    pub(super) fn range(&self, request: &Range) -> Result<RangeResult, Error> {
        let revision = if request.revision == 0 { self.revision } else { request.revision };
        if revision > self.revision {
            return Err(Error::Future { wanted: revision, newest: self.revision });
        }
        if revision < self.compacted {
            return Err(Error::Compacted { oldest: self.compacted });
        }
        let start = if request.start > request.prefix { request.start.clone() } else { request.prefix.clone() };
        let visible = self
            .keys
            .range(start..)
            .take_while(|(key, _)| key.starts_with(&request.prefix))
            .filter_map(|(_, versions)| versions.iter().rev().find(|version| version.revision <= revision)?.entry.as_ref());
        let mut entries = Vec::new();
        let mut remaining = 0;
        for entry in visible {
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

    /// The events of `prefix` after `after`.
    pub(super) fn events_after(&self, prefix: &[u8], after: u64) -> Result<Vec<Event>, Error> {
        if after < self.compacted {
            return Err(Error::Compacted { oldest: self.compacted });
        }
        let from = self.events.partition_point(|event| event.revision() <= after);
        Ok(self.events.range(from..).filter(|event| event.key().starts_with(prefix)).cloned().collect())
    }

    /// Rebuilds the index from records in the order of the log; a record that stands twice (copied, but its first home was not
    /// yet recycled) counts where it stands last.
    pub(super) fn rebuild(revision: u64, compacted: u64, records: Vec<(super::record::Record, u64)>) -> Self {
        let mut index = Index { revision, compacted, ..Self::default() };
        for (record, segment) in records {
            // Its successor may be a deletion that is settled and gone from the log.
            if record.replaced_at != 0 && record.replaced_at <= compacted {
                continue;
            }
            let place = Place { segment, len: record.disk_len };
            *index.live.entry(segment).or_default() += u64::from(place.len);
            let entry = record.value.map(|value| Entry {
                key: record.key.clone(),
                value,
                create_revision: record.create_revision,
                mod_revision: record.mod_revision,
            });
            let version = Version { revision: record.mod_revision, entry, place };
            let versions = index.keys.entry(record.key).or_default();
            match versions.binary_search_by_key(&version.revision, |version| version.revision) {
                Ok(at) => release(&mut index.live, std::mem::replace(&mut versions[at], version).place),
                Err(at) => versions.insert(at, version),
            }
        }
        index.rebuild_events();
        for key in index.keys.keys().cloned().collect::<Vec<_>>() {
            index.prune(&key);
        }
        index
    }

    fn rebuild_events(&mut self) {
        let mut events = Vec::new();
        for (key, versions) in &self.keys {
            let mut previous: Option<Entry> = None;
            for version in versions {
                if version.revision > self.compacted {
                    match (&version.entry, previous.take()) {
                        (Some(entry), previous) => events.push(Event::Put { entry: entry.clone(), previous }),
                        (None, Some(previous)) => events.push(Event::Delete { key: key.clone(), revision: version.revision, previous }),
                        (None, None) => {}
                    }
                }
                previous = version.entry.clone();
            }
        }
        events.sort_by_key(Event::revision);
        self.history_bytes = events.iter().map(kept_for).sum();
        self.events = events.into();
    }
}

/// Bytes that are kept for the sake of this event.
fn kept_for(event: &Event) -> usize {
    let previous = match event {
        Event::Put { previous, .. } => previous.as_ref(),
        Event::Delete { previous, .. } => Some(previous),
    };
    EVENT_BYTES + previous.map_or(0, |entry| entry.value.len())
}

fn release(live: &mut HashMap<u64, u64>, place: Place) {
    if let Some(bytes) = live.get_mut(&place.segment) {
        *bytes = bytes.saturating_sub(u64::from(place.len));
    }
}
