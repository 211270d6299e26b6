//! A KMS v2 plugin: it keeps the key that seals our data keys, and is asked over gRPC on a unix socket (KEP-3299).
//!
//! One data-key seed serves until the plugin names another key; each value is sealed with a key derived from the seed and 32 random bytes of its own.
//! The stored form is upstream's `EncryptedObject`, so that a plugin and a backup move between the two.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hkdf;
use bytes::{BufMut, Bytes};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::Value;

use super::{Error, open_gcm, seal_gcm};

const SEED: usize = 32;
/// How long the plugin's word about its current key is believed.
const STATUS_EVERY: Duration = Duration::from_secs(60);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(3);
/// Data keys that are kept open at a time.
const SEEDS_MAX: usize = 1_000;
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// `EncryptedDEKSourceType`: the seed of derived keys.
const DERIVED: i32 = 1;

pub struct Kms {
    name: String,
    socket: PathBuf,
    timeout: Duration,
    current: tokio::sync::Mutex<Option<Current>>,
    /// Opened seeds by what the plugin made of them.
    seeds: Mutex<HashMap<Vec<u8>, Arc<[u8]>>>,
}

/// The seed in use and how to get it back.
#[derive(Clone)]
struct Current {
    seed: Arc<[u8]>,
    sealed: Sealed,
    checked: Instant,
}

/// The stored form (upstream: `EncryptedObject`).
#[derive(Clone, PartialEq, prost::Message)]
struct Sealed {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    source: Vec<u8>,
    #[prost(map = "string, bytes", tag = "4")]
    annotations: HashMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    source_type: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(map = "string, bytes", tag = "4")]
    annotations: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(map = "string, bytes", tag = "3")]
    annotations: HashMap<String, Vec<u8>>,
}

impl Kms {
    pub fn parse(settings: &Value) -> Result<Self, Error> {
        let text = |name: &str| settings[name].as_str().unwrap_or_default();
        let wrong = |why: &str| Err(Error::Config(format!("kms: {why}")));
        if text("apiVersion") != "v2" {
            return wrong("apiVersion must be v2");
        }
        if text("name").is_empty() || text("name").contains(':') {
            return wrong("a provider needs a name without a colon");
        }
        let Some(socket) = text("endpoint").strip_prefix("unix://").filter(|path| !path.is_empty()) else {
            return wrong("endpoint must be unix:///path/to/the.sock");
        };
        let timeout = match text("timeout").strip_suffix('s').map(str::parse) {
            None => TIMEOUT_DEFAULT,
            Some(Ok(seconds)) if (1..=600).contains(&seconds) => Duration::from_secs(seconds),
            Some(_) => return wrong("timeout must be whole seconds, such as 3s"),
        };
        Ok(Self {
            name: text("name").into(),
            // gRPC writes an abstract socket as unix:///@name; a path is what plugins have.
            socket: socket.into(),
            timeout,
            current: tokio::sync::Mutex::default(),
            seeds: Mutex::default(),
        })
    }

    pub fn prefix(&self) -> String {
        format!("k8s:enc:kms:v2:{}:", self.name)
    }

    pub async fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let current = self.current().await?;
        let mut info = [0_u8; SEED];
        getrandom::fill(&mut info).map_err(|_| Error::Seal)?;
        let body = seal_gcm(&derive(&current.seed, &info)?, place, plain)?;
        let sealed = Sealed { data: [&info[..], &body].concat(), ..current.sealed };
        Ok([self.prefix().as_bytes(), &sealed.encode_to_vec()].concat())
    }

    /// The value, and whether its key is no longer the plugin's current one.
    pub async fn open(&self, place: &[u8], stored: &[u8]) -> Result<(Vec<u8>, bool), Error> {
        let sealed = Sealed::decode(stored.get(self.prefix().len()..).unwrap_or_default()).map_err(|_| Error::Damaged)?;
        let seed = self.seed(&sealed).await?;
        let plain = match sealed.source_type {
            DERIVED => {
                let (info, body) = sealed.data.split_at_checked(SEED).ok_or(Error::Damaged)?;
                open_gcm(&derive(&seed, info)?, place, body)?
            }
            _ => open_gcm(&seed, place, &sealed.data)?,
        };
        let known = self.current.try_lock().ok().and_then(|current| current.as_ref().map(|current| current.sealed.key_id.clone()));
        Ok((plain, known.is_some_and(|key| key != sealed.key_id)))
    }

    async fn seed(&self, sealed: &Sealed) -> Result<Arc<[u8]>, Error> {
        let known = self.lock().get(&sealed.source).cloned();
        if let Some(seed) = known {
            return Ok(seed);
        }
        let request = DecryptRequest {
            ciphertext: sealed.source.clone(),
            uid: meta::names::uid(),
            key_id: sealed.key_id.clone(),
            annotations: sealed.annotations.clone(),
        };
        let answer: DecryptResponse = self.call("Decrypt", &request).await?;
        Ok(self.keep(&sealed.source, answer.plaintext))
    }

    fn keep(&self, source: &[u8], seed: Vec<u8>) -> Arc<[u8]> {
        let seed: Arc<[u8]> = seed.into();
        let mut seeds = self.lock();
        if seeds.len() >= SEEDS_MAX {
            seeds.clear();
        }
        seeds.insert(source.to_vec(), seed.clone());
        seed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<u8>, Arc<[u8]>>> {
        self.seeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The seed to seal with; a new one where the plugin has changed its key.
    async fn current(&self) -> Result<Current, Error> {
        let mut current = self.current.lock().await;
        if let Some(known) = current.as_mut() {
            if known.checked.elapsed() < STATUS_EVERY {
                return Ok(known.clone());
            }
            let status: StatusResponse = self.call("Status", &StatusRequest {}).await?;
            if status.healthz != "ok" {
                return Err(self.failed(format!("is not healthy: {}", status.healthz)));
            }
            known.checked = Instant::now();
            if status.key_id == known.sealed.key_id {
                return Ok(known.clone());
            }
        }
        let mut seed = vec![0_u8; SEED];
        getrandom::fill(&mut seed).map_err(|_| Error::Seal)?;
        let request = EncryptRequest { plaintext: seed.clone(), uid: meta::names::uid() };
        let answer: EncryptResponse = self.call("Encrypt", &request).await?;
        if answer.ciphertext.is_empty() || answer.key_id.is_empty() {
            return Err(self.failed("answered without a ciphertext or a key id"));
        }
        let seed = self.keep(&answer.ciphertext, seed);
        let sealed = Sealed {
            data: Vec::new(),
            key_id: answer.key_id,
            source: answer.ciphertext,
            annotations: answer.annotations,
            source_type: DERIVED,
        };
        Ok(current.insert(Current { seed, sealed, checked: Instant::now() }).clone())
    }

    fn failed(&self, why: impl Into<String>) -> Error {
        Error::Kms { name: self.name.clone(), why: why.into() }
    }

    async fn call<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A, Error> {
        match tokio::time::timeout(self.timeout, self.unary(method, request)).await {
            Ok(answer) => answer.map_err(|why| self.failed(format!("{method}: {why}"))),
            Err(_) => Err(self.failed(format!("{method}: no answer within {} s", self.timeout.as_secs()))),
        }
    }

    /// One gRPC call on a connection of its own: the plugin is asked once in a while.
    async fn unary<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A, String> {
        let stream = tokio::net::UnixStream::connect(&self.socket).await.map_err(|error| format!("connect: {error}"))?;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| format!("connect: {error}"))?;
        let driver = tokio::spawn(connection);
        let request = http::Request::post(format!("http://localhost/v2.KeyManagementService/{method}"))
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .body(Full::new(frame(request)))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let body = http_body_util::Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
        driver.abort();
        let header = |name: &str| {
            let trailers = body.trailers().and_then(|trailers| trailers.get(name));
            trailers.or_else(|| parts.headers.get(name)).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        match header("grpc-status").as_str() {
            "0" => {}
            code => return Err(format!("gRPC status {code}: {}", header("grpc-message"))),
        }
        let bytes = body.to_bytes();
        A::decode(bytes.get(5..).unwrap_or_default()).map_err(|error| error.to_string())
    }
}

/// gRPC's frame: not compressed, length, message.
fn frame(message: &impl Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let mut out = Vec::with_capacity(encoded.len() + 5);
    out.put_u8(0);
    out.put_u32(u32::try_from(encoded.len()).unwrap_or(u32::MAX));
    out.extend(encoded);
    out.into()
}

/// HKDF-Expand with SHA-256.
fn derive(seed: &[u8], info: &[u8]) -> Result<[u8; 32], Error> {
    struct Length;
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            32
        }
    }
    let mut key = [0_u8; 32];
    let info = [info];
    let key_material = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, seed);
    let output = key_material.expand(&info, Length).map_err(|_| Error::Seal)?;
    output.fill(&mut key).map_err(|_| Error::Seal)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::body::{Frame, Incoming};
    use serde_json::json;

    use super::*;

    /// A plugin that seals by reversing, under the key id in `key`.
    fn plugin(socket: PathBuf, key: Arc<Mutex<String>>) {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let key = key.clone();
                let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                    let key = key.lock().unwrap().clone();
                    async move {
                        let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
                        let bytes = request.into_body().collect().await.unwrap().to_bytes().slice(5..);
                        let reversed = |bytes: Vec<u8>| bytes.into_iter().rev().collect();
                        let answer = match method.as_str() {
                            "Encrypt" => {
                                let plain = EncryptRequest::decode(bytes).unwrap().plaintext;
                                frame(&EncryptResponse { ciphertext: reversed(plain), key_id: key, ..Default::default() })
                            }
                            "Decrypt" => frame(&DecryptResponse { plaintext: reversed(DecryptRequest::decode(bytes).unwrap().ciphertext) }),
                            _ => frame(&StatusResponse { version: "v2".into(), healthz: "ok".into(), key_id: key }),
                        };
                        let trailers = http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                        let frames = [Ok::<_, Infallible>(Frame::data(answer)), Ok(Frame::trailers(trailers))];
                        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
                        Ok::<_, Infallible>(http::Response::new(body))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    }

    #[tokio::test]
    async fn a_plugins_key_seals_and_opens_also_after_a_restart_and_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kms.sock");
        let key = Arc::new(Mutex::new("one".to_owned()));
        plugin(socket.clone(), key.clone());
        let settings = json!({"apiVersion": "v2", "name": "vault", "endpoint": format!("unix://{}", socket.display())});
        let kms = Kms::parse(&settings).unwrap();
        let sealed = kms.seal(b"/a", b"the plain text").await.unwrap();
        assert!(sealed.starts_with(b"k8s:enc:kms:v2:vault:"));
        assert_eq!(kms.open(b"/a", &sealed).await.unwrap(), (b"the plain text".to_vec(), false));
        assert!(kms.open(b"/b", &sealed).await.is_err());
        let fresh = Kms::parse(&settings).unwrap();
        assert_eq!(fresh.open(b"/a", &sealed).await.unwrap(), (b"the plain text".to_vec(), false));
        "two".clone_into(&mut key.lock().unwrap());
        fresh.seal(b"/c", b"x").await.unwrap();
        assert_eq!(fresh.open(b"/a", &sealed).await.unwrap(), (b"the plain text".to_vec(), true));
    }

    #[tokio::test]
    async fn a_plugin_that_is_not_there_is_named() {
        let kms = Kms::parse(&json!({"apiVersion": "v2", "name": "vault", "endpoint": "unix:///nowhere.sock"})).unwrap();
        let error = kms.seal(b"/a", b"x").await.unwrap_err().to_string();
        assert!(error.starts_with("KMS plugin vault: Encrypt: connect"), "{error}");
    }
}
