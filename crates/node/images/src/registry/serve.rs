//! The OCI distribution API 1.1 over the store.

use std::collections::HashMap;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue, LINK, LOCATION, RANGE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};

use super::routes::{Route, query, route};
use super::uploads::{Session, Uploads};
use crate::http::{Body, empty, file, full};
use crate::manifest::{DOCUMENT_BYTES_MAX, Document, OCI_INDEX};
use crate::remote::PUSHED;
use crate::store::{Image, Store};
use crate::{Error, reference};

/// Between two parts of an upload.
const STALL: Duration = Duration::from_secs(60);
const PAGE_MAX: usize = 1000;

/// Who is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Clients of the built-in registry: its repositories, to read and write.
    Registry,
    /// Other nodes: to read only, also this node's images by the names of the registries that they came from (`?ns=`).
    Peer,
}

/// The registry over one store. Listening, and knowing who connects, is the caller's.
pub struct Server {
    store: Arc<Store>,
    access: Access,
    uploads: Uploads,
}

/// A failure as the specification says it: status, code, message.
struct Refusal(StatusCode, &'static str, String);

type Answer = Result<Response<Body>, Refusal>;

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (status, code) = match &error {
            Error::Digest { .. } => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Error::Missing(_) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Error::Manifest(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Error::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        };
        Self(status, code, error.to_string())
    }
}

impl Refusal {
    fn response(self) -> Response<Body> {
        let body = json!({ "errors": [{ "code": self.1, "message": self.2, "detail": null }] });
        let mut response = Response::new(full(body.to_string()));
        *response.status_mut() = self.0;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

fn unknown(code: &'static str, what: &str) -> Refusal {
    Refusal(StatusCode::NOT_FOUND, code, format!("{what}: not known to this registry"))
}

fn status(status: StatusCode, headers: &[(&str, &str)]) -> Answer {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let response = if status == StatusCode::NO_CONTENT { response } else { response.header(CONTENT_LENGTH, 0) };
    response.body(empty()).map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", error.to_string()))
}

fn json_answer(value: &serde_json::Value, media_type: &'static str) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A page of sorted names after `last`, and whether there are more.
fn page(all: Vec<String>, fields: &HashMap<String, String>) -> (Vec<String>, bool) {
    let count = fields.get("n").and_then(|n| n.parse().ok()).unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let last = fields.get("last").map_or("", String::as_str);
    let mut rest: Vec<String> = all.into_iter().filter(|name| last.is_empty() || name.as_str() > last).collect();
    let more = rest.len() > count;
    rest.truncate(count);
    (rest, more)
}

impl Server {
    pub fn new(store: Arc<Store>, access: Access) -> Arc<Self> {
        Arc::new(Self { store, access, uploads: Uploads::default() })
    }

    /// Serves one connection to its end.
    pub async fn serve_connection(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = hyper::service::service_fn(move |request| {
            let server = self.clone();
            async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
        });
        let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
        if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
            tracing::debug!(error, "registry connection");
        }
    }

    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let head = request.method() == Method::HEAD;
        let mut response = self.act(request).await.unwrap_or_else(Refusal::response);
        response.headers_mut().insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
        if head {
            // The headers say how long the body would be.
            *response.body_mut() = empty();
        }
        response
    }

    async fn act(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        let fields = query(request.uri().query().unwrap_or_default());
        let found = route(&path).ok_or_else(|| unknown("NOT_FOUND", &path))?;
        let route = found.map_err(|code| {
            let status = if code.ends_with("_UNKNOWN") { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST };
            Refusal(status, code, format!("{path}: malformed"))
        })?;
        let writes = !matches!(*request.method(), Method::GET | Method::HEAD);
        if writes && self.access == Access::Peer {
            return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "nodes read from each other only".into()));
        }
        match (request.method().clone(), route) {
            (Method::GET | Method::HEAD, Route::Base) => Ok(json_answer(&json!({}), "application/json")),
            (Method::GET, Route::Catalog) => Ok(self.catalog(&fields)),
            (Method::GET, Route::Tags(name)) => self.tags(name, &fields),
            (Method::GET | Method::HEAD, Route::Manifest(name, reference)) => self.manifest(name, reference, &fields).await,
            (Method::PUT, Route::Manifest(name, reference)) => self.put_manifest(name, reference, request).await,
            (Method::DELETE, Route::Manifest(name, reference)) => self.delete_manifest(name, reference),
            (Method::GET | Method::HEAD, Route::Blob(name, digest)) => self.blob(name, digest, &request, &fields).await,
            (Method::DELETE, Route::Blob(name, digest)) => self.delete_blob(name, digest),
            (Method::GET, Route::Referrers(name, digest)) => Ok(self.referrers(name, digest, &fields)),
            (Method::POST, Route::Uploads(name)) => self.begin(name, &fields, request).await,
            (Method::GET, Route::Upload(name, id)) => self.progress(name, id),
            (Method::PATCH, Route::Upload(name, id)) => self.patch(name, id, request).await,
            (Method::PUT, Route::Upload(name, id)) => self.finish(name, id, &fields, request).await,
            (Method::DELETE, Route::Upload(name, id)) => {
                self.uploads.take(id, name).ok_or_else(|| unknown("BLOB_UPLOAD_UNKNOWN", id))?;
                status(StatusCode::NO_CONTENT, &[])
            }
            (method, _) => Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", format!("{method} {path}: no such operation"))),
        }
    }

    fn catalog(&self, fields: &HashMap<String, String>) -> Response<Body> {
        let all = self.store.lock().repositories.keys().cloned().collect();
        let (names, more) = page(all, fields);
        let mut response = json_answer(&json!({ "repositories": names }), "application/json");
        link(&mut response, "/v2/_catalog", &names, more);
        response
    }

    fn tags(&self, name: &str, fields: &HashMap<String, String>) -> Answer {
        let repository = self.store.repository(name).ok_or_else(|| unknown("NAME_UNKNOWN", name))?;
        let (tags, more) = page(repository.tags.into_keys().collect(), fields);
        let mut response = json_answer(&json!({ "name": name, "tags": tags }), "application/json");
        link(&mut response, &format!("/v2/{name}/tags/list"), &tags, more);
        Ok(response)
    }

    async fn manifest(&self, name: &str, reference: &str, fields: &HashMap<String, String>) -> Answer {
        let repository = self.store.repository(name).unwrap_or_default();
        let foreign = fields.get("ns").filter(|ns| self.access == Access::Peer && self.store.registries().own.as_ref() != Some(ns));
        let found = match foreign {
            Some(registry) => self.image(&format!("{registry}/{name}"), reference),
            None => repository.find(reference).map(str::to_owned),
        };
        let Some(digest) = found else {
            if self.access == Access::Registry
                && let Some((bytes, digest)) = self.store.ask_peers(name, reference).await
            {
                return self.document(&digest, bytes, &[]);
            }
            return Err(unknown("MANIFEST_UNKNOWN", &format!("{name}:{reference}")));
        };
        let pushed = repository.tags.get(reference).filter(|_| foreign.is_none()).map(|tag| tag.pushed.to_string());
        let more: Vec<_> = pushed.iter().map(|pushed| (PUSHED, pushed.as_str())).collect();
        self.document(&digest, self.store.document(&digest)?, &more)
    }

    fn document(&self, digest: &str, bytes: Vec<u8>, more: &[(&str, &str)]) -> Answer {
        let kind = Document::parse(&bytes)?.kind().to_owned();
        let mut response = Response::builder().header(CONTENT_TYPE, kind).header("docker-content-digest", digest);
        response = response.header(ETAG, format!("\"{digest}\"")).header(CONTENT_LENGTH, bytes.len());
        for (name, value) in more {
            response = response.header(*name, *value);
        }
        response.body(full(bytes)).map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", error.to_string()))
    }

    /// For another node: what a name of another registry means here. Images that were pulled with credentials are not told by their names.
    fn image(&self, name: &str, wanted: &str) -> Option<String> {
        let public = |image: &&Image| !image.private && !image.removed && image.manifest.is_some();
        let state = self.store.lock();
        if reference::is_digest(wanted) {
            let found = state.images.values().filter(public).any(|image| image.blobs.contains(wanted));
            return found.then(|| wanted.to_owned());
        }
        let image = state.images.values().filter(public).find(|image| image.tags.contains(&format!("{name}:{wanted}")))?;
        // The index that it came by, so that the other node knows it by the same digest.
        let known = image.digests.iter().filter_map(|digest| digest.strip_prefix(name)?.strip_prefix('@'));
        known.filter(|digest| image.blobs.contains(*digest)).map(str::to_owned).next().or_else(|| image.manifest.clone())
    }

    async fn put_manifest(&self, name: &str, reference: &str, request: Request<Incoming>) -> Answer {
        let told = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let mut bytes = Vec::new();
        pour(request, |data| {
            bytes.extend_from_slice(data);
            if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
                Err(Error::TooLarge(format!("more than {DOCUMENT_BYTES_MAX} bytes")))
            } else {
                Ok(())
            }
        })
        .await?;
        let document = Document::parse(&bytes)?;
        let actual = crate::blobs::digest_of(&bytes);
        let tag = Some(reference).filter(|reference| !reference::is_digest(reference));
        if tag.is_none() && actual != reference {
            return Err(Error::Digest { what: "the manifest".into(), expected: reference.to_owned(), actual }.into());
        }
        let kind = if told.is_empty() { document.kind().to_owned() } else { told };
        let digest = self.store.publish(name, tag, &bytes, &kind).map_err(|error| match error {
            Error::Missing(digest) => Refusal(StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN", format!("{digest}: not in {name}")),
            other => other.into(),
        })?;
        let location = format!("/v2/{name}/manifests/{digest}");
        let mut headers = vec![("location", location.as_str()), ("docker-content-digest", digest.as_str())];
        headers.extend(document.subject.as_ref().map(|subject| ("oci-subject", subject.digest.as_str())));
        status(StatusCode::CREATED, &headers)
    }

    fn delete_manifest(&self, name: &str, reference: &str) -> Answer {
        if self.store.unpublish(name, reference)? { status(StatusCode::ACCEPTED, &[]) } else { Err(unknown("MANIFEST_UNKNOWN", reference)) }
    }

    /// Whether a client may see a blob in this repository. Nodes may see what belongs to any image.
    fn sees(&self, name: &str, digest: &str) -> bool {
        let state = self.store.lock();
        state.repositories.get(name).is_some_and(|repository| repository.has(digest))
            || state.uploaded.contains_key(digest)
            || self.access == Access::Peer
                && (state.images.values().any(|image| image.blobs.contains(digest))
                    || state.repositories.values().any(|repository| repository.has(digest)))
    }

    async fn blob(&self, name: &str, digest: &str, request: &Request<Incoming>, _: &HashMap<String, String>) -> Answer {
        let here = self.sees(name, digest) && self.store.has_blob(digest);
        if !here && !(self.access == Access::Registry && self.store.blob_from_peers(name, digest).await) {
            return Err(unknown("BLOB_UNKNOWN", digest));
        }
        let mut opened = self.store.blob(digest)?;
        let internal = |error: String| Refusal(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", error);
        let size = opened.metadata().map_err(|error| internal(error.to_string()))?.len();
        let asked = request.headers().get(RANGE).and_then(|value| value.to_str().ok()).filter(|_| request.method() == Method::GET);
        let (first, last) = match asked.map(|text| range(text, size)) {
            None | Some(None) => (0, size.saturating_sub(1)),
            Some(Some(Ok(range))) => range,
            Some(Some(Err(()))) => {
                return status(StatusCode::RANGE_NOT_SATISFIABLE, &[("content-range", &format!("bytes */{size}"))]);
            }
        };
        let length = if size == 0 { 0 } else { last - first + 1 };
        opened.seek(SeekFrom::Start(first)).map_err(|error| internal(error.to_string()))?;
        let mut response = Response::builder().header(CONTENT_TYPE, "application/octet-stream").header(ACCEPT_RANGES, "bytes");
        response = response.header("docker-content-digest", digest).header(ETAG, format!("\"{digest}\"")).header(CONTENT_LENGTH, length);
        if length < size {
            response = response.status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, format!("bytes {first}-{last}/{size}"));
        }
        response.body(file(tokio::fs::File::from_std(opened), length)).map_err(|error| internal(error.to_string()))
    }

    fn delete_blob(&self, name: &str, digest: &str) -> Answer {
        if !self.sees(name, digest) || !self.store.has_blob(digest) {
            return Err(unknown("BLOB_UNKNOWN", digest));
        }
        if self.store.repository(name).is_some_and(|repository| repository.has(digest)) {
            return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", format!("{digest} belongs to a manifest: delete that")));
        }
        let mut state = self.store.lock();
        state.uploaded.remove(digest);
        self.store.remove_unused(&state, &[], &[digest.to_owned()]);
        status(StatusCode::ACCEPTED, &[])
    }

    fn referrers(&self, name: &str, digest: &str, fields: &HashMap<String, String>) -> Response<Body> {
        let repository = self.store.repository(name).unwrap_or_default();
        let wanted = fields.get("artifactType");
        let all = repository.manifests.iter().filter(|(_, manifest)| manifest.subject.as_deref() == Some(digest));
        let all = all.filter(|(_, manifest)| wanted.is_none() || manifest.artifact_type.as_ref() == wanted);
        let found: Vec<_> = all.map(|(digest, manifest)| manifest.descriptor(digest)).collect();
        let mut response = json_answer(&json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found }), OCI_INDEX);
        if wanted.is_some() {
            response.headers_mut().insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
        }
        response
    }

    /// Begins an upload, or does it at once: a blob that another repository has, or one in the request itself.
    async fn begin(&self, name: &str, fields: &HashMap<String, String>, request: Request<Incoming>) -> Answer {
        if let Some(digest) = fields.get("mount").filter(|digest| self.store.has_blob(digest)) {
            let mut state = self.store.lock();
            let from = fields.get("from");
            let known = match from {
                Some(from) => state.repositories.get(from).is_some_and(|repository| repository.has(digest)),
                None => state.repositories.values().any(|repository| repository.has(digest)),
            };
            if known {
                state.uploaded.insert(digest.clone(), Instant::now());
                return created(name, digest);
            }
        }
        let id = self.uploads.begin(&self.store, name)?;
        if fields.contains_key("digest") {
            return self.finish(name, &id, fields, request).await;
        }
        under_way(StatusCode::ACCEPTED, name, &id, 0)
    }

    fn progress(&self, name: &str, id: &str) -> Answer {
        let size = self.uploads.size(id, name).ok_or_else(|| unknown("BLOB_UPLOAD_UNKNOWN", id))?;
        under_way(StatusCode::NO_CONTENT, name, id, size)
    }

    async fn patch(&self, name: &str, id: &str, request: Request<Incoming>) -> Answer {
        let mut session = self.uploads.take(id, name).ok_or_else(|| unknown("BLOB_UPLOAD_UNKNOWN", id))?;
        let wrong = out_of_order(&request, &session);
        let poured = if wrong { Ok(()) } else { pour(request, |data| session.append(data)).await };
        let size = session.size;
        // Whatever came of this piece: the client may go on from there.
        self.uploads.put_back(id, session);
        poured?;
        let code = if wrong { StatusCode::RANGE_NOT_SATISFIABLE } else { StatusCode::ACCEPTED };
        under_way(code, name, id, size)
    }

    async fn finish(&self, name: &str, id: &str, fields: &HashMap<String, String>, request: Request<Incoming>) -> Answer {
        let digest = fields.get("digest").filter(|digest| reference::is_digest(digest));
        let digest = digest.ok_or_else(|| Refusal(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "no SHA-256 digest given".into()))?;
        let mut session = self.uploads.take(id, name).ok_or_else(|| unknown("BLOB_UPLOAD_UNKNOWN", id))?;
        if out_of_order(&request, &session) {
            let size = session.size;
            self.uploads.put_back(id, session);
            return under_way(StatusCode::RANGE_NOT_SATISFIABLE, name, id, size);
        }
        if let Err(refusal) = pour(request, |data| session.append(data)).await {
            self.uploads.put_back(id, session);
            return Err(refusal);
        }
        let (store, wanted) = (self.store.clone(), digest.clone());
        let finished = tokio::task::spawn_blocking(move || session.finish(&store, &wanted)).await;
        finished.map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", error.to_string()))??;
        created(name, digest)
    }
}

fn link(response: &mut Response<Body>, path: &str, names: &[String], more: bool) {
    if let (Some(last), true) = (names.last(), more)
        && let Ok(value) = HeaderValue::from_str(&format!("<{path}?n={}&last={last}>; rel=\"next\"", names.len()))
    {
        response.headers_mut().insert(LINK, value);
    }
}

fn created(name: &str, digest: &str) -> Answer {
    status(StatusCode::CREATED, &[(LOCATION.as_str(), &format!("/v2/{name}/blobs/{digest}")), ("docker-content-digest", digest)])
}

fn under_way(code: StatusCode, name: &str, id: &str, size: u64) -> Answer {
    let range = format!("0-{}", size.saturating_sub(1));
    let location = format!("/v2/{name}/blobs/uploads/{id}");
    status(code, &[(LOCATION.as_str(), &location), ("range", &range), ("docker-upload-uuid", id)])
}

/// A piece that says where it begins, and begins elsewhere.
fn out_of_order(request: &Request<Incoming>, session: &Session) -> bool {
    let told = request.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = told.map(|text| text.trim_start_matches("bytes ").split('-').next().and_then(|first| first.parse::<u64>().ok()));
    first.is_some_and(|first| first != Some(session.size))
}

/// Gives a body to `take`, part by part.
async fn pour(request: Request<Incoming>, mut take: impl FnMut(&[u8]) -> crate::Result<()>) -> Result<(), Refusal> {
    let broken = |why: String| Refusal(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", why);
    let mut body = request.into_body();
    loop {
        let frame = tokio::time::timeout(STALL, body.frame()).await.map_err(|_| broken("the upload stalled".into()))?;
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.map_err(|error| broken(error.to_string()))?;
        if let Some(data) = frame.data_ref() {
            take(data)?;
        }
    }
}

/// One range of bytes, both ends included; `None` for what is not understood and so ignored, `Err` for one outside.
fn range(text: &str, size: u64) -> Option<Result<(u64, u64), ()>> {
    let (first, last) = text.strip_prefix("bytes=").filter(|rest| !rest.contains(','))?.split_once('-')?;
    let end = size.checked_sub(1);
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last),
        (Ok(first), Err(_)) if last.is_empty() => (first, u64::MAX),
        (Err(_), Ok(length)) if first.is_empty() => (size.saturating_sub(length), u64::MAX),
        _ => return None,
    };
    Some(end.filter(|end| range.0 <= *end).map(|end| (range.0, range.1.min(end))).ok_or(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clipped_or_outside() {
        for (text, expected) in [
            ("bytes=0-3", Some(Ok((0, 3)))),
            ("bytes=4-", Some(Ok((4, 9)))),
            ("bytes=5-99", Some(Ok((5, 9)))),
            ("bytes=-3", Some(Ok((7, 9)))),
            ("bytes=10-", Some(Err(()))),
            ("bytes=3-1", None),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
        ] {
            assert_eq!(range(text, 10), expected, "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Some(Err(())));
    }

    #[test]
    fn pages_go_on_after_the_last_name() {
        let all = || ["a", "b", "c"].map(str::to_owned).to_vec();
        let fields = |text: &str| query(text);
        assert_eq!(page(all(), &fields("n=2")), (vec!["a".into(), "b".into()], true));
        assert_eq!(page(all(), &fields("n=2&last=b")), (vec!["c".into()], false));
        assert_eq!(page(all(), &fields("n=0")), (vec![], true));
    }
}
