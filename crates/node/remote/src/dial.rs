//! The client's side of a streaming URL: SPDY/3.1 as upstream's `client-go/tools/remotecommand` and `portforward` speak it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cri::streams::{Forward, Reader, Streams, TerminalSize};
use cri::{Code, Error, Result};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::json;
use streaming::spdy::session::{Io, Role, Session};
use streaming::spdy::{Stream, StreamWriter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

/// Bytes that may wait between the wire and the reader of a stream.
const PIPE_BYTES: usize = 64 << 10;
/// How long the end of a connection waits for the reason.
const REASON_WITHIN: Duration = Duration::from_secs(1);
/// Terminal sizes that may wait; only the last one matters.
const SIZES_MAX: usize = 8;

#[derive(Clone, Copy)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

fn failed(step: &str, error: impl std::fmt::Display) -> Error {
    Error::new(Code::Unavailable, format!("{step}: {error}"))
}

/// Connects and upgrades; the connection then carries SPDY.
async fn upgrade(url: &str, protocol: &str) -> Result<impl Io + use<>> {
    let uri: http::Uri = url.parse().map_err(|error| failed("the runtime's streaming URL", error))?;
    let authority = uri.authority().ok_or_else(|| failed("the runtime's streaming URL", "it names no host"))?;
    let step = format!("connect to {authority}");
    let port = authority.port_u16().unwrap_or(80);
    let host = authority.host().trim_matches(['[', ']']);
    let address: std::net::IpAddr = host.parse().map_err(|_| failed(&step, "not an address"))?;
    let stream = TcpStream::connect((address, port)).await.map_err(|error| failed(&step, error))?;
    let _ = stream.set_nodelay(true);
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| failed(&step, error))?;
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = Request::post(path)
        .header(header::HOST, authority.as_str())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("x-stream-protocol-version", protocol)
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&step, error))?;
    let response = sender.send_request(request).await.map_err(|error| failed(&step, error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let said = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(failed(&step, format!("{status}: {}", String::from_utf8_lossy(&said))));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| failed(&step, error))?;
    Ok(TokioIo::new(upgraded))
}

async fn open(session: &Session, kind: &str) -> Result<Stream> {
    session.open(vec![("streamtype".into(), kind.into())]).await.map_err(|error| failed("open a stream", error))
}

/// An exec or attach.
pub async fn streams(url: &str, wanted: Wanted) -> Result<Streams> {
    let session = Session::start(upgrade(url, "v4.channel.k8s.io").await?, Role::Client);
    // In upstream's order; the other side waits until all are there.
    let error = open(&session, "error").await?;
    let stdin = if wanted.stdin { Some(open(&session, "stdin").await?) } else { None };
    let stdout = if wanted.stdout { Some(open(&session, "stdout").await?) } else { None };
    let stderr = if wanted.stderr && !wanted.tty { Some(open(&session, "stderr").await?) } else { None };
    let resize = if wanted.tty { Some(open(&session, "resize").await?) } else { None };
    let (sender, exit) = oneshot::channel();
    let (tell, failure) = oneshot::channel();
    let stdin = stdin.map(|stream| {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(send(theirs, stream.writer));
        Box::pin(ours) as cri::streams::Writer
    });
    let mut copies = Vec::new();
    let mut output = |stream: Option<Stream>| {
        stream.map(|stream| {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            copies.push(tokio::spawn(receive(stream.reader, theirs)));
            Box::pin(ours) as Reader
        })
    };
    let (stdout, stderr) = (output(stdout), output(stderr));
    let resize = resize.map(|stream| {
        let (sizes, incoming) = mpsc::channel(SIZES_MAX);
        tokio::spawn(send_sizes(incoming, stream.writer));
        sizes
    });
    tokio::spawn(async move {
        let result = result(&said(error.reader).await);
        for copy in copies {
            let _ = copy.await;
        }
        let _ = match result {
            Ok(code) => sender.send(code).is_ok(),
            Err(why) => tell.send(why).is_ok(),
        };
        session.finish().await;
    });
    Ok(Streams { stdin, stdout, stderr, resize, exit, failure: Some(failure) })
}

async fn receive(mut from: mpsc::Receiver<Bytes>, mut to: tokio::io::DuplexStream) {
    while let Some(bytes) = from.recv().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn send(mut from: impl AsyncReadExt + Unpin, to: StreamWriter) {
    let mut buffer = BytesMut::with_capacity(PIPE_BYTES);
    while let Ok(1..) = from.read_buf(&mut buffer).await {
        if to.write(buffer.split().freeze()).await.is_err() {
            return;
        }
        buffer.reserve(PIPE_BYTES);
    }
    let _ = to.finish().await;
}

async fn send_sizes(mut from: mpsc::Receiver<TerminalSize>, to: StreamWriter) {
    while let Some(TerminalSize { width, height }) = from.recv().await {
        if to.write(json!({"Width": width, "Height": height}).to_string().into()).await.is_err() {
            return;
        }
    }
}

/// All that comes on an error stream, as far as it is of a size that people write.
async fn said(mut reader: mpsc::Receiver<Bytes>) -> BytesMut {
    let mut said = BytesMut::new();
    while let Some(bytes) = reader.recv().await {
        if said.len() < PIPE_BYTES {
            said.extend_from_slice(&bytes);
        }
    }
    said
}

/// The exit code that the error stream's Status tells, or why there is none.
fn result(said: &[u8]) -> std::result::Result<i32, String> {
    /// What upstream's streaming server puts before the runtime's own words, as do we for our client.
    const PREFIX: &str = "error executing command in container: ";
    if said.is_empty() {
        return Ok(0);
    }
    let status: serde_json::Value = serde_json::from_slice(said).map_err(|_| String::from_utf8_lossy(said).into_owned())?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let mut causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code = causes.find(|cause| cause["reason"] == "ExitCode").and_then(|cause| cause["message"].as_str()?.parse().ok());
    code.ok_or_else(|| {
        let message = status["message"].as_str().unwrap_or_default();
        message.split_once(PREFIX).map_or(message, |(_, own)| own).to_owned()
    })
}

/// One connection to a port of the pod, as a connection on loopback.
pub async fn port(url: &str, port: u16) -> Result<Forward> {
    let session = Session::start(upgrade(url, "portforward.k8s.io").await?, Role::Client);
    let headers = |kind: &str| {
        vec![("streamtype".to_owned(), kind.to_owned()), ("port".to_owned(), port.to_string()), ("requestid".to_owned(), "0".to_owned())]
    };
    let opened = |error: std::io::Error| failed("open a stream", error);
    let error = session.open(headers("error")).await.map_err(opened)?;
    error.writer.finish().await.map_err(opened)?;
    let data = session.open(headers("data")).await.map_err(opened)?;
    let (ours, theirs) = pair().await.map_err(opened)?;
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let (read, mut write) = theirs.into_split();
        let mut incoming = data.reader;
        let inbound = async {
            while let Some(bytes) = incoming.recv().await {
                if write.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            // Only a failure is said on the error stream, and then before our side of the connection ends.
            let failure = tokio::time::timeout(REASON_WITHIN, said(error.reader)).await.unwrap_or_default();
            if !failure.is_empty() {
                let _ = tell.send(String::from_utf8_lossy(&failure).into_owned());
            }
            let _ = write.shutdown().await;
        };
        futures_util::future::join(inbound, send(read, data.writer)).await;
        session.finish().await;
    });
    Ok(Forward { stream: ours, failure: Some(told) })
}

async fn pair() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let ours = TcpStream::connect(listener.local_addr()?).await?;
    // Nobody else may slip in between.
    loop {
        let (theirs, peer) = listener.accept().await?;
        if peer == ours.local_addr()? {
            return Ok((ours, theirs));
        }
    }
}
