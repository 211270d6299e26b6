//! Sockets: TLS with optional client certificates, HTTP/1.1 and HTTP/2 and upgrades on one port, orderly stop.

mod idle;
pub mod turns;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use auth::tls::Peer as Speaker;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use stdx::Drain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::Server;
use idle::{Activity, Answer};
use turns::{Turns, Whose};

/// hyper's own limit of 200 starves clients with more watches than that.
const HTTP2_STREAMS_MAX: u32 = 1_000;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For an HTTP/1.1 connection without a request, whether it rests or a head comes slowly, and for the first request of any: as upstream. An
/// HTTP/2 connection may rest for ever, as long as its pings are answered.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);
/// Open connections at most; further ones wait in the kernel's queue until one ends.
const CONNECTIONS_MAX: usize = 32_768;
/// How long connections may finish after the drain began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
    /// Nothing was agreed on: the first bytes tell.
    Unknown,
}

impl Protocol {
    fn agreed(alpn: Option<&[u8]>) -> Self {
        match alpn {
            Some(b"h2") => Protocol::Http2,
            Some(b"http/1.1") => Protocol::Http1,
            _ => Protocol::Unknown,
        }
    }
}

/// The connection by which a request came.
pub struct Arrival {
    pub peer: IpAddr,
    /// Who a verified client certificate speaks for.
    pub speaker: Option<Speaker>,
    pub whose: Whose,
}

/// The same in the request's extensions.
#[derive(Clone)]
pub struct Arrived(pub Arc<Arrival>);

impl Server {
    /// Serves until `drain`; then no new connection is taken and running requests get ten seconds. Client certificates are whatever
    /// `tls`'s verifier let through; `None` serves plain HTTP (tests).
    pub async fn serve(&self, listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>, drain: Drain) -> std::io::Result<()> {
        let graceful = GracefulShutdown::new();
        let acceptor = tls.map(TlsAcceptor::from);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let turns = self.0.turns.get_or_init(Turns::of_runtime).clone();
        while let Some(Ok(place)) = drain.run(places.clone().acquire_owned()).await
            && let Some(accepted) = drain.run(listener.accept()).await
        {
            match accepted {
                Ok((stream, peer)) => {
                    let whose = turns.newcomer();
                    let served = connection(self.clone(), (stream, peer.ip()), acceptor.clone(), graceful.watcher(), whose.clone());
                    tokio::spawn(whose.take(async move {
                        served.await;
                        drop(place);
                    }));
                }
                Err(error) => {
                    // Out of file descriptors, or the peer is gone already: the listener itself stays good.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        self.stop();
        if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
            tracing::warn!("connections were still open when the drain ended");
        }
        Ok(())
    }
}

async fn connection(server: Server, (stream, peer): (TcpStream, IpAddr), acceptor: Option<TlsAcceptor>, watcher: Watcher, whose: Whose) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        return http(server, (stream, peer), None, Protocol::Unknown, watcher, whose).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates();
            let speaker = chain.and_then(|chain| match &server.0.tls {
                Some(tls) => tls.peer(chain),
                // TLS of the caller's own, with one authority: it has verified the chain.
                None => chain.first().and_then(|leaf| auth::authenticate::certificate_user(leaf)).map(|user| Speaker::User(Arc::new(user))),
            });
            let protocol = Protocol::agreed(stream.get_ref().1.alpn_protocol());
            http(server, (stream, peer), speaker, protocol, watcher, whose).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake"),
        Err(_) => tracing::debug!("TLS handshake timed out"),
    }
}

async fn http<S>(server: Server, (stream, peer): (S, IpAddr), speaker: Option<Speaker>, protocol: Protocol, watcher: Watcher, whose: Whose)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let activity = Activity::new();
    let counted = activity.clone();
    if let Some(Speaker::User(user)) = &speaker {
        whose.is(&user.username);
    }
    let spawn = whose.clone();
    // Shared by the connection's requests, whose counts are then nobody else's.
    let (server, arrival) = (Arc::new(server), Arc::new(Arrival { peer, speaker, whose }));
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (server, arrived, running) = (server.clone(), Arrived(arrival.clone()), counted.begin());
        // In a box, so that a watch that goes on for hours does not keep the room which its beginning needed.
        Box::pin(async move {
            let mut request = request.map(|body| body.map_err(std::io::Error::other).boxed());
            request.extensions_mut().insert(arrived);
            let is_head = request.method() == http::Method::HEAD;
            let response = server.handle(request, None).await;
            let response = if is_head { crate::reply::head_only(response) } else { response };
            Ok::<_, Infallible>(response.map(|body| Answer { body, _running: running }))
        })
    });
    let connection = builder(protocol, spawn).serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    tokio::select! {
        biased;
        ended = watcher.watch(connection) => if let Err(error) = ended {
            tracing::debug!(%error, "connection");
        },
        () = activity.rested(IDLE_TIMEOUT, protocol == Protocol::Http2) => tracing::debug!("connection: idle for too long"),
    }
}

fn builder(protocol: Protocol, whose: Whose) -> auto::Builder<Whose> {
    let builder = auto::Builder::new(whose);
    let mut builder = match protocol {
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_only(),
        Protocol::Unknown => builder,
    };
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    builder
}
