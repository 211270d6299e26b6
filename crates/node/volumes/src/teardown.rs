//! Removing what a pod leaves. A container may have filled a volume with links, and something may be mounted below it: neither may lead
//! the removal out of the directory.

use std::ffi::{CStr, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, openat, openat2, unlinkat};
use rustix::io::Errno;

use crate::{Error, empty_dir};

/// Removes `path` and everything below it; nothing there is success. Links are removed, not followed; a mount below is an error, and
/// what it shows stays untouched.
pub fn remove(path: &Path) -> Result<(), Error> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::Refused(format!("refusing to remove {}", path.display())));
    };
    let parent_fd = match openat(rustix::fs::CWD, parent, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(Error::errno("open", parent))?,
    };
    let name = std::ffi::CString::new(name.as_bytes()).map_err(|_| Error::Refused("path holds NUL".into()))?;
    remove_at(parent_fd.as_fd(), &name, path)
}

fn remove_at(parent: BorrowedFd<'_>, name: &CStr, shown: &Path) -> Result<(), Error> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(Error::errno("remove", shown)(errno)),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match openat2(parent, name, flags, Mode::empty(), ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS) {
        Err(Errno::XDEV) => return Err(Error::Refused(format!("{} is a mount point", shown.display()))),
        other => other.map_err(Error::errno("open", shown))?,
    };
    for entry in Dir::read_from(&directory).map_err(Error::errno("read", shown))? {
        let entry = entry.map_err(Error::errno("read", shown))?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            remove_at(directory.as_fd(), name, &shown.join(OsStr::from_bytes(name.to_bytes())))?;
        }
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::errno("remove", shown)(errno)),
    }
}

/// Unmounts the tmpfs of an in-memory `emptyDir`, where there is one. Needs root.
pub fn unmount(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::io("stat", path))?,
    };
    if !empty_dir::is_mount_point(path)? {
        return Ok(());
    }
    let flags = rustix::mount::UnmountFlags::NOFOLLOW | rustix::mount::UnmountFlags::DETACH;
    rustix::mount::unmount(path, flags).map_err(Error::errno("unmount", path))
}

/// Unmounts whatever this mount namespace has below `directory`, innermost first; returns how much that was. Needs root.
pub fn unmount_below(directory: &Path) -> Result<usize, Error> {
    // The kernel's table holds no links and no dots.
    let directory = match fs::canonicalize(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other.map_err(Error::io("resolve", directory))?,
    };
    let table = fs::read("/proc/self/mountinfo").map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
    let points = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape);
    let mut points: Vec<PathBuf> = points.filter(|point| point.starts_with(&directory) && *point != directory).collect();
    points.reverse();
    for point in &points {
        let flags = rustix::mount::UnmountFlags::NOFOLLOW | rustix::mount::UnmountFlags::DETACH;
        match rustix::mount::unmount(point, flags) {
            // Gone with the one around it.
            Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
            Err(errno) => return Err(Error::errno("unmount", point)(errno)),
        }
    }
    Ok(points.len())
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_read() {
        assert_eq!(unescape(br"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(br"/a\04"), Path::new(r"/a\04"));
    }

    #[test]
    fn links_are_removed_and_never_followed() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("keep"), "x").unwrap();
        let volume = root.path().join("volume");
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::write(volume.join("a/b/file"), "y").unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("a/link")).unwrap();
        remove(&volume).unwrap();
        remove(&volume).unwrap();
        assert!(!volume.exists() && outside.join("keep").exists());
        std::os::unix::fs::symlink(&outside, &volume).unwrap();
        remove(&volume).unwrap();
        assert!(outside.join("keep").exists());
        unmount(&volume).unwrap();
    }

    #[test]
    fn root_of_the_filesystem_is_refused() {
        assert!(remove(Path::new("/")).is_err());
    }
}
