//! The words that every part of the API shares: group-version-kind, metadata, `Status`, field errors, selectors, quantities, names.
//!
//! Read in this order: [`gvk`], [`status`], [`field`], [`names`], [`selector`], [`quantity`], [`time`].
//! Pure values; no I/O, no tasks, no kinds.

pub mod field;
pub mod gvk;
pub mod status;

pub use gvk::{GroupResource, GroupVersion, GroupVersionKind, GroupVersionResource};
pub use status::Status;
