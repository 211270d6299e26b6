//! The audit file: appended to by a thread of its own, rotated by size.
//!
//! Lines wait in a bounded queue, so that a slow disk never slows requests; lines that find it full are counted and reported, not waited for.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

/// How long a first line waits for others.
const GATHER: Duration = Duration::from_millis(5);
/// Lines waiting for the disk.
const QUEUE: usize = 8_192;

/// The way to the audit file.
pub struct Sink(mpsc::Sender<Vec<u8>>);

impl Sink {
    /// Opens the file (mode 600, appended to) and starts its writer thread, which ends with the sink. A file of `bytes_max` is renamed to
    /// `<file>.1`, that one to `<file>.2` and so on; `backups` of them are kept.
    pub fn open(path: &Path, bytes_max: u64, backups: usize) -> io::Result<Self> {
        let mut log = Log::open(path, bytes_max, backups)?;
        let (sender, mut lines) = mpsc::channel::<Vec<u8>>(QUEUE);
        let write = move || {
            while let Some(mut batch) = lines.blocking_recv() {
                batch.push(b'\n');
                // Lines come in crowds: a request should not have to wake this thread for each.
                std::thread::sleep(GATHER);
                while let Ok(line) = lines.try_recv() {
                    batch.extend_from_slice(&line);
                    batch.push(b'\n');
                }
                if let Err(error) = log.append(&batch) {
                    tracing::error!(%error, "audit: the file cannot be written");
                }
            }
        };
        std::thread::Builder::new().name("audit".into()).spawn(write)?;
        Ok(Self(sender))
    }

    /// `false` when the queue is full.
    pub fn send(&self, line: Vec<u8>) -> bool {
        self.0.try_send(line).is_ok()
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
