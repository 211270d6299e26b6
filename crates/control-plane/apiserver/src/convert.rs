//! Kinds that are served in another version than they are stored in.
//!
//! Most versions of a kind have the same fields: only `apiVersion` changes, and fields that the served version lacks are left out. What
//! differs more has a file here. Conversions never fail: what one version cannot say is kept in annotations, as upstream does.

mod autoscaling;
mod events;
mod resource;

use serde_json::Value;

use crate::registry::catalog::Kind;

/// Brings a served object into the stored version.
pub fn to_storage(kind: &Kind, mut object: Value) -> Value {
    match (kind.facts.group, kind.facts.version) {
        ("events.k8s.io", _) => events::to_core(&mut object),
        ("autoscaling", "v1") => autoscaling::to_v2(&mut object),
        ("resource.k8s.io", "v1beta1") => resource::to_v1(kind.facts.kind, &mut object),
        _ => {}
    }
    retype(object, kind.storage.api_version())
}

/// Brings a stored object into the served version.
pub fn from_storage(kind: &Kind, mut object: Value) -> Value {
    match (kind.facts.group, kind.facts.version) {
        ("events.k8s.io", _) => events::from_core(&mut object),
        ("autoscaling", "v1") => autoscaling::to_v1(&mut object),
        ("resource.k8s.io", "v1beta1") => resource::to_v1beta1(kind.facts.kind, &mut object),
        ("certificates.k8s.io", "v1") if kind.facts.kind == "PodCertificateRequest" => leave_out(&mut object, "spec", &V1BETA1_PROOF),
        _ => {}
    }
    retype(object, kind.api_version())
}

/// How a PodCertificateRequest proved its key before it carried a whole signing request.
const V1BETA1_PROOF: [&str; 2] = ["pkixPublicKey", "proofOfPossession"];

fn retype(mut object: Value, api_version: String) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.insert("apiVersion".into(), api_version.into());
    }
    object
}

fn leave_out(object: &mut Value, part: &str, fields: &[&str]) {
    if let Some(members) = object.get_mut(part).and_then(Value::as_object_mut) {
        members.retain(|name, _| !fields.contains(&name.as_str()));
    }
}

#[cfg(test)]
mod tests;
