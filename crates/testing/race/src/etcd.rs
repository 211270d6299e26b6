//! The peer of the store: Debian's etcd-server on loopback, spoken to in gRPC.
//!
//! Two methods are needed, so the client is 60 lines over `hyper` and not a dependency with a protobuf compiler: a unary gRPC call is a
//! POST over HTTP/2 whose body is a flag byte, a 32-bit length and the message, and whose status comes in the trailers.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

/// A server of our own; killed when dropped.
pub struct Etcd {
    process: Child,
    address: SocketAddr,
}

impl Etcd {
    pub async fn start(program: Option<&Path>, dir: &Path) -> anyhow::Result<Self> {
        let program = program.map_or_else(|| PathBuf::from("etcd"), Path::to_path_buf);
        let (address, peer) = (free_address()?, free_address()?);
        let (client_url, peer_url) = (format!("http://{address}"), format!("http://{peer}"));
        let mut command = Command::new(&program);
        command.arg("--data-dir").arg(dir).args(["--name", "peer", "--log-level", "error"]);
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
        command.args(["--initial-cluster", &format!("peer={peer_url}"), "--quota-backend-bytes", "8589934592"]);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = quiet.spawn().with_context(|| {
            format!("start {}: install Debian's etcd-server (and stop its service), or name one with --etcd", program.display())
        })?;
        let etcd = Self { process, address };
        etcd.wait_until_serving().await?;
        Ok(etcd)
    }

    async fn wait_until_serving(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let put = async { self.connect().await?.put(Bytes::from_static(b"ready"), Bytes::new()).await };
            match put.await {
                Ok(()) => return Ok(()),
                Err(error) if start.elapsed() > Duration::from_secs(20) => return Err(error.context("etcd does not serve")),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// A connection of its own; clones of it share it.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let socket = tokio::net::TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_connection_window_size(16 << 20).initial_stream_window_size(1 << 20);
        let (requests, connection) = builder.handshake(TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        Ok(Connection { requests, address: self.address })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// `etcdserverpb.PutRequest`, the two fields that we send.
#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `etcdserverpb.RangeRequest`, the fields that we send. Without `serializable` the answer is linearizable, as the API server asks.
#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    /// The first key beyond the range; empty: `key` alone.
    #[prost(bytes = "bytes", tag = "2")]
    range_end: Bytes,
}

#[derive(Clone)]
pub struct Connection {
    requests: SendRequest<Full<Bytes>>,
    address: SocketAddr,
}

impl Connection {
    /// Returns when etcd has it on disk.
    pub async fn put(&mut self, key: Bytes, value: Bytes) -> anyhow::Result<()> {
        self.call("Put", &PutRequest { key, value }).await.map(drop)
    }

    /// Reads one key, or all below `range_end`; returns the answer's size in bytes.
    pub async fn range(&mut self, key: Bytes, range_end: Bytes) -> anyhow::Result<usize> {
        self.call("Range", &RangeRequest { key, range_end }).await
    }

    /// A unary call of the KV service. The answer is counted, not decoded.
    async fn call(&mut self, method: &str, message: &impl Message) -> anyhow::Result<usize> {
        let mut body = BytesMut::with_capacity(5 + message.encoded_len());
        body.put_u8(0);
        body.put_u32(message.encoded_len() as u32);
        message.encode(&mut body)?;
        let request = http::Request::post(format!("http://{}/etcdserverpb.KV/{method}", self.address))
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .body(Full::new(body.freeze()))?;
        self.requests.ready().await?;
        let (head, mut body) = self.requests.send_request(request).await?.into_parts();
        let (mut size, mut trailers) = (0, None);
        while let Some(frame) = body.frame().await {
            let frame = frame?;
            size += frame.data_ref().map_or(0, Bytes::len);
            trailers = frame.into_trailers().ok().or(trailers);
        }
        let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status")).or_else(|| head.headers.get("grpc-status"));
        match status {
            Some(code) if code == "0" => Ok(size),
            other => bail!("etcd answered {other:?} {:?}", head.headers.get("grpc-message")),
        }
    }
}
