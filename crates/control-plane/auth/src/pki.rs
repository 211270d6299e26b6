//! The cluster's own keys and certificates, in one folder that only root can read.
//!
//! [`Pki::open`] makes what is missing and renews what expires soon or no longer names the right hosts; everything else stays as it
//! is, so that a restart changes no identity. Keys are P-256. The layout follows kubeadm's `/etc/kubernetes/pki`: one CA for the API server, kubelets
//! and users, and one for the front proxy, whose word about its users is believed. Opening again while the cluster runs is how certificates are
//! rotated: what was renewed is handed to [`crate::tls`].

pub mod authority;
mod unverified;

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use authority::Authority;
pub use unverified::{any_certificate, unverified_client_config};

const DAY: i64 = 86_400;
/// Certificates begin in the past by so much: other machines' clocks differ.
const CLOCK_SKEW: i64 = 300;

/// How long certificates are valid, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    pub ca: i64,
    pub leaf: i64,
    /// How long before its end a leaf is renewed.
    pub renew_before: i64,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { ca: 3_650 * DAY, leaf: 365 * DAY, renew_before: 60 * DAY }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: not a certificate or key that can be read")]
    Damaged { path: PathBuf },
    #[error("make certificate {name}")]
    Make { name: &'static str, source: rcgen::Error },
    #[error("TLS configuration")]
    Tls(#[source] rustls::Error),
    #[error("certificate verifier")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    #[error("{0}: not a certificate or key that can be read")]
    Pem(&'static str),
}

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// Names that certificates must carry.
#[derive(Clone, Debug)]
pub struct Names {
    /// DNS names of the API server besides `localhost` and `kubernetes[.default[.svc[.<domain>]]]`.
    pub api_hosts: Vec<String>,
    /// Addresses of the API server besides the loopbacks: the node's, and the first of the Service range.
    pub api_addresses: Vec<IpAddr>,
    pub cluster_domain: String,
    pub node_name: String,
    pub node_addresses: Vec<IpAddr>,
}

/// The keys of one cluster with one control-plane node.
#[derive(Clone)]
pub struct Pki {
    /// Every authority that is trusted, PEM: the issuing one first, then, while it is exchanged, the next and the former one.
    pub ca: String,
    /// The issuing authority's certificate alone.
    pub issuing: String,
    /// Signs certificates that are asked for through the API.
    pub ca_key: String,
    /// Every authority that is trusted of front proxies, as `ca`, and what the API server shows to aggregated API servers as their front proxy.
    pub front_proxy_ca: String,
    pub front_proxy_client: Pair,
    pub api_server: Pair,
    /// What the API server shows to kubelets.
    pub kubelet_client: Pair,
    /// What the kubelet shows to its callers.
    pub kubelet_server: Pair,
    /// Group `system:masters`.
    pub admin: Pair,
    /// Signs service account tokens: a P-256 key, PKCS#8 PEM, and its public half.
    pub service_account_key: String,
    pub service_account_public: String,
    /// Public keys of before (`sa-*.pub`), whose tokens are still believed.
    pub service_account_trusted: Vec<String>,
}

/// What a leaf certificate says.
struct Leaf {
    name: &'static str,
    common_name: String,
    organization: Option<&'static str>,
    hosts: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Pki {
    /// Reads the folder, making and renewing what has to be.
    pub fn open(dir: &Path, names: &Names) -> Result<Self, Error> {
        Self::open_with(dir, names, &Lifetimes::default())
    }

    pub fn open_with(dir: &Path, names: &Names, lifetimes: &Lifetimes) -> Result<Self, Error> {
        make_dir(dir)?;
        Authority::ALL.iter().try_for_each(|authority| authority.recover(dir))?;
        let (issuing, issuer) = Authority::Cluster.open(dir, lifetimes)?;
        let (front_issuing, front_issuer) = Authority::FrontProxy.open(dir, lifetimes)?;
        let leaf = |leaf: Leaf| leaf.open(dir, &issuer, lifetimes);
        let service_account = key(dir, "sa")?;
        write(&dir.join("sa.pub"), &service_account.public_key_pem())?;
        Ok(Self {
            ca: Authority::Cluster.bundle(dir, &issuing)?,
            issuing,
            ca_key: issuer.key().serialize_pem(),
            front_proxy_ca: Authority::FrontProxy.bundle(dir, &front_issuing)?,
            front_proxy_client: client("front-proxy-client", "front-proxy-client", None).open(dir, &front_issuer, lifetimes)?,
            api_server: leaf(api_server(names))?,
            kubelet_client: leaf(client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", None))?,
            kubelet_server: leaf(kubelet_server(names))?,
            admin: leaf(client("admin", "kubernetes-admin", Some("system:masters")))?,
            service_account_public: service_account.public_key_pem(),
            service_account_trusted: trusted(dir)?,
            service_account_key: service_account.serialize_pem(),
        })
    }
}

/// What a node of the cluster is known by.
#[derive(Clone)]
pub struct NodeKeys {
    /// The CA's certificate, PEM.
    pub ca: String,
    /// `system:node:<name>` in group `system:nodes`.
    pub client: Pair,
    /// What the kubelet shows to its callers.
    pub server: Pair,
}

impl NodeKeys {
    /// Makes, renews or reads in `node_dir` the keys of another node, signed by the authority in `dir`.
    pub fn issue(dir: &Path, node_dir: &Path, name: &str, addresses: &[IpAddr], lifetimes: &Lifetimes) -> Result<Self, Error> {
        make_dir(node_dir)?;
        let (issuing, issuer) = Authority::Cluster.open(dir, lifetimes)?;
        let ca = Authority::Cluster.bundle(dir, &issuing)?;
        write(&node_dir.join("ca.crt"), &ca)?;
        let names = Names {
            api_hosts: Vec::new(),
            api_addresses: Vec::new(),
            cluster_domain: String::new(),
            node_name: name.to_owned(),
            node_addresses: addresses.to_vec(),
        };
        let client = client("kubelet-client", &format!("system:node:{name}"), Some("system:nodes")).open(node_dir, &issuer, lifetimes)?;
        Ok(Self { ca, client, server: kubelet_server(&names).open(node_dir, &issuer, lifetimes)? })
    }

    /// Keeps keys that came from certificate requests where [`NodeKeys::read`] finds them.
    pub fn write(&self, node_dir: &Path) -> Result<(), Error> {
        make_dir(node_dir)?;
        write(&node_dir.join("ca.crt"), &self.ca)?;
        for (name, pair) in [("kubelet-client", &self.client), ("kubelet", &self.server)] {
            // The key first: a certificate without its key would be taken for whole.
            write(&node_dir.join(format!("{name}.key")), &pair.key)?;
            write(&node_dir.join(format!("{name}.crt")), &pair.certificate)?;
        }
        Ok(())
    }

    /// Reads what is kept there; `None` where nothing was made yet.
    pub fn read(node_dir: &Path) -> Result<Option<Self>, Error> {
        let file = |name: &str| read(&node_dir.join(name));
        let pair = |name: &str| Ok::<_, Error>(file(&format!("{name}.crt"))?.zip(file(&format!("{name}.key"))?));
        let (Some(ca), Some(client), Some(server)) = (file("ca.crt")?, pair("kubelet-client")?, pair("kubelet")?) else { return Ok(None) };
        let pair = |(certificate, key)| Pair { certificate, key };
        Ok(Some(Self { ca, client: pair(client), server: pair(server) }))
    }
}

impl Pki {
    /// Signs and verifies service account tokens with this cluster's keys.
    pub fn token_issuer(&self, issuer: &str) -> Result<crate::tokens::Issuer, crate::tokens::Error> {
        crate::tokens::Issuer::trusting(&self.service_account_key, &self.service_account_trusted, issuer)
    }

    /// When the first of the leaves is to be renewed, in seconds since the epoch.
    pub fn renew_at(&self, lifetimes: &Lifetimes) -> i64 {
        let leaves = [&self.api_server, &self.kubelet_client, &self.kubelet_server, &self.admin, &self.front_proxy_client];
        let ends = leaves.iter().filter_map(|leaf| crate::csr::validity(&leaf.certificate)).map(|(_, end)| end);
        ends.min().unwrap_or(i64::MAX).saturating_sub(lifetimes.renew_before)
    }
}

/// The first certificate of a PEM text as DER.
pub fn der(pem: &[u8]) -> Option<Vec<u8>> {
    CertificateDer::from_pem_slice(pem).ok().map(|certificate| certificate.as_ref().to_vec())
}

/// A certificate (DER) as PEM.
pub fn pem_of(certificate: &[u8]) -> String {
    crate::csr::pem("CERTIFICATE", certificate)
}

/// The SubjectPublicKeyInfo (DER) of a certificate (DER).
pub fn public_key(certificate: &[u8]) -> Option<Vec<u8>> {
    X509Certificate::from_der(certificate).ok().map(|(_, certificate)| certificate.public_key().raw.to_vec())
}

impl Pair {
    /// For a server that has no certificate of the cluster's yet.
    pub fn self_signed(name: &str, addresses: &[IpAddr]) -> Result<Self, Error> {
        let made = |source| Error::Make { name: "self-signed", source };
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(made)?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(made)?;
        params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        let certificate = params.self_signed(&key).map_err(made)?.pem();
        Ok(Self { certificate, key: key.serialize_pem() })
    }

    /// Serves with this certificate over HTTP/2 and HTTP/1.1; clients may show a certificate of `client_ca` (PEM). For what is rotated:
    /// [`crate::tls::Server`].
    pub fn server_config(&self, client_ca: &str) -> Result<Arc<rustls::ServerConfig>, Error> {
        crate::tls::Server::new(self, client_ca)?.config()
    }

    /// Shows this certificate to servers that `server_ca` (PEM) vouches for. No ALPN: HTTP/1.1, as upgrades need it.
    pub fn client_config(&self, server_ca: &str) -> Result<Arc<rustls::ClientConfig>, Error> {
        crate::tls::Client::new(self)?.config(server_ca)
    }
}

fn api_server(names: &Names) -> Leaf {
    let domain = &names.cluster_domain;
    let fixed = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned);
    let mut hosts: Vec<String> = fixed.into();
    hosts.push(format!("kubernetes.default.svc.{domain}"));
    hosts.extend(names.api_hosts.iter().cloned());
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)];
    addresses.extend(&names.api_addresses);
    Leaf { name: "apiserver", common_name: "kube-apiserver".into(), organization: None, hosts, addresses }
}

fn kubelet_server(names: &Names) -> Leaf {
    Leaf {
        name: "kubelet",
        common_name: format!("system:node:{}", names.node_name),
        organization: Some("system:nodes"),
        hosts: vec![names.node_name.clone()],
        addresses: names.node_addresses.clone(),
    }
}

fn client(name: &'static str, common_name: &str, organization: Option<&'static str>) -> Leaf {
    Leaf { name, common_name: common_name.into(), organization, hosts: Vec::new(), addresses: Vec::new() }
}

impl Leaf {
    fn open(&self, dir: &Path, issuer: &Issuer<'_, KeyPair>, lifetimes: &Lifetimes) -> Result<Pair, Error> {
        let path = dir.join(format!("{}.crt", self.name));
        let key = key(dir, self.name)?;
        let stored = read(&path)?.filter(|pem| self.is_good(pem, &key, issuer, lifetimes));
        let certificate = match stored {
            Some(pem) => pem,
            None => {
                let made = self.params(lifetimes).and_then(|params| params.signed_by(&key, issuer));
                let pem = made.map_err(|source| Error::Make { name: self.name, source })?.pem();
                write(&path, &pem)?;
                pem
            }
        };
        Ok(Pair { certificate, key: key.serialize_pem() })
    }

    fn params(&self, lifetimes: &Lifetimes) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(self.hosts.clone())?;
        params.subject_alt_names.extend(self.addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name = subject(&self.common_name, self.organization);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let server = !self.hosts.is_empty();
        params.extended_key_usages = vec![if server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth }];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (from_now(-CLOCK_SKEW), from_now(lifetimes.leaf));
        Ok(params)
    }

    /// Still valid for a while, made for this key by this CA, naming at least the wanted hosts.
    fn is_good(&self, pem: &str, key: &KeyPair, issuer: &Issuer<'_, KeyPair>, lifetimes: &Lifetimes) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
        let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
        let soon = jiff::Timestamp::now().as_second() + lifetimes.renew_before;
        let (mut hosts, mut addresses) = (Vec::new(), Vec::new());
        let names = certificate.subject_alternative_name().ok().flatten();
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(host) => hosts.push((*host).to_owned()),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        let by_our_ca = x509_parser::x509::SubjectPublicKeyInfo::from_der(&issuer.key().subject_public_key_info())
            .is_ok_and(|(_, ca_key)| certificate.verify_signature(Some(&ca_key)).is_ok());
        let subject = certificate.subject();
        let organizations: Vec<&str> = subject.iter_organization().filter_map(|attribute| attribute.as_str().ok()).collect();
        let named = subject.iter_common_name().filter_map(|attribute| attribute.as_str().ok()).eq([self.common_name.as_str()]);
        certificate.validity().not_after.timestamp() > soon
            && named
            && organizations == self.organization.as_slice()
            && certificate.public_key().raw == key.subject_public_key_info()
            && by_our_ca
            && self.hosts.iter().all(|host| hosts.contains(host))
            && self.addresses.iter().all(|address| addresses.contains(address))
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn subject(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if let Some(organization) = organization {
        subject.push(DnType::OrganizationName, organization);
    }
    subject.push(DnType::CommonName, common_name);
    subject
}

fn from_now(seconds: i64) -> time::OffsetDateTime {
    let at = jiff::Timestamp::now().as_second() + seconds;
    time::OffsetDateTime::from_unix_timestamp(at).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

/// The key `<name>.key`, made when absent.
fn key(dir: &Path, name: &'static str) -> Result<KeyPair, Error> {
    let path = dir.join(format!("{name}.key"));
    if let Some(pem) = read(&path)? {
        return KeyPair::from_pem(&pem).map_err(|_| Error::Damaged { path });
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|source| Error::Make { name, source })?;
    write(&path, &key.serialize_pem())?;
    Ok(key)
}

/// Makes another key that signs service account tokens; the former one's tokens are believed as long as its `sa-*.pub` is there.
pub fn rotate_service_account_key(dir: &Path) -> Result<(), Error> {
    let former = key(dir, "sa")?;
    let now = jiff::Timestamp::now().as_millisecond();
    write(&dir.join(format!("sa-{now}.pub")), &former.public_key_pem())?;
    let next = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|source| Error::Make { name: "sa", source })?;
    write(&dir.join("sa.key"), &next.serialize_pem())
}

/// The files `sa-*.pub`, in the order of their names.
fn trusted(dir: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::File { path: dir.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("sa-") && name.ends_with(".pub") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| read(path).map(Option::unwrap_or_default)).collect()
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| Error::File { path: dir.to_owned(), source })
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

/// Replaces the file atomically and durably; nobody but its owner may read it.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    // Most starts change nothing, and then need no room on a full disk.
    if fs::read_to_string(path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    let temporary = path.with_extension("new");
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(|source| Error::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names() -> Names {
        Names {
            api_hosts: vec!["box".into()],
            api_addresses: vec![[192, 0, 2, 1].into(), [10, 96, 0, 1].into()],
            cluster_domain: "cluster.local".into(),
            node_name: "box".into(),
            node_addresses: vec![[192, 0, 2, 1].into()],
        }
    }

    #[test]
    fn opening_again_changes_no_identity() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), &names()).unwrap();
        let again = Pki::open(dir.path(), &names()).unwrap();
        assert_eq!((first.ca, first.api_server.certificate, first.admin.key), (again.ca, again.api_server.certificate, again.admin.key));
        assert_eq!(first.service_account_public, again.service_account_public);
    }

    #[test]
    fn a_new_address_renews_the_certificate_that_must_name_it_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), &names()).unwrap();
        let mut moved = names();
        moved.api_addresses.push([198, 51, 100, 7].into());
        let again = Pki::open(dir.path(), &moved).unwrap();
        assert_ne!(first.api_server.certificate, again.api_server.certificate);
        assert_eq!((first.api_server.key, first.admin.certificate), (again.api_server.key, again.admin.certificate));
    }

    #[test]
    fn what_ends_soon_is_renewed_and_the_authority_stays() {
        let dir = tempfile::tempdir().unwrap();
        let short = Lifetimes { leaf: 60, renew_before: 20, ..Lifetimes::default() };
        let first = Pki::open_with(dir.path(), &names(), &short).unwrap();
        let same = Pki::open_with(dir.path(), &names(), &short).unwrap();
        let later = Pki::open_with(dir.path(), &names(), &Lifetimes { renew_before: 61, ..short }).unwrap();
        assert_eq!((&first.ca, &first.front_proxy_ca), (&later.ca, &later.front_proxy_ca));
        for (a, b, c) in [
            (&first.api_server, &same.api_server, &later.api_server),
            (&first.admin, &same.admin, &later.admin),
            (&first.front_proxy_client, &same.front_proxy_client, &later.front_proxy_client),
        ] {
            assert_eq!(a.certificate, b.certificate);
            assert_ne!(a.certificate, c.certificate);
            assert_eq!(a.key, c.key);
        }
    }

    #[test]
    fn another_signing_key_leaves_the_tokens_of_the_former_one_alone() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Pki::open(dir.path(), &names()).unwrap();
        let issuer = open().token_issuer("https://a").unwrap();
        let account = crate::tokens::Reference { name: "bot".into(), uid: "u".into() };
        let bound = crate::tokens::Bound { namespace: "a".into(), serviceaccount: account, ..Default::default() };
        let now = jiff::Timestamp::now().as_second();
        let token = || issuer.issue(bound.clone(), &[], 600, now).unwrap();
        let old = token();
        rotate_service_account_key(dir.path()).unwrap();
        let pki = open();
        issuer.replace(&pki.service_account_key, &pki.service_account_trusted).unwrap();
        let new = token();
        assert!([&old, &new].iter().all(|token| issuer.verify(token, issuer.audiences()).is_ok()));
        assert!(Pki::open(dir.path(), &names()).unwrap().token_issuer("https://a").unwrap().verify(&old, issuer.audiences()).is_ok());
        assert_ne!(old.split('.').next(), new.split('.').next(), "the header names the key");
        assert_eq!(issuer.key_set()["keys"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn nobody_but_the_owner_can_read_the_keys() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        Pki::open(&pki, &names()).unwrap();
        for entry in fs::read_dir(&pki).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.path());
        }
        assert_eq!(fs::metadata(&pki).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path(), &names()).unwrap();
        fs::write(dir.path().join("ca.key"), "rubbish").unwrap();
        let error = Pki::open(dir.path(), &names()).err().unwrap().to_string();
        assert!(error.contains("ca.key"), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join("ca.key")).unwrap(), "rubbish");
    }

    #[test]
    fn the_serving_certificate_is_accepted_by_tls() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &names()).unwrap();
        assert_eq!(pki.api_server.server_config(&pki.ca).unwrap().alpn_protocols.len(), 2);
    }
}
