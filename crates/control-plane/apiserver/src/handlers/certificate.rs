//! What is special about CertificateSigningRequests: who asks is written by the server, and who is allowed to decide decides alone.
//!
//! Source: `pkg/registry/certificates/certificates/strategy.go`.

use auth::csr::Request;
use meta::{Status, field};
use serde_json::Value;

use crate::context::Context;
use crate::registry::catalog::Kind;

fn is_request(kind: &Kind) -> bool {
    kind.facts.plural == "certificatesigningrequests" && kind.facts.group == "certificates.k8s.io"
}

/// What a kubelet wrote for a pod must be a request that its own key has signed.
fn check_stub(kind: &Kind, object: &Value) -> Result<(), Status> {
    use base64::Engine;
    let given = object["spec"]["stubPKCS10Request"].as_str().unwrap_or_default();
    let der = base64::engine::general_purpose::STANDARD.decode(given).unwrap_or_default();
    Request::parse_der(&der).map(drop).map_err(|error| {
        let path = field::Path::new("spec").child("stubPKCS10Request");
        kind.invalid(crate::object::meta(object, "name"), &[field::Error::invalid_unprinted(&path, error.to_string())])
    })
}

/// At a create: the requester's identity, whatever the body says; and a request that can be read.
pub fn stamp(context: &Context, kind: &Kind, object: &mut Value) -> Result<(), Status> {
    use base64::Engine;
    if kind.facts.plural == "podcertificaterequests" && kind.facts.group == "certificates.k8s.io" {
        return check_stub(kind, object);
    }
    if !is_request(kind) {
        return Ok(());
    }
    let identity = serde_json::to_value(&*context.user).unwrap_or_default();
    let Some(spec) = object["spec"].as_object_mut() else { return Ok(()) };
    for name in ["username", "uid", "groups", "extra"] {
        spec.remove(name);
        if let Some(value) = identity.get(name).filter(|value| !value.is_null()) {
            spec.insert(name.into(), value.clone());
        }
    }
    let pem = base64::engine::general_purpose::STANDARD.decode(spec.get("request").and_then(Value::as_str).unwrap_or_default());
    match Request::parse(&pem.unwrap_or_default()) {
        Ok(_) => Ok(()),
        Err(error) => {
            let path = field::Path::new("spec").child("request");
            let given = spec.get("request").cloned().unwrap_or_default();
            Err(kind.invalid(crate::object::meta(object, "name"), &[field::Error::invalid(&path, given, &error.to_string())]))
        }
    }
}

/// At an update: the spec stays, `status` alone neither approves nor denies, and conditions say when they changed.
pub fn keep(kind: &Kind, new: &mut Value, old: &Value, part: rules::Part) {
    if !is_request(kind) {
        return;
    }
    match part {
        rules::Part::Main => new["spec"] = old["spec"].clone(),
        rules::Part::Status => {
            preserve(new, old, "Approved");
            preserve(new, old, "Denied");
            date(new, old);
        }
        rules::Part::Subresource(_) => date(new, old),
    }
}

fn conditions(object: &Value) -> &[Value] {
    object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Conditions of this type stay what they were; that one was added or removed is for validation to refuse.
fn preserve(new: &mut Value, old: &Value, decision: &str) {
    let kept: Vec<&Value> = conditions(old).iter().filter(|condition| condition["type"] == decision).collect();
    let Some(conditions) = new["status"]["conditions"].as_array_mut() else { return };
    let mut given: Vec<&mut Value> = conditions.iter_mut().filter(|condition| condition["type"] == decision).collect();
    if given.len() == kept.len() {
        given.iter_mut().zip(kept).for_each(|(given, kept)| **given = kept.clone());
    }
}

fn date(new: &mut Value, old: &Value) {
    let now = meta::time::now();
    let Some(list) = new["status"]["conditions"].as_array_mut() else { return };
    for condition in list.iter_mut().filter(|condition| condition.is_object()) {
        let unset = |condition: &Value, name: &str| condition[name].as_str().unwrap_or_default().is_empty();
        if unset(condition, "lastUpdateTime") {
            condition["lastUpdateTime"] = now.as_str().into();
        }
        if unset(condition, "lastTransitionTime") {
            let same = |known: &&Value| known["type"] == condition["type"] && known["status"] == condition["status"];
            let since = conditions(old).iter().find(same).map(|known| known["lastTransitionTime"].clone());
            condition["lastTransitionTime"] = since.filter(Value::is_string).unwrap_or_else(|| now.as_str().into());
        }
    }
}
