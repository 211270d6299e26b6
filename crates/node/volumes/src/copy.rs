//! A directory's content once more elsewhere, for snapshots and clones of volumes. The files are copied one after the other while their owners
//! may go on writing; on file systems that share blocks (xfs, btrfs) each is one moment's, and costs no room.
//!
//! Containers write into what is copied, so that nothing is followed: every name is opened in its own directory and looked at once it is open,
//! and what has changed its kind meanwhile counts as gone. Kept are owners, modes, times, extended attributes, holes and hard links; what is
//! mounted below is left out.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, fstat, ftruncate, futimens, ioctl_ficlone, linkat, mkdirat, mknodat, openat, readlinkat,
    seek, statat, symlinkat, utimensat,
};
use rustix::io::{Errno, pread, pwrite};

use crate::Error;

/// Directories in directories: each holds descriptors until it is done.
const DEPTH_MAX: usize = 256;
const CHUNK: usize = 1 << 20;
/// The kernel's limit of a list of names and of one value.
const ATTRIBUTES_MAX: usize = 1 << 16;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Copies what is in the directory `from`, and what it is itself, to the empty directory `to`, which nobody else may reach yet.
pub fn tree(from: &Path, to: &Path) -> Result<(), Error> {
    let source = openat(CWD, from, DIRECTORY, Mode::empty()).map_err(Error::errno("open", from))?;
    let target = openat(CWD, to, DIRECTORY, Mode::empty()).map_err(Error::errno("open", to))?;
    let status = fstat(&source).map_err(Error::errno("stat", from))?;
    let mut copy = Copy { root: target.as_fd(), device: status.st_dev, links: HashMap::new() };
    copy.directory(source.as_fd(), target.as_fd(), Path::new(""), 0).map_err(|(step, path, errno)| {
        let shown = from.join(path);
        match errno {
            Errno::NAMETOOLONG => Error::Refused(format!("{step} {}: nested too deeply", shown.display())),
            errno => Error::errno(step, &shown)(errno),
        }
    })
}

/// Step, path below the root, and what the kernel said.
type Failure = (&'static str, PathBuf, Errno);

struct Copy<'a> {
    /// Of what is made.
    root: BorrowedFd<'a>,
    /// What is on another one is mounted here.
    device: u64,
    /// Files with several names: where the first one was copied to, by inode.
    links: HashMap<u64, PathBuf>,
}

/// Taken away, or another kind of file in its place.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::STALE)
}

impl Copy<'_> {
    fn directory(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path, depth: usize) -> Result<(), Failure> {
        if depth > DEPTH_MAX {
            return Err(("copy", path.into(), Errno::NAMETOOLONG));
        }
        let failed = |step: &'static str| move |errno: Errno| (step, path.to_owned(), errno);
        for entry in Dir::read_from(from).map_err(failed("read"))? {
            let entry = entry.map_err(failed("read"))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(status) => self.entry(from, to, name, &status, &path.join(OsStr::from_bytes(name.to_bytes())), depth)?,
                Err(errno) if is_gone(errno) => {}
                Err(errno) => return Err(failed("stat")(errno)),
            }
        }
        let status = fstat(from).map_err(failed("stat"))?;
        describe(from, to, &status).map_err(failed("copy the attributes of"))
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        status: &Stat,
        path: &Path,
        depth: usize,
    ) -> Result<(), Failure> {
        let failed = |step: &'static str| move |errno: Errno| (step, path.to_owned(), errno);
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => self.child(from, to, name, status, path, depth),
            FileType::RegularFile => self.file(from, to, name, path),
            FileType::Symlink => match readlinkat(from, name, Vec::new()) {
                Ok(target) => {
                    symlinkat(&target, to, name).map_err(failed("link"))?;
                    own(to, name, status).map_err(failed("copy the attributes of"))
                }
                Err(errno) if is_gone(errno) || errno == Errno::INVAL => Ok(()),
                Err(errno) => Err(failed("read link")(errno)),
            },
            kind => {
                mknodat(to, name, kind, Mode::from_raw_mode(0o600), status.st_rdev).map_err(failed("make"))?;
                own(to, name, status).map_err(failed("copy the attributes of"))?;
                // Nobody else reaches this directory: the name is what was just made.
                chmodat(to, name, Mode::from_raw_mode(status.st_mode & 0o7777), AtFlags::empty()).map_err(failed("chmod"))
            }
        }
    }

    fn child(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        status: &Stat,
        path: &Path,
        depth: usize,
    ) -> Result<(), Failure> {
        let failed = |step: &'static str| move |errno: Errno| (step, path.to_owned(), errno);
        let source = match openat(from, name, DIRECTORY, Mode::empty()) {
            Err(errno) if is_gone(errno) => return Ok(()),
            other => other.map_err(failed("open"))?,
        };
        mkdirat(to, name, Mode::RWXU).map_err(failed("create directory"))?;
        if status.st_dev != self.device {
            return Ok(());
        }
        let target = openat(to, name, DIRECTORY, Mode::empty()).map_err(failed("open"))?;
        self.directory(source.as_fd(), target.as_fd(), path, depth + 1)
    }

    fn file(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<(), Failure> {
        let failed = |step: &'static str| move |errno: Errno| (step, path.to_owned(), errno);
        // Without waiting, should it be a pipe by now.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = match openat(from, name, flags, Mode::empty()) {
            Err(errno) if is_gone(errno) => return Ok(()),
            other => other.map_err(failed("open"))?,
        };
        let status = fstat(&source).map_err(failed("stat"))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile || status.st_dev != self.device {
            return Ok(());
        }
        if status.st_nlink > 1 {
            if let Some(first) = self.links.get(&status.st_ino) {
                return linkat(self.root, first, to, name, AtFlags::empty()).map_err(failed("link"));
            }
            self.links.insert(status.st_ino, path.to_owned());
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(to, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed("create"))?;
        content(&source, &target, u64::try_from(status.st_size).unwrap_or(0)).map_err(failed("copy"))?;
        describe(source.as_fd(), target.as_fd(), &status).map_err(failed("copy the attributes of"))
    }
}

/// The bytes up to `length`, and no holes filled.
fn content(from: &OwnedFd, to: &OwnedFd, length: u64) -> Result<(), Errno> {
    if length == 0 || ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    ftruncate(to, length)?;
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < length {
        let begin = match seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            // A file system that does not know.
            Err(Errno::INVAL) => at,
            other => other?,
        };
        let end = seek(from, SeekFrom::Hole(begin)).unwrap_or(length).clamp(begin, length);
        if end == begin {
            break;
        }
        at = range(from, to, begin, end, &mut buffer)?;
        if at < end {
            // It was cut short meanwhile.
            break;
        }
    }
    Ok(())
}

/// Where the copy ended.
fn range(from: &OwnedFd, to: &OwnedFd, begin: u64, end: u64, buffer: &mut Vec<u8>) -> Result<u64, Errno> {
    let (mut at, mut in_kernel) = (begin, true);
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(if in_kernel { 1 << 30 } else { CHUNK });
        let copied = if in_kernel {
            let (mut source, mut target) = (at, at);
            match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted) {
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                    in_kernel = false;
                    continue;
                }
                other => other?,
            }
        } else {
            buffer.resize(CHUNK, 0);
            let read = pread(from, &mut buffer[..wanted], at)?;
            let mut written = 0;
            while written < read {
                written += pwrite(to, &buffer[written..read], at + written as u64)?;
            }
            read
        };
        if copied == 0 {
            break;
        }
        at += copied as u64;
    }
    Ok(at)
}

/// Owner, attributes, mode, times, in this order: a new owner takes capabilities and set-id bits away, attributes change times.
fn describe(from: BorrowedFd<'_>, to: BorrowedFd<'_>, status: &Stat) -> Result<(), Errno> {
    fchown(to, Some(Uid::from_raw(status.st_uid)), Some(Gid::from_raw(status.st_gid)))?;
    attributes(from, to)?;
    fchmod(to, Mode::from_raw_mode(status.st_mode & 0o7777))?;
    futimens(to, &times(status))
}

fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut names = vec![0; ATTRIBUTES_MAX];
    let length = match flistxattr(from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    names.truncate(length);
    let mut value = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // The volume's label is its pod's business.
        if name == b"security.selinux" {
            continue;
        }
        value.resize(ATTRIBUTES_MAX, 0);
        let name = OsStr::from_bytes(name);
        let length = match fgetxattr(from, name, &mut value[..]) {
            Err(Errno::NODATA) => continue,
            other => other?,
        };
        fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

/// Owner and times of what cannot be opened.
fn own(directory: BorrowedFd<'_>, name: &CStr, status: &Stat) -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
    chownat(directory, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    utimensat(directory, name, &times(status), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(status: &Stat) -> Timestamps {
    let of = |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.cast_signed() };
    Timestamps { last_access: of(status.st_atime, status.st_atime_nsec), last_modification: of(status.st_mtime, status.st_mtime_nsec) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn copied(from: &Path) -> tempfile::TempDir {
        let to = tempfile::tempdir_in(from.parent().unwrap()).unwrap();
        tree(from, to.path()).unwrap();
        to
    }

    #[test]
    fn modes_times_attributes_holes_and_links_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let from = root.path().join("from");
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/file"), "text").unwrap();
        fs::hard_link(from.join("a/b/file"), from.join("second name")).unwrap();
        fs::set_permissions(from.join("a/b/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o1700)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        let mut sparse = fs::File::create(from.join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        sparse.seek(std::io::SeekFrom::Start(32 << 20)).unwrap();
        sparse.write_all(b"middle").unwrap();
        let attributed = fs::File::open(from.join("sparse")).unwrap();
        let has_attributes = fsetxattr(&attributed, "user.colour", b"red", XattrFlags::empty()).is_ok();
        mknodat(CWD, from.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
        let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
        let times = Timestamps { last_access: old, last_modification: old };
        utimensat(CWD, from.join("a/b/file"), &times, AtFlags::empty()).unwrap();

        let to = copied(&from);
        let of = |name: &str| fs::symlink_metadata(to.path().join(name)).unwrap();
        assert_eq!(fs::read_to_string(to.path().join("a/b/file")).unwrap(), "text");
        assert_eq!((of("a/b/file").mode() & 0o7777, of("a").mode() & 0o7777), (0o4751, 0o1700));
        assert_eq!((of("a/b/file").mtime(), of("a/b/file").mtime_nsec()), (1_000_000_000, 5));
        assert_eq!(of("a/b/file").ino(), of("second name").ino());
        assert_ne!(of("a/b/file").ino(), fs::metadata(from.join("a/b/file")).unwrap().ino());
        assert_eq!(fs::read_link(to.path().join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(FileType::from_raw_mode(of("pipe").mode()), FileType::Fifo);
        assert_eq!(of("sparse").len(), 64 << 20);
        assert!(of("sparse").blocks() * 512 < 1 << 20, "holes were filled: {}", of("sparse").blocks());
        let mut middle = [0; 6];
        let mut file = fs::File::open(to.path().join("sparse")).unwrap();
        file.seek(std::io::SeekFrom::Start(32 << 20)).unwrap();
        file.read_exact(&mut middle).unwrap();
        assert_eq!(&middle, b"middle");
        if has_attributes {
            let mut value = [0; 8];
            let length = fgetxattr(&file, "user.colour", &mut value[..]).unwrap();
            assert_eq!(&value[..length], b"red");
        }
    }

    #[test]
    fn a_directory_that_is_swapped_for_a_link_meanwhile_leads_nowhere() {
        let root = tempfile::tempdir().unwrap();
        let (from, outside) = (root.path().join("from"), root.path().join("outside"));
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(from.join("real")).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        symlink(&outside, from.join("link")).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let (real, link) = (from.join("real"), from.join("link"));
                    let _ = rustix::fs::renameat_with(CWD, &real, CWD, &link, rustix::fs::RenameFlags::EXCHANGE);
                }
            });
            for _ in 0..300 {
                let to = copied(&from);
                let found = ["real", "link"].iter().any(|name| {
                    let path = to.path().join(name);
                    !path.is_symlink() && path.join("secret").exists()
                });
                assert!(!found);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn what_is_nested_too_deeply_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let from = root.path().join("from");
        fs::create_dir(&from).unwrap();
        let mut at = openat(CWD, &from, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..DEPTH_MAX + 2 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        let to = tempfile::tempdir_in(root.path()).unwrap();
        let error = tree(&from, to.path()).unwrap_err().to_string();
        assert!(error.ends_with("nested too deeply"), "{error}");
    }
}
