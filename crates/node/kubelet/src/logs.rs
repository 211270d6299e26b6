//! Reading container logs in the CRI format: `<RFC 3339 time> <stdout|stderr> <F|P> <text>`, one line each; `P` continues in the next line.
//!
//! Semantics as upstream's `pkg/kubelet/kuberuntime/logs`: `tailLines` counts lines of the file, `sinceTime` and `limitBytes` apply after
//! it, following survives rotation of the file.

pub mod rotate;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;

/// What of a log is wanted (`PodLogOptions`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub tail_lines: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    /// `stdout` or `stderr`; both where absent.
    pub stream: Option<String>,
    /// What comes after the log was opened is wanted, too.
    pub follow: bool,
}

/// How much is read at a time, in bytes.
const CHUNK: usize = 64 << 10;
/// A line without an end is given up beyond this many bytes.
const LINE_MAX: usize = 1 << 20;

/// Reads a log from where it starts to where it ends now; again and again when followed.
pub struct Reader {
    path: PathBuf,
    file: File,
    inode: u64,
    /// A new file was seen; the old one is read once more, since the runtime may still have written to it in that moment.
    rotated: bool,
    options: Options,
    /// Read but not yet a whole line.
    rest: BytesMut,
    /// Bytes until where the log ended when it was opened; a program that writes faster than its reader takes has no other end.
    until_end: Option<u64>,
    /// What may still be given out.
    left: Option<u64>,
    /// The last text ended without a line feed (a `P` line).
    inside_line: bool,
}

impl Reader {
    /// Opens the log and finds the first wanted line. Blocking.
    pub fn open(path: &Path, options: Options) -> io::Result<Self> {
        let mut file = File::open(path)?;
        if let Some(lines) = options.tail_lines {
            let at = tail_start(&mut file, lines)?;
            file.seek(SeekFrom::Start(at))?;
        }
        let metadata = file.metadata()?;
        let (inode, left) = (metadata.ino(), options.limit_bytes);
        let until_end = (!options.follow).then_some(metadata.len().saturating_sub(file.stream_position()?));
        Ok(Self { path: path.into(), file, inode, rotated: false, options, rest: BytesMut::new(), until_end, left, inside_line: false })
    }

    /// The next text, or `None` at the present end. Blocking.
    pub fn read(&mut self) -> io::Result<Option<Bytes>> {
        while !self.is_exhausted() {
            let before = self.rest.len();
            let wanted = self.until_end.map_or(CHUNK, |bytes| usize::try_from(bytes).unwrap_or(CHUNK).min(CHUNK));
            self.rest.resize(before + wanted, 0);
            let read = self.file.read(&mut self.rest[before..])?;
            self.rest.truncate(before + read);
            if let Some(bytes) = &mut self.until_end {
                *bytes = bytes.saturating_sub(read as u64);
            }
            if read == 0 {
                if self.options.follow && self.follow_rotation()? {
                    continue;
                }
                return Ok(None);
            }
            let text = self.take_lines();
            if !text.is_empty() {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    /// Nothing more may be given out.
    pub fn is_exhausted(&self) -> bool {
        self.left == Some(0)
    }

    /// Moves to the new file when the old one was rotated away and is read to its end.
    fn follow_rotation(&mut self) -> io::Result<bool> {
        let Ok(metadata) = std::fs::metadata(&self.path) else { return Ok(false) };
        if metadata.ino() == self.inode {
            return Ok(false);
        }
        self.rotated = !self.rotated;
        if self.rotated {
            return Ok(false);
        }
        self.file = File::open(&self.path)?;
        self.inode = self.file.metadata()?.ino();
        self.rest.clear();
        Ok(true)
    }

    fn take_lines(&mut self) -> Bytes {
        let mut text = BytesMut::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(end + 1);
            self.render(&line[..end], &mut text);
        }
        if self.rest.len() > LINE_MAX {
            self.rest.clear();
        }
        if let Some(left) = &mut self.left {
            text.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= text.len() as u64;
        }
        text.freeze()
    }

    fn render(&mut self, line: &[u8], text: &mut BytesMut) {
        let Some(entry) = Entry::parse(line) else { return };
        if self.options.stream.as_ref().is_some_and(|wanted| wanted.as_bytes() != entry.stream) {
            return;
        }
        if self.options.since.is_some_and(|since| entry.time().is_some_and(|time| time < since)) {
            return;
        }
        if self.options.timestamps && !self.inside_line {
            text.extend_from_slice(entry.timestamp);
            text.extend_from_slice(b" ");
        }
        text.extend_from_slice(entry.text);
        self.inside_line = !entry.full;
        if entry.full {
            text.extend_from_slice(b"\n");
        }
    }
}

struct Entry<'a> {
    timestamp: &'a [u8],
    stream: &'a [u8],
    full: bool,
    text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// `None` for a line that is not in the format.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (timestamp, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let full = match tag.split(|byte| *byte == b':').next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { timestamp, stream, full, text: parts.next().unwrap_or(&[]) })
    }
    fn time(&self) -> Option<Timestamp> {
        std::str::from_utf8(self.timestamp).ok()?.parse().ok()
    }
}

/// Where the last `lines` lines begin.
fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let mut at = size;
    let mut found = 0;
    let mut block = vec![0; CHUNK];
    while at > 0 {
        let len = at.min(CHUNK as u64);
        at -= len;
        file.seek(SeekFrom::Start(at))?;
        let block = &mut block[..len as usize];
        file.read_exact(block)?;
        for (offset, byte) in block.iter().enumerate().rev() {
            let position = at + offset as u64;
            // The file's last line feed ends its last line; it starts none.
            if *byte == b'\n' && (lines == 0 || position + 1 != size) {
                found += 1;
                if found >= lines.max(1) {
                    return Ok(position + 1);
                }
            }
        }
    }
    Ok(if lines == 0 { size } else { 0 })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LOG: &str = "2026-01-02T03:04:05.000000001Z stdout F one\n\
                       2026-01-02T03:04:06Z stderr F two\n\
                       2026-01-02T03:04:07Z stdout P thr\n\
                       2026-01-02T03:04:07Z stdout F ee\n\
                       nonsense\n\
                       2026-01-02T03:04:08Z stdout F \n\
                       2026-01-02T03:04:09Z stdout F five\n";

    fn read(options: Options) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let mut reader = Reader::open(&path, options).unwrap();
        let mut text = Vec::new();
        while let Some(chunk) = reader.read().unwrap() {
            text.extend_from_slice(&chunk);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn each_option_selects_what_upstream_selects() {
        let none = Options::default;
        let cases = [
            (none(), "one\ntwo\nthree\n\nfive\n"),
            (Options { tail_lines: Some(1), ..none() }, "five\n"),
            (Options { tail_lines: Some(0), ..none() }, ""),
            (Options { tail_lines: Some(100), ..none() }, "one\ntwo\nthree\n\nfive\n"),
            (Options { stream: Some("stderr".into()), ..none() }, "two\n"),
            (Options { since: Some("2026-01-02T03:04:08Z".parse().unwrap()), ..none() }, "\nfive\n"),
            (Options { limit_bytes: Some(6), ..none() }, "one\ntw"),
            (Options { tail_lines: Some(1), timestamps: true, ..none() }, "2026-01-02T03:04:09Z five\n"),
        ];
        for (options, expected) in cases {
            assert_eq!(read(options.clone()), expected, "{options:?}");
        }
    }

    #[test]
    fn a_log_that_is_not_followed_ends_where_it_ended_when_it_was_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "2026-01-02T03:04:05Z stdout F one\n2026-01-02T03:04:05Z stdout F two\n").unwrap();
        let mut reader = Reader::open(&path, Options { tail_lines: Some(1), ..Options::default() }).unwrap();
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut log| log.write_all(b"2026-01-02T03:04:06Z stdout F three\n"))
            .unwrap();
        assert_eq!(reader.read().unwrap().unwrap(), "two\n");
        assert_eq!(reader.read().unwrap(), None);
    }

    #[test]
    fn following_goes_on_in_the_new_file_after_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "2026-01-02T03:04:05Z stdout F old\n").unwrap();
        let mut reader = Reader::open(&path, Options { follow: true, ..Options::default() }).unwrap();
        assert_eq!(reader.read().unwrap().unwrap(), "old\n");
        assert_eq!(reader.read().unwrap(), None);
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, "2026-01-02T03:04:06Z stdout F new\n").unwrap();
        std::fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join("0.log.1"))
            .and_then(|mut old| old.write_all(b"2026-01-02T03:04:06Z stdout F late\n"))
            .unwrap();
        assert_eq!(reader.read().unwrap().unwrap(), "late\n");
        assert_eq!(reader.read().unwrap(), None);
        assert_eq!(reader.read().unwrap().unwrap(), "new\n");
    }
}
