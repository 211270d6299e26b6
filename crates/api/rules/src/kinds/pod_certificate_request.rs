//! certificates.k8s.io/v1 PodCertificateRequest.

use meta::field::{Error, Path};
use meta::{names, time};
use serde_json::Value;

use crate::Part;
use crate::checks::{Errors, immutable, required, required_formed, signer_name};
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, has, int, list, set, text};

pub const POD_CERTIFICATE_REQUEST: Plain = Plain {
    default: |object| {
        if has(object, "spec") && !has(object, "spec.maxExpirationSeconds") {
            set(object, "spec.maxExpirationSeconds", 86400);
        }
    },
    validate,
    validate_update: |new, old, part| {
        if part == Part::Main { immutable(&Path::new("spec"), at(new, "spec"), at(old, "spec")) } else { Vec::new() }
    },
    unconditional_update: false,
    fields: &["spec.signerName", "spec.podName", "spec.nodeName"],
    ..Plain::new(
        ("certificates.k8s.io", "v1", "PodCertificateRequest"),
        &[
            NAME,
            AGE,
            shown("SignerName", "string", "Who is asked to sign."),
            shown("PodName", "string", "Pod that the certificate is for."),
            shown("RequestedDuration", "string", "How long the certificate shall hold."),
            shown("Condition", "string", "Whether it was issued."),
        ],
        |object, now| {
            let duration = int(object, "spec.maxExpirationSeconds").map_or_else(|| "<none>".to_owned(), time::human);
            let words: Vec<&str> = list(object, "status.conditions").iter().map(|condition| text(condition, "type")).collect();
            vec![
                printing::age(object, now),
                text(object, "spec.signerName").into(),
                text(object, "spec.podName").into(),
                duration.into(),
                if words.is_empty() { "Pending".into() } else { words.join(",").into() },
            ]
        },
    )
};

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
