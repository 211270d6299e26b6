//! A real aggregated API server over TLS: found by its Service, asked with the user's identity, listed in discovery, and said to be down when
//! it is.

mod harness;

use std::time::Duration;

use harness::https::{Https, Reply};
use harness::{Answer, Api, body};
use serde_json::{Value, json};
use store::Store;

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const NAME: &str = "v1alpha1.wardle.example.com";

/// Serves `flunders`; what is asked below them is answered with what was asked.
async fn wardle() -> Https {
    Https::start(&["wardle.default.svc"], |seen| match seen.path.split('?').next().unwrap_or_default() {
        "/apis/wardle.example.com/v1alpha1" => Reply::Json(json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1alpha1",
            "resources": [{"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list", "create"]}],
        })),
        "/openapi/v3" => Reply::Json(json!({"paths": {"apis/wardle.example.com/v1alpha1": {"serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=1"}}})),
        "/openapi/v3/apis/wardle.example.com/v1alpha1" => Reply::Json(json!({"openapi": "3.0.0"})),
        "/openapi/v2" => Reply::Json(json!({
            "paths": {"/apis/wardle.example.com/v1alpha1/flunders": {"get": {"schema": {"$ref": "#/definitions/Flunder"}}}, "/healthz": {}},
            "definitions": {"Flunder": {"type": "object"}, "Unused": {}},
        })),
        path if path.ends_with("/echo") => Reply::Echo,
        path if path.ends_with("/hang") => Reply::Hang,
        path if path.ends_with("/crash") => Reply::Crash,
        path if path.ends_with("/nonsense") => Reply::Text(418, "teapot".into()),
        _ => Reply::Json(json!({"kind": "Flunder", "asked": seen.path, "method": seen.method, "body": seen.body})),
    })
    .await
}

/// Writes what the API would not take from a client: an endpoint on the loopback.
async fn slice(api: &Api, port: u16) {
    let slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": "wardle-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "wardle"}},
        "addressType": "IPv4",
        "ports": [{"name": "https", "port": port}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}],
    });
    let key = b"/registry/endpointslices/default/wardle-1".to_vec();
    let old = api.store.get(&key).await.expect("read").map(|entry| entry.mod_revision);
    let expect = old.map_or(store::Expect::Absent, store::Expect::Revision);
    api.store.put(&key, slice.to_string().into(), expect).await.expect("stored");
}

async fn service(api: &Api) {
    let service = json!({"metadata": {"name": "wardle"}, "spec": {"ports": [{"port": 443, "name": "https"}]}});
    assert_eq!(api.post("/api/v1/namespaces/default/services", service).await.code, 201);
}

async fn register(api: &Api, ca: Option<String>) {
    let mut spec = json!({
        "group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
        "service": {"name": "wardle", "namespace": "default", "port": 443},
    });
    match ca {
        Some(ca) => spec["caBundle"] = ca.into(),
        None => spec["insecureSkipTLSVerify"] = true.into(),
    }
    let answer = api.post(SERVICES, json!({"metadata": {"name": NAME}, "spec": spec})).await;
    assert_eq!(answer.code, 201, "{}", answer.message());
}

/// The condition once it has this reason.
async fn condition(api: &Api, reason: &str) -> Value {
    let mut last = Value::Null;
    for _ in 0..200 {
        last = api.get(&format!("{SERVICES}/{NAME}")).await.json()["status"]["conditions"][0].clone();
        if last["reason"] == reason {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("expected {reason}: {last}");
}

/// The answer once its code is no longer `code`: a proxy knows a condition as soon as the watch cache has it.
async fn after(api: &Api, path: &str, code: u16) -> Answer {
    for _ in 0..100 {
        let answer = api.get(path).await;
        if answer.code != code {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{path} still answers {code}");
}

#[tokio::test]
async fn requests_go_to_the_aggregated_server_with_the_users_identity() {
    let (server, api) = (wardle().await, Api::new().await);
    service(&api).await;
    slice(&api, server.port).await;
    register(&api, Some(server.bundle())).await;
    assert_eq!(condition(&api, "Passed").await["message"], "all checks passed");
    let path = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders/one";
    after(&api, path, 503).await;
    let request = http::Request::builder()
        .method("POST")
        .uri("/apis/wardle.example.com/v1alpha1/namespaces/default/flunders?fieldManager=me")
        .header("content-type", "application/json")
        .header("x-remote-user", "somebody-else")
        .header("authorization", "Bearer secret");
    let mut user = harness::admin();
    user.extra.insert("scopes".into(), vec!["all".into()]);
    let answer = api.send(request.body(body(json!({"a": 1}).to_string())).unwrap(), user).await;
    assert_eq!((answer.code, &answer.json()["body"]), (200, &json!({"a": 1})));
    assert_eq!(answer.json()["asked"], "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders?fieldManager=me");
    let seen = server.seen().into_iter().find(|seen| seen.method == "POST").expect("asked");
    let header = |name: &str| seen.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(header("x-remote-user"), ["admin"]);
    assert_eq!(header("x-remote-group"), ["system:masters", "system:authenticated"]);
    assert_eq!(header("x-remote-extra-scopes"), ["all"]);
    assert!(header("authorization").is_empty(), "the client's credentials stay here");
    // Rights are judged here first.
    let request = http::Request::builder().uri(path).body(body("")).unwrap();
    assert_eq!(api.send(request, auth::UserInfo::authenticated("nobody", &[])).await.code, 403);
}

#[tokio::test]
async fn the_group_is_in_every_form_of_discovery() {
    let (server, api) = (wardle().await, Api::new().await);
    service(&api).await;
    slice(&api, server.port).await;
    register(&api, None).await;
    condition(&api, "Passed").await;
    after(&api, "/apis/wardle.example.com/v1alpha1", 503).await;
    let groups = api.get("/apis").await.json();
    let found = groups["groups"].as_array().unwrap().iter().find(|group| group["name"] == "wardle.example.com").expect("the group");
    assert_eq!(found["preferredVersion"]["groupVersion"], "wardle.example.com/v1alpha1");
    assert_eq!(api.get("/apis/wardle.example.com").await.json()["kind"], "APIGroup");
    assert_eq!(api.get("/apis/wardle.example.com/v1alpha1").await.json()["resources"][0]["name"], "flunders");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let request = http::Request::builder().uri("/apis").header("accept", accept).body(body("")).unwrap();
    let document = api.send(request, harness::admin()).await.json();
    let group =
        document["items"].as_array().unwrap().iter().find(|group| group["metadata"]["name"] == "wardle.example.com").expect("group");
    assert_eq!(group["versions"][0]["resources"][0]["resource"], "flunders");
    assert_eq!(group["versions"][0]["freshness"], "Current");
    let index = api.get("/openapi/v3").await.json();
    let place = index["paths"]["apis/wardle.example.com/v1alpha1"]["serverRelativeURL"].as_str().expect("a document").to_owned();
    assert_eq!(api.get(&place).await.json()["openapi"], "3.0.0");
    let whole = api.get("/openapi/v2").await.json();
    assert!(whole["paths"]["/apis/wardle.example.com/v1alpha1/flunders"]["get"].is_object());
    assert!(whole["paths"]["/apis/apps/v1/deployments"]["get"].is_object());
    assert_eq!((&whole["definitions"]["Flunder"], &whole["definitions"]["Unused"]), (&json!({"type": "object"}), &Value::Null));
    assert_eq!(api.delete(&format!("{SERVICES}/{NAME}")).await.code, 200);
    for _ in 0..100 {
        if api.get("/openapi/v2").await.json()["definitions"]["Flunder"].is_null() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the document still speaks of a server that is gone");
}

#[tokio::test]
async fn a_server_that_fails_is_named_and_nobody_else_suffers() {
    let (server, api) = (wardle().await, Api::new().await);
    register(&api, Some(server.bundle())).await;
    let path = "/apis/wardle.example.com/v1alpha1/flunders";
    assert_eq!(condition(&api, "ServiceNotFound").await["message"], "service/wardle in \"default\" is not present");
    let answer = api.get(path).await;
    assert_eq!((answer.code, &answer.bytes[..]), (503, &b"service unavailable\n"[..]));
    service(&api).await;
    assert_eq!(condition(&api, "EndpointsNotFound").await["message"], "cannot find endpointslices for service/wardle in \"default\"");
    // A port where nobody listens.
    slice(&api, 1).await;
    let failed = condition(&api, "FailedDiscoveryCheck").await["message"].as_str().unwrap().to_owned();
    assert!(failed.contains("dial tcp 127.0.0.1:1: connect: connection refused"), "{failed}");
    slice(&api, server.port).await;
    condition(&api, "Passed").await;
    after(&api, path, 503).await;
    let crashed = api.get("/apis/wardle.example.com/v1alpha1/crash").await;
    assert_eq!(crashed.code, 503);
    assert!(String::from_utf8_lossy(&crashed.bytes).starts_with("error trying to reach service: "), "{:?}", crashed.bytes);
    assert_eq!(api.get("/apis/wardle.example.com/v1alpha1/nonsense").await.code, 418, "nonsense is handed on as it is");
    // One that hangs holds its own client only.
    let hanging = api.get("/apis/wardle.example.com/v1alpha1/hang");
    assert!(tokio::time::timeout(Duration::from_millis(300), hanging).await.is_err());
    assert_eq!(api.get("/api/v1/namespaces/default").await.code, 200);
    assert_eq!(api.get("/apis").await.code, 200);
}

#[tokio::test]
async fn every_group_version_of_this_server_has_an_api_service() {
    let api = Api::new().await;
    let mut last = Value::Null;
    for _ in 0..100 {
        last = api.get(&format!("{SERVICES}/v1.apps")).await.json();
        if last["status"]["conditions"][0]["reason"] == "Local" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(last["status"]["conditions"][0]["message"], "Local APIServices are always available", "{last}");
    assert_eq!((&last["spec"]["group"], &last["spec"]["version"], &last["spec"]["service"]), (&json!("apps"), &json!("v1"), &Value::Null));
    assert_eq!(last["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
}

#[tokio::test]
async fn streams_go_through_to_the_aggregated_server() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (server, api) = (wardle().await, Api::new().await);
    service(&api).await;
    slice(&api, server.port).await;
    register(&api, Some(server.bundle())).await;
    condition(&api, "Passed").await;
    after(&api, "/apis/wardle.example.com/v1alpha1/flunders", 503).await;
    // A socket in between, as upgrades need one.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ours = api.server.clone();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            use http_body_util::BodyExt;
            let (ours, request) = (ours.clone(), request.map(|body| body.map_err(std::io::Error::other).boxed()));
            async move { Ok::<_, std::convert::Infallible>(ours.handle(request, Some(harness::admin())).await) }
        });
        let stream = hyper_util::rt::TokioIo::new(stream);
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).with_upgrades().await;
    });
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = "GET /apis/wardle.example.com/v1alpha1/namespaces/default/flunders/f/echo HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        said.push(client.read_u8().await.unwrap());
    }
    assert!(said.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&said));
    for word in ["one", "another"] {
        client.write_all(word.as_bytes()).await.unwrap();
        let mut back = vec![0; word.len()];
        client.read_exact(&mut back).await.unwrap();
        assert_eq!(back, word.as_bytes());
    }
    let seen = server.seen().into_iter().find(|seen| seen.path.ends_with("/echo")).expect("asked");
    assert_eq!(seen.headers["x-remote-user"], "admin");
}

#[tokio::test]
async fn fifty_clients_at_a_server_that_hangs_hold_up_nobody() {
    let (server, api) = (wardle().await, std::sync::Arc::new(Api::new().await));
    service(&api).await;
    slice(&api, server.port).await;
    register(&api, Some(server.bundle())).await;
    condition(&api, "Passed").await;
    after(&api, "/apis/wardle.example.com/v1alpha1/flunders", 503).await;
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let api = api.clone();
        held.spawn(async move { api.get("/apis/wardle.example.com/v1alpha1/hang").await.code });
    }
    while server.seen().iter().filter(|seen| seen.path.ends_with("/hang")).count() < 50 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for number in 0..50 {
        let map = json!({"metadata": {"name": format!("m{number}")}});
        assert_eq!(api.post("/api/v1/namespaces/default/configmaps", map).await.code, 201);
    }
    assert_eq!(api.get("/apis/wardle.example.com/v1alpha1/flunders").await.code, 200, "not even at the same server");
    assert!(held.try_join_next().is_none());
}
