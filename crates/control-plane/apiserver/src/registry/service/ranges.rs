//! Which ranges addresses come from: the configured ones and those of the ServiceCIDR objects (KEP-1880).
//!
//! Source: `pkg/registry/core/service/ipallocator/cidrallocator.go`.

use std::net::IpAddr;

use meta::names;
use serde_json::Value;

use super::super::catalog;
use super::Network;
use crate::cache::Caches;
use crate::selection::Selection;

/// The ranges that are ready, the configured ones first. One whose only ServiceCIDRs are going gives nothing any more.
pub fn ready(configured: &[Network], caches: &Caches) -> Vec<Network> {
    let said = objects(caches);
    let is_ready = |network: &Network| said.iter().any(|(other, ready)| *ready && other == network);
    let is_named = |network: &Network| said.iter().any(|(other, _)| other == network);
    let mut all: Vec<Network> = configured.iter().copied().filter(|network| is_ready(network) || !is_named(network)).collect();
    for (network, _) in said.iter().filter(|(_, ready)| *ready) {
        if !all.contains(network) {
            all.push(*network);
        }
    }
    all
}

/// Somebody else than a Service has an IPAddress object for it.
pub fn is_anothers(address: IpAddr, caches: &Caches) -> bool {
    let Some(kind) = catalog::stored("networking.k8s.io", "ipaddresses") else { return false };
    let object = caches.of(kind.storage.prefix.as_bytes()).get(&kind.key("", &address.to_string()));
    // Those of Services follow the Services; what these have is known better.
    object.is_some_and(|object| object.value()["spec"]["parentRef"]["resource"] != "services")
}

fn objects(caches: &Caches) -> Vec<(Network, bool)> {
    let Some(kind) = catalog::stored("networking.k8s.io", "servicecidrs") else { return Vec::new() };
    let selection = Selection::all(kind.prefix(""), kind.storage.rules.clone());
    let page = caches.of(kind.storage.prefix.as_bytes()).list(&selection.prefix, b"", 0, &selection, 0);
    page.objects.iter().flat_map(|object| networks(&object.value())).collect()
}

/// The ranges of one object and whether it is ready, which it is until its controller says otherwise.
fn networks(range: &Value) -> Vec<(Network, bool)> {
    let conditions = range["status"]["conditions"].as_array().into_iter().flatten();
    let refused = conditions.filter(|condition| condition["type"] == "Ready").any(|condition| condition["status"] != "True");
    let ready = !refused && range["metadata"]["deletionTimestamp"].is_null();
    let cidrs = range["spec"]["cidrs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let parsed = cidrs.filter_map(names::parse_cidr);
    parsed.map(|(address, prefix)| (Network { first: names::network_of(address, prefix), prefix }, ready)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_is_ready_until_it_goes_or_its_controller_says_no() {
        let network = Network { first: "10.9.0.0".parse().unwrap(), prefix: 24 };
        for (status, meta, ready) in [
            (json!({}), json!({}), true),
            (json!({"conditions": [{"type": "Ready", "status": "True"}]}), json!({}), true),
            (json!({"conditions": [{"type": "Ready", "status": "False"}]}), json!({}), false),
            (json!({}), json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), false),
        ] {
            let object = json!({"metadata": meta, "spec": {"cidrs": ["10.9.0.0/24"]}, "status": status});
            assert_eq!(networks(&object), [(network, ready)], "{object}");
        }
    }
}
