//! The entries of a tar stream that nobody vouches for: every length is bounded before anything is kept in memory.
//!
//! GNU long names and pax records are applied; sparse files are refused (no image tool writes them).

use std::io::{self, Read};

use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// A long name or a set of pax records; the kernel takes 4,096 bytes of a path and 64 KiB of an attribute.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// One entry's header with its extensions applied.
#[derive(Debug)]
pub(crate) struct Entry {
    pub kind: EntryType,
    pub path: Vec<u8>,
    /// The target of a link.
    pub link: Vec<u8>,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    pub device: (u32, u32),
    /// Extended attributes (pax `SCHILY.xattr.`).
    pub attributes: Vec<(String, Vec<u8>)>,
}

/// Reads entries one after the other; what is left of a body is skipped.
pub(crate) struct Entries<R> {
    from: R,
    /// Of the present body, and what pads it to a block.
    left: u64,
    padding: u64,
}

#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Vec<(String, Vec<u8>)>,
}

fn refuse(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// An empty field is zero, as Go reads it; a malformed one is an error.
fn number<T: Default>(field: &[u8], parsed: io::Result<T>) -> io::Result<T> {
    if field.iter().all(|b| matches!(b, 0 | b' ')) { Ok(T::default()) } else { parsed }
}

fn small(value: u64, what: &str) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| refuse(format!("{what} is too large")))
}

/// Decimal seconds with an optional fraction; before 1970 is 1970.
fn seconds(text: &str) -> Option<(i64, i64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    Some(if whole < 0 { (0, 0) } else { (whole, digits.parse().ok()?) })
}

/// `<length> <key>=<value>\n`, again and again.
fn records(mut bytes: &[u8]) -> io::Result<Vec<(String, Vec<u8>)>> {
    let bad = || refuse("malformed pax records");
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|b| *b == b' ').ok_or_else(bad)?;
        let length = bytes.get(..space).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok()).ok_or_else(bad)?;
        let record = bytes.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(bad)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let (key, value) = record.split_at(equals);
        found.push((String::from_utf8_lossy(key).into_owned(), value.get(1..).unwrap_or_default().to_vec()));
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(found)
}

impl<R: Read> Entries<R> {
    pub fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    /// The next entry; `None` at the archive's end.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            let rest = self.left + self.padding;
            (self.left, self.padding) = (0, 0);
            if io::copy(&mut (&mut self.from).take(rest), &mut io::sink())? < rest {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let Some(header) = self.header()? else { return Ok(None) };
            let fields = header.as_old();
            let size = number(&fields.size, header.entry_size())?;
            match header.entry_type() {
                EntryType::GNULongName => extensions.path = Some(self.name(size)?),
                EntryType::GNULongLink => extensions.link = Some(self.name(size)?),
                EntryType::XHeader => {
                    let found = records(&self.extension(size)?)?;
                    extensions.records.extend(found);
                }
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                EntryType::GNUSparse => return Err(refuse("sparse files are not supported")),
                kind => return self.entry(&header, kind, size, extensions).map(Some),
            }
        }
    }

    /// The present entry's content.
    pub fn body(&mut self) -> Body<'_, R> {
        Body(self)
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0_u8; BLOCK as usize];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.from.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        // The sum counts its own field as spaces.
        let sum: u32 = block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
        if header.cksum().ok() != Some(sum) {
            return Err(refuse("not a tar header: its checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENSION_BYTES_MAX {
            return Err(refuse(format!("an extended header of {size} bytes")));
        }
        let mut bytes = Vec::new();
        (&mut self.from).take(size).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.padding = size.next_multiple_of(BLOCK) - size;
        Ok(bytes)
    }

    fn name(&mut self, size: u64) -> io::Result<Vec<u8>> {
        let mut name = self.extension(size)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn entry(&mut self, header: &Header, kind: EntryType, size: u64, extensions: Extensions) -> io::Result<Entry> {
        let fields = header.as_old();
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let device = |field: io::Result<Option<u32>>| field.map(Option::unwrap_or_default);
        let mut entry = Entry {
            kind,
            path: extensions.path.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: extensions.link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned)).unwrap_or_default(),
            size,
            mode: number(&fields.mode, header.mode())? & 0o7777,
            uid: 0,
            gid: 0,
            modified: (i64::try_from(number(&fields.mtime, header.mtime())?).unwrap_or(0), 0),
            device: (0, 0),
            attributes: Vec::new(),
        };
        let (mut uid, mut gid) = (number(&fields.uid, header.uid())?, number(&fields.gid, header.gid())?);
        for (key, value) in extensions.records {
            let decimal = || text(&value).parse::<u64>().map_err(|_| refuse(format!("pax record {key} is no number")));
            match key.as_str() {
                "path" => entry.path = value,
                "linkpath" => entry.link = value,
                "size" => entry.size = decimal()?,
                "uid" => uid = decimal()?,
                "gid" => gid = decimal()?,
                "mtime" => entry.modified = seconds(&text(&value)).ok_or_else(|| refuse("pax record mtime is no time"))?,
                sparse if sparse.starts_with("GNU.sparse.") => return Err(refuse("sparse files are not supported")),
                other => {
                    if let Some(attribute) = other.strip_prefix("SCHILY.xattr.") {
                        entry.attributes.push((attribute.to_owned(), value));
                    }
                }
            }
        }
        (entry.uid, entry.gid) = (small(uid, "the owner's number")?, small(gid, "the group's number")?);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            entry.device = (device(header.device_major())?, device(header.device_minor())?);
        }
        // Archives from before POSIX mark directories by their name alone.
        if kind.is_file() && entry.path.ends_with(b"/") {
            entry.kind = EntryType::Directory;
        }
        // Links may state the size of what they lead to; they have no content.
        if !entry.kind.is_file() && !entry.kind.is_contiguous() {
            entry.size = if entry.kind.is_dir() { entry.size } else { 0 };
        }
        if entry.size > i64::MAX as u64 {
            return Err(refuse(format!("a size of {} bytes", entry.size)));
        }
        (self.left, self.padding) = (entry.size, entry.size.next_multiple_of(BLOCK) - entry.size);
        Ok(entry)
    }
}

/// Ends with the entry; a stream that ends before is an error.
pub(crate) struct Body<'a, R>(&'a mut Entries<R>);

impl<R: Read> Read for Body<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.0.left).unwrap_or(usize::MAX).min(into.len());
        if wanted == 0 {
            return Ok(0);
        }
        let length = self.0.from.read(into.get_mut(..wanted).unwrap_or_default())?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.left -= length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: EntryType, path: &str, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    fn blocks(parts: &[(&Header, &[u8])]) -> Vec<u8> {
        let mut all = Vec::new();
        for (header, body) in parts {
            all.extend_from_slice(header.as_bytes());
            all.extend_from_slice(body);
            all.resize(all.len().next_multiple_of(512), 0);
        }
        all
    }

    #[test]
    fn pax_records_and_long_names_go_over_the_header() {
        let pax = b"14 path=a/b/c\n19 mtime=12.500000\n25 SCHILY.xattr.user.x=y\n12 uid=1000\n";
        let stream = blocks(&[
            (&header(EntryType::XHeader, "x", pax.len() as u64), pax),
            (&header(EntryType::Regular, "short", 2), b"hi"),
            (&header(EntryType::GNULongName, "L", 5), b"long\0"),
            (&header(EntryType::Directory, "d", 0), b""),
        ]);
        let mut entries = Entries::new(stream.as_slice());
        let first = entries.next().unwrap().unwrap();
        assert_eq!((first.path.as_slice(), first.modified, first.uid), (b"a/b/c".as_slice(), (12, 500_000_000), 1000));
        assert_eq!(first.attributes, [("user.x".to_owned(), b"y".to_vec())]);
        let mut body = String::new();
        entries.body().read_to_string(&mut body).unwrap();
        assert_eq!(body, "hi");
        assert_eq!(entries.next().unwrap().unwrap().path, b"long");
        assert!(entries.next().unwrap().is_none());
    }

    #[test]
    fn lengths_that_lie_are_errors_and_nothing_is_allocated_for_them() {
        let huge = header(EntryType::XHeader, "x", 1 << 40);
        let cut = header(EntryType::Regular, "f", 1000);
        let sparse = header(EntryType::GNUSparse, "s", 0);
        for (stream, reason) in [
            (blocks(&[(&huge, b"")]), "extended header of 1099511627776 bytes"),
            (blocks(&[(&header(EntryType::XHeader, "x", 9), b"9999 a=b\n")]), "malformed pax"),
            (blocks(&[(&sparse, b"")]), "sparse"),
            (vec![b'x'; 512], "checksum"),
            (vec![b'x'; 100], "unexpected end"),
        ] {
            let error = Entries::new(stream.as_slice()).next().unwrap_err().to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
        let stream = blocks(&[(&cut, b"short")]);
        let mut entries = Entries::new(stream.as_slice());
        entries.next().unwrap();
        assert!(io::copy(&mut entries.body(), &mut io::sink()).is_err());
        let mut entries = Entries::new(stream.as_slice());
        entries.next().unwrap();
        assert!(entries.next().is_err());
    }
}
