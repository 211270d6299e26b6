//! Images on this node: pulled, imported or built in, unpacked and ready to be mounted.
//!
//! [`Store`] is the whole crate: one directory per layer under the digest of its content, one record per image, all below one directory.
//! Compressed layers are not kept.
//! It implements CRI's [`cri::ImageService`]; [`Store::import`] loads OCI and Docker archives; [`Store::add_builtin`] registers
//! an image that was never packed. The runtime asks [`Store::resolve`] for what to run and takes a [`Store::lease`] on it, so that removal waits until the
//! last container is gone.
//!
//! A layer is downloaded to a temporary name, hashed while it is written, renamed when its digest is right, unpacked to a temporary
//! directory and renamed again: whatever a crash leaves behind is rubbish with a temporary name and goes at the next start.
//!
//! Tasks: none of its own; unpacking runs on blocking threads. The crate knows no Kubernetes kinds.

mod archive;
mod config;
mod pull;
mod reference;
mod service;
mod store;
mod unpack;

pub use archive::ImageRef;
pub use config::ImageConfig;
pub use reference::Reference;
pub use service::{Service, usage};
pub use store::{Image, Lease, Store};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("invalid image reference {reference:?}: {reason}")]
    Reference { reference: String, reason: String },
    #[error("{step}: {source}")]
    Io { step: String, source: std::io::Error },
    #[error("failed to pull and unpack image {reference:?}: {reason}")]
    Pull { reference: String, reason: String, not_found: bool },
    #[error("layer {layer}: unsupported media type {media_type}")]
    Unsupported { layer: String, media_type: String },
    #[error("{what} has digest {actual}, not {expected}")]
    Digest { what: String, expected: String, actual: String },
    #[error("image archive: {0}")]
    Archive(String),
    #[error("layer entry {path:?}: {reason}")]
    Entry { path: String, reason: String },
}

pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn io_error(step: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let step = step.into();
    move |source| Error::Io { step, source }
}
