//! Bootstrap tokens: `<id>.<secret>`, kept as Secrets in kube-system, with which a node joins.
//!
//! Source: `plugin/pkg/auth/authenticator/token/bootstrap`.

use auth::UserInfo;
use base64::Engine;
use serde_json::Value;

use crate::registry::{Registry, Target, catalog};

/// The id of what has the form of a bootstrap token.
pub fn id(token: &str) -> Option<&str> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some(id)
}

/// The user of a bootstrap token, if its Secret says so now.
pub async fn user(registry: &Registry, id: &str, token: &str) -> Result<UserInfo, String> {
    let kind = catalog::stored("", "secrets").ok_or("secrets are not served")?;
    let name = format!("bootstrap-token-{id}");
    let found = registry.find(Target { kind, namespace: "kube-system", name: &name }).await.map_err(|status| status.message)?;
    let secret = found.ok_or("no such bootstrap token")?.value();
    let groups = judge(&secret, id, token, jiff::Timestamp::now())?;
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    Ok(UserInfo::authenticated(&format!("system:bootstrap:{id}"), &groups))
}

/// The token's groups, or why it does not count.
fn judge(secret: &Value, id: &str, token: &str, now: jiff::Timestamp) -> Result<Vec<String>, String> {
    let text = |key: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(secret["data"][key].as_str().unwrap_or_default());
        String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
    };
    let refuse = |why: &str| Err(format!("bootstrap token {id}: {why}"));
    if secret["type"] != "bootstrap.kubernetes.io/token" || !secret["metadata"]["deletionTimestamp"].is_null() {
        return refuse("its Secret is none of bootstrap tokens");
    }
    // Both sides through a hash: the time that comparing takes says nothing about where they differ.
    let hash = |text: String| <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(text.as_bytes()));
    if hash(format!("{}.{}", text("token-id"), text("token-secret"))) != hash(token.to_owned()) {
        return refuse("wrong secret");
    }
    let expires = text("expiration");
    if !expires.is_empty() && expires.parse::<jiff::Timestamp>().map_or(true, |end| end <= now) {
        return refuse("expired");
    }
    if text("usage-bootstrap-authentication") != "true" {
        return refuse("not for authentication");
    }
    let extra = text("auth-extra-groups");
    let mut groups = vec!["system:bootstrappers".to_owned()];
    for group in extra.split(',').map(str::trim).filter(|group| !group.is_empty()) {
        if !group.starts_with("system:bootstrappers:") {
            return refuse("auth-extra-groups must begin with system:bootstrappers:");
        }
        groups.push(group.to_owned());
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_counts_as_long_as_its_secret_says_so() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let secret = |changes: &[(&str, &str)]| {
            let mut data = json!({"token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
                "usage-bootstrap-authentication": encode("true"), "expiration": encode("2030-01-01T00:00:00Z"),
                "auth-extra-groups": encode("system:bootstrappers:nodes")});
            for (key, value) in changes {
                data[*key] = encode(value).into();
            }
            json!({"type": "bootstrap.kubernetes.io/token", "metadata": {}, "data": data})
        };
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let judge = |changes: &[(&str, &str)], token: &str| super::judge(&secret(changes), "abcdef", token, now);
        let good = "abcdef.0123456789abcdef";
        assert_eq!(judge(&[], good).unwrap(), ["system:bootstrappers", "system:bootstrappers:nodes"]);
        for (changes, token, why) in [
            (&[][..], "abcdef.0123456789abcdee", "wrong secret"),
            (&[("expiration", "2025-01-01T00:00:00Z")], good, "expired"),
            (&[("expiration", "soon")], good, "expired"),
            (&[("usage-bootstrap-authentication", "false")], good, "not for authentication"),
            (&[("auth-extra-groups", "system:masters")], good, "must begin with"),
        ] {
            let error = judge(changes, token).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!((id(good), id("ABCDEF.0123456789abcdef"), id("a.b"), id("eyJhbGciOi.J9.x")), (Some("abcdef"), None, None, None));
    }
}
