//! A whole control plane in one process, without a machine under it: store, API server, controllers, scheduler, and hollow nodes.
//!
//! [`Embedded`] assembles the parts that are asked for, for benchmarks and tests. [`chaos`] puts a bad network between a client and the
//! server, from a seed; [`skew`] a wrong clock; [`scenario`] is what happens to a whole cluster under it, and how it must end.

pub mod chaos;
mod embedded;
mod random;
pub mod scenario;
pub mod skew;

pub use embedded::{Embedded, Parts};
pub use random::Random;
