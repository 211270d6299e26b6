//! A real HTTPS server with a certificate of its own, for what the API server calls.
#![allow(dead_code)]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::net::TcpListener;

/// What the server does with a request.
pub enum Reply {
    Json(Value),
    Text(u16, String),
    /// Never answers.
    Hang,
    /// Closes the connection.
    Crash,
    /// Goes on in the protocol that the client asks for, and says everything back.
    Echo,
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: http::HeaderMap,
    pub body: Value,
}

pub struct Https {
    pub port: u16,
    /// The PEM bundle that trusts it.
    pub ca: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl Https {
    /// Serves on the loopback under `localhost` and the given names until the test ends.
    pub async fn start(names: &[&str], answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let (config, ca) = certificate(names);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let (answer, record) = (Arc::new(answer), seen.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer, record) = (acceptor.clone(), answer.clone(), record.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| serve(request, answer.clone(), record.clone()));
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                });
            }
        });
        Self { port, ca, seen }
    }

    pub fn bundle(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(&self.ca)
    }
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("seen").clone()
    }
}

async fn serve<F>(
    mut request: Request<Incoming>,
    answer: Arc<F>,
    record: Arc<Mutex<Vec<Seen>>>,
) -> Result<Response<Full<Bytes>>, std::io::Error>
where
    F: Fn(&Seen) -> Reply,
{
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.to_string(),
        headers: parts.headers,
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
    };
    record.lock().expect("seen").push(seen.clone());
    let (code, content_type, text) = match answer(&seen) {
        Reply::Json(value) => (200, "application/json", value.to_string()),
        Reply::Text(code, text) => (code, "text/plain", text),
        Reply::Echo => {
            tokio::spawn(async move {
                let Ok(stream) = upgrade.await else { return };
                let (mut from, mut to) = tokio::io::split(TokioIo::new(stream));
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
            let switching = Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "echo");
            return switching.body(Full::default()).map_err(std::io::Error::other);
        }
        Reply::Crash => return Err(std::io::Error::other("crash")),
        Reply::Hang => std::future::pending::<Result<_, Infallible>>().await.map_err(std::io::Error::other)?,
    };
    Response::builder().status(code).header("content-type", content_type).body(Full::new(text.into())).map_err(std::io::Error::other)
}

/// A CA of its own and a leaf for the names.
fn certificate(names: &[&str]) -> (Arc<rustls::ServerConfig>, String) {
    let ca_key = rcgen::KeyPair::generate().expect("key");
    let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
    let root = ca.self_signed(&ca_key).expect("CA").pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().expect("key");
    let all: Vec<String> = names.iter().chain(&["localhost"]).map(|name| (*name).to_owned()).collect();
    let leaf = rcgen::CertificateParams::new(all).expect("parameters").signed_by(&key, &issuer).expect("leaf");
    let chain = vec![CertificateDer::from(leaf.der().to_vec())];
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    (Arc::new(config.with_no_client_auth().with_single_cert(chain, key).expect("configuration")), root)
}
