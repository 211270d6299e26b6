//! Control groups of the pods on one node: create, limit, measure, freeze, kill, remove.
//!
//! [`Root::detect`] reads the mount table once and finds the unified hierarchy (v2) and the split ones (v1); [`Root::create`] makes one
//! control group, a directory of the same path in every hierarchy that is of use, below the own root (`sternpost/`). On a hybrid host the
//! unified hierarchy has no controllers, but a group there still buys the atomic `cgroup.kill`, `cgroup.freeze` and `cgroup.events`.
//! Controllers that the host lacks are skipped with one warning. Nothing outside the own root is written, except that on a unified
//! host the controllers are switched on along the way to it.
//!
//! Tasks: none; every call is a few small reads or writes of kernel files. The crate knows no Kubernetes kinds.

mod devices;
mod group;
mod hierarchy;
mod limits;
mod stats;

pub use group::Cgroup;
pub use hierarchy::{Hierarchy, Root, parse_mountinfo};
pub use limits::{DeviceRule, HugepageLimit, Limits, weight_of_shares};
pub use stats::{Pressure, Stall, Stats};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no control group hierarchy is mounted")]
    NoHierarchy,
    #[error("control group path {0:?} leaves its root")]
    Path(String),
    #[error("{step} {path}: {source}")]
    File { step: &'static str, path: String, source: std::io::Error },
}

pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn file_error(step: &'static str, path: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { step, path, source }
}
