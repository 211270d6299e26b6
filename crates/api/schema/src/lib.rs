//! THE table: what every type of the API looks like, and everything that can be done from that knowledge alone.
//!
//! Read in this order: [`model`] (the form of the knowledge), `table` (the built-in types and resources, generated),
//! then the engines that walk an object beside its schema: `decode` (strictness, pruning, Go's zero values), `default`,
//! `protobuf`, `cbor`, `merge` (JSON merge and strategic merge patch), `apply` (server-side apply), `openapi`.
//! A CRD's structural schema becomes the same [`model::Schema`]: there is no second path. Pure; no I/O, no tasks.

pub mod apply;
pub mod cbor;
pub mod decode;
pub mod default;
pub mod merge;
pub mod model;
pub mod openapi;
pub mod protobuf;
pub mod resources;
pub mod table;
