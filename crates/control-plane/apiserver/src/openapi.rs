//! `/openapi/v2` and `/openapi/v3`: rendered when asked for; only hashes are kept, since clients keep documents by hash.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use meta::Status;
use schema::openapi::{Describe, Kind, v2, v3};

use crate::Inner;
use crate::context::Context;
use crate::registry::catalog;
use crate::reply::{self, Body};

/// Gives the description of a definition (empty field) or of one of its fields.
pub type Description = fn(&str, &str) -> Option<String>;

/// Hashes of the documents, made at the first request for the index.
#[derive(Default)]
pub struct Hashes(OnceLock<BTreeMap<String, String>>);

/// `None` where the path is no document.
pub async fn respond(server: &Arc<Inner>, context: &Context) -> Option<Result<Response<Body>, Status>> {
    let path = context.info.path.trim_end_matches('/').to_owned();
    let rest = path.strip_prefix("/openapi/")?.to_owned();
    let (headers, server) = (context.headers.clone(), server.clone());
    // Rendering takes milliseconds of CPU: not on the threads that serve others.
    let rendered = tokio::task::spawn_blocking(move || document(&server, &rest, &headers)).await;
    match rendered {
        Ok(response) => response.map(Ok),
        Err(error) => Some(Err(Status::internal(error))),
    }
}

fn kinds() -> Vec<Kind> {
    catalog::all().iter().filter_map(|kind| Kind::built_in(kind.facts)).collect()
}

fn document(server: &Inner, rest: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    let describe: Describe<'_> = &server.describe;
    match rest {
        "v2" => {
            let document = v2::document(&kinds(), describe);
            let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
            let protobuf = accept.contains("com.github.proto-openapi.spec.v2");
            Some(match protobuf {
                true => send(headers, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf", v2::protobuf(&document)),
                false => send(headers, "application/json", document.to_string().into_bytes()),
            })
        }
        "v3" => {
            let hashes = server.openapi.0.get_or_init(|| hashes(describe));
            Some(send(headers, "application/json", v3::index(hashes).to_string().into_bytes()))
        }
        _ => {
            let key = rest.strip_prefix("v3/")?;
            let (group, version) =
                key.strip_prefix("api/").map(|version| ("", version)).or_else(|| key.strip_prefix("apis/")?.split_once('/'))?;
            let kinds = kinds();
            kinds.iter().any(|kind| kind.group == group && kind.version == version).then_some(())?;
            let document = v3::document(group, version, &kinds, describe).to_string();
            Some(send(headers, "application/json", document.into_bytes()))
        }
    }
}

fn hashes(describe: Describe<'_>) -> BTreeMap<String, String> {
    let kinds = kinds();
    let versions: BTreeMap<String, (&str, &str)> =
        kinds.iter().map(|kind| (v3::key(&kind.group, &kind.version), (kind.group.as_str(), kind.version.as_str()))).collect();
    let hash = |(key, (group, version)): (String, (&str, &str))| {
        let document = v3::document(group, version, &kinds, describe).to_string();
        (key, v3::hash(document.as_bytes()))
    };
    versions.into_iter().map(hash).collect()
}

fn send(headers: &HeaderMap, content_type: &'static str, body: Vec<u8>) -> Response<Body> {
    let etag = format!("\"{}\"", v3::hash(&body));
    if headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        let mut response = Response::new(reply::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    let coding = headers.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let packed = coding.contains("gzip").then(|| reply::gzip(&body)).flatten();
    let mut response = match &packed {
        Some(packed) => reply::bytes(StatusCode::OK, content_type, packed.clone()),
        None => reply::bytes(StatusCode::OK, content_type, body),
    };
    let out = response.headers_mut();
    if packed.is_some() {
        out.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    out.insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        out.insert(ETAG, etag);
    }
    response
}
