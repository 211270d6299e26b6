//! Images on this node: pulled, imported, built or built in, unpacked and ready to be mounted; and the registry that they are pushed to.
//!
//! [`Store`] is the whole crate: one directory per layer under the digest of its content, what images came as (packed layers, configurations,
//! manifests) as blobs under their digests, one record per image, all below one directory.
//! It implements CRI's [`cri::ImageService`]; [`Store::import`] loads OCI and Docker archives, [`Store::save_archive`] writes them;
//! [`Store::pull_with`] and [`Store::push`] speak with registries, which [`Registries`] says how to reach; [`Server`] is the built-in registry over
//! the same blobs, for pushes on loopback and for other nodes. [`Store::add_builtin`] registers
//! an image that was never packed. The runtime asks [`Store::resolve`] for what to run and takes a [`Store::lease`] on it, so that removal waits until the
//! last container is gone.
//!
//! A blob is downloaded to a temporary name, hashed while it is written, renamed when its digest is right; a layer is unpacked to a temporary
//! directory and renamed, too: whatever a crash leaves behind is rubbish with a temporary name and goes at the next start.
//!
//! Tasks: none of its own but the server's connections; unpacking runs on blocking threads. The crate knows no Kubernetes kinds.

mod archive;
mod blobs;
mod built;
mod compression;
mod config;
mod download;
mod entries;
mod export;
mod http;
mod manifest;
mod pull;
mod push;
mod reference;
mod registries;
mod registry;
mod remote;
mod service;
mod store;
mod unpack;
mod verify;

/// For builds: entries of archives that nobody vouches for, placed below a directory and nowhere else.
pub fn unpack_archive(from: impl std::io::Read + Send, target: &std::path::Path) -> Result<()> {
    unpack::unpack(compression::decompress(from, "the archive")?, target, unpack::Limits::default())
}

pub use archive::ImageRef;
pub use built::{Base, Kept, Layer, open_archive};
pub use config::ImageConfig;
pub use http::{Resolver, Tls};
pub use manifest::{Descriptor, Document, Platform, architecture};
pub use pull::{Progress, Pull, Reporter};
pub use reference::Reference;
pub use registries::{Endpoint, Registries};
pub use registry::{Access, Server};
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
    #[error("failed to push image {reference:?}: {reason}")]
    Push { reference: String, reason: String },
    #[error("SignatureValidationFailed: the image verifier {verifier} rejected {reference}: {reason}")]
    Rejected { reference: String, verifier: String, reason: String },
    #[error("manifest: {0}")]
    Manifest(String),
    #[error("{0}: not on this node")]
    Missing(String),
    #[error("{0}: no such image")]
    NoImage(String),
    #[error("{0}: it is unpacked only, and cannot be pushed, saved or built upon")]
    Unpacked(String),
    #[error("{0}")]
    TooLarge(String),
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
