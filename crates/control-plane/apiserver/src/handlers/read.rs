//! `get` and `list`.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Response, StatusCode};
use meta::selector::{FieldSelector, LabelSelector};
use meta::{Status, field};
use serde_json::{Value, json};

use crate::Inner;
use crate::cache::Page;
use crate::context::Context;
use crate::negotiate::{Media, View};
use crate::object::Object;
use crate::registry::catalog::Kind;
use crate::registry::{Target, storage_error};
use crate::reply::{self, Body};
use crate::selection::Selection;
use crate::views::{self, Include};

/// How long a read waits for a revision that the caches have not reached, as upstream.
const PATIENCE: Duration = Duration::from_secs(3);
/// Entries read at once while a selector skips over what it does not want.
const SKIP_BATCH: usize = 500;

pub async fn get(server: &Arc<Inner>, context: &Context, target: Target<'_>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let object = server.registry.get(target).await?;
    super::respond(context, target.kind, StatusCode::OK, &object, format)
}

/// Labels and fields of a list or watch.
pub fn selection(context: &Context, target: Target<'_>) -> Result<Selection, Status> {
    let query = &context.query;
    let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default());
    let labels = labels.map_err(|error| Status::bad_request(format!("unable to parse requirement: {error}")))?;
    let mut fields =
        FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).map_err(|error| Status::bad_request(error.to_string()))?;
    let rules = target.kind.storage.rules.clone();
    for term in &mut fields.terms {
        if let Some(stored) = stored_field(target.kind, &term.field) {
            term.field = stored;
        }
        let known = matches!(term.field.as_str(), "metadata.name" | "metadata.namespace");
        if !known && !rules.selectable_field_names().contains(&term.field.as_str()) {
            return Err(Status::bad_request(format!("field label not supported: {}", term.field)));
        }
    }
    let exact = fields.exact("metadata.name").filter(|_| !target.namespace.is_empty() || !target.kind.facts.namespaced);
    let prefix = match exact {
        // One key: the trailing part is compared by the selector, the prefix keeps other keys out of sight.
        Some(name) => target.kind.key(target.namespace, name),
        None => target.kind.prefix(target.namespace),
    };
    Ok(Selection { prefix, labels, fields, rules })
}

/// Events have other field names in `events.k8s.io` than where they are stored.
fn stored_field(kind: &Kind, name: &str) -> Option<String> {
    if kind.facts.group != "events.k8s.io" {
        return None;
    }
    match name {
        "reportingController" => Some("reportingComponent".into()),
        _ => name.strip_prefix("regarding.").map(|rest| format!("involvedObject.{rest}")),
    }
}

/// What a list asks for.
#[derive(Debug, PartialEq, Eq)]
enum At {
    /// The newest state.
    Newest,
    /// At least this revision.
    NotOlderThan(u64),
    Exact(u64),
    /// A later page: after this key, at this revision (0: the newest).
    Continue {
        revision: u64,
        after: Bytes,
    },
}

pub async fn list(server: &Arc<Inner>, context: &Context, target: Target<'_>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let include = Include::parse(&context.query)?;
    let selection = selection(context, target)?;
    let limit = number(context, "limit")?.unwrap_or(0) as usize;
    number(context, "timeoutSeconds")?;
    let at = at(context, target, limit)?;
    let caches = &server.registry.caches;
    let page = match &at {
        At::Newest => {
            reach(server, server.registry.store.revision()).await?;
            caches.of(target.kind.storage.prefix.as_bytes()).list(&selection.prefix, b"", limit, &selection, caches.observed())
        }
        At::NotOlderThan(revision) => {
            reach(server, *revision).await?;
            caches.of(target.kind.storage.prefix.as_bytes()).list(&selection.prefix, b"", limit, &selection, caches.observed())
        }
        At::Exact(revision) => from_store(server, &selection, *revision, b"", limit).await?,
        At::Continue { revision, after } => from_store(server, &selection, *revision, after, limit).await?,
    };
    let metadata = list_meta(target.kind, &page);
    if format.view == View::Object && format.media == Media::Json && !format.pretty && !target.kind.converts() {
        let head = list_head(target.kind, &metadata);
        return Ok(reply::list(head, page.objects, target.kind.is_custom(), accepts_gzip(context)));
    }
    if format.media == Media::Protobuf
        && let Some(body) = views::many_protobuf(target.kind, &page.objects, format, &metadata)
    {
        return Ok(reply::packed(Media::Protobuf.content_type(), body, accepts_gzip(context)));
    }
    Ok(reply::value(StatusCode::OK, &views::many(target.kind, &page.objects, format, include, metadata), format))
}

fn list_head(kind: &Kind, metadata: &Value) -> Vec<u8> {
    format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},", kind.facts.list_kind, kind.api_version()).into_bytes()
}

fn list_meta(kind: &Kind, page: &Page) -> Value {
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(after) = &page.more_after {
        metadata["continue"] = token(kind, page.revision, after).into();
        if let Some(remaining) = page.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    metadata
}

/// Upstream's form: a revision and the key to start at, relative to the resource.
fn token(kind: &Kind, revision: u64, after: &[u8]) -> String {
    let start = after.get(kind.storage.prefix.len()..).unwrap_or_default();
    let start = format!("{}\u{0}", String::from_utf8_lossy(start));
    URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string())
}

fn read_token(kind: &Kind, text: &str) -> Option<At> {
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
    let value: Value = serde_json::from_slice(&bytes).ok()?;
    if value["v"] != "meta.k8s.io/v1" {
        return None;
    }
    let start = value["start"].as_str()?.trim_end_matches('\0');
    if start.contains("..") {
        return None;
    }
    let after = Bytes::from(format!("{}{start}", kind.storage.prefix));
    // -1 is upstream's "an inconsistent rest is fine".
    let revision = value["rv"].as_i64().map(|revision| u64::try_from(revision).unwrap_or(0))?;
    Some(At::Continue { revision, after })
}

fn at(context: &Context, target: Target<'_>, limit: usize) -> Result<At, Status> {
    let query = &context.query;
    let (version, rule) = (query.text("resourceVersion"), query.text("resourceVersionMatch"));
    let path = field::Path::new("resourceVersionMatch");
    let refuse = |error: field::Error| Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]));
    let continue_ = query.text("continue");
    if query.text("sendInitialEvents").is_some() {
        let detail = "sendInitialEvents is forbidden for list";
        return refuse(field::Error::forbidden(&field::Path::new("sendInitialEvents"), detail));
    }
    match (rule, version) {
        (Some(_), None) => {
            return refuse(field::Error::forbidden(&path, "resourceVersionMatch is forbidden unless resourceVersion is provided"));
        }
        (Some(_), _) if continue_.is_some() => {
            return refuse(field::Error::forbidden(&path, "resourceVersionMatch is forbidden when continue is provided"));
        }
        (Some(rule), _) if rule != "Exact" && rule != "NotOlderThan" => {
            return refuse(field::Error::not_supported(&path, rule, &["Exact", "NotOlderThan", ""]));
        }
        (Some("Exact"), Some("0")) => {
            return refuse(field::Error::forbidden(&path, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
        }
        _ => {}
    }
    if let Some(text) = continue_ {
        if version.is_some_and(|version| version != "0") {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        return read_token(target.kind, text).ok_or_else(|| Status::bad_request("continue key is not valid: the token is malformed"));
    }
    let Some(revision) = parse_version(version)? else {
        return Ok(At::Newest);
    };
    Ok(match rule {
        Some("Exact") => At::Exact(revision),
        // Before resourceVersionMatch existed, a limit meant exactly this revision.
        None if limit > 0 && revision > 0 => At::Exact(revision),
        _ => At::NotOlderThan(revision),
    })
}

/// A resourceVersion parameter; `None` where it is absent or empty.
pub fn parse_version(text: Option<&str>) -> Result<Option<u64>, Status> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        let detail = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        let error = field::Error::invalid(&field::Path::new("resourceVersion"), text, detail);
        Status::invalid("meta.k8s.io", "ListOptions", "", &[error])
    })
}

pub fn number(context: &Context, name: &str) -> Result<Option<u64>, Status> {
    Ok(context.query.integer(name)?.map(|number| u64::try_from(number).unwrap_or(0)))
}

/// Waits until the caches are at `revision`.
pub async fn reach(server: &Inner, revision: u64) -> Result<(), Status> {
    if server.registry.caches.reach(revision, PATIENCE).await {
        return Ok(());
    }
    let current = server.registry.caches.observed();
    let mut status = Status::failure(504, "Timeout", format!("Too large resource version: {revision}, current: {current}"));
    let cause = meta::status::Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        ..Default::default()
    };
    status.details = Some(meta::status::Details { causes: vec![cause], retry_after_seconds: 1, ..Default::default() });
    Err(status)
}

/// A page at one revision, from the store's history.
async fn from_store(server: &Inner, selection: &Selection, revision: u64, after: &[u8], limit: usize) -> Result<Page, Status> {
    let mut page = Page { objects: Vec::new(), revision, more_after: None, remaining: None };
    let mut start = if after.is_empty() { Bytes::new() } else { successor(after) };
    let everything = selection.is_everything();
    loop {
        let wanted = match (limit, everything) {
            (0, _) => 0,
            (limit, true) => limit,
            _ => SKIP_BATCH,
        };
        let request = store::Range { prefix: selection.prefix.clone().into(), start: start.clone(), limit: wanted, revision };
        let result = server.registry.store.range(request).await.map_err(|error| range_error(error))?;
        page.revision = result.revision;
        let mut remaining = result.remaining;
        let mut entries = result.entries.into_iter();
        let mut last = None;
        for entry in entries.by_ref() {
            last = Some(entry.key.clone());
            let object = Object::new(entry.key, entry.value, entry.mod_revision).map(Arc::new);
            page.objects.extend(object.filter(|object| selection.matches(object)));
            if limit > 0 && page.objects.len() == limit {
                break;
            }
        }
        remaining += entries.len();
        let full = limit > 0 && page.objects.len() >= limit;
        if full && remaining > 0 {
            page.more_after = last.clone();
            page.remaining = everything.then_some(remaining as i64);
        }
        match last {
            Some(last) if !full && remaining > 0 => start = successor(&last),
            _ => return Ok(page),
        }
    }
}

fn successor(key: &[u8]) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}

fn range_error(error: store::Error) -> Status {
    match error {
        store::Error::Future { wanted, newest } => {
            Status::failure(504, "Timeout", format!("Too large resource version: {wanted}, current: {newest}"))
        }
        other => storage_error(other),
    }
}

fn accepts_gzip(context: &Context) -> bool {
    let header = context.headers.get(http::header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    header.split(',').any(|coding| coding.split(';').next().unwrap_or_default().trim() == "gzip")
}
