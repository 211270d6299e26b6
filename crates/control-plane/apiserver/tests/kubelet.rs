//! Logs and streams through the API server to a kubelet (here: one that answers with what it was asked).

mod harness;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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
    if target.contains("sinceSeconds=77") {
        use futures_util::StreamExt;
        let line = futures_util::stream::once(async { Ok(http_body::Frame::data("line".into())) });
        return Ok(response.body(BodyExt::boxed(http_body_util::StreamBody::new(line.chain(futures_util::stream::pending())))).unwrap());
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

fn open_pki(directory: &std::path::Path) -> auth::pki::Pki {
    let names = auth::pki::Names {
        api_hosts: vec![],
        api_addresses: vec![],
        cluster_domain: "cluster.local".into(),
        node_name: "n".into(),
        node_addresses: vec![IpAddr::from(Ipv4Addr::LOCALHOST)],
    };
    auth::pki::Pki::open(directory, &names).unwrap()
}

/// A kubelet that shows the certificate of `shown` and knows the clients of `known`; its port.
async fn kubelet(shown: &auth::pki::Pki, known: &auth::pki::Pki) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = tokio_rustls::TlsAcceptor::from(shown.kubelet_server.server_config(&known.ca).unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                assert!(stream.get_ref().1.peer_certificates().is_some(), "the API server shows its certificate");
                let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
                let _ = connection.with_upgrades().await;
            });
        }
    });
    port
}

async fn cluster() -> (Api, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let pki = open_pki(directory.path());
    let port = kubelet(&pki, &pki).await;
    let mut authenticator = auth::authenticate::Authenticator::default();
    authenticator.add_token("secret", harness::admin());
    authenticator.add_token("reader", auth::UserInfo::authenticated("reader", &[]));
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
async fn a_log_comes_from_an_unknown_kubelet_only_where_the_client_says_so() {
    let (api, directory) = cluster().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let port = kubelet(&open_pki(elsewhere.path()), &open_pki(directory.path())).await;
    let status = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    assert_eq!(api.merge("/api/v1/nodes/n/status", status).await.code, 200);
    let log = "/api/v1/namespaces/default/pods/p/log";
    assert_eq!(api.get(log).await.code, 500);
    assert_eq!(&api.get(&format!("{log}?insecureSkipTLSVerifyBackend=true")).await.bytes[..], b"/containerLogs/default/p/c");
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

/// The server on a port, for what needs a connection of its own.
async fn listening(api: &Api) -> (SocketAddr, stdx::Drain) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (address, drain, server) = (listener.local_addr().unwrap(), stdx::drain(), api.server.clone());
    tokio::spawn({
        let drain = drain.clone();
        async move { server.serve(listener, None, drain).await }
    });
    (address, drain)
}

#[tokio::test]
async fn a_log_that_is_followed_ends_in_order_when_the_server_stops() {
    let (api, _directory) = cluster().await;
    let (address, drain) = listening(&api).await;
    let mut followed = ask(address, "GET p/log?follow=true&sinceSeconds=77", &[ADMIN]).await;
    read_until(&mut followed, "line\r\n").await;
    drain.stop();
    let end = tokio::time::timeout(std::time::Duration::from_secs(20), read_until(&mut followed, "0\r\n\r\n")).await;
    assert_eq!(end.expect("its end"), "0\r\n\r\n");
}

/// Sends a request line and headers for a path below the pods.
async fn ask(address: SocketAddr, line: &str, headers: &[&str]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (method, path) = line.split_once(' ').unwrap();
    // `../` leads out of the pods.
    let path = path.strip_prefix("../").map_or_else(|| format!("pods/{path}"), str::to_owned);
    let mut head = format!("{method} /api/v1/namespaces/default/{path} HTTP/1.1\r\nhost: x\r\n");
    for header in headers {
        head.push_str(&format!("{header}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    stream
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        text.push(char::from(stream.read_u8().await.unwrap()));
    }
    text
}

const ADMIN: &str = "authorization: Bearer secret";
const SPDY: [&str; 4] = [ADMIN, "connection: Upgrade", "upgrade: SPDY/3.1", "content-length: 0"];
const WEBSOCKET: [&str; 5] = [
    "connection: keep-alive, Upgrade",
    "upgrade: websocket",
    "sec-websocket-version: 13",
    "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
    "sec-websocket-protocol: v5.channel.k8s.io",
];

#[tokio::test]
async fn an_upgrade_is_tunnelled_byte_for_byte() {
    let (api, _directory) = cluster().await;
    let (address, _drain) = listening(&api).await;
    let mut stream = ask(address, "POST p/exec?command=a%20b&command=c&stdin=true&stdout=true", &SPDY).await;
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: SPDY/3.1"), "{head}");
    assert_eq!(read_until(&mut stream, "\n").await, "/exec/default/p/c?input=1&output=1&command=a%20b&command=c\n");
    stream.write_all(b"\x00\xffbytes\n").await.unwrap();
    let mut echo = [0; 8];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"\x00\xffbytes\n");

    let mut forward = ask(address, "POST p/portforward", &SPDY).await;
    read_until(&mut forward, "\r\n\r\n").await;
    assert_eq!(read_until(&mut forward, "\n").await, "/portForward/default/p\n");
}

/// One unmasked message of a server: its kind and its content.
async fn message(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let (kind, mut length) = (stream.read_u8().await.unwrap() & 0x0f, usize::from(stream.read_u8().await.unwrap()));
    if length == 126 {
        length = usize::from(stream.read_u16().await.unwrap());
    }
    let mut content = vec![0; length];
    stream.read_exact(&mut content).await.unwrap();
    (kind, content)
}

#[tokio::test]
async fn logs_and_watches_come_as_messages_where_the_client_asks_so() {
    let (api, _directory) = cluster().await;
    let (address, _drain) = listening(&api).await;
    let mut headers = vec![ADMIN, "sec-websocket-protocol: binary.k8s.io"];
    headers.extend(WEBSOCKET.iter().filter(|header| !header.contains("protocol")));
    let mut log = ask(address, "GET p/log?container=c", &headers).await;
    let head = read_until(&mut log, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("sec-websocket-protocol: binary.k8s.io"), "{head}");
    assert!(head.contains("sec-websocket-accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI="), "{head}");
    assert_eq!(message(&mut log).await, (2, b"/containerLogs/default/p/c".to_vec()));
    assert_eq!(message(&mut log).await.0, 8, "the end of the log closes the connection");

    let plain: Vec<&str> = headers.iter().copied().filter(|header| !header.contains("protocol")).collect();
    let mut watch = ask(address, "GET ../pods?watch=true&fieldSelector=metadata.name%3Dp", &plain).await;
    if !read_until(&mut watch, "\r\n\r\n").await.starts_with("HTTP/1.1 101") {
        panic!("a watch takes an upgrade");
    }
    let (kind, event) = message(&mut watch).await;
    let event: serde_json::Value = serde_json::from_slice(&event).unwrap();
    assert_eq!((kind, &event["type"], &event["object"]["metadata"]["name"]), (1, &json!("ADDED"), &json!("p")));
    let mut refused = ask(address, "GET none/log", &headers).await;
    assert!(read_until(&mut refused, "\r\n\r\n").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn each_direction_of_a_tunnel_ends_by_itself() {
    let (api, _directory) = cluster().await;
    let (address, _drain) = listening(&api).await;
    let mut headers = vec![ADMIN];
    headers.extend(WEBSOCKET);
    let mut stream = ask(address, "GET p/attach?stdout=true", &headers).await;
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("sec-websocket-protocol: v5.channel.k8s.io"), "{head}");
    assert_eq!(read_until(&mut stream, "\n").await, "/attach/default/p/c?output=1\n");
    let sent = vec![7; 1 << 20];
    let (mut from, mut to) = stream.split();
    let write = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, read) = tokio::join!(write, from.read_to_end(&mut received));
    read.unwrap();
    assert_eq!(received.len(), sent.len() + "goodbye".len());
    assert!(received.ends_with(b"goodbye"), "the kubelet speaks on after the client has said all");
}

#[tokio::test]
async fn a_refused_upgrade_reaches_the_client() {
    let (api, _directory) = cluster().await;
    let (address, _drain) = listening(&api).await;
    let mut refused = ask(address, "POST p/exec?command=x&stdout=1", &["connection: Upgrade", "upgrade: SPDY/3.1"]).await;
    assert!(read_until(&mut refused, "\r\n").await.starts_with("HTTP/1.1 403"), "anonymous");
    let mut gone = ask(address, "POST gone/exec?command=x&stdout=1", &SPDY).await;
    assert!(read_until(&mut gone, "\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    assert_eq!(read_until(&mut gone, ")").await, "container not found (\"c\")", "kubectl puts `unable to upgrade connection:` before it");
    let plain = api.ask("POST", "/api/v1/namespaces/default/pods/p/exec?command=x&stdout=1", "", "").await;
    assert_eq!((plain.code, plain.message().as_str()), (400, "Upgrade request required"));
}

#[tokio::test]
async fn starting_something_through_a_websocket_needs_the_right_to_create() {
    let (api, _directory) = cluster().await;
    let (address, _drain) = listening(&api).await;
    let role =
        |verb: &str| json!({"metadata": {"name": verb}, "rules": [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": [verb]}]});
    let binding = |verb: &str| {
        json!({"metadata": {"name": verb}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": verb},
            "subjects": [{"kind": "User", "name": "reader", "apiGroup": "rbac.authorization.k8s.io"}]})
    };
    let mut headers = vec!["authorization: Bearer reader"];
    headers.extend(WEBSOCKET);
    for (verb, answer) in [("get", "HTTP/1.1 403"), ("create", "HTTP/1.1 101")] {
        let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
        assert_eq!(api.post(&format!("{rbac}/roles"), role(verb)).await.code, 201);
        assert_eq!(api.post(&format!("{rbac}/rolebindings"), binding(verb)).await.code, 201);
        // What authorization reads is what a list shows.
        api.get(&format!("{rbac}/rolebindings")).await;
        let mut stream = ask(address, "GET p/exec?command=x&stdout=1", &headers).await;
        assert!(read_until(&mut stream, "\r\n").await.starts_with(answer), "with the right to {verb}");
    }
}

#[tokio::test]
async fn a_browsers_token_is_taken_from_the_subprotocols_and_goes_no_further() {
    let (api, _directory) = cluster().await;
    let (address, _drain) = listening(&api).await;
    // "secret", "wrong"
    for (token, answer) in [("c2VjcmV0", "HTTP/1.1 101"), ("d3Jvbmc", "HTTP/1.1 401")] {
        let protocols = format!("sec-websocket-protocol: base64url.bearer.authorization.k8s.io.{token}, v4.channel.k8s.io");
        let mut headers: Vec<&str> = WEBSOCKET[..4].to_vec();
        headers.push(&protocols);
        let mut stream = ask(address, "GET p/exec?command=x&stdout=1", &headers).await;
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.starts_with(answer), "{head}");
        assert!(!head.contains(token) && (token == "d3Jvbmc" || head.contains("sec-websocket-protocol: v4.channel.k8s.io\r\n")), "{head}");
    }
}

#[tokio::test]
async fn a_kubelet_that_is_away_is_named() {
    let (api, _directory) = cluster().await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let status = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    assert_eq!(api.merge("/api/v1/nodes/n/status", status).await.code, 200);
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    let log = api.get("/api/v1/namespaces/default/pods/p/log").await;
    assert_eq!((log.code, log.message()), (500, format!("Get \"https://127.0.0.1:{port}/containerLogs/default/p/c\": {refused}")));
    let (address, _drain) = listening(&api).await;
    let mut exec = ask(address, "POST p/exec?command=x&stdout=1", &SPDY).await;
    read_until(&mut exec, "\r\n\r\n").await;
    assert!(read_until(&mut exec, "\n").await.contains(&format!("error dialing backend: {refused}")));
}

#[tokio::test]
async fn a_proxied_request_reaches_the_node_as_it_was_written() {
    let (api, _directory) = cluster().await;
    let own = "/api/v1/nodes/n/proxy";
    assert_eq!(&api.get(&format!("{own}/a%2Fb//c/?x=%20y")).await.bytes[..], b"/a%2Fb//c/?x=%20y");
    let root = api.get(own).await;
    assert_eq!((root.code, root.headers["location"].to_str().unwrap()), (301, "/api/v1/nodes/n/proxy/"));
    let redirect = api.get(&format!("{own}/redirect")).await;
    assert_eq!((redirect.code, redirect.headers["location"].to_str().unwrap()), (302, "/api/v1/nodes/n/proxy/there?x=1"));

    let request = http::Request::builder().method("PUT").uri(format!("{own}/headers?q=1")).header("cookie", "a=b");
    let request = request.header("host", "api:6443").header("authorization", "Bearer secret").body(body("content")).unwrap();
    let answer = api.send(request, harness::admin()).await;
    let said = String::from_utf8(answer.bytes.to_vec()).unwrap();
    assert_eq!(said, format!("PUT /headers?q=1 - {own}/headers api:6443 https - a=b content"), "credentials stay here");
    assert_eq!(api.get("/api/v1/nodes/ftp:n:1/proxy/").await.message(), "invalid node request \"ftp:n:1\"");
    assert_eq!(api.get("/api/v1/nodes/n:1/proxy/").await.message(), "address not allowed");
}

#[tokio::test]
async fn a_service_is_proxied_to_a_ready_pod_that_has_the_endpoints_address() {
    let (api, _directory) = cluster().await;
    let service = json!({"metadata": {"name": "s"}, "spec": {"selector": {"a": "b"}, "ports": [{"name": "web", "port": 80}]}});
    assert_eq!(api.post("/api/v1/namespaces/default/services", service).await.code, 201);
    let own = "/api/v1/namespaces/default/services";
    let ask = async |place: &str| {
        let answer = api.get(&format!("{own}/{place}/proxy/")).await;
        (answer.code, answer.message())
    };
    let none = |name: &str| (503, format!("no endpoints available for service {name:?}"));
    assert_eq!(ask("s:web").await, none("s"));
    assert_eq!(ask("s:81").await, (503, "no service port 81 found for service \"s\"".into()));
    let slice = |address: &str, ready: bool| {
        json!({"metadata": {"name": format!("s-{ready}"), "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
            "ports": [{"name": "web", "port": 1}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "name": "p"}}]})
    };
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    assert_eq!(api.post(slices, slice("192.0.2.1", false)).await.code, 201);
    assert_eq!(api.post(slices, slice("192.0.2.2", true)).await.code, 201);
    // Nobody may lead the API server to an address by writing an endpoint: the pod has to have it.
    assert_eq!(ask("s:80").await, none("s"));
}
