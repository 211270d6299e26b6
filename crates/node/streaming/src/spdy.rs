//! SPDY/3.1 as far as `moby/spdystream` (the library under every Kubernetes client) uses it.
//!
//! [`frame`] is the codec over bytes, [`session`] multiplexes streams over one connection.

pub mod frame;
pub mod session;

pub use session::{Session, Stream, StreamWriter};
