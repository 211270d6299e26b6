//! Which hierarchies this host has, and the own root in them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::group::Cgroup;
use crate::{Error, Result, file_error};

/// What a container's group uses of the v1 hierarchies. `freezer` and `blkio` are left alone: v2 freezes, and nothing limits block I/O.
const USED_V1: [&str; 7] = ["cpu", "cpuacct", "memory", "pids", "devices", "hugetlb", "cpuset"];

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount_point: PathBuf,
    pub unified: bool,
    /// v1: the controllers bound to this mount. v2: what `cgroup.controllers` offers.
    pub controllers: Vec<String>,
}

/// Reads the control group mounts out of `/proc/self/mountinfo`'s text. The first mount of a hierarchy counts.
pub fn parse_mountinfo(text: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (mut left, mut right) = (left.split(' '), right.split(' '));
        let (Some("/"), Some(mount_point)) = (left.nth(3), left.next()) else { continue };
        let (Some(kind), Some(options)) = (right.next(), right.nth(1)) else { continue };
        let unified = match kind {
            "cgroup2" => true,
            "cgroup" => false,
            _ => continue,
        };
        let controllers: Vec<String> =
            if unified { Vec::new() } else { options.split(',').filter(|o| USED_V1.contains(o)).map(str::to_owned).collect() };
        if (!unified && controllers.is_empty()) || found.iter().any(|h| h.unified == unified && h.controllers == controllers) {
            continue;
        }
        found.push(Hierarchy { mount_point: mount_point.replace("\\040", " ").into(), unified, controllers });
    }
    found
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub hierarchies: Vec<Hierarchy>,
    pub name: String,
    warned: AtomicBool,
}

impl Shared {
    /// Says once what this host cannot do; the rest works without it.
    pub fn warn_missing(&self, what: &str) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(missing = what, "this host lacks a control group controller; its limits are not applied");
        }
    }
    pub fn has_v1(&self, controller: &str) -> bool {
        self.hierarchies.iter().any(|h| !h.unified && h.controllers.iter().any(|c| c == controller))
    }
}

/// The own root in every hierarchy.
#[derive(Clone, Debug)]
pub struct Root {
    pub(crate) shared: Arc<Shared>,
}

impl Root {
    /// Finds the host's hierarchies. `name` is the own root's path in them, such as `sternpost`.
    pub fn detect(name: &str) -> Result<Self> {
        let text = std::fs::read_to_string("/proc/self/mountinfo").map_err(file_error("read", "/proc/self/mountinfo"))?;
        let mut hierarchies = parse_mountinfo(&text);
        for hierarchy in hierarchies.iter_mut().filter(|h| h.unified) {
            let offered = std::fs::read_to_string(hierarchy.mount_point.join("cgroup.controllers")).unwrap_or_default();
            hierarchy.controllers = offered.split_whitespace().map(str::to_owned).collect();
        }
        Self::with(hierarchies, name)
    }

    /// As [`Root::detect`], with the hierarchies given.
    pub fn with(hierarchies: Vec<Hierarchy>, name: &str) -> Result<Self> {
        if hierarchies.is_empty() {
            return Err(Error::NoHierarchy);
        }
        let name = clean(name)?;
        Ok(Self { shared: Arc::new(Shared { hierarchies, name, warned: AtomicBool::new(false) }) })
    }

    /// True when the unified hierarchy carries the controllers; false on v1 and hybrid hosts.
    pub fn is_unified(&self) -> bool {
        self.shared.hierarchies.iter().any(|h| h.unified && h.controllers.iter().any(|c| c == "memory"))
    }

    /// The v1 controllers that every container's group has, each with a mount of its own.
    pub fn v1_controllers(&self) -> Vec<String> {
        let single = self.shared.hierarchies.iter().filter(|h| !h.unified && h.controllers != ["cpuset"]);
        single.filter_map(|h| h.controllers.first().filter(|_| h.controllers.len() == 1).cloned()).collect()
    }

    /// The group at `path` below the root, made if it is not there. `cpuset` on a v1 host only exists for groups that are pinned.
    pub fn create(&self, path: &str) -> Result<Cgroup> {
        let path = clean(path)?;
        for hierarchy in &self.shared.hierarchies {
            if hierarchy.unified || hierarchy.controllers != ["cpuset"] {
                self.make(hierarchy, &path)?;
            }
        }
        Cgroup::open(self.clone(), path)
    }

    /// The group at `path`, in the hierarchies where it exists.
    pub fn open(&self, path: &str) -> Result<Cgroup> {
        Cgroup::open(self.clone(), clean(path)?)
    }

    /// Every group below the root, children before parents, relative to it.
    pub fn walk(&self) -> Vec<String> {
        let mut found = std::collections::BTreeSet::new();
        for hierarchy in &self.shared.hierarchies {
            let top = hierarchy.mount_point.join(&self.shared.name);
            walk_into(&top, &top, &mut found);
        }
        let mut paths: Vec<String> = found.into_iter().collect();
        paths.sort_by_key(|path| std::cmp::Reverse(path.matches('/').count()));
        paths
    }

    /// Removes the whole root with everything in it; processes inside are killed.
    pub fn remove_all(&self) -> Result<()> {
        for path in self.walk() {
            let group = self.open(&path)?;
            group.kill()?;
            group.remove()?;
        }
        Cgroup::open(self.clone(), String::new())?.remove()
    }

    pub(crate) fn directory(&self, hierarchy: &Hierarchy, path: &str) -> PathBuf {
        let root = hierarchy.mount_point.join(&self.shared.name);
        if path.is_empty() { root } else { root.join(path) }
    }

    /// Makes every directory on the way, with controllers enabled (v2) or cpusets inherited (v1).
    pub(crate) fn make(&self, hierarchy: &Hierarchy, path: &str) -> Result<()> {
        let target = self.directory(hierarchy, path);
        if target.is_dir() {
            return Ok(());
        }
        let below = target.strip_prefix(&hierarchy.mount_point).unwrap_or(Path::new("")).to_owned();
        let mut current = hierarchy.mount_point.clone();
        for part in below.components() {
            if hierarchy.unified && self.is_unified() {
                self.enable_controllers(hierarchy, &current);
            }
            let parent = current.clone();
            current.push(part);
            match std::fs::create_dir(&current) {
                Ok(()) if hierarchy.controllers.iter().any(|c| c == "cpuset") && !hierarchy.unified => inherit_cpuset(&parent, &current),
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(file_error("create control group", current.display().to_string())(error)),
            }
        }
        Ok(())
    }

    fn enable_controllers(&self, hierarchy: &Hierarchy, directory: &Path) {
        let enabled = std::fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap_or_default();
        for controller in &hierarchy.controllers {
            let wanted = USED_V1.contains(&controller.as_str()) || controller == "io";
            if wanted
                && !enabled.split_whitespace().any(|c| c == controller)
                && std::fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}")).is_err()
            {
                self.shared.warn_missing(controller);
            }
        }
    }
}

/// A fresh v1 cpuset has no CPUs and takes no process until it gets some.
fn inherit_cpuset(parent: &Path, child: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = std::fs::read(parent.join(file)) {
            let _ = std::fs::write(child.join(file), value);
        }
    }
}

fn walk_into(top: &Path, directory: &Path, found: &mut std::collections::BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        let path = entry.path();
        walk_into(top, &path, found);
        if let Ok(below) = path.strip_prefix(top) {
            found.insert(below.to_string_lossy().into_owned());
        }
    }
}

/// A relative path without `..`, `.` or empty parts.
fn clean(path: &str) -> Result<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.iter().any(|part| *part == "." || *part == ".." || part.contains(['\0', '\n'])) {
        return Err(Error::Path(path.to_owned()));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_mount_table_gives_the_unified_hierarchy_and_every_used_controller() {
        let table = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            33 31 0:30 / /sys/fs/cgroup/mem rw shared:3 - cgroup cgroup rw,memory\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            42 31 0:38 / /mnt/again rw - cgroup2 cgroup2 rw\n";
        let found = parse_mountinfo(table);
        let short: Vec<_> = found.iter().map(|h| (h.mount_point.to_str().unwrap(), h.unified)).collect();
        assert_eq!(short, [("/sys/fs/cgroup/cpu", false), ("/sys/fs/cgroup/mem", false), ("/sys/fs/cgroup/unified", true)]);
    }

    #[test]
    fn a_mount_of_a_part_of_a_hierarchy_is_not_taken_for_the_hierarchy() {
        assert_eq!(parse_mountinfo("41 31 0:38 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\nnonsense\n"), []);
    }

    #[test]
    fn a_path_cannot_leave_the_root() {
        assert!(clean("/kubepods/../../x").is_err());
        assert_eq!(clean("/kubepods//pod1/").unwrap(), "kubepods/pod1");
    }
}
