//! The whole cluster seen from outside: the real binary on the real kernel, driven by the real kubectl.
//!
//! Way in: [`Cluster::shared`] for tests that only need *a* cluster (each in a [`Namespace`] of its own), [`Cluster::fresh`] for tests that
//! start, kill and purge one. The tests need root, `kubectl`, `curl`, `script`, `nsenter`, `ip`, Debian's `docker-registry` and
//! `busybox-static`; where something is missing they fail and say what.
//!
//! The clusters of the tests use ports, address ranges and kernel names of their own (`stest`), so that a cluster that already runs on the
//! machine stays untouched and [`leaks`] can tell ours from everything else. One cluster runs at a time: [`cluster`] holds a file lock, and a
//! watcher process that outlives a crashed test takes everything down before it lets the lock go.
//!
//! What a test claims is read from outside: processes and mounts from `/proc`, limits from the cgroup files, links and routes from `ip`, rules
//! over netlink, answers over sockets.

pub mod cluster;
#[path = "../../../node/remote/tests/support/containerd.rs"]
pub mod containerd;
pub mod http;
pub mod images;
pub mod leaks;
pub mod namespace;
pub mod process;
pub mod registry;
pub mod run;

pub use cluster::Cluster;
pub use namespace::Namespace;
pub use run::{Ran, run, wait_for};
