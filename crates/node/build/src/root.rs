//! An image's files while it is built: its layers as one read-only tree that is attached nowhere.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci::in_root;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

/// A tree to look into: symbolic links in it never lead out.
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// The files of `layers`, the lowest first; of none, the empty folder `nothing`.
    pub fn of(layers: &[PathBuf], nothing: &Path) -> io::Result<Self> {
        match layers {
            [] => Self::folder(nothing),
            [only] => Self::folder(only),
            all => Ok(Self { fd: overlay(all)? }),
        }
    }

    pub fn folder(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())? })
    }

    pub fn read(&self, path: &str) -> io::Result<String> {
        in_root::read(&self.fd, path)
    }

    /// A file to read.
    pub fn open(&self, path: &str) -> io::Result<std::fs::File> {
        Ok(in_root::open(&self.fd, path, OFlags::RDONLY | OFlags::NONBLOCK)?.into())
    }

    /// What is there, symbolic links followed; `None` for nothing.
    pub fn stat(&self, path: &str) -> io::Result<Option<Stat>> {
        match in_root::open(&self.fd, path, OFlags::PATH) {
            Ok(fd) => Ok(Some(rustix::fs::fstat(&fd)?)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn is_directory(&self, path: &str) -> io::Result<bool> {
        Ok(self.stat(path)?.is_some_and(|stat| kind(&stat) == rustix::fs::FileType::Directory))
    }

    /// What is there, a symbolic link at the end not followed.
    pub fn lstat(&self, path: &str) -> io::Result<Stat> {
        let (parent, name) = self.parent(path)?;
        Ok(statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub fn link(&self, path: &str) -> io::Result<OsString> {
        let (parent, name) = self.parent(path)?;
        Ok(OsStr::from_bytes(readlinkat(&parent, name, Vec::new())?.as_bytes()).to_owned())
    }

    fn parent<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
        let path = path.trim_end_matches('/');
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let name = if name.is_empty() { "." } else { name };
        Ok((in_root::open(&self.fd, parent, OFlags::PATH | OFlags::DIRECTORY)?, name))
    }

    /// Names in a folder, sorted.
    pub fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let fd = in_root::open(&self.fd, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(fd.as_fd())? {
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                let name = name.into_string().map_err(|_| io::Error::other(format!("{path}: a file's name is not UTF-8")))?;
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Where a path really leads, from the root and without links, as far as it is there; the rest is what it says.
    pub fn real(&self, path: &str) -> io::Result<String> {
        let own = shown(&self.fd)?;
        let mut resolved = String::new();
        let mut missing = false;
        for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part == ".." {
                resolved.truncate(resolved.rfind('/').unwrap_or(0));
                continue;
            }
            let next = format!("{resolved}/{part}");
            match if missing { Err(io::ErrorKind::NotFound.into()) } else { in_root::open(&self.fd, &next, OFlags::PATH) } {
                Ok(fd) => {
                    let whole = shown(&fd)?;
                    // Of a tree that is mounted nowhere paths begin at its own root.
                    let inside =
                        if own == Path::new("/") { whole } else { Path::new("/").join(whole.strip_prefix(&own).unwrap_or(&whole)) };
                    resolved = inside.to_string_lossy().trim_end_matches('/').to_owned();
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    missing = true;
                    resolved = next;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(resolved.trim_start_matches('/').to_owned())
    }
}

fn shown(fd: &OwnedFd) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

pub fn kind(stat: &Stat) -> rustix::fs::FileType {
    rustix::fs::FileType::from_raw_mode(stat.st_mode)
}

fn overlay(layers: &[PathBuf]) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "overlay")?;
    let all = layers.iter().rev().map(|layer| layer.display().to_string().replace(':', "\\:")).collect::<Vec<_>>().join(":");
    // One parameter takes 255 bytes; taking layers one by one is newer.
    if all.len() < 256 {
        fsconfig_set_string(&context, "lowerdir", all)?;
    } else {
        layers.iter().rev().try_for_each(|layer| fsconfig_set_string(&context, "lowerdir+", layer))?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_their_links_lead_and_never_out() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("usr/bin")).unwrap();
        std::os::unix::fs::symlink("/usr/bin", folder.path().join("bin")).unwrap();
        std::os::unix::fs::symlink("../../..", folder.path().join("up")).unwrap();
        let root = Root::folder(folder.path()).unwrap();
        for (path, real) in
            [("/bin/sh", "usr/bin/sh"), ("bin", "usr/bin"), ("/up/usr/x", "usr/x"), ("a/../b/./c", "b/c"), ("/", ""), ("../x", "x")]
        {
            assert_eq!(root.real(path).unwrap(), real, "{path}");
        }
        assert!(root.is_directory("bin").unwrap() && !root.is_directory("nothing").unwrap());
        assert_eq!(root.link("bin").unwrap(), "/usr/bin");
    }

    #[test]
    fn layers_are_one_tree() {
        let folder = tempfile::tempdir().unwrap();
        for (layer, file) in [("a", "one"), ("b", "two")] {
            std::fs::create_dir_all(folder.path().join(layer)).unwrap();
            std::fs::write(folder.path().join(layer).join(file), file).unwrap();
            std::fs::write(folder.path().join(layer).join("both"), layer).unwrap();
        }
        let root = Root::of(&[folder.path().join("a"), folder.path().join("b")], folder.path()).unwrap();
        assert_eq!(root.names("").unwrap(), ["both", "one", "two"]);
        assert_eq!(root.read("both").unwrap(), "b");
        assert_eq!(root.real("/one").unwrap(), "one");
    }
}
