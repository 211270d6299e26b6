//! One small read-only file system for all containers, in place of several of each.
//!
//! For every file system the kernel keeps books in every memory control group: with thousands of pods each tmpfs that is one fewer per container saves
//! hundreds of megabytes, and the time to enlarge all those books.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, mkdirat};
use rustix::mount::{FsPickFlags, MountAttrFlags, OpenTreeFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick, open_tree};

use crate::shim::instance;

/// An empty directory.
const EMPTY: &str = "empty";
/// A directory for each v1 hierarchy to be mounted on.
const CGROUP: &str = "cgroup";

/// Attached nowhere; lives as long as the daemon or a container that shows a part of it.
pub struct Skeleton(Option<OwnedFd>);

impl Skeleton {
    /// With mount points for `controllers`. Where it cannot be made, every container has its own.
    pub fn make(controllers: &[String]) -> Self {
        let made = make(controllers).inspect_err(|error| tracing::debug!(%error, "make the containers' common file system"));
        Self(made.ok())
    }

    pub fn empty(&self) -> Option<OwnedFd> {
        self.part(EMPTY)
    }

    pub fn cgroup(&self) -> Option<OwnedFd> {
        self.part(CGROUP)
    }

    /// `None` before Linux 6.15, which does not copy what is attached nowhere.
    fn part(&self, name: &str) -> Option<OwnedFd> {
        open_tree(self.0.as_ref()?, name, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).ok()
    }
}

fn make(controllers: &[String]) -> io::Result<OwnedFd> {
    // Not one more than there are: whoever may write to it finds no room.
    let inodes = (3 + controllers.len()).to_string();
    let mount = instance("tmpfs", &[("mode", "755"), ("size", "4k"), ("nr_inodes", &inodes)], MountAttrFlags::empty())?;
    let paths = controllers.iter().map(|controller| format!("{CGROUP}/{controller}"));
    for path in [EMPTY.to_owned(), CGROUP.to_owned()].into_iter().chain(paths) {
        mkdirat(&mount, path, Mode::from_raw_mode(0o755))?;
    }
    let context = fspick(&mount, "", FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC)?;
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_reconfigure(&context)?;
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_parts_are_empty_directories_that_nobody_writes_to() {
        let skeleton = Skeleton::make(&["memory".to_owned()]);
        let (empty, cgroup) = (skeleton.empty().unwrap(), skeleton.cgroup().unwrap());
        let names = |fd: &OwnedFd, path: &str| {
            let opened = rustix::fs::openat(fd, path, rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
            let entries = rustix::fs::Dir::read_from(&opened).unwrap();
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).filter(|name| !name.starts_with('.')).collect()
        };
        let of: [Vec<String>; 3] = [names(&empty, "."), names(&cgroup, "."), names(&cgroup, "memory")];
        assert_eq!(of, [vec![], vec!["memory".to_owned()], vec![]]);
        assert_eq!(mkdirat(&empty, "x", Mode::from_raw_mode(0o755)), Err(rustix::io::Errno::ROFS));
    }
}
