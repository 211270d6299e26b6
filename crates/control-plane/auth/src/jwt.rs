//! Tokens of other issuers (OpenID Connect): whom an ID token stands for.
//!
//! [`configuration`] reads and checks upstream's `AuthenticationConfiguration`; [`keys`] are an issuer's public keys; [`claims`] makes a user of what a
//! verified token says, [`distributed`] finds what it does not say itself. A [`Provider`] is one issuer with all three. Fetching the keys is the API server's business.
//!
//! Source: `apiserver/plugin/pkg/authenticator/token/oidc`, KEP-3331.

pub mod claims;
pub mod configuration;
pub mod distributed;
pub mod keys;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::UserInfo;
use claims::Mapping;
use keys::Keys;

/// A token begins to count this much before its `nbf`: other machines' clocks differ (go-oidc allows as much).
const NOT_BEFORE_LEEWAY: i64 = 300;

/// Every algorithm that an issuer may sign with.
pub const ALGORITHMS: [&str; 9] = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None of the known keys signed it: the issuer may have a new one.
    #[error("oidc: verify token: failed to verify signature: failed to verify id token signature")]
    UnknownKey,
    #[error("oidc: verify token: oidc: malformed jwt: {0}")]
    Malformed(String),
    #[error("oidc: verify token: oidc: id token signed with unsupported algorithm, expected {expected:?} got {given:?}")]
    Algorithm { expected: Vec<String>, given: String },
    #[error("oidc: verify token: oidc: id token issued by a different provider, expected {expected:?} got {given:?}")]
    Issuer { expected: String, given: String },
    #[error("oidc: verify token: oidc: expected audience in {expected:?} got {given:?}")]
    Audience { expected: Vec<String>, given: Vec<String> },
    #[error("oidc: verify token: oidc: token is expired (Token Expiry: {0})")]
    Expired(String),
    #[error("oidc: verify token: oidc: current time is before the nbf (not before) time: {0}")]
    TooEarly(String),
    #[error("oidc: {0}")]
    Claims(String),
}

/// One issuer: whose tokens are believed, and what is made of them.
#[derive(Debug)]
pub struct Provider {
    pub issuer: String,
    /// Where discovery is, if not below the issuer.
    pub discovery_url: Option<String>,
    /// PEM; empty: what the machine trusts.
    pub authority: String,
    audiences: Vec<String>,
    algorithms: Vec<&'static str>,
    /// Claims that must have these values.
    required: BTreeMap<String, String>,
    mapping: Mapping,
}

impl Provider {
    /// Where the issuer says which keys are its own.
    pub fn discovery(&self) -> String {
        self.discovery_url.clone().unwrap_or_else(|| discovery(&self.issuer))
    }

    /// What a token says that is good at this moment (seconds since the epoch).
    pub fn claims(&self, token: &str, keys: &Keys, now: i64) -> Result<Map<String, Value>, Error> {
        let claims = keys.verify(token, &self.algorithms)?;
        self.check(&claims, now)?;
        Ok(claims)
    }

    /// The user of verified claims.
    pub fn user(&self, claims: &Map<String, Value>) -> Result<UserInfo, Error> {
        self.mapping.user(claims, &self.required).map_err(Error::Claims)
    }

    /// Where the groups are, if the token does not say them itself.
    pub fn groups_elsewhere(&self, claims: &Map<String, Value>) -> Result<Option<distributed::Place>, Error> {
        match &self.mapping.groups {
            Some(claims::Source::Claim { name, .. }) => distributed::place(name, claims).map_err(Error::Claims),
            _ => Ok(None),
        }
    }

    /// What an endpoint answered, verified with the keys of whoever issued it: the claim that is there.
    pub fn claim_elsewhere(&self, place: &distributed::Place, token: &str, keys: &Keys, now: i64) -> Result<Value, Error> {
        let claims = keys.verify(token, &self.algorithms)?;
        self.check_for(&unverified_issuer(token).unwrap_or_default(), &claims, now)?;
        let missing = || {
            Error::Claims(format!("jwt returned by distributed claim endpoint {:?} did not contain claim: {}", place.endpoint, place.claim))
        };
        claims.get(&place.claim).cloned().ok_or_else(missing)
    }

    fn check(&self, claims: &Map<String, Value>, now: i64) -> Result<(), Error> {
        self.check_for(&self.issuer, claims, now)
    }

    fn check_for(&self, expected: &str, claims: &Map<String, Value>, now: i64) -> Result<(), Error> {
        let issuer = issuer_of(claims);
        if issuer != expected {
            return Err(Error::Issuer { expected: expected.to_owned(), given: issuer });
        }
        let given: Vec<String> = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(all)) => all.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        if !given.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(Error::Audience { expected: self.audiences.clone(), given });
        }
        // A token without an end has ended.
        let ends = seconds(claims, "exp").unwrap_or(0);
        if ends < now {
            return Err(Error::Expired(meta::time::from_epoch(ends)));
        }
        match seconds(claims, "nbf") {
            Some(begins) if now + NOT_BEFORE_LEEWAY < begins => Err(Error::TooEarly(meta::time::from_epoch(begins))),
            _ => Ok(()),
        }
    }
}

/// Where an issuer says which keys are its own, if nobody says otherwise.
pub fn discovery(issuer: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
}

/// Numbers of seconds may be written with a fraction.
fn seconds(claims: &Map<String, Value>, name: &str) -> Option<i64> {
    let value = claims.get(name)?;
    value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64))
}

fn issuer_of(claims: &Map<String, Value>) -> String {
    match claims.get("iss").and_then(Value::as_str).unwrap_or_default() {
        // Google's tokens of old say it without a scheme.
        "accounts.google.com" => "https://accounts.google.com".into(),
        issuer => issuer.to_owned(),
    }
}

/// Who says that he issued the token. Nobody has checked it.
pub fn unverified_issuer(token: &str) -> Option<String> {
    let claims: Map<String, Value> = jsonwebtoken::dangerous::insecure_decode_claims(token).ok()?;
    Some(issuer_of(&claims)).filter(|issuer| !issuer.is_empty())
}

#[cfg(test)]
mod tests;
