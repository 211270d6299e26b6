//! An event as it is written (upstream: `audit.k8s.io/v1` Event): one line of JSON, member by member.
//!
//! By hand: there is one for every request, and most members are text that needs no escape.

use auth::UserInfo;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::policy::{Choice, Level, Stage};
use super::{Answer, BODY_BYTES_MAX};
use crate::context::Context;

/// Appends the line's JSON, without a line end.
pub fn write(out: &mut Vec<u8>, context: &Context, stage: Stage, answer: Answer) {
    let (info, audit) = (&context.info, &context.audit);
    let header = |name| context.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok()).unwrap_or_default();
    out.extend_from_slice(b"{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\"");
    let mut event = Members { out, first: false };
    event.value("level", &audit.choice.level);
    event.text("auditID", &audit.id);
    event.value("stage", &stage);
    event.text("requestURI", if audit.uri.is_empty() { &info.path } else { &audit.uri });
    event.text("verb", &info.verb);
    user(&mut event, "user", audit.original_user.as_ref().unwrap_or(&context.user));
    if audit.original_user.is_some() {
        user(&mut event, "impersonatedUser", &context.user);
    }
    if !audit.constraint.is_empty() {
        event.value("authenticationMetadata", &json!({"impersonationConstraint": audit.constraint}));
    }
    if let Some(peer) = audit.peer {
        event.value("sourceIPs", &[peer]);
    }
    event.text_if("userAgent", header(http::header::USER_AGENT));
    if info.is_resource {
        let mut object = event.object("objectRef");
        object.text("resource", &info.resource);
        object.text_if("namespace", &info.namespace);
        object.text_if("name", &info.name);
        object.text_if("apiGroup", &info.group);
        object.text("apiVersion", &info.version);
        object.text_if("subresource", &info.subresource);
        object.end();
    }
    let code = answer.as_ref().map(|(code, _)| *code);
    if let Some(code) = code {
        let mut status = event.object("responseStatus");
        status.object("metadata").end();
        status.value("code", &code);
        status.end();
    }
    bodies(&mut event, context, answer, header(http::header::CONTENT_TYPE));
    event.text("requestReceivedTimestamp", &meta::time::micro(audit.received));
    event.text("stageTimestamp", &meta::time::now_micro());
    annotations(&mut event, context, code);
    event.end();
}

fn user(event: &mut Members<'_>, name: &'static str, user: &UserInfo) {
    if !user.extra.is_empty() {
        return event.value(name, user);
    }
    let mut members = event.object(name);
    members.text("username", &user.username);
    members.text_if("uid", &user.uid);
    if !user.groups.is_empty() {
        members.name("groups");
        for (at, group) in user.groups.iter().enumerate() {
            members.out.push(if at == 0 { b'[' } else { b',' });
            string(members.out, group);
        }
        members.out.push(b']');
    }
    members.end();
}

/// What was sent and answered, where the level tells it.
fn bodies(event: &mut Members<'_>, context: &Context, answer: Answer, content_type: &str) {
    let choice = &context.audit.choice;
    if choice.level < Level::Request {
        return;
    }
    let tell = |event: &mut Members<'_>, name, bytes: Option<Bytes>, content_type: &str| {
        if let Some(tree) = bytes.and_then(|bytes| tree(choice, &bytes, content_type)) {
            event.value(name, &tree);
        }
    };
    tell(event, "requestObject", context.audit.request.clone(), content_type);
    tell(event, "responseObject", answer.and_then(|(_, body)| body), "json");
}

/// In the order of their names, as maps are written.
fn annotations(event: &mut Members<'_>, context: &Context, code: Option<u16>) {
    let own = context.annotations();
    let decided = !context.reason.is_empty() || code.is_some();
    if own.is_empty() && !decided {
        return;
    }
    let ours = [
        ("authorization.k8s.io/decision", if code == Some(403) { "forbid" } else { "allow" }),
        ("authorization.k8s.io/reason", context.reason.as_str()),
    ];
    let ours = if decided { &ours[..] } else { &[] };
    let mut all: Vec<(&str, &str)> = ours.to_vec();
    all.extend(own.iter().filter(|(key, _)| !ours.iter().any(|(name, _)| name == key)).map(|(key, value)| (key.as_str(), value.as_str())));
    if !own.is_empty() {
        all.sort_unstable();
    }
    let mut members = event.object("annotations");
    for (name, value) in all {
        if !std::mem::take(&mut members.first) {
            members.out.push(b',');
        }
        string(members.out, name);
        members.out.push(b':');
        string(members.out, value);
    }
    members.end();
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

/// The members of a JSON object on its way out.
struct Members<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl Members<'_> {
    /// Names are our own: nothing in them needs an escape.
    fn name(&mut self, name: &'static str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
    fn text(&mut self, name: &'static str, value: &str) {
        self.name(name);
        string(self.out, value);
    }
    fn text_if(&mut self, name: &'static str, value: &str) {
        if !value.is_empty() {
            self.text(name, value);
        }
    }
    fn value(&mut self, name: &'static str, value: &impl Serialize) {
        self.name(name);
        // Writing JSON into memory cannot fail.
        let _ = serde_json::to_writer(&mut *self.out, value);
    }
    fn object(&mut self, name: &'static str) -> Members<'_> {
        self.name(name);
        self.out.push(b'{');
        Members { out: self.out, first: true }
    }
    fn end(self) {
        self.out.push(b'}');
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        let _ = serde_json::to_writer(out, text);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::request::{Query, RequestInfo};

    #[test]
    fn an_event_is_json_with_the_members_that_say_something() {
        let info = RequestInfo {
            is_resource: true,
            verb: "get".into(),
            version: "v1".into(),
            resource: "pods".into(),
            name: "a\"b".into(),
            path: "/api/v1/pods".into(),
            ..RequestInfo::default()
        };
        let mut jane = UserInfo::authenticated("ja\\ne", &["dev"]);
        let mut context = Context::new(info, Query::default(), http::HeaderMap::new(), jane.clone());
        context.audit.id = "id".into();
        context.audit.uri = "/api/v1/pods?x=\u{1}".into();
        context.reason = "RBAC: allowed".into();
        let event = |context: &Context, answer: Answer| -> Value {
            let mut out = Vec::new();
            write(&mut out, context, Stage::ResponseComplete, answer);
            serde_json::from_slice(&out).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&out)))
        };
        let found = event(&context, Some((403, None)));
        assert_eq!(found["objectRef"], json!({"resource": "pods", "name": "a\"b", "apiVersion": "v1"}));
        assert_eq!(found["user"], serde_json::to_value(&jane).unwrap());
        assert_eq!(
            (&found["requestURI"], &found["responseStatus"]),
            (&json!("/api/v1/pods?x=\u{1}"), &json!({"metadata": {}, "code": 403}))
        );
        assert_eq!(
            found["annotations"],
            json!({"authorization.k8s.io/decision": "forbid", "authorization.k8s.io/reason": "RBAC: allowed"})
        );
        assert_eq!((found.get("impersonatedUser"), found.get("userAgent"), found.get("requestObject")), (None, None, None));
        jane.extra.insert("k".into(), vec!["v".into()]);
        context.audit.original_user = Some(Arc::new(jane));
        context.annotate("a/first", "1");
        context.annotate("z/last", "2");
        let found = event(&context, None);
        assert_eq!((&found["user"]["extra"]["k"][0], &found["impersonatedUser"]["username"]), (&json!("v"), &json!("ja\\ne")));
        let names: Vec<&String> = found["annotations"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["a/first", "authorization.k8s.io/decision", "authorization.k8s.io/reason", "z/last"]);
    }
}
