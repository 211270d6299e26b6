//! Packed layers, configurations and manifests as they came, by digest: what registries, archives and other nodes are given.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::manifest::DOCUMENT_BYTES_MAX;
use crate::reference::is_digest;
use crate::store::{Store, hex};
use crate::{Error, Result, io_error};

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

impl Store {
    /// Where a blob lies or would lie; `None` for what is no digest.
    pub(crate) fn blob_path(&self, digest: &str) -> Option<PathBuf> {
        let name = digest.strip_prefix("sha256:").filter(|_| is_digest(digest))?;
        Some(self.directory.join("blobs").join("sha256").join(name))
    }

    pub fn has_blob(&self, digest: &str) -> bool {
        self.blob_path(digest).is_some_and(|path| path.is_file())
    }

    pub fn blob(&self, digest: &str) -> Result<File> {
        let path = self.blob_path(digest).ok_or_else(|| Error::Missing(digest.to_owned()))?;
        File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::Missing(digest.to_owned()),
            _ => io_error(format!("open blob {digest}"))(error),
        })
    }

    /// A manifest, an index or a configuration.
    pub fn document(&self, digest: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = self.blob(digest)?;
        file.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io_error(format!("read blob {digest}")))?;
        if digest_of(&bytes) != digest {
            return Err(Error::Digest { what: "a stored document".into(), expected: digest.to_owned(), actual: digest_of(&bytes) });
        }
        Ok(bytes)
    }

    /// Keeps bytes; their digest.
    pub(crate) fn add_document(&self, bytes: &[u8]) -> Result<String> {
        let digest = digest_of(bytes);
        if !self.has_blob(&digest) {
            let temporary = self.temporary()?;
            let mut file = File::create(&temporary).map_err(io_error("write a document"))?;
            file.write_all(bytes).map_err(io_error("write a document"))?;
            self.adopt_blob(&temporary, &digest)?;
        }
        Ok(digest)
    }

    /// Makes a finished file, whose digest has been verified, a blob, and takes it away from where it was.
    pub(crate) fn adopt_blob(&self, file: &Path, digest: &str) -> Result<()> {
        self.link_blob(file, digest)?;
        std::fs::remove_file(file).map_err(io_error(format!("keep blob {digest}")))
    }

    /// Makes a finished file, whose digest has been verified, a blob; the file stays for whoever else reads it, and neither is written again.
    pub(crate) fn link_blob(&self, file: &Path, digest: &str) -> Result<()> {
        let path = self.blob_path(digest).ok_or_else(|| Error::Missing(digest.to_owned()))?;
        let step = || format!("keep blob {digest}");
        // What has its name must survive a power loss whole.
        File::open(file).and_then(|file| file.sync_data()).map_err(io_error(step()))?;
        match std::fs::hard_link(file, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked.map_err(io_error(step())),
        }
    }
}
