//! The bytes on disk: groups of records, each group checksummed and numbered.
//!
//! ```text
//! group  = header (48 bytes) record*
//! header = magic u32 | body length u32 | sequence u64 | newest revision u64 | compacted revision u64 | body crc u32 | zero u32 | zero u32 | header crc u32
//! record = length u32 | flags u8 | mod_revision u64 | create_revision u64 | key length u16 | key | [raw length u32] value | [replaced_at u64]
//! ```
//! All numbers are little-endian. A group is written after the one before it is durable, so a damaged group with a valid
//! successor is corruption, and a damaged group without one is a write that nobody was told about.

use bytes::{BufMut, Bytes, BytesMut};

pub(super) const HEADER: usize = 48;
const MAGIC: u32 = 0x5350_4c47;
const PUT: u8 = 1;
const COMPRESSED: u8 = 2;
/// The record was copied forward when it was already history; the revision that replaced it follows the value.
const REPLACED: u8 = 4;
/// Length, flags, two revisions, key length.
const RECORD_HEAD: usize = 4 + 1 + 8 + 8 + 2;
/// Values below this stay as they are: lz4 gains nothing there.
const COMPRESS_MIN: usize = 256;
/// A value's size once unpacked, at most; guards against a damaged length.
const RAW_MAX: usize = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub body_len: u32,
    pub sequence: u64,
    pub revision: u64,
    pub compacted: u64,
    pub body_crc: u32,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0u8; HEADER];
        let mut at = &mut out[..];
        at.put_u32_le(MAGIC);
        at.put_u32_le(self.body_len);
        at.put_u64_le(self.sequence);
        at.put_u64_le(self.revision);
        at.put_u64_le(self.compacted);
        at.put_u32_le(self.body_crc);
        let crc = crc32fast::hash(&out[..HEADER - 4]);
        out[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` where these bytes are not an intact header.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER)?;
        let crc = u32_at(bytes, HEADER - 4)?;
        if u32_at(bytes, 0)? != MAGIC || crc != crc32fast::hash(&bytes[..HEADER - 4]) {
            return None;
        }
        Some(Self {
            body_len: u32_at(bytes, 4)?,
            sequence: u64_at(bytes, 8)?,
            revision: u64_at(bytes, 16)?,
            compacted: u64_at(bytes, 24)?,
            body_crc: u32_at(bytes, 32)?,
        })
    }
}

/// A value as it goes to disk; made by the caller of a write, so that compression runs on many cores.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    bytes: Bytes,
    raw_len: Option<u32>,
}

impl Packed {
    pub(super) fn new(value: &Bytes) -> Self {
        if value.len() >= COMPRESS_MIN {
            let packed = lz4_flex::block::compress(value);
            if packed.len() + 4 < value.len() {
                return Self { bytes: packed.into(), raw_len: Some(value.len() as u32) };
            }
        }
        Self { bytes: value.clone(), raw_len: None }
    }
}

/// One decoded record. `value` is absent for a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub key: Bytes,
    pub mod_revision: u64,
    pub create_revision: u64,
    pub value: Option<Bytes>,
    /// The revision that replaced this version, where the copy had to say so (0: it did not). The copy may stand behind its
    /// successor in the log and outlive it, and must not rise again.
    pub replaced_at: u64,
    /// The bytes that the record takes on disk.
    pub disk_len: u32,
}

/// Appends a put and returns the length on disk.
pub(super) fn put(out: &mut BytesMut, key: &[u8], mod_revision: u64, create_revision: u64, value: &Packed) -> u32 {
    let flags = PUT | if value.raw_len.is_some() { COMPRESSED } else { 0 };
    let value_len = value.bytes.len() + if value.raw_len.is_some() { 4 } else { 0 };
    let len = head(out, flags, key, mod_revision, create_revision, value_len);
    if let Some(raw_len) = value.raw_len {
        out.put_u32_le(raw_len);
    }
    out.put_slice(&value.bytes);
    len
}

/// Appends a deletion and returns the length on disk.
pub(super) fn delete(out: &mut BytesMut, key: &[u8], revision: u64) -> u32 {
    head(out, 0, key, revision, 0, 0)
}

fn head(out: &mut BytesMut, flags: u8, key: &[u8], mod_revision: u64, create_revision: u64, value_len: usize) -> u32 {
    let len = (RECORD_HEAD + key.len() + value_len) as u32;
    out.put_u32_le(len);
    out.put_u8(flags);
    out.put_u64_le(mod_revision);
    out.put_u64_le(create_revision);
    out.put_u16_le(key.len() as u16);
    out.put_slice(key);
    len
}

/// An upper bound of a put's length on disk.
pub(super) fn put_len_max(key: &[u8], value: &Packed) -> usize {
    RECORD_HEAD + key.len() + 4 + value.bytes.len()
}

/// A record found in a group's body, not yet unpacked.
pub(super) struct Raw<'a> {
    pub bytes: &'a [u8],
    pub key: &'a [u8],
    pub mod_revision: u64,
    create_revision: u64,
    flags: u8,
    value: &'a [u8],
    replaced_at: u64,
}

/// Appends a record as it is, noting what replaced it.
pub(super) fn copy(out: &mut BytesMut, record: &Raw<'_>, replaced_at: Option<u64>) {
    let replaced_at = replaced_at.unwrap_or(record.replaced_at);
    let flags = if replaced_at == 0 { record.flags } else { record.flags | REPLACED };
    let tail = if replaced_at == 0 { 0 } else { 8 };
    head(out, flags, record.key, record.mod_revision, record.create_revision, record.value.len() + tail);
    out.put_slice(record.value);
    if replaced_at != 0 {
        out.put_u64_le(replaced_at);
    }
}

impl Raw<'_> {
    /// `None` where the value does not unpack to its stated length.
    pub(super) fn unpack(&self) -> Option<Record> {
        let value = if self.flags & PUT == 0 {
            None
        } else if self.flags & COMPRESSED == 0 {
            Some(Bytes::copy_from_slice(self.value))
        } else {
            let raw_len = u32_at(self.value, 0)? as usize;
            if raw_len > RAW_MAX {
                return None;
            }
            Some(Bytes::from(lz4_flex::block::decompress(self.value.get(4..)?, raw_len).ok()?))
        };
        Some(Record {
            key: Bytes::copy_from_slice(self.key),
            mod_revision: self.mod_revision,
            create_revision: self.create_revision,
            value,
            replaced_at: self.replaced_at,
            disk_len: self.bytes.len() as u32,
        })
    }
}

/// Walks the records of a body whose checksum was right. `None` among them means that the body does not hold together all the same.
pub(super) fn records(body: &[u8]) -> impl Iterator<Item = Option<Raw<'_>>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let parsed = raw(rest);
        rest = parsed.as_ref().map_or(&[], |record| &rest[record.bytes.len()..]);
        Some(parsed)
    })
}

/// The record at the start of `bytes`.
pub(super) fn raw(bytes: &[u8]) -> Option<Raw<'_>> {
    let len = u32_at(bytes, 0)? as usize;
    let bytes = bytes.get(..len)?;
    let key_len = u16::from_le_bytes(bytes.get(21..23)?.try_into().ok()?) as usize;
    let key = bytes.get(RECORD_HEAD..RECORD_HEAD + key_len)?;
    let flags = bytes[4];
    let mut value = &bytes[RECORD_HEAD + key_len..];
    let mut replaced_at = 0;
    if flags & REPLACED != 0 {
        let at = value.len().checked_sub(8)?;
        replaced_at = u64_at(value, at)?;
        value = &value[..at];
    }
    // A record is at least its head long, so the walk always moves on.
    Some(Raw { bytes, key, flags, mod_revision: u64_at(bytes, 5)?, create_revision: u64_at(bytes, 13)?, value, replaced_at })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_record_reads_back_as_it_was_written(key in prop::collection::vec(any::<u8>(), 1..64), value in prop::collection::vec(0u8..4, 0..2000), rev in 1u64..) {
            let value = Bytes::from(value);
            let mut out = BytesMut::new();
            let len = put(&mut out, &key, rev, 7, &Packed::new(&value));
            delete(&mut out, &key, rev);
            let found: Vec<Record> = records(&out).map(|raw| raw.unwrap().unpack().unwrap()).collect();
            prop_assert_eq!(&found[0], &Record { key: key.clone().into(), mod_revision: rev, create_revision: 7, value: Some(value), replaced_at: 0, disk_len: len });
            prop_assert_eq!(&found[1].value, &None);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Header::decode(&bytes);
            for raw in records(&bytes).flatten() {
                let _ = raw.unpack();
            }
        }
    }
}
