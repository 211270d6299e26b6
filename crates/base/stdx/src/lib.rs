//! What std and tokio leave out and everybody needs: back-off, orderly stop, keyed tasks. No domain words.

pub mod backoff;
pub mod drain;

pub use backoff::Backoff;
pub use drain::{Drain, drain};
