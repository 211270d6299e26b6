//! CertificateApproval, CertificateSigning, CertificateSubjectRestriction and ClusterTrustBundleAttest: who may do what for a signer.

use auth::authorize;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meta::status::Status;
use rules::value::{at, text};
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::{Attributes, Lookup, Operation, Plugin, Verdict};

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";
const POD_REQUESTS: &str = "podcertificaterequests";

/// Rights are given for one signer (`example.com/a`) or all of a domain (`example.com/*`).
async fn may(attributes: &Attributes, verb: &str, signer: &str, lookup: &dyn Lookup) -> bool {
    let ask = |name| authorize::Attributes { is_resource: true, verb, group: GROUP, resource: "signers", name, ..Default::default() };
    if lookup.allows(&attributes.user, ask(signer)).await {
        return true;
    }
    let all = format!("{}/*", signer.split('/').next().unwrap_or_default());
    lookup.allows(&attributes.user, ask(&all)).await
}

async fn require(attributes: &Attributes, verb: &str, what: &str, signer: &str, lookup: &dyn Lookup) -> Result<(), Status> {
    match may(attributes, verb, signer, lookup).await {
        true => Ok(()),
        false => Err(attributes.forbidden(format!("user not permitted to {what} signerName {signer:?}"))),
    }
}

/// The signer of the stored request: an update cannot name another.
fn signer(attributes: &Attributes) -> &str {
    attributes.old.as_ref().map(|old| text(old, "spec.signerName")).unwrap_or_default()
}

pub struct CertificateApproval;

impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            if !attributes.is_part(GROUP, REQUESTS, "approval") {
                return Ok(());
            }
            require(attributes, "approve", "approve requests with", signer(attributes), lookup).await
        })
    }
}

pub struct CertificateSigning;

impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            let (Some(new), Some(old)) = (&attributes.object, &attributes.old) else { return Ok(()) };
            let signed = ["status.certificate", "status.conditions", "status.certificateChain"].iter();
            let signed = signed.into_iter().any(|field| at(new, field) != at(old, field));
            let asked = [REQUESTS, POD_REQUESTS].iter().any(|resource| attributes.is_part(GROUP, resource, "status"));
            if !asked || !signed {
                return Ok(());
            }
            require(attributes, "sign", "sign requests with", signer(attributes), lookup).await
        })
    }
}

pub struct CertificateSubjectRestriction;

impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, _: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(std::future::ready(subject(attributes)))
    }
}

/// Nobody becomes `system:masters` by a certificate: nothing could take that back.
fn subject(attributes: &Attributes) -> Result<(), Status> {
    const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
    let request = attributes.object.as_ref().filter(|object| attributes.is(GROUP, REQUESTS) && text(object, "spec.signerName") == SIGNER);
    match request {
        Some(request) if organizations(request).iter().any(|name| name == "system:masters") => {
            Err(attributes.forbidden(format!("use of {SIGNER} signer with system:masters group is not allowed")))
        }
        _ => Ok(()),
    }
}

/// What the request's subject says; nothing where it cannot be read (validation says so).
fn organizations(request: &Value) -> Vec<String> {
    let Ok(pem) = STANDARD.decode(text(request, "spec.request")) else { return Vec::new() };
    let Ok((_, block)) = x509_parser::pem::parse_x509_pem(&pem) else { return Vec::new() };
    let Ok((_, parsed)) = X509CertificationRequest::from_der(&block.contents) else { return Vec::new() };
    let names = parsed.certification_request_info.subject.iter_organization();
    names.filter_map(|name| name.as_str().ok().map(str::to_owned)).collect()
}

pub struct ClusterTrustBundleAttest;

impl Plugin for ClusterTrustBundleAttest {
    fn name(&self) -> &'static str {
        "ClusterTrustBundleAttest"
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            let bundle = attributes.object.as_ref().filter(|_| attributes.is(GROUP, "clustertrustbundles"));
            let Some(bundle) = bundle else { return Ok(()) };
            // An update that only touches metadata attests nothing.
            let unchanged = attributes.old.as_ref().is_some_and(|old| at(old, "spec") == at(bundle, "spec"));
            match text(bundle, "spec.signerName") {
                "" => Ok(()),
                _ if unchanged => Ok(()),
                signer => require(attributes, "attest", "attest for", signer, lookup).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{Objects, run, write};

    fn request(subresource: &str, old_status: Value, status: Value) -> Attributes {
        let object = |status: Value| json!({"metadata": {"name": "r"}, "spec": {"signerName": "example.com/a"}, "status": status});
        let mut attributes = write(Operation::Update, REQUESTS, "CertificateSigningRequest", object(status));
        attributes.gvr.group = GROUP.into();
        attributes.subresource = subresource.into();
        attributes.old = Some(object(old_status));
        attributes
    }

    #[tokio::test]
    async fn signers_have_their_own_rights() {
        let refused = |what: &str| {
            Err(format!(
                "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: user not permitted to {what} requests with signerName \"example.com/a\""
            ))
        };
        for (rights, ok) in [(vec![], false), (vec!["approve signers example.com/a"], true), (vec!["approve signers example.com/*"], true)]
        {
            let objects = Objects::default().allowing(&rights);
            let found = run(CertificateApproval, objects, &mut request("approval", json!({}), json!({}))).await;
            assert_eq!(found, if ok { Ok(()) } else { refused("approve") }, "{rights:?}");
        }
        let found = run(CertificateSigning, Objects::default(), &mut request("status", json!({}), json!({"certificate": "x"}))).await;
        assert_eq!(found, refused("sign"));
        assert_eq!(run(CertificateSigning, Objects::default(), &mut request("status", json!({}), json!({}))).await, Ok(()));
    }

    #[tokio::test]
    async fn no_certificate_makes_a_master() {
        let request = |organization: &str| {
            let key = rcgen::KeyPair::generate().expect("key");
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
            let pem = params.serialize_request(&key).expect("request").pem().expect("PEM");
            let spec = json!({"signerName": "kubernetes.io/kube-apiserver-client", "request": STANDARD.encode(pem)});
            let mut attributes =
                write(Operation::Create, REQUESTS, "CertificateSigningRequest", json!({"metadata": {"name": "r"}, "spec": spec}));
            attributes.gvr.group = GROUP.into();
            attributes
        };
        assert_eq!(run(CertificateSubjectRestriction, Objects::default(), &mut request("dev")).await, Ok(()));
        let refused = run(CertificateSubjectRestriction, Objects::default(), &mut request("system:masters")).await;
        assert!(
            refused
                .expect_err("refused")
                .ends_with("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed")
        );
    }
}
