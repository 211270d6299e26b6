//! The container runtime interface (CRI v1): the only thing that the kubelet knows of a container runtime.
//!
//! `v1` holds the wire messages, generated from cri-api. [`RuntimeService`] and [`ImageService`] are upstream's two
//! gRPC services as Rust traits: the embedded runtime implements them in-process, a client of a CRI socket implements
//! them for containerd, and a server will expose them on a socket for other clients. [`streams`] is what upstream leaves to a
//! streaming URL: exec, attach and port-forward as byte streams.
//!
//! Tasks: none. The crate knows no Kubernetes kinds.

pub mod contract;
mod error;
pub mod service;
pub mod streams;
#[allow(clippy::all, missing_docs)]
pub mod v1;

pub use error::{Code, Error, Result};
pub use service::{ImageService, RuntimeService};
