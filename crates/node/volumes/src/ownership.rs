//! `fsGroup`: a volume's files belong to a group that all containers of the pod are in.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, chmodat, chownat, openat, statat};

use crate::Error;

/// Gives everything below and including `path` to group `gid`: readable and writable for it, directories with the setgid bit, so that
/// new files inherit it. With `on_root_mismatch` a root that is already right ends the work (fsGroupChangePolicy). Never follows links.
pub fn set_group(path: &Path, gid: u32, on_root_mismatch: bool) -> Result<(), Error> {
    let root =
        openat(CWD, path, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map_err(Error::errno("open", path))?;
    let status = rustix::fs::fstat(&root).map_err(Error::errno("stat", path))?;
    if on_root_mismatch && status.st_gid == gid && status.st_mode & 0o2070 == 0o2070 {
        return Ok(());
    }
    walk(root.as_fd(), path, gid)?;
    rustix::fs::fchown(&root, None, Some(Gid::from_raw(gid))).map_err(Error::errno("chown", path))?;
    rustix::fs::fchmod(&root, Mode::from_raw_mode(status.st_mode & 0o7777 | 0o2770)).map_err(Error::errno("chmod", path))
}

fn walk(directory: BorrowedFd<'_>, shown: &Path, gid: u32) -> Result<(), Error> {
    for entry in Dir::read_from(directory).map_err(Error::errno("read", shown))? {
        let entry = entry.map_err(Error::errno("read", shown))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let shown = shown.join(OsStr::from_bytes(name.to_bytes()));
        let status = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(Error::errno("stat", &shown))?;
        chownat(directory, name, None, Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW).map_err(Error::errno("chown", &shown))?;
        let added = match FileType::from_raw_mode(status.st_mode) {
            FileType::Symlink => continue,
            FileType::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let child = openat(directory, name, flags, Mode::empty()).map_err(Error::errno("open", &shown))?;
                walk(child.as_fd(), &shown, gid)?;
                0o2770
            }
            _ => 0o660,
        };
        chmodat(directory, name, Mode::from_raw_mode(status.st_mode & 0o7777 | added), AtFlags::empty())
            .map_err(Error::errno("chmod", &shown))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn files_and_directories_become_the_groups_and_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        std::fs::write(&outside, "x").unwrap();
        std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o600)).unwrap();
        let volume = root.path().join("volume");
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        std::fs::write(volume.join("sub/file"), "y").unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        let gid = std::fs::metadata(&volume).unwrap().gid();
        set_group(&volume, gid, false).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&volume) & 0o2770, 0o2770);
        assert_eq!(mode(&volume.join("sub/file")) & 0o660, 0o660);
        assert_eq!(mode(&outside), 0o600);
    }
}
