//! The cluster's authorities, and their exchange while the cluster runs: the new one is trusted before it signs, and the old one as long as anything
//! that it signed may still be shown.
//!
//! The files say how far an exchange has come, so that it goes on after a restart: `<name>-next.*` is trusted and signs nothing yet;
//! [`Authority::promote`] makes it `<name>.*` and puts the former certificate into `<name>-former.crt`, which [`Authority::retire`] removes.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CLOCK_SKEW, Error, Lifetimes, from_now, key, read, subject, write};

/// An authority of the cluster's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// Of the API server, kubelets and users.
    Cluster,
    /// Of those whose word about their users is believed.
    FrontProxy,
}

/// How far an exchange has come, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Steady,
    /// The next authority is trusted.
    Prepared(SystemTime),
    /// It signs, and the former one is still trusted.
    Promoted(SystemTime),
}

impl Authority {
    pub const ALL: [Self; 2] = [Self::Cluster, Self::FrontProxy];

    fn name(self) -> &'static str {
        match self {
            Self::Cluster => "ca",
            Self::FrontProxy => "front-proxy-ca",
        }
    }
    fn next(self) -> &'static str {
        match self {
            Self::Cluster => "ca-next",
            Self::FrontProxy => "front-proxy-ca-next",
        }
    }
    fn common_name(self) -> &'static str {
        match self {
            Self::Cluster => "kubernetes",
            Self::FrontProxy => "front-proxy-ca",
        }
    }
    fn former(self) -> String {
        format!("{}-former.crt", self.name())
    }

    pub fn phase(self, dir: &Path) -> Phase {
        let since = |name: &str| fs::metadata(dir.join(name)).and_then(|file| file.modified()).ok();
        match (since(&format!("{}.crt", self.next())), since(&self.former())) {
            (Some(since), _) => Phase::Prepared(since),
            (None, Some(since)) => Phase::Promoted(since),
            (None, None) => Phase::Steady,
        }
    }

    /// Makes the next authority, if there is none yet. From the next opening on it is trusted.
    pub fn prepare(self, dir: &Path, lifetimes: &Lifetimes) -> Result<(), Error> {
        open(dir, self.next(), self.common_name(), lifetimes).map(drop)
    }

    /// The next authority signs from the next opening on, which renews every leaf.
    pub fn promote(self, dir: &Path) -> Result<(), Error> {
        let (name, next) = (self.name(), self.next());
        let Some(issuing) = read(&dir.join(format!("{name}.crt")))? else { return Ok(()) };
        let former = read(&dir.join(self.former()))?.unwrap_or_default();
        if !former.contains(issuing.trim()) {
            write(&dir.join(self.former()), &format!("{issuing}{former}"))?;
        }
        rename(dir, &format!("{next}.key"), &format!("{name}.key"))?;
        rename(dir, &format!("{next}.crt"), &format!("{name}.crt"))
    }

    /// The former authority is trusted no longer from the next opening on.
    pub fn retire(self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(self.former());
        fs::remove_file(&path).map_err(|source| Error::File { path, source })
    }

    /// When the issuing authority ends, in seconds since the epoch.
    pub fn ends_at(self, dir: &Path) -> Option<i64> {
        let issuing = fs::read_to_string(dir.join(format!("{}.crt", self.name()))).ok()?;
        crate::csr::validity(&issuing).map(|(_, end)| end)
    }

    /// Ends a promotion that a crash has torn: the key was exchanged, its certificate was not.
    pub(super) fn recover(self, dir: &Path) -> Result<(), Error> {
        let (name, next) = (self.name(), self.next());
        let file = |name: &str, kind: &str| read(&dir.join(format!("{name}.{kind}")));
        match (file(name, "key")?, file(next, "key")?, file(next, "crt")?) {
            (Some(key), None, Some(certificate)) if is_for(&certificate, &key) => {
                rename(dir, &format!("{next}.crt"), &format!("{name}.crt"))
            }
            _ => Ok(()),
        }
    }

    /// All that is trusted: the issuing authority, and those before and after it.
    pub(super) fn bundle(self, dir: &Path, issuing: &str) -> Result<String, Error> {
        let next = read(&dir.join(format!("{}.crt", self.next())))?.unwrap_or_default();
        let former = read(&dir.join(self.former()))?.unwrap_or_default();
        Ok(format!("{issuing}{next}{former}"))
    }

    /// The issuing one, made where it is absent.
    pub(super) fn open(self, dir: &Path, lifetimes: &Lifetimes) -> Result<(String, Issuer<'static, KeyPair>), Error> {
        open(dir, self.name(), self.common_name(), lifetimes)
    }
}

fn is_for(certificate: &str, key: &str) -> bool {
    let (Ok(der), Ok(key)) = (CertificateDer::from_pem_slice(certificate.as_bytes()), KeyPair::from_pem(key)) else { return false };
    X509Certificate::from_der(&der).is_ok_and(|(_, certificate)| certificate.public_key().raw == key.subject_public_key_info())
}

fn rename(dir: &Path, from: &str, to: &str) -> Result<(), Error> {
    let path = dir.join(from);
    fs::rename(&path, dir.join(to)).map_err(|source| Error::File { path, source })
}

/// The authority `<name>.*`, made where it is absent.
fn open(dir: &Path, name: &'static str, common_name: &str, lifetimes: &Lifetimes) -> Result<(String, Issuer<'static, KeyPair>), Error> {
    let path = dir.join(format!("{name}.crt"));
    let key = key(dir, name)?;
    let make = |source| Error::Make { name, source };
    if let Some(pem) = read(&path)? {
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|_| Error::Damaged { path })?;
        return Ok((pem, issuer));
    }
    let mut params = CertificateParams::new(Vec::new()).map_err(make)?;
    params.distinguished_name = subject(common_name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (from_now(-CLOCK_SKEW), from_now(lifetimes.ca));
    let pem = params.self_signed(&key).map_err(make)?.pem();
    write(&path, &pem)?;
    Ok((pem, Issuer::new(params, key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Names, Pki};

    const CLUSTER: Authority = Authority::Cluster;

    fn names() -> Names {
        Names {
            api_hosts: vec!["box".into()],
            api_addresses: vec![],
            cluster_domain: "cluster.local".into(),
            node_name: "box".into(),
            node_addresses: vec![],
        }
    }

    fn count(bundle: &str) -> usize {
        bundle.matches("BEGIN CERTIFICATE").count()
    }

    #[test]
    fn the_next_authority_is_trusted_before_it_signs_and_the_former_one_until_it_is_retired() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Pki::open(dir.path(), &names()).unwrap();
        let first = open();
        assert_eq!((CLUSTER.phase(dir.path()), count(&first.ca)), (Phase::Steady, 1));
        CLUSTER.prepare(dir.path(), &Lifetimes::default()).unwrap();
        CLUSTER.prepare(dir.path(), &Lifetimes::default()).unwrap();
        let prepared = open();
        assert!(matches!(CLUSTER.phase(dir.path()), Phase::Prepared(_)));
        assert!(prepared.ca.starts_with(&first.ca) && count(&prepared.ca) == 2);
        assert_eq!((&prepared.issuing, &prepared.api_server.certificate), (&first.issuing, &first.api_server.certificate));
        CLUSTER.promote(dir.path()).unwrap();
        let promoted = open();
        assert!(matches!(CLUSTER.phase(dir.path()), Phase::Promoted(_)));
        assert!(promoted.ca.contains(first.ca.trim()) && prepared.ca.contains(promoted.issuing.trim()) && count(&promoted.ca) == 2);
        assert_ne!(promoted.issuing, first.issuing);
        assert_ne!(
            (&promoted.api_server.certificate, &promoted.admin.certificate),
            (&first.api_server.certificate, &first.admin.certificate)
        );
        let issued = |pair: &crate::pki::Pair, bundle: &str| crate::csr::is_issued_by(&pair.certificate, bundle);
        assert!(issued(&first.admin, &prepared.ca) && !issued(&first.admin, &promoted.ca) && issued(&promoted.admin, &promoted.ca));
        // Who knows the old or the new authority believes both sides' certificates.
        for (bundle, pair) in [(&prepared.ca, &promoted.admin), (&promoted.ca, &first.admin)] {
            let server = crate::tls::Server::new(&promoted.api_server, bundle).unwrap();
            let leaf = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
            assert!(server.peer(&[leaf]).is_some());
        }
        CLUSTER.retire(dir.path()).unwrap();
        assert_eq!((CLUSTER.phase(dir.path()), open().ca), (Phase::Steady, promoted.issuing));
    }

    #[test]
    fn the_front_proxys_authority_is_exchanged_alone() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Pki::open(dir.path(), &names()).unwrap();
        let first = open();
        let peer = |pki: &Pki, pair: &crate::pki::Pair| {
            let server = crate::tls::Server::with_front_proxy(&pki.api_server, &pki.ca, Some(&pki.front_proxy_ca)).unwrap();
            server.peer(&[CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()])
        };
        let proxy = Some(crate::tls::Peer::FrontProxy("front-proxy-client".into()));
        Authority::FrontProxy.prepare(dir.path(), &Lifetimes::default()).unwrap();
        let prepared = open();
        assert_eq!((count(&prepared.front_proxy_ca), count(&prepared.ca)), (2, 1));
        assert_eq!(prepared.front_proxy_client.certificate, first.front_proxy_client.certificate);
        Authority::FrontProxy.promote(dir.path()).unwrap();
        let promoted = open();
        assert_ne!(promoted.front_proxy_client.certificate, first.front_proxy_client.certificate);
        assert_eq!(promoted.api_server.certificate, first.api_server.certificate);
        for (pki, pair) in [(&prepared, &promoted), (&promoted, &first)] {
            assert_eq!(peer(pki, &pair.front_proxy_client), proxy, "both are believed while they are exchanged");
        }
        Authority::FrontProxy.retire(dir.path()).unwrap();
        let last = open();
        assert_eq!((count(&last.front_proxy_ca), Authority::FrontProxy.phase(dir.path())), (1, Phase::Steady));
        assert_eq!((peer(&last, &first.front_proxy_client), peer(&last, &promoted.front_proxy_client)), (None, proxy));
    }

    #[test]
    fn a_promotion_that_was_torn_is_ended_by_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), &names()).unwrap();
        CLUSTER.prepare(dir.path(), &Lifetimes::default()).unwrap();
        let next = fs::read_to_string(dir.path().join("ca-next.crt")).unwrap();
        write(&dir.path().join(CLUSTER.former()), &first.issuing).unwrap();
        rename(dir.path(), "ca-next.key", "ca.key").unwrap();
        let found = Pki::open(dir.path(), &names()).unwrap();
        assert_eq!(found.issuing, next);
        assert_eq!(count(&found.ca), 2);
    }
}
