//! Subresources of pods that change state without being an update: `binding` and `eviction`.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use meta::selector::LabelSelector;
use meta::status::Cause;
use meta::{GroupResource, Status, time};
use serde_json::{Value, json};

use super::read_body;
use crate::Inner;
use crate::context::Context;
use crate::negotiate;
use crate::object::meta;
use crate::registry::deletion::Options;
use crate::registry::{Target, admit, catalog};
use crate::reply::{self, Body};
use crate::{codec, views};

fn table_type(group: &str, version: &str, kind: &str) -> Result<&'static schema::model::Type, Status> {
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
    let (wanted, uid) = (meta(binding, "uid"), meta(pod, "uid"));
    if !wanted.is_empty() && wanted != uid {
        return conflict(format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"));
    }
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

/// `POST …/pods/x/eviction`: a deletion that the pod's disruption budget allows (KEP-85).
pub async fn evict(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let media = negotiate::body_media(&context.headers, true)?;
    let bytes = read_body(request).await?;
    let eviction = codec::other(context, table_type("policy", "v1", "Eviction")?, "policy/v1", "Eviction", &bytes, media)?;
    if !meta(&eviction, "name").is_empty() && meta(&eviction, "name") != target.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options = Options::parse(&eviction["deleteOptions"], context)?;
    server.registry.judge(context, target, admit::Operation::Create, Some(&eviction), None, options.dry_run).await?;
    options.admitted = true;
    let pod = server.registry.get(target).await?.value();
    if !needs_no_budget(&pod) {
        let resource_version = spend_budget(server, target, &pod, options.dry_run).await?;
        // Only the very pod that the budget was spent for may go.
        options.uid = options.uid.or_else(|| resource_version.then(|| meta(&pod, "uid").to_owned()));
    }
    server.registry.delete(context, target, &options).await?;
    let success = Status { status: "Success".into(), code: 201, ..Status::failure(201, "", "") };
    Ok(reply::status(&success, format))
}

/// Pods that serve nobody may always go.
fn needs_no_budget(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending")) || !meta(pod, "deletionTimestamp").is_empty()
}

/// Takes one disruption from the budget of the pod. `true` when there is one.
async fn spend_budget(server: &Inner, target: Target<'_>, pod: &Value, dry_run: bool) -> Result<bool, Status> {
    let Some(kind) = catalog::stored("policy", "poddisruptionbudgets") else {
        return Ok(false);
    };
    let selection = crate::selection::Selection::all(kind.prefix(target.namespace), kind.storage.rules.clone());
    let cache = server.registry.caches.of(kind.storage.prefix.as_bytes());
    let page = cache.list(&selection.prefix, b"", 0, &selection, 0);
    let budgets: Vec<Value> = page.objects.iter().map(|object| views::served(kind, object)).filter(|budget| covers(budget, pod)).collect();
    let budget = match budgets.as_slice() {
        [] => return Ok(false),
        [budget] => budget,
        _ => {
            let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::failure(500, "InternalError", message));
        }
    };
    let name = meta(budget, "name");
    let spend = |budget: &mut Value| {
        if budget["status"]["observedGeneration"].as_i64() < budget["metadata"]["generation"].as_i64() {
            return Err(refused(name, "The disruption budget does not reflect its latest specification yet."));
        }
        let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
        let (allowed, wanted, healthy) = (number("disruptionsAllowed"), number("desiredHealthy"), number("currentHealthy"));
        // A pod that is not ready is no loss while enough others are (KEP-3017).
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        if !is_ready(pod) && (always || (healthy >= wanted && wanted > 0)) {
            return Ok(());
        }
        if allowed < 1 {
            return Err(refused(name, &format!("The disruption budget {name} needs {wanted} healthy pods and has {healthy} currently")));
        }
        budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
        budget["status"]["disruptedPods"][target.name] = time::now().into();
        Ok(())
    };
    server.registry.modify(Target { kind, namespace: target.namespace, name }, dry_run, spend).await?;
    Ok(true)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn covers(budget: &Value, pod: &Value) -> bool {
    LabelSelector::from_object(&budget["spec"]["selector"]).is_ok_and(|selector| selector.matches_object(&pod["metadata"]["labels"]))
}

fn refused(_budget: &str, why: &str) -> Status {
    let mut status = Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 0);
    let cause = Cause { reason: "DisruptionBudget".into(), message: why.into(), ..Cause::default() };
    status.details.get_or_insert_default().causes.push(cause);
    status
}

/// 201 with a tree.
pub fn created(value: &Value, format: negotiate::Format) -> Response<Body> {
    reply::value(StatusCode::CREATED, value, format)
}
