//! From a plain [`Spec`] to a running process: namespaces, root file system, devices, identity, terminal.
//!
//! [`spawn`] makes a container's first process and [`enter`] one more in a running container. Both are called by a **single-threaded**
//! process (the runtime's shim, never a tokio process): the child runs ordinary code between clone and exec, which is only sound when no other thread can
//! hold a lock. Everything that has a name on the host arrives as a descriptor in [`Handles`]: the mounted root, detached
//! trees of volumes, control groups' files. So the caller's mount namespace can be nearly empty.
//!
//! The child tells about itself over a sequenced-packet [`Channel`]: a pseudo-terminal's master, or the first [`Failure`] with its step; end of
//! file without a failure means that the program runs.
//!
//! [`capabilities`], [`user`] and [`in_root`] are of use to callers who prepare a spec. Tasks: none. The crate knows no Kubernetes kinds.

pub mod capabilities;
mod channel;
mod child;
mod external;
pub mod in_root;
mod process;
mod rootfs;
pub mod seccomp;
mod spawn;
mod spec;
pub mod sys;
pub mod user;

pub use channel::{Channel, Failure, Progress, errno_text};
pub use external::{External, spawn_external};
pub use spawn::{Handles, Started, Users, enter, spawn};
pub use spec::{Device, FileSystem, Mount, PidNamespace, Process, Propagation, Rlimit, Source, Spec, User};
