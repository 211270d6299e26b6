//! Paths below a root that is not ours: symbolic links resolve as if the root were `/`, and cannot leave it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens `path` below `root` with `flags`.
pub fn open(root: impl AsFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    Ok(openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), RESOLVE)?)
}

/// Reads a small file below `root`; a missing one is empty. More than a mebibyte is an error.
pub fn read(root: impl AsFd, path: &str) -> io::Result<String> {
    use std::io::Read;
    let fd = match open(root, path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    std::fs::File::from(fd).take((1 << 20) + 1).read_to_end(&mut bytes)?;
    if bytes.len() > 1 << 20 {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} is larger than 1 MiB")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The directory at `path`, made with its parents (mode 0755) where missing. The descriptor is O_PATH.
pub fn make_directory(root: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    if let Ok(fd) = open(root, path, OFlags::PATH | OFlags::DIRECTORY) {
        return Ok(fd);
    }
    let mut walked = String::new();
    let mut current = open(root, ".", OFlags::PATH | OFlags::DIRECTORY)?;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        // The path so far is resolved anew from the root each time, so that `..` and links in it mean what they mean inside.
        walked = format!("{walked}/{part}");
        current = match open(root, &walked, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match mkdirat(&current, part, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open(root, &walked, OFlags::PATH | OFlags::DIRECTORY)?
            }
            Err(error) => return Err(error),
        };
    }
    Ok(current)
}

/// The file at `path`, made empty with its parent directories where missing. The descriptor is O_PATH.
pub fn make_file(root: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    if let Ok(fd) = open(root, path, OFlags::PATH) {
        return Ok(fd);
    }
    let (parent, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
    let parent = make_directory(root, parent)?;
    openat(&parent, name, OFlags::CREATE | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
    open(root, path, OFlags::PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbolic_link_does_not_lead_out_of_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("link")).unwrap();
        std::fs::create_dir_all(inside.path().join("real")).unwrap();
        std::os::unix::fs::symlink("/real", inside.path().join("absolute")).unwrap();
        let root = std::fs::File::open(inside.path()).unwrap();
        let refused = make_file(&root, "/link/file");
        assert!(refused.is_err());
        make_file(&root, "/absolute/sub/file").unwrap();
        make_directory(&root, "/../../up").unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(inside.path().join("real/sub/file").is_file());
        assert!(inside.path().join("up").is_dir());
    }
}
