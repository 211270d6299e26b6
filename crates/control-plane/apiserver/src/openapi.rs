//! `/openapi/v2` and `/openapi/v3`: rendered when asked for, kept compressed for a minute after the last use.
//!
//! Only hashes stay: clients keep documents by hash. One document is rendered at a time, since its tree takes tens of megabytes.
//! Source: kube-openapi `pkg/handler`, `pkg/handler3`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use descriptions::Descriptions;
use http::header::{ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, ETAG, EXPIRES, IF_NONE_MATCH, LOCATION, VARY};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use meta::Status;
use schema::openapi::{Form, Kind, Sub, merge, v2, v3};
use schema::resources::Served;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::Inner;
use crate::context::Context;
use crate::custom::Kinds;
use crate::negotiate::JSON;
use crate::registry::catalog;
use crate::reply::{self, Body};

/// How long a document is kept after its last use: the requests of one client come together.
const KEPT: Duration = Duration::from_secs(60);

/// What is known of the documents of what is served.
pub struct Documents {
    served: Served,
    custom: Arc<Kinds>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of each version 3 document by its key in the index; made at the first need of one, and again when CRDs change.
    hashes: Option<(u64, Arc<BTreeMap<String, String>>)>,
    /// Those of documents without custom kinds.
    built_in: BTreeMap<String, String>,
    /// What `kept` shows: of the custom kinds and of other servers' documents.
    generation: (u64, u64),
    kept: BTreeMap<Name, Kept>,
}

struct Kept {
    document: Document,
    used: Instant,
}

#[derive(Clone)]
struct Document {
    gzip: Bytes,
    etag: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    V2,
    V2Protobuf,
    /// A document's key in the index: `apis/apps/v1`, `apis/apps`, `version`.
    V3(String),
}

impl Name {
    fn content_type(&self) -> &'static str {
        match self {
            Name::V2Protobuf => v2::PROTOBUF,
            _ => JSON,
        }
    }

    /// `foreign` are the parts of other servers' version 2 documents.
    fn render(&self, kinds: &[Kind], texts: &Descriptions, foreign: &[Arc<Value>]) -> Vec<u8> {
        let describe = |definition: &str, field: &str| texts.get(definition, field);
        let whole = || {
            let mut document = v2::document(kinds, &describe);
            foreign.iter().for_each(|part| merge::add(&mut document, Value::clone(part)));
            document
        };
        match self {
            Name::V2 => whole().to_string().into_bytes(),
            Name::V2Protobuf => v2::protobuf(&whole()),
            Name::V3(key) => {
                let (group, version) = group_version(key);
                let served = kinds.iter().any(|kind| kind.group == group && kind.version == version);
                let document = match served {
                    true => Some(v3::document(group, version, kinds, &describe)),
                    false => v3::other(key, kinds, &describe),
                };
                document.unwrap_or_default().to_string().into_bytes()
            }
        }
    }
}

/// What a key is the document of; two empty words where it is not that of a group's version.
fn group_version(key: &str) -> (&str, &str) {
    match key.split('/').collect::<Vec<_>>().as_slice() {
        ["api", version] => ("", version),
        ["apis", group, version] => (group, version),
        _ => ("", ""),
    }
}

/// `None` where the path is no document.
pub async fn respond(server: &Arc<Inner>, context: &Context, method: &Method) -> Option<Result<Response<Body>, Status>> {
    let rest = context.info.path.strip_prefix("/openapi/")?.trim_end_matches('/');
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Some(Ok(reply::text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n")));
    }
    match rest {
        "v2" => Some(version_2(server, &context.headers).await),
        "v3" => Some(index(server, &context.headers).await),
        _ => version_3(server, context, rest.strip_prefix("v3/")?).await.transpose(),
    }
}

async fn version_2(server: &Arc<Inner>, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let name = match choose(headers, &[v2::PROTOBUF_ASKED, v2::PROTOBUF]) {
        Some(JSON) => Name::V2,
        Some(_) => Name::V2Protobuf,
        None => return Err(Status::not_acceptable(&[JSON, v2::PROTOBUF])),
    };
    let document = server.openapi.get(server, name.clone()).await?;
    Ok(send(headers, name.content_type(), &document))
}

async fn index(server: &Arc<Inner>, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let hashes = server.openapi.hashes().await?;
    let mut index = v3::index(&hashes);
    for (key, place) in server.aggregator.openapi(server) {
        index["paths"][key] = serde_json::json!({ "serverRelativeURL": place });
    }
    let body = index.to_string().into_bytes();
    Ok(send(headers, JSON, &Document { etag: etag(&v3::hash(&body)), gzip: gzip(&body)? }))
}

/// `None` where the index has no such document.
async fn version_3(server: &Arc<Inner>, context: &Context, key: &str) -> Result<Option<Response<Body>>, Status> {
    let headers = &context.headers;
    choose(headers, &[]).ok_or_else(|| Status::not_acceptable(&[JSON]))?;
    let Some(hash) = server.openapi.hashes().await?.get(key).cloned() else { return Ok(None) };
    let asked = context.query.text("hash");
    if asked.is_some_and(|asked| asked != hash) {
        return moved(&format!("/openapi/v3/{key}?hash={hash}")).map(Some);
    }
    let etag = etag(&hash);
    let mut response = match known(headers, &etag) {
        true => not_modified(&etag),
        false => send(headers, JSON, &server.openapi.get(server, Name::V3(key.to_owned())).await?),
    };
    if asked.is_some() {
        let out = response.headers_mut();
        out.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        if let Some(expires) = in_a_year().and_then(|text| HeaderValue::from_str(&text).ok()) {
            out.insert(EXPIRES, expires);
        }
    }
    Ok(Some(response))
}

/// JSON or one of `others`, as the client lists them; `None` where it takes none of them.
fn choose<'a>(headers: &HeaderMap, others: &[&'a str]) -> Option<&'a str> {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.trim().is_empty() {
        return Some(JSON);
    }
    accept.split(',').find_map(|clause| match clause.split(';').next().unwrap_or_default().trim() {
        "*/*" | "application/*" | JSON => Some(JSON),
        media => others.iter().copied().find(|other| *other == media),
    })
}

fn kinds(served: &Served, custom: &[Arc<catalog::Kind>]) -> Vec<Kind> {
    served.resources().filter_map(Kind::built_in).chain(custom.iter().map(|kind| of_custom(kind))).collect()
}

fn of_custom(kind: &catalog::Kind) -> Kind {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let facts = kind.facts;
    let subresources = facts.subresources.iter().map(|sub| Sub {
        name: sub.name.into(),
        group: sub.group.into(),
        version: sub.version.into(),
        kind: sub.kind.into(),
        verbs: owned(sub.verbs),
        params: owned(sub.params),
    });
    Kind {
        group: facts.group.into(),
        version: facts.version.into(),
        kind: facts.kind.into(),
        list_kind: facts.list_kind.into(),
        plural: facts.plural.into(),
        namespaced: facts.namespaced,
        verbs: owned(facts.verbs),
        subresources: subresources.collect(),
        deletion_returns_object: false,
        form: Form::Custom(kind.custom.as_ref().and_then(|form| serde_json::from_slice(&form.openapi).ok()).unwrap_or_default()),
    }
}

impl Documents {
    pub fn new(served: Served, custom: Arc<Kinds>) -> Self {
        Self { served, custom, state: Mutex::default() }
    }

    async fn get(self: &Arc<Self>, server: &Inner, name: Name) -> Result<Document, Status> {
        let mut state = self.state.lock().await;
        let (foreign_generation, foreign) = server.aggregator.openapi_v2(server);
        let (generation, custom) = ((self.custom.generation(), foreign_generation), self.custom.all());
        if state.generation != generation {
            state.kept.clear();
            state.generation = generation;
        }
        if let Some(kept) = state.kept.get_mut(&name) {
            kept.used = Instant::now();
            return Ok(kept.document.clone());
        }
        // Milliseconds of CPU: not on the threads that serve others.
        let (wanted, served) = (name.clone(), self.served.clone());
        let rendered = tokio::task::spawn_blocking(move || {
            let body = wanted.render(&kinds(&served, &custom), &Descriptions::load(), &foreign);
            let document = Document { etag: etag(&v3::hash(&body)), gzip: gzip(&body)? };
            drop(body);
            give_back();
            Ok::<_, Status>(document)
        });
        let document = rendered.await.map_err(Status::internal)??;
        if state.kept.is_empty() {
            tokio::spawn(forget(self.clone()));
        }
        state.kept.insert(name, Kept { document: document.clone(), used: Instant::now() });
        Ok(document)
    }

    async fn hashes(&self) -> Result<Arc<BTreeMap<String, String>>, Status> {
        let mut state = self.state.lock().await;
        let (generation, custom) = (self.custom.generation(), self.custom.all());
        if let Some((_, hashes)) = state.hashes.as_ref().filter(|(made, _)| *made == generation) {
            return Ok(hashes.clone());
        }
        let (served, built_in) = (self.served.clone(), std::mem::take(&mut state.built_in));
        let made = tokio::task::spawn_blocking(move || {
            let built_in = if built_in.is_empty() { hashes(&served, &[], |_| true) } else { built_in };
            let mut all = built_in.clone();
            if !custom.is_empty() {
                let is_custom = |key: &str| {
                    let group = key.strip_prefix("apis/").map(|rest| rest.split('/').next().unwrap_or_default());
                    key == "apis" || custom.iter().any(|kind| group == Some(kind.facts.group))
                };
                all.extend(hashes(&served, &custom, is_custom));
            }
            give_back();
            (built_in, all)
        });
        let (built_in, all) = made.await.map_err(Status::internal)?;
        let all = Arc::new(all);
        state.built_in = built_in;
        state.hashes = Some((generation, all.clone()));
        Ok(all)
    }
}

/// Lives while there are documents to forget.
async fn forget(documents: Arc<Documents>) {
    loop {
        tokio::time::sleep(KEPT).await;
        let mut state = documents.state.lock().await;
        state.kept.retain(|_, kept| kept.used.elapsed() < KEPT);
        if state.kept.is_empty() {
            return;
        }
    }
}

/// Returns the freed trees to the system: glibc keeps them otherwise, some ten megabytes that an idle server would go on holding.
fn give_back() {
    // SAFETY: malloc_trim takes no pointers and may be called at any time by any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Of the documents that are `wanted`.
fn hashes(served: &Served, custom: &[Arc<catalog::Kind>], wanted: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let (kinds, texts) = (kinds(served, custom), Descriptions::load());
    let versions = kinds.iter().map(|kind| v3::key(&kind.group, &kind.version));
    let keys: BTreeSet<String> = versions.chain(v3::others(&kinds)).collect();
    let keys = keys.into_iter().filter(|key| wanted(key));
    keys.map(|key| (key.clone(), v3::hash(&Name::V3(key).render(&kinds, &texts, &[])))).collect()
}

fn etag(hash: &str) -> String {
    format!("\"{hash}\"")
}

fn gzip(body: &[u8]) -> Result<Bytes, Status> {
    reply::gzip(body).map(Bytes::from).ok_or_else(|| Status::internal("compress an OpenAPI document"))
}

fn known(headers: &HeaderMap, etag: &str) -> bool {
    let listed = headers.get(IF_NONE_MATCH).and_then(|known| known.to_str().ok()).unwrap_or_default();
    listed.split(',').any(|known| known.trim() == etag)
}

fn send(headers: &HeaderMap, content_type: &'static str, document: &Document) -> Response<Body> {
    match known(headers, &document.etag) {
        true => not_modified(&document.etag),
        false => tagged(whole(headers, content_type, document), &document.etag),
    }
}

fn whole(headers: &HeaderMap, content_type: &'static str, document: &Document) -> Response<Body> {
    let coding = headers.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if coding.contains("gzip") {
        let mut response = reply::bytes(StatusCode::OK, content_type, document.gzip.clone());
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        return response;
    }
    let mut body = Vec::new();
    match flate2::read::GzDecoder::new(&document.gzip[..]).read_to_end(&mut body) {
        Ok(_) => reply::bytes(StatusCode::OK, content_type, body),
        Err(error) => reply::status(&Status::internal(error), crate::negotiate::Format::JSON),
    }
}

fn not_modified(etag: &str) -> Response<Body> {
    let mut response = Response::new(reply::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    tagged(response, etag)
}

fn tagged(mut response: Response<Body>, etag: &str) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    if let Ok(etag) = HeaderValue::from_str(etag) {
        headers.insert(ETAG, etag);
    }
    response
}

/// The client knows an older document: it is sent to the present one.
fn moved(to: &str) -> Result<Response<Body>, Status> {
    let mut response = reply::bytes(StatusCode::MOVED_PERMANENTLY, "text/html; charset=utf-8", "");
    response.headers_mut().insert(LOCATION, HeaderValue::from_str(to).map_err(Status::internal)?);
    Ok(response)
}

/// As HTTP writes dates.
fn in_a_year() -> Option<String> {
    let then = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(365 * 24)).ok()?;
    Some(then.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
}
