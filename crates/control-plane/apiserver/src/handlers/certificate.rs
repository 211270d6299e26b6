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
    let identity = serde_json::to_value(&context.user).unwrap_or_default();
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

/// At an update: the spec stays, and `status` alone neither approves nor denies.
pub fn keep(kind: &Kind, new: &mut Value, old: &Value, part: rules::Part) {
    if !is_request(kind) {
        return;
    }
    if part == rules::Part::Main {
        new["spec"] = old["spec"].clone();
    }
    if part == rules::Part::Status {
        let decides = |condition: &&Value| matches!(condition["type"].as_str(), Some("Approved" | "Denied"));
        let conditions = |object: &Value| object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let mut kept: Vec<Value> = conditions(old).iter().filter(decides).cloned().collect();
        kept.extend(conditions(new).iter().filter(|condition| !decides(condition)).cloned());
        if !kept.is_empty() || new["status"]["conditions"].is_array() {
            new["status"]["conditions"] = kept.into();
        }
    }
}
