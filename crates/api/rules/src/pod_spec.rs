//! What every pod has in common, alone or in a template: defaults in [`defaults`]; validation of the spec here, of its containers in
//! [`containers`], volumes in [`volumes`], security contexts in [`security`], place in the network in [`network`], wishes to the
//! scheduler in [`scheduling`]; which fields of a pod may still change in [`update`] and [`resize`]; what is allowed but most likely
//! not meant in [`warnings`].
//!
//! Source: upstream `pkg/apis/core/v1/defaults.go` and `pkg/apis/core/validation/validation.go`. The order of the checks is upstream's:
//! clients show the complaints in the order in which they come.

pub mod containers;
pub mod defaults;
pub mod network;
pub mod resize;
pub mod scheduling;
pub mod security;
pub mod update;
pub mod volumes;
pub mod warnings;

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, formed, labels, one_of, sentences};
use crate::value::{at, has, int, list, text};
use crate::{metadata, resources};

/// What the parts of a spec need to know of each other.
pub struct Context<'a> {
    /// A pod itself, not a template.
    pub is_pod: bool,
    /// The pod's name; empty in a template.
    pub name: &'a str,
    pub grace_seconds: Option<i64>,
    pub restart_policy: &'a str,
    pub host_users: bool,
    /// The valid volumes.
    pub volumes: volumes::Known<'a>,
    /// The names of the pod's resource claims.
    pub claims: BTreeSet<&'a str>,
}

impl<'a> Context<'a> {
    fn of(spec: &'a Value, name: &'a str, is_pod: bool) -> Self {
        let claims = list(spec, "resourceClaims").iter().map(|claim| text(claim, "name"));
        Self {
            is_pod,
            name,
            grace_seconds: int(spec, "terminationGracePeriodSeconds"),
            restart_policy: text(spec, "restartPolicy"),
            host_users: at(spec, "hostUsers").as_bool() != Some(false),
            volumes: volumes::Known::default(),
            claims: claims.filter(|name| !name.is_empty()).collect(),
        }
    }
}

/// A pod: annotations and spec.
pub fn validate_pod(pod: &Value) -> Errors {
    let (meta, spec, path) = (at(pod, "metadata"), at(pod, "spec"), Path::new("spec"));
    let mut errors = annotations(meta, spec, &Path::new("metadata").child("annotations"));
    errors.extend(validate(spec, Context::of(spec, text(meta, "name"), true), &path));
    if text(spec, "serviceAccountName").is_empty() {
        for (index, volume) in list(spec, "volumes").iter().enumerate() {
            for (source, part) in list(volume, "projected.sources").iter().enumerate() {
                if has(part, "serviceAccountToken") {
                    let here = path.child("volumes").index(index).dotted("projected.sources").index(source).child("serviceAccountToken");
                    errors.push(Error::forbidden(&here, "must not be specified when serviceAccountName is not set"));
                }
            }
        }
    }
    errors.extend(containers::only_of_pods(spec, &path));
    errors
}

/// What holds for a pod at its creation alone.
pub fn validate_new_pod(pod: &Value) -> Errors {
    let (spec, path) = (at(pod, "spec"), Path::new("spec"));
    let mut errors = Errors::new();
    if !list(spec, "ephemeralContainers").is_empty() {
        errors.push(Error::forbidden(&path.child("ephemeralContainers"), "cannot be set on create"));
    }
    if !text(spec, "nodeName").is_empty() && !list(spec, "schedulingGates").is_empty() {
        errors.push(Error::forbidden(&path.child("nodeName"), "cannot be set until all schedulingGates have been cleared"));
    }
    errors.extend(security::annotations_match_fields(at(pod, "metadata"), spec, &path));
    errors
}

/// A pod template (`spec.template`): its metadata and its spec.
pub fn validate_template(template: &Value, path: &Path) -> Errors {
    let (meta, spec, inner) = (at(template, "metadata"), at(template, "spec"), path.child("spec"));
    let mut errors = labels(at(meta, "labels"), &path.child("labels"));
    errors.extend(metadata::annotations(meta, &path.child("annotations")));
    errors.extend(annotations(meta, spec, &path.child("annotations")));
    errors.extend(validate(spec, Context::of(spec, "", false), &inner));
    errors.extend(security::annotations_match_fields(meta, spec, &inner));
    if !list(spec, "ephemeralContainers").is_empty() {
        errors.push(Error::forbidden(&inner.child("ephemeralContainers"), "ephemeral containers not allowed in pod template"));
    }
    errors
}

fn validate<'a>(spec: &'a Value, mut context: Context<'a>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if context.grace_seconds.is_none() {
        errors.push(Error::required(&path.child("terminationGracePeriodSeconds"), ""));
    }
    let (volumes, complaints) = volumes::validate(spec, &context, &path.child("volumes"));
    context.volumes = volumes;
    errors.extend(complaints);
    errors.extend(resource_claims(list(spec, "resourceClaims"), &path.child("resourceClaims")));
    errors.extend(containers::validate(spec, &context, path));
    errors.extend(resources::of_pod(spec, &path.child("resources")));
    errors.extend(network::host_network_ports(spec, &context, path));
    errors.extend(one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"]));
    errors.extend(one_of(spec, path, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]));
    errors.extend(labels(at(spec, "nodeSelector"), &path.child("nodeSelector")));
    errors.extend(security::of_pod(spec, path));
    errors.extend(image_pull_secrets(spec, path));
    errors.extend(scheduling::affinity(at(spec, "affinity"), &path.child("affinity")));
    errors.extend(network::dns_config(spec, path));
    errors.extend(scheduling::gates(spec, path));
    errors.extend(scheduling::spread(list(spec, "topologySpreadConstraints"), &path.child("topologySpreadConstraints")));
    errors.extend(security::host_users(spec, path));
    errors.extend(small_fields(spec, path));
    errors.extend(security::operating_system(spec, path));
    errors
}

/// Names of other objects and of hosts, numbers, and the lists of the last lines of upstream's `ValidatePodSpec`.
fn small_fields(spec: &Value, path: &Path) -> Errors {
    let mut errors = formed(spec, path, "serviceAccountName", names::dns1123_subdomain);
    errors.extend(formed(spec, path, "nodeName", names::dns1123_subdomain));
    if let Some(seconds) = int(spec, "activeDeadlineSeconds") {
        errors.extend(sentences(&path.child("activeDeadlineSeconds"), seconds, names::in_range(seconds, 1, i32::MAX.into())));
    }
    errors.extend(formed(spec, path, "hostname", names::dns1123_label));
    errors.extend(formed(spec, path, "subdomain", names::dns1123_label));
    errors.extend(scheduling::tolerations(list(spec, "tolerations"), &path.child("tolerations")));
    errors.extend(network::host_aliases(spec, path));
    errors.extend(formed(spec, path, "priorityClassName", names::dns1123_subdomain));
    if let Some(name) = at(spec, "runtimeClassName").as_str() {
        errors.extend(sentences(&path.child("runtimeClassName"), name, names::dns1123_subdomain(name)));
    }
    if has(spec, "preemptionPolicy") {
        errors.extend(one_of(spec, path, "preemptionPolicy", &["PreemptLowerPriority", "Never"]));
    }
    if has(spec, "overhead") {
        let limits = serde_json::json!({"limits": at(spec, "overhead")});
        errors.extend(resources::of_container(&limits, &BTreeSet::new(), &path.child("overhead")));
    }
    errors.extend(network::hostname_override(spec, path));
    errors
}

/// Annotations that mean something to pods.
fn annotations(meta: &Value, spec: &Value, path: &Path) -> Errors {
    let annotation = |key: &str| at(meta, "annotations").get(key).and_then(Value::as_str);
    let mut errors = Errors::new();
    if at(meta, "annotations").is_null() {
        return errors;
    }
    if let Some(mirror) = annotation(MIRROR).filter(|_| text(spec, "nodeName").is_empty()) {
        errors.push(Error::invalid(&path.key(MIRROR), mirror, "must set spec.nodeName if mirror pod annotation is set"));
    }
    let cost = "controller.kubernetes.io/pod-deletion-cost";
    if let Some(given) = annotation(cost) {
        let plain = given == "0" || given.starts_with('-') || !given.starts_with(['0', '+']);
        if !plain || given.parse::<i32>().is_err() {
            errors.push(Error::invalid(&path.key(cost), given, "must be a 32bit integer"));
        }
    }
    errors.extend(security::annotations(meta, spec, path));
    errors
}

/// Marks the API's copy of a static pod.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

fn image_pull_secrets(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if secret.as_object().is_some_and(|secret| secret.keys().any(|key| key != "name")) {
            let sentence = "only name may be set";
            errors.push(Error::invalid(&path.child("imagePullSecrets").index(index), secret.clone(), sentence));
        }
    }
    errors
}

fn resource_claims(claims: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, claim) in claims.iter().enumerate() {
        let here = path.index(index);
        match text(claim, "name") {
            "" => errors.push(Error::required(&here.child("name"), "")),
            name if !seen.insert(name) => errors.push(Error::duplicate(&here.child("name"), name)),
            name => errors.extend(sentences(&here.child("name"), name, names::dns1123_label(name))),
        }
        let fields = ["resourceClaimName", "resourceClaimTemplateName"];
        match fields.iter().filter(|field| has(claim, field)).count() {
            0 => {
                let sentence = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.push(Error::invalid(&here, claim.clone(), sentence));
            }
            1 => {}
            _ => {
                let sentence = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.push(Error::invalid(&here, claim.clone(), sentence));
            }
        }
        for field in fields {
            if let Some(name) = at(claim, field).as_str() {
                errors.extend(sentences(&here.child(field), name, names::dns1123_subdomain(name)));
            }
        }
    }
    errors
}
