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

    /// Adds a static token file's lines: `token,user,uid,"group1,group2"`. The error names the line.
    pub fn add_token_file(&mut self, text: &str) -> Result<(), String> {
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let (fields, groups) = match line.split_once('"') {
                Some((fields, groups)) => (fields.trim_end_matches(','), groups.trim_end().trim_end_matches('"')),
                None => (line, ""),
            };
            let fields: Vec<&str> = fields.split(',').map(str::trim).collect();
            let (&[token, name, uid], more) = fields.split_first_chunk::<3>().ok_or(format!("line {}: expected token,user,uid", at + 1))?;
            if token.is_empty() || name.is_empty() {
                return Err(format!("line {}: empty token or user", at + 1));
            }
            let groups: Vec<&str> =
                more.iter().copied().chain(groups.split(',')).map(str::trim).filter(|group| !group.is_empty()).collect();
            self.add_token(token, UserInfo { uid: uid.into(), ..UserInfo::authenticated(name, &groups) });
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_names_users_and_groups() {
        let mut tokens = Authenticator::default();
        tokens.add_token_file("t1,jane,7,\"ops,devs\"\n\nt2,joe,\nt3,kim,9,one\n").unwrap();
        let jane = tokens.token_user("t1").unwrap();
        assert_eq!(
            (jane.username.as_str(), jane.uid.as_str(), &jane.groups[..2]),
            ("jane", "7", &["ops".to_owned(), "devs".to_owned()][..])
        );
        assert_eq!(tokens.token_user("t3").unwrap().groups[0], "one");
        assert!(tokens.token_user("t4").is_none());
        assert_eq!(tokens.add_token_file("ok,a,1\nbad").unwrap_err(), "line 2: expected token,user,uid");
    }
}
