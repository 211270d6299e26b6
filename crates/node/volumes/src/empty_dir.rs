//! `emptyDir`: a directory on the node's disk, or a tmpfs with `medium: Memory`.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use crate::Error;

/// Makes the directory, open to all (0777) as upstream; doing it again changes nothing.
pub fn on_disk(path: &Path) -> Result<(), Error> {
    match fs::DirBuilder::new().mode(0o777).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::io("create directory", path)(error)),
        // Not subject to the umask.
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o777)).map_err(Error::io("chmod", path)),
    }
}

/// The same with a tmpfs mounted on it, of at most `size_bytes_max` bytes where given. Needs root.
pub fn in_memory(path: &Path, size_bytes_max: Option<u64>) -> Result<(), Error> {
    use rustix::mount::{MountFlags, mount};
    on_disk(path)?;
    if is_mount_point(path)? {
        return Ok(());
    }
    let size = size_bytes_max.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
    let options = std::ffi::CString::new(format!("mode=0777{size}")).map_err(|_| Error::Refused("size limit holds NUL".into()))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", path, "tmpfs", flags, Some(options.as_c_str())).map_err(Error::errno("mount tmpfs on", path))
}

/// The same with huge pages of `size` (`2Mi`, `1Gi`) mounted on it. Needs root.
pub fn in_huge_pages(path: &Path, size: &str) -> Result<(), Error> {
    use rustix::mount::{MountFlags, mount};
    on_disk(path)?;
    if is_mount_point(path)? {
        return Ok(());
    }
    let pages = size.trim_end_matches('i');
    let options =
        std::ffi::CString::new(format!("mode=0777,pagesize={pages}")).map_err(|_| Error::Refused("page size holds NUL".into()))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("hugetlbfs", path, "hugetlbfs", flags, Some(options.as_c_str())).map_err(Error::errno("mount hugetlbfs on", path))
}

/// Makes a directory for what must never reach a disk (Secrets, tokens): on a tmpfs, its own where it would not be on one already.
/// Closed to all but root. Doing it again changes nothing. Needs root.
pub fn never_on_disk(path: &Path) -> Result<(), Error> {
    use rustix::mount::{MountFlags, mount};
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(Error::io("create directory", path))?;
    let below = rustix::fs::statfs(path).map_err(Error::errno("stat the file system of", path))?;
    if below.f_type as i64 == TMPFS_MAGIC {
        return Ok(());
    }
    mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0700")).map_err(Error::errno("mount tmpfs on", path))
}

/// Is something mounted on this very path?
pub fn is_mount_point(path: &Path) -> Result<bool, Error> {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    let status = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS).map_err(Error::errno("stat", path))?;
    Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_is_open_to_all_and_making_it_twice_keeps_its_content() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("cache");
        on_disk(&path).unwrap();
        fs::write(path.join("x"), "1").unwrap();
        on_disk(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
        assert!(path.join("x").exists());
        assert!(!is_mount_point(&path).unwrap() && is_mount_point(Path::new("/proc")).unwrap());
    }
}
