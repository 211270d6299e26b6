//! One blob on its way here: hashed while it is written, gone on with where a connection broke.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use sha2::{Digest, Sha256};

use crate::manifest::Descriptor;
use crate::pull::{Progress, Reporter};
use crate::remote::{Failure, Remote, STALL};
use crate::store::{Store, hex};
use crate::{Result, io_error};

/// So many connections in a row may bring nothing.
const FRUITLESS_MAX: u32 = 4;
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const REPORT_EVERY: u64 = 4 << 20;

pub(crate) struct Download {
    path: PathBuf,
    file: std::fs::File,
    hash: Sha256,
    done: u64,
    reported: u64,
    digest: String,
    size: u64,
    report: Option<Reporter>,
}

impl Download {
    /// Begins, or goes on with what an earlier pull left.
    pub fn open(store: &Store, descriptor: &Descriptor, report: Option<Reporter>) -> io::Result<Self> {
        let name = format!("partial-{}", descriptor.digest.trim_start_matches("sha256:"));
        let path = store.directory.join("ingest").join(name);
        let mut file = std::fs::File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        let (mut hash, mut done) = (Sha256::new(), 0);
        let mut buffer = vec![0_u8; 256 << 10];
        loop {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            hash.update(buffer.get(..length).unwrap_or_default());
            done += length as u64;
        }
        let mut download =
            Self { path, file, hash, done, reported: done, digest: descriptor.digest.clone(), size: descriptor.size, report };
        if done > descriptor.size {
            download.restart()?;
        }
        Ok(download)
    }

    fn restart(&mut self) -> io::Result<()> {
        use std::io::Seek;
        self.file.set_len(0)?;
        self.file.rewind()?;
        (self.hash, self.done, self.reported) = (Sha256::new(), 0, 0);
        Ok(())
    }

    /// Takes what is missing from `remote`, over as many connections as it needs while each brings something. Another server may go on after
    /// an error.
    pub async fn from(&mut self, remote: &Remote) -> std::result::Result<(), Failure> {
        let (mut fruitless, mut backoff, mut began_late) = (0, BACKOFF_FIRST, self.done > 0);
        loop {
            let before = self.done;
            match self.once(remote).await {
                Ok(()) if self.is_whole() => return Ok(()),
                // What was put together from parts may be a mixture: once more, from the beginning.
                Ok(()) if began_late => {
                    self.restart().map_err(|error| Failure::Refused(error.to_string()))?;
                    began_late = false;
                }
                Ok(()) => {
                    let actual = format!("sha256:{}", hex(&self.hash.clone().finalize()));
                    self.restart().map_err(|error| Failure::Refused(error.to_string()))?;
                    return Err(Failure::Refused(format!("the content has digest {actual}, not {}", self.digest)));
                }
                Err(Failure::Unavailable(why)) => {
                    began_late = true;
                    fruitless = if self.done > before { 0 } else { fruitless + 1 };
                    // Another node is not waited for: there are others, and the registry.
                    if fruitless >= FRUITLESS_MAX || !remote.endpoint.is_registry && fruitless > 0 {
                        return Err(Failure::Unavailable(why));
                    }
                    tracing::debug!(digest = self.digest, bytes = self.done, why, "the download broke off; going on");
                    tokio::time::sleep(backoff).await;
                    backoff = if fruitless == 0 { BACKOFF_FIRST } else { backoff * 3 };
                }
                Err(other) => return Err(other),
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.done == self.size && format!("sha256:{}", hex(&self.hash.clone().finalize())) == self.digest
    }

    /// One connection: until all is here.
    async fn once(&mut self, remote: &Remote) -> std::result::Result<(), Failure> {
        if self.done == self.size {
            return Ok(());
        }
        let (response, begins) = remote.blob(&self.digest, self.done).await?;
        if begins != self.done {
            if begins != 0 {
                return Err(Failure::Refused(format!("asked for bytes from {} on, the answer begins at {begins}", self.done)));
            }
            // A server without ranges gives all of it again.
            self.restart().map_err(|error| Failure::Refused(error.to_string()))?;
        }
        let mut body = response.into_body();
        while self.done < self.size {
            let frame = tokio::time::timeout(STALL, body.frame()).await;
            let frame = frame.map_err(|_| Failure::Unavailable(format!("the download stalled for {} s", STALL.as_secs())))?;
            let frame = frame.ok_or_else(|| Failure::Unavailable(format!("unexpected EOF after {} of {} bytes", self.done, self.size)))?;
            let frame = frame.map_err(|error| Failure::Unavailable(crate::http::chain(&error)))?;
            if let Some(data) = frame.data_ref() {
                self.append(data)?;
            }
        }
        // More than the manifest says would not be seen otherwise.
        match tokio::time::timeout(STALL, body.frame()).await {
            Ok(Some(Ok(frame))) if frame.data_ref().is_some_and(|data| !data.is_empty()) => {
                Err(Failure::Refused(format!("the content has more than the {} bytes that the manifest says", self.size)))
            }
            _ => Ok(()),
        }
    }

    fn append(&mut self, data: &[u8]) -> std::result::Result<(), Failure> {
        if data.len() as u64 > self.size - self.done {
            return Err(Failure::Refused(format!("the content has more than the {} bytes that the manifest says", self.size)));
        }
        // Page cache takes it without waiting for a disk; a full disk is told at once.
        self.file.write_all(data).map_err(|error| Failure::Refused(format!("write {}: {error}", self.path.display())))?;
        self.hash.update(data);
        self.done += data.len() as u64;
        if let Some(report) = &self.report
            && (self.done - self.reported >= REPORT_EVERY || self.done == self.size)
        {
            self.reported = self.done;
            report(Progress::Moved { digest: self.digest.clone(), bytes: self.done, of: self.size });
        }
        Ok(())
    }

    /// What is whole becomes a blob of the store.
    pub async fn keep(self, store: &Arc<Store>) -> Result<()> {
        let store = store.clone();
        let adopted = tokio::task::spawn_blocking(move || store.adopt_blob(&self.path, &self.digest)).await;
        adopted.map_err(|error| io_error("keep a blob")(io::Error::other(error)))?
    }
}
