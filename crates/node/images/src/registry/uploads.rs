//! Blobs on their way into the registry, in as many pieces as the client likes.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::store::{Store, hex};
use crate::unpack::Limits;
use crate::{Error, Result, io_error};

/// Uploads at the same time; a client that forgets its own loses them after a while.
const SESSIONS_MAX: usize = 256;
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// One upload: what has come, and its digest so far.
pub(super) struct Session {
    pub repository: String,
    path: PathBuf,
    file: File,
    hash: Sha256,
    pub size: u64,
    touched: Instant,
}

impl Drop for Session {
    fn drop(&mut self) {
        // After it became a blob there is nothing of this name.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Session {
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.size.saturating_add(bytes.len() as u64) > Limits::default().bytes {
            return Err(Error::TooLarge(format!("the blob has more than {} bytes", Limits::default().bytes)));
        }
        self.file.write_all(bytes).map_err(io_error("write an upload"))?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Makes it a blob, if it is what the client says.
    pub fn finish(self, store: &Store, digest: &str) -> Result<()> {
        let actual = format!("sha256:{}", hex(&self.hash.clone().finalize()));
        if actual != digest {
            return Err(Error::Digest { what: "the upload".into(), expected: digest.to_owned(), actual });
        }
        // Said before it is there: nothing may collect it in between.
        store.lock().uploaded.insert(digest.to_owned(), Instant::now());
        store.adopt_blob(&self.path, digest)
    }
}

/// All uploads under way, by a name that nobody can guess.
#[derive(Default)]
pub(super) struct Uploads(Mutex<HashMap<String, Session>>);

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin(&self, store: &Arc<Store>, repository: &str) -> Result<String> {
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random).map_err(|error| io_error("name an upload")(std::io::Error::other(error.to_string())))?;
        let (id, path) = (hex(&random), store.temporary()?);
        let file = File::create(&path).map_err(io_error("write an upload"))?;
        let mut sessions = self.lock();
        sessions.retain(|_, session| session.touched.elapsed() < FORGOTTEN);
        if sessions.len() >= SESSIONS_MAX {
            return Err(Error::TooLarge(format!("{SESSIONS_MAX} uploads are under way")));
        }
        let session = Session { repository: repository.to_owned(), path, file, hash: Sha256::new(), size: 0, touched: Instant::now() };
        sessions.insert(id.clone(), session);
        Ok(id)
    }

    /// For its next piece: nobody else has it meanwhile.
    pub fn take(&self, id: &str, repository: &str) -> Option<Session> {
        let mut sessions = self.lock();
        if sessions.get(id)?.repository != repository {
            return None;
        }
        sessions.remove(id)
    }

    pub fn put_back(&self, id: &str, mut session: Session) {
        session.touched = Instant::now();
        self.lock().insert(id.to_owned(), session);
    }

    pub fn size(&self, id: &str, repository: &str) -> Option<u64> {
        self.lock().get(id).filter(|session| session.repository == repository).map(|session| session.size)
    }
}
