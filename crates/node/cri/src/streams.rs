//! The standard streams of an exec or attach, in-process: what upstream carries over a streaming URL.

use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

/// A readable end.
pub type Reader = Pin<Box<dyn AsyncRead + Send>>;
/// A writable end; shutting it down is end of file for the process.
pub type Writer = Pin<Box<dyn AsyncWrite + Send>>;

/// A terminal's size, in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// One running exec or attach. Dropping all of it detaches: an exec'd process gets end of file (or a hang-up on its
/// terminal), an attached container keeps running.
pub struct Streams {
    /// Present when `stdin` was asked for.
    pub stdin: Option<Writer>,
    /// With a terminal, standard output and error both come here.
    pub stdout: Option<Reader>,
    pub stderr: Option<Reader>,
    /// Present with a terminal.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// The exit code of the exec'd command, or of the container for attach. A dropped sender means that it is unknown.
    pub exit: oneshot::Receiver<i32>,
    /// Why it is unknown, where the runtime is a process of its own and tells.
    pub failure: Option<oneshot::Receiver<String>>,
}

/// A connection to a port of a pod.
pub struct Forward {
    pub stream: TcpStream,
    /// Where the runtime is a process of its own, it connects only after this was returned: what went wrong comes here before the stream ends.
    pub failure: Option<oneshot::Receiver<String>>,
}

impl From<TcpStream> for Forward {
    fn from(stream: TcpStream) -> Self {
        Self { stream, failure: None }
    }
}
