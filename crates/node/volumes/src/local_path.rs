//! Volumes of the built-in provisioner: a directory of the node's disk, or a file that is shown as a block device.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use crate::{Error, loop_device, quota, teardown};

/// What holds a block volume, in its directory.
pub const IMAGE: &str = "disk.img";

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

/// Removes the volume and all that it holds.
pub fn remove(path: &Path) -> Result<(), Error> {
    loop_device::detach(&path.join(IMAGE))?;
    if path.exists() {
        quota::forget(path, project(path));
    }
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
