//! The audit trail: what is said about a request when it comes, when its stream begins and when it was answered, as the policy wants it.
//!
//! [`policy`] chooses level and stages, [`sink`] writes the lines, a [`webhook`] takes them elsewhere. Bodies are told at the levels Request and RequestResponse only, and
//! bodies with credentials never.

pub mod policy;
pub mod sink;
pub mod webhook;

use std::borrow::Cow;
use std::collections::BTreeMap;

use auth::UserInfo;
use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Inner;
use crate::context::Context;
use crate::reply::Body;
use policy::{Choice, Level, Policy, Stage};
use sink::Sink;
use webhook::Webhook;

/// Bodies larger than this are not told.
const BODY_BYTES_MAX: usize = 1 << 20;

/// The policy and where its events go.
pub struct Trail {
    pub policy: Policy,
    pub sink: Option<Sink>,
    pub webhook: Option<Webhook>,
}

/// An event as it is written (upstream: `audit.k8s.io/v1` Event).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    kind: &'static str,
    api_version: &'static str,
    level: Level,
    #[serde(rename = "auditID")]
    audit_id: &'a str,
    stage: Stage,
    #[serde(rename = "requestURI")]
    request_uri: &'a str,
    verb: &'a str,
    user: &'a UserInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<&'a UserInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authentication_metadata: Option<Value>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Option::is_none")]
    source_ips: Option<[std::net::IpAddr; 1]>,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<ObjectRef<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<ResponseStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_object: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_object: Option<Value>,
    request_received_timestamp: &'a str,
    stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

#[derive(Serialize)]
struct ResponseStatus {
    metadata: Empty,
    code: u16,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectRef<'a> {
    resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    api_group: &'a str,
    api_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subresource: &'a str,
}

/// The request was understood: from here on its level is known.
pub fn received(server: &Inner, context: &mut Context) {
    let Some(trail) = &server.audit else { return };
    context.audit.choice = trail.policy.choose(&context.user, &context.attributes());
    if context.audit.choice.tells(Stage::RequestReceived) {
        send(server, trail, event(context, Stage::RequestReceived, None));
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
    let (response, body) = if choice.level == Level::RequestResponse && !streams { whole(response).await } else { (response, None) };
    send(server, trail, event(context, stage, Some((response.status().as_u16(), body))));
    response
}

fn send(server: &Inner, trail: &Trail, event: Event<'_>) {
    let mut line = Vec::with_capacity(1 << 10);
    // Writing JSON into memory cannot fail.
    let _ = serde_json::to_writer(&mut line, &event);
    let taken = match (&trail.sink, &trail.webhook) {
        (Some(sink), None) => sink.send(line),
        (None, Some(webhook)) => webhook.send(line),
        // Both hear of it, whether or not the other one has room.
        (Some(sink), Some(webhook)) => webhook.send(line.clone()) & sink.send(line),
        (None, None) => true,
    };
    if !taken {
        server.metrics.audit_dropped.inc();
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

fn event<'a>(context: &'a Context, stage: Stage, answer: Option<(u16, Option<Bytes>)>) -> Event<'a> {
    let (info, audit) = (&context.info, &context.audit);
    let agent = context.headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let choice = &audit.choice;
    let object_ref = info.is_resource.then(|| ObjectRef {
        resource: &info.resource,
        namespace: &info.namespace,
        name: &info.name,
        api_group: &info.group,
        api_version: &info.version,
        subresource: &info.subresource,
    });
    let request = (choice.level >= Level::Request).then(|| context.audit.request.clone()).flatten();
    let content_type = context.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let request_object = request.and_then(|bytes| tree(choice, &bytes, content_type));
    let own = context.annotations().into_iter().map(|(key, value)| (Cow::Owned(key), Cow::Owned(value)));
    let mut annotations: BTreeMap<Cow<'_, str>, Cow<'_, str>> = own.collect();
    if !context.reason.is_empty() || answer.is_some() {
        let forbidden = answer.as_ref().is_some_and(|(code, _)| *code == 403);
        annotations.insert("authorization.k8s.io/decision".into(), if forbidden { "forbid" } else { "allow" }.into());
        annotations.insert("authorization.k8s.io/reason".into(), context.reason.as_str().into());
    }
    let original = audit.original_user.as_ref();
    Event {
        kind: "Event",
        api_version: "audit.k8s.io/v1",
        level: choice.level,
        audit_id: &audit.id,
        stage,
        request_uri: if audit.uri.is_empty() { &info.path } else { &audit.uri },
        verb: &info.verb,
        user: original.unwrap_or(&context.user),
        impersonated_user: original.map(|_| &context.user),
        authentication_metadata: (!audit.constraint.is_empty()).then(|| json!({"impersonationConstraint": audit.constraint})),
        source_ips: audit.peer.map(|peer| [peer]),
        user_agent: agent,
        object_ref,
        response_status: answer.as_ref().map(|(code, _)| ResponseStatus { metadata: Empty {}, code: *code }),
        request_object,
        response_object: answer.and_then(|(_, body)| body).and_then(|bytes| tree(choice, &bytes, "json")),
        request_received_timestamp: &audit.received,
        stage_timestamp: meta::time::now_micro(),
        annotations,
    }
}

/// A body as a tree, where it is one: JSON (patches too) or YAML.
fn tree(choice: &Choice, bytes: &[u8], content_type: &str) -> Option<Value> {
    if bytes.len() > BODY_BYTES_MAX {
        return None;
    }
    let mut value: Value = match content_type.contains("yaml") {
        true => serde_saphyr::from_str(std::str::from_utf8(bytes).ok()?).ok()?,
        false => serde_json::from_slice(bytes).ok()?,
    };
    if choice.omit_managed_fields
        && let Some(metadata) = value["metadata"].as_object_mut()
    {
        metadata.remove("managedFields");
    }
    (value.is_object() || value.is_array()).then_some(value)
}

/// What is gathered about one request for its events.
#[derive(Default)]
pub struct Notes {
    pub id: String,
    pub choice: Choice,
    /// Path and query, as they came.
    pub uri: String,
    pub received: String,
    pub peer: Option<std::net::IpAddr>,
    /// Who impersonates.
    pub original_user: Option<UserInfo>,
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
    let bytes = crate::handlers::read_body(http::Request::new(body)).await?;
    context.audit.request = Some(bytes.clone());
    Ok(http::Request::from_parts(parts, crate::reply::full(bytes)))
}
