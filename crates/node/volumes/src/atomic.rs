//! A payload becomes the content of a directory at one instant: readers see the old files or the new ones, never a mixture.
//!
//! Upstream's layout: the files live in a directory of their own, the link `..data` names it and is replaced by one rename, and each
//! top-level name is a link through `..data`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::payload::{File, check_path};
use crate::{Error, Payload, teardown};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Makes `directory` hold exactly `payload`, its files owned by group `gid` where one is given. Returns whether anything changed.
pub fn write(directory: &Path, payload: &Payload, gid: Option<u32>) -> Result<bool, Error> {
    for path in payload.keys() {
        check_path(path)?;
    }
    make_directory(directory, gid)?;
    let old = fs::read_link(directory.join(DATA)).ok();
    if old.as_ref().is_some_and(|old| same_content(&directory.join(old), payload)) {
        link_names(directory, payload)?;
        return Ok(false);
    }
    let fresh = fresh_name();
    write_files(&directory.join(&fresh), payload, gid)?;
    replace_link(directory, &fresh)?;
    link_names(directory, payload)?;
    if let Some(old) = old.filter(|old| is_generation(old)) {
        teardown::remove(&directory.join(old))?;
    }
    Ok(true)
}

fn fresh_name() -> String {
    let mut random = [0u8; 8];
    // Without randomness the clock alone still gives a new name: writers of one volume never run at once.
    let _ = getrandom::fill(&mut random);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("..{}_{:016x}", now.as_nanos(), u64::from_le_bytes(random))
}

/// A name that [`fresh_name`] can have made: what a foreign link names is never removed.
fn is_generation(name: &Path) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("..") && name.len() > 2 && !name.contains('/') && name != DATA)
}

fn make_directory(path: &Path, gid: Option<u32>) -> Result<(), Error> {
    let made = fs::DirBuilder::new().mode(0o755).create(path);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(Error::io("create directory", path)(error)),
        Ok(()) => {}
    }
    // Not subject to the umask.
    let mode = if gid.is_some() { 0o2775 } else { 0o755 };
    if gid.is_some() {
        std::os::unix::fs::chown(path, None, gid).map_err(Error::io("chown", path))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::io("chmod", path))
}

fn write_files(root: &Path, payload: &Payload, gid: Option<u32>) -> Result<(), Error> {
    make_directory(root, gid)?;
    for (path, file) in payload {
        let mut parent = root.to_owned();
        let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let name = parts.pop().unwrap_or_default();
        for part in parts {
            parent.push(part);
            make_directory(&parent, gid)?;
        }
        write_file(&parent.join(name), file, gid)?;
    }
    Ok(())
}

fn write_file(path: &Path, wanted: &File, gid: Option<u32>) -> Result<(), Error> {
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(Error::io("create", path))?;
    io::Write::write_all(&mut file, &wanted.bytes).map_err(Error::io("write", path))?;
    if gid.is_some() || wanted.uid.is_some() {
        std::os::unix::fs::fchown(&file, wanted.uid, gid).map_err(Error::io("chown", path))?;
    }
    // The group must be able to read what it owns (upstream: fsGroup adds 0440 to read-only volumes).
    let mode = if gid.is_some() { wanted.mode | 0o440 } else { wanted.mode };
    file.set_permissions(fs::Permissions::from_mode(mode & 0o777)).map_err(Error::io("chmod", path))
}

fn replace_link(directory: &Path, target: &str) -> Result<(), Error> {
    let (new, data) = (directory.join(NEW_DATA), directory.join(DATA));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &new)(error)),
        _ => {}
    }
    symlink(target, &new).map_err(Error::io("link", &new))?;
    fs::rename(&new, &data).map_err(Error::io("rename to", &data))
}

/// Each top-level name leads through `..data`; names of a former payload go.
fn link_names(directory: &Path, payload: &Payload) -> Result<(), Error> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').find(|part| !part.is_empty() && *part != ".")).collect();
    for name in &wanted {
        let link = directory.join(name);
        match symlink(PathBuf::from(DATA).join(name), &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("link", &link)(error)),
            _ => {}
        }
    }
    for entry in fs::read_dir(directory).map_err(Error::io("read", directory))? {
        let entry = entry.map_err(Error::io("read", directory))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let ours = fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(DATA));
        if ours && !name.starts_with("..") && !wanted.contains(name) {
            fs::remove_file(entry.path()).map_err(Error::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

fn same_content(root: &Path, payload: &Payload) -> bool {
    let mut found = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { return false };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { return false };
            if kind.is_dir() {
                pending.push(entry.path());
            } else {
                found += 1;
            }
        }
    }
    found == payload.len() && payload.iter().all(|(path, file)| fs::read(root.join(path)).is_ok_and(|bytes| bytes == file.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::File;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|(path, text)| ((*path).to_owned(), File { bytes: text.as_bytes().to_vec(), mode: 0o640, uid: None })).collect()
    }

    #[test]
    fn new_content_replaces_the_old_at_once_and_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        assert!(write(&volume, &payload(&[("a", "1"), ("dir/b", "2")]), None).unwrap());
        assert!(!write(&volume, &payload(&[("a", "1"), ("dir/b", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(volume.join("dir/b")).unwrap(), "2");
        assert_eq!(fs::read_link(volume.join("dir")).unwrap(), Path::new("..data/dir"));
        assert_eq!(fs::metadata(volume.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(write(&volume, &payload(&[("a", "3"), ("c", "4")]), None).unwrap());
        let mut names: Vec<String> =
            fs::read_dir(&volume).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with("..1"));
        names.sort();
        assert_eq!(names, ["..data", "a", "c"]);
        assert_eq!(fs::read_dir(&volume).unwrap().count(), 4);
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
    }

    #[test]
    fn a_file_of_one_user_is_that_users() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        // Whoever runs this may give files to himself.
        let own = fs::metadata(dir.path()).unwrap().uid();
        let file = File { bytes: b"x".to_vec(), mode: 0o600, uid: Some(own) };
        write(&dir.path().join("v"), &Payload::from([("token".to_owned(), file)]), None).unwrap();
        let written = fs::metadata(dir.path().join("v/token")).unwrap();
        assert_eq!((written.uid(), written.mode() & 0o777), (own, 0o600));
    }

    #[test]
    fn payload_that_would_leave_the_volume_writes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        let error = write(&volume, &payload(&[("../escape", "x")]), None).unwrap_err();
        assert_eq!(error.to_string(), "invalid path: must not contain '..': ../escape");
        assert!(!volume.exists());
    }
}
