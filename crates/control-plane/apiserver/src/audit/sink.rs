//! The audit file: appended to by a thread of its own, rotated by size.
//!
//! Lines wait in one bounded buffer, so that a slow disk never slows requests; lines that find it full are counted and reported, not waited for.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a first line waits for others.
const GATHER: Duration = Duration::from_millis(5);
/// Lines waiting for the disk.
const BYTES_MAX: usize = 8 << 20;
/// What a buffer keeps of its room once it was written.
const BYTES_KEPT: usize = 1 << 20;

/// The way to the audit file. What it was sent is in the file when it is dropped.
pub struct Sink {
    waiting: Arc<Waiting>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Waiting {
    lines: Mutex<Lines>,
    woken: Condvar,
}

#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    closed: bool,
}

impl Sink {
    /// Opens the file (mode 600, appended to) and starts its writer thread, which ends with the sink. A file of `bytes_max` is renamed to
    /// `<file>.1`, that one to `<file>.2` and so on; `backups` of them are kept.
    pub fn open(path: &Path, bytes_max: u64, backups: usize) -> io::Result<Self> {
        let mut log = Log::open(path, bytes_max, backups)?;
        let waiting = Arc::new(Waiting::default());
        let source = waiting.clone();
        let write = move || {
            let mut batch = Vec::new();
            while source.take(&mut batch) {
                if let Err(error) = log.append(&batch) {
                    tracing::error!(%error, "audit: the file cannot be written");
                }
            }
        };
        let writer = std::thread::Builder::new().name("audit".into()).spawn(write)?;
        Ok(Self { waiting, writer: Some(writer) })
    }

    /// `false` when there is no room.
    pub fn send(&self, line: &[u8]) -> bool {
        let mut lines = self.waiting.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.bytes.len() + line.len() > BYTES_MAX {
            return false;
        }
        let first = lines.bytes.is_empty();
        lines.bytes.extend_from_slice(line);
        lines.bytes.push(b'\n');
        drop(lines);
        if first {
            self.waiting.woken.notify_one();
        }
        true
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.waiting.lines.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.waiting.woken.notify_one();
        // A writer that panicked has said so, and there is nobody to tell.
        let _ = self.writer.take().map(JoinHandle::join);
    }
}

impl Waiting {
    /// Waits for lines and takes all of them; `false` when there will be none any more.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        batch.clear();
        batch.shrink_to(BYTES_KEPT);
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = self.woken.wait_while(lines, |lines| lines.bytes.is_empty() && !lines.closed).unwrap_or_else(PoisonError::into_inner);
        let closed = lines.closed;
        drop(lines);
        if !closed {
            // Lines come in crowds: a request should not have to wake this thread for each.
            std::thread::sleep(GATHER);
        }
        std::mem::swap(batch, &mut self.lines.lock().unwrap_or_else(PoisonError::into_inner).bytes);
        !batch.is_empty()
    }
}

struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    bytes_max: u64,
    backups: usize,
}

impl Log {
    fn open(path: &Path, bytes_max: u64, backups: usize) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, bytes_max, backups })
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + lines.len() as u64 > self.bytes_max {
            self.rotate()?;
        }
        self.file.write_all(lines)?;
        self.size += lines.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: usize| PathBuf::from(format!("{}.{number}", self.path.display()));
        for number in (1..self.backups).rev() {
            let _ = std::fs::rename(numbered(number), numbered(number + 1));
        }
        match self.backups {
            0 => std::fs::remove_file(&self.path)?,
            _ => std::fs::rename(&self.path, numbered(1))?,
        }
        *self = Self::open(&self.path, self.bytes_max, self.backups)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_in_the_file_when_the_sink_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let sink = Sink::open(&path, 1 << 30, 1).unwrap();
        for line in 0..1_000 {
            assert!(sink.send(line.to_string().as_bytes()));
        }
        assert!(!sink.send(&vec![b'x'; BYTES_MAX + 1]), "there is never room for this one");
        drop(sink);
        let wanted: String = (0..1_000).map(|line| format!("{line}\n")).collect();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), wanted);
    }

    #[test]
    fn a_full_file_makes_room_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut log = Log::open(&path, 10, 2).unwrap();
        for line in ["first--\n", "second-\n", "third--\n", "fourth-\n"] {
            log.append(line.as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        assert_eq!([read("audit.log"), read("audit.log.1"), read("audit.log.2")], ["fourth-\n", "third--\n", "second-\n"]);
        assert_eq!(read("audit.log.3"), "");
    }
}
