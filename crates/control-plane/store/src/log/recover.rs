//! Opening: read every segment front to back, rebuild the index, find where to go on writing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::index::Index;
use super::record::{self, HEADER, Header, Record};
use super::segment::{self, FIRST_GROUP, Segment};
use super::{Options, writer::Tail};

/// Everything that a writer needs to go on.
pub(super) struct Recovered {
    pub index: Index,
    pub tail: Tail,
    pub spares: Vec<PathBuf>,
    /// Ids of the segments before the tail, oldest first.
    pub closed: Vec<u64>,
}

/// What the writer takes over: the tail, the spares, the closed segments.
pub(super) type Parts = (Tail, Vec<PathBuf>, Vec<u64>);

/// Reads the folder, or starts an empty log in it.
pub(super) fn recover(dir: &Path, options: &Options) -> io::Result<Recovered> {
    let listing = segment::list(dir)?;
    let mut spares = listing.spares;
    if listing.segments.is_empty() {
        let spare = match spares.pop() {
            Some(spare) => spare,
            None => segment::make_spare(dir, 0, options.segment_bytes, false)?,
        };
        let segment = segment::promote(dir, &spare, 1, 1)?;
        let tail = Tail { segment, at: FIRST_GROUP, sequence: 0 };
        return Ok(Recovered { index: Index::default(), tail, spares, closed: Vec::new() });
    }
    let mut scan = Scan { sequence: 0, revision: 0, compacted: 0, records: Vec::new() };
    let mut end = None;
    let last = listing.segments.len() - 1;
    for (position, id) in listing.segments.iter().enumerate() {
        let segment = segment::open(dir, *id)?;
        if position == 0 {
            scan.sequence = segment.first_sequence - 1;
        } else if segment.first_sequence != scan.sequence + 1 {
            let why = format!("groups {} to {} are missing before it", scan.sequence + 1, segment.first_sequence - 1);
            return Err(damaged(dir, *id, &why));
        }
        let at = scan.segment(dir, &segment)?;
        if position == last {
            end = Some((segment, at));
        }
    }
    let Some((segment, at)) = end else { return Err(io::Error::other("no segment")) };
    let closed = listing.segments[..last].to_vec();
    let index = Index::rebuild(scan.revision, scan.compacted, scan.records);
    Ok(Recovered { index, tail: Tail { segment, at, sequence: scan.sequence }, spares, closed })
}

struct Scan {
    sequence: u64,
    revision: u64,
    compacted: u64,
    records: Vec<(Record, u64)>,
}

impl Scan {
    /// Reads one segment's groups and returns the offset behind the last intact one.
    fn segment(&mut self, dir: &Path, segment: &Segment) -> io::Result<u64> {
        let bytes = read_all(&segment.file, segment.size)?;
        let mut at = FIRST_GROUP as usize;
        while let Some((header, body)) = group(&bytes, at, self.sequence + 1) {
            for raw in record::records(body) {
                let record = raw.and_then(|raw| raw.unpack());
                let record = record.ok_or_else(|| damaged(dir, segment.id, "a record inside an intact group does not unpack"))?;
                self.records.push((record, segment.id));
            }
            self.sequence = header.sequence;
            self.revision = self.revision.max(header.revision);
            self.compacted = self.compacted.max(header.compacted);
            at += HEADER + body.len();
        }
        if self.successor_exists(&bytes, at) {
            return Err(damaged(dir, segment.id, &format!("group {} is damaged but later ones are intact", self.sequence + 1)));
        }
        Ok(at as u64)
    }

    /// A group is written only once its predecessor is durable: a later intact group behind a damaged one means lost data.
    fn successor_exists(&self, bytes: &[u8], at: usize) -> bool {
        let next = Header::decode(bytes.get(at..).unwrap_or(&[])).filter(|header| header.sequence == self.sequence + 1);
        match next {
            Some(header) => group(bytes, at + HEADER + header.body_len as usize, self.sequence + 2).is_some(),
            None => false,
        }
    }
}

/// The group at `at`, if it is intact and has this sequence number.
pub(super) fn group(bytes: &[u8], at: usize, sequence: u64) -> Option<(Header, &[u8])> {
    let header = Header::decode(bytes.get(at..)?)?;
    let body = bytes.get(at + HEADER..)?.get(..header.body_len as usize)?;
    (header.sequence == sequence && crc32fast::hash(body) == header.body_crc).then_some((header, body))
}

pub(super) fn read_all(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; size as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn damaged(dir: &Path, id: u64, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", segment::path(dir, id).display()))
}
