//! certificates.k8s.io/v1 PodCertificateRequest.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::Part;
use crate::checks::{Errors, immutable, required, required_formed, signer_name};
use crate::plain::Plain;
use crate::printing::{self, NAME, shown};
use crate::value::{at, has, int, keep, list, set, text};

pub const POD_CERTIFICATE_REQUEST: Plain = Plain {
    default: |object| {
        if has(object, "spec") && !has(object, "spec.maxExpirationSeconds") {
            set(object, "spec.maxExpirationSeconds", 86400);
        }
    },
    validate,
    // What was asked stays, and only a signer answers.
    prepare_update: |new, old, part| keep(new, old, if part == Part::Main { "status" } else { "spec" }),
    validate_update: |new, old, part| {
        if part == Part::Main { immutable(&Path::new("spec"), at(new, "spec"), at(old, "spec")) } else { validate_answer(new, old) }
    },
    unconditional_update: false,
    fields: &["spec.signerName", "spec.podName", "spec.nodeName"],
    ..Plain::new(
        ("certificates.k8s.io", "v1", "PodCertificateRequest"),
        &[
            NAME,
            shown("PodName", "string", "Pod that the certificate is for."),
            shown("ServiceAccountName", "string", "Service account of the pod."),
            shown("NodeName", "string", "Node of the pod."),
            shown("SignerName", "string", "Who is asked to sign."),
            shown("State", "string", "Whether it was issued."),
            shown("UnverifiedUserAnnotations", "string", "What the pod tells the signer."),
        ],
        |object, _| {
            let said = ["podName", "serviceAccountName", "nodeName", "signerName"];
            let mut cells: Vec<Value> = said.iter().map(|field| text(at(object, "spec"), field).into()).collect();
            let answers = list(object, "status.conditions").iter().map(|condition| text(condition, "type"));
            let state = answers.rev().find(|kind| ANSWERS.contains(kind)).unwrap_or("Pending");
            cells.extend([state.into(), printing::labels(at(object, "spec.unverifiedUserAnnotations"))]);
            cells
        },
    )
};

/// What a signer may answer.
const ANSWERS: [&str; 3] = ["Denied", "Failed", "Issued"];

/// One answer at most, which then stays.
fn validate_answer(new: &Value, old: &Value) -> Errors {
    let (path, mut errors) = (Path::new("status"), Errors::new());
    let conditions = list(new, "status.conditions");
    let kind = |object: &Value| list(object, "status.conditions").first().map(|condition| text(condition, "type").to_owned());
    for (index, condition) in conditions.iter().enumerate() {
        let here = path.child("conditions").index(index);
        if !ANSWERS.contains(&text(condition, "type")) {
            errors.push(Error::not_supported(&here.child("type"), text(condition, "type"), &ANSWERS));
        } else if text(condition, "status") != "True" {
            errors.push(Error::not_supported(&here.child("status"), text(condition, "status"), &["True"]));
        }
    }
    if conditions.len() > 1 {
        let sentence = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
        errors.push(Error::invalid(&path.child("conditions"), conditions.to_vec(), sentence));
    }
    let fields = ["certificateChain", "notBefore", "beginRefreshAt", "notAfter"];
    let issued = kind(new).as_deref() == Some("Issued");
    for field in fields {
        let whole = format!("status.{field}");
        match (issued, has(new, &whole)) {
            (true, false) => errors.push(Error::required(&path.child(field), "must be set in issued requests")),
            (false, true) => errors.push(Error::forbidden(&path.child(field), "only issued requests may have it")),
            _ => {}
        }
        if has(old, &whole) {
            errors.extend(immutable(&path.child(field), at(new, &whole), at(old, &whole)));
        }
    }
    if let Some(before) = kind(old).filter(|before| kind(new).as_ref() != Some(before)) {
        let sentence = format!("immutable after {before:?} was set");
        errors.push(Error::invalid(&path.child("conditions"), conditions.to_vec(), sentence));
    }
    errors
}

fn validate(object: &Value) -> Errors {
    let (path, spec) = (Path::new("spec"), at(object, "spec"));
    let mut errors = signer_name(text(spec, "signerName"), &path.child("signerName"));
    for field in ["podName", "serviceAccountName", "nodeName"] {
        errors.extend(required_formed(spec, &path, field, names::dns1123_subdomain));
    }
    for field in ["podUID", "serviceAccountUID", "nodeUID"] {
        errors.extend(required(spec, &path, field));
        if text(spec, field).len() > 128 {
            errors.push(Error::too_long(&path.child(field), 128));
        }
    }
    match int(spec, "maxExpirationSeconds") {
        None => errors.push(Error::required(&path.child("maxExpirationSeconds"), "must be set")),
        Some(seconds) if !(3600..=91 * 86400).contains(&seconds) => {
            let sentence = "must be in the range [3600, 7862400]";
            errors.push(Error::invalid(&path.child("maxExpirationSeconds"), seconds, sentence));
        }
        Some(_) => {}
    }
    errors
}
