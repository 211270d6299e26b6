//! The built-in registry, with a foreign client (`oci-client`) and by hand; and what nodes give each other. Needs root to unpack.

use std::sync::Arc;

use images::{Access, Endpoint, Registries, Server, Store};
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Node {
    store: Arc<Store>,
    /// Its registry.
    address: String,
    /// What other nodes see.
    peer: String,
    _directory: tempfile::TempDir,
}

async fn serve(store: &Arc<Store>, access: Access) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = Server::new(store.clone(), access);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(server.clone().serve_connection(stream));
        }
    });
    address
}

/// Nodes that know each other; the registry is called `own.local:5000` on all of them.
async fn nodes<const COUNT: usize>() -> [Node; COUNT] {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut nodes = Vec::new();
    for _ in 0..COUNT {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (address, peer) = (serve(&store, Access::Registry).await, serve(&store, Access::Peer).await);
        nodes.push(Node { store, address, peer, _directory: directory });
    }
    let peers: Vec<String> = nodes.iter().map(|node| node.peer.clone()).collect();
    let tls = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    for node in &nodes {
        let (others, tls) = (peers.iter().filter(|peer| **peer != node.peer).cloned().collect::<Vec<_>>(), Arc::new(tls.clone()));
        node.store.use_registries(Registries {
            own: Some("own.local:5000".into()),
            peers: Arc::new(move || others.iter().map(|other| Endpoint::peer(format!("http://{other}"), tls.clone())).collect()),
            ..Registries::default()
        });
    }
    nodes.try_into().unwrap_or_else(|_| panic!("as many as were asked for"))
}

fn tarball(name: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(name.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, name.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// Pushes an image of one layer with a foreign client.
async fn push(address: &str, name: &str, content: &str) {
    let client = oci_client::Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let reference: oci_client::Reference = format!("{address}/{name}").parse().unwrap();
    let layer = tarball(content);
    let config = serde_json::json!({ "architecture": images::architecture(), "os": "linux", "config": { "Cmd": [content] },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] } });
    let layers = [ImageLayer::oci_v1(layer, None)];
    client.push(&reference, &layers, Config::oci_v1(config.to_string().into_bytes(), None), &RegistryAuth::Anonymous, None).await.unwrap();
}

/// One request by hand: status, head, body.
async fn request(address: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    (status, head, answer[end + 4..].to_vec())
}

fn header(head: &str, name: &str) -> String {
    head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn what_a_foreign_client_pushes_runs_on_every_node_and_the_newest_push_counts() {
    let [one, two, three] = nodes().await;
    push(&one.address, "team/app:v1", "first").await;
    for node in [&one, &two, &three] {
        let image = node.store.clone().pull("own.local:5000/team/app:v1", None).await.unwrap();
        assert_eq!(image.reference().split('@').next(), Some("own.local:5000/team/app"));
        let layers = node.store.lease(&image.id).unwrap().layers();
        assert_eq!(std::fs::read_to_string(layers[0].join("first")).unwrap(), "first");
    }
    push(&two.address, "team/app:v1", "second").await;
    for node in [&one, &three] {
        let image = node.store.clone().pull("own.local:5000/team/app:v1", None).await.unwrap();
        assert_eq!(image.config.cmd, ["second"]);
    }
    // A client on a node where nothing was pushed sees it, too.
    let (status, head, _) = request(&three.address, "HEAD", "/v2/team/app/manifests/v1", "", b"").await;
    assert_eq!(status, 200, "{head}");
    let error = one.store.clone().pull("own.local:5000/none:v1", None).await.unwrap_err().to_string();
    assert!(error.contains("own.local:5000/none:v1: not found"), "{error}");
}

#[tokio::test]
async fn an_image_of_another_registry_comes_from_a_node_that_has_it() {
    let [one, two] = nodes().await;
    push(&one.address, "team/app:v1", "content").await;
    one.store.clone().pull("own.local:5000/team/app:v1", None).await.unwrap();
    one.store.tag("own.local:5000/team/app:v1", "far.example/app:v1").unwrap();
    let how = || images::Pull { any_known: true, ..images::Pull::default() };
    let image = two.store.clone().pull_with("far.example/app:v1", how()).await.unwrap();
    assert_eq!(image.config.cmd, ["content"]);
    // Nothing resolves that registry's name: it cannot be reached, and another node's word is better than none.
    two.store.remove("far.example/app:v1").unwrap();
    two.store.clone().pull("far.example/app:v1", None).await.unwrap();
    let auth = cri::v1::AuthConfig { username: "u".into(), password: "p".into(), ..Default::default() };
    assert!(two.store.clone().pull("far.example/app:v1", Some(&auth)).await.is_err(), "credentials are for the registry to judge");
}

#[tokio::test]
async fn uploads_come_whole_in_pieces_or_from_another_repository() {
    let [node] = nodes().await;
    let at = &node.address;
    let content = b"0123456789".as_slice();
    let sum = digest(content);
    // In pieces, one of them out of order.
    let (status, head, _) = request(at, "POST", "/v2/a/blobs/uploads/", "", b"").await;
    assert_eq!(status, 202);
    let location = header(&head, "location");
    let (status, head, _) = request(at, "PATCH", &location, "Content-Range: 0-3\r\n", &content[..4]).await;
    assert_eq!((status, header(&head, "range")), (202, "0-3".into()));
    let (status, ..) = request(at, "PATCH", &location, "Content-Range: 7-9\r\n", &content[7..]).await;
    assert_eq!(status, 416);
    let (status, head, _) = request(at, "GET", &location, "", b"").await;
    assert_eq!((status, header(&head, "range")), (204, "0-3".into()));
    let (status, head, _) = request(at, "PUT", &format!("{location}?digest={sum}"), "Content-Range: 4-9\r\n", &content[4..]).await;
    assert_eq!((status, header(&head, "docker-content-digest")), (201, sum.clone()));
    // Ranges of it.
    let blob = format!("/v2/a/blobs/{sum}");
    let (status, head, body) = request(at, "GET", &blob, "Range: bytes=2-4\r\n", b"").await;
    assert_eq!((status, header(&head, "content-range"), body.as_slice()), (206, "bytes 2-4/10".into(), b"234".as_slice()));
    assert_eq!(request(at, "GET", &blob, "Range: bytes=10-\r\n", b"").await.0, 416);
    // Whole, with a digest that lies; then cancelled.
    let (status, _, body) = request(at, "POST", &format!("/v2/a/blobs/uploads/?digest={}", digest(b"other")), "", content).await;
    assert_eq!(status, 400, "{}", String::from_utf8_lossy(&body));
    assert!(String::from_utf8_lossy(&body).contains("DIGEST_INVALID"));
    let (_, head, _) = request(at, "POST", "/v2/a/blobs/uploads/", "", b"").await;
    let location = header(&head, "location");
    assert_eq!(request(at, "DELETE", &location, "", b"").await.0, 204);
    assert_eq!(request(at, "PUT", &format!("{location}?digest={sum}"), "", content).await.0, 404);
    // A manifest whose parts are not there, then one whose are; mounted elsewhere; deleted.
    let manifest = |blob: &str| {
        serde_json::json!({ "schemaVersion": 2, "artifactType": "x/y", "config": { "digest": blob, "size": 10, "mediaType": "x/z" } })
            .to_string()
    };
    let (status, _, body) = request(at, "PUT", "/v2/a/manifests/t", "", manifest(&digest(b"none")).as_bytes()).await;
    assert_eq!(status, 404);
    assert!(String::from_utf8_lossy(&body).contains("MANIFEST_BLOB_UNKNOWN"));
    let (status, head, _) = request(at, "PUT", "/v2/a/manifests/t", "", manifest(&sum).as_bytes()).await;
    assert_eq!(status, 201, "{head}");
    let of_manifest = header(&head, "docker-content-digest");
    assert_eq!(request(at, "POST", &format!("/v2/b/blobs/uploads/?mount={sum}&from=a"), "", b"").await.0, 201);
    assert_eq!(request(at, "HEAD", &format!("/v2/b/blobs/{sum}"), "", b"").await.0, 200);
    assert_eq!(request(at, "GET", "/v2/a/tags/list", "", b"").await.2, br#"{"name":"a","tags":["t"]}"#);
    // What points to it.
    let signature = serde_json::json!({ "schemaVersion": 2, "artifactType": "sig", "config": { "digest": sum, "size": 10 }, "subject": { "digest": of_manifest, "size": 1 } });
    let (status, head, _) =
        request(at, "PUT", &format!("/v2/a/manifests/{}", digest(signature.to_string().as_bytes())), "", signature.to_string().as_bytes())
            .await;
    assert_eq!((status, header(&head, "oci-subject")), (201, of_manifest.clone()));
    let referrers = request(at, "GET", &format!("/v2/a/referrers/{of_manifest}?artifactType=sig"), "", b"").await;
    assert!(
        referrers.1.contains("oci-filters-applied: artifacttype") && String::from_utf8_lossy(&referrers.2).contains("\"sig\""),
        "{referrers:?}"
    );
    assert_eq!(request(at, "DELETE", &format!("/v2/a/manifests/{of_manifest}"), "", b"").await.0, 202);
    assert_eq!(request(at, "GET", "/v2/a/manifests/t", "", b"").await.0, 404);
}

#[tokio::test]
async fn other_nodes_may_read_but_not_write_and_see_nothing_that_was_pulled_with_credentials() {
    let [node] = nodes().await;
    push(&node.address, "team/app:v1", "content").await;
    let (status, head, _) = request(&node.peer, "GET", "/v2/team/app/manifests/v1?ns=own.local:5000", "", b"").await;
    assert_eq!(status, 200);
    assert!(!header(&head, "sternpost-pushed").is_empty(), "{head}");
    assert_eq!(request(&node.peer, "POST", "/v2/team/app/blobs/uploads/", "", b"").await.0, 405);
    assert_eq!(request(&node.peer, "DELETE", "/v2/team/app/manifests/v1", "", b"").await.0, 405);
    assert_eq!(request(&node.peer, "GET", "/v2/team/app/manifests/v1?ns=far.example", "", b"").await.0, 404);
}

#[tokio::test]
async fn an_image_that_is_saved_and_loaded_is_the_same_image() {
    let [one, two] = nodes().await;
    push(&one.address, "team/app:v1", "content").await;
    let image = one.store.clone().pull("own.local:5000/team/app:v1", None).await.unwrap();
    let names = ["own.local:5000/team/app:v1".to_owned()];
    let (mut archive, mut again) = (Vec::new(), Vec::new());
    one.store.save_archive(&names, &mut archive).unwrap();
    one.store.save_archive(&names, &mut again).unwrap();
    assert_eq!(archive, again);
    two.store.use_registries(Registries::default());
    let loaded = two.store.import(archive.as_slice()).unwrap();
    assert_eq!((loaded[0].id.clone(), loaded[0].name.clone()), (image.id.clone(), Some(names[0].clone())));
    assert_eq!(two.store.resolve(&names[0]).unwrap().manifest, image.manifest);
    one.store.remove(&names[0]).unwrap();
    assert_eq!(request(&one.address, "GET", "/v2/team/app/manifests/v1", "", b"").await.0, 200, "the registry keeps what was pushed");
    one.store.unpublish_own(&names[0]).unwrap();
    let left = std::fs::read_dir(one._directory.path().join("blobs/sha256")).unwrap().count();
    assert_eq!(left, 0, "nobody needs its blobs any more");
}
