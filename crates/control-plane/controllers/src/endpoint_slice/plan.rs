//! The endpoints that a Service shall have, by family and ports.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, ForNode, ForZone};

use super::US;
use super::observe::World;
use crate::slices::{self, Group, HEADLESS, MANAGED_BY, Members, Plan, SERVICE_NAME, Template};
use crate::{act, pods, service};

pub(super) fn plan(world: &World) -> Plan {
    let mut wanted: BTreeMap<Group, Members> = BTreeMap::new();
    for family in service::families(&world.service) {
        for pod in &world.pods {
            if let Some(endpoint) = endpoint(world, pod, &family) {
                let group = (family.clone(), service::ports(&world.service, pod));
                wanted.entry(group).or_default().insert(slices::identity(&endpoint), endpoint);
            }
        }
    }
    // A Service that nobody serves keeps one empty slice per family: it says "nobody", where none would say "not looked yet".
    for family in service::families(&world.service) {
        if !wanted.keys().any(|(known, _)| *known == family) {
            wanted.entry((family, Vec::new())).or_default();
        }
    }
    slices::pack(&template(&world.service), wanted, &world.slices)
}

/// The pod as an endpoint of a family; `None` where it has no address of it.
fn endpoint(world: &World, pod: &Pod, family: &str) -> Option<Endpoint> {
    let addresses = service::addresses(pod, family);
    if addresses.is_empty() {
        return None;
    }
    let (serving, terminating) = (pods::is_ready(pod), pod.metadata.deletion_timestamp.is_some());
    let ready = service::publishes_not_ready(&world.service) || (serving && !terminating);
    let node = pods::node_name(pod);
    let zone = node.and_then(|node| world.zones.get(node).cloned());
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) }),
        hostname: service::hostname(&world.service, pod),
        node_name: node.map(str::to_owned),
        target_ref: Some(service::target(pod)),
        hints: hints(&world.service, node, zone.as_deref()).filter(|_| ready),
        zone,
        ..Endpoint::default()
    })
}

/// Where traffic to the endpoint shall come from, as the Service prefers (KEP-4444, KEP-3015).
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let preference = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref())?;
    let zones = || zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let hints = match preference {
        "PreferClose" | "PreferSameZone" => EndpointHints { for_zones: zones(), for_nodes: None },
        "PreferSameNode" => EndpointHints { for_zones: zones(), for_nodes: node.map(|node| vec![ForNode { name: node.to_owned() }]) },
        _ => return None,
    };
    (hints.for_zones.is_some() || hints.for_nodes.is_some()).then_some(hints)
}

/// The Service's labels and our own.
fn template(service: &Service) -> Template {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), US.into());
    if service::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    Template {
        namespace: service.metadata.namespace.clone(),
        prefix: format!("{}-", service.metadata.name.as_deref().unwrap_or_default()),
        labels,
        annotations: None,
        owner: act::controller_ref(service),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, ready: bool, more: Value) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": format!("10.0.0.{}", name.len())}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        for (key, part) in more.as_object().into_iter().flatten() {
            value["metadata"][key] = part.clone();
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn world(target_port: Value, pods: Vec<Arc<Pod>>, slices: Vec<EndpointSlice>) -> World {
        let spec = json!({"selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ports": [{"name": "web", "port": 80, "targetPort": target_port}]});
        let service = json!({"metadata": {"name": "web", "namespace": "a", "uid": "s", "labels": {"team": "x"}}, "spec": spec});
        let named = |(index, mut slice): (usize, EndpointSlice)| {
            slice.metadata.name = Some(format!("web-{index}"));
            Arc::new(slice)
        };
        World {
            service: Arc::new(serde_json::from_value(service).unwrap()),
            pods,
            slices: slices.into_iter().enumerate().map(named).collect(),
            zones: HashMap::from([("n1".to_owned(), "z1".to_owned())]),
        }
    }

    fn conditions(slice: &EndpointSlice) -> Vec<(bool, bool, bool)> {
        let of = |endpoint: &Endpoint| {
            let conditions = endpoint.conditions.clone().unwrap();
            (conditions.ready.unwrap(), conditions.serving.unwrap(), conditions.terminating.unwrap())
        };
        slice.endpoints.iter().flatten().map(of).collect()
    }

    #[test]
    fn endpoints_say_ready_serving_terminating_node_zone_and_port() {
        let leaving = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        let plan =
            plan(&world(json!("http"), vec![pod("a", true, json!({})), pod("bb", false, json!({})), pod("ccc", true, leaving)], vec![]));
        let slice = &plan.create[0];
        assert_eq!(conditions(slice), [(true, true, false), (false, false, false), (false, true, true)]);
        let first = &slice.endpoints.as_ref().unwrap()[0];
        assert_eq!((first.node_name.as_deref(), first.zone.as_deref(), first.addresses[0].as_str()), (Some("n1"), Some("z1"), "10.0.0.1"));
        assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
        let labels = slice.metadata.labels.as_ref().unwrap();
        assert_eq!((labels[SERVICE_NAME].as_str(), labels[MANAGED_BY].as_str(), labels["team"].as_str()), ("web", US, "x"));
    }

    #[test]
    fn two_hundred_and_fifty_endpoints_are_three_slices_and_one_gone_changes_one() {
        let mut pods: Vec<Arc<Pod>> = (0..250).map(|number| pod(&format!("p{number:03}"), true, json!({}))).collect();
        let first = plan(&world(json!(80), pods.clone(), vec![]));
        let sizes: Vec<usize> = first.create.iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
        let settled = plan(&world(json!(80), pods.clone(), first.create.clone()));
        assert!(settled.create.is_empty() && settled.update.is_empty() && settled.delete.is_empty());
        pods.remove(17);
        let next = plan(&world(json!(80), pods, first.create));
        assert_eq!((next.create.len(), next.update.len(), next.delete.len()), (0, 1, 0));
    }

    #[test]
    fn nobody_is_one_empty_slice_that_stays() {
        let none = plan(&world(json!(80), vec![], vec![]));
        assert_eq!((none.create.len(), none.create[0].endpoints.as_ref().unwrap().len()), (1, 0));
        let still = plan(&world(json!(80), vec![], none.create.clone()));
        assert!(still.create.is_empty() && still.update.is_empty() && still.delete.is_empty());
        let some = plan(&world(json!(80), vec![pod("a", true, json!({}))], none.create));
        assert_eq!((some.create.len(), some.delete.len()), (1, 1));
    }

    #[test]
    fn a_service_that_prefers_near_endpoints_gives_hints() {
        let cases = [
            ("PreferClose", r#"{"forZones":[{"name":"z1"}]}"#),
            ("PreferSameNode", r#"{"forNodes":[{"name":"n1"}],"forZones":[{"name":"z1"}]}"#),
        ];
        for (preference, expected) in cases {
            let mut world = world(json!(80), vec![pod("a", true, json!({})), pod("bb", false, json!({}))], vec![]);
            Arc::make_mut(&mut world.service).spec.as_mut().unwrap().traffic_distribution = Some(preference.into());
            let slice = plan(&world).create.remove(0);
            let hints: Vec<_> = slice.endpoints.unwrap().into_iter().map(|endpoint| endpoint.hints).collect();
            assert_eq!(serde_json::to_string(&hints[0]).unwrap(), expected);
            assert_eq!(hints[1], None, "nobody is sent to an endpoint that is not ready");
        }
    }
}
