//! `binding`: puts a pod on a node.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use meta::{GroupResource, Status, time};
use serde_json::{Value, json};

use super::read_body;
use crate::Inner;
use crate::codec;
use crate::context::Context;
use crate::negotiate;
use crate::object::meta;
use crate::registry::{Target, admit, catalog, deletion};
use crate::reply::{self, Body};

pub fn table_type(group: &str, version: &str, kind: &str) -> Result<&'static schema::model::Type, Status> {
    schema::table::by_gvk(group, version, kind).ok_or_else(|| Status::internal(format!("{kind} is not in the table")))
}

/// `POST …/pods/x/binding` and the older `POST …/bindings`: puts the pod on a node.
pub async fn bind(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let options = context.write_options()?;
    let media = negotiate::body_media(&context.headers, true)?;
    let bytes = read_body(request).await?;
    let binding = codec::other(context, table_type("", "v1", "Binding")?, "v1", "Binding", &bytes, media)?;
    let kind = catalog::stored("", "pods").ok_or_else(|| Status::internal("pods are not served"))?;
    let name = if target.name.is_empty() { meta(&binding, "name").to_owned() } else { target.name.to_owned() };
    let target = Target { kind, namespace: target.namespace, name: &name };
    if !meta(&binding, "name").is_empty() && meta(&binding, "name") != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    check_target(target, &binding)?;
    let binding = server.registry.admit(context, target, admit::Operation::Create, binding, options.dry_run).await?;
    server.registry.modify(target, options.dry_run, |pod| assign(target, pod, &binding)).await?;
    let success = Status { status: "Success".into(), code: 201, ..Status::failure(201, "", "") };
    Ok(reply::status(&success, format))
}

fn check_target(target: Target<'_>, binding: &Value) -> Result<(), Status> {
    let path = meta::field::Path::new("target");
    let (kind, node) = (binding["target"]["kind"].as_str().unwrap_or_default(), binding["target"]["name"].as_str().unwrap_or_default());
    let mut errors = Vec::new();
    if !matches!(kind, "" | "Node") {
        errors.push(meta::field::Error::not_supported(&path.child("kind"), kind, &["Node", "<empty>"]));
    }
    if node.is_empty() {
        errors.push(meta::field::Error::required(&path.child("name"), ""));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "Binding", target.name, &errors)) }
}

fn assign(target: Target<'_>, pod: &mut Value, binding: &Value) -> Result<(), Status> {
    let (name, node) = (target.name, binding["target"]["name"].as_str().unwrap_or_default());
    let resource = GroupResource { group: String::new(), resource: "pods/binding".into() };
    let conflict = |why: String| Err(Status::conflict(&resource, name, &why));
    let wanted = |name: &str| Some(meta(binding, name)).filter(|value| !value.is_empty());
    deletion::check_stored(target, pod, wanted("uid"), wanted("resourceVersion"))?;
    if !meta(pod, "deletionTimestamp").is_empty() {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if let Some(taken) = pod["spec"]["nodeName"].as_str().filter(|taken| !taken.is_empty()) {
        return conflict(format!("pod {name} is already assigned to node {taken:?}"));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    pod["spec"]["nodeName"] = node.into();
    // What was hoped for would mislead others now.
    pod["status"].as_object_mut().and_then(|status| status.remove("nominatedNodeName"));
    for part in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][part].as_object().into_iter().flatten() {
            pod["metadata"][part][key] = value.clone();
        }
    }
    set_scheduled(pod);
    Ok(())
}

fn set_scheduled(pod: &mut Value) {
    let now = time::now();
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = pod["status"]["conditions"].as_array_mut() else { return };
    let fresh = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    match conditions.iter_mut().find(|condition| condition["type"] == "PodScheduled") {
        Some(condition) if condition["status"] == "True" => {}
        Some(condition) => *condition = fresh,
        None => conditions.push(fresh),
    }
}

/// 201 with a tree.
pub fn created(value: &Value, format: negotiate::Format) -> Response<Body> {
    reply::value(StatusCode::CREATED, value, format)
}
