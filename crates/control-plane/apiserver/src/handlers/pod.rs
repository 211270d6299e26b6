//! `binding`: puts a pod on a node.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use meta::{GroupResource, Status, time};
use serde_json::{Value, json};

use super::read_body;
use crate::Inner;
use crate::codec;
use crate::context::Context;
use crate::negotiate;
use crate::object::{self, Object, meta, scan, splice};
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
    let place = |pod: &Object| match placed(pod, &binding) {
        Some(bytes) => Ok(bytes),
        None => object::edited(pod, |pod| assign(target, pod, &binding)),
    };
    server.registry.rewrite(target, options.dry_run, place).await?;
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

/// What [`assign`] does in the usual case, in the pod's bytes: half of what a scheduler waits for would be the tree. `None` in all other cases.
fn placed(pod: &Object, binding: &Value) -> Option<Bytes> {
    let node = binding["target"]["name"].as_str()?;
    let (wanted, whole) = (meta(binding, "uid"), &pod.bytes[..]);
    let adds =
        ["annotations", "labels"].iter().any(|part| binding["metadata"][part].as_object().is_some_and(|entries| !entries.is_empty()));
    if adds
        || !meta(binding, "resourceVersion").is_empty()
        || !(wanted.is_empty() || wanted == pod.uid())
        || pod.metadata(&["deletionTimestamp"]).is_some()
    {
        return None;
    }
    let (spec, status) = (pod.member(&["spec"])?, pod.member(&["status"])?);
    if scan::find(spec, &["schedulingGates"]).is_some() || scan::find(status, &["nominatedNodeName"]).is_some() {
        return None;
    }
    let on_node = splice::member(whole, spec, "nodeName", &Value::from(node).to_string())?;
    let scheduled = scheduled(&time::now()).to_string();
    let told = match scan::find(status, &["conditions"]) {
        None => splice::member(whole, status, "conditions", &format!("[{scheduled}]"))?,
        Some(conditions) if memchr::memmem::find(conditions, b"\"PodScheduled\"").is_none() => splice::item(whole, conditions, &scheduled)?,
        Some(_) => return None,
    };
    if told.at < on_node.at {
        return None;
    }
    splice::apply(whole, &[on_node, told]).map(Bytes::from)
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

fn scheduled(now: &str) -> Value {
    json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now})
}

fn set_scheduled(pod: &mut Value) {
    let fresh = scheduled(&time::now());
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = pod["status"]["conditions"].as_array_mut() else { return };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::catalog;

    #[test]
    fn a_pod_placed_in_its_bytes_is_the_pod_placed_as_a_tree() {
        let kind = catalog::stored("", "pods").expect("pods");
        let target = Target { kind, namespace: "a", name: "p" };
        let statuses = [
            json!({"phase": "Pending", "qosClass": "BestEffort"}),
            json!({}),
            json!({"phase": "Pending", "conditions": [], "a": 1}),
            json!({"conditions": [{"type": "Other", "status": "False"}]}),
            json!({"nominatedNodeName": "n"}),
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}),
        ];
        let specs = [
            json!({"containers": [{"name": "c"}], "nodeSelector": {"a": "b"}}),
            json!({}),
            json!({"a": {}}),
            json!({"z": [], "nodeName": "taken"}),
            json!({"schedulingGates": [{"name": "g"}]}),
        ];
        let binding = |metadata: Value| json!({"metadata": metadata, "target": {"kind": "Node", "name": "n\"1"}});
        let bindings = [
            binding(json!({"name": "p"})),
            binding(json!({"uid": "1"})),
            binding(json!({"uid": "2"})),
            binding(json!({"resourceVersion": "6"})),
            binding(json!({"annotations": {"a": "b"}})),
        ];
        let mut in_bytes = 0;
        for ((status, spec), binding) in statuses
            .iter()
            .flat_map(|status| specs.iter().map(move |spec| (status, spec)))
            .flat_map(|both| bindings.iter().map(move |binding| (both, binding)))
        {
            let metadata = json!({"name": "p", "namespace": "a", "uid": "1", "labels": {"spec": "status"}});
            let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": status});
            let pod = Object::new(Bytes::from_static(b"/registry/pods/a/p"), object::encode(&pod), 7).expect("a pod");
            let tree = || object::edited(&pod, |pod| assign(target, pod, binding));
            let Some(bytes) = placed(&pod, binding) else { continue };
            // The clock may have gone on between the two.
            let timeless = |bytes: &Bytes| {
                Object::new(Bytes::new(), bytes.clone(), 7).map(|pod| {
                    let mut pod = pod.value();
                    pod["status"]["conditions"]
                        .as_array_mut()
                        .into_iter()
                        .flatten()
                        .for_each(|condition| condition["lastTransitionTime"] = Value::Null);
                    object::encode(&pod)
                })
            };
            assert_eq!(timeless(&bytes), timeless(&tree().expect("placed")), "{spec} {status} {binding}");
            assert_eq!(bytes.len(), tree().expect("placed").len());
            in_bytes += 1;
        }
        assert_eq!(in_bytes, 3 * 4 * 2, "plain specs, conditions without that one, nothing but a node");
    }
}
