//! One check: HTTP, TCP, gRPC health, or a command in the container. Failures read as upstream's do.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use cri::RuntimeService;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Target;

/// As upstream: the first 10 KiB of what a check says.
const OUTPUT_BYTES_MAX: usize = 10 * 1024;

/// Runs the check of `target`; the caller bounds its time.
pub async fn check(runtime: Arc<dyn RuntimeService>, target: Target) -> Result<(), String> {
    let (probe, container) = (&target.probe, &target.container);
    if let Some(exec) = &probe.exec {
        let timeout = i64::from(probe.timeout_seconds.unwrap_or(1));
        return exec_check(runtime.as_ref(), &target.container_id, exec.command.clone().unwrap_or_default(), timeout).await;
    }
    if let Some(get) = &probe.http_get {
        return http_get(get, container, &target.pod_ip).await.map(drop);
    }
    if let Some(tcp) = &probe.tcp_socket {
        let host = tcp.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&target.pod_ip);
        return connect(host, port(&tcp.port, container)?).await.map(drop);
    }
    if let Some(grpc) = &probe.grpc {
        let port = u16::try_from(grpc.port).map_err(|_| format!("invalid port {}", grpc.port))?;
        return grpc_health(&target.pod_ip, port, grpc.service.as_deref().unwrap_or_default()).await;
    }
    Err("missing probe handler".into())
}

pub fn timeout_message(target: &Target, timeout: Duration) -> String {
    let seconds = timeout.as_secs();
    if target.probe.exec.is_some() {
        let command: Vec<String> = target.probe.exec.iter().flat_map(|exec| exec.command.iter().flatten().cloned()).collect();
        return format!("command timed out: {:?} timed out after {seconds}s", command.join(" "));
    }
    match &target.probe.http_get {
        Some(get) => format!(
            "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            url(get, &target.container, &target.pod_ip).unwrap_or_default()
        ),
        None => format!("dial tcp {}: i/o timeout", target.pod_ip),
    }
}

/// A command in the container; failing output is the message.
pub async fn exec_check(
    runtime: &dyn RuntimeService,
    container_id: &str,
    command: Vec<String>,
    timeout_seconds: i64,
) -> Result<(), String> {
    let request = cri::v1::ExecSyncRequest { container_id: container_id.into(), cmd: command, timeout: timeout_seconds };
    let answer = runtime.exec_sync(request).await.map_err(|error| error.message)?;
    if answer.exit_code == 0 {
        return Ok(());
    }
    let mut output = [answer.stdout.as_ref(), answer.stderr.as_ref()].concat();
    output.truncate(OUTPUT_BYTES_MAX);
    Err(String::from_utf8_lossy(&output).into_owned())
}

/// A number, or the name of one of the container's ports.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    let number = number.ok_or_else(|| format!("couldn't find port: {port:?}"))?;
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

fn url(get: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<String, String> {
    let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let host = get.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip);
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok(format!("{scheme}://{}{slash}{path}", authority(host, port(&get.port, container)?)))
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Names are not resolved here: upstream's probes address the pod by IP, and so do these.
async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let shown = authority(host, port);
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let address: std::net::IpAddr = host.parse().map_err(|_| format!("dial tcp: lookup {host}: no such host"))?;
    TcpStream::connect((address, port)).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => format!("dial tcp {shown}: connect: connection refused"),
        _ => format!("dial tcp {shown}: connect: {error}"),
    })
}

/// 200 to 399 is success (upstream does not leave the host on a redirect, and takes one for success).
pub async fn http_get(get: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<Bytes, String> {
    let url = url(get, container, pod_ip)?;
    let host = get.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip);
    let failed = |error: String| format!("Get {url:?}: {error}");
    let stream = connect(host, port(&get.port, container)?).await.map_err(failed)?;
    let request = http_request(get, &url).map_err(failed)?;
    let (status, body) = if url.starts_with("https:") {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(error.to_string()))?;
        let connector = tokio_rustls::TlsConnector::from(auth::pki::unverified_client_config().map_err(|error| failed(error.to_string()))?);
        let stream = connector.connect(name, stream).await.map_err(|error| failed(error.to_string()))?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    }
    .map_err(failed)?;
    if (200..400).contains(&status) { Ok(body) } else { Err(format!("HTTP probe failed with statuscode: {status}")) }
}

fn http_request(get: &HTTPGetAction, url: &str) -> Result<http::Request<Full<Bytes>>, String> {
    let uri: http::Uri = url.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let mut builder = http::Request::get(path);
    let has = |name: &str| get.http_headers.iter().flatten().any(|header| header.name.eq_ignore_ascii_case(name));
    for (name, value) in [("host", authority.as_str()), ("user-agent", "kube-probe/1.37"), ("accept", "*/*"), ("connection", "close")] {
        if !has(name) {
            builder = builder.header(name, value);
        }
    }
    for header in get.http_headers.iter().flatten().filter(|header| !header.value.is_empty()) {
        builder = builder.header(&header.name, &header.value);
    }
    builder.body(Full::default()).map_err(|error| error.to_string())
}

async fn exchange<S>(stream: S, request: http::Request<Full<Bytes>>) -> Result<(u16, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), OUTPUT_BYTES_MAX).collect().await;
        // A longer body is no failure: nobody reads more of it.
        Ok((status, body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
    };
    tokio::pin!(connection, exchange);
    // The connection can end before its last answer was taken.
    tokio::select! {
        result = &mut exchange => result,
        ended = &mut connection => match futures_util::FutureExt::now_or_never(&mut exchange) {
            Some(result) => result,
            None => Err(ended.err().map_or("EOF".into(), |error| error.to_string())),
        },
    }
}

/// `grpc.health.v1.Health/Check`: SERVING is success.
async fn grpc_health(host: &str, port: u16, service: &str) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("error: health rpc probe failed: {error}");
    let stream = connect(host, port).await.map_err(|error| failed(&error))?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| failed(&error))?;
    let driver = tokio::spawn(connection);
    let mut message = BytesMut::new();
    // HealthCheckRequest { string service = 1 } behind gRPC's five-byte prefix.
    let length = u8::try_from(service.len()).ok().filter(|length| *length < 126).ok_or_else(|| failed(&"service name is too long"))?;
    let body_length = if service.is_empty() { 0 } else { 2 + u32::from(length) };
    message.put_u8(0);
    message.put_u32(body_length);
    if !service.is_empty() {
        message.put_slice(&[0x0a, length]);
        message.put_slice(service.as_bytes());
    }
    let request = http::Request::post(format!("http://{}/grpc.health.v1.Health/Check", authority(host, port)))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.37")
        .body(Full::new(message.freeze()))
        .map_err(|error| failed(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let body = Limited::new(response.into_body(), OUTPUT_BYTES_MAX).collect().await.map_err(|error| failed(&error))?;
        Ok::<_, String>(body.to_bytes())
    };
    let answer = answer.await;
    driver.abort();
    // HealthCheckResponse { ServingStatus status = 1 }: 1 is SERVING.
    match answer?.get(5..7) {
        Some([0x08, 1]) => Ok(()),
        Some([0x08, status]) => {
            Err(format!("service unhealthy (responded with {:?})", if *status == 2 { "NOT_SERVING" } else { "UNKNOWN" }))
        }
        _ => Err("service unhealthy (responded with \"UNKNOWN\")".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0u8; 2048];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    async fn get(port: u16) -> Result<Bytes, String> {
        let action: HTTPGetAction = serde_json::from_value(json!({"port": port, "path": "/healthz"})).unwrap();
        http_get(&action, &Container::default(), "127.0.0.1").await
    }

    #[tokio::test]
    async fn http_codes_decide_and_failures_read_as_upstreams() {
        assert_eq!(get(server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await).await.unwrap(), "ok");
        assert!(get(server("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n").await).await.is_ok());
        let refused = get(server("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await).await;
        assert_eq!(refused.unwrap_err(), "HTTP probe failed with statuscode: 503");
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let error = get(closed).await.unwrap_err();
        assert_eq!(error, format!("Get \"http://127.0.0.1:{closed}/healthz\": dial tcp 127.0.0.1:{closed}: connect: connection refused"));
    }

    #[test]
    fn ports_are_numbers_or_names_of_the_container() {
        let container: Container = serde_json::from_value(json!({"name": "a", "ports": [{"name": "web", "containerPort": 8080}]})).unwrap();
        assert_eq!(port(&IntOrString::String("web".into()), &container), Ok(8080));
        assert_eq!(port(&IntOrString::Int(80), &container), Ok(80));
        assert!(port(&IntOrString::String("none".into()), &container).is_err());
        assert!(port(&IntOrString::Int(70000), &container).is_err());
    }
}
