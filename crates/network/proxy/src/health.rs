//! `healthCheckNodePort`: whether this node has endpoints for a load balancer that keeps its clients' addresses.
//!
//! Answers as upstream's `pkg/proxy/healthcheck`: 200 where there are local endpoints, 503 where not, and how many in a header that
//! balancers weigh by.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::plan::{Health, Owner};

/// Load balancers ask one after the other.
const CONNECTIONS_MAX: usize = 64;
const PATIENCE: Duration = Duration::from_secs(5);
/// A port that another process still holds is tried again.
const RETRY: Duration = Duration::from_secs(5);
const REQUEST_BYTES_MAX: usize = 4096;

/// The servers, one for each Service that has such a port. Dropping it ends them.
#[derive(Debug, Default)]
pub struct Servers(HashMap<Owner, Server>);

#[derive(Debug)]
struct Server {
    port: u16,
    local: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Servers {
    /// What the Service's port says from now on. Needs a tokio runtime.
    pub fn set(&mut self, owner: &Owner, health: Option<Health>) {
        let Some(health) = health else {
            self.0.remove(owner);
            return;
        };
        if let Some(server) = self.0.get(owner).filter(|server| server.port == health.port) {
            server.local.store(health.local, Ordering::Relaxed);
            return;
        }
        // The former port is free before the new one is taken: they may be another Service's by then.
        self.0.remove(owner);
        let local = Arc::new(AtomicUsize::new(health.local));
        let task = tokio::spawn(serve(owner.clone(), health.port, local.clone())).abort_handle();
        self.0.insert(owner.clone(), Server { port: health.port, local, task });
    }
}

async fn serve(owner: Owner, port: u16, local: Arc<AtomicUsize>) {
    let listener = loop {
        match listen(port).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(%owner, port, %error, "the health check's port; will retry");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (owner, local) = (owner.clone(), local.clone());
        tokio::spawn(async move {
            let _ = tokio::time::timeout(PATIENCE, answer(stream, &owner, local.load(Ordering::Relaxed))).await;
            drop(permit);
        });
    }
}

/// Both families where the host has IPv6.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
        other => other,
    }
}

/// One request, whatever its path, and the connection ends.
async fn answer(mut stream: TcpStream, owner: &Owner, local: usize) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        let mut part = [0; 512];
        match stream.read(&mut part).await? {
            0 => return Ok(()),
            length => request.extend_from_slice(part.get(..length).unwrap_or_default()),
        }
    }
    let (Owner::Service(namespace, name) | Owner::Pod(namespace, name)) = owner;
    let status = if local > 0 { "200 OK" } else { "503 Service Unavailable" };
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": {local},\n\t\
         \"serviceProxyHealthy\": true\n}}"
    );
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {local}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(port: u16) -> String {
        for _ in 0..200 {
            if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("nobody answers on port {port}");
    }

    #[tokio::test]
    async fn a_balancer_learns_whether_and_how_many_endpoints_are_here() {
        let port = std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let (owner, mut servers) = (Owner::Service("a".into(), "web".into()), Servers::default());
        for (local, status) in [(2, "200 OK"), (0, "503 Service Unavailable"), (1, "200 OK")] {
            servers.set(&owner, Some(Health { port, local }));
            let answer = ask(port).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
            assert!(answer.contains(&format!("X-Load-Balancing-Endpoint-Weight: {local}\r\n")) && answer.contains("\"name\": \"web\""));
        }
        servers.set(&owner, None);
        for _ in 0..200 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the port stays open");
    }
}
