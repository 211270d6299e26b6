//! The daemon's end of a shim's socket.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::protocol::{self, Call, Exit, Message, Reply, Request};
use crate::{Error, Result, io_error};

type Answer = (std::result::Result<Reply, oci::Failure>, Vec<OwnedFd>);

/// One connected shim. Dropping the last reference closes the connection; the shim lives on.
pub struct Connection {
    sandbox: String,
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    shim_pid: AtomicI32,
    pending: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    execs: Mutex<HashMap<u64, oneshot::Sender<i32>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket path may have 107 bytes, a state directory more: it is reached through its descriptor.
fn address(directory: &OwnedFd) -> std::io::Result<SocketAddrUnix> {
    use std::os::fd::AsRawFd;
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/shim.sock", directory.as_raw_fd()))?)
}

fn open_directory(directory: &Path) -> std::io::Result<OwnedFd> {
    Ok(std::fs::File::open(directory)?.into())
}

/// The socket on which a new shim will listen.
pub fn listen(directory: &Path) -> std::io::Result<OwnedFd> {
    let handle = open_directory(directory)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &address(&handle)?)?;
    rustix::net::listen(&socket, 4)?;
    Ok(socket)
}

/// Puts a non-blocking descriptor under tokio's watch.
pub fn register(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open as long as it lives, and the AsyncFd owns it.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

impl Connection {
    /// Connects to the shim whose state is in `directory`.
    pub fn open(sandbox: &str, directory: &Path) -> std::io::Result<Arc<Self>> {
        let handle = open_directory(directory)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        rustix::net::connect(&socket, &address(&handle)?)?;
        Ok(Arc::new(Self {
            sandbox: sandbox.to_owned(),
            socket: register(socket)?,
            next: AtomicU64::new(1),
            shim_pid: AtomicI32::new(0),
            pending: Mutex::default(),
            execs: Mutex::default(),
        }))
    }

    /// Reads until the shim is gone; `exited` hears of every container that ended.
    pub async fn run(self: Arc<Self>, exited: impl Fn(String, Exit)) {
        while let Ok(Some((message, descriptors))) = self.receive().await {
            match message {
                Message::Reply { number, reply } => {
                    if let Some(waiting) = lock(&self.pending).remove(&number) {
                        let _ = waiting.send((reply, descriptors));
                    }
                }
                Message::Exited { container, exit } => exited(container, exit),
                Message::ExecExited { exec, code } => {
                    if let Some(waiting) = lock(&self.execs).remove(&exec) {
                        let _ = waiting.send(code);
                    }
                }
            }
        }
        lock(&self.pending).clear();
        lock(&self.execs).clear();
    }

    async fn receive(&self) -> std::io::Result<Option<(Message, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| protocol::receive(socket.get_ref())) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Sends one request and waits for its reply.
    pub async fn call(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&self.pending).insert(number, sender);
        self.send(&Call { number, request }, descriptors).await.inspect_err(|_| {
            lock(&self.pending).remove(&number);
        })?;
        let (reply, descriptors) = answer.await.map_err(|_| Error::ShimGone(self.sandbox.clone()))?;
        let reply = reply?;
        if let Reply::Ready { shim } | Reply::Hello { shim, .. } = &reply {
            self.shim_pid.store(*shim, Ordering::Relaxed);
        }
        Ok((reply, descriptors))
    }

    async fn send(&self, call: &Call, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let failed = |e: std::io::Error| match e.raw_os_error() {
            Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => Error::ShimGone(self.sandbox.clone()),
            _ => io_error(format!("send to the shim of sandbox {}", self.sandbox))(e),
        };
        loop {
            let mut ready = self.socket.writable().await.map_err(failed)?;
            match ready.try_io(|socket| protocol::send(socket.get_ref().as_fd(), call, descriptors)) {
                Ok(result) => return result.map_err(failed),
                Err(_would_block) => {}
            }
        }
    }

    /// A number for a new exec, and its exit code to come.
    pub fn expect_exec(&self) -> (u64, oneshot::Receiver<i32>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.execs).insert(number, sender);
        (number, receiver)
    }

    /// The shim's process id.
    pub fn peer_pid(&self) -> Option<i32> {
        // A listener's credentials are those of whoever called listen: the daemon. The shim tells its own when it answers.
        Some(self.shim_pid.load(Ordering::Relaxed)).filter(|pid| *pid > 0)
    }

    pub fn forget_exec(&self, number: u64) {
        lock(&self.execs).remove(&number);
    }
}
