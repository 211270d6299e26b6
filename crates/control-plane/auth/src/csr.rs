//! Certificates on request: reading a PKCS#10 request, judging it by its signer's rules, signing it, and making one.
//!
//! The subject, the public key and the alternative names go from the request into the certificate byte for byte: nothing is parsed and written anew, so
//! nothing (a second organization, an odd string type) is lost or changed.
//!
//! Source: `pkg/apis/certificates/helpers.go`, `pkg/controller/certificates/signer`, RFC 2986, RFC 5280.

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate, X509CertificationRequest};

use crate::pki::Pair;

pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Client certificates of pods, in the name of their service account (KEP-4317).
pub const POD_CLIENT: &str = "kubernetes.io/kube-apiserver-client-pod";
pub const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// A certificate begins in the past by so much (upstream: 5 minutes).
const BACKDATE: i64 = 300;
const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Pem,
    #[error("the certificate request cannot be read")]
    Form,
    #[error("the certificate request is not signed by its own key")]
    Signature,
    #[error("the signing authority cannot be read")]
    Authority,
    #[error("the certificate could not be signed")]
    Sign(#[source] rcgen::Error),
    #[error("unrecognized usage {0:?}")]
    Usage(String),
    #[error("the certificate request could not be made")]
    Make(#[source] rcgen::Error),
}

/// What a request asks for. Its signature was checked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub addresses: Vec<std::net::IpAddr>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
    subject: Vec<u8>,
    public_key: Vec<u8>,
    /// The whole extension as it came.
    alternative_names: Option<Vec<u8>>,
}

impl Request {
    pub fn parse(pem: &[u8]) -> Result<Self, Error> {
        Self::parse_der(&CertificateSigningRequestDer::from_pem_slice(pem).map_err(|_| Error::Pem)?)
    }

    pub fn parse_der(der: &[u8]) -> Result<Self, Error> {
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| Error::Form)?;
        if !rest.is_empty() {
            return Err(Error::Form);
        }
        request.verify_signature().map_err(|_| Error::Signature)?;
        let info = &request.certification_request_info;
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
        let mut found = Self {
            common_name: info.subject.iter_common_name().find_map(text).unwrap_or_default(),
            organizations: info.subject.iter_organization().filter_map(text).collect(),
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            ..Self::default()
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                names.general_names.iter().try_for_each(|name| found.name(name))?;
            }
        }
        found.alternative_names = raw_alternative_names(&request);
        Ok(found)
    }

    /// The same key for somebody whom the signer names itself; what the request says of names is dropped.
    pub fn for_subject(self, common_name: &str, organizations: &[&str]) -> Self {
        Self { subject: der::subject(common_name, organizations), public_key: self.public_key, ..Self::default() }
    }

    fn name(&mut self, name: &GeneralName<'_>) -> Result<(), Error> {
        match name {
            GeneralName::DNSName(host) => self.dns_names.push((*host).to_owned()),
            GeneralName::RFC822Name(mail) => self.emails.push((*mail).to_owned()),
            GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
                let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from));
                self.addresses.push(address.map_err(|_| Error::Form)?);
            }
            // Kinds of names that no signer looks at must not slip into a certificate.
            _ => return Err(Error::Form),
        }
        Ok(())
    }

    /// What the signer of this name has against the request; upstream's sentences. Signers of others have nothing to say here.
    pub fn check(&self, signer: &str, usages: &[&str]) -> Result<(), String> {
        match signer {
            KUBELET_CLIENT => self.check_kubelet_client(usages),
            KUBELET_SERVING => self.check_kubelet_serving(usages),
            CLIENT => {
                let allowed = ["digital signature", "key encipherment", "client auth"];
                match usages.iter().all(|usage| allowed.contains(usage)) && usages.contains(&"client auth") {
                    true => Ok(()),
                    false => Err("usages did not match expected usages for kube-apiserver-client: client auth is required, beside it only digital signature and key encipherment".into()),
                }
            }
            _ => Ok(()),
        }
    }

    fn check_node(&self) -> Result<(), String> {
        if self.organizations != [NODES] {
            return Err("organization in subject must be system:nodes".into());
        }
        match self.common_name.strip_prefix(NODE_PREFIX) {
            None | Some("") => Err("subject common name does not begin with 'system:node:'".into()),
            Some(_) => Ok(()),
        }
    }

    fn check_kubelet_client(&self, usages: &[&str]) -> Result<(), String> {
        self.check_node()?;
        if !(self.dns_names.is_empty() && self.addresses.is_empty()) {
            return Err("DNS or IP subjectAltNames are not allowed".into());
        }
        self.check_names()?;
        exactly(usages, "client auth")
    }

    fn check_kubelet_serving(&self, usages: &[&str]) -> Result<(), String> {
        self.check_node()?;
        if self.dns_names.is_empty() && self.addresses.is_empty() {
            return Err("DNS or IP subjectAltName is required".into());
        }
        self.check_names()?;
        exactly(usages, "server auth")
    }

    fn check_names(&self) -> Result<(), String> {
        match (self.emails.is_empty(), self.uris.is_empty()) {
            (false, _) => Err("email subjectAltNames are not allowed".into()),
            (_, false) => Err("URI subjectAltNames are not allowed".into()),
            _ => Ok(()),
        }
    }
}

/// Digital signature and `purpose`, with or without key encipherment.
fn exactly(usages: &[&str], purpose: &str) -> Result<(), String> {
    let allowed = |usage: &&str| [purpose, "digital signature", "key encipherment"].contains(usage);
    let ok = usages.iter().all(allowed) && usages.contains(&purpose) && usages.contains(&"digital signature");
    if ok { Ok(()) } else { Err(format!("usages must be exactly digital signature, {purpose} and, if wanted, key encipherment")) }
}

const OID_ALTERNATIVE_NAMES: [u64; 4] = [2, 5, 29, 17];

fn raw_alternative_names(request: &X509CertificationRequest<'_>) -> Option<Vec<u8>> {
    use x509_parser::cri_attributes::ParsedCriAttribute;
    let attributes = request.certification_request_info.iter_attributes();
    let requested = attributes.filter_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(requested) => Some(&requested.extensions),
        _ => None,
    });
    let mut extensions = requested.flatten();
    let names = extensions.find(|extension| extension.oid.iter().is_some_and(|arcs| arcs.eq(OID_ALTERNATIVE_NAMES)))?;
    Some(der::extension(&der::oid(&OID_ALTERNATIVE_NAMES), names.critical, names.value))
}

/// An authority that signs requests; another one may take its place.
pub struct Signer(ArcSwap<Authority>);

struct Authority {
    key: KeyPair,
    subject: Vec<u8>,
    key_id: Vec<u8>,
    not_after: i64,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// Both PEM (of several certificates the first counts); the key is P-256.
    pub fn new(certificate: &str, key: &str) -> Result<Self, Error> {
        Ok(Self(ArcSwap::from_pointee(Authority::new(certificate, key)?)))
    }

    /// Signs with another authority from now on.
    pub fn replace(&self, certificate: &str, key: &str) -> Result<(), Error> {
        self.0.store(Arc::new(Authority::new(certificate, key)?));
        Ok(())
    }

    /// A leaf certificate (PEM) for the request, valid from now for `seconds` but not longer than the authority itself. `usages` are those of the
    /// API (`digital signature`, `client auth`).
    pub fn sign(&self, request: &Request, usages: &[&str], seconds: i64) -> Result<String, Error> {
        self.0.load().sign(request, usages, seconds)
    }
}

impl Authority {
    fn new(certificate: &str, key: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key).map_err(|_| Error::Authority)?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|_| Error::Authority)?;
        let (_, authority) = X509Certificate::from_der(&der).map_err(|_| Error::Authority)?;
        let key_id = authority.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Ok(Self {
            subject: authority.subject().as_raw().to_vec(),
            key_id: key_id.unwrap_or_default(),
            not_after: authority.validity().not_after.timestamp(),
            key,
        })
    }

    fn sign(&self, request: &Request, usages: &[&str], seconds: i64) -> Result<String, Error> {
        let now = jiff::Timestamp::now().as_second();
        let mut serial = [0_u8; 16];
        // Without randomness no serial is unique; the certificate is not made.
        getrandom::fill(&mut serial).map_err(|_| Error::Form)?;
        serial[0] = serial[0] & 0x7f | 0x40;
        let algorithm = der::sequence(&[der::oid(&[1, 2, 840, 10045, 4, 3, 2])]);
        let validity = der::sequence(&[der::time(now - BACKDATE), der::time((now + seconds).min(self.not_after))]);
        let body = der::sequence(&[
            der::tagged(0xa0, &der::tagged(0x02, &[2])),
            der::tagged(0x02, &serial),
            algorithm.clone(),
            self.subject.clone(),
            validity,
            request.subject.clone(),
            request.public_key.clone(),
            der::tagged(0xa3, &der::sequence(&self.extensions(request, usages)?)),
        ]);
        let signature = self.key.sign(&body).map_err(Error::Sign)?;
        let bits = der::tagged(0x03, &[&[0], signature.as_slice()].concat());
        Ok(pem("CERTIFICATE", &der::sequence(&[body, algorithm, bits])))
    }

    fn extensions(&self, request: &Request, usages: &[&str]) -> Result<Vec<Vec<u8>>, Error> {
        let (mut bits, mut purposes) = (0_u16, Vec::new());
        for usage in usages {
            match key_usage(usage) {
                Some(KeyUsage::Bit(bit)) => bits |= 0x8000 >> bit,
                Some(KeyUsage::Purpose(purpose)) => purposes.push(der::oid(&[1, 3, 6, 1, 5, 5, 7, 3, purpose])),
                Some(KeyUsage::Any) => purposes.push(der::oid(&[2, 5, 29, 37, 0])),
                None => return Err(Error::Usage((*usage).to_owned())),
            }
        }
        let mut extensions = Vec::new();
        if bits != 0 {
            extensions.push(der::extension(&der::oid(&[2, 5, 29, 15]), true, &der::bits(bits)));
        }
        if !purposes.is_empty() {
            extensions.push(der::extension(&der::oid(&[2, 5, 29, 37]), false, &der::sequence(&purposes)));
        }
        // No authority: an empty BasicConstraints.
        extensions.push(der::extension(&der::oid(&[2, 5, 29, 19]), true, &der::sequence(&[])));
        if !self.key_id.is_empty() {
            let id = der::sequence(&[der::tagged(0x80, &self.key_id)]);
            extensions.push(der::extension(&der::oid(&[2, 5, 29, 35]), false, &id));
        }
        extensions.extend(request.alternative_names.clone());
        Ok(extensions)
    }
}

enum KeyUsage {
    Bit(u16),
    Purpose(u64),
    Any,
}

/// Source: `certificates/v1` KeyUsage, RFC 5280 4.2.1.3 and 4.2.1.12.
fn key_usage(usage: &str) -> Option<KeyUsage> {
    use KeyUsage::{Any, Bit, Purpose};
    Some(match usage {
        "signing" | "digital signature" => Bit(0),
        "content commitment" => Bit(1),
        "key encipherment" => Bit(2),
        "data encipherment" => Bit(3),
        "key agreement" => Bit(4),
        "cert sign" => Bit(5),
        "crl sign" => Bit(6),
        "encipher only" => Bit(7),
        "decipher only" => Bit(8),
        "any" => Any,
        "server auth" => Purpose(1),
        "client auth" => Purpose(2),
        "code signing" => Purpose(3),
        "email protection" | "s/mime" => Purpose(4),
        "ipsec end system" => Purpose(5),
        "ipsec tunnel" => Purpose(6),
        "ipsec user" => Purpose(7),
        "timestamping" => Purpose(8),
        "ocsp signing" => Purpose(9),
        _ => return None,
    })
}

/// A new key and a request (PEM) for it.
pub fn make(common_name: &str, organizations: &[&str], hosts: &[String]) -> Result<(Pair, String), Error> {
    let (key, request) = make_der(der::subject(common_name, organizations), hosts)?;
    Ok((Pair { certificate: String::new(), key }, pem("CERTIFICATE REQUEST", &request)))
}

/// A new key (PEM) and a request (DER) that says nothing but its public half, as kubelets make them for pods.
pub fn make_stub() -> Result<(String, Vec<u8>), Error> {
    make_der(der::sequence(&[]), &[])
}

/// The same with a key of one of the kinds that a pod may ask for: `RSA3072`, `RSA4096`, `ECDSAP256`, `ECDSAP384`, `ECDSAP521`, `ED25519`.
pub fn make_stub_of(kind: &str) -> Result<(String, Vec<u8>), Error> {
    let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
    let key = match kind {
        "RSA3072" => rsa(rcgen::RsaKeySize::_3072),
        "RSA4096" => rsa(rcgen::RsaKeySize::_4096),
        "ECDSAP384" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        "ECDSAP521" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
        "ED25519" => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        _ => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
    };
    let key = key.map_err(Error::Make)?;
    let mut empty = rcgen::CertificateParams::default();
    empty.distinguished_name = rcgen::DistinguishedName::new();
    let request = empty.serialize_request(&key).map_err(Error::Make)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

fn make_der(subject: Vec<u8>, hosts: &[String]) -> Result<(String, Vec<u8>), Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(Error::Make)?;
    let mut names = Vec::new();
    for host in hosts {
        match host.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(address)) => names.push(der::tagged(0x87, &address.octets())),
            Ok(std::net::IpAddr::V6(address)) => names.push(der::tagged(0x87, &address.octets())),
            Err(_) => names.push(der::tagged(0x82, host.as_bytes())),
        }
    }
    let attributes = match names.is_empty() {
        true => Vec::new(),
        false => {
            let names = der::extension(&der::oid(&OID_ALTERNATIVE_NAMES), false, &der::sequence(&names));
            let value = der::tagged(0x31, &der::sequence(&[names]));
            der::sequence(&[der::oid(&[1, 2, 840, 113_549, 1, 9, 14]), value])
        }
    };
    let body = der::sequence(&[der::tagged(0x02, &[0]), subject, key.subject_public_key_info(), der::tagged(0xa0, &attributes)]);
    let signature = key.sign(&body).map_err(Error::Make)?;
    let algorithm = der::sequence(&[der::oid(&[1, 2, 840, 10045, 4, 3, 2])]);
    let request = der::sequence(&[body, algorithm, der::tagged(0x03, &[&[0], signature.as_slice()].concat())]);
    Ok((key.serialize_pem(), request))
}

/// When a certificate (PEM) begins and ends, in seconds since the epoch.
pub fn validity(certificate: &str) -> Option<(i64, i64)> {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// When a certificate (PEM) of [`Signer`] was issued and when it ends, in seconds since the epoch: it begins earlier than that, for clocks that differ.
pub fn use_of(certificate: &str) -> Option<(i64, i64)> {
    let (begin, end) = validity(certificate)?;
    Some(((begin + BACKDATE).min(end), end))
}

/// Whether the first authority of a bundle signed a certificate (both PEM): the one that issues stands first.
pub fn is_issued_by(certificate: &str, authorities: &str) -> bool {
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).ok();
    let (Some(certificate), Some(authority)) = (der(certificate), der(authorities)) else { return false };
    let (Ok((_, certificate)), Ok((_, authority))) = (X509Certificate::from_der(&certificate), X509Certificate::from_der(&authority))
    else {
        return false;
    };
    certificate.verify_signature(Some(authority.public_key())).is_ok()
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).unwrap_or_default());
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}

/// As much of DER as a certificate needs.
mod der {
    pub fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        let length = content.len();
        if length < 0x80 {
            out.push(length as u8);
        } else {
            let bytes = length.to_be_bytes();
            let skip = bytes.iter().take_while(|byte| **byte == 0).count();
            out.push(0x80 | (bytes.len() - skip) as u8);
            out.extend_from_slice(&bytes[skip..]);
        }
        out.extend_from_slice(content);
        out
    }

    /// Organizations, then the common name, all as UTF-8.
    pub fn subject(common_name: &str, organizations: &[&str]) -> Vec<u8> {
        let part = |kind: u64, text: &str| tagged(0x31, &sequence(&[oid(&[2, 5, 4, kind]), tagged(0x0c, text.as_bytes())]));
        let mut parts: Vec<Vec<u8>> = organizations.iter().map(|name| part(10, name)).collect();
        parts.push(part(3, common_name));
        sequence(&parts)
    }

    pub fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
        tagged(0x30, &parts.concat())
    }

    pub fn oid(arcs: &[u64]) -> Vec<u8> {
        let [first, second, rest @ ..] = arcs else { return Vec::new() };
        let mut body = vec![(first * 40 + second) as u8];
        for arc in rest {
            let groups = (0..10).rev().map(|group| (arc >> (7 * group)) as u8 & 0x7f).skip_while(|group| *group == 0);
            let mut groups: Vec<u8> = groups.collect();
            if groups.is_empty() {
                groups.push(0);
            }
            let last = groups.len() - 1;
            body.extend(groups.iter().enumerate().map(|(at, group)| if at < last { group | 0x80 } else { *group }));
        }
        tagged(0x06, &body)
    }

    /// A BIT STRING of named bits, the first being the highest, without trailing zero bits.
    pub fn bits(bits: u16) -> Vec<u8> {
        let unused = (bits.trailing_zeros() % 8) as u8;
        let bytes = bits.to_be_bytes();
        let body: &[u8] = if bytes[1] == 0 { &bytes[..1] } else { &bytes };
        tagged(0x03, &[&[unused], body].concat())
    }

    /// UTCTime up to 2049, GeneralizedTime after (RFC 5280 4.1.2.5).
    pub fn time(seconds: i64) -> Vec<u8> {
        let at = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).to_zoned(jiff::tz::TimeZone::UTC);
        let rest = format!("{:02}{:02}{:02}{:02}{:02}Z", at.month(), at.day(), at.hour(), at.minute(), at.second());
        match at.year() {
            year @ 1950..=2049 => tagged(0x17, format!("{:02}{rest}", year % 100).as_bytes()),
            year => tagged(0x18, format!("{year:04}{rest}").as_bytes()),
        }
    }

    pub fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
        let critical = if critical { tagged(0x01, &[0xff]) } else { Vec::new() };
        sequence(&[oid.to_vec(), critical, tagged(0x04, value)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pki() -> (tempfile::TempDir, crate::pki::Pki) {
        let dir = tempfile::tempdir().unwrap();
        let names = crate::pki::Names {
            api_hosts: vec![],
            api_addresses: vec![],
            cluster_domain: "cluster.local".into(),
            node_name: "n".into(),
            node_addresses: vec![],
        };
        let pki = crate::pki::Pki::open(dir.path(), &names).unwrap();
        (dir, pki)
    }

    #[test]
    fn a_pod_may_have_a_key_of_every_kind_that_it_can_ask_for() {
        for kind in ["RSA3072", "ECDSAP256", "ECDSAP384", "ED25519"] {
            let (key, stub) = make_stub_of(kind).unwrap();
            assert!(key.contains("PRIVATE KEY"), "{kind}");
            Request::parse_der(&stub).unwrap_or_else(|error| panic!("{kind}: {error}"));
        }
    }

    #[test]
    fn what_is_signed_is_who_asked_and_tls_believes_it() {
        let (_dir, pki) = pki();
        let signer = Signer::new(&pki.ca, &pki.ca_key).unwrap();
        let (_, request) = make("jane", &["ops", "devs"], &[]).unwrap();
        let request = Request::parse(request.as_bytes()).unwrap();
        assert_eq!((request.common_name.as_str(), &request.organizations[..]), ("jane", &["ops".to_owned(), "devs".to_owned()][..]));
        let certificate = signer.sign(&request, &["client auth", "digital signature", "key encipherment"], 3600).unwrap();
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let server = crate::tls::Server::with_front_proxy(&pki.api_server, &pki.ca, Some(&pki.front_proxy_ca)).unwrap();
        let jane = crate::UserInfo::authenticated("jane", &["ops", "devs"]);
        assert_eq!(server.peer(std::slice::from_ref(&der)), Some(crate::tls::Peer::User(jane.into())));
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        assert!(parsed.validity().not_after.timestamp() - jiff::Timestamp::now().as_second() <= 3600);
        assert!(!parsed.is_ca());
    }

    #[test]
    fn the_front_proxys_certificate_is_no_users() {
        let (_dir, pki) = pki();
        let server = crate::tls::Server::with_front_proxy(&pki.api_server, &pki.ca, Some(&pki.front_proxy_ca)).unwrap();
        let chain = |pair: &Pair| vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
        assert_eq!(server.peer(&chain(&pki.front_proxy_client)), Some(crate::tls::Peer::FrontProxy("front-proxy-client".into())));
        let plain = crate::tls::Server::new(&pki.api_server, &pki.ca).unwrap();
        assert_eq!(plain.peer(&chain(&pki.front_proxy_client)), None);
        // A serving certificate is not for clients.
        assert_eq!(server.peer(&chain(&pki.api_server)), None);
    }

    #[test]
    fn signers_take_what_their_rules_allow() {
        let client = ["client auth", "digital signature"];
        let serving = ["server auth", "digital signature", "key encipherment"];
        let host = ["n1".to_owned(), "192.0.2.1".to_owned()];
        let cases: &[(&str, &str, &[&str], &[String], &[&str], &str)] = &[
            (KUBELET_CLIENT, "system:node:n1", &["system:nodes"], &[], &client, ""),
            (KUBELET_CLIENT, "system:node:n1", &["system:masters"], &[], &client, "organization in subject must be system:nodes"),
            (
                KUBELET_CLIENT,
                "system:node:n1",
                &["system:nodes", "system:masters"],
                &[],
                &client,
                "organization in subject must be system:nodes",
            ),
            (KUBELET_CLIENT, "n1", &["system:nodes"], &[], &client, "subject common name does not begin with 'system:node:'"),
            (KUBELET_CLIENT, "system:node:n1", &["system:nodes"], &host, &client, "DNS or IP subjectAltNames are not allowed"),
            (KUBELET_CLIENT, "system:node:n1", &["system:nodes"], &[], &serving, "usages must be exactly"),
            (KUBELET_SERVING, "system:node:n1", &["system:nodes"], &host, &serving, ""),
            (KUBELET_SERVING, "system:node:n1", &["system:nodes"], &[], &serving, "DNS or IP subjectAltName is required"),
            (CLIENT, "jane", &[], &[], &client, ""),
            (CLIENT, "jane", &[], &[], &serving, "usages did not match"),
        ];
        for (signer, name, organizations, hosts, usages, refusal) in cases {
            let (_, request) = make(name, organizations, hosts).unwrap();
            let found = Request::parse(request.as_bytes()).unwrap().check(signer, usages).err().unwrap_or_default();
            assert!(found.starts_with(refusal) && found.is_empty() == refusal.is_empty(), "{signer} {name}: {found}");
        }
    }

    #[test]
    fn rubbish_and_stolen_keys_are_refused() {
        assert!(matches!(Request::parse(b"no"), Err(Error::Pem)));
        assert!(matches!(Request::parse(pem("CERTIFICATE REQUEST", b"no").as_bytes()), Err(Error::Form)));
        let (_, request) = make("jane", &[], &[]).unwrap();
        let mut der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).unwrap().to_vec();
        let at = der.windows(4).position(|window| window == b"jane").unwrap();
        der[at] = b'J';
        assert!(matches!(Request::parse(pem("CERTIFICATE REQUEST", &der).as_bytes()), Err(Error::Signature)));
    }
}
