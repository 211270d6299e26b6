//! The cluster's authority, and its exchange while the cluster runs: the new one is trusted before it signs, and the old one as long as anything that it
//! signed may still be shown.
//!
//! The files say how far an exchange has come, so that it goes on after a restart: `ca-next.*` is trusted and signs nothing yet; [`promote`] makes
//! it `ca.*` and puts the former certificate into `ca-former.crt`, which [`retire`] removes.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CLOCK_SKEW, Error, Lifetimes, from_now, key, read, subject, write};

const NEXT: &str = "ca-next";
const FORMER: &str = "ca-former.crt";

/// How far an exchange has come, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Steady,
    /// The next authority is trusted.
    Prepared(SystemTime),
    /// It signs, and the former one is still trusted.
    Promoted(SystemTime),
}

pub fn phase(dir: &Path) -> Phase {
    let since = |name: &str| fs::metadata(dir.join(name)).and_then(|file| file.modified()).ok();
    match (since("ca-next.crt"), since(FORMER)) {
        (Some(since), _) => Phase::Prepared(since),
        (None, Some(since)) => Phase::Promoted(since),
        (None, None) => Phase::Steady,
    }
}

/// Makes the next authority, if there is none yet. From the next opening on it is trusted.
pub fn prepare(dir: &Path, lifetimes: &Lifetimes) -> Result<(), Error> {
    open(dir, NEXT, "kubernetes", lifetimes).map(drop)
}

/// The next authority signs from the next opening on, which renews every leaf.
pub fn promote(dir: &Path) -> Result<(), Error> {
    let Some(issuing) = read(&dir.join("ca.crt"))? else { return Ok(()) };
    let former = read(&dir.join(FORMER))?.unwrap_or_default();
    if !former.contains(issuing.trim()) {
        write(&dir.join(FORMER), &format!("{issuing}{former}"))?;
    }
    rename(dir, "ca-next.key", "ca.key")?;
    rename(dir, "ca-next.crt", "ca.crt")
}

/// The former authority is trusted no longer from the next opening on.
pub fn retire(dir: &Path) -> Result<(), Error> {
    let path = dir.join(FORMER);
    fs::remove_file(&path).map_err(|source| Error::File { path, source })
}

/// Ends a promotion that a crash has torn: the key was exchanged, its certificate was not.
pub(super) fn recover(dir: &Path) -> Result<(), Error> {
    match (read(&dir.join("ca.key"))?, read(&dir.join("ca-next.key"))?, read(&dir.join("ca-next.crt"))?) {
        (Some(key), None, Some(next)) if is_for(&next, &key) => rename(dir, "ca-next.crt", "ca.crt"),
        _ => Ok(()),
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

/// All that is trusted: the issuing authority, and those before and after it.
pub(super) fn bundle(dir: &Path, issuing: &str) -> Result<String, Error> {
    let next = read(&dir.join("ca-next.crt"))?.unwrap_or_default();
    let former = read(&dir.join(FORMER))?.unwrap_or_default();
    Ok(format!("{issuing}{next}{former}"))
}

/// When the issuing authority ends, in seconds since the epoch.
pub fn ends_at(certificate: &str) -> Option<i64> {
    crate::csr::validity(certificate).map(|(_, end)| end)
}

/// The authority `<name>.*`, made where it is absent.
pub(super) fn open(
    dir: &Path,
    name: &'static str,
    common_name: &str,
    lifetimes: &Lifetimes,
) -> Result<(String, Issuer<'static, KeyPair>), Error> {
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
        assert_eq!((phase(dir.path()), count(&first.ca)), (Phase::Steady, 1));
        prepare(dir.path(), &Lifetimes::default()).unwrap();
        prepare(dir.path(), &Lifetimes::default()).unwrap();
        let prepared = open();
        assert!(matches!(phase(dir.path()), Phase::Prepared(_)));
        assert!(prepared.ca.starts_with(&first.ca) && count(&prepared.ca) == 2);
        assert_eq!((&prepared.issuing, &prepared.api_server.certificate), (&first.issuing, &first.api_server.certificate));
        promote(dir.path()).unwrap();
        let promoted = open();
        assert!(matches!(phase(dir.path()), Phase::Promoted(_)));
        assert!(promoted.ca.contains(first.ca.trim()) && prepared.ca.contains(promoted.issuing.trim()) && count(&promoted.ca) == 2);
        assert_ne!(promoted.issuing, first.issuing);
        assert_ne!(
            (&promoted.api_server.certificate, &promoted.admin.certificate),
            (&first.api_server.certificate, &first.admin.certificate)
        );
        // Who knows the old or the new authority believes both sides' certificates.
        for (bundle, pair) in [(&prepared.ca, &promoted.admin), (&promoted.ca, &first.admin)] {
            let server = crate::tls::Server::new(&promoted.api_server, bundle).unwrap();
            let leaf = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
            assert!(server.peer(&[leaf]).is_some());
        }
        retire(dir.path()).unwrap();
        assert_eq!((phase(dir.path()), open().ca), (Phase::Steady, promoted.issuing));
    }

    #[test]
    fn a_promotion_that_was_torn_is_ended_by_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), &names()).unwrap();
        prepare(dir.path(), &Lifetimes::default()).unwrap();
        let next = fs::read_to_string(dir.path().join("ca-next.crt")).unwrap();
        write(&dir.path().join(FORMER), &first.issuing).unwrap();
        rename(dir.path(), "ca-next.key", "ca.key").unwrap();
        let found = Pki::open(dir.path(), &names()).unwrap();
        assert_eq!(found.issuing, next);
        assert_eq!(count(&found.ca), 2);
    }
}
