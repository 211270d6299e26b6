//! Tokens in Secrets that were made with their accounts, have no end, and are used by nobody: marked as invalid after a year, deleted after another.
//!
//! The API server notes when a token was used last, and since when it notes that. Secrets that people made are left alone: only those that an
//! account names among its `secrets` were made for it. Source: KEP-2799, `pkg/controller/serviceaccount/legacy_serviceaccount_token_cleaner.go`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, DeleteParams, Error, Patch};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use k8s_openapi::jiff::civil::Date;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use reconcile::{Cache, Scope};
use serde_json::{Value, json};

use crate::context::Context;

pub(crate) const NAME: &str = "legacy-serviceaccount-token-cleaner-controller";
const TYPE: &str = "kubernetes.io/service-account-token";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
/// Unused for so long is unused (upstream: `--legacy-service-account-token-clean-up-period`).
const UNUSED: SignedDuration = SignedDuration::from_hours(365 * 24);
const LOOK_EVERY: Duration = Duration::from_secs(86_400);

pub(crate) async fn run(context: Context) {
    let secrets = context.cache::<Secret>(Scope::fields(format!("type={TYPE}")));
    let (accounts, pods): (Cache<ServiceAccount>, Cache<Pod>) = (context.caches.of(), context.caches.of());
    tokio::join!(secrets.synced(), accounts.synced(), pods.synced());
    loop {
        if let Err(error) = clean(&context.client, &secrets, &accounts, &pods).await {
            tracing::warn!(%error, "{NAME}");
        }
        if context.drain.run(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}

async fn clean(client: &Client, secrets: &Cache<Secret>, accounts: &Cache<ServiceAccount>, pods: &Cache<Pod>) -> Result<(), Error> {
    let tracking = match client.get::<ConfigMap>(Some("kube-system"), TRACKING).await {
        Err(error) if error.is_not_found() => return Ok(()),
        found => found?,
    };
    let since = tracking.data.as_ref().and_then(|data| data.get("since")).and_then(|day| day.parse::<Date>().ok());
    let (Some(since), today) = (since, Timestamp::now().to_zoned(TimeZone::UTC).date()) else { return Ok(()) };
    for secret in secrets.list() {
        let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
        let account = annotation(&secret, "kubernetes.io/service-account.name").and_then(|name| accounts.get(namespace, name));
        let Some(verdict) = verdict(&secret, account.as_deref(), since, today) else { continue };
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        if pods.by_namespace(namespace).iter().any(|pod| secrets_of(pod).contains(name)) {
            continue;
        }
        act(client, &secret, verdict, today).await?;
    }
    Ok(())
}

async fn act(client: &Client, secret: &Arc<Secret>, verdict: Verdict, today: Date) -> Result<(), Error> {
    let namespace = secret.metadata.namespace.as_deref();
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    match verdict {
        Verdict::Mark => {
            tracing::info!(secret = name, namespace, "marked as invalid: nobody uses this token");
            let patch = json!({"metadata": {"uid": secret.metadata.uid, "labels": {INVALID_SINCE: today.to_string()}}});
            client::ignore_not_found(client.patch::<Secret>(namespace, name, &Patch::Merge(patch), "").await)
        }
        Verdict::Delete => {
            tracing::info!(secret = name, namespace, "deleted: nobody used this token before or after it was marked as invalid");
            let mut params = DeleteParams::of_uid(secret.metadata.uid.as_deref().unwrap_or_default());
            params.resource_version = secret.metadata.resource_version.clone();
            match client.delete::<Secret>(namespace, name, &params).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
                _ => Ok(()),
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// As invalid, from today on.
    Mark,
    Delete,
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(name).map(String::as_str).filter(|text| !text.is_empty())
}

/// What becomes of a token, if no pod mounts it.
fn verdict(secret: &Secret, account: Option<&ServiceAccount>, tracked_since: Date, today: Date) -> Option<Verdict> {
    let meta = &secret.metadata;
    let used_since = today.checked_sub(UNUSED).ok()?;
    let created = meta.creation_timestamp.as_ref()?.0.to_zoned(TimeZone::UTC).date();
    // The day on which tracking began does not count: it began in the middle of it.
    let young = created >= used_since || tracked_since >= used_since;
    if young || meta.deletion_timestamp.is_some() || secret.type_.as_deref() != Some(TYPE) {
        return None;
    }
    let label = |name: &str| meta.labels.as_ref().and_then(|labels| labels.get(name));
    if let Some(day) = label(LAST_USED)
        && day.parse::<Date>().map_or(true, |day| day >= used_since)
    {
        return None;
    }
    let account = account.filter(|account| {
        let uid = annotation(secret, "kubernetes.io/service-account.uid");
        uid.is_none() || uid == account.metadata.uid.as_deref()
    })?;
    account.secrets.iter().flatten().find(|reference| reference.name == meta.name)?;
    match label(INVALID_SINCE).and_then(|day| day.parse::<Date>().ok()) {
        None => Some(Verdict::Mark),
        Some(day) => (day < used_since).then_some(Verdict::Delete),
    }
}

/// The Secrets that a pod refers to, in whatever place.
fn secrets_of(pod: &Pod) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    if let Some(spec) = &pod.spec {
        collect(&serde_json::to_value(spec).unwrap_or_default(), &mut names);
    }
    names
}

fn collect(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let refers = key.to_ascii_lowercase().contains("secret");
                let named = || [member, &member["name"], &member["secretName"]].into_iter().filter_map(Value::as_str);
                if refers {
                    names.extend(named().map(str::to_owned));
                }
                if refers && let Some(references) = member.as_array() {
                    names.extend(references.iter().filter_map(|one| one["name"].as_str().map(str::to_owned)));
                }
                collect(member, names);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(created: &str, labels: Value) -> Secret {
        serde_json::from_value(json!({
            "metadata": {"name": "t", "namespace": "a", "uid": "s", "creationTimestamp": created, "labels": labels,
                "annotations": {"kubernetes.io/service-account.name": "robot", "kubernetes.io/service-account.uid": "u"}},
            "type": TYPE,
        }))
        .unwrap()
    }

    #[test]
    fn an_unused_token_is_marked_after_a_year_and_deleted_after_another() {
        let account = |uid: &str, secret: &str| -> ServiceAccount {
            serde_json::from_value(json!({"metadata": {"name": "robot", "uid": uid}, "secrets": [{"name": secret}]})).unwrap()
        };
        let (own, today) = (account("u", "t"), "2026-11-21".parse().unwrap());
        let old = "2020-01-01T00:00:00Z";
        let cases = [
            ("never used", old, json!({}), &own, "2025-01-01", Some(Verdict::Mark)),
            ("used last year", old, json!({LAST_USED: "2025-11-20"}), &own, "2025-01-01", Some(Verdict::Mark)),
            ("used since", old, json!({LAST_USED: "2025-11-21"}), &own, "2025-01-01", None),
            ("nobody knows when", old, json!({LAST_USED: "long ago"}), &own, "2025-01-01", None),
            ("not tracked for long", old, json!({}), &own, "2025-11-21", None),
            ("young", "2026-01-01T00:00:00Z", json!({}), &own, "2025-01-01", None),
            ("made by people", old, json!({}), &account("u", "other"), "2025-01-01", None),
            ("of an account of before", old, json!({}), &account("new", "t"), "2025-01-01", None),
            ("marked lately", old, json!({INVALID_SINCE: "2026-01-01"}), &own, "2024-01-01", None),
            ("marked long ago", old, json!({INVALID_SINCE: "2025-11-01"}), &own, "2024-01-01", Some(Verdict::Delete)),
            ("marked with nonsense", old, json!({INVALID_SINCE: "?"}), &own, "2024-01-01", Some(Verdict::Mark)),
            ("marked, and used after", old, json!({INVALID_SINCE: "2025-11-01", LAST_USED: "2026-01-01"}), &own, "2024-01-01", None),
        ];
        for (case, created, labels, account, since, expected) in cases {
            assert_eq!(verdict(&secret(created, labels), Some(account), since.parse().unwrap(), today), expected, "{case}");
        }
        assert_eq!(verdict(&secret(old, json!({})), None, "2024-01-01".parse().unwrap(), today), None, "its account is gone");
    }

    #[test]
    fn every_secret_of_a_pod_is_found() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "v", "secret": {"secretName": "volume"}}, {"name": "p", "projected": {"sources": [{"secret": {"name": "projected"}}]}},
                {"name": "c", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "csi"}}}],
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "all"}}],
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "one", "key": "k"}}}]}],
        }}))
        .unwrap();
        assert_eq!(secrets_of(&pod), ["all", "csi", "one", "projected", "pull", "volume"].map(str::to_owned).into());
    }
}
