//! The server side of remote commands and port forwarding: what `kubectl exec`, `attach` and `port-forward` speak.
//!
//! [`remote_command`] and [`port_forward`] take an HTTP/1.1 upgrade request and give the response to send and the task to spawn, which
//! serves the connection once it is upgraded. Two wire forms exist and both are chosen by the client:
//! SPDY/3.1 ([`spdy`]; `kubectl` up to 1.30, and inside a WebSocket for every port-forward) and WebSocket channels ([`websocket`]).
//! [`remote`] connects either form to [`cri::streams::Streams`]; [`portforward`] connects stream pairs to TCP connections.
//!
//! Tasks: one reader per SPDY or WebSocket connection, aborted with its session; everything else runs inside the returned task.
//! Channels: each stream's incoming bytes flow on a bounded channel, so a process that does not read its input stops the reader and
//! TCP pushes back on the client. The crate knows no Kubernetes kinds.

pub mod handshake;
pub mod portforward;
pub mod remote;
pub mod spdy;
pub mod websocket;

pub use handshake::{Reply, Task, is_upgrade};
pub use portforward::{Connect, port_forward};
pub use remote::{Command, Wanted, remote_command};
