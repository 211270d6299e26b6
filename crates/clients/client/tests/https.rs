//! The HTTPS transport against a TLS server on loopback: certificates of both sides, HTTP/2, a watch beside other requests, and a
//! server that goes away and comes back.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use client::{Client, Https, WatchEvent, WatchParams};
use http::{Request, Response, Version};
use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::ConfigMap;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

struct Authority {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { ca: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// PEM of a certificate and its key.
    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.ca).unwrap().pem(), key.serialize_pem())
    }

    fn acceptor(&self) -> TlsAcceptor {
        use rustls::pki_types::pem::PemObject;
        let (certificate, key) = self.issue("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

type Reply = Response<BoxBody<Bytes, Infallible>>;

/// A watch gets one event now and one once another request was answered; anything else is a ConfigMap.
async fn answer(request: Request<Incoming>, requests: Arc<AtomicUsize>) -> Result<Reply, Infallible> {
    assert_eq!(request.version(), Version::HTTP_2);
    if !request.uri().query().unwrap_or_default().contains("watch=true") {
        requests.fetch_add(1, Ordering::SeqCst);
        let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}"#;
        return Ok(Response::new(Full::new(Bytes::from(body)).boxed()));
    }
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(4);
    tokio::spawn(async move {
        for number in 1..=2 {
            while requests.load(Ordering::SeqCst) < number - 1 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            let event = format!("{{\"type\":\"ADDED\",\"object\":{{\"metadata\":{{\"name\":\"e{number}\"}}}}}}\n");
            if sender.send_data(event.into()).await.is_err() {
                return;
            }
        }
    });
    Ok(Response::new(body.boxed()))
}

struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

async fn serve(authority: &Authority, address: &str) -> Server {
    let listener = TcpListener::bind(address).await.unwrap();
    let (acceptor, address) = (authority.acceptor(), listener.local_addr().unwrap());
    let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = connections.clone();
    let task = tokio::spawn(async move {
        let mut alive = tokio::task::JoinSet::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, requests, counted) = (acceptor.clone(), requests.clone(), counted.clone());
            alive.spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                counted.fetch_add(1, Ordering::SeqCst);
                let service = hyper::service::service_fn(|request| answer(request, requests.clone()));
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service).await;
            });
        }
    });
    Server { address, connections, task }
}

fn kubeconfig(directory: &Path, authority: &Authority, address: SocketAddr) -> std::path::PathBuf {
    let (certificate, key) = authority.issue("user", ExtendedKeyUsagePurpose::ClientAuth);
    use base64::Engine;
    let inline = base64::engine::general_purpose::STANDARD.encode(certificate);
    std::fs::write(directory.join("ca.pem"), authority.ca.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), key).unwrap();
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         clusters:\n- name: c\n  cluster:\n    server: https://{address}\n    certificate-authority: ca.pem\n\
         users:\n- name: u\n  user:\n    client-certificate-data: {inline}\n    client-key: key.pem\n\
         contexts:\n- name: here\n  context:\n    cluster: c\n    user: u\n"
    );
    let path = directory.join("config");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn a_kubeconfig_reaches_its_server_over_one_http2_connection_and_again_after_a_restart() {
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let server = serve(&authority, "127.0.0.1:0").await;
    let path = kubeconfig(directory.path(), &authority, server.address);
    let client = Client::new(Arc::new(Https::from_kubeconfig(&path, None).unwrap()));

    let mut watch = client.watch::<ConfigMap>(&WatchParams::default()).await.unwrap();
    let name = |event: Option<Result<WatchEvent<ConfigMap>, client::Error>>| match event {
        Some(Ok(WatchEvent::Added(map))) => map.metadata.name.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(name(watch.next().await), "e1");
    let gets = (0..100).map(|_| client.get::<ConfigMap>(Some("a"), "x"));
    assert!(futures_util::future::join_all(gets).await.iter().all(Result::is_ok));
    assert_eq!(name(watch.next().await), "e2");
    assert_eq!(server.connections.load(Ordering::SeqCst), 1, "all of it on one connection");

    server.task.abort();
    let _ = server.task.await;
    assert!(client.get::<ConfigMap>(Some("a"), "x").await.is_err());
    let again = serve(&authority, &server.address.to_string()).await;
    assert!(client.get::<ConfigMap>(Some("a"), "x").await.is_ok());
    again.task.abort();
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let (directory, ours, theirs) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let server = serve(&theirs, "127.0.0.1:0").await;
    let path = kubeconfig(directory.path(), &ours, server.address);
    let client = Client::new(Arc::new(Https::from_kubeconfig(&path, None).unwrap()));
    let error = client.get::<ConfigMap>(Some("a"), "x").await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    server.task.abort();
}
