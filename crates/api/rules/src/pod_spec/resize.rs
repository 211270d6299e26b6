//! In-place resize: what the `resize` subresource of a pod may change (KEP-1287; upstream: `ValidatePodResize`).

use meta::field::{Error, Path};
use meta::quantity;
use serde_json::Value;

use super::MIRROR;
use crate::checks::{Errors, any};
use crate::kinds::pod::qos_class;
use crate::value::{self, at, entries, has, keep, list, text};

/// `new` and `old` are whole pods.
pub fn validate(new: &Value, old: &Value) -> Errors {
    let root = Path::root();
    if at(old, "metadata.annotations").get(MIRROR).is_some() {
        return vec![Error::forbidden(&root, "static pods cannot be resized")];
    }
    if text(old, "spec.os.name") == "windows" {
        return vec![Error::forbidden(&root, "windows pods cannot be resized")];
    }
    let path = Path::new("spec");
    let mut errors = Errors::new();
    for kind in ["containers", "initContainers"] {
        if list(at(new, "spec"), kind).len() != list(at(old, "spec"), kind).len() {
            return vec![Error::forbidden(&path, "only cpu and memory resources are mutable")];
        }
    }
    let before = text(old, "status.qosClass");
    if qos_class(new) != if before.is_empty() { qos_class(old) } else { before } {
        errors.push(Error::invalid(&path, before, "Pod QOS Class may not change as a result of resizing"));
    }
    if !node_can(old) {
        errors.push(Error::forbidden(&path, "Pod running on node without support for resize"));
    }
    for (kind, sidecars_only) in [("initContainers", true), ("containers", false)] {
        let pairs = list(at(new, "spec"), kind).iter().zip(list(at(old, "spec"), kind)).enumerate();
        for (index, (new, old)) in pairs.filter(|(_, (_, old))| !sidecars_only || is_sidecar(old)) {
            errors.extend(nothing_removed(new, old, &path.child(kind).index(index).child("resources")));
        }
    }
    errors.extend(nothing_else(new, old, &path));
    errors
}

fn is_sidecar(container: &Value) -> bool {
    text(container, "restartPolicy") == "Always"
}

/// A kubelet that can resize reports the resources of running containers.
fn node_can(pod: &Value) -> bool {
    let running = list(pod, "status.containerStatuses").iter().find(|status| has(status, "state.running"));
    running.is_none_or(|status| has(status, "resources"))
}

fn nothing_removed(new: &Value, old: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (kind, sentence) in [("requests", "resource requests cannot be removed"), ("limits", "resource limits cannot be removed")] {
        let after = at(at(new, "resources"), kind);
        if entries(at(old, "resources"), kind).any(|(name, _)| after.get(name).is_none()) {
            errors.push(Error::forbidden(&path.child(kind), sentence));
        }
    }
    errors
}

/// Only cpu and memory of containers and sidecars are made equal; then the specs compared.
fn nothing_else(new: &Value, old: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let cases = [
        ("containers", "only cpu and memory resources are mutable"),
        ("initContainers", "only cpu and memory resources for sidecar containers are mutable"),
    ];
    for (kind, sentence) in cases {
        for (new, old) in list(at(new, "spec"), kind).iter().zip(list(at(old, "spec"), kind)) {
            if kind == "initContainers" && !is_sidecar(new) {
                if !value::same(new, old) {
                    errors.push(Error::forbidden(path, "resources for non-sidecar init containers are immutable"));
                }
            } else if !value::same(&without_cpu_and_memory(new), &without_cpu_and_memory(old)) {
                errors.push(Error::forbidden(path, sentence));
            }
        }
    }
    if errors.is_empty() {
        let mut munged = at(new, "spec").clone();
        for field in ["containers", "initContainers"] {
            keep(&mut munged, at(old, "spec"), field);
        }
        let pod_level = |pod: &Value| {
            let mut spec = serde_json::json!({"resources": at(pod, "spec.resources")});
            spec = without_cpu_and_memory(&spec);
            spec
        };
        if value::same(&pod_level(new), &pod_level(old)) {
            keep(&mut munged, at(old, "spec"), "resources");
        }
        if !value::same(&munged, at(old, "spec")) {
            errors.push(Error::forbidden(path, "only cpu and memory resources are mutable"));
        }
    }
    errors
}

fn without_cpu_and_memory(container: &Value) -> Value {
    let mut copy = container.clone();
    for kind in ["requests", "limits"] {
        for name in ["cpu", "memory"] {
            value::remove(&mut copy, &format!("resources.{kind}.{name}"));
        }
        if !any(at(at(&copy, "resources"), kind)) {
            value::remove(&mut copy, &format!("resources.{kind}"));
        }
        // The same amount written another way is no change.
        if let Some(amounts) = value::sub(&mut copy, &format!("resources.{kind}")).and_then(Value::as_object_mut) {
            for amount in amounts.values_mut() {
                if let Some(printed) = quantity::canonical(amount) {
                    *amount = printed.into();
                }
            }
        }
    }
    value::remove(&mut copy, "resizePolicy");
    copy
}

/// Takes from a write to `resize` only what it is about: resources and resize policies of the same containers, and the pod's own
/// resources (upstream: `dropNonResizeUpdates`).
pub fn prepare(new: &mut Value, old: &Value) {
    let same_names = ["containers", "initContainers"].into_iter().all(|kind| {
        let names = |pod: &Value| -> Vec<String> {
            list(at(pod, "spec"), kind).iter().map(|container| text(container, "name").to_owned()).collect()
        };
        names(new) == names(old)
    });
    if !same_names {
        return;
    }
    let wanted = at(new, "spec").clone();
    keep(new, old, "spec");
    keep(new, old, "status");
    for kind in ["containers", "initContainers"] {
        for (container, wanted) in value::items_mut(new, &format!("spec.{kind}")).zip(list(&wanted, kind)) {
            keep(container, wanted, "resources");
            keep(container, wanted, "resizePolicy");
        }
    }
    keep(new, &serde_json::json!({"spec": {"resources": at(&wanted, "resources")}}), "spec.resources");
}
