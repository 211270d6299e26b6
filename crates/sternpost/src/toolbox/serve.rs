//! The test server: what a pod sees of itself and of its callers.

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// The largest body that `/echo` repeats, in bytes.
const ECHO_MAX: usize = 4 << 20;
const PAGES: &str = "/hostname /clientip /echo /env /headers /healthz /exit?code=N\n";

pub(super) fn run(args: &[String]) -> Result<i32, String> {
    let port = option(args, "--port")?.unwrap_or(8080);
    let echo_port = option(args, "--echo-port")?.unwrap_or(8081);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(serve(port, echo_port)).map_err(|error| error.to_string())
}

fn option(args: &[String], name: &str) -> Result<Option<u16>, String> {
    let value = args.iter().position(|arg| arg == name).map(|at| args.get(at + 1).cloned().unwrap_or_default());
    value.map(|text| text.parse().map_err(|_| format!("{name}: invalid port {text:?}"))).transpose()
}

async fn serve(port: u16, echo_port: u16) -> std::io::Result<i32> {
    let http = listen(port).await?;
    let echo = listen(echo_port).await?;
    let datagrams = UdpSocket::bind(any_address(echo_port)).await?;
    println!("toolbox serves HTTP on port {port}, TCP and UDP echo on port {echo_port}");
    tokio::spawn(echo_streams(echo));
    tokio::spawn(echo_datagrams(datagrams));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    loop {
        tokio::select! {
            accepted = http.accept() => if let Ok((stream, peer)) = accepted {
                tokio::spawn(connection(stream, peer));
            },
            _ = terminate.recv() => return Ok(0),
            _ = interrupt.recv() => return Ok(0),
        }
    }
}

/// Both address families where the kernel has IPv6, else IPv4.
fn any_address(port: u16) -> SocketAddr {
    if std::path::Path::new("/proc/net/if_inet6").exists() { (Ipv6Addr::UNSPECIFIED, port).into() } else { ([0, 0, 0, 0], port).into() }
}

async fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(any_address(port)).await
}

async fn connection(stream: TcpStream, peer: SocketAddr) {
    let service = service_fn(move |request| answer(request, peer));
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        eprintln!("{peer}: {error}");
    }
}

async fn answer(request: Request<Incoming>, peer: SocketAddr) -> Result<Response<Full<Bytes>>, Infallible> {
    println!("{} {} from {peer}", request.method(), request.uri());
    let (status, body): (StatusCode, Bytes) = match request.uri().path() {
        "/" => (StatusCode::OK, PAGES.into()),
        "/hostname" => (StatusCode::OK, format!("{}\n", super::files::host_name()).into()),
        "/clientip" => (StatusCode::OK, format!("{}\n", peer.ip().to_canonical()).into()),
        "/healthz" => (StatusCode::OK, "ok".into()),
        "/env" => (StatusCode::OK, environment().into()),
        "/headers" => (StatusCode::OK, headers(&request).into()),
        "/exit" => exit(request.uri().query()),
        "/echo" => match Limited::new(request.into_body(), ECHO_MAX).collect().await {
            Ok(body) => (StatusCode::OK, body.to_bytes()),
            Err(error) => (StatusCode::PAYLOAD_TOO_LARGE, format!("{error}\n").into()),
        },
        other => (StatusCode::NOT_FOUND, format!("{other}: no such page; there are {PAGES}").into()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    Ok(response)
}

fn environment() -> String {
    let mut lines: Vec<String> =
        std::env::vars_os().map(|(name, value)| format!("{}={}\n", name.to_string_lossy(), value.to_string_lossy())).collect();
    lines.sort();
    lines.concat()
}

fn headers(request: &Request<Incoming>) -> String {
    request.headers().iter().map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()))).collect()
}

/// Ends the process once the answer is on its way.
fn exit(query: Option<&str>) -> (StatusCode, Bytes) {
    let code = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("code=")));
    match code.unwrap_or("0").parse::<i32>() {
        Ok(code) => {
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                std::process::exit(code);
            });
            (StatusCode::OK, format!("exiting with {code}\n").into())
        }
        Err(_) => (StatusCode::BAD_REQUEST, "code must be a number\n".into()),
    }
}

async fn echo_streams(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut buffer = vec![0u8; 16 << 10];
            while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..len]).await.is_err() {
                    break;
                }
            }
        });
    }
}

async fn echo_datagrams(socket: UdpSocket) {
    let mut buffer = vec![0u8; 64 << 10];
    while let Ok((len, peer)) = socket.recv_from(&mut buffer).await {
        let _ = socket.send_to(&buffer[..len], peer).await;
    }
}
