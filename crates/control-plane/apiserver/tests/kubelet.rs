//! Logs and streams through the API server to a kubelet (here: one that answers with what it was asked).

mod harness;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use harness::{Api, body};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Says its path; after an upgrade it says it again, then echoes until its reader has nothing more, and says goodbye.
async fn answer(mut request: http::Request<hyper::body::Incoming>) -> Result<http::Response<apiserver::Body>, Infallible> {
    let target = request.uri().to_string();
    let response = http::Response::builder();
    if let Some((code, text)) = refusal(&target) {
        return Ok(response.status(code).header("content-type", "text/plain").body(body(text)).unwrap());
    }
    if let Some(protocol) = request.headers().get("upgrade").cloned() {
        let echoed = request.headers().get("sec-websocket-protocol").cloned();
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            stream.write_all(format!("{target}\n").as_bytes()).await.unwrap();
            let (mut from, mut to) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.write_all(b"goodbye").await;
            let _ = to.shutdown().await;
        });
        let mut switching = response.status(101).header("upgrade", protocol).header("connection", "Upgrade").body(body("")).unwrap();
        if let Some(echoed) = echoed {
            switching.headers_mut().insert("sec-websocket-protocol", echoed);
        }
        return Ok(switching);
    }
    if target == "/redirect" {
        return Ok(response.status(302).header("location", "/there?x=1").body(body("")).unwrap());
    }
    if target.starts_with("/headers") {
        let names = ["authorization", "x-forwarded-uri", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-for", "cookie"];
        let said = names.map(|name| request.headers().get(name).map_or("-", |value| value.to_str().unwrap()).to_owned());
        let method = request.method().clone();
        let content = request.into_body().collect().await.unwrap().to_bytes();
        return Ok(response.body(body(format!("{method} {target} {} {}", said.join(" "), String::from_utf8_lossy(&content)))).unwrap());
    }
    Ok(response.body(body(target)).unwrap())
}

/// What is refused, in a kubelet's words.
fn refusal(target: &str) -> Option<(u16, &'static str)> {
    let has = |name: &str| target.contains(&format!("/{name}/"));
    match () {
        () if has("waiting") => Some((400, "container \"c\" in pod \"waiting\" is waiting to start: ContainerCreating")),
        () if has("gone") => Some((404, "container not found (\"c\")")),
        () if has("broken") => Some((500, "failed to open log file")),
        () => None,
    }
}

async fn cluster() -> (Api, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let names = auth::pki::Names {
        api_hosts: vec![],
        api_addresses: vec![],
        cluster_domain: "cluster.local".into(),
        node_name: "n".into(),
        node_addresses: vec![IpAddr::from(Ipv4Addr::LOCALHOST)],
    };
    let pki = auth::pki::Pki::open(directory.path(), &names).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = tokio_rustls::TlsAcceptor::from(pki.kubelet_server.server_config(&pki.ca).unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.unwrap();
                assert!(stream.get_ref().1.peer_certificates().is_some(), "the API server shows its certificate");
                let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
                let _ = connection.with_upgrades().await;
            });
        }
    });
    let mut authenticator = auth::authenticate::Authenticator::default();
    authenticator.add_token("secret", harness::admin());
    let config = apiserver::Config {
        authenticator,
        kubelet_client: Some(pki.kubelet_client.client_config(&pki.ca).unwrap()),
        ..apiserver::Config::default()
    };
    let store = Arc::new(store::memory::Memory::new());
    let api = Api { server: apiserver::Server::new(config, store.clone()).unwrap(), store };
    api.server.bootstrap().await.unwrap();
    let node = json!({"metadata": {"name": "n"}});
    assert_eq!(api.post("/api/v1/nodes", node).await.code, 201);
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    assert_eq!(api.merge("/api/v1/nodes/n/status", status).await.code, 200);
    api.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    for name in ["p", "waiting", "gone", "broken"] {
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        assert_eq!(api.post("/api/v1/namespaces/default/pods", pod).await.code, 201);
        let binding = json!({"target": {"kind": "Node", "name": "n"}});
        assert_eq!(api.post(&format!("/api/v1/namespaces/default/pods/{name}/binding"), binding).await.code, 201);
    }
    (api, directory)
}

#[tokio::test]
async fn logs_come_from_the_kubelet_and_its_refusals_become_a_status() {
    let (api, _directory) = cluster().await;
    let log = api.get("/api/v1/namespaces/default/pods/p/log?tailLines=5&follow=true&other=x").await;
    assert_eq!((log.code, &log.bytes[..]), (200, &b"/containerLogs/default/p/c?follow=true&tailLines=5"[..]));
    let refused = api.get("/api/v1/namespaces/default/pods/waiting/log").await;
    let waiting = "container \"c\" in pod \"waiting\" is waiting to start: ContainerCreating";
    assert_eq!((refused.code, refused.message().as_str()), (400, waiting));
    let gone = api.get("/api/v1/namespaces/default/pods/gone/log").await;
    assert_eq!((gone.code, gone.json()["reason"].as_str()), (404, Some("NotFound")));
    assert_eq!(gone.message(), "the server could not find the requested resource ( pods/log gone)");
    let broken = api.get("/api/v1/namespaces/default/pods/broken/log").await;
    assert_eq!((broken.code, broken.message().as_str()), (500, "Internal error occurred: failed to open log file"));
    assert_eq!(api.get("/api/v1/namespaces/default/pods/p/log?container=x").await.message(), "container x is not valid for pod p");
    assert_eq!(api.get("/api/v1/namespaces/default/pods/p/log?tailLines=-1").await.code, 422);
}

#[tokio::test]
async fn an_upgrade_is_tunnelled_byte_for_byte() {
    let (api, _directory) = cluster().await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let drain = stdx::drain();
    let serving = tokio::spawn({
        let (server, drain) = (api.server.clone(), drain.clone());
        async move { server.serve(listener, None, drain).await }
    });
    let ask = async |path: &str, token: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /api/v1/namespaces/default/pods/p/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
             connection: Upgrade\r\nupgrade: SPDY/3.1\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let read_until = async |stream: &mut TcpStream, end: &str| {
        let mut text = String::new();
        while !text.ends_with(end) {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            text.push(char::from(byte[0]));
        }
        text
    };
    let mut refused = ask("exec?command=x&stdout=1", "wrong").await;
    assert!(read_until(&mut refused, "\r\n").await.starts_with("HTTP/1.1 401"));
    let mut stream = ask("exec?command=a%20b&command=c&stdin=true&stdout=true", "secret").await;
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: SPDY/3.1"), "{head}");
    assert_eq!(read_until(&mut stream, "\n").await, "/exec/default/p/c?input=1&output=1&command=a%20b&command=c\n");
    stream.write_all(b"\x00\xffbytes\n").await.unwrap();
    let mut echo = [0; 8];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"\x00\xffbytes\n");
    let mut forward = ask("portforward", "secret").await;
    read_until(&mut forward, "\r\n\r\n").await;
    assert_eq!(read_until(&mut forward, "\n").await, "/portForward/default/p\n");
    drop((stream, forward, refused));
    assert_eq!(
        api.ask("POST", "/api/v1/namespaces/default/pods/p/exec?command=x&stdout=1", "", "").await.message(),
        "Upgrade request required"
    );
    drain.stop();
    serving.await.unwrap().unwrap();
}
