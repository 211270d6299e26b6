//! What to run, in plain words: everything that is not a descriptor.

use serde::{Deserialize, Serialize};

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    pub process: Process,
    pub pid_namespace: PidNamespace,
    /// Give the container its own view of the control groups, rooted at its own group.
    pub cgroup_namespace: bool,
    pub root_readonly: bool,
    /// Mounted in this order.
    pub mounts: Vec<Mount>,
    /// Made on the tmpfs at `/dev`, beside the standard ones.
    pub devices: Vec<Device>,
    /// Nodes cannot be made in a user namespace: those in `/dev`, the standard ones included, are mounts of the host's.
    #[serde(default)]
    pub devices_are_mounts: bool,
    /// Hidden: files behind `/dev/null`, directories behind an empty one. A path that is not there is fine.
    pub masked_paths: Vec<String>,
    /// The tree in [`crate::Handles::trees`] that is such an empty directory; without it a tmpfs is made.
    #[serde(default)]
    pub empty: Option<usize>,
    pub readonly_paths: Vec<String>,
    /// Directory in the launcher's mount namespace on which the root is attached before it becomes `/`.
    pub staging: String,
}

/// What every process of a container has: the first one and those that are exec'd later.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// `args[0]` is looked up in the environment's PATH when it has no slash.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub cwd: String,
    /// A pseudo-terminal instead of the three descriptors.
    pub terminal: bool,
    pub user: User,
    /// Bit masks as in [`crate::capabilities`]; clamped to what the launcher holds.
    pub bounding: u64,
    pub ambient: u64,
    pub no_new_privileges: bool,
    /// The default system call filter, see [`crate::seccomp`].
    #[serde(default)]
    pub seccomp: bool,
    /// A filter of the user's own in its place.
    #[serde(default)]
    pub seccomp_profile: Option<crate::seccomp::Profile>,
    /// The AppArmor profile that the program enters; the kernel knows it.
    #[serde(default)]
    pub apparmor: Option<String>,
    pub rlimits: Vec<Rlimit>,
    /// Not lowered below the launcher's own without CAP_SYS_RESOURCE.
    pub oom_score_adj: Option<i32>,
    pub umask: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Values are the kernel's; `u64::MAX` is unlimited. The hard limit is clamped to the launcher's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    #[default]
    New,
    /// The launcher's.
    Host,
    /// The one behind [`crate::Handles::pid_namespace`].
    Join,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute in the container; missing directories and files are made, without leaving the root through symbolic links.
    pub target: String,
    pub source: Source,
    pub readonly: bool,
    /// Read-only for everything below, too.
    pub recursive_readonly: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    pub propagation: Propagation,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Source {
    /// A new file system instance.
    New(FileSystem),
    /// The detached tree with this index in [`crate::Handles::trees`]; `directory` says what the target must be.
    Tree { index: usize, directory: bool },
    /// A recursive bind of a path in the launcher's mount namespace.
    Bind { path: String, directory: bool },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// `proc`, `sysfs`, `tmpfs`, `devpts`, `mqueue`, `cgroup2`, `cgroup`.
    pub kind: String,
    /// Without a value: a flag.
    pub options: Vec<(String, Option<String>)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    /// Mounts made on the host appear in the container.
    FromHost,
    /// And the other way round.
    Shared,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute in the container, below `/dev`.
    pub path: String,
    /// `c`, `b` or `p`.
    pub kind: char,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// What the control group lets the container do with it, of `rwm`; empty is all.
    #[serde(default)]
    pub access: String,
}
