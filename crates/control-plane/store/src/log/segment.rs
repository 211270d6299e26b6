//! Segment files: preallocated, numbered, written from front to back, recycled when empty.
//!
//! `segment-<id>.log` holds groups; `spare-<n>.log` is an allocated file that holds nothing of value. A segment becomes a spare by a
//! rename and a spare becomes a segment by a durable header and a rename, so at every moment a name says what a file is.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where groups begin.
pub(super) const FIRST_GROUP: u64 = 4096;
const MAGIC: &[u8; 8] = b"SPLOG\0\0\x01";

/// An open segment.
pub(super) struct Segment {
    pub id: u64,
    pub file: File,
    pub size: u64,
    /// The sequence number of its first group.
    pub first_sequence: u64,
}

/// What a folder holds.
pub(super) struct Listing {
    /// Ids in ascending order.
    pub segments: Vec<u64>,
    pub spares: Vec<PathBuf>,
}

pub(super) fn path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("segment-{id:016}.log"))
}

/// Reads the folder; unfinished temporary files are removed.
pub(super) fn list(dir: &Path) -> io::Result<Listing> {
    let mut listing = Listing { segments: Vec::new(), spares: Vec::new() };
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let middle = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(".log"));
        if let Some(id) = middle("segment-").and_then(|id| id.parse().ok()) {
            listing.segments.push(id);
        } else if middle("spare-").is_some() {
            listing.spares.push(entry.path());
        } else if name.starts_with("new-") {
            std::fs::remove_file(entry.path())?;
        }
    }
    listing.segments.sort_unstable();
    listing.spares.sort();
    Ok(listing)
}

/// Allocates a spare of `size` bytes. With `write_zeros` its blocks are written once, so that later writes change no file
/// metadata and an fdatasync is one disk write.
pub(super) fn make_spare(dir: &Path, number: u64, size: u64, write_zeros: bool) -> io::Result<PathBuf> {
    let temporary = dir.join(format!("new-{number:016}.log"));
    let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
    let made = allocate(&file, size, write_zeros);
    if let Err(error) = made {
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    let spare = dir.join(format!("spare-{number:016}.log"));
    std::fs::rename(&temporary, &spare)?;
    sync_dir(dir)?;
    Ok(spare)
}

fn allocate(file: &File, size: u64, write_zeros: bool) -> io::Result<()> {
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size)?;
    if write_zeros {
        let zeros = vec![0u8; 1 << 20];
        let mut at = 0;
        while at < size {
            let len = (size - at).min(zeros.len() as u64) as usize;
            file.write_all_at(&zeros[..len], at)?;
            at += len as u64;
        }
    }
    file.sync_all()
}

/// Turns a spare into the segment `id`, durably.
pub(super) fn promote(dir: &Path, spare: &Path, id: u64, first_sequence: u64) -> io::Result<Segment> {
    let file = OpenOptions::new().read(true).write(true).open(spare)?;
    let mut header = Vec::with_capacity(32);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&id.to_le_bytes());
    header.extend_from_slice(&first_sequence.to_le_bytes());
    let crc = crc32fast::hash(&header);
    header.extend_from_slice(&crc.to_le_bytes());
    file.write_all_at(&header, 0)?;
    file.sync_data()?;
    std::fs::rename(spare, path(dir, id))?;
    sync_dir(dir)?;
    let size = file.metadata()?.len();
    Ok(Segment { id, file, size, first_sequence })
}

/// Opens an existing segment and checks its header.
pub(super) fn open(dir: &Path, id: u64) -> io::Result<Segment> {
    let path = path(dir, id);
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut header = [0u8; 28];
    let damaged = |_| io::Error::new(io::ErrorKind::InvalidData, format!("{}: damaged segment header", path.display()));
    file.read_exact_at(&mut header, 0).map_err(damaged)?;
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| header[at + byte]));
    let crc = u32::from_le_bytes(std::array::from_fn(|byte| header[24 + byte]));
    if &header[..8] != MAGIC || crc != crc32fast::hash(&header[..24]) || number(8) != id {
        return Err(damaged(io::Error::other("header")));
    }
    let size = file.metadata()?.len();
    Ok(Segment { id, file, size, first_sequence: number(16) })
}

/// Turns an emptied segment into a spare.
pub(super) fn retire(dir: &Path, id: u64) -> io::Result<PathBuf> {
    let spare = dir.join(format!("spare-{id:016}.log"));
    std::fs::rename(path(dir, id), &spare)?;
    sync_dir(dir)?;
    Ok(spare)
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
