//! The kubelet.
pub mod logs;
pub mod server;
