//! Who asks (authentication) and whether they may (authorization), and the cluster's own keys and certificates.
//!
//! Read in this order: [`UserInfo`], then [`authenticate`] (client certificates, bearer tokens), [`tokens`] (service account JWTs), [`jwt`] (tokens of other issuers),
//! [`authorize`] (the question and the refusal), [`rbac`] and [`node`] (the answers), [`pki`] (the cluster's CA and leaves), [`tls`] (how they are shown, and rotated), [`csr`] (certificates on request), [`encryption`] (of what is stored). No tasks.

pub mod authenticate;
pub mod authorize;
pub mod csr;
pub mod encryption;
pub mod escalation;
pub mod jwt;
pub mod node;
pub mod pki;
pub mod rbac;
pub mod tls;
pub mod tokens;

use std::collections::BTreeMap;

/// An authenticated identity (upstream: `user.Info`).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UserInfo {
    pub username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// An authenticated user: `system:authenticated` is added to the groups.
    pub fn authenticated(username: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        if !groups.iter().any(|group| group == "system:authenticated") {
            groups.push("system:authenticated".into());
        }
        Self { username: username.into(), groups, ..Self::default() }
    }
    pub fn anonymous() -> Self {
        Self { username: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Self::default() }
    }
}
