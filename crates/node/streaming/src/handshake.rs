//! The HTTP side of an upgrade: which wire form the client asks for, which protocol both know, the 101.

use std::pin::Pin;

use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Serves the upgraded connection; to be spawned when the response was handed to hyper.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
/// The response to send, and with a 101 the task.
pub type Reply = (Response<Full<Bytes>>, Option<Task>);

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// The wire form and the protocol agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Spdy(String),
    WebSocket(String),
}

/// Does the request ask for any upgrade at all?
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && headers.get_all(CONNECTION).iter().any(|value| value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("upgrade")))
}

fn asks_for(headers: &HeaderMap, protocol: &str) -> bool {
    is_upgrade(headers) && tokens(headers, &UPGRADE).iter().any(|token| token.eq_ignore_ascii_case(protocol))
}

/// All comma-separated values of all headers of that name.
fn tokens(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()).collect()
}

/// Agrees on a protocol: the first one of the client's that we know, as upstream. `Err` is the response that refuses.
pub(crate) fn negotiate<B>(
    request: &Request<B>,
    spdy: &[&str],
    websocket: &[&str],
) -> Result<(Wire, Response<Full<Bytes>>), Response<Full<Bytes>>> {
    let headers = request.headers();
    if asks_for(headers, "websocket") {
        return negotiate_websocket(headers, websocket);
    }
    if !asks_for(headers, "SPDY/3.1") {
        return Err(refuse(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request"));
    }
    let offered = tokens(headers, &STREAM_PROTOCOL);
    let mut response = switching("SPDY/3.1");
    // A client of the first days offers nothing: it speaks the oldest form and expects no header back.
    let Some(protocol) = (if offered.is_empty() { Some(String::new()) } else { first_known(&offered, spdy) }) else {
        let mut response = refuse(
            StatusCode::FORBIDDEN,
            &format!("unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {spdy:?}"),
        );
        for known in spdy {
            response.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_str(known).unwrap_or(HeaderValue::from_static("")));
        }
        return Err(response);
    };
    if let Ok(value) = HeaderValue::from_str(&protocol)
        && !protocol.is_empty()
    {
        response.headers_mut().insert(STREAM_PROTOCOL, value);
    }
    Ok((Wire::Spdy(protocol), response))
}

fn negotiate_websocket(headers: &HeaderMap, known: &[&str]) -> Result<(Wire, Response<Full<Bytes>>), Response<Full<Bytes>>> {
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "unable to upgrade: Sec-WebSocket-Key is missing"));
    };
    let offered = tokens(headers, &SEC_WEBSOCKET_PROTOCOL);
    let Some(protocol) = (if offered.is_empty() { Some(String::new()) } else { first_known(&offered, known) }) else {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            &format!("unable to upgrade: requested protocol(s) are not supported: {offered:?}; supports {known:?}"),
        ));
    };
    let mut response = switching("websocket");
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).unwrap_or(HeaderValue::from_static(""));
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Ok(value) = HeaderValue::from_str(&protocol)
        && !protocol.is_empty()
    {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok((Wire::WebSocket(protocol), response))
}

fn first_known(offered: &[String], known: &[&str]) -> Option<String> {
    offered.iter().find(|offer| known.contains(&offer.as_str())).cloned()
}

fn switching(upgrade: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(upgrade));
    response
}

pub(crate) fn refuse(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(message.to_owned())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder();
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn client_preference_decides_and_unknown_protocols_are_refused() {
        let spdy = |offers: &[&str]| {
            let mut headers = vec![("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
            headers.extend(offers.iter().map(|offer| ("X-Stream-Protocol-Version", *offer)));
            negotiate(&request(&headers), &["v4.channel.k8s.io", "v3.channel.k8s.io"], &[]).map(|(wire, _)| wire).map_err(|r| r.status())
        };
        assert_eq!(spdy(&["v9", "v3.channel.k8s.io", "v4.channel.k8s.io"]), Ok(Wire::Spdy("v3.channel.k8s.io".into())));
        assert_eq!(spdy(&["v9, v4.channel.k8s.io"]), Ok(Wire::Spdy("v4.channel.k8s.io".into())));
        assert_eq!(spdy(&[]), Ok(Wire::Spdy(String::new())));
        assert_eq!(spdy(&["v9"]), Err(StatusCode::FORBIDDEN));
    }

    #[test]
    fn websocket_answer_follows_rfc_6455() {
        let request = request(&[
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Protocol", "v5.channel.k8s.io, v4.channel.k8s.io"),
        ]);
        let (wire, response) = negotiate(&request, &[], &["v4.channel.k8s.io", "v5.channel.k8s.io"]).unwrap();
        assert_eq!(wire, Wire::WebSocket("v5.channel.k8s.io".into()));
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    }

    #[test]
    fn request_without_upgrade_is_a_bad_request() {
        assert_eq!(negotiate(&request(&[]), &[], &[]).unwrap_err().status(), StatusCode::BAD_REQUEST);
    }
}
