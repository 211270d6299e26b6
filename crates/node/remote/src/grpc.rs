//! gRPC over HTTP/2 on a Unix socket: frames, status codes, a client that connects again, and the server's side of one call.
//!
//! Source: gRPC's "PROTOCOL-HTTP2". No compression: it is neither offered nor taken.

use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cri::{Code, Error, Result};
use futures_util::stream::BoxStream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::sync::Mutex;

/// Upstream's kubelet takes no larger message.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Before every message: a flag for compression and four bytes of length.
const PREFIX_BYTES: usize = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// gRPC's numbers of the codes.
const CODES: &[(u16, Code)] = &[
    (2, Code::Unknown),
    (3, Code::InvalidArgument),
    (4, Code::DeadlineExceeded),
    (5, Code::NotFound),
    (6, Code::AlreadyExists),
    (7, Code::PermissionDenied),
    (8, Code::ResourceExhausted),
    (9, Code::FailedPrecondition),
    (10, Code::Aborted),
    (12, Code::Unimplemented),
    (13, Code::Internal),
    (14, Code::Unavailable),
];

pub(crate) fn number(code: Code) -> u16 {
    CODES.iter().find(|(_, known)| *known == code).map_or(2, |(number, _)| *number)
}

fn code(number: u16) -> Code {
    CODES.iter().find(|(known, _)| *known == number).map_or(Code::Unknown, |(_, code)| *code)
}

pub(crate) fn frame(message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(message.encoded_len() + PREFIX_BYTES);
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    // A BytesMut grows as it is needed.
    let _ = message.encode(&mut out);
    out.freeze()
}

/// Takes the first message out of `buffer`; `None` until it is whole.
fn take(buffer: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some(prefix) = buffer.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    if prefix[0] != 0 {
        return Err(Error::new(Code::Unimplemented, "a compressed message"));
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(Error::new(Code::ResourceExhausted, format!("a message of {length} bytes is larger than {MESSAGE_BYTES_MAX}")));
    }
    if buffer.len() < PREFIX_BYTES + length {
        return Ok(None);
    }
    buffer.advance(PREFIX_BYTES);
    Ok(Some(buffer.split_to(length).freeze()))
}

fn broken(step: &str, error: impl std::fmt::Display) -> Error {
    Error::new(Code::Unavailable, format!("{step}: {error}"))
}

fn decode<A: Message + Default>(bytes: Bytes) -> Result<A> {
    A::decode(bytes).map_err(|error| Error::internal(format!("the answer cannot be read: {error}")))
}

/// What trailers (or, for a call without an answer, headers) say.
fn outcome(headers: &HeaderMap) -> Result<()> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        Some("0") => Ok(()),
        Some(status) => Err(Error::new(code(status.parse().unwrap_or(2)), unescape(text("grpc-message").unwrap_or_default()))),
        None => Err(Error::internal("the answer has no status")),
    }
}

/// Percent-encoding of everything that is not printable ASCII.
pub(crate) fn escape(text: &str) -> HeaderValue {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => out.push_str("%25"),
            0x20..=0x7e => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::from_str(&out).unwrap_or(HeaderValue::from_static(""))
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let escaped = text.get(at + 1..at + 3).filter(|_| *byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(escaped.unwrap_or(*byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One runtime behind a socket. All calls share a connection, which is made when it is needed.
pub struct Channel {
    socket: PathBuf,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Channel {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, connection: Mutex::default() }
    }

    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>> {
        let mut connection = self.connection.lock().await;
        if let Some(sender) = connection.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let connect = async {
            let step = format!("connect to {}", self.socket.display());
            let stream = tokio::net::UnixStream::connect(&self.socket).await.map_err(|error| broken(&step, error))?;
            let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            builder.handshake(TokioIo::new(stream)).await.map_err(|error| broken(&step, error))
        };
        let (sender, driver) = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| broken("connect", "timed out"))??;
        tokio::spawn(driver);
        *connection = Some(sender.clone());
        Ok(sender)
    }

    async fn send(&self, method: &str, message: &impl Message) -> Result<Response<Incoming>> {
        let request = Request::post(format!("http://localhost/{method}"))
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .body(Full::new(frame(message)))
            .map_err(|error| Error::internal(error.to_string()))?;
        self.sender().await?.send_request(request).await.map_err(|error| broken(method, error))
    }

    /// One question, one answer. `method` is `package.Service/Method`.
    pub async fn unary<A: Message + Default>(&self, method: &str, message: &impl Message) -> Result<A> {
        let (parts, body) = self.send(method, message).await?.into_parts();
        if parts.headers.contains_key("grpc-status") {
            outcome(&parts.headers)?;
        }
        let body = Limited::new(body, MESSAGE_BYTES_MAX + PREFIX_BYTES).collect().await.map_err(|error| broken(method, error))?;
        outcome(body.trailers().unwrap_or(&parts.headers))?;
        let mut buffer = BytesMut::from(body.to_bytes());
        decode(take(&mut buffer)?.ok_or_else(|| Error::internal(format!("{method} has no answer")))?)
    }

    /// One question, answers as they come.
    pub async fn stream<A: Message + Default + 'static>(
        &self,
        method: &str,
        message: &impl Message,
    ) -> Result<BoxStream<'static, Result<A>>> {
        let (parts, body) = self.send(method, message).await?.into_parts();
        if parts.headers.contains_key("grpc-status") {
            outcome(&parts.headers)?;
        }
        Ok(Box::pin(futures_util::stream::unfold(Some((body, BytesMut::new())), |state| async move {
            let (mut body, mut buffer) = state?;
            match next(&mut body, &mut buffer).await {
                Ok(Some(bytes)) => Some((decode(bytes), Some((body, buffer)))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })))
    }
}

async fn next(body: &mut Incoming, buffer: &mut BytesMut) -> Result<Option<Bytes>> {
    loop {
        if let Some(message) = take(buffer)? {
            return Ok(Some(message));
        }
        let Some(frame) = body.frame().await else { return Err(broken("stream", "it ended without a status")) };
        match frame.map_err(|error| broken("stream", error))?.into_data() {
            Ok(data) => buffer.extend_from_slice(&data),
            Err(frame) => return frame.trailers_ref().map_or(Ok(()), outcome).map(|()| None),
        }
    }
}

/// The single message of a request's body.
pub async fn question<Q: Message + Default>(body: Incoming) -> Result<Q> {
    let body = Limited::new(body, MESSAGE_BYTES_MAX + PREFIX_BYTES).collect().await;
    let bytes = body.map_err(|error| Error::new(Code::ResourceExhausted, error.to_string()))?.to_bytes();
    let message = take(&mut BytesMut::from(bytes))?.ok_or_else(|| Error::invalid("the request has no message"))?;
    Q::decode(message).map_err(|error| Error::invalid(format!("the request cannot be read: {error}")))
}

/// The trailers that end a call.
pub(crate) fn trailers(outcome: &Result<()>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let status = outcome.as_ref().map_or_else(|error| number(error.code), |()| 0);
    trailers.insert("grpc-status", HeaderValue::from(status));
    if let Err(error) = outcome {
        trailers.insert("grpc-message", escape(&error.message));
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_whole_whatever_pieces_they_came_in() {
        let (one, two) = (frame(&cri::v1::VersionRequest { version: "one".into() }), frame(&cri::v1::VersionRequest::default()));
        let all = [one, two].concat();
        let mut buffer = BytesMut::new();
        let mut taken = Vec::new();
        for byte in all {
            buffer.put_u8(byte);
            taken.extend(take(&mut buffer).unwrap().map(|bytes| cri::v1::VersionRequest::decode(bytes).unwrap().version));
        }
        assert_eq!(taken, ["one", ""]);
    }

    #[test]
    fn a_length_that_lies_or_a_compressed_message_is_an_error() {
        assert_eq!(take(&mut BytesMut::from(&[0, 255, 255, 255, 255][..])).unwrap_err().code, Code::ResourceExhausted);
        assert_eq!(take(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).unwrap_err().code, Code::Unimplemented);
    }

    #[test]
    fn an_error_keeps_its_code_and_every_letter_over_the_wire() {
        for text in ["plain", "100 % ümläut\nand a line", ""] {
            let sent = Err(Error::new(Code::NotFound, text));
            let got = outcome(&trailers(&sent)).unwrap_err();
            assert_eq!((got.code, got.message.as_str()), (Code::NotFound, text));
        }
        assert!(outcome(&trailers(&Ok(()))).is_ok());
    }
}
