//! The words that every part of the API shares: group-version-kind, metadata, `Status`, field errors, selectors, quantities, names.
//!
//! Read in this order: [`gvk`], [`status`], [`field`], [`names`], [`selector`], [`quantity`], [`time`], [`scan`].
//! Pure values; no I/O, no tasks, no kinds.

pub mod field;
pub mod gvk;
pub mod names;
pub mod quantity;
pub mod scan;
pub mod selector;
pub mod status;
pub mod time;

pub use gvk::{GroupResource, GroupVersion, GroupVersionKind, GroupVersionResource};
pub use quantity::Quantity;
pub use selector::{FieldSelector, LabelSelector};
pub use status::Status;
