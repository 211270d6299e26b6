//! The addresses behind a Service, for what the API server itself calls: webhooks and aggregated servers.
//!
//! Ready endpoints are dialled directly (upstream: `--enable-aggregator-routing`), so that the API server does not depend on the proxy of its
//! own node; a Service whose endpoints nobody publishes is reached by its cluster address.

use std::net::{IpAddr, SocketAddr};

use meta::gvk::GroupResource;
use rules::value::{at, flag, int, label, list, text};
use serde_json::Value;

use crate::{Lookup, core};

/// Every address that may be tried, in random order; why there is none, in upstream's words, otherwise.
pub async fn resolve(lookup: &dyn Lookup, namespace: &str, name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let service = lookup.get(&core("services"), namespace, name).await.map_err(|status| status.message)?;
    let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
    let service_port = list(&service, "spec.ports").iter().find(|entry| int(entry, "port") == Some(i64::from(port)));
    let service_port = service_port.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let slices = GroupResource { group: "discovery.k8s.io".into(), resource: "endpointslices".into() };
    let slices = lookup.list(&slices, namespace).await.map_err(|status| status.message)?;
    let own: Vec<_> = slices.iter().filter(|slice| label(slice, "kubernetes.io/service-name") == Some(name)).collect();
    let mut found: Vec<SocketAddr> = own.iter().flat_map(|slice| of_slice(slice, text(service_port, "name"))).collect();
    if found.is_empty() {
        let unselected = at(&service, "spec.selector").as_object().is_none_or(serde_json::Map::is_empty);
        let address = text(&service, "spec.clusterIP").parse::<IpAddr>().ok();
        return match address.filter(|_| unselected && own.is_empty()) {
            Some(address) => Ok(vec![SocketAddr::new(address, port)]),
            None => Err(format!("no endpoints available for service {name:?}")),
        };
    }
    shuffle(&mut found);
    Ok(found)
}

fn of_slice(slice: &Value, port_name: &str) -> Vec<SocketAddr> {
    let port = list(slice, "ports").iter().find(|port| text(port, "name") == port_name);
    let Some(port) = port.and_then(|port| int(port, "port")).and_then(|port| u16::try_from(port).ok()) else { return Vec::new() };
    let ready = list(slice, "endpoints")
        .iter()
        .filter(|endpoint| at(endpoint, "conditions.ready").as_bool().unwrap_or(true) && !flag(endpoint, "conditions.terminating"));
    let addresses = ready.filter_map(|endpoint| list(endpoint, "addresses").first()?.as_str()?.parse::<IpAddr>().ok());
    addresses.map(|address| SocketAddr::new(address, port)).collect()
}

/// Spreads the load; without randomness the order stays.
fn shuffle(addresses: &mut [SocketAddr]) {
    let seed = meta::names::uid();
    let mut bytes = seed.bytes().filter(u8::is_ascii_hexdigit).map(usize::from).cycle();
    for at in (1..addresses.len()).rev() {
        let other = bytes.next().unwrap_or(0).wrapping_mul(31).wrapping_add(bytes.next().unwrap_or(0)) % (at + 1);
        addresses.swap(at, other);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::Objects;

    #[tokio::test]
    async fn a_service_is_reached_by_its_ready_endpoints() {
        let service = |name: &str, selector: Value| {
            let spec = json!({"clusterIP": "10.96.0.7", "selector": selector, "ports": [{"port": 443, "name": "https"}]});
            json!({"metadata": {"name": name, "namespace": "a"}, "spec": spec})
        };
        let endpoint = |address: &str, ready: bool| json!({"addresses": [address], "conditions": {"ready": ready}});
        let slice = json!({
            "metadata": {"name": "s", "namespace": "a", "labels": {"kubernetes.io/service-name": "full"}},
            "ports": [{"name": "https", "port": 8443}],
            "endpoints": [endpoint("10.0.0.1", true), endpoint("10.0.0.2", false)],
        });
        let objects = Objects::default()
            .with("services", service("full", json!({"a": "b"})))
            .with("services", service("empty", json!({"a": "b"})))
            .with("services", service("manual", json!({})))
            .with("endpointslices", slice);
        let cases = [
            ("full", 443, Ok(vec!["10.0.0.1:8443"])),
            ("full", 80, Err("no service port 80 found for service \"full\"")),
            ("empty", 443, Err("no endpoints available for service \"empty\"")),
            ("manual", 443, Ok(vec!["10.96.0.7:443"])),
            ("none", 443, Err("service \"none\" not found")),
        ];
        for (name, port, expected) in cases {
            let found = resolve(&objects, "a", name, port).await.map(|all| all.iter().map(SocketAddr::to_string).collect::<Vec<_>>());
            assert_eq!(found, expected.map(|all| all.into_iter().map(str::to_owned).collect()).map_err(str::to_owned));
        }
    }
}
