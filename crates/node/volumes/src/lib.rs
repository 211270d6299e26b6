//! Directories that a pod's containers see: made, filled, kept current and taken away. Plain functions over data handed in: the crate
//! knows no Kubernetes kinds and no API.
//!
//! Read in this order: [`payload`] (keys of a ConfigMap or Secret to files), [`atomic`] (a payload to a directory, swapped at once),
//! [`empty_dir`], [`host_path`], [`mounting`] (devices and network file systems), [`loop_device`], [`quota`], [`copy`] (a directory's
//! content elsewhere), [`local_path`] (volumes and snapshots of the built-in provisioner), [`ownership`] (fsGroup), [`subpath`], [`teardown`]. Tasks: none; every function blocks on the disk.

pub mod atomic;
pub mod copy;
pub mod empty_dir;
pub mod host_path;
pub mod local_path;
pub mod loop_device;
pub mod mounting;
pub mod ownership;
pub mod payload;
pub mod quota;
pub mod subpath;
pub mod teardown;

pub use payload::{File, Payload};

use std::io;
use std::path::{Path, PathBuf};

/// A step on a path that failed; upstream shows the same shape in `FailedMount` events.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} {}: {source}", path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    /// The request itself cannot be met, in upstream's words.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    pub(crate) fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { step, path, source }
    }
    pub(crate) fn errno(step: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.to_owned();
        move |errno| Self::Io { step, path, source: errno.into() }
    }
}
