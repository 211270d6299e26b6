//! The embedded container runtime: CRI in-process, a small shim process per pod, no pause container, no tokio near a fork.
//!
//! [`Runtime::open`] re-adopts what an earlier daemon left running and returns the implementation of [`cri::RuntimeService`]. Per pod there is a [`shim`], forked from
//! one re-exec of the own binary (so `main` must begin with [`is_shim_invocation`]), which holds the pod's namespaces, starts processes through `oci`, writes
//! logs and keeps exit codes. The daemon does everything that needs names on the host: control groups, image layers, volumes, log
//! files; it passes them on as descriptors.
//!
//! Reading order: [`protocol`] (what daemon and shim say), [`shim`], `nursery` and `connection` (the daemon's ends), `record` (what is on disk), `plan`
//! (CRI's words to a `Spec`, pure), `cdi` (devices by name), `sandbox`, `container`, `exec`, `stats`, `recover`, `service` (the trait).
//!
//! Tasks: one per pod, reading its shim's socket. Channels: a broadcast of container events (bounded; a reader that lags is
//! cut off and relists), a one-shot per call to a shim.

mod apparmor;
mod cdi;
mod connection;
mod container;
mod exec;
mod host_ports;
mod mountpoints;
mod nursery;
mod plan;
mod protocol;
mod record;
mod recover;
mod sandbox;
mod service;
mod shelf;
pub mod shim;
mod skeleton;
mod state;
mod stats;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use state::Runtime;

/// The shims' control group below the root.
pub(crate) const SHIMS: &str = "shims";

/// How the runtime is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Containers' writable layers. Must lie on a file system that overlayfs accepts as upper.
    pub data_dir: PathBuf,
    /// Sockets, records, exit codes; gone after a reboot, as the pods are.
    pub run_dir: PathBuf,
    /// The control group root, such as `sternpost`.
    pub cgroup_root: String,
    /// Files of the Container Device Interface; later folders count before earlier ones.
    pub cdi_dirs: Vec<PathBuf>,
    /// Handlers of pods (RuntimeClass) whose containers another program makes: one with runc's command line, by its path on the host.
    pub handlers: BTreeMap<String, PathBuf>,
    /// The binary that serves as shim, see [`is_shim_invocation`].
    pub exe: PathBuf,
}

impl Config {
    /// Everything below two directories, with the running binary as shim.
    pub fn new(data_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>, cgroup_root: impl Into<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            run_dir: run_dir.into(),
            cgroup_root: cgroup_root.into(),
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            handlers: BTreeMap::new(),
            exe: "/proc/self/exe".into(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step}: {source}")]
    Io { step: String, source: std::io::Error },
    #[error(transparent)]
    Cgroups(#[from] cgroups::Error),
    #[error(transparent)]
    Images(#[from] images::Error),
    #[error("pod network: {0}")]
    Network(#[from] cni::Error),
    #[error("{0}")]
    Launch(#[from] oci::Failure),
    #[error("shim of sandbox {0} is gone")]
    ShimGone(String),
    #[error("{0}")]
    PortTaken(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Timeout(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl From<Error> for cri::Error {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NotFound(_) => cri::Code::NotFound,
            Error::Invalid(_) => cri::Code::InvalidArgument,
            Error::Timeout(_) => cri::Code::DeadlineExceeded,
            _ => cri::Code::Unknown,
        };
        cri::Error::new(code, error.to_string())
    }
}

pub(crate) fn io_error(step: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let step = step.into();
    move |source| Error::Io { step, source }
}

/// True when this process was started to be the parent of shims: then the first thing in `main` is [`run_shim`].
pub fn is_shim_invocation() -> bool {
    std::env::args_os().nth(1).is_some_and(|argument| argument == shim::NURSERY_ARGUMENT)
}

/// Serves as the parent of shims with this process's arguments; never returns.
pub fn run_shim() -> ! {
    shim::main(std::env::args_os().skip(2))
}
