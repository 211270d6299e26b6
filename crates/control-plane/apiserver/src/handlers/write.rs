//! `create`, `update`, `patch`, `delete`, `deletecollection`.

use std::sync::Arc;

use futures_util::StreamExt;
use http::{Request, Response, StatusCode};
use meta::Status;
use rules::Part;
use serde_json::Value;

use super::{certificate, read, read_body, respond};
use crate::Inner;
use crate::context::{Context, WriteOptions};
use crate::negotiate::{self, Media};
use crate::object::{Object, meta, metadata_mut};
use crate::patching::{self, PatchType};
use crate::registry::catalog::Kind;
use crate::registry::deletion::{self, Deleted};
use crate::registry::{self, Owners, Target, repeat};
use crate::reply::{self, Body};
use crate::{codec, views};

/// Deletions of one collection that run at the same time.
const COLLECTION_WORKERS: usize = 16;

pub async fn create(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let options = context.write_options()?;
    let media = negotiate::body_media(&context.headers, !target.kind.is_custom())?;
    let body = read_body(request).await?;
    let asked = repeat::Asked::new(context, target, media, &body, &options);
    let step = asked.as_ref().map_or(repeat::Step::Plain, |asked| server.registry.repeats.step(asked));
    if let (repeat::Step::Repeat(template), Some(asked)) = (&step, &asked)
        && let Some(outcome) = server.registry.repeat(context, target, asked, template).await
    {
        return respond(context, target.kind, StatusCode::CREATED, &*outcome?, format);
    }
    let before = asked.as_ref().map(|_| repeat::Before::of(context));
    let mut object = codec::object(context, target.kind, &body, media, &options)?;
    certificate::stamp(context, target.kind, &mut object)?;
    server.access.check_grant(&server.registry.caches, context, target.kind, &object, None)?;
    let object = match (step, &asked, &before) {
        (repeat::Step::Record | repeat::Step::Repeat(_), Some(asked), Some(before)) => {
            server.registry.create_recorded(context, target, object, asked, before).await?
        }
        _ => server.registry.create(context, target, object, &options, Owners::Update).await?,
    };
    respond(context, target.kind, StatusCode::CREATED, &object, format)
}

/// The part of the object that the path names.
pub fn part(context: &Context, target: Target<'_>) -> Part {
    match target.kind.subresource(&context.info.subresource).map(|sub| sub.name) {
        None => Part::Main,
        Some("status") => Part::Status,
        Some(other) => Part::Subresource(other),
    }
}

pub async fn update(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let options = context.write_options()?;
    let media = negotiate::body_media(&context.headers, !target.kind.is_custom())?;
    let body = read_body(request).await?;
    let decoded = || {
        let mut object = codec::object(context, target.kind, &body, media, &options)?;
        if meta(&object, "name").is_empty() {
            let name = target.name;
            return Err(Status::bad_request(format!(
                "the name of the object ({name} based on URL) was undeterminable: name must be provided"
            )));
        }
        place(target, &mut object)?;
        Ok(object)
    };
    let object = decoded()?;
    let part = part(context, target);
    let blind = matches!(meta(&object, "resourceVersion"), "" | "0") && !target.kind.storage.rules.unconditional_update();
    let mut first = Some(object);
    let make = |old: &Value| {
        if blind {
            return Err(unversioned(target));
        }
        // Seldom asked twice: only where somebody else wrote in between.
        let wanted = first.take().map_or_else(&decoded, Ok)?;
        server.access.check_grant(&server.registry.caches, context, target.kind, &wanted, Some(old))?;
        Ok(wanted)
    };
    match server.registry.update(context, target, part, &options, Owners::Update, make).await {
        Err(status) if status.is("NotFound") && part == Part::Main && target.kind.rules.create_on_update() => {
            let object = decoded()?;
            server.access.check_grant(&server.registry.caches, context, target.kind, &object, None)?;
            let object = server.registry.create(context, target, object, &options, Owners::Update).await?;
            respond(context, target.kind, StatusCode::CREATED, &object, format)
        }
        Err(status) => Err(status),
        Ok(object) => respond(context, target.kind, StatusCode::OK, &object, format),
    }
}

/// A PUT must say over which version it writes. As upstream, with the resource in the kind's place.
fn unversioned(target: Target<'_>) -> Status {
    let path = meta::field::Path::new("metadata").child("resourceVersion");
    let error = meta::field::Error::invalid(&path, 0, "must be specified for an update");
    Status::invalid(target.kind.facts.group, target.kind.facts.plural, target.name, &[error])
}

/// Name and namespace of the body are those of the path, or absent.
fn place(target: Target<'_>, object: &mut Value) -> Result<(), Status> {
    let name = meta(object, "name").to_owned();
    if name.is_empty() {
        metadata_mut(object).insert("name".into(), target.name.into());
    } else if name != target.name {
        let message = format!("the name of the object ({name}) does not match the name on the URL ({})", target.name);
        return Err(Status::bad_request(message));
    }
    let namespace = meta(object, "namespace").to_owned();
    if namespace.is_empty() && !target.namespace.is_empty() {
        metadata_mut(object).insert("namespace".into(), target.namespace.into());
    } else if namespace != target.namespace {
        let message =
            format!("the namespace of the object ({namespace}) does not match the namespace on the request ({})", target.namespace);
        return Err(Status::bad_request(message));
    }
    Ok(())
}

pub async fn patch(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let options = context.write_options()?;
    let kind = PatchType::of(&context.headers, !target.kind.is_custom())?;
    if kind != PatchType::Apply && options.force {
        let error = meta::field::Error::forbidden(&meta::field::Path::new("force"), "may not be specified for non-apply patch");
        return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
    }
    let bytes = read_body(request).await?;
    let part = part(context, target);
    if kind == PatchType::Apply {
        return apply(server, context, target, part, &bytes, &options, format).await;
    }
    let patch = patching::Patch::parse(kind, bytes)?;
    let make = |old: &Value| {
        let served = if target.kind.converts() { crate::convert::from_storage(target.kind, old.clone()) } else { old.clone() };
        let mut patched = patch.apply(target.kind, served)?;
        if kind != PatchType::StrategicMerge {
            codec::expect_type(&mut patched, target.kind.facts.kind, &target.kind.api_version())?;
        }
        let mut new = codec::decode(context, target.kind, patched, &options).map_err(|status| patch.blame(status))?;
        place(target, &mut new)?;
        unpatched_version(&mut new, old);
        server.access.check_grant(&server.registry.caches, context, target.kind, &new, Some(old))?;
        Ok(new)
    };
    let object = server.registry.update(context, target, part, &options, Owners::Update, make).await?;
    respond(context, target.kind, StatusCode::OK, &object, format)
}

/// A patch that does not name a resourceVersion may be repeated on a newer object: the version it inherited is no precondition.
fn unpatched_version(new: &mut Value, old: &Value) {
    if meta(new, "resourceVersion") == meta(old, "resourceVersion") {
        metadata_mut(new).remove("resourceVersion");
    }
}

/// Server-side apply: creates what is absent.
async fn apply(
    server: &Arc<Inner>,
    context: &Context,
    target: Target<'_>,
    part: Part,
    bytes: &[u8],
    options: &WriteOptions,
    format: negotiate::Format,
) -> Result<Response<Body>, Status> {
    has_manager(context)?;
    let kind = target.kind;
    let parsed = codec::parse(bytes, patching::apply_media(&context.headers), kind.facts.kind)?;
    declared(target, &parsed)?;
    // Repeated fields are reported; the configuration itself stays as it was written.
    codec::check(context, kind, parsed.clone(), options)?;
    let mut applied = parsed.value;
    of_kind(target, &mut applied)?;
    place(target, &mut applied)?;
    let (code, object) = applied_to(server, context, target, part, &applied, options).await?;
    respond(context, kind, code, &object, format)
}

/// Nobody can own a field that there is not: an apply is refused whatever `fieldValidation` says, in the words of structured-merge-diff.
fn declared(target: Target<'_>, parsed: &schema::decode::Parsed) -> Result<(), Status> {
    let Some(unknown) = codec::unknown(target.kind, parsed) else { return Ok(()) };
    let list: Vec<String> = unknown.iter().map(|path| format!(".{path}: field not declared in schema")).collect();
    let why = match list.as_slice() {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let (version, kind) = (target.kind.api_version(), target.kind.facts.kind);
    let object = if target.namespace.is_empty() { format!("/{}", target.name) } else { format!("{}/{}", target.namespace, target.name) };
    Err(Status::bad_request(format!("failed to create typed patch object ({object}; {version}, Kind={kind}): {why}")))
}

/// An apply names who applies.
pub fn has_manager(context: &Context) -> Result<(), Status> {
    if context.query.text("fieldManager").is_some() {
        return Ok(());
    }
    let error = meta::field::Error::required(&meta::field::Path::new("fieldManager"), "is required for apply patch");
    Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]))
}

/// Merges a configuration into the object, which a part other than the whole needs to be there.
pub async fn applied_to(
    server: &Arc<Inner>,
    context: &Context,
    target: Target<'_>,
    part: Part,
    applied: &Value,
    options: &WriteOptions,
) -> Result<(StatusCode, Arc<Object>), Status> {
    let (kind, api_version, now) = (target.kind, target.kind.api_version(), meta::time::now());
    let manager = registry::manager(kind, &options.manager, part, &api_version, &now);
    let merge = |live: Option<&Value>| {
        let live = live.map(|live| if kind.converts() { crate::convert::from_storage(kind, live.clone()) } else { live.clone() });
        let merged = schema::apply::apply(live.as_ref(), applied, &manager, options.force, &kind.schema).map_err(|error| error.status())?;
        let quiet = WriteOptions { validation: schema::decode::Mode::Ignore, ..options.clone() };
        codec::decode(context, kind, merged, &quiet)
    };
    let make = |old: &Value| {
        let mut new = merge(Some(old))?;
        if meta(applied, "resourceVersion").is_empty() {
            metadata_mut(&mut new).remove("resourceVersion");
        }
        server.access.check_grant(&server.registry.caches, context, kind, &new, Some(old))?;
        Ok(new)
    };
    loop {
        match server.registry.update(context, target, part, options, Owners::Applied, make).await {
            Err(status) if status.is("NotFound") && part == Part::Main => {}
            Err(status) => return Err(status),
            Ok(object) => return Ok((StatusCode::OK, object)),
        }
        let mut fresh = merge(None)?;
        certificate::stamp(context, kind, &mut fresh)?;
        server.access.check_grant(&server.registry.caches, context, kind, &fresh, None)?;
        match server.registry.create(context, target, fresh, options, Owners::Applied).await {
            // Somebody created it in between: apply to that.
            Err(status) if status.is("AlreadyExists") => {}
            Err(status) => return Err(status),
            Ok(object) => return Ok((StatusCode::CREATED, object)),
        }
    }
}

/// The configuration is of the path's kind, or says none.
fn of_kind(target: Target<'_>, applied: &mut Value) -> Result<(), Status> {
    let kind = target.kind.facts.kind;
    let Some(members) = applied.as_object_mut() else { return Ok(()) };
    match members.get("kind") {
        None | Some(Value::Null) => drop(members.insert("kind".into(), kind.into())),
        Some(given) if given == kind => {}
        Some(given) => {
            let given = given.as_str().map_or_else(|| given.to_string(), str::to_owned);
            let (version, object) = (target.kind.api_version(), format!("{}/{}", target.namespace, target.name));
            let why = format!("no corresponding type for {version}, Kind={given}");
            return Err(Status::bad_request(format!("failed to create typed patch object ({object}; {version}, Kind={given}): {why}")));
        }
    }
    Ok(())
}

/// The options in a deletion's body; `null` where there is none.
async fn delete_options(context: &Context, request: Request<Body>) -> Result<deletion::Options, Status> {
    let bytes = read_body(request).await?;
    let body = match bytes.is_empty() {
        true => Value::Null,
        false => {
            let media = negotiate::body_media(&context.headers, true).unwrap_or(Media::Json);
            codec::delete_options(context, &bytes, media)?
        }
    };
    if !body.is_null() && body["kind"].as_str().is_some_and(|kind| kind != "DeleteOptions" && !kind.is_empty()) {
        return Err(Status::bad_request(format!("decoded object cannot be converted to DeleteOptions: {}", body["kind"])));
    }
    deletion::Options::parse(&body, context)
}

pub async fn delete(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let options = delete_options(context, request).await?;
    match server.registry.delete(context, target, &options).await? {
        Deleted::Pending(object) => respond(context, target.kind, StatusCode::OK, &object, format),
        Deleted::Gone(object) if target.kind.facts.deletion_returns_object() => {
            respond(context, target.kind, StatusCode::OK, &object, format)
        }
        Deleted::Gone(object) => {
            let value = object.value();
            Ok(reply::status(&Status::deleted(&target.kind.group_resource(), target.name, meta(&value, "uid")), format))
        }
    }
}

pub async fn delete_collection(
    server: &Arc<Inner>,
    context: &Context,
    target: Target<'_>,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let options = delete_options(context, request).await?;
    let page = read::chunk(server, context, target).await?;
    let kind = target.kind;
    let deletions: Vec<_> =
        page.objects.iter().map(|object| delete_one(server.clone(), context, kind, object.clone(), options.clone())).collect();
    let mut running = futures_util::stream::iter(deletions).buffer_unordered(COLLECTION_WORKERS);
    while let Some(outcome) = running.next().await {
        outcome?;
    }
    let include = views::Include::parse(&context.query)?;
    let metadata = read::list_meta(kind, &page);
    Ok(reply::value(StatusCode::OK, &views::many(kind, &page.objects, format, include, metadata), format))
}

async fn delete_one(
    server: Arc<Inner>,
    context: &Context,
    kind: &Arc<Kind>,
    object: Arc<Object>,
    options: deletion::Options,
) -> Result<(), Status> {
    let value = object.value();
    let (namespace, name) = (meta(&value, "namespace"), meta(&value, "name"));
    match server.registry.delete(context, Target { kind, namespace, name }, &options).await {
        Err(status) if !status.is("NotFound") => Err(status),
        _ => Ok(()),
    }
}
