//! `POST …/pods/x/eviction`: a deletion that the pod's disruption budget allows (KEP-85, KEP-3017).

use std::sync::Arc;

use http::{Request, Response};
use meta::selector::LabelSelector;
use meta::status::Cause;
use meta::{Status, time};
use serde_json::{Value, json};

use super::read_body;
use crate::Inner;
use crate::codec;
use crate::context::Context;
use crate::negotiate;
use crate::object::meta;
use crate::registry::deletion::{self, Options};
use crate::registry::{Target, admit, catalog};
use crate::reply::{self, Body};
use crate::views;

/// Evictions that a budget's controller has not yet seen; more are refused until it has.
const DISRUPTED_PODS_MAX: usize = 2000;
/// How often a deletion is tried again on a newer state of the pod.
const TRIES: usize = 20;
/// When a client should ask again while the budget's own state is behind, in seconds.
const RETRY_AFTER_SECONDS: u32 = 10;

pub async fn evict(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let media = negotiate::body_media(&context.headers, true)?;
    let bytes = read_body(request).await?;
    let schema = super::pod::table_type("policy", "v1", "Eviction")?;
    let eviction = codec::other_of(context, schema, &["policy/v1", "policy/v1beta1"], "Eviction", &bytes, media)?;
    if meta(&eviction, "name") != target.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options = Options::parse(&eviction["deleteOptions"], context)?;
    server.registry.judge(context, target, admit::Operation::Create, Some(&eviction), None, options.dry_run).await?;
    options.admitted = true;
    if let Some(pod) = delete_unguarded(server, context, target, &options).await? {
        delete_guarded(server, context, target, &pod, options).await?;
    }
    let success = Status { status: "Success".into(), code: 201, ..Status::failure(201, "", "") };
    Ok(reply::status(&success, format))
}

/// Deletes a pod that serves nobody. Returns the pod where a budget has to be asked first.
async fn delete_unguarded(server: &Inner, context: &Context, target: Target<'_>, options: &Options) -> Result<Option<Value>, Status> {
    let mut conflict = None;
    for _ in 0..TRIES {
        let pod = server.registry.get(target).await?.value();
        let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) || !meta(&pod, "deletionTimestamp").is_empty();
        if !ended && pod["status"]["phase"] != "Pending" {
            return Ok(Some(pod));
        }
        let mut these = options.clone();
        if !ended {
            // It may become ready in between, and would then count.
            these.resource_version.get_or_insert_with(|| meta(&pod, "resourceVersion").to_owned());
        }
        match mark_and_delete(server, context, target, these).await {
            Err(status) if status.is("Conflict") && options.resource_version.is_none() => conflict = Some(status),
            other => return other.map(|_| None),
        }
    }
    Err(conflict.unwrap_or_else(|| target.stale()))
}

/// Deletes a pod that may serve, at its budget's cost.
async fn delete_guarded(server: &Inner, context: &Context, target: Target<'_>, pod: &Value, mut options: Options) -> Result<(), Status> {
    let Some(budget) = budget_of(server, target, pod).await? else {
        return mark_and_delete(server, context, target, options).await;
    };
    if costs_nothing(&budget, pod) {
        let ours = options.resource_version.is_none();
        options.resource_version.get_or_insert_with(|| meta(pod, "resourceVersion").to_owned());
        return match mark_and_delete(server, context, target, options).await {
            Err(status) if status.is("Conflict") && ours => Err(behind(meta(&budget, "name"))),
            other => other,
        };
    }
    spend(server, target, meta(&budget, "name"), options.dry_run).await?;
    // Only the very pod that the budget was spent for may go.
    options.uid.get_or_insert_with(|| meta(pod, "uid").to_owned());
    mark_and_delete(server, context, target, options).await
}

/// The pod says why it goes, then goes (KEP-3329).
async fn mark_and_delete(server: &Inner, context: &Context, target: Target<'_>, mut options: Options) -> Result<(), Status> {
    if !options.dry_run {
        let mark = |pod: &mut Value| {
            deletion::check(target, pod, &options)?;
            let why = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"});
            set_condition(pod, why, &["lastProbeTime"]);
            Ok(())
        };
        let marked = server.registry.modify(target, false, mark).await?;
        if options.resource_version.is_some() {
            options.resource_version = Some(marked.revision.to_string());
        }
    }
    server.registry.delete(context, target, &options).await.map(drop)
}

/// Puts a condition into the object's status; the time of its last transition stays where its status stays. `nulls` are written as Go
/// writes what it never omits.
fn set_condition(object: &mut Value, mut fresh: Value, nulls: &[&str]) {
    fresh["lastTransitionTime"] = time::now().into();
    nulls.iter().for_each(|name| fresh[*name] = Value::Null);
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = object["status"]["conditions"].as_array_mut() else { return };
    match conditions.iter_mut().find(|condition| condition["type"] == fresh["type"]) {
        Some(condition) => {
            if condition["status"] == fresh["status"] {
                fresh["lastTransitionTime"] = condition["lastTransitionTime"].take();
            }
            *condition = fresh;
        }
        None => conditions.push(fresh),
    }
}

/// The one budget that covers the pod, by the newest state of all.
async fn budget_of(server: &Inner, target: Target<'_>, pod: &Value) -> Result<Option<Value>, Status> {
    let Some(kind) = catalog::stored("policy", "poddisruptionbudgets") else { return Ok(None) };
    super::read::reach(server, server.registry.store.revision()).await?;
    let selection = crate::selection::Selection::all(kind.prefix(target.namespace), kind.storage.rules.clone());
    let page = server.registry.caches.of(kind.storage.prefix.as_bytes()).list(&selection.prefix, b"", 0, &selection, 0);
    let mut covering = page.objects.iter().map(|object| views::served(kind, object)).filter(|budget| covers(budget, pod));
    match (covering.next(), covering.next()) {
        (budget, None) => Ok(budget),
        _ => {
            let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            Err(Status::failure(500, "", message))
        }
    }
}

fn covers(budget: &Value, pod: &Value) -> bool {
    LabelSelector::from_object(&budget["spec"]["selector"]).is_ok_and(|selector| selector.matches_object(&pod["metadata"]["labels"]))
}

/// A pod that is not ready is no loss where the budget says so, or while enough others are ready.
fn costs_nothing(budget: &Value, pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    let (healthy, wanted) = (number(budget, "currentHealthy"), number(budget, "desiredHealthy"));
    !ready && (budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" || (healthy >= wanted && wanted > 0))
}

fn number(budget: &Value, field: &str) -> i64 {
    budget["status"][field].as_i64().unwrap_or(0)
}

/// Takes one disruption from the budget and notes the pod, which its controller then no longer counts.
async fn spend(server: &Inner, target: Target<'_>, name: &str, dry_run: bool) -> Result<(), Status> {
    let Some(kind) = catalog::stored("policy", "poddisruptionbudgets") else { return Ok(()) };
    let take = |budget: &mut Value| {
        let forbidden = |why: &str| Err(Status::forbidden(&kind.group_resource(), name, why));
        if budget["status"]["observedGeneration"].as_i64() < budget["metadata"]["generation"].as_i64() {
            return Err(behind(name));
        }
        let allowed = number(budget, "disruptionsAllowed");
        if allowed < 0 {
            return forbidden("pdb disruptions allowed is negative");
        }
        if budget["status"]["disruptedPods"].as_object().is_some_and(|pods| pods.len() > DISRUPTED_PODS_MAX) {
            return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
        }
        if allowed == 0 {
            return Err(refused(0, exhausted(budget)));
        }
        budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
        if allowed == 1 {
            exhaust(budget);
        }
        budget["status"]["disruptedPods"][target.name] = time::now().into();
        Ok(())
    };
    server.registry.modify(Target { kind, namespace: target.namespace, name }, dry_run, take).await.map(drop)
}

/// The condition of a budget that allows no further disruption.
fn exhaust(budget: &mut Value) {
    let mut fresh = json!({"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": ""});
    fresh["observedGeneration"] = budget["status"]["observedGeneration"].clone();
    set_condition(budget, fresh, &[]);
}

/// Why a budget that is used up refuses.
fn exhausted(budget: &Value) -> String {
    let name = meta(budget, "name");
    let (wanted, healthy) = (number(budget, "desiredHealthy"), number(budget, "currentHealthy"));
    let conditions = budget["status"]["conditions"].as_array().into_iter().flatten();
    let said = |condition: &&Value| condition["type"] == "DisruptionAllowed" && condition["status"] == "False";
    let said = conditions.into_iter().find(said).map(|condition| {
        let text = |field: &str| condition[field].as_str().unwrap_or_default();
        (text("reason"), text("message"))
    });
    match said.filter(|(_, message)| !message.is_empty()) {
        Some(("SyncFailed", why)) => {
            format!("The disruption budget {name} does not allow evicting pods currently because it failed sync: {why}")
        }
        _ if healthy <= wanted => format!("The disruption budget {name} needs {wanted} healthy pods and has {healthy} currently"),
        Some((reason, why)) => format!("The disruption budget {name} does not allow evicting pods currently ({reason}): {why}"),
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
}

/// The budget's state is older than what it would have to say.
fn behind(budget: &str) -> Status {
    refused(RETRY_AFTER_SECONDS, format!("The disruption budget {budget} is still being processed by the server."))
}

fn refused(retry_after_seconds: u32, why: String) -> Status {
    let mut status = Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", retry_after_seconds);
    let cause = Cause { reason: "DisruptionBudget".into(), message: why, ..Cause::default() };
    status.details.get_or_insert_default().causes.push(cause);
    status
}
