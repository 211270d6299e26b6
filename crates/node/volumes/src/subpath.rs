//! `subPath`: a path inside a volume that can never lead out of it, whatever links a container put there.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::Error;

/// What `sub` is below `volume`, as a descriptor: a path could lead elsewhere a moment later. Directories that are missing are made (0750 as
/// upstream, widened to the volume's own mode). Links are followed only while they stay inside the volume.
pub fn resolve(volume: &Path, sub: &str) -> Result<OwnedFd, Error> {
    match open(volume, sub) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => make(&root_of(volume)?, volume, sub),
        other => other,
    }
}

/// As [`resolve`], of what is there.
pub fn open(volume: &Path, sub: &str) -> Result<OwnedFd, Error> {
    crate::payload::check_path(sub).map_err(|_| Error::Refused(format!("subPath {sub:?} is not a relative path inside the volume")))?;
    open_beneath(&root_of(volume)?, Path::new(sub)).map_err(Error::errno("open", &volume.join(sub)))
}

fn root_of(volume: &Path) -> Result<OwnedFd, Error> {
    openat(CWD, volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(Error::errno("open", volume))
}

fn open_beneath(root: &OwnedFd, sub: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    openat2(root, sub, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn make(root: &OwnedFd, volume: &Path, sub: &str) -> Result<OwnedFd, Error> {
    let mode = fs::metadata(volume).map_err(Error::io("stat", volume))?.permissions().mode() & 0o7777;
    let mut at = open_beneath(root, Path::new(".")).map_err(Error::errno("open", volume))?;
    let mut walked = PathBuf::new();
    for part in sub.split('/').filter(|part| !part.is_empty() && *part != ".") {
        walked.push(part);
        let shown = volume.join(&walked);
        // Each step starts at the volume's root again, so that a link half-way is judged against the whole volume.
        at = match open_beneath(root, &walked) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(at.as_fd(), part, Mode::from_raw_mode(mode | 0o750))
                    .map_err(Error::errno("create directory", &shown))?;
                let made = open_beneath(root, &walked).map_err(Error::errno("open", &shown))?;
                // Not subject to the umask: the container's user must be able to use it as it uses the volume.
                let bits = fs::Permissions::from_mode(mode | 0o750);
                fs::set_permissions(format!("/proc/self/fd/{}", made.as_raw_fd()), bits).map_err(Error::io("chmod", &shown))?;
                made
            }
            Err(errno) => return Err(Error::errno("open", &shown)(errno)),
        };
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_inside_the_volume_and_refused_outside() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().canonicalize().unwrap().join("volume");
        fs::create_dir_all(volume.join("real/deep")).unwrap();
        symlink("real", volume.join("inside")).unwrap();
        symlink("/etc", volume.join("absolute")).unwrap();
        symlink("../..", volume.join("climb")).unwrap();
        let leads_to = |fd: OwnedFd| fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        assert_eq!(leads_to(resolve(&volume, "inside/deep").unwrap()), volume.join("real/deep"));
        assert_eq!(leads_to(resolve(&volume, "new/made").unwrap()), volume.join("new/made"));
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777)).unwrap();
        resolve(&volume, "new/open").unwrap();
        assert_eq!(fs::metadata(volume.join("new/open")).unwrap().permissions().mode() & 0o7777, 0o2777);
        assert!(open(&volume, "not/there").is_err());
        assert!(volume.join("new/made").is_dir());
        for bad in ["absolute/passwd", "climb/x", "../x", "/etc"] {
            assert!(resolve(&volume, bad).is_err(), "{bad}");
        }
    }
}
