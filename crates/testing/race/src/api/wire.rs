//! HTTP/1.1 over TLS with as little of a client as possible, so that the figures are the server's: requests are bytes made beforehand,
//! answers are counted, not decoded.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use client::kubeconfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const BUFFER: usize = 64 << 10;

/// A server and who asks it.
#[derive(Clone)]
pub struct Remote {
    address: SocketAddr,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Remote {
    pub fn from_kubeconfig(path: &Path) -> anyhow::Result<Self> {
        let access = kubeconfig::load(path, None)?;
        let authority = access.server.strip_prefix("https://").context("the server has no https://")?;
        let address: SocketAddr = authority.trim_end_matches('/').parse().context("the server is no IP:port")?;
        let mut config = client::tls_config(&access)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { address, name: ServerName::IpAddress(address.ip().into()), tls: TlsConnector::from(Arc::new(config)) })
    }

    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(self.name.clone(), stream).await?;
        Ok(Connection { stream, buffer: vec![0; BUFFER], begin: 0, end: 0 })
    }
}

/// A request as it goes over the wire.
pub fn request(method: &str, path: &str, content_type: &str, body: &str) -> Vec<u8> {
    let content =
        if body.is_empty() { String::new() } else { format!("content-type: {content_type}\r\ncontent-length: {}\r\n", body.len()) };
    format!("{method} {path} HTTP/1.1\r\nhost: race\r\naccept: application/json\r\nuser-agent: race/1\r\n{content}\r\n{body}").into_bytes()
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
    pub async fn ask(&mut self, request: &[u8]) -> anyhow::Result<Answer> {
        self.stream.write_all(request).await?;
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
    pub async fn begin(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(request).await?;
        let head = self.head().await?;
        ensure!(head.status == 200, "status {}", head.status);
        Ok(())
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
