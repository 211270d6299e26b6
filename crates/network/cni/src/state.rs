//! Attachments on disk: a JSON file per sandbox, replaced by rename. Not synced: after a power loss the namespaces are gone too.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::Attachment;

const SUFFIX: &str = ".json";
/// Of a file that is being written.
const UNFINISHED: &str = "tmp";
/// Holds the addresses given out last, so that a restart does not begin again with the first.
const LAST: &str = "last";

#[derive(Debug)]
pub struct Files(PathBuf);

impl Files {
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self(directory.to_owned()))
    }
    /// Everything readable; an unreadable file was cut short by a power loss and is removed, and so is what a killed daemon was writing. To be
    /// asked once, before anything is saved.
    pub fn load(&self) -> io::Result<Vec<Attachment>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == UNFINISHED) {
                fs::remove_file(&path)?;
            }
            if !path.to_string_lossy().ends_with(SUFFIX) {
                continue;
            }
            match serde_json::from_slice(&fs::read(&path)?) {
                Ok(attachment) => found.push(attachment),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "removing an unreadable state file of the pod network");
                    fs::remove_file(&path)?;
                }
            }
        }
        Ok(found)
    }
    pub fn save(&self, attachment: &Attachment) -> io::Result<()> {
        self.replace(&self.path(&attachment.sandbox_id)?, &serde_json::to_vec(attachment)?)
    }
    pub fn remove(&self, sandbox_id: &str) -> io::Result<()> {
        match fs::remove_file(self.path(sandbox_id)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
    pub fn save_last(&self, addresses: &[IpAddr]) -> io::Result<()> {
        self.replace(&self.0.join(LAST), &serde_json::to_vec(addresses)?)
    }
    pub fn load_last(&self) -> Vec<IpAddr> {
        fs::read(self.0.join(LAST)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }
    /// Readers see the old content or the new, never a part.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension(UNFINISHED);
        fs::write(&temporary, content)?;
        fs::rename(&temporary, path)
    }
    fn path(&self, sandbox_id: &str) -> io::Result<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if sandbox_id.is_empty() || sandbox_id.len() > 200 || !sandbox_id.bytes().all(plain) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a sandbox id is 1 to 200 letters, digits, '-' and '_'"));
        }
        Ok(self.0.join(format!("{sandbox_id}{SUFFIX}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_a_cut_file_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        let attachment = Attachment { sandbox_id: "a1".into(), addresses: vec!["10.0.0.2".parse().unwrap()], host_link: "sp1".into() };
        files.save(&attachment).unwrap();
        fs::write(directory.path().join("b2.json"), b"{\"sandbox").unwrap();
        fs::write(directory.path().join("c3.tmp"), b"{\"sandbox").unwrap();
        assert_eq!(files.load().unwrap(), [attachment]);
        assert!(!directory.path().join("b2.json").exists() && !directory.path().join("c3.tmp").exists());
        files.remove("a1").unwrap();
        files.remove("a1").unwrap();
        assert_eq!(files.load().unwrap(), []);
    }

    #[test]
    fn a_sandbox_id_cannot_leave_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        for id in ["", "../x", "a/b", "a.b", "a\0"] {
            assert!(files.remove(id).is_err(), "{id:?}");
        }
    }
}
