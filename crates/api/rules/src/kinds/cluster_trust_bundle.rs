//! certificates.k8s.io/v1 ClusterTrustBundle.

use meta::field::{Error, Path};
use serde_json::Value;

use crate::checks::{Errors, immutable, signer_name};
use crate::plain::Plain;
use crate::printing::{NAME, shown};
use crate::value::{at, name, text};

pub const CLUSTER_TRUST_BUNDLE: Plain = Plain {
    // The signer's name stands in front, with colons in the place of slashes.
    name: |name| meta::names::dns1123_subdomain(name.rsplit(':').next().unwrap_or(name)),
    validate,
    validate_update: |new, old, _| {
        immutable(&Path::new("spec").child("signerName"), at(new, "spec.signerName"), at(old, "spec.signerName"))
    },
    unconditional_update: false,
    fields: &["spec.signerName"],
    ..Plain::new(
        ("certificates.k8s.io", "v1", "ClusterTrustBundle"),
        &[NAME, shown("SignerName", "string", "Signer that the bundle belongs to.")],
        |object, _| vec![text(object, "spec.signerName").into()],
    )
};

fn validate(object: &Value) -> Errors {
    let path = Path::new("spec");
    let (signer, name) = (text(object, "spec.signerName"), name(object));
    let mut errors = Errors::new();
    if signer.is_empty() {
        if name.contains(':') {
            let sentence = "ClusterTrustBundle without signer name must not have \":\" in its name";
            errors.push(Error::invalid(&Path::new("metadata").child("name"), name, sentence));
        }
    } else {
        errors.extend(signer_name(signer, &path.child("signerName")));
        let prefix = format!("{}:", signer.replace('/', ":"));
        if !name.starts_with(&prefix) {
            let sentence = format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}");
            errors.push(Error::invalid(&Path::new("metadata").child("name"), name, sentence));
        }
    }
    let bundle = text(object, "spec.trustBundle");
    let here = path.child("trustBundle");
    if bundle.len() > 1024 * 1024 {
        errors.push(Error::too_long(&here, 1024 * 1024));
    }
    if !bundle.contains("-----BEGIN CERTIFICATE-----") {
        let sentence = "at least one trust anchor must be provided";
        errors.push(Error::invalid(&here, "<value omitted>", sentence));
    }
    errors
}
