//! What the Endpoints of a Service shall be.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::pods;
use crate::service::{self, Port};

/// Addresses per object; more are cut off and the object says so.
const ADDRESSES_MAX: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const US: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";

pub(super) enum Write {
    Nothing,
    Create(Endpoints),
    Replace(Endpoints),
    Delete(Endpoints),
}

pub(super) fn plan(service: Option<&Service>, pods: &[Arc<Pod>], current: Option<&Endpoints>) -> Write {
    let Some(service) = service else {
        // Only what we made: people may write Endpoints before their Service.
        let ours =
            current.filter(|current| current.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == US));
        return ours.map_or(Write::Nothing, |ours| Write::Delete(ours.clone()));
    };
    if !service::is_selecting(service) || service.metadata.deletion_timestamp.is_some() {
        return Write::Nothing;
    }
    let (subsets, truncated) = subsets(service, pods);
    let labels = labels(service);
    let annotated = |meta: &ObjectMeta| meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(OVER_CAPACITY));
    if let Some(current) = current
        && current.subsets.as_deref().unwrap_or_default() == subsets
        && current.metadata.labels.as_ref() == Some(&labels)
        && annotated(&current.metadata) == truncated
    {
        return Write::Nothing;
    }
    let mut metadata = current.map(|current| current.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        namespace: service.metadata.namespace.clone(),
        name: service.metadata.name.clone(),
        ..ObjectMeta::default()
    });
    metadata.labels = Some(labels);
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.remove(OVER_CAPACITY);
    if truncated {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    }
    let next = Endpoints { metadata, subsets: (!subsets.is_empty()).then_some(subsets) };
    if current.is_some() { Write::Replace(next) } else { Write::Create(next) }
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.into(), US.into());
    match service::is_headless(service) {
        true => drop(labels.insert(HEADLESS.into(), String::new())),
        false => drop(labels.remove(HEADLESS)),
    }
    labels
}

/// Addresses grouped by their ports, ready ones apart; ready ones are kept first when there are too many.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let family = service::families(service).into_iter().next().unwrap_or_default();
    let not_ready_too = service::publishes_not_ready(service);
    let mut entries: Vec<(bool, Vec<Port>, EndpointAddress)> = Vec::new();
    for pod in pods.iter().filter(|pod| not_ready_too || pod.metadata.deletion_timestamp.is_none()) {
        let Some(ip) = service::addresses(pod, &family).into_iter().next() else { continue };
        let address = EndpointAddress {
            ip,
            hostname: service::hostname(service, pod),
            node_name: pods::node_name(pod).map(str::to_owned),
            target_ref: Some(service::target(pod)),
        };
        let ports = service::ports(service, pod);
        let wants_ports = service.spec.as_ref().is_some_and(|spec| spec.ports.as_ref().is_some_and(|ports| !ports.is_empty()));
        if wants_ports && ports.is_empty() {
            continue;
        }
        entries.push((not_ready_too || pods::is_ready(pod), ports, address));
    }
    let truncated = entries.len() > ADDRESSES_MAX;
    entries.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.2.ip.cmp(&b.2.ip)));
    entries.truncate(ADDRESSES_MAX);
    let mut grouped: BTreeMap<Vec<Port>, EndpointSubset> = BTreeMap::new();
    for (ready, ports, address) in entries {
        let subset = grouped.entry(ports).or_default();
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let with_ports = |(ports, mut subset): (Vec<Port>, EndpointSubset)| {
        subset.ports = (!ports.is_empty()).then(|| ports.into_iter().map(port).collect());
        subset
    };
    (grouped.into_iter().map(with_ports).collect(), truncated)
}

fn port(port: Port) -> EndpointPort {
    EndpointPort {
        name: (!port.name.is_empty()).then_some(port.name),
        protocol: Some(port.protocol),
        port: port.number,
        app_protocol: port.app_protocol,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service() -> Service {
        let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "a"}, "spec": spec})).unwrap()
    }

    fn pods(count: usize) -> Vec<Arc<Pod>> {
        let pod = |number: usize| {
            let ready = if number == 1 { "False" } else { "True" };
            let status =
                json!({"podIP": format!("10.0.{}.{}", number / 250, number % 250), "conditions": [{"type": "Ready", "status": ready}]});
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": format!("p{number}"), "labels": {"app": "web"}}, "status": status}))
                    .unwrap(),
            )
        };
        (0..count).map(pod).collect()
    }

    #[test]
    fn ready_and_unready_addresses_are_apart_and_the_same_again_writes_nothing() {
        let Write::Create(endpoints) = plan(Some(&service()), &pods(3), None) else { panic!() };
        let subset = &endpoints.subsets.as_ref().unwrap()[0];
        let counts = (subset.addresses.as_ref().unwrap().len(), subset.not_ready_addresses.as_ref().unwrap().len());
        assert_eq!((counts, subset.ports.as_ref().unwrap()[0].port), ((2, 1), 80));
        assert!(matches!(plan(Some(&service()), &pods(3), Some(&endpoints)), Write::Nothing));
        assert!(matches!(plan(None, &[], Some(&endpoints)), Write::Delete(_)));
    }

    #[test]
    fn more_than_a_thousand_are_cut_off_with_a_note() {
        let Write::Create(endpoints) = plan(Some(&service()), &pods(1200), None) else { panic!() };
        assert_eq!(endpoints.subsets.as_ref().unwrap()[0].addresses.as_ref().unwrap().len(), 1000);
        assert_eq!(endpoints.metadata.annotations.as_ref().unwrap()[OVER_CAPACITY], "truncated");
    }
}
