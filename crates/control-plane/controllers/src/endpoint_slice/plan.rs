//! Which endpoints go into which slice, with as few slices changed as can be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::observe::World;
use super::{MANAGED_BY, SERVICE_NAME, US};
use crate::service::{self, Port};
use crate::{act, pods};

/// Endpoints per slice (upstream: `--max-endpoints-per-slice`).
pub(super) const ENDPOINTS_MAX: usize = 100;
const HEADLESS: &str = "service.kubernetes.io/headless";

#[derive(Default)]
pub(super) struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// What a slice is one of: an address family and a set of ports.
type Group = (String, Vec<Port>);

pub(super) fn plan(world: &World) -> Plan {
    let mut wanted: BTreeMap<Group, BTreeMap<String, Endpoint>> = BTreeMap::new();
    for family in service::families(&world.service) {
        for pod in &world.pods {
            if let Some(endpoint) = endpoint(world, pod, &family) {
                let group = (family.clone(), service::ports(&world.service, pod));
                wanted.entry(group).or_default().insert(identity(&endpoint), endpoint);
            }
        }
    }
    let mut have: BTreeMap<Group, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    world.slices.iter().for_each(|slice| have.entry(group_of(slice)).or_default().push(slice));
    // A Service that nobody serves keeps one empty slice per family: it says "nobody", where none would say "not looked yet".
    for family in service::families(&world.service) {
        if !wanted.keys().any(|(known, _)| *known == family) {
            wanted.entry((family, Vec::new())).or_default();
        }
    }
    let groups: BTreeSet<&Group> = wanted.keys().chain(have.keys()).collect();
    let mut plan = Plan::default();
    for group in groups {
        let slices = have.get(group).map(Vec::as_slice).unwrap_or_default();
        match wanted.get(group) {
            Some(endpoints) => arrange(world, group, endpoints.clone(), slices, &mut plan),
            None => plan.delete.extend(slices.iter().map(|slice| (*slice).clone())),
        }
    }
    plan
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
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) }),
        hostname: service::hostname(&world.service, pod),
        node_name: node.map(str::to_owned),
        target_ref: Some(service::target(pod)),
        zone: node.and_then(|node| world.zones.get(node).cloned()),
        ..Endpoint::default()
    })
}

fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    uid.unwrap_or_else(|| endpoint.addresses.join(","))
}

fn group_of(slice: &EndpointSlice) -> Group {
    let port = |port: &EndpointPort| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        number: port.port.unwrap_or(0),
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(port).collect();
    ports.sort();
    (slice.address_type.clone(), ports)
}

/// Leaves each endpoint in the slice where it is; fills the new ones into slices that change anyway, then into others with room,
/// then into new slices; drops slices that became empty.
fn arrange(world: &World, group: &Group, mut left: BTreeMap<String, Endpoint>, slices: &[&Arc<EndpointSlice>], plan: &mut Plan) {
    let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    for slice in slices {
        let before: Vec<&Endpoint> = slice.endpoints.iter().flatten().collect();
        let after: Vec<Endpoint> = before.iter().filter_map(|endpoint| left.remove(&identity(endpoint))).collect();
        let changed = before.len() != after.len() || before.iter().zip(&after).any(|(a, b)| *a != b) || stale_meta(world, slice);
        kept.push((slice, after, changed));
    }
    let mut left: Vec<Endpoint> = left.into_values().collect();
    // Changed slices first, then the fullest.
    let mut order: Vec<usize> = (0..kept.len()).collect();
    order.sort_by_key(|index| (!kept[*index].2, usize::MAX - kept[*index].1.len()));
    for index in order {
        let (_, endpoints, changed) = &mut kept[index];
        let room = ENDPOINTS_MAX.saturating_sub(endpoints.len()).min(left.len());
        *changed |= room > 0;
        endpoints.extend(left.drain(..room));
    }
    let mut standing = 0;
    let total = kept.len();
    for (index, (slice, endpoints, changed)) in kept.into_iter().enumerate() {
        let last_hope = standing == 0 && left.is_empty() && index + 1 == total && is_placeholder(group);
        if endpoints.is_empty() && !last_hope {
            plan.delete.push(slice.clone());
            continue;
        }
        standing += 1;
        if changed {
            plan.update.push(EndpointSlice {
                metadata: meta(world, Some(slice)),
                endpoints: Some(endpoints),
                ..EndpointSlice::clone(slice)
            });
        }
    }
    let new = left.chunks(ENDPOINTS_MAX).map(|endpoints| new_slice(world, group, endpoints.to_vec()));
    plan.create.extend(new);
    if standing == 0 && left.is_empty() && is_placeholder(group) {
        plan.create.push(new_slice(world, group, Vec::new()));
    }
}

fn is_placeholder(group: &Group) -> bool {
    group.1.is_empty()
}

fn new_slice(world: &World, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let port = |port: &Port| EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.number),
        app_protocol: port.app_protocol.clone(),
    };
    EndpointSlice {
        address_type: group.0.clone(),
        endpoints: Some(endpoints),
        ports: (!group.1.is_empty()).then(|| group.1.iter().map(port).collect()),
        metadata: meta(world, None),
    }
}

/// The Service's labels and our own.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), US.into());
    if service::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

fn meta(world: &World, slice: Option<&EndpointSlice>) -> ObjectMeta {
    let owner = act::controller_ref(&*world.service);
    let mut meta = slice.map(|slice| slice.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        namespace: world.service.metadata.namespace.clone(),
        generate_name: Some(format!("{}-", world.service.metadata.name.as_deref().unwrap_or_default())),
        ..ObjectMeta::default()
    });
    meta.labels = Some(labels(&world.service));
    meta.owner_references = Some(vec![owner]);
    meta
}

fn stale_meta(world: &World, slice: &EndpointSlice) -> bool {
    let owned = slice.metadata.owner_references.iter().flatten().any(|owner| Some(&owner.uid) == world.service.metadata.uid.as_ref());
    !owned || slice.metadata.labels.as_ref() != Some(&labels(&world.service))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

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
}
