//! Who asks: client certificates, service account tokens, static tokens.

use std::collections::HashMap;

use base64::Engine;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::UserInfo;

/// The user of a verified client certificate: the common name, with the organizations as groups. `None` without a common name.
pub fn certificate_user(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups: Vec<&str> = subject.iter_organization().filter_map(|attribute| attribute.as_str().ok()).collect();
    (!name.is_empty()).then(|| UserInfo::authenticated(&name, &groups))
}

/// The tokens that are known beforehand.
#[derive(Default)]
pub struct Authenticator {
    /// By hash, so that the comparison's time says nothing about the token.
    tokens: HashMap<[u8; 32], UserInfo>,
}

impl Authenticator {
    /// Adds a token that stands for `user` as long as the process lives.
    pub fn add_token(&mut self, token: &str, user: UserInfo) {
        self.tokens.insert(Sha256::digest(token.as_bytes()).into(), user);
    }

    pub fn token_user(&self, token: &str) -> Option<UserInfo> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        self.tokens.get(&hash).cloned()
    }
}

/// The token of `Authorization: Bearer`.
pub fn bearer(headers: &http::HeaderMap) -> Option<&str> {
    let header = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Browsers cannot set `Authorization` on a WebSocket: the token comes as one of the subprotocols it offers, beside a real one.
/// Source: apiserver `pkg/authentication/request/websocket`.
pub const WEBSOCKET_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// The token of a WebSocket's handshake.
pub fn websocket_token(headers: &http::HeaderMap) -> Option<String> {
    let offered = headers.get_all(http::header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offered: Vec<&str> = offered.flat_map(|text| text.split(',')).map(str::trim).collect();
    let mut tokens = offered.iter().filter_map(|protocol| protocol.strip_prefix(WEBSOCKET_TOKEN));
    let (token, None) = (tokens.next()?, tokens.next()) else { return None };
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token).ok()?;
    let token = String::from_utf8(bytes).ok().filter(|token| !token.is_empty())?;
    (offered.len() > 1).then_some(token)
}
