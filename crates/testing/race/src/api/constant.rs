//! The floor of the case: a server of the same TLS and HTTP libraries, set up as ours is, that does nothing but answer bytes.
//!
//! It runs in a process of its own, as ours does. `/<n>` answers n bytes, whole up to 64 KiB and in chunks of that beyond, whatever the
//! method; `/stream/<n>` never stops sending lines of n bytes, as a watch in the middle of a flood would.

use std::convert::Infallible;
use std::io::BufRead;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context as Poller, Poll};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::wire::Remote;

/// Under this name the measuring program starts itself as the floor.
pub const NAME: &str = "constant";
const CHUNK: usize = 64 << 10;
/// What our watches send in one piece at most, about.
const PIECE: usize = 32 << 10;

/// The server's process; killed when dropped.
pub struct Constant {
    process: Child,
    pub program: PathBuf,
    pub remote: Remote,
}

impl Constant {
    pub fn start() -> anyhow::Result<Self> {
        // A copy, so that its memory and time are told from the client's by its file.
        let program = std::env::current_exe()?.with_file_name(format!("race-constant-{}", std::process::id()));
        std::fs::copy(std::env::current_exe()?, &program)?;
        let mut process =
            Command::new(&program).arg(NAME).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start the floor")?;
        let mut line = String::new();
        std::io::BufReader::new(process.stdout.take().context("the floor has no output")?).read_line(&mut line)?;
        let port = line.trim().parse().context("the floor names no port")?;
        Ok(Self { process, program, remote: Remote::unverified((Ipv4Addr::LOCALHOST, port).into())? })
    }
}

impl Drop for Constant {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.program);
    }
}

/// Serves until the process is killed. The first line of its output is its port.
pub async fn serve() -> anyhow::Result<()> {
    let pair = auth::pki::Pair::self_signed("floor", &[Ipv4Addr::LOCALHOST.into()])?;
    let acceptor = TlsAcceptor::from(pair.server_config(&pair.certificate)?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(connection(stream, acceptor.clone()));
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor) {
    let _ = stream.set_nodelay(true);
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1_000);
    builder.http2().initial_stream_window_size(1 << 20).initial_connection_window_size(4 << 20);
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service_fn(answer)).await;
}

async fn answer(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let _ = request.into_body().collect().await;
    let body = match path.strip_prefix("stream/") {
        Some(size) => Lines(lines(size.parse().unwrap_or(1))).boxed(),
        None => whole(path.parse().unwrap_or(0)),
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

fn whole(size: usize) -> BoxBody<Bytes, Infallible> {
    static ZEROS: [u8; CHUNK] = [b' '; CHUNK];
    let chunk = Bytes::from_static(&ZEROS);
    if size <= CHUNK { Full::new(chunk.slice(..size)).boxed() } else { Chunks { chunk, left: size }.boxed() }
}

struct Chunks {
    chunk: Bytes,
    left: usize,
}

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let size = self.left.min(self.chunk.len());
        self.left -= size;
        Poll::Ready((size > 0).then(|| Ok(Frame::data(self.chunk.slice(..size)))))
    }
}

fn lines(size: usize) -> Bytes {
    let mut line = vec![b'x'; size.clamp(1, PIECE) - 1];
    line.push(b'\n');
    line.repeat(PIECE / line.len()).into()
}

struct Lines(Bytes);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(self.0.clone()))))
    }
}
