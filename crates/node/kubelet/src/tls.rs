//! The server's TLS: its certificate, and client certificates of the cluster's CA, which callers may leave out (`/healthz` is open).

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::{Error, Tls};

pub fn server_config(tls: &Tls) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let certificates = certificates(&tls.certificate_pem, "certificate")?;
    let key = PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes()).map_err(|error| Error::Tls(format!("private key: {error}")))?;
    let mut roots = RootCertStore::empty();
    for authority in self::certificates(&tls.client_ca_pem, "client CA")? {
        roots.add(authority).map_err(|error| Error::Tls(format!("client CA: {error}")))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).allow_unauthenticated().build();
    let verifier = verifier.map_err(|error| Error::Tls(format!("client CA: {error}")))?;
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Error::Tls(error.to_string()))?.with_client_cert_verifier(verifier);
    let mut config = builder.with_single_cert(certificates, key).map_err(|error| Error::Tls(format!("certificate: {error}")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Error::Tls(format!("{what}: no certificate in the PEM text"))),
        Err(error) => Err(Error::Tls(format!("{what}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_material_is_named() {
        let tls = Tls { certificate_pem: "nothing".into(), key_pem: String::new(), client_ca_pem: String::new() };
        assert_eq!(
            server_config(&tls).unwrap_err().to_string(),
            "TLS of the kubelet's server: certificate: no certificate in the PEM text"
        );
    }
}
