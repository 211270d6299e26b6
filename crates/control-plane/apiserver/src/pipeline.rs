//! The one list that every request goes through, from both transports.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use auth::UserInfo;
use futures_util::FutureExt;
use http::header::{HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use meta::Status;

use crate::context::Context;
use crate::negotiate::{self, Format, Offer};
use crate::reply::{self, Body};
use crate::request::{Query, RequestInfo};
use crate::serve::Arrived;
use crate::{Inner, aggregation, audit, deadline, discovery, flow, handlers, health, openapi};

static FLOW_SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
static PRIORITY_LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// The watch cache follows the store within milliseconds; one that does not holds no answer up.
const RULES_PATIENCE: Duration = Duration::from_secs(1);
static AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Answers a request. `identity` is set by the in-process transport, which vouches for it.
pub async fn run(server: &Arc<Inner>, request: Request<Body>, identity: Option<UserInfo>) -> Response<Body> {
    let audit_id = audit_id(&request);
    let stages = AssertUnwindSafe(stages(server, request, identity, &audit_id)).catch_unwind();
    let mut response = stages.await.unwrap_or_else(|_| {
        tracing::error!(audit_id, "a request handler panicked");
        reply::status(&Status::internal("the request handler failed"), Format::JSON)
    });
    if let Ok(value) = HeaderValue::from_str(&audit_id) {
        response.headers_mut().insert(AUDIT_ID.clone(), value);
    }
    response
}

async fn stages(server: &Arc<Inner>, request: Request<Body>, identity: Option<UserInfo>, audit_id: &str) -> Response<Body> {
    let started = Instant::now();
    let query = Query::parse(request.uri().query());
    let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
    let headers = request.headers().clone();
    let user = match identity {
        Some(user) => {
            if let Some(turns) = server.turns.get() {
                turns.is_busy_inside(started);
            }
            Ok((Arc::new(user), None))
        }
        None => server.access.authenticate(&server.registry, &request).await,
    };
    if let Some(metrics) = crate::access::metrics() {
        metrics.authenticated(user.as_ref().ok().map(|(user, _)| user.username.as_str()), started.elapsed());
    }
    let (user, notice, refused) = match user {
        Ok((user, notice)) => (user, notice, None),
        Err(status) => (Arc::new(UserInfo::anonymous()), None, Some(status)),
    };
    let arrival = request.extensions().get::<Arrived>().map(|arrived| &*arrived.0);
    if let Some(arrival) = arrival {
        arrival.whose.is(&user.username);
    }
    let peer = arrival.map(|arrival| arrival.peer);
    let mut context = Context::new(info, query, headers, user);
    if let Some(notice) = notice {
        notice.warning.into_iter().for_each(|sentence| context.warn(sentence));
        context.annotate(notice.annotation.0, notice.annotation.1);
    }
    context.audit.id = audit_id.to_owned();
    context.audit.received = jiff::Timestamp::now();
    context.audit.uri = request.uri().path_and_query().map(|target| target.as_str().to_owned()).unwrap_or_default();
    context.audit.peer = peer;
    audit::received(server, &mut context);
    let outcome = match refused {
        Some(status) => Err(status),
        None => in_time(server, &mut context, request).await,
    };
    let mut response = outcome.unwrap_or_else(|status| failure(&context, &status));
    for warning in context.take_warnings() {
        if let Ok(value) = HeaderValue::from_str(&warning_header(&warning)) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
    if let Some(flowed) = &context.flowed {
        for (name, uid) in [(&FLOW_SCHEMA, &flowed.schema), (&PRIORITY_LEVEL, &flowed.level)] {
            if let Ok(value) = HeaderValue::from_str(uid) {
                response.headers_mut().insert(name.clone(), value);
            }
        }
    }
    let size = http_body::Body::size_hint(response.body()).exact();
    server.metrics.observe(server, &context, response.status().as_u16(), started.elapsed(), size);
    audit::answered(server, &context, response).await
}

/// Until its deadline. A write that was under way then may still happen, as upstream.
async fn in_time(server: &Arc<Inner>, context: &mut Context, request: Request<Body>) -> Result<Response<Body>, Status> {
    let limit = deadline::of(context)?;
    // Boxed: what a request is on its way is moved several times before it is first polled, and this is by far the most of it.
    let mut work = Box::pin(admitted(server, context, request));
    let Some(limit) = limit else { return Ok(deadline::until_stop(work.await?, &server.drain)) };
    // Most reads are answered at once, and never need a timer.
    if let Poll::Ready(answer) = futures_util::poll!(work.as_mut()) {
        return answer;
    }
    Box::pin(tokio::time::timeout(limit, work)).await.unwrap_or_else(|_| Err(deadline::exceeded()))
}

/// Who may go on, and where to.
async fn admitted(server: &Arc<Inner>, context: &mut Context, mut request: Request<Body>) -> Result<Response<Body>, Status> {
    if context.headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
        // Boxed: hardly any request is on behalf of somebody else.
        Box::pin(server.access.impersonate(&server.registry.caches, context, request.headers_mut())).await?;
    }
    let _place = server.flow.enter(&server.registry.caches, context).await?;
    let _counted = server.metrics.inflight(context);
    context.reason = server.access.authorize(&server.registry.caches, context).await?;
    let request = audit::keep_body(context, request).await?;
    // What is built in is never somebody else's; the table of others need not be asked for it.
    let request = match aggregation::is_foreign(context) {
        true => match Box::pin(aggregation::respond(server, context, request)).await {
            Ok(response) => return Ok(response),
            Err(request) => request,
        },
        false => request,
    };
    let path = context.info.path.as_str();
    if context.info.is_resource {
        let outcome = handlers::resource(server, context, request).await;
        if outcome.is_ok() && writes_rules(context) {
            Box::pin(server.registry.caches.reach(server.registry.store.revision(), RULES_PATIENCE)).await;
        }
        return outcome;
    }
    if let Some(response) = health::respond(server, context) {
        return Ok(response);
    }
    if let Some(response) = flow::respond(server, context) {
        return Ok(response);
    }
    if let Some(response) = Box::pin(openapi::respond(server, context, request.method())).await {
        return response;
    }
    match path {
        "/" | "/index.html" => Ok(discovery::index(server)),
        "/api" | "/api/" | "/apis" | "/apis/" => discovery::root(server, context),
        _ if path.starts_with("/api/") || path.starts_with("/apis/") => discovery::group(server, context),
        _ => Ok(page_not_found()),
    }
}

/// Whether the request wrote objects by which this server judges others and which it reads from the watch cache: who is told that a rule
/// stands, or is gone, finds it so with the next request.
fn writes_rules(context: &Context) -> bool {
    let info = &context.info;
    let is_rule = match info.group.as_str() {
        "admissionregistration.k8s.io" | "rbac.authorization.k8s.io" | "flowcontrol.apiserver.k8s.io" | "apiregistration.k8s.io" => true,
        "" => matches!(info.resource.as_str(), "limitranges" | "resourcequotas"),
        "storage.k8s.io" => info.resource == "storageclasses",
        "networking.k8s.io" => matches!(info.resource.as_str(), "ingressclasses" | "servicecidrs" | "ipaddresses"),
        "scheduling.k8s.io" => info.resource == "priorityclasses",
        _ => false,
    };
    is_rule && !matches!(info.verb.as_str(), "get" | "list" | "watch")
}

fn failure(context: &Context, status: &Status) -> Response<Body> {
    let offer = Offer { yaml: true, protobuf: true, views: true };
    let format = negotiate::accept(&context.headers, &context.query, offer).unwrap_or(Format::JSON);
    reply::status(status, format)
}

pub fn page_not_found() -> Response<Body> {
    reply::text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// The client's own audit id where it gives one.
fn audit_id(request: &Request<Body>) -> String {
    let given = request.headers().get(&AUDIT_ID).and_then(|value| value.to_str().ok());
    given.filter(|id| !id.is_empty() && id.len() <= 64).map_or_else(meta::names::uid, str::to_owned)
}

/// RFC 7234: code 299, no agent, a quoted sentence.
fn warning_header(sentence: &str) -> String {
    let printable: String = sentence.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("299 - \"{}\"", printable.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is moved from call to call and lies in one block per request: all that only some requests need is in boxes of its own.
    #[tokio::test]
    async fn the_future_of_a_request_is_small() {
        let server = crate::Server::new(crate::Config::default(), Arc::new(store::memory::Memory::new())).unwrap();
        let request = Request::new(reply::empty());
        let size = std::mem::size_of_val(&server.handle(request, None));
        assert!(size < 4_000, "{size} bytes");
    }
}
