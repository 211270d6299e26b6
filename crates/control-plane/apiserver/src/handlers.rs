//! From a request about an object to its answer: one function per verb, for all kinds.

pub mod certificate;
mod component_status;
mod connect;
mod eviction;
mod pod;
pub mod read;
mod reviews;
mod scale;
mod token;
pub mod watch;
mod websocket;
pub mod write;

use std::sync::Arc;

use http::{Method, Response, StatusCode};
use meta::Status;

use crate::Inner;
use crate::context::Context;
use crate::negotiate::{self, Format, Offer};
use crate::object::Object;
use crate::registry::Target;
use crate::registry::catalog::Kind;
use crate::reply::{self, Body};
use crate::views::{self, Include};

pub use scale::LENS as SCALE;

/// The largest body, as upstream's default (3 MiB).
pub const BODY_BYTES_MAX: usize = 3 << 20;

/// A request about API objects.
pub async fn resource(server: &Arc<Inner>, context: &Context, request: http::Request<Body>) -> Result<Response<Body>, Status> {
    let info = &context.info;
    let Some(kind) = server.kind(&info.group, &info.version, &info.resource) else {
        return Ok(crate::pipeline::page_not_found());
    };
    if let Some(warning) = kind.custom.as_ref().and_then(|form| form.deprecation.as_ref()) {
        context.warn(warning.as_str());
    }
    // A path that upstream has not. Whoever may do anything in the namespace was let through to here.
    if info.below_namespace && !kind.facts.namespaced {
        return Ok(crate::pipeline::page_not_found());
    }
    let namespace = if kind.facts.namespaced { info.namespace.as_str() } else { "" };
    let target = Target { kind: &kind, namespace, name: &info.name };
    if info.below_watch && !info.subresource.is_empty() {
        return Ok(crate::pipeline::page_not_found());
    }
    if !info.subresource.is_empty() {
        return Box::pin(subresource(server, context, target, request)).await;
    }
    let verb = info.verb.as_str();
    let placed = !kind.facts.namespaced || !namespace.is_empty();
    // A list or watch by metadata.name carries that name, and has no other.
    let by_field = matches!(verb, "list" | "watch" | "deletecollection") && !info.below_watch;
    if !placed && !info.name.is_empty() && !by_field {
        // There is no such path.
        return Ok(crate::pipeline::page_not_found());
    }
    let well_formed = match verb {
        "watch" if info.below_watch => request.method() == Method::GET,
        "list" | "watch" => true,
        "create" => placed && info.name.is_empty(),
        "deletecollection" => placed,
        _ => placed && !info.name.is_empty(),
    };
    if !kind.has_verb(verb) || !well_formed {
        return Err(Status::method_not_supported(&kind.group_resource(), request.method().as_str()).code_405());
    }
    match verb {
        "get" | "list" if kind.facts.plural == "componentstatuses" => Box::pin(component_status::read(server, context, target)).await,
        "get" => read::get(server, context, target).await,
        // Their state is large, and a write's too: a request's future is moved several times, and whoever reads one object should not have to
        // carry them along.
        "list" => Box::pin(read::list(server, context, target)).await,
        "watch" if websocket::is_asked(request.headers()) => {
            websocket::send(request, Box::pin(watch::watch(server, context, target)).await?, websocket::Messages::Lines)
        }
        "watch" => Box::pin(watch::watch(server, context, target)).await,
        _ => Box::pin(write(server, context, target, request)).await,
    }
}

async fn write(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: http::Request<Body>) -> Result<Response<Body>, Status> {
    let kind = target.kind;
    match context.info.verb.as_str() {
        "create" if reviews::is_review(kind.facts.plural) => reviews::create(server, context, target, request).await,
        "create" if kind.facts.plural == "bindings" => pod::bind(server, context, target, request).await,
        "create" => write::create(server, context, target, request).await,
        "update" => write::update(server, context, target, request).await,
        "patch" => write::patch(server, context, target, request).await,
        "delete" => write::delete(server, context, target, request).await,
        "deletecollection" => write::delete_collection(server, context, target, request).await,
        other => Err(Status::method_not_supported(&kind.group_resource(), other)),
    }
}

async fn subresource(
    server: &Arc<Inner>,
    context: &Context,
    target: Target<'_>,
    request: http::Request<Body>,
) -> Result<Response<Body>, Status> {
    let info = &context.info;
    let Some(sub) = target.kind.subresource(&info.subresource) else {
        return Ok(crate::pipeline::page_not_found());
    };
    let verb = info.verb.as_str();
    // What the pod, service or node behind a proxy understands is not ours to say.
    let passed_on = sub.name == "proxy" && *request.method() == http::Method::OPTIONS;
    if !sub.verbs.contains(&verb) && !passed_on {
        return Err(Status::method_not_supported(&target.kind.group_resource(), verb).code_405());
    }
    match (sub.name, verb) {
        ("status" | "resize" | "ephemeralcontainers" | "finalize" | "approval", "get") => read::get(server, context, target).await,
        ("status" | "resize" | "ephemeralcontainers" | "finalize" | "approval", "update") => {
            write::update(server, context, target, request).await
        }
        ("status" | "resize" | "ephemeralcontainers" | "finalize" | "approval", "patch") => {
            write::patch(server, context, target, request).await
        }
        ("scale", "get") => scale::get(server, context, target).await,
        ("scale", "update") => scale::update(server, context, target, request).await,
        ("scale", "patch") => scale::patch(server, context, target, request).await,
        ("binding", _) => pod::bind(server, context, target, request).await,
        ("eviction", _) => eviction::evict(server, context, target, request).await,
        ("token", _) => token::request(server, context, target, request).await,
        ("log", _) if websocket::is_asked(request.headers()) => {
            websocket::send(request, connect::log(server, context, target).await?, websocket::Messages::Bytes)
        }
        ("log", _) => connect::log(server, context, target).await,
        ("exec" | "attach" | "portforward", _) => connect::stream(server, context, target, request).await,
        ("proxy", _) => connect::proxy(server, context, target, request).await,
        _ => Err(Status::method_not_supported(&target.kind.group_resource(), verb)),
    }
}

/// What an endpoint of this kind offers and the client takes.
pub fn format(context: &Context, kind: &Kind) -> Result<Format, Status> {
    // What is only asked (a review) has no table and no metadata.
    let views = kind.has_verb("get") || kind.has_verb("list");
    negotiate::accept(&context.headers, &context.query, Offer { yaml: true, protobuf: !kind.is_custom(), views })
}

/// One object as the answer.
pub fn respond(context: &Context, kind: &Kind, code: StatusCode, object: &Object, format: Format) -> Result<Response<Body>, Status> {
    if format.view == negotiate::View::Object {
        if format.media == negotiate::Media::Protobuf
            && let Some(body) = crate::codec::object_body(kind, object)
        {
            return Ok(reply::bytes(code, format.media.content_type(), body));
        }
        if !kind.converts() {
            return Ok(reply::object(code, object, format));
        }
    }
    let include = Include::parse(&context.query)?;
    Ok(reply::value(code, &views::one(kind, object, format, include), format))
}

/// The whole body, if it is not too large.
pub async fn read_body(request: http::Request<Body>) -> Result<bytes::Bytes, Status> {
    use http_body_util::{BodyExt, Limited};
    let too_large = || Status::request_entity_too_large(format!("Request entity too large: limit is {BODY_BYTES_MAX}"));
    match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Err(error) => Err(Status::bad_request(format!("the body of the request could not be read: {error}"))),
    }
}

trait MethodNotAllowed {
    fn code_405(self) -> Status;
}

impl MethodNotAllowed for Status {
    /// Upstream's router answers so, before any kind is asked.
    fn code_405(self) -> Status {
        Status { message: "the server does not allow this method on the requested resource".into(), ..self }
    }
}
