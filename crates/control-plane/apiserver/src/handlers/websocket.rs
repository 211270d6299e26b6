//! Logs and watches as WebSocket messages, for clients that have no other way to read a stream (browsers).
//!
//! Source: `k8s.io/streaming` `pkg/httpstream/wsstream`, apiserver `pkg/endpoints/handlers/watch.go`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use meta::Status;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::backend;
use crate::reply::{self, Body};

/// What becomes a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Messages {
    /// Bytes as they come, in one of upstream's two protocols for them.
    Bytes,
    /// Each line as text.
    Lines,
}

pub fn is_asked(headers: &HeaderMap) -> bool {
    let protocol = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    backend::is_upgrade(headers) && protocol.eq_ignore_ascii_case("websocket")
}

/// Sends the body of an answer over the connection that the request came on; an answer that is a failure stays as it is.
pub fn send(mut request: Request<Body>, response: Response<Body>, messages: Messages) -> Result<Response<Body>, Status> {
    if !response.status().is_success() {
        return Ok(response);
    }
    let key = request.headers().get(SEC_WEBSOCKET_KEY).ok_or_else(|| Status::bad_request("Sec-WebSocket-Key is missing"))?;
    let accept = derive_accept_key(key.as_bytes());
    let protocol = protocol(request.headers(), messages)?;
    let upgrade = hyper::upgrade::on(&mut request);
    let encoded = protocol.as_deref() == Some("base64.binary.k8s.io");
    tokio::spawn(pass_on(upgrade, response.into_body(), messages, encoded));
    let mut answer = Response::new(reply::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).map_err(Status::internal)?);
    if let Some(protocol) = protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(&protocol).map_err(Status::internal)?);
    }
    Ok(answer)
}

/// The protocol that the client offers and that fits, if it offers any; a token among them is none.
fn protocol(headers: &HeaderMap, messages: Messages) -> Result<Option<String>, Status> {
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offered = offered.flat_map(|text| text.split(',')).map(str::trim);
    let offered: Vec<&str> = offered.filter(|name| !name.starts_with(auth::authenticate::WEBSOCKET_TOKEN)).collect();
    let fits = |name: &&str| messages == Messages::Lines || matches!(*name, "binary.k8s.io" | "base64.binary.k8s.io");
    match offered.iter().copied().find(fits) {
        Some(name) => Ok(Some(name.to_owned())),
        None if offered.is_empty() => Ok(None),
        None => Err(Status::bad_request(format!(
            "requested protocol(s) are not supported: {offered:?}; supports [binary.k8s.io base64.binary.k8s.io]"
        ))),
    }
}

/// Until the body ends or the client goes; what the client says is not listened to.
async fn pass_on(upgrade: hyper::upgrade::OnUpgrade, mut body: Body, messages: Messages, encoded: bool) {
    let Ok(io) = upgrade.await else { return };
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
    let (mut to, mut from) = socket.split();
    loop {
        tokio::select! {
            frame = body.frame() => {
                let Some(Ok(frame)) = frame else { break };
                let Ok(bytes) = frame.into_data() else { continue };
                for message in split(bytes, messages, encoded) {
                    if to.send(message).await.is_err() {
                        return;
                    }
                }
            }
            said = from.next() => if !matches!(said, Some(Ok(said)) if !said.is_close()) { break },
        }
    }
    let _ = to.close().await;
}

fn split(bytes: Bytes, messages: Messages, encoded: bool) -> Vec<Message> {
    match messages {
        Messages::Bytes if encoded => vec![Message::text(STANDARD.encode(&bytes))],
        Messages::Bytes => vec![Message::binary(bytes)],
        Messages::Lines => bytes.split_inclusive(|byte| *byte == b'\n').map(line).collect(),
    }
}

fn line(bytes: &[u8]) -> Message {
    match std::str::from_utf8(bytes) {
        Ok(text) => Message::text(text),
        // An event in protobuf.
        Err(_) => Message::binary(bytes.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_protocol_that_fits_is_taken() {
        let bytes = Messages::Bytes;
        let cases = [
            ("", bytes, Ok(None)),
            ("binary.k8s.io", bytes, Ok(Some("binary.k8s.io"))),
            ("x, base64.binary.k8s.io", bytes, Ok(Some("base64.binary.k8s.io"))),
            ("base64url.bearer.authorization.k8s.io.abc, binary.k8s.io", bytes, Ok(Some("binary.k8s.io"))),
            ("x", bytes, Err(())),
            ("x", Messages::Lines, Ok(Some("x"))),
        ];
        for (offered, messages, wanted) in cases {
            let mut headers = HeaderMap::new();
            if !offered.is_empty() {
                headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(offered));
            }
            assert_eq!(protocol(&headers, messages).map_err(drop), wanted.map(|name| name.map(str::to_owned)), "{offered}");
        }
    }

    #[test]
    fn every_event_is_a_message_of_its_own() {
        let messages = split(Bytes::from_static(b"{\"a\":1}\n{\"b\":2}\n"), Messages::Lines, false);
        assert_eq!(messages, [Message::text("{\"a\":1}\n"), Message::text("{\"b\":2}\n")]);
        assert_eq!(split(Bytes::from_static(b"a\nb"), Messages::Bytes, true), [Message::text("YQpi")]);
    }
}
