//! What groups of pods and the templates of such groups share (scheduling.k8s.io, KEP-4671).
//!
//! Source: the declarative markers of `k8s.io/api/scheduling/v1beta1` and upstream's `pkg/apis/scheduling/validation`.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, at_least, at_most, fixed, formed, label_name, required, required_formed, supported, union_of};
use crate::devices::{each, each_once};
use crate::value::{at, has, text};

/// The highest priority that users may give.
const PRIORITY_MAX: i64 = 1_000_000_000;

/// Whether a group holds pods or other groups: the second has no claims of devices, and its gang counts groups.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Members {
    Pods,
    Groups,
}

impl Members {
    fn minimum(self) -> &'static str {
        match self {
            Members::Pods => "minCount",
            Members::Groups => "minGroupCount",
        }
    }
}

/// What groups and their templates have in common.
pub fn validate(group: &Value, path: &Path, members: Members) -> Errors {
    let mut errors = policy(at(group, "schedulingPolicy"), &path.child("schedulingPolicy"), members);
    let constraints = at(group, "schedulingConstraints");
    errors.extend(each(constraints, &path.child("schedulingConstraints"), "topology", 1, |constraint, path| {
        let mut errors = required(constraint, path, "key");
        if errors.is_empty() {
            errors.extend(label_name(text(constraint, "key"), &path.child("key")));
        }
        errors
    }));
    if members == Members::Pods {
        errors.extend(each_once(group, path, "resourceClaims", 4, "name", claim));
    }
    if has(group, "disruptionMode") {
        errors.extend(union_of(at(group, "disruptionMode"), &path.child("disruptionMode"), &["single", "all"]));
    }
    errors.extend(formed(group, path, "priorityClassName", names::dns1123_subdomain));
    errors.extend(at_most(group, path, "priority", PRIORITY_MAX));
    errors.extend(supported(group, path, "preemptionPolicy", &["Never", "PreemptLowerPriority"]));
    errors
}

fn policy(policy: &Value, path: &Path, members: Members) -> Errors {
    let mut errors = union_of(policy, path, &["basic", "gang"]);
    if has(policy, "gang") {
        let (gang, path) = (at(policy, "gang"), path.child("gang"));
        errors.extend(match at(gang, members.minimum()).as_i64() {
            None | Some(0) => vec![Error::required(&path.child(members.minimum()), "")],
            Some(_) => at_least(gang, &path, members.minimum(), 1),
        });
    }
    errors
}

fn claim(claim: &Value, path: &Path) -> Errors {
    let mut errors = required_formed(claim, path, "name", names::dns1123_label);
    errors.extend(union_of(claim, path, &["resourceClaimName", "resourceClaimTemplateName"]));
    errors.extend(formed(claim, path, "resourceClaimName", names::dns1123_subdomain));
    errors.extend(formed(claim, path, "resourceClaimTemplateName", names::dns1123_subdomain));
    errors
}

/// Of a group nothing may change but how many a gang needs; of templates likewise.
pub fn validate_update(new: &Value, old: &Value, path: &Path, members: Members) -> Errors {
    let fields = ["schedulingConstraints", "resourceClaims", "disruptionMode", "priorityClassName", "priority", "preemptionPolicy"];
    let mut errors = policy_update(at(new, "schedulingPolicy"), at(old, "schedulingPolicy"), &path.child("schedulingPolicy"));
    let kept = fields.into_iter().filter(|field| members == Members::Pods || *field != "resourceClaims");
    errors.extend(kept.flat_map(|field| fixed(&path.child(field), at(new, field), at(old, field))));
    errors
}

fn policy_update(new: &Value, old: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if has(new, "basic") != has(old, "basic") {
        errors.push(Error::invalid(&path.child("basic"), Value::Null, "field is immutable"));
    }
    match (has(old, "gang"), has(new, "gang")) {
        (false, true) => errors.push(Error::invalid(&path.child("gang"), Value::Null, "field cannot be set once created")),
        (true, false) => errors.push(Error::invalid(&path.child("gang"), Value::Null, "field cannot be cleared once set")),
        _ => {}
    }
    errors
}

/// The Workload and the template in it that a group was made from.
pub fn workload_reference(spec: &Value, path: &Path) -> Errors {
    let (reference, path) = (at(spec, "workloadRef"), path.child("workloadRef"));
    let mut errors = required_formed(reference, &path, "workloadName", names::dns1123_subdomain);
    errors.extend(required_formed(reference, &path, "templateName", names::dns1123_label));
    errors
}
