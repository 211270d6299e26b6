//! One stream of bytes to a client over a WebSocket: what `pods/log` is to a client that asks for an upgrade.
//!
//! Source: upstream's `k8s.io/apimachinery/pkg/util/httpstream/wsstream` (Reader): `binary.k8s.io`, and `base64.binary.k8s.io` as text.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::{Sink, SinkExt, StreamExt};
use http::Request;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::handshake::{Reply, Wire, negotiate};
use crate::websocket::{normal_closure, open};

const BASE64_PROTOCOL: &str = "base64.binary.k8s.io";
const PROTOCOLS: &[&str] = &["binary.k8s.io", BASE64_PROTOCOL];

/// Answers an upgrade request; the task sends what comes from `source`, and ends with it or with the client.
pub fn send_bytes<B>(request: &mut Request<B>, mut source: mpsc::Receiver<io::Result<Bytes>>) -> Reply {
    let (protocol, response) = match negotiate(request, &[], PROTOCOLS) {
        Ok((Wire::WebSocket(protocol), response)) => (protocol, response),
        Ok((Wire::Spdy(_), _)) => {
            let message = "unable to upgrade: this stream is served over WebSocket only";
            return (crate::handshake::refuse(http::StatusCode::BAD_REQUEST, message), None);
        }
        Err(refusal) => return (refusal, None),
    };
    let upgrade = hyper::upgrade::on(request);
    let task = async move {
        let io = match upgrade.await {
            Ok(upgraded) => hyper_util::rt::TokioIo::new(upgraded),
            Err(error) => return tracing::debug!(%error, "stream: connection was not upgraded"),
        };
        let (sink, mut incoming) = open(io, Role::Server).await.split();
        let gone = async { while let Some(Ok(_)) = incoming.next().await {} };
        tokio::select! {
            () = copy(&mut source, sink, protocol == BASE64_PROTOCOL) => {}
            () = gone => {}
        }
    };
    (response, Some(Box::pin(task)))
}

async fn copy(source: &mut mpsc::Receiver<io::Result<Bytes>>, mut sink: impl Sink<Message> + Unpin, text: bool) {
    while let Some(Ok(bytes)) = source.recv().await {
        let message = if text { Message::Text(BASE64.encode(&bytes).into()) } else { Message::Binary(bytes) };
        if sink.send(message).await.is_err() {
            return;
        }
    }
    let _ = sink.send(Message::Close(Some(normal_closure()))).await;
    // The client answers the close frame before the connection may go.
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_arrive_in_the_form_that_was_asked_for_and_then_the_stream_is_closed() {
        for (text, expected) in [(false, Message::Binary("hello".into())), (true, Message::Text("aGVsbG8=".into()))] {
            let (sender, mut source) = mpsc::channel(1);
            sender.send(Ok(Bytes::from("hello"))).await.unwrap();
            drop(sender);
            let (sent_sender, mut sent) = mpsc::channel(2);
            let sink = Box::pin(futures_util::sink::unfold(sent_sender, |sender, message| async move {
                sender.send(message).await.map(|()| sender)
            }));
            let copying = copy(&mut source, sink, text);
            let received = async { (sent.recv().await, sent.recv().await) };
            tokio::select! {
                () = copying => panic!("it waits for the client"),
                (first, second) = received => {
                    assert_eq!(first, Some(expected));
                    assert!(matches!(second, Some(Message::Close(Some(_)))));
                }
            }
        }
    }
}
