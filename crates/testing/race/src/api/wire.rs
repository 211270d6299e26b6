//! HTTP over TLS with as little of a client as possible, so that the figures are the server's: requests are bytes made beforehand,
//! answers are counted, not decoded. HTTP/1.1 by hand, HTTP/2 by hyper.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use client::kubeconfig::{self, Access};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const BUFFER: usize = 64 << 10;
/// Requests under way on one HTTP/2 connection.
const STREAMS: usize = 16;

/// A server and who asks it.
#[derive(Clone)]
pub struct Remote {
    address: SocketAddr,
    name: ServerName<'static>,
    access: Access,
}

/// How it is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    pub fn word(self) -> &'static str {
        match self {
            Protocol::Http1 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
        }
    }
}

impl Remote {
    pub fn from_kubeconfig(path: &Path) -> anyhow::Result<Self> {
        Self::of(kubeconfig::load(path, None)?)
    }

    pub fn of(access: Access) -> anyhow::Result<Self> {
        let authority = access.server.strip_prefix("https://").context("the server has no https://")?;
        let address: SocketAddr = authority.trim_end_matches('/').parse().context("the server is no IP:port")?;
        Ok(Self { address, name: ServerName::IpAddress(address.ip().into()), access })
    }

    /// A server whose certificate nobody vouches for.
    pub fn unverified(address: SocketAddr) -> anyhow::Result<Self> {
        let access = Access { insecure: true, ..Access::default() };
        Ok(Self { address, name: ServerName::IpAddress(address.ip().into()), access })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    async fn open(&self, protocol: &[u8]) -> anyhow::Result<TlsStream<TcpStream>> {
        let mut config = client::tls_config(&self.access)?;
        config.alpn_protocols = vec![protocol.to_vec()];
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(TlsConnector::from(Arc::new(config)).connect(self.name.clone(), stream).await?)
    }

    pub async fn connect(&self) -> anyhow::Result<Connection> {
        Ok(Connection { stream: self.open(b"http/1.1").await?, buffer: vec![0; BUFFER], begin: 0, end: 0 })
    }

    async fn connect_h2(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = self.open(b"h2").await?;
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_connection_window_size(16 << 20).initial_stream_window_size(4 << 20);
        let (requests, connection) = builder.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(requests)
    }

    /// So many that ask one request at a time: a connection each, or streams of few connections.
    pub async fn askers(&self, protocol: Protocol, number: usize) -> anyhow::Result<Vec<Asker>> {
        let mut askers = Vec::new();
        match protocol {
            Protocol::Http1 => {
                for _ in 0..number {
                    askers.push(Asker::Http1(Box::new(self.connect().await?)));
                }
            }
            Protocol::Http2 => {
                let mut requests = self.connect_h2().await?;
                for index in 0..number {
                    if index > 0 && index % STREAMS == 0 {
                        requests = self.connect_h2().await?;
                    }
                    askers.push(Asker::Http2(requests.clone()));
                }
            }
        }
        Ok(askers)
    }
}

/// A request, ready to be sent in either protocol.
#[derive(Clone, Debug)]
pub struct Call {
    method: &'static str,
    path: String,
    content_type: &'static str,
    body: Bytes,
    /// All of it as HTTP/1.1 has it.
    bytes: Vec<u8>,
}

impl Call {
    pub fn new(method: &'static str, path: &str, content_type: &'static str, body: &str) -> Self {
        let length = body.len();
        let content = if body.is_empty() { String::new() } else { format!("content-type: {content_type}\r\ncontent-length: {length}\r\n") };
        let head = format!("{method} {path} HTTP/1.1\r\nhost: race\r\naccept: application/json\r\nuser-agent: race/1\r\n{content}\r\n");
        let (path, bytes) = (path.to_owned(), (head + body).into_bytes());
        Self { method, path, content_type, body: Bytes::copy_from_slice(body.as_bytes()), bytes }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path, "", "")
    }

    /// The same to another path.
    pub fn to(&self, path: &str) -> Self {
        Self::new(self.method, path, self.content_type, &String::from_utf8_lossy(&self.body))
    }

    fn h2(&self) -> anyhow::Result<http::Request<Full<Bytes>>> {
        let mut builder = http::Request::builder().method(self.method).uri(format!("https://race{}", self.path));
        builder = builder.header("accept", "application/json").header("user-agent", "race/1");
        if !self.body.is_empty() {
            builder = builder.header("content-type", self.content_type);
        }
        Ok(builder.body(Full::new(self.body.clone()))?)
    }
}

/// One that has one request under way at a time.
pub enum Asker {
    Http1(Box<Connection>),
    Http2(SendRequest<Full<Bytes>>),
}

impl Asker {
    pub async fn ask(&mut self, call: &Call) -> anyhow::Result<Answer> {
        match self {
            Asker::Http1(connection) => connection.ask(call).await,
            Asker::Http2(requests) => {
                requests.ready().await?;
                let (head, mut body) = requests.send_request(call.h2()?).await?.into_parts();
                let mut body_bytes = 0;
                while let Some(frame) = body.frame().await {
                    body_bytes += frame?.data_ref().map_or(0, Bytes::len);
                }
                Ok(Answer { status: head.status.as_u16(), body_bytes })
            }
        }
    }
}

/// A connection with one request under way at a time.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
    /// What has arrived and was not used lies between these.
    begin: usize,
    end: usize,
}

/// An answer: its status and the bytes of its body.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub status: u16,
    pub body_bytes: usize,
}

impl Connection {
    /// Sends a request and reads the whole answer.
    pub async fn ask(&mut self, call: &Call) -> anyhow::Result<Answer> {
        self.send(call).await?;
        let head = self.head().await?;
        let body_bytes = match head.length {
            Some(length) => {
                self.skip(length).await?;
                length
            }
            None => self.chunks().await?,
        };
        Ok(Answer { status: head.status, body_bytes })
    }

    /// Sends a request whose answer does not end, and reads its head.
    pub async fn begin(&mut self, call: &Call) -> anyhow::Result<()> {
        self.send(call).await?;
        let head = self.head().await?;
        ensure!(head.status == 200, "status {}", head.status);
        Ok(())
    }

    async fn send(&mut self, call: &Call) -> anyhow::Result<()> {
        self.stream.write_all(&call.bytes).await?;
        // A task that has read much may not write at once: TLS then keeps the bytes, and without this they would stay there.
        Ok(self.stream.flush().await?)
    }

    /// What arrives next of it, in whatever pieces, chunk lines included.
    pub async fn piece(&mut self) -> anyhow::Result<&[u8]> {
        if self.begin == self.end {
            self.fill().await?;
        }
        let piece = self.begin..self.end;
        self.begin = self.end;
        Ok(&self.buffer[piece])
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        let read = self.stream.read(&mut self.buffer[self.end..]).await?;
        ensure!(read > 0, "the server closed the connection");
        self.end += read;
        Ok(())
    }

    async fn head(&mut self) -> anyhow::Result<Head> {
        loop {
            let arrived = &self.buffer[self.begin..self.end];
            if let Some(end) = arrived.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = Head::parse(std::str::from_utf8(&arrived[..end])?)?;
                self.begin += end + 4;
                return Ok(head);
            }
            self.fill().await?;
        }
    }

    async fn skip(&mut self, mut bytes: usize) -> anyhow::Result<()> {
        loop {
            let here = bytes.min(self.end - self.begin);
            self.begin += here;
            bytes -= here;
            if bytes == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn chunks(&mut self) -> anyhow::Result<usize> {
        let mut total = 0;
        loop {
            let size = loop {
                let arrived = &self.buffer[self.begin..self.end];
                if let Some(end) = arrived.windows(2).position(|two| two == b"\r\n") {
                    let size = usize::from_str_radix(std::str::from_utf8(&arrived[..end])?, 16)?;
                    self.begin += end + 2;
                    break size;
                }
                self.fill().await?;
            };
            self.skip(size + 2).await?;
            if size == 0 {
                return Ok(total);
            }
            total += size;
        }
    }
}

struct Head {
    status: u16,
    /// Absent: chunked.
    length: Option<usize>,
}

impl Head {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).context("no status line")?;
        let mut length = None;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse()?);
            } else if name.eq_ignore_ascii_case("connection") && value.trim() == "close" {
                bail!("the server wants to close the connection: {text}");
            }
        }
        Ok(Self { status, length })
    }
}
