//! TLS whose certificates can be exchanged while connections are open: handshakes that begin after a rotation use the new ones, what is open stays
//! open.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

use crate::UserInfo;
use crate::authenticate::certificate_user;
use crate::pki::{Error, Pair};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn certified(pair: &Pair) -> Result<Arc<CertifiedKey>, Error> {
    let damaged = || Error::Pem("certificate");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(damaged)?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).map_err(|_| Error::Pem("key"))?;
    CertifiedKey::from_der(chain, key, &provider()).map(Arc::new).map_err(Error::Tls)
}

/// The certificates of a PEM bundle as what is trusted.
pub fn roots(pem: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|_| Error::Pem("certificate authority"))?).map_err(Error::Tls)?;
    }
    Ok(roots)
}

fn verifier(authorities: &str) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authorities)?), provider());
    Ok(builder.allow_unauthenticated().build().map_err(Error::Verifier)?)
}

/// Who a client certificate speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Shared by the requests of a connection.
    User(Arc<UserInfo>),
    /// The front proxy with this common name: whom it speaks for stands in the request's headers.
    FrontProxy(String),
}

/// A server's side: its certificate and the authorities of its clients.
#[derive(Debug)]
pub struct Server {
    certificate: ArcSwap<CertifiedKey>,
    authorities: ArcSwap<Authorities>,
}

#[derive(Debug)]
struct Authorities {
    /// All together: the handshake lets both kinds in.
    any: Arc<dyn ClientCertVerifier>,
    users: Arc<dyn ClientCertVerifier>,
    front_proxy: Option<Arc<dyn ClientCertVerifier>>,
}

impl Server {
    pub fn new(pair: &Pair, client_ca: &str) -> Result<Arc<Self>, Error> {
        Self::with_front_proxy(pair, client_ca, None)
    }

    /// Clients may show certificates of `client_ca` or of the front proxy's CA (both PEM).
    pub fn with_front_proxy(pair: &Pair, client_ca: &str, front_proxy_ca: Option<&str>) -> Result<Arc<Self>, Error> {
        let authorities = ArcSwap::from_pointee(Authorities::new(client_ca, front_proxy_ca)?);
        Ok(Arc::new(Self { certificate: ArcSwap::new(certified(pair)?), authorities }))
    }

    /// Shows `pair` from now on.
    pub fn rotate(&self, pair: &Pair) -> Result<(), Error> {
        self.certificate.store(certified(pair)?);
        Ok(())
    }

    /// Trusts these authorities from now on; connections that are open stay open.
    pub fn trust(&self, client_ca: &str, front_proxy_ca: Option<&str>) -> Result<(), Error> {
        self.authorities.store(Arc::new(Authorities::new(client_ca, front_proxy_ca)?));
        Ok(())
    }

    /// HTTP/2 and HTTP/1.1; clients may come without a certificate.
    pub fn config(self: &Arc<Self>) -> Result<Arc<rustls::ServerConfig>, Error> {
        let builder = rustls::ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(Error::Tls)?;
        let mut config = builder.with_client_cert_verifier(self.clone()).with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Whose certificate it is, by which authority vouches for it. `None` where none does (any more).
    pub fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<Peer> {
        let (leaf, intermediates) = chain.split_first()?;
        let authorities = self.authorities.load();
        let vouches = |verifier: &Arc<dyn ClientCertVerifier>| verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok();
        if authorities.front_proxy.as_ref().is_some_and(vouches) {
            return certificate_user(leaf).map(|user| Peer::FrontProxy(user.username));
        }
        vouches(&authorities.users).then(|| certificate_user(leaf)).flatten().map(|user| Peer::User(Arc::new(user)))
    }
}

impl Authorities {
    fn new(client_ca: &str, front_proxy_ca: Option<&str>) -> Result<Self, Error> {
        let users = verifier(client_ca)?;
        let Some(front) = front_proxy_ca else {
            return Ok(Self { any: users.clone(), users, front_proxy: None });
        };
        Ok(Self { any: verifier(&format!("{client_ca}\n{front}"))?, users, front_proxy: Some(verifier(front)?) })
    }
}

impl ResolvesServerCert for Server {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certificate.load_full())
    }
}

impl ClientCertVerifier for Server {
    fn offer_client_auth(&self) -> bool {
        true
    }
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    /// No hints: the authorities may change under the borrow, and clients send what they have anyway.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.authorities.load().any.verify_client_cert(leaf, intermediates, now)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.load().any.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.load().any.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.load().any.supported_verify_schemes()
    }
}

/// A client's side: the certificate it shows, and whom it believes.
#[derive(Debug)]
pub struct Client {
    certificate: ArcSwap<CertifiedKey>,
    /// The authorities of servers; none are believed before [`Client::config`] or [`Client::trust`].
    servers: ArcSwapOption<WebPkiServerVerifier>,
}

impl Client {
    pub fn new(pair: &Pair) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self { certificate: ArcSwap::new(certified(pair)?), servers: ArcSwapOption::empty() }))
    }

    /// Shows `pair` from now on.
    pub fn rotate(&self, pair: &Pair) -> Result<(), Error> {
        self.certificate.store(certified(pair)?);
        Ok(())
    }

    /// Believes servers of these authorities (PEM) from now on; connections that are open stay open.
    pub fn trust(&self, server_ca: &str) -> Result<(), Error> {
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(server_ca)?), provider());
        self.servers.store(Some(builder.build().map_err(Error::Verifier)?));
        Ok(())
    }

    /// Trusts servers that `server_ca` (PEM) vouches for. No ALPN: HTTP/1.1, as upgrades need it.
    pub fn config(self: &Arc<Self>, server_ca: &str) -> Result<Arc<rustls::ClientConfig>, Error> {
        self.trust(server_ca)?;
        let builder = rustls::ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(Error::Tls)?;
        let builder = builder.dangerous().with_custom_certificate_verifier(self.clone());
        Ok(Arc::new(builder.with_client_cert_resolver(self.clone())))
    }

    fn verifier(&self) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        self.servers.load_full().ok_or_else(|| rustls::Error::General("no authority of servers is known".into()))
    }
}

/// Every question goes to the verifier of the moment.
impl ServerCertVerifier for Client {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier()?.verify_server_cert(leaf, intermediates, name, ocsp, now)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier()?.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier()?.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ResolvesClientCert for Client {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certificate.load_full())
    }
    fn has_certs(&self) -> bool {
        true
    }
}
