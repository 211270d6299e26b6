//! Processes and streams in running containers: exec, attach, port-forward.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use cri::streams::{Reader, Streams, TerminalSize, Writer};
use cri::v1;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use crate::connection::{Connection, register};
use crate::protocol::Request;
use crate::state::{Container, Inner, lock};
use crate::{Error, Result, io_error};

/// Output of an ExecSync beyond this is dropped, as containerd does.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;

/// An exec'd process: its number at the shim and its ends.
struct Running {
    connection: Arc<Connection>,
    number: u64,
    exit: oneshot::Receiver<i32>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

impl Inner {
    fn running_container(&self, id: &str) -> Result<Arc<Container>> {
        let container = self.container(id)?;
        let state = container.life.borrow().state();
        if state != v1::ContainerState::ContainerRunning {
            return Err(Error::Invalid(format!("container {:?} is in {} state", container.id, state.as_str_name())));
        }
        Ok(container)
    }

    async fn launch_exec(&self, id: &str, cmd: &[String], tty: bool, wanted: [bool; 3]) -> Result<Running> {
        let container = self.running_container(id)?;
        let connection = container.sandbox.connection()?;
        let mut process: oci::Process =
            serde_json::from_str(&lock(&container.record).process).map_err(|e| Error::Invalid(e.to_string()))?;
        process.args = cmd.to_vec();
        process.terminal = tty;
        if tty && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
            process.env.push("TERM=xterm".into());
        }
        let mut ours = [None, None, None];
        let mut theirs = Vec::new();
        let stdio = wanted.map(|wanted| wanted && !tty);
        for (number, (wanted, ours)) in stdio.iter().zip(&mut ours).enumerate() {
            if *wanted {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| io_error("make a pipe")(e.into()))?;
                let (keep, give) = if number == 0 { (write, read) } else { (read, write) };
                *ours = Some(keep);
                theirs.push(give);
            }
        }
        let (number, exit) = connection.expect_exec();
        let request = Request::Exec { exec: number, container: container.id.clone(), process: Box::new(process), stdio };
        let borrowed: Vec<BorrowedFd<'_>> = theirs.iter().map(AsFd::as_fd).collect();
        match connection.call(request, &borrowed).await {
            Ok((_, descriptors)) => {
                let [stdin, stdout, stderr] = ours;
                Ok(Running { connection, number, exit, stdin, stdout, stderr, terminal: descriptors.into_iter().next() })
            }
            Err(error) => {
                connection.forget_exec(number);
                Err(match error {
                    Error::Launch(failure) => Error::Io {
                        step: format!("failed to exec in container {:?}", container.id),
                        source: io::Error::other(format!("OCI runtime exec failed: unable to start container process: {failure}")),
                    },
                    other => other,
                })
            }
        }
    }

    /// Runs to the end. A timeout of 0 is none.
    pub async fn exec_sync(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse> {
        let running = self.launch_exec(&request.container_id, &request.cmd, false, [false, true, true]).await?;
        let Running { connection, number, exit, stdout, stderr, .. } = running;
        let finish = async {
            let (stdout, stderr) = tokio::join!(collect(stdout), collect(stderr));
            (stdout, stderr, exit.await)
        };
        let finished = match request.timeout {
            ..=0 => Ok(finish.await),
            seconds => tokio::time::timeout(Duration::from_secs(seconds as u64), finish).await,
        };
        match finished {
            Ok((stdout, stderr, Ok(exit_code))) => Ok(v1::ExecSyncResponse { stdout: stdout?.into(), stderr: stderr?.into(), exit_code }),
            Ok((_, _, Err(_))) => Err(Error::ShimGone(request.container_id)),
            Err(_elapsed) => {
                let _ = connection.call(Request::SignalExec { exec: number, signal: libc::SIGKILL }, &[]).await;
                connection.forget_exec(number);
                Err(Error::Timeout(format!(
                    "failed to exec in container: timeout {}s exceeded: context deadline exceeded",
                    request.timeout
                )))
            }
        }
    }

    pub async fn exec(&self, request: v1::ExecRequest) -> Result<Streams> {
        let wanted = [request.stdin, request.stdout, request.stderr];
        let running = self.launch_exec(&request.container_id, &request.cmd, request.tty, wanted).await?;
        let Running { exit, stdin, stdout, stderr, terminal, .. } = running;
        match terminal {
            Some(master) => terminal_streams(master, request.stdin, None, exit),
            None => {
                Ok(Streams { stdin: writer(stdin)?, stdout: reader(stdout)?, stderr: reader(stderr)?, resize: None, exit, failure: None })
            }
        }
    }

    pub async fn attach(&self, request: v1::AttachRequest) -> Result<Streams> {
        let container = self.running_container(&request.container_id)?;
        let tty = container.config().tty;
        let (stdout, stderr) = (request.stdout || tty, request.stderr && !tty);
        let mut ours = [None, None];
        let mut theirs = Vec::new();
        for (wanted, ours) in [stdout, stderr].into_iter().zip(&mut ours) {
            if wanted {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| io_error("make a pipe")(e.into()))?;
                *ours = Some(read);
                theirs.push(write);
            }
        }
        let call = Request::Attach { container: container.id.clone(), stdin: request.stdin, stdout, stderr };
        let borrowed: Vec<BorrowedFd<'_>> = theirs.iter().map(AsFd::as_fd).collect();
        let (_, descriptors) = container.sandbox.connection()?.call(call, &borrowed).await?;
        drop(theirs);
        let input = descriptors.into_iter().next();
        let (sender, exit) = oneshot::channel();
        tokio::spawn(async move {
            // Waits for the container, or for the client to lose interest.
            let mut sender = sender;
            tokio::select! {
                ended = container.wait() => drop(sender.send(ended.code)),
                () = sender.closed() => {}
            }
        });
        let [stdout, stderr] = ours;
        match input {
            Some(master) if tty => terminal_streams(master, request.stdin, stdout, exit),
            input => {
                Ok(Streams { stdin: writer(input)?, stdout: reader(stdout)?, stderr: reader(stderr)?, resize: None, exit, failure: None })
            }
        }
    }

    /// A connection to the pod's own loopback, IPv4 first.
    pub async fn port_forward(&self, sandbox: &str, port: u16) -> Result<tokio::net::TcpStream> {
        let connection = self.sandbox(sandbox)?.connection()?;
        let mut refused = None;
        for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))] {
            let (_, descriptors) = connection.call(Request::Socket { ipv6: address.is_ipv6() }, &[]).await?;
            let socket = descriptors.into_iter().next().ok_or_else(|| Error::ShimGone(sandbox.to_owned()))?;
            match tokio::net::TcpSocket::from_std_stream(socket.into()).connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let error = refused.unwrap_or_else(|| io::Error::other("no address"));
        Err(io_error(format!("failed to connect to localhost:{port} inside namespace of sandbox {sandbox:?}"))(error))
    }
}

async fn collect(end: Option<OwnedFd>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut reader) = reader(end)? {
        (&mut reader).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await.map_err(io_error("read the output"))?;
        // Read on, so that the process does not block on a full pipe.
        tokio::io::copy(&mut reader, &mut tokio::io::sink()).await.map_err(io_error("read the output"))?;
    }
    Ok(bytes)
}

fn reader(end: Option<OwnedFd>) -> Result<Option<Reader>> {
    let open = |end| Ok(Box::pin(pipe::Receiver::from_owned_fd(end).map_err(io_error("open a pipe"))?) as Reader);
    end.map(open).transpose()
}

fn writer(end: Option<OwnedFd>) -> Result<Option<Writer>> {
    let open = |end| Ok(Box::pin(Input(Some(pipe::Sender::from_owned_fd(end).map_err(io_error("open a pipe"))?))) as Writer);
    end.map(open).transpose()
}

/// A pipe whose shutdown closes it: end of file for the process.
struct Input(Option<pipe::Sender>);

impl AsyncWrite for Input {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Some(pipe) => Pin::new(pipe).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}

/// `output` is where an attached terminal's output comes from (the shim reads the master itself); an exec'd one is read here.
fn terminal_streams(master: OwnedFd, stdin: bool, output: Option<OwnedFd>, exit: oneshot::Receiver<i32>) -> Result<Streams> {
    let copy = || master.try_clone().map_err(io_error("copy a terminal"));
    let (resize, mut sizes) = mpsc::channel::<TerminalSize>(4);
    let control = copy()?;
    tokio::spawn(async move {
        while let Some(size) = sizes.recv().await {
            let size = rustix::termios::Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
            let _ = rustix::termios::tcsetwinsize(&control, size);
        }
    });
    let stdin = if stdin { Some(Box::pin(Terminal::new(copy()?)?) as Writer) } else { None };
    let stdout = match output {
        Some(pipe) => reader(Some(pipe))?,
        None => Some(Box::pin(Terminal::new(master)?) as Reader),
    };
    Ok(Streams { stdin, stdout, stderr: None, resize: Some(resize), exit, failure: None })
}

/// A terminal's master. That its last user is gone (EIO) is end of file.
struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    fn new(master: OwnedFd) -> Result<Self> {
        let open = || -> io::Result<_> {
            let flags = rustix::fs::fcntl_getfl(&master)?;
            rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
            register(master)
        };
        open().map(Self).map_err(io_error("open a terminal"))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), into.initialize_unfilled())?)) {
                Ok(Ok(length)) => {
                    into.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
