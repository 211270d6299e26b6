//! Kinds that are asked and answered, never stored: reviews of tokens, of access, of oneself.

use std::sync::Arc;

use auth::UserInfo;
use auth::authorize::Attributes;
use http::{Request, Response};
use meta::{Status, field};
use serde_json::{Value, json};

use super::pod::created;
use super::read_body;
use crate::Inner;
use crate::codec;
use crate::context::Context;
use crate::negotiate;
use crate::registry::Target;
use crate::reply::Body;

/// Is this resource answered here?
pub fn is_review(plural: &str) -> bool {
    matches!(
        plural,
        "tokenreviews"
            | "selfsubjectreviews"
            | "subjectaccessreviews"
            | "selfsubjectaccessreviews"
            | "localsubjectaccessreviews"
            | "selfsubjectrulesreviews"
    )
}

pub async fn create(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let options = context.write_options()?;
    let media = negotiate::body_media(&context.headers, true)?;
    let mut review = codec::object(context, target.kind, &read_body(request).await?, media, &options)?;
    let status = match target.kind.facts.plural {
        "tokenreviews" => token(server, &review).await?,
        "selfsubjectreviews" => json!({"userInfo": &*context.user}),
        "selfsubjectrulesreviews" if review["spec"]["namespace"].as_str().unwrap_or_default().is_empty() => {
            return Err(Status::bad_request("no namespace on request"));
        }
        "selfsubjectrulesreviews" => rules(server, context, &review),
        _ => access(server, context, target, &review).await?,
    };
    if target.kind.facts.plural == "selfsubjectreviews" {
        // Of what was sent nothing comes back, as upstream.
        review["metadata"] = json!({"creationTimestamp": meta::time::now()});
    }
    review["status"] = status;
    Ok(created(&review, format))
}

async fn token(server: &Inner, review: &Value) -> Result<Value, Status> {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let wanted: Vec<String> =
        review["spec"]["audiences"].as_array().into_iter().flatten().filter_map(|audience| audience.as_str().map(str::to_owned)).collect();
    Ok(match server.access.token(&server.registry, token, &wanted).await {
        Ok(known) => json!({"authenticated": true, "user": known.user, "audiences": known.audiences}),
        Err(why) => json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}),
    })
}

async fn access(server: &Inner, context: &Context, target: Target<'_>, review: &Value) -> Result<Value, Status> {
    let spec = &review["spec"];
    let own = target.kind.facts.plural == "selfsubjectaccessreviews";
    let user = if own { UserInfo::clone(&context.user) } else { subject(spec) };
    check(target, review, own)?;
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |value: &'_ Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let namespace = match target.kind.facts.plural {
        "localsubjectaccessreviews" => target.namespace.to_owned(),
        _ => text(resource, "namespace"),
    };
    let (verb, group, name, sub) = (text(resource, "verb"), text(resource, "group"), text(resource, "name"), text(resource, "subresource"));
    let (fields, labels, version) = (selector(&resource["fieldSelector"]), selector(&resource["labelSelector"]), text(resource, "version"));
    let (plural, path_verb, path) = (text(resource, "resource"), text(path, "verb"), text(path, "path"));
    let asked = match resource.is_object() {
        true => Attributes {
            is_resource: true,
            verb: &verb,
            group: &group,
            resource: &plural,
            subresource: &sub,
            namespace: &namespace,
            name: &name,
            version: &version,
            field_selector: &fields,
            label_selector: &labels,
            path: "",
        },
        false => Attributes { verb: &path_verb, path: &path, ..Attributes::default() },
    };
    let decision = server.access.authorizer.decide(&server.registry.caches, &user, &asked).await;
    let mut status = json!({"allowed": decision.is_allowed()});
    if matches!(decision, auth::authorize::Decision::Deny(_)) {
        status["denied"] = true.into();
    }
    if !decision.reason().is_empty() {
        status["reason"] = decision.reason().into();
    }
    Ok(status)
}

/// A selector of a review (KEP-4601): as it is written, or its requirements written so.
fn selector(given: &Value) -> String {
    if let Some(raw) = given["rawSelector"].as_str() {
        return raw.to_owned();
    }
    let one = |requirement: &Value| {
        let key = requirement["key"].as_str().unwrap_or_default();
        let values: Vec<&str> = requirement["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        match (requirement["operator"].as_str().unwrap_or_default(), values.as_slice()) {
            ("In", [value]) => format!("{key}={value}"),
            ("NotIn", [value]) => format!("{key}!={value}"),
            ("In", values) => format!("{key} in ({})", values.join(",")),
            ("NotIn", values) => format!("{key} notin ({})", values.join(",")),
            ("DoesNotExist", _) => format!("!{key}"),
            _ => key.to_owned(),
        }
    };
    given["requirements"].as_array().into_iter().flatten().map(one).collect::<Vec<_>>().join(",")
}

fn subject(spec: &Value) -> UserInfo {
    let text = |name: &str| spec[name].as_str().unwrap_or_default().to_owned();
    let groups = spec["groups"].as_array().into_iter().flatten().filter_map(|group| group.as_str().map(str::to_owned)).collect();
    let extra = serde_json::from_value(spec["extra"].clone()).unwrap_or_default();
    UserInfo { username: text("user"), uid: text("uid"), groups, extra }
}

fn check(target: Target<'_>, review: &Value, own: bool) -> Result<(), Status> {
    let (path, spec) = (field::Path::new("spec"), &review["spec"]);
    let (resource, other) = (spec["resourceAttributes"].is_object(), spec["nonResourceAttributes"].is_object());
    let mut errors = Vec::new();
    if resource && other {
        let detail = "cannot be specified in combination with resourceAttributes";
        errors.push(field::Error::invalid(&path.child("nonResourceAttributes"), spec["nonResourceAttributes"].clone(), detail));
    }
    if !resource && !other {
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(field::Error::invalid(&path.child("resourceAttributes"), Value::Null, detail));
    }
    let nobody = spec["user"].as_str().unwrap_or_default().is_empty() && spec["groups"].as_array().is_none_or(Vec::is_empty);
    if !own && nobody {
        errors.push(field::Error::invalid(&path.child("user"), "", "at least one of user or group must be specified"));
    }
    if resource {
        let at = path.child("resourceAttributes");
        for name in ["fieldSelector", "labelSelector"] {
            check_selector(&at.child(name), &spec["resourceAttributes"][name], name == "labelSelector", &mut errors);
        }
    }
    if target.kind.facts.plural == "localsubjectaccessreviews" {
        let namespace = spec["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
        if resource && namespace != target.namespace {
            errors.push(field::Error::invalid(&path.dotted("resourceAttributes.namespace"), namespace, "must match metadata.namespace"));
        }
        if other {
            let given = spec["nonResourceAttributes"].clone();
            errors.push(field::Error::invalid(&path.child("nonResourceAttributes"), given, "disallowed on this kind of request"));
        }
    }
    let mut metadata = review["metadata"].clone();
    if let Some(members) = metadata.as_object_mut() {
        members.remove("managedFields");
        // The place of the request is its own to say.
        if target.kind.facts.namespaced {
            members.remove("namespace");
        }
        if !members.is_empty() {
            let sentence = if target.kind.facts.namespaced { "must be empty except for namespace" } else { "must be empty" };
            errors.push(field::Error::invalid(&field::Path::new("metadata"), metadata, sentence));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(target.kind.invalid("", &errors)) }
}

/// Source: `pkg/apis/authorization/validation`.
fn check_selector(path: &field::Path, selector: &Value, labels: bool, errors: &mut Vec<field::Error>) {
    if !selector.is_object() {
        return;
    }
    let (raw, requirements) = (selector["rawSelector"].as_str().unwrap_or_default(), selector["requirements"].as_array());
    let requirements = requirements.map(Vec::as_slice).unwrap_or_default();
    let at = path.child("requirements");
    match (raw.is_empty(), requirements.is_empty()) {
        (false, false) => {
            errors.push(field::Error::invalid(&path.child("rawSelector"), raw, "may not specified at the same time as requirements"))
        }
        (true, true) => {
            let detail = format!("when {path} is specified, requirements or rawSelector is required");
            errors.push(field::Error::required(&at, detail));
        }
        _ => {}
    }
    for (index, requirement) in requirements.iter().enumerate() {
        let here = at.index(index);
        let text = |name: &str| requirement[name].as_str().unwrap_or_default();
        let values = requirement["values"].as_array().map_or(0, Vec::len);
        if text("key").is_empty() {
            errors.push(field::Error::required(&here.child("key"), "must be specified"));
        }
        match text("operator") {
            "In" | "NotIn" if values == 0 => {
                errors.push(field::Error::required(&here.child("values"), "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                errors.push(field::Error::forbidden(
                    &here.child("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            // Unknown ones of fields are looked past: they only narrow.
            operator if labels => errors.push(field::Error::invalid(&here.child("operator"), operator, "not a valid selector operator")),
            _ => {}
        }
    }
}

fn rules(server: &Inner, context: &Context, review: &Value) -> Value {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
    let everything = context.user.groups.iter().any(|group| group == "system:masters");
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    if everything {
        resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    server.access.authorizer.with_policy(|policy| {
        for rule in policy.rules(&context.user, namespace) {
            let value = serde_json::to_value(rule).unwrap_or_default();
            let list = if rule.non_resource_urls.is_empty() { &mut resources } else { &mut paths };
            if !list.contains(&value) {
                list.push(value);
            }
        }
    });
    // Who decides by object or outside has no rules that could be listed.
    let mut silent = Vec::new();
    if auth::node::identity(&context.user).is_some() {
        silent.push("node authorizer does not support user rule resolution");
    }
    if server.access.authorizer.asks_outside() {
        silent.push("webhook authorizer does not support user rule resolution");
    }
    let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": !silent.is_empty()});
    match silent.as_slice() {
        [] => {}
        [one] => status["evaluationError"] = (*one).into(),
        many => status["evaluationError"] = format!("[{}]", many.join(", ")).into(),
    }
    status
}
