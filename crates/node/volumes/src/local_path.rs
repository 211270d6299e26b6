//! Volumes of the built-in provisioner: a directory of the node's disk, or a file that is shown as a block device. Snapshots of them are copies
//! beside them, which nobody writes to.
//!
//! A directory with its own name is complete: what is being copied has another name until all of it is on the disk.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::{Error, copy, loop_device, quota, teardown};

/// What holds a block volume, in its directory.
pub const IMAGE: &str = "disk.img";

/// The folder of snapshots, beside the volumes that they are of: in their file system, so that blocks may be shared.
const SNAPSHOTS: &str = ".snapshots";
/// A snapshot's content, in its directory.
const DATA: &str = "data";
/// Bytes of the volume that it is of, in its directory.
const SIZE: &str = "size";

/// How a volume's size is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// By a project quota, or because it is a file of that size.
    Limited,
    /// The file system has no project quotas: the volume may grow as large as the disk.
    Open,
}

/// Makes the volume at `path` with room for `bytes`, or gives it that room where it is there; it never shrinks. Needs root for limits.
pub fn make(path: &Path, bytes: u64, block: bool) -> Result<Kept, Error> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(parent).map_err(Error::io("create directory", parent))?;
    }
    let made = fs::DirBuilder::new().mode(0o777).create(path);
    match made {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io("create directory", path)(error)),
        // Not subject to the umask.
        Ok(()) => {
            fs::set_permissions(path, fs::Permissions::from_mode(if block { 0o700 } else { 0o777 })).map_err(Error::io("chmod", path))?
        }
    }
    if !block {
        let limited = quota::limit(path, project(path), bytes)?;
        return Ok(if limited { Kept::Limited } else { Kept::Open });
    }
    let image = path.join(IMAGE);
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&image).map_err(Error::io("create", &image))?;
    if file.metadata().map_err(Error::io("stat", &image))?.len() < bytes {
        file.set_len(bytes).map_err(Error::io("grow", &image))?;
        loop_device::grow(&image)?;
    }
    Ok(Kept::Limited)
}

/// The same of a volume that begins as a copy of `from`: another volume, or what a snapshot holds ([`data_of`]). What failed
/// leaves nothing.
pub fn fill(path: &Path, bytes: u64, block: bool, from: &Path) -> Result<Kept, Error> {
    // A snapshot always has content; a volume of which nothing is on the disk yet is empty.
    let is_data = from.file_name().is_some_and(|name| name == DATA) && from.parent().is_some_and(|parent| check_snapshot(parent).is_ok());
    if !path.exists() && is_data && !from.exists() {
        return Err(Error::Refused(format!("{} does not exist", from.display())));
    }
    if !path.exists() && from.exists() {
        let partial = partial_of(path)?;
        let limit = |partial: &Path| if block { Ok(()) } else { quota::limit(partial, project(path), bytes).map(drop) };
        whole(&partial, path, |partial| {
            limit(partial)?;
            copied(from, partial)
        })?;
    }
    make(path, bytes, block)
}

/// Where the snapshot `name` of the volume at `path` is.
pub fn snapshot_path(path: &Path, name: &str) -> Option<PathBuf> {
    Some(path.parent()?.join(SNAPSHOTS).join(name))
}

/// Where a snapshot's content is, to [`fill`] volumes from.
pub fn data_of(snapshot: &Path) -> PathBuf {
    snapshot.join(DATA)
}

/// Makes the snapshot at `to` of the volume at `path`, which has room for `bytes`; one that is there stays as it is.
pub fn snapshot(path: &Path, to: &Path, bytes: u64) -> Result<(), Error> {
    check_snapshot(to)?;
    if to.exists() {
        return Ok(());
    }
    whole(&partial_of(to)?, to, |partial| {
        let (data, size) = (partial.join(DATA), partial.join(SIZE));
        fs::write(&size, bytes.to_string()).map_err(Error::io("write", &size))?;
        fs::DirBuilder::new().mode(0o700).create(&data).map_err(Error::io("create directory", &data))?;
        match path.exists() {
            true => copied(path, &data),
            // Nobody has used the volume yet.
            false => fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).map_err(Error::io("chmod", &data)),
        }
    })
}

/// Bytes of the volume that the snapshot is of; `None` where there is no snapshot.
pub fn snapshot_size(snapshot: &Path) -> Result<Option<u64>, Error> {
    check_snapshot(snapshot)?;
    let size = snapshot.join(SIZE);
    match fs::read_to_string(&size) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => Ok(read.map_err(Error::io("read", &size))?.trim().parse().ok()),
    }
}

/// Removes a snapshot, complete or not.
pub fn remove_snapshot(snapshot: &Path) -> Result<(), Error> {
    check_snapshot(snapshot)?;
    teardown::remove(&partial_of(snapshot)?)?;
    teardown::remove(snapshot)
}

/// Handles come from the API: no other folder of the machine is one of a snapshot.
fn check_snapshot(path: &Path) -> Result<(), Error> {
    let plain = path.is_absolute() && path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    match plain && path.parent().and_then(Path::file_name).is_some_and(|name| name == SNAPSHOTS) && path.file_name().is_some() {
        true => Ok(()),
        false => Err(Error::Refused(format!("{} is not the path of a snapshot", path.display()))),
    }
}

fn partial_of(path: &Path) -> Result<PathBuf, Error> {
    let name = path.file_name().ok_or_else(|| Error::Refused(format!("{} has no name", path.display())))?;
    let mut partial = std::ffi::OsString::from(".partial-");
    partial.push(name);
    Ok(path.with_file_name(partial))
}

fn copied(from: &Path, to: &Path) -> Result<(), Error> {
    loop_device::flush(&from.join(IMAGE))?;
    copy::tree(from, to)
}

/// Lets `fill` fill the directory `partial`, and gives it its name once all of it is on the disk.
fn whole(partial: &Path, path: &Path, fill: impl Fn(&Path) -> Result<(), Error>) -> Result<(), Error> {
    teardown::remove(partial)?;
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(parent).map_err(Error::io("create directory", parent))?;
    }
    fs::DirBuilder::new().mode(0o700).create(partial).map_err(Error::io("create directory", partial))?;
    let done = fill(partial).and_then(|()| {
        let opened = fs::File::open(partial).map_err(Error::io("open", partial))?;
        rustix::fs::syncfs(&opened).map_err(Error::errno("sync", partial))?;
        fs::rename(partial, path).map_err(Error::io("rename", partial))?;
        let parent = path.parent().unwrap_or(path);
        fs::File::open(parent).and_then(|opened| opened.sync_all()).map_err(Error::io("sync", parent))
    });
    if done.is_err()
        && let Err(error) = teardown::remove(partial)
    {
        tracing::warn!(%error, "remove what was copied in part");
    }
    done
}

/// Removes the volume and all that it holds.
pub fn remove(path: &Path) -> Result<(), Error> {
    loop_device::detach(&path.join(IMAGE))?;
    if path.exists() {
        quota::forget(path, project(path));
    }
    teardown::remove(&partial_of(path)?)?;
    teardown::remove(path)
}

/// The same number for the same path, far from those that people choose.
pub fn project(path: &Path) -> u32 {
    let hash = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    0x4000_0000 | (hash as u32 & 0x3fff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_open_to_all_keeps_its_content_and_goes_with_everything_in_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("volumes/pvc-1");
        make(&path, 1 << 20, false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o777);
        fs::write(path.join("x"), "1").unwrap();
        make(&path, 2 << 20, false).unwrap();
        assert!(path.join("x").exists());
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_snapshot_keeps_what_was_there_and_fills_other_volumes() {
        let root = tempfile::tempdir().unwrap();
        let [one, two, three] = ["one", "two", "three"].map(|name| root.path().join("volumes").join(name));
        make(&one, 1 << 20, false).unwrap();
        fs::write(one.join("file"), "before").unwrap();
        let taken = snapshot_path(&one, "snapcontent-u").unwrap();
        snapshot(&one, &taken, 1 << 20).unwrap();
        fs::write(one.join("file"), "after").unwrap();
        snapshot(&one, &taken, 1 << 20).unwrap();
        assert_eq!(snapshot_size(&taken).unwrap(), Some(1 << 20));
        fill(&two, 2 << 20, false, &data_of(&taken)).unwrap();
        assert_eq!(fs::read_to_string(two.join("file")).unwrap(), "before");
        assert_eq!(fs::metadata(&two).unwrap().permissions().mode() & 0o777, 0o777);
        // What is there stays.
        fs::write(two.join("file"), "mine").unwrap();
        fill(&two, 2 << 20, false, &data_of(&taken)).unwrap();
        assert_eq!(fs::read_to_string(two.join("file")).unwrap(), "mine");
        remove_snapshot(&taken).unwrap();
        assert_eq!(snapshot_size(&taken).unwrap(), None);
        assert!(fill(&three, 1 << 20, false, &data_of(&taken)).is_err());
        fill(&three, 1 << 20, false, &root.path().join("volumes/unused")).unwrap();
        assert_eq!(fs::read_dir(&three).unwrap().count(), 0);
        let left: Vec<_> = fs::read_dir(root.path().join("volumes")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 4, "{left:?}");
    }

    #[test]
    fn what_could_not_be_copied_whole_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("volumes/one");
        let failed = whole(&partial_of(&path).unwrap(), &path, |partial| {
            fs::write(partial.join("half"), "x").unwrap();
            Err(Error::Refused("no room".into()))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no room");
        assert_eq!(fs::read_dir(root.path().join("volumes")).unwrap().count(), 0);
    }

    #[test]
    fn only_paths_of_snapshots_are_touched() {
        for path in ["/etc", "/", "etc", "/data/.snapshots/../../etc", "/data/.snapshots", "/data/.snapshots/.."] {
            assert!(remove_snapshot(Path::new(path)).is_err() && snapshot_size(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn a_block_volume_is_a_file_that_grows_and_never_shrinks() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pvc-2");
        let length = || fs::metadata(path.join(IMAGE)).unwrap().len();
        for (asked, found) in [(1 << 20, 1 << 20), (3 << 20, 3 << 20), (1 << 20, 3 << 20)] {
            assert_eq!(make(&path, asked, true).unwrap(), Kept::Limited);
            assert_eq!(length(), found);
        }
    }
}
