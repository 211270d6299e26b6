//! An APIService for every group-version that is served here, so that clients find all of them in one list.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::services::{self, GROUP, PLURAL};
use crate::bootstrap;
use crate::object::meta;
use crate::registry::deletion::Options;
use crate::registry::{Target, catalog};
use crate::{Inner, discovery};

const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Of CRDs, as upstream.
const CUSTOM_PRIORITY: (i64, i64) = (1_000, 100);

/// Makes what is missing, and removes what was made for a CRD that is gone.
pub async fn keep(server: &Arc<Inner>) {
    let present: BTreeMap<String, Value> =
        services::all(server).into_iter().map(|object| (meta(&object, "name").to_owned(), object)).collect();
    let wanted = wanted(server);
    let missing = wanted.iter().filter(|(name, _)| !present.contains_key(*name)).map(|(_, object)| object.clone());
    let made = missing.map(|object| bootstrap::ensure(server, GROUP, PLURAL, object, |_, _| {}));
    for status in join_all(made).await.into_iter().filter_map(Result::err) {
        tracing::warn!(%status, "an APIService of this server cannot be made");
    }
    let Some(kind) = catalog::stored(GROUP, PLURAL) else { return };
    let gone = present.iter().filter(|(name, object)| !wanted.contains_key(*name) && object["metadata"]["labels"][MANAGED] == "true");
    for (name, _) in gone {
        let options = Options { admitted: true, ..Options::default() };
        let context = bootstrap::context(kind);
        let _ = server.registry.delete(&context, Target { kind, namespace: "", name }, &options).await;
    }
    for (name, object) in present.iter().filter(|(_, object)| !object["spec"]["service"].is_object()) {
        if !object["status"]["conditions"].is_array() {
            local(server, name).await;
        }
    }
    for name in wanted.keys().filter(|name| !present.contains_key(*name)) {
        local(server, name).await;
    }
}

async fn local(server: &Inner, name: &str) {
    let message = "Local APIServices are always available";
    super::available::write(server, name, json!({"type": "Available", "status": "True", "reason": "Local", "message": message})).await;
}

/// By name. A group-version that a remote server has taken over is not among them.
fn wanted(server: &Inner) -> BTreeMap<String, Value> {
    let custom: Vec<(&str, &str)> = server.registry.custom.all().iter().map(|kind| (kind.facts.group, kind.facts.version)).collect();
    let mut wanted = BTreeMap::new();
    for group in discovery::own(server) {
        for (place, version) in group.versions.iter().enumerate() {
            let is_custom = custom.contains(&(group.name.as_str(), version.version.as_str()));
            let (group_priority, version_priority) = match is_custom {
                true => CUSTOM_PRIORITY,
                false => (group_priority(&group.name), version_priority(&version.version, place)),
            };
            let name = format!("{}.{}", version.version, group.name);
            let managed = if is_custom { "true" } else { "onstart" };
            let spec = json!({
                "group": group.name,
                "version": version.version,
                "groupPriorityMinimum": group_priority,
                "versionPriority": version_priority,
            });
            wanted.insert(name.clone(), json!({"metadata": {"name": name, "labels": {MANAGED: managed}}, "spec": spec}));
        }
    }
    wanted
}

/// Upstream's order of the built-in groups; newer ones stand behind.
fn group_priority(group: &str) -> i64 {
    const ORDER: [(&str, i64); 21] = [
        ("", 18_000),
        ("apps", 17_800),
        ("events.k8s.io", 17_750),
        ("authentication.k8s.io", 17_700),
        ("authorization.k8s.io", 17_600),
        ("autoscaling", 17_500),
        ("batch", 17_400),
        ("certificates.k8s.io", 17_300),
        ("networking.k8s.io", 17_200),
        ("policy", 17_100),
        ("rbac.authorization.k8s.io", 17_000),
        ("storage.k8s.io", 16_800),
        ("apiextensions.k8s.io", 16_700),
        ("admissionregistration.k8s.io", 16_700),
        ("scheduling.k8s.io", 16_600),
        ("coordination.k8s.io", 16_500),
        ("node.k8s.io", 16_300),
        ("discovery.k8s.io", 16_200),
        ("flowcontrol.apiserver.k8s.io", 16_100),
        ("internal.apiserver.k8s.io", 16_000),
        ("apiregistration.k8s.io", 20_000),
    ];
    ORDER.iter().find(|(name, _)| *name == group).map_or(15_900, |(_, priority)| *priority)
}

fn version_priority(version: &str, place: usize) -> i64 {
    if version.contains("alpha") {
        return 1;
    }
    let before = i64::try_from(place).unwrap_or(0);
    if version.contains("beta") { 9 - before.min(8) } else { 15 - before.min(5) }
}
