//! certificates.k8s.io/v1 CertificateSigningRequest.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use meta::field::{Error, Path};
use meta::{names, time};
use serde_json::Value;

use crate::Part;
use crate::checks::{Errors, signer_name};
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, or_none, shown};
use crate::value::{at, has, int, keep, list, text};

/// Upstream's list, sorted as its complaints print it.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

pub const CERTIFICATE_SIGNING_REQUEST: Plain = Plain {
    name: names::path_segment,
    validate,
    // The request is what was asked for: only its metadata, conditions and certificate change.
    prepare_update: |new, old, part| {
        if part == Part::Main {
            keep(new, old, "spec");
        }
    },
    validate_update,
    fields: &["spec.signerName"],
    ..Plain::new(
        ("certificates.k8s.io", "v1", "CertificateSigningRequest"),
        &[
            NAME,
            AGE,
            shown("SignerName", "string", "Who is asked to sign."),
            shown("Requestor", "string", "Who asks."),
            shown("RequestedDuration", "string", "How long the certificate shall hold."),
            shown("Condition", "string", "Whether it was approved and issued."),
        ],
        cells,
    )
};

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let duration = int(object, "spec.expirationSeconds").map_or_else(|| "<none>".to_owned(), time::human);
    let mut words: Vec<&str> = ["Approved", "Denied", "Failed"].into_iter().filter(|kind| is(object, kind)).collect();
    if words.is_empty() {
        words.push("Pending");
    }
    if has(object, "status.certificate") {
        words.push("Issued");
    }
    vec![
        printing::age(object, now),
        or_none(object, "spec.signerName"),
        text(object, "spec.username").into(),
        duration.into(),
        words.join(",").into(),
    ]
}

fn is(object: &Value, kind: &str) -> bool {
    list(object, "status.conditions").iter().any(|condition| text(condition, "type") == kind)
}

fn validate(object: &Value) -> Errors {
    let (path, spec) = (Path::new("spec"), at(object, "spec"));
    let mut errors = Errors::new();
    let request = text(spec, "request");
    let decoded = STANDARD.decode(request).unwrap_or_default();
    if !String::from_utf8_lossy(&decoded).contains("-----BEGIN CERTIFICATE REQUEST-----")
        && !String::from_utf8_lossy(&decoded).contains("-----BEGIN NEW CERTIFICATE REQUEST-----")
    {
        errors.push(Error::invalid(&path.child("request"), request, "PEM block type must be CERTIFICATE REQUEST"));
    }
    let usages = list(spec, "usages");
    if usages.is_empty() {
        errors.push(Error::required(&path.child("usages"), "usages must be provided"));
    }
    let mut seen = BTreeSet::new();
    for (index, usage) in usages.iter().filter_map(Value::as_str).enumerate() {
        let here = path.child("usages").index(index);
        if !USAGES.contains(&usage) {
            errors.push(Error::not_supported(&here, usage, &USAGES));
        }
        if !seen.insert(usage) {
            errors.push(Error::duplicate(&here, usage));
        }
    }
    let (signer, here) = (text(spec, "signerName"), path.child("signerName"));
    if signer == "kubernetes.io/legacy-unknown" {
        errors.push(Error::invalid(&here, signer, "the legacy signerName is not allowed via this API version"));
    } else {
        errors.extend(signer_name(signer, &here));
    }
    if let Some(seconds) = int(spec, "expirationSeconds").filter(|seconds| *seconds < 600) {
        let sentence = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(Error::invalid(&path.child("expirationSeconds"), seconds, sentence));
    }
    errors
}

/// Approval and denial are final, exclude each other, and are `True`.
fn validate_update(new: &Value, old: &Value, part: Part) -> Errors {
    let path = Path::new("status").child("conditions");
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, condition) in list(new, "status.conditions").iter().enumerate() {
        let here = path.index(index);
        let (kind, status) = (text(condition, "type"), text(condition, "status"));
        let decided = matches!(kind, "Approved" | "Denied" | "Failed");
        if kind.is_empty() {
            errors.push(Error::required(&here.child("type"), ""));
        } else if !seen.insert(kind) {
            errors.push(Error::duplicate(&here.child("type"), kind));
        }
        match status {
            "" => errors.push(Error::required(&here.child("status"), "")),
            "True" => {}
            _ if decided => errors.push(Error::not_supported(&here.child("status"), status, &["True"])),
            "False" | "Unknown" => {}
            other => errors.push(Error::not_supported(&here.child("status"), other, &["True", "False", "Unknown"])),
        }
    }
    if is(new, "Approved") && is(new, "Denied") {
        errors.push(Error::invalid(&path, "Denied", "Approved and Denied conditions are mutually exclusive"));
    }
    for kind in ["Approved", "Denied", "Failed"].into_iter().filter(|kind| is(old, kind) && !is(new, kind)) {
        errors.push(Error::forbidden(&path, format!("updates may not remove a condition of type {kind:?}")));
    }
    if part == Part::Status {
        let added = ["Approved", "Denied"].into_iter().filter(|kind| is(new, kind) && !is(old, kind));
        errors.extend(added.map(|kind| Error::forbidden(&path, format!("updates may not add a condition of type {kind:?}"))));
    }
    let certificate = "status.certificate";
    if has(old, certificate) && at(new, certificate) != at(old, certificate) {
        errors.push(Error::forbidden(&Path::new("status").child("certificate"), "updates may not set certificate content"));
    }
    if at(new, certificate) != at(old, certificate)
        && let Err(why) = well_formed(text(new, certificate))
    {
        errors.push(Error::invalid(&Path::new("status").child("certificate"), "<certificate data>", why));
    }
    errors
}

/// Certificates in PEM and nothing else but what stands around them; the sentences are upstream's.
fn well_formed(data: &str) -> Result<(), String> {
    let bytes = STANDARD.decode(data).unwrap_or_default();
    if bytes.is_empty() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&bytes);
    let (mut rest, mut blocks) = (&*text, 0);
    while let Some((kind, body, after)) = block(rest) {
        if kind != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {kind:?}"));
        }
        if body.contains(':') {
            return Err("no PEM block headers are permitted".into());
        }
        let encoded: String = body.split_whitespace().collect();
        // Whose it is and what it says is the signer's business.
        if !STANDARD.decode(encoded).is_ok_and(|der| is_sequence(&der)) {
            return Err("x509: malformed certificate".into());
        }
        (rest, blocks) = (after, blocks + 1);
    }
    if blocks == 0 { Err("must contain at least one CERTIFICATE PEM block".into()) } else { Ok(()) }
}

/// The next PEM block: its kind, what is between its lines, what comes after.
fn block(text: &str) -> Option<(&str, &str, &str)> {
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (kind, rest) = rest.split_once("-----")?;
    let (body, after) = rest.split_once(&format!("-----END {kind}-----"))?;
    Some((kind, body, after))
}

/// One DER SEQUENCE that fills the bytes.
fn is_sequence(der: &[u8]) -> bool {
    match der {
        [0x30, length @ 0..=0x7f, content @ ..] => content.len() == usize::from(*length),
        [0x30, 0x81, length, content @ ..] => content.len() == usize::from(*length),
        [0x30, 0x82, high, low, content @ ..] => content.len() == usize::from(*high) << 8 | usize::from(*low),
        [0x30, 0x83, high, middle, low, content @ ..] => {
            content.len() == usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Rules;

    fn request(path: &str, value: Value) -> Value {
        let pem = STANDARD.encode("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n");
        let mut object = json!({"metadata": {"name": "x"},
            "spec": {"request": pem, "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}});
        crate::value::set(&mut object, path, value);
        object
    }

    #[test]
    fn broken_requests_are_explained() {
        let cases = [
            (request("spec.usages", json!(["client auth"])), vec![]),
            (request("spec.usages", json!([])), vec!["spec.usages: Required value: usages must be provided"]),
            (
                request("spec.signerName", json!("nobody")),
                vec![
                    "spec.signerName: Invalid value: \"nobody\": must be a fully qualified domain and path of the form \
                     'example.com/signer-name'",
                ],
            ),
            (
                request("spec.expirationSeconds", json!(60)),
                vec!["spec.expirationSeconds: Invalid value: 60: may not specify a duration less than 600 seconds (10 minutes)"],
            ),
            (
                request("spec.request", json!("eA==")),
                vec!["spec.request: Invalid value: \"eA==\": PEM block type must be CERTIFICATE REQUEST"],
            ),
        ];
        for (object, expected) in cases {
            let found: Vec<String> = CERTIFICATE_SIGNING_REQUEST.validate(&object).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{object}");
        }
    }

    #[test]
    fn only_certificates_are_taken_for_certificates() {
        let pem = |kind: &str, body: &str| format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n");
        let good = pem("CERTIFICATE", &STANDARD.encode([0x30, 2, 1, 2]));
        let cases = [
            (good.clone(), ""),
            (format!("a chain:\n{good}{good}"), ""),
            ("---".into(), "must contain at least one CERTIFICATE PEM block"),
            (pem("PRIVATE KEY", "AAAA"), "only CERTIFICATE PEM blocks are allowed, found \"PRIVATE KEY\""),
            (pem("CERTIFICATE", "Proc-Type: 4\n\nAAAA"), "no PEM block headers are permitted"),
            (pem("CERTIFICATE", "AAAA"), "x509: malformed certificate"),
        ];
        for (certificate, expected) in cases {
            let new = request("status", json!({"certificate": STANDARD.encode(&certificate)}));
            let errors = CERTIFICATE_SIGNING_REQUEST.validate_update(&new, &request("status", json!({})), Part::Status);
            let found: Vec<String> = errors.iter().map(|error| error.detail.clone()).collect();
            assert_eq!(found.join(", "), expected, "{certificate}");
            let kept = CERTIFICATE_SIGNING_REQUEST.validate_update(&new, &new, Part::Status);
            assert!(kept.is_empty(), "what was stored before stays valid: {kept:?}");
        }
    }

    #[test]
    fn approval_is_final_and_shown() {
        let conditions = |kinds: &[&str]| -> Value {
            let all: Vec<Value> = kinds.iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
            request("status", json!({"conditions": all}))
        };
        let update = |new: &[&str], old: &[&str], part: Part| -> Vec<String> {
            let errors = CERTIFICATE_SIGNING_REQUEST.validate_update(&conditions(new), &conditions(old), part);
            errors.iter().map(|error| error.detail.clone()).collect()
        };
        let approval = Part::Subresource("approval");
        assert_eq!(update(&["Approved"], &[], approval), Vec::<String>::new());
        assert_eq!(update(&["Approved"], &[], Part::Status), ["updates may not add a condition of type \"Approved\""]);
        assert_eq!(update(&[], &["Approved"], approval), ["updates may not remove a condition of type \"Approved\""]);
        assert_eq!(update(&["Approved", "Denied"], &[], approval), ["Approved and Denied conditions are mutually exclusive"]);
        assert_eq!(CERTIFICATE_SIGNING_REQUEST.cells(&conditions(&["Approved"]), 0)[5], "Approved");
    }
}
