//! Sockets: TLS with optional client certificates, HTTP/1.1 and HTTP/2 and upgrades on one port, orderly stop.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use auth::tls::Peer as Speaker;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use stdx::Drain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::Server;

/// hyper's own limit of 200 starves clients with more watches than that.
const HTTP2_STREAMS_MAX: u32 = 1_000;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the head of a request. hyper counts the rest of an idle HTTP/1.1 connection to it, so it is what upstream lets those rest.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);
/// Open connections at most; further ones wait in the kernel's queue until one ends.
const CONNECTIONS_MAX: usize = 32_768;
/// How long connections may finish after the drain began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Who a verified client certificate speaks for; put into the request's extensions.
#[derive(Clone)]
pub struct ClientCertificate(pub auth::tls::Peer);

/// Where a request came from; put into its extensions.
#[derive(Clone, Copy)]
pub struct Peer(pub IpAddr);

impl Server {
    /// Serves until `drain`; then no new connection is taken and running requests get ten seconds. Client certificates are whatever
    /// `tls`'s verifier let through; `None` serves plain HTTP (tests).
    pub async fn serve(&self, listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>, drain: Drain) -> std::io::Result<()> {
        let graceful = GracefulShutdown::new();
        let acceptor = tls.map(TlsAcceptor::from);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while let Some(Ok(place)) = drain.run(places.clone().acquire_owned()).await
            && let Some(accepted) = drain.run(listener.accept()).await
        {
            match accepted {
                Ok((stream, peer)) => {
                    let served = connection(self.clone(), (stream, Peer(peer.ip())), acceptor.clone(), graceful.watcher());
                    tokio::spawn(async move {
                        served.await;
                        drop(place);
                    });
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

async fn connection(
    server: Server,
    (stream, peer): (TcpStream, Peer),
    acceptor: Option<TlsAcceptor>,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        return http(server, (stream, peer), None, watcher).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates();
            let speaker = chain.and_then(|chain| match &server.0.tls {
                Some(tls) => tls.peer(chain),
                // TLS of the caller's own, with one authority: it has verified the chain.
                None => chain.first().and_then(|leaf| auth::authenticate::certificate_user(leaf)).map(Speaker::User),
            });
            http(server, (stream, peer), speaker, watcher).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake"),
        Err(_) => tracing::debug!("TLS handshake timed out"),
    }
}

async fn http<S>(server: Server, (stream, peer): (S, Peer), speaker: Option<Speaker>, watcher: hyper_util::server::graceful::Watcher)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (server, speaker) = (server.clone(), speaker.clone());
        // In a box, so that a watch that goes on for hours does not keep the room which its beginning needed.
        Box::pin(async move {
            let mut request = request.map(|body| body.map_err(std::io::Error::other).boxed());
            request.extensions_mut().insert(peer);
            if let Some(speaker) = speaker {
                request.extensions_mut().insert(ClientCertificate(speaker));
            }
            Ok::<_, Infallible>(server.handle(request, None).await)
        })
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection.into_owned()).await {
        tracing::debug!(%error, "connection");
    }
}
