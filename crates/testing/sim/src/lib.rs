//! A whole control plane in one process, without a machine under it: store, API server, controllers, scheduler, and hollow nodes.
//!
//! [`Embedded`] assembles the parts that are asked for, for `sternpost simulate`, the benchmarks, and tests.

mod embedded;

pub use embedded::{Embedded, Parts};
