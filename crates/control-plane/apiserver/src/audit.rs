//! The audit trail: what is said about a request when it comes, when its stream begins and when it was answered, as the policy wants it.
//!
//! [`policy`] chooses level and stages, `event` makes the line, [`sink`] writes the lines, a [`webhook`] takes them elsewhere. Bodies are told at the levels Request and RequestResponse only, and
//! bodies with credentials never.

mod event;
pub mod policy;
pub mod sink;
pub mod webhook;

use std::cell::RefCell;
use std::sync::Arc;

use auth::UserInfo;
use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;

use crate::Inner;
use crate::context::Context;
use crate::reply::Body;
use policy::{Choice, Level, Policy, Stage};
use sink::Sink;
use webhook::Webhook;

/// Bodies larger than this are not told.
const BODY_BYTES_MAX: usize = 1 << 20;
/// A buffer that has grown beyond this for one line is not kept for the next.
const LINE_BYTES_KEPT: usize = 64 << 10;

/// The policy and where its events go.
pub struct Trail {
    pub policy: Policy,
    pub sink: Option<Sink>,
    pub webhook: Option<Webhook>,
}

/// The request was understood: from here on its level is known.
pub fn received(server: &Inner, context: &mut Context) {
    let Some(trail) = &server.audit else { return };
    context.audit.choice = trail.policy.choose(&context.user, &context.attributes());
    if context.audit.choice.tells(Stage::RequestReceived) {
        send(server, trail, context, Stage::RequestReceived, None);
    }
}

/// The request was answered. At level RequestResponse a body that is whole is read and told.
pub async fn answered(server: &Inner, context: &Context, response: Response<Body>) -> Response<Body> {
    let Some(trail) = &server.audit else { return response };
    let choice = &context.audit.choice;
    if choice.level == Level::None {
        return response;
    }
    let streams = context.info.verb == "watch" || response.status() == http::StatusCode::SWITCHING_PROTOCOLS;
    let stage = if streams { Stage::ResponseStarted } else { Stage::ResponseComplete };
    if !choice.tells(stage) {
        return response;
    }
    let (response, body) =
        if choice.level == Level::RequestResponse && !streams { Box::pin(whole(response)).await } else { (response, None) };
    send(server, trail, context, stage, Some((response.status().as_u16(), body)));
    response
}

/// The code of the answer, and its body where that is told.
type Answer = Option<(u16, Option<Bytes>)>;

fn send(server: &Inner, trail: &Trail, context: &Context, stage: Stage, answer: Answer) {
    thread_local! {
        /// Kept, so that a line costs no allocation.
        static LINE: RefCell<Vec<u8>> = RefCell::default();
    }
    let taken = LINE.with_borrow_mut(|line| {
        line.clear();
        event::write(line, context, stage, answer);
        let by_webhook = trail.webhook.as_ref().is_none_or(|webhook| webhook.send(line.clone()));
        // Both hear of it, whether or not the other one has room.
        let by_sink = trail.sink.as_ref().is_none_or(|sink| sink.send(line));
        if line.capacity() > LINE_BYTES_KEPT {
            *line = Vec::new();
        }
        by_webhook && by_sink
    });
    match taken {
        true => server.metrics.audited(context.audit.choice.level),
        false => server.metrics.audit_dropped.inc(),
    }
}

/// The body's bytes beside the response, which keeps them.
async fn whole(response: Response<Body>) -> (Response<Body>, Option<Bytes>) {
    let sized = http_body::Body::size_hint(response.body()).exact().is_some_and(|size| size <= BODY_BYTES_MAX as u64);
    if !sized || response.headers().contains_key(http::header::CONTENT_ENCODING) {
        return (response, None);
    }
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    (Response::from_parts(parts, crate::reply::full(bytes.clone())), Some(bytes))
}

/// What is gathered about one request for its events.
#[derive(Default)]
pub struct Notes {
    pub id: String,
    pub choice: Choice,
    /// Path and query, as they came.
    pub uri: String,
    pub received: jiff::Timestamp,
    pub peer: Option<std::net::IpAddr>,
    /// Who impersonates.
    pub original_user: Option<Arc<UserInfo>>,
    /// The verb of the right by which they do, if it is a constrained one.
    pub constraint: String,
    /// The request's body, where the level wants it.
    pub request: Option<Bytes>,
}

/// Keeps the body for the events of a request at a level that tells it.
pub async fn keep_body(context: &mut Context, request: http::Request<Body>) -> Result<http::Request<Body>, meta::Status> {
    let writes = matches!(context.info.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection");
    let connects = matches!(context.info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy");
    if context.audit.choice.level < Level::Request || !context.info.is_resource || !writes || connects {
        return Ok(request);
    }
    let (parts, body) = request.into_parts();
    let bytes = Box::pin(crate::handlers::read_body(http::Request::new(body))).await?;
    context.audit.request = Some(bytes.clone());
    Ok(http::Request::from_parts(parts, crate::reply::full(bytes)))
}
