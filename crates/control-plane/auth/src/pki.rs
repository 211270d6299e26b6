//! The cluster's own keys and certificates, in a directory: made where they are missing, renewed when they run out.
//!
//! One P-256 CA signs everything. Private files have mode 600. Calling [`ensure`] again changes nothing unless a leaf is close to its end
//! or its names changed.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_VALID: Duration = Duration::from_secs(3650 * 24 * 3600);
const LEAF_VALID: Duration = Duration::from_secs(365 * 24 * 3600);
/// A leaf with less than this left is made anew.
const RENEW_BEFORE: Duration = Duration::from_secs(90 * 24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("certificate {name}")]
    Make { name: String, source: rcgen::Error },
    #[error("{path} is no PEM file of the expected kind: {why}")]
    Pem { path: PathBuf, why: String },
    #[error("TLS configuration from {path}")]
    Tls { path: PathBuf, source: rustls::Error },
    #[error("TLS client verifier: {0}")]
    Verifier(String),
}

/// The names that go into the certificates.
#[derive(Clone, Debug)]
pub struct Options {
    pub node_name: String,
    /// Addresses under which the API server and the kubelet of this node are reached.
    pub addresses: Vec<IpAddr>,
    /// Further DNS names of the API server.
    pub hosts: Vec<String>,
    /// The address of the `kubernetes` Service.
    pub service_address: IpAddr,
    pub cluster_domain: String,
}

/// A certificate and its key, as PEM, with their files.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

/// Everything that a cluster of one node needs.
#[derive(Clone, Debug)]
pub struct Pki {
    pub ca: Pair,
    /// The API server's serving certificate.
    pub apiserver: Pair,
    /// The API server as a client of kubelets (`kube-apiserver-kubelet-client`, `system:masters`).
    pub apiserver_kubelet_client: Pair,
    /// The kubelet's serving certificate.
    pub kubelet: Pair,
    /// `system:node:<name>` in `system:nodes`.
    pub kubelet_client: Pair,
    /// `kubernetes-admin` in `system:masters`.
    pub admin: Pair,
    pub controller_manager: Pair,
    pub scheduler: Pair,
    /// Signs service account tokens (PKCS#8 PEM of a P-256 key).
    pub service_account_key: String,
}

/// Loads the PKI from `directory` and makes what is missing or about to expire.
pub fn ensure(directory: &Path, options: &Options) -> Result<Pki, Error> {
    std::fs::create_dir_all(directory).map_err(|source| Error::File { path: directory.into(), source })?;
    let authority = Authority::ensure(directory)?;
    let client = |file: &str, name: &str, group: Option<&str>| authority.leaf(directory, file, Leaf::client(name, group));
    let node_user = format!("system:node:{}", options.node_name);
    Ok(Pki {
        apiserver: authority.leaf(directory, "apiserver", Leaf::server("kube-apiserver", apiserver_names(options)))?,
        apiserver_kubelet_client: client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"))?,
        kubelet: authority.leaf(directory, "kubelet", Leaf::server(&node_user, kubelet_names(options)))?,
        kubelet_client: client("kubelet-client", &node_user, Some("system:nodes"))?,
        admin: client("admin", "kubernetes-admin", Some("system:masters"))?,
        controller_manager: client("controller-manager", "system:kube-controller-manager", None)?,
        scheduler: client("scheduler", "system:kube-scheduler", None)?,
        service_account_key: service_account_key(directory)?,
        ca: authority.pair,
    })
}

fn apiserver_names(options: &Options) -> Vec<Name> {
    let domain = &options.cluster_domain;
    let mut names: Vec<Name> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"].map(|name| Name::Host(name.into())).into();
    names.push(Name::Host(format!("kubernetes.default.svc.{domain}")));
    names.push(Name::Host(options.node_name.clone()));
    names.extend(options.hosts.iter().cloned().map(Name::Host));
    names.extend([Name::Address(IpAddr::from([127, 0, 0, 1])), Name::Address(IpAddr::from(std::net::Ipv6Addr::LOCALHOST))]);
    names.push(Name::Address(options.service_address));
    names.extend(options.addresses.iter().copied().map(Name::Address));
    dedup(names)
}

fn kubelet_names(options: &Options) -> Vec<Name> {
    let mut names =
        vec![Name::Host(options.node_name.clone()), Name::Host("localhost".into()), Name::Address(IpAddr::from([127, 0, 0, 1]))];
    names.extend(options.addresses.iter().copied().map(Name::Address));
    dedup(names)
}

fn dedup(mut names: Vec<Name>) -> Vec<Name> {
    names.sort();
    names.dedup();
    names
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Host(String),
    Address(IpAddr),
}

struct Leaf {
    common_name: String,
    group: Option<String>,
    /// Empty: a client.
    names: Vec<Name>,
}

impl Leaf {
    fn client(name: &str, group: Option<&str>) -> Self {
        Self { common_name: name.into(), group: group.map(str::to_owned), names: Vec::new() }
    }
    fn server(name: &str, names: Vec<Name>) -> Self {
        Self { common_name: name.into(), group: None, names }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        set_validity(&mut params, LEAF_VALID);
        params.distinguished_name.push(DnType::CommonName, self.common_name.as_str());
        if let Some(group) = &self.group {
            params.distinguished_name.push(DnType::OrganizationName, group.as_str());
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = match self.names.is_empty() {
            true => vec![ExtendedKeyUsagePurpose::ClientAuth],
            false => vec![ExtendedKeyUsagePurpose::ServerAuth],
        };
        // A host name that cannot stand in a certificate is left out.
        params.subject_alt_names = self.names.iter().filter_map(san).collect();
        params
    }

    /// The existing certificate still says what it should, for long enough, and comes from this CA.
    fn is_current(&self, der: &[u8], ca: &[u8]) -> bool {
        let (Ok((_, leaf)), Ok((_, ca))) = (X509Certificate::from_der(der), X509Certificate::from_der(ca)) else {
            return false;
        };
        let names: Vec<Name> = leaf.subject_alternative_name().ok().flatten().map(|san| sans(&san.value.general_names)).unwrap_or_default();
        let wanted: Vec<Name> = self.names.iter().filter(|name| san(name).is_some()).cloned().collect();
        let common_name = leaf.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        common_name == Some(self.common_name.as_str())
            && dedup(names) == dedup(wanted)
            && leaf.validity().not_after.timestamp() > (now() + RENEW_BEFORE).as_secs() as i64
            && authority_key(&leaf) == subject_key(&ca)
    }
}

fn san(name: &Name) -> Option<SanType> {
    match name {
        Name::Host(host) => host.as_str().try_into().ok().map(SanType::DnsName),
        Name::Address(address) => Some(SanType::IpAddress(*address)),
    }
}

fn sans(names: &[GeneralName<'_>]) -> Vec<Name> {
    let one = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(host) => Some(Name::Host((*host).to_owned())),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| Name::Address(bytes.into())),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| Name::Address(bytes.into())),
        },
        _ => None,
    };
    names.iter().filter_map(one).collect()
}

fn authority_key(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}

fn subject_key(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// From yesterday (clocks differ) until `valid` from now.
fn set_validity(params: &mut CertificateParams, valid: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now().saturating_sub(DAY);
    params.not_after = epoch + now() + valid;
}

struct Authority {
    pair: Pair,
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl Authority {
    fn ensure(directory: &Path) -> Result<Self, Error> {
        let (certificate_file, key_file) = (directory.join("ca.crt"), directory.join("ca.key"));
        let make = |source| Error::Make { name: "ca".into(), source };
        let (certificate, key) = match (read(&certificate_file)?, read(&key_file)?) {
            (Some(certificate), Some(key)) => (certificate, key),
            _ => {
                let key = KeyPair::generate().map_err(make)?;
                let mut params = CertificateParams::default();
                set_validity(&mut params, CA_VALID);
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.distinguished_name.push(DnType::CommonName, "kubernetes");
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
                let certificate = params.self_signed(&key).map_err(make)?.pem();
                let key = key.serialize_pem();
                write_private(&key_file, &key)?;
                write_public(&certificate_file, &certificate)?;
                (certificate, key)
            }
        };
        let der = certificate_der(&certificate, &certificate_file)?.to_vec();
        let signer = KeyPair::from_pem(&key).map_err(make)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, signer).map_err(make)?;
        Ok(Self { pair: Pair { certificate, key, certificate_file, key_file }, issuer, der })
    }

    fn leaf(&self, directory: &Path, file: &str, leaf: Leaf) -> Result<Pair, Error> {
        let (certificate_file, key_file) = (directory.join(format!("{file}.crt")), directory.join(format!("{file}.key")));
        if let (Some(certificate), Some(key)) = (read(&certificate_file)?, read(&key_file)?) {
            let der = certificate_der(&certificate, &certificate_file)?;
            if leaf.is_current(&der, &self.der) {
                return Ok(Pair { certificate, key, certificate_file, key_file });
            }
        }
        let make = |source| Error::Make { name: file.into(), source };
        let key = KeyPair::generate().map_err(make)?;
        let certificate = leaf.params().signed_by(&key, &self.issuer).map_err(make)?.pem();
        let key = key.serialize_pem();
        write_private(&key_file, &key)?;
        write_public(&certificate_file, &certificate)?;
        Ok(Pair { certificate, key, certificate_file, key_file })
    }
}

fn service_account_key(directory: &Path) -> Result<String, Error> {
    let file = directory.join("sa.key");
    if let Some(key) = read(&file)? {
        return Ok(key);
    }
    let key = KeyPair::generate().map_err(|source| Error::Make { name: "sa".into(), source })?;
    write_private(&file, &key.serialize_pem())?;
    write_public(&directory.join("sa.pub"), &key.public_key_pem())?;
    Ok(key.serialize_pem())
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.into(), source }),
    }
}

fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    write(path, text, 0o600)
}

fn write_public(path: &Path, text: &str) -> Result<(), Error> {
    write(path, text, 0o644)
}

/// Complete or not at all: a crash in between leaves the old file.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let fail = |source| Error::File { path: path.into(), source };
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh).map_err(fail)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&fresh, path).map_err(fail)
}

fn certificate_der(pem: &str, path: &Path) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| Error::Pem { path: path.into(), why: error.to_string() })
}

impl Pair {
    fn der(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|error| Error::Pem { path: self.key_file.clone(), why: error.to_string() })?;
        Ok((vec![certificate_der(&self.certificate, &self.certificate_file)?], key))
    }
}

impl Pki {
    fn roots(&self) -> Result<rustls::RootCertStore, Error> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = certificate_der(&self.ca.certificate, &self.ca.certificate_file)?;
        roots.add(ca).map_err(|source| Error::Tls { path: self.ca.certificate_file.clone(), source })?;
        Ok(roots)
    }

    /// A server that takes client certificates of the cluster's CA, or none.
    pub fn server_config(&self, pair: &Pair) -> Result<Arc<rustls::ServerConfig>, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone());
        let verifier = verifier.allow_unauthenticated().build().map_err(|error| Error::Verifier(error.to_string()))?;
        let tls = |source| Error::Tls { path: pair.certificate_file.clone(), source };
        let (chain, key) = pair.der()?;
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(tls)?;
        let mut config = builder.with_client_cert_verifier(verifier).with_single_cert(chain, key).map_err(tls)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A client that trusts the cluster's CA and shows `pair`. No ALPN is offered: HTTP/1.1, as upgrades need it.
    pub fn client_config(&self, pair: &Pair) -> Result<Arc<rustls::ClientConfig>, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = |source| Error::Tls { path: pair.certificate_file.clone(), source };
        let (chain, key) = pair.der()?;
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(tls)?;
        Ok(Arc::new(builder.with_root_certificates(self.roots()?).with_client_auth_cert(chain, key).map_err(tls)?))
    }
}

/// A kubeconfig for one user of one cluster, all data inline. `name` names cluster, user and context.
pub fn kubeconfig(name: &str, server: &str, ca: &str, user: &Pair) -> String {
    use base64::Engine;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\n\
         users:\n- name: {name}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
         contexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {name}\ncurrent-context: {name}\n",
        encode(ca),
        encode(&user.certificate),
        encode(&user.key)
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn options() -> Options {
        Options {
            node_name: "node-a".into(),
            addresses: vec![IpAddr::from([192, 0, 2, 7])],
            hosts: vec!["api.example.com".into()],
            service_address: IpAddr::from([10, 96, 0, 1]),
            cluster_domain: "cluster.local".into(),
        }
    }

    #[test]
    fn a_second_start_keeps_every_key_and_a_new_name_renews_only_its_leaf() {
        let directory = tempfile::tempdir().unwrap();
        let first = ensure(directory.path(), &options()).unwrap();
        let second = ensure(directory.path(), &options()).unwrap();
        assert_eq!(first.apiserver.certificate, second.apiserver.certificate);
        assert_eq!(first.service_account_key, second.service_account_key);
        let third = ensure(directory.path(), &Options { hosts: vec!["other.example.com".into()], ..options() }).unwrap();
        assert_ne!(first.apiserver.certificate, third.apiserver.certificate);
        assert_eq!(first.admin.certificate, third.admin.certificate);
        for file in ["ca.key", "apiserver.key", "sa.key"] {
            let mode = std::fs::metadata(directory.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn certificates_carry_their_identity() {
        let directory = tempfile::tempdir().unwrap();
        let pki = ensure(directory.path(), &options()).unwrap();
        let user = |pair: &Pair| crate::authenticate::certificate_user(&pair.der().unwrap().0[0]).unwrap();
        assert_eq!(user(&pki.admin), crate::UserInfo::authenticated("kubernetes-admin", &["system:masters"]));
        assert_eq!(user(&pki.kubelet_client), crate::UserInfo::authenticated("system:node:node-a", &["system:nodes"]));
        assert_eq!(user(&pki.scheduler), crate::UserInfo::authenticated("system:kube-scheduler", &[]));
        pki.server_config(&pki.apiserver).unwrap();
        pki.client_config(&pki.admin).unwrap();
    }
}
