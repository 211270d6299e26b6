//! Where the API server learns of users that are not the cluster's own, and whom it tells what they do.

use std::time::Duration;

use anyhow::Context;
use apiserver::{AuditWebhook, Source, TokenWebhook};
use serde_json::{Value, json};

use crate::config::{Config, Oidc};

/// The file, or what the flags say in its form.
pub fn authentication(config: &Config) -> anyhow::Result<Option<Source>> {
    match (&config.authentication_config, &config.oidc) {
        (Some(_), Some(_)) => anyhow::bail!("authenticationConfig and oidc exclude each other"),
        (Some(file), None) => Ok(Some(Source::File(file.clone()))),
        (None, Some(oidc)) => Ok(Some(Source::Text(from_flags(oidc)?.to_string()))),
        (None, None) => Ok(None),
    }
}

/// Defaults as upstream's flags have them.
fn from_flags(oidc: &Oidc) -> anyhow::Result<Value> {
    let claim = oidc.username_claim.as_deref().unwrap_or("sub");
    let prefix = match oidc.username_prefix.as_deref() {
        Some("-") => String::new(),
        Some(prefix) if !prefix.is_empty() => prefix.to_owned(),
        _ if claim == "email" => String::new(),
        _ => format!("{}#", oidc.issuer_url),
    };
    let authority = match &oidc.ca_file {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        None => String::new(),
    };
    let rules: Vec<Value> = oidc.required_claims.iter().map(|(claim, value)| json!({"claim": claim, "requiredValue": value})).collect();
    let mut mappings = json!({"username": {"claim": claim, "prefix": prefix}});
    if let Some(groups) = &oidc.groups_claim {
        mappings["groups"] = json!({"claim": groups, "prefix": oidc.groups_prefix});
    }
    Ok(json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [{
        "issuer": {"url": oidc.issuer_url, "audiences": [oidc.client_id], "certificateAuthority": authority},
        "claimMappings": mappings,
        "claimValidationRules": rules,
    }]}))
}

pub fn token_webhook(config: &Config) -> Option<TokenWebhook> {
    Some(TokenWebhook {
        kubeconfig: config.authentication_token_webhook_config_file.clone()?,
        cache: Duration::from_secs(config.authentication_token_webhook_cache_seconds),
        version: config.authentication_token_webhook_version.clone(),
    })
}

pub fn audit_webhook(config: &Config) -> Option<AuditWebhook> {
    let wait_max = Duration::from_secs(config.audit_webhook_batch_max_wait_seconds);
    Some(AuditWebhook { kubeconfig: config.audit_webhook_config_file.clone()?, wait_max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_name_users_as_upstreams_do() {
        let oidc = |more: Value| {
            let mut flags = json!({"issuerUrl": "https://a", "clientId": "us"});
            more.as_object().into_iter().flatten().for_each(|(key, value)| flags[key] = value.clone());
            let flags: Oidc = serde_json::from_value(flags).unwrap();
            from_flags(&flags).unwrap()["jwt"][0]["claimMappings"].clone()
        };
        assert_eq!(oidc(json!({})), json!({"username": {"claim": "sub", "prefix": "https://a#"}}));
        assert_eq!(oidc(json!({"usernamePrefix": "-"}))["username"]["prefix"], "");
        assert_eq!(oidc(json!({"usernameClaim": "email"}))["username"], json!({"claim": "email", "prefix": ""}));
        assert_eq!(
            oidc(json!({"usernamePrefix": "x:", "groupsClaim": "g"})),
            json!({"username": {"claim": "sub", "prefix": "x:"}, "groups": {"claim": "g", "prefix": ""}})
        );
    }
}
