//! Port forwarding: each forwarded connection is a pair of SPDY streams, `data` and `error`, joined by their request id.
//!
//! The SPDY connection comes bare (older clients) or as bytes inside a WebSocket (`SPDY/3.1+portforward.k8s.io`, KEP-4006).

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cri::streams::Forward;
use futures_util::future::BoxFuture;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::protocol::Role as WebSocketRole;

use crate::handshake::{Reply, Wire, negotiate};
use crate::spdy::session::{Io, Role, Session};
use crate::spdy::{Stream, StreamWriter};
use crate::websocket::tunnel;

const SPDY_PROTOCOLS: &[&str] = &["portforward.k8s.io"];
const TUNNEL_PROTOCOLS: &[&str] = &["SPDY/3.1+portforward.k8s.io"];
/// How long one stream of a pair waits for the other.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens a connection to a port of the pod.
pub type Connect = Arc<dyn Fn(u16) -> BoxFuture<'static, cri::Result<Forward>> + Send + Sync>;

/// Answers an upgrade request; the task serves connections until the client goes away. `target` names the pod in error messages, as in
/// `pod NAME_NAMESPACE, uid UID`.
pub fn port_forward<B>(request: &mut Request<B>, target: String, connect: Connect) -> Reply {
    let (wire, response) = match negotiate(request, SPDY_PROTOCOLS, TUNNEL_PROTOCOLS) {
        Ok((Wire::WebSocket(protocol), _)) if protocol.is_empty() => {
            return (
                crate::handshake::refuse(
                    http::StatusCode::BAD_REQUEST,
                    "unable to upgrade: port forwarding over WebSocket needs the protocol SPDY/3.1+portforward.k8s.io",
                ),
                None,
            );
        }
        Ok(agreed) => agreed,
        Err(refusal) => return (refusal, None),
    };
    let upgrade = hyper::upgrade::on(request);
    let task = async move {
        let io = match upgrade.await {
            Ok(upgraded) => hyper_util::rt::TokioIo::new(upgraded),
            Err(error) => return tracing::debug!(%error, "port forward: connection was not upgraded"),
        };
        match wire {
            Wire::Spdy(_) => serve_spdy(io, target, connect).await,
            Wire::WebSocket(_) => serve_tunnel(io, target, connect).await,
        }
    };
    (response, Some(Box::pin(task)))
}

/// Serves SPDY that runs inside a WebSocket.
pub async fn serve_tunnel(io: impl Io, target: String, connect: Connect) {
    let (inner, pump) = tunnel(io, WebSocketRole::Server).await;
    futures_util::future::join(serve_spdy(inner, target, connect), pump).await;
}

/// Serves a bare SPDY connection.
pub async fn serve_spdy(io: impl Io, target: String, connect: Connect) {
    let mut session = Session::start(io, Role::Server);
    let mut waiting: HashMap<String, (Stream, tokio::time::Instant)> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        tokio::select! {
            stream = session.accept() => {
                let Some(stream) = stream else { break };
                let id = request_id(&stream);
                match waiting.remove(&id) {
                    Some((other, _)) => {
                        let (data, error) = if is_error(&other) { (stream, other) } else { (other, stream) };
                        forwards.spawn(forward(data, error, target.clone(), connect.clone()));
                    }
                    None => {
                        waiting.retain(|_, (_, since)| since.elapsed() < PAIR_TIMEOUT);
                        waiting.insert(id, (stream, tokio::time::Instant::now()));
                    }
                }
            }
            Some(_) = forwards.join_next() => {}
        }
    }
}

fn is_error(stream: &Stream) -> bool {
    stream.header("streamtype") == Some("error")
}

/// Clients older than request ids open the error stream first and the data stream right after it.
fn request_id(stream: &Stream) -> String {
    match stream.header("requestid") {
        Some(id) => id.to_owned(),
        None if is_error(stream) => format!("stream {}", stream.id),
        None => format!("stream {}", stream.id.wrapping_sub(2)),
    }
}

async fn forward(data: Stream, error: Stream, target: String, connect: Connect) {
    let port = data.header("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0);
    let Some(port) = port else {
        let text = format!("{:?} is not a valid port", data.header("port").unwrap_or_default());
        return fail(&data, &error, text).await;
    };
    let Forward { stream: connection, failure } = match connect(port).await {
        Ok(forward) => forward,
        Err(failure) => return fail(&data, &error, format!("error forwarding port {port} to {target}: {failure}")).await,
    };
    let Stream { reader, writer, .. } = data;
    let copied = copy_both(connection, reader, &writer).await;
    if let Some(failure) = told(failure).or(copied.err().map(|failure| failure.to_string())) {
        let _ = error.writer.write(Bytes::from(format!("error forwarding port {port} to {target}: {failure}"))).await;
    }
    let _ = writer.finish().await;
    let _ = error.writer.finish().await;
}

/// What the runtime has said of its end of the connection.
fn told(failure: Option<oneshot::Receiver<String>>) -> Option<String> {
    failure?.try_recv().ok()
}

async fn fail(data: &Stream, error: &Stream, text: String) {
    let _ = error.writer.write(Bytes::from(text)).await;
    let _ = error.writer.finish().await;
    let _ = data.writer.finish().await;
}

async fn copy_both(mut connection: TcpStream, mut reader: tokio::sync::mpsc::Receiver<Bytes>, writer: &StreamWriter) -> io::Result<()> {
    let (mut from_pod, mut to_pod) = connection.split();
    let inward = async {
        while let Some(bytes) = reader.recv().await {
            to_pod.write_all(&bytes).await?;
        }
        to_pod.shutdown().await
    };
    let outward = async {
        let mut buffer = BytesMut::with_capacity(32 * 1024);
        while from_pod.read_buf(&mut buffer).await? > 0 {
            writer.write(buffer.split().freeze()).await?;
            buffer.reserve(32 * 1024);
        }
        writer.finish().await
    };
    tokio::pin!(inward, outward);
    // The pod's end closing ends the forward; the client's end closing only ends its direction.
    tokio::select! {
        result = &mut outward => result,
        result = &mut inward => { result?; outward.await }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn echo() -> Connect {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = connection.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        Arc::new(move |port| {
            Box::pin(async move {
                if port == 81 {
                    return Err(cri::Error::internal("connection refused"));
                }
                TcpStream::connect(address).await.map(Forward::from).map_err(|error| cri::Error::internal(error.to_string()))
            })
        })
    }

    async fn pair(session: &Session, id: &str, port: &str) -> (Stream, Stream) {
        let headers = |kind: &str| vec![("streamtype".into(), kind.into()), ("port".into(), port.into()), ("requestid".into(), id.into())];
        (session.open(headers("error")).await.unwrap(), session.open(headers("data")).await.unwrap())
    }

    async fn read_all(stream: &mut Stream) -> String {
        let mut all = Vec::new();
        while let Some(bytes) = stream.reader.recv().await {
            all.extend_from_slice(&bytes);
        }
        String::from_utf8(all).unwrap()
    }

    async fn check(session: &Session) {
        for id in 0..3 {
            let (mut error, mut data) = pair(session, &id.to_string(), "80").await;
            data.writer.write(Bytes::from("x".repeat(30_000))).await.unwrap();
            data.writer.finish().await.unwrap();
            assert_eq!(read_all(&mut data).await.len(), 30_000);
            assert_eq!(read_all(&mut error).await, "");
        }
        let (mut error, mut data) = pair(session, "9", "81").await;
        assert_eq!(read_all(&mut error).await, "error forwarding port 81 to pod p_ns, uid u: connection refused");
        assert_eq!(read_all(&mut data).await, "");
        let (mut error, _data) = pair(session, "10", "eighty").await;
        assert_eq!(read_all(&mut error).await, "\"eighty\" is not a valid port");
    }

    #[tokio::test]
    async fn several_connections_share_one_spdy_session_and_failures_name_the_port() {
        let (client, server) = tokio::io::duplex(1024);
        let serving = tokio::spawn(serve_spdy(server, "pod p_ns, uid u".into(), echo().await));
        let session = Session::start(client, Role::Client);
        check(&session).await;
        session.finish().await;
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn spdy_inside_a_websocket_serves_the_same() {
        let (client, server) = tokio::io::duplex(1024);
        let serving = tokio::spawn(serve_tunnel(server, "pod p_ns, uid u".into(), echo().await));
        let (near, pump) = tunnel(client, WebSocketRole::Client).await;
        tokio::spawn(pump);
        let session = Session::start(near, Role::Client);
        check(&session).await;
        drop(session);
        serving.await.unwrap();
    }
}
