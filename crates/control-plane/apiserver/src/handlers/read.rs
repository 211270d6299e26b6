//! `get` and `list`.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Response, StatusCode};
use meta::selector::{FieldSelector, FieldTerm, LabelSelector};
use meta::{Status, field};
use serde_json::{Value, json};

use crate::Inner;
use crate::cache::{Items, Page};
use crate::context::Context;
use crate::negotiate::{Media, View};
use crate::object::Object;
use crate::registry::catalog::Kind;
use crate::registry::{Target, storage_error};
use crate::reply::{self, Body};
use crate::selection::Selection;
use crate::shard::Shard;
use crate::views::{self, Include};

/// How long a read waits for a revision that the caches have not reached, as upstream.
const PATIENCE: Duration = Duration::from_secs(3);
/// Entries read at once while a selector skips over what it does not want.
const SKIP_BATCH: usize = 500;

pub async fn get(server: &Arc<Inner>, context: &Context, target: Target<'_>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    // The store itself answers: that is never older than what was asked for, unless nobody has it yet.
    if let Some(wanted) = parse_version(context.query.text("resourceVersion"))?
        && wanted > server.registry.store.revision()
    {
        Box::pin(reach(server, wanted)).await?;
    }
    let object = server.registry.get(target).await?;
    super::respond(context, target.kind, StatusCode::OK, &object, format)
}

/// Labels and fields of a list or watch.
pub fn selection(context: &Context, target: Target<'_>) -> Result<Selection, Status> {
    let query = &context.query;
    let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default());
    let labels = labels.map_err(|error| Status::bad_request(error.to_string()))?;
    let mut fields =
        FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).map_err(|error| Status::bad_request(error.to_string()))?;
    if context.info.below_watch && !target.name.is_empty() {
        name_in_path(&mut fields, target.name)?;
    }
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
    let single = exact.is_some();
    let prefix = match exact {
        // One key: the trailing part is compared by the selector, the prefix keeps other keys out of sight.
        Some(name) => target.kind.key(target.namespace, name),
        None => target.kind.prefix(target.namespace),
    };
    let shard = query.get("shardSelector").filter(|text| !text.is_empty()).map(Shard::parse).transpose();
    let shard = shard.map_err(|sentence| Status::bad_request(format!("invalid shard selector: {sentence}")))?;
    let late = match target.kind.custom.as_ref().is_some_and(|form| form.asks_a_webhook()) {
        true => fields.terms.extract_if(.., |term| !term.field.starts_with("metadata.")).collect(),
        false => Vec::new(),
    };
    Ok(Selection { prefix, labels, fields, late: FieldSelector { terms: late }, shard, rules, single })
}

/// `watch/…/pods/x` is about `x` alone, which is what the request was authorized for.
fn name_in_path(fields: &mut FieldSelector, name: &str) -> Result<(), Status> {
    if fields.is_everything() {
        fields.terms.push(FieldTerm { field: "metadata.name".into(), value: name.into(), equal: true });
        return Ok(());
    }
    match fields.exact("metadata.name") == Some(name) {
        true => Ok(()),
        false => Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name")),
    }
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
        /// How many come after that key, where the page before knew.
        left: Option<i64>,
    },
}

pub async fn list(server: &Arc<Inner>, context: &Context, target: Target<'_>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let include = Include::parse(&context.query)?;
    let selection = Arc::new(selection(context, target)?);
    let limit = number(context, "limit")?.unwrap_or(0) as usize;
    number(context, "timeoutSeconds")?;
    let at = at(context, target, limit)?;
    let plain = format.view == View::Object && format.media == Media::Json && !format.pretty && !target.kind.converts();
    let (mut page, whole) = page(server, target.kind, &selection, &at, limit, plain && !target.kind.is_custom()).await?;
    page.objects = target.kind.present_all(std::mem::take(&mut page.objects))?;
    page.objects.retain(|object| selection.matches_shown(object));
    let mut metadata = list_meta(target.kind, &page);
    if let Some(shard) = &selection.shard {
        metadata["shardInfo"] = json!({"selector": shard.to_string()});
    }
    if plain {
        let head = list_head(target.kind, &metadata);
        return Ok(match whole {
            Some(items) => reply::list(head, items, target.kind.is_custom(), accepts_gzip(context)),
            None => reply::list(head, page.objects.into_iter(), target.kind.is_custom(), accepts_gzip(context)),
        });
    }
    if format.media == Media::Protobuf
        && let Some(body) = views::many_protobuf(target.kind, &page.objects, format, &metadata)
    {
        return Ok(reply::packed(Media::Protobuf.content_type(), body, accepts_gzip(context)));
    }
    Ok(reply::list_value(&views::many(target.kind, &page.objects, format, include, metadata), format, accepts_gzip(context)))
}

/// The objects that a request's selectors, `limit` and `continue` name, as they are served.
pub async fn chunk(server: &Inner, context: &Context, target: Target<'_>) -> Result<Page, Status> {
    let selection = Arc::new(selection(context, target)?);
    let limit = number(context, "limit")?.unwrap_or(0) as usize;
    let at = at(context, target, limit)?;
    let (mut page, _) = page(server, target.kind, &selection, &at, limit, false).await?;
    page.objects = target.kind.present_all(std::mem::take(&mut page.objects))?;
    page.objects.retain(|object| selection.matches_shown(object));
    Ok(page)
}

/// The objects of a page. With `lazily` those of a list without limit come as a walk over a frozen state instead.
async fn page(
    server: &Inner,
    kind: &Kind,
    selection: &Arc<Selection>,
    at: &At,
    limit: usize,
    lazily: bool,
) -> Result<(Page, Option<Items>), Status> {
    let (after, revision) = match at {
        At::Exact(revision) => return Ok((from_store(server, kind, selection, (*revision, None), limit, None).await?, None)),
        At::Continue { revision, after, left } if *revision > 0 => {
            return Ok((from_store(server, kind, selection, (*revision, Some(after)), limit, *left).await?, None));
        }
        At::Continue { after, .. } => (after.as_ref(), server.registry.store.revision()),
        At::Newest => (&b""[..], server.registry.store.revision()),
        At::NotOlderThan(revision) => (&b""[..], *revision),
    };
    reach(server, revision).await?;
    let caches = &server.registry.caches;
    let (mut items, revision) = caches.of(kind.storage.prefix.as_bytes()).select(after, selection.clone(), caches.observed());
    let mut page = Page { objects: Vec::new(), revision, more_after: None, remaining: None };
    if limit == 0 && lazily {
        return Ok((page, Some(items)));
    }
    page.objects = items.by_ref().take(if limit == 0 { usize::MAX } else { limit }).collect();
    let rest = items.remaining();
    if limit > 0 && page.objects.len() == limit && rest > 0 {
        page.more_after = page.objects.last().map(|last| last.key.clone());
        page.remaining = selection.is_everything().then_some(rest as i64);
    }
    Ok((page, None))
}

fn list_head(kind: &Kind, metadata: &Value) -> Vec<u8> {
    format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},", kind.facts.list_kind, kind.api_version()).into_bytes()
}

pub fn list_meta(kind: &Kind, page: &Page) -> Value {
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(after) = &page.more_after {
        metadata["continue"] = token(kind, page.revision as i64, after, page.remaining).into();
        if let Some(remaining) = page.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    metadata
}

/// Upstream's form: a revision (-1: any) and the key to start at, relative to the resource; beside it how many items are left, so that
/// later pages need not count them.
fn token(kind: &Kind, revision: i64, after: &[u8], left: Option<i64>) -> String {
    let start = after.get(kind.storage.prefix.len()..).unwrap_or_default();
    let start = format!("{}\u{0}", String::from_utf8_lossy(start));
    let mut token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start});
    if let Some(left) = left {
        token["left"] = left.into();
    }
    URL_SAFE_NO_PAD.encode(token.to_string())
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
    let revision = match value["rv"].as_i64()? {
        // Upstream's "an inconsistent rest is fine".
        -1 => 0,
        revision => u64::try_from(revision).ok().filter(|revision| *revision > 0)?,
    };
    Some(At::Continue { revision, after, left: value["left"].as_i64() })
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
    let mut status = Status::failure(504, "Timeout", format!("Timeout: Too large resource version: {revision}, current: {current}"));
    let cause = meta::status::Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        ..Default::default()
    };
    status.details = Some(meta::status::Details { causes: vec![cause], retry_after_seconds: 1, ..Default::default() });
    Err(status)
}

/// A page at one revision, from the store's history, after a key. `left` is how many come after that key, if that is known.
async fn from_store(
    server: &Inner,
    kind: &Kind,
    selection: &Selection,
    (revision, after): (u64, Option<&Bytes>),
    limit: usize,
    left: Option<i64>,
) -> Result<Page, Status> {
    let mut page = Page { objects: Vec::new(), revision, more_after: None, remaining: None };
    let mut start = after.map_or(Bytes::new(), |after| successor(after));
    let everything = selection.is_everything();
    let batch = match (limit, everything) {
        (0, _) => 0,
        (limit, true) => limit,
        _ => SKIP_BATCH,
    };
    let uncounted = left.is_some() || !everything;
    loop {
        let request = store::Range { prefix: selection.prefix.clone().into(), start: start.clone(), limit: batch, revision, uncounted };
        let result = server.registry.store.range(request).await.map_err(|error| range_error(kind, after, error))?;
        page.revision = result.revision;
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
        let remaining = result.remaining + entries.len();
        let full = limit > 0 && page.objects.len() >= limit;
        if full && remaining > 0 {
            page.more_after = last.clone();
            let left = left.map(|left| left - page.objects.len() as i64).unwrap_or(remaining as i64);
            page.remaining = everything.then_some(left.max(1));
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

/// `after` is where a later page was to begin: its client may go on there without consistency.
fn range_error(kind: &Kind, after: Option<&Bytes>, error: store::Error) -> Status {
    match (error, after) {
        (store::Error::Future { wanted, newest }, _) => {
            Status::failure(504, "Timeout", format!("Timeout: Too large resource version: {wanted}, current: {newest}"))
        }
        (store::Error::Compacted { .. }, Some(after)) => {
            let why = "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
                       the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
                       Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
                       deleted between the time the first chunk was returned and now may show up in the list.";
            let mut status = Status::expired(why);
            status.metadata.continue_ = token(kind, -1, after, None);
            status
        }
        (store::Error::Compacted { .. }, None) => Status::expired("The resourceVersion for the provided list is too old."),
        (other, _) => storage_error(other),
    }
}

fn accepts_gzip(context: &Context) -> bool {
    let header = context.headers.get(http::header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    header.split(',').any(|coding| coding.split(';').next().unwrap_or_default().trim() == "gzip")
}
