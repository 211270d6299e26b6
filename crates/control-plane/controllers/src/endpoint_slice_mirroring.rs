//! EndpointSlice mirroring: Endpoints that users write for a Service without a selector, as slices, which is all that proxies read.
//!
//! Woken by Endpoints, Services and our slices. At most a thousand addresses of a subset are mirrored, as upstream.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Cache, Expectations, ObjectKey, Outcome, Queue, key_of};

use crate::act;
use crate::context::Context;
use crate::service::Port;
use crate::slices::{self, Group, MANAGED_BY, Members, Plan, SERVICE_NAME, Template};

pub(crate) const NAME: &str = "endpointslice-mirroring-controller";
const US: &str = "endpointslicemirroring-controller.k8s.io";
const BY_ENDPOINTS: &str = "mirrored-slices";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that say nothing of the slices.
const NOT_COPIED: [&str; 2] = ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"];
const ADDRESSES_MAX: usize = 1000;

struct Controller {
    client: client::Client,
    endpoints: Cache<Endpoints>,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    expectations: Arc<Expectations<ObjectKey>>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        endpoints: context.caches.of(),
        services: context.caches.of(),
        slices: context.caches.of(),
        expectations: Arc::default(),
    });
    controller.slices.index(BY_ENDPOINTS, |slice| mirrored(&slice.metadata).map(|key| key.to_string()).into_iter().collect());
    let queue: Queue<ObjectKey> = Queue::new();
    let (by_endpoints, by_service, by_slice) = (queue.clone(), queue.clone(), queue.clone());
    controller.endpoints.on_change(move |old, new| new.or(old).into_iter().for_each(|object| by_endpoints.add(key_of(&object.metadata))));
    controller.services.on_change(move |old, new| new.or(old).into_iter().for_each(|service| by_service.add(key_of(&service.metadata))));
    controller.slices.on_change(move |old, new| {
        new.or(old).and_then(|slice| mirrored(&slice.metadata)).into_iter().for_each(|key| by_slice.add(key));
    });
    tokio::join!(controller.endpoints.synced(), controller.services.synced(), controller.slices.synced());
    reconcile::run(NAME, queue, 4, context.drain, move |key| controller.clone().reconcile(key)).await;
}

/// The Endpoints that a slice of ours mirrors.
fn mirrored(meta: &ObjectMeta) -> Option<ObjectKey> {
    let labels = meta.labels.as_ref()?;
    labels.get(MANAGED_BY).filter(|by| *by == US)?;
    Some(ObjectKey::new(meta.namespace.clone()?, labels.get(SERVICE_NAME)?))
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        if !self.expectations.seen(&key, &self.slices, |slice| slice.metadata.deletion_timestamp.is_some()) {
            return Outcome::Done;
        }
        let (endpoints, service) = (self.endpoints.get_key(&key), self.services.get_key(&key));
        let slices = self.slices.by_index(BY_ENDPOINTS, &key.to_string());
        let plan = plan(endpoints.as_deref(), service.as_deref(), slices);
        slices::write(&self.client, &self.expectations, &key, plan).await.into()
    }
}

fn is_mirrored(endpoints: &Endpoints, service: &Service) -> bool {
    let meta = &endpoints.metadata;
    let skips = meta.labels.as_ref().and_then(|labels| labels.get(SKIP)).is_some_and(|skip| skip == "true");
    let is_lock = meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LEADER));
    let selects = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_some_and(|selector| !selector.is_empty());
    !skips && !is_lock && !selects && meta.deletion_timestamp.is_none()
}

fn plan(endpoints: Option<&Endpoints>, service: Option<&Service>, slices: Vec<Arc<EndpointSlice>>) -> Plan {
    let Some((endpoints, _)) = endpoints.zip(service).filter(|(endpoints, service)| is_mirrored(endpoints, service)) else {
        return Plan { delete: slices, ..Plan::default() };
    };
    let mut wanted: BTreeMap<Group, Members> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<Port> = ports(subset);
        for (endpoint, family) in members(subset) {
            wanted.entry((family.to_owned(), ports.clone())).or_default().insert(slices::identity(&endpoint), endpoint);
        }
    }
    slices::pack(&template(endpoints), wanted, &slices)
}

fn ports(subset: &EndpointSubset) -> Vec<Port> {
    let port = |port: &EndpointPort| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        number: port.port,
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<Port> = subset.ports.iter().flatten().map(port).collect();
    ports.sort();
    ports
}

/// The subset's endpoints, each with its address family; an address given twice counts once, as ready.
fn members(subset: &EndpointSubset) -> Vec<(Endpoint, &'static str)> {
    let ready = subset.addresses.iter().flatten().map(|address| (address, true));
    let others = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
    let mut seen = HashSet::new();
    let new = ready.chain(others).filter(|(address, _)| seen.insert(address.ip.clone())).take(ADDRESSES_MAX);
    new.filter_map(|(address, ready)| endpoint(address, ready)).collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Option<(Endpoint, &'static str)> {
    let ip: IpAddr = address.ip.parse().ok()?;
    let endpoint = Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    };
    Some((endpoint, if ip.is_ipv6() { "IPv6" } else { "IPv4" }))
}

fn template(endpoints: &Endpoints) -> Template {
    let meta = &endpoints.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), US.into());
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| !NOT_COPIED.contains(&name.as_str()));
    let (namespace, prefix) = (meta.namespace.clone(), format!("{name}-"));
    Template { namespace, prefix, labels, annotations: Some(annotations), owner: act::controller_ref(endpoints) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mirror(labels: Value, selector: Value, subsets: Value, slices: Vec<EndpointSlice>) -> Plan {
        let meta = json!({"name": "db", "namespace": "a", "uid": "e", "labels": labels, "annotations": {"x": "y", NOT_COPIED[0]: "z"}});
        let endpoints: Endpoints = serde_json::from_value(json!({"metadata": meta, "subsets": subsets})).unwrap();
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "db"}, "spec": {"selector": selector}})).unwrap();
        plan(Some(&endpoints), Some(&service), slices.into_iter().map(Arc::new).collect())
    }

    #[test]
    fn subsets_become_slices_by_family_and_ports() {
        let subsets = json!([{
            "addresses": [{"ip": "10.1.0.1"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.1.0.2"}, {"ip": "10.1.0.1"}],
            "ports": [{"name": "pg", "port": 5432}],
        }]);
        let plan = mirror(json!({"team": "x"}), Value::Null, subsets.clone(), vec![]);
        let told: Vec<_> = plan
            .create
            .iter()
            .map(|slice| {
                let endpoints = slice.endpoints.iter().flatten();
                let words =
                    endpoints.map(|endpoint| format!("{}={}", endpoint.addresses[0], endpoint.conditions.as_ref().unwrap().ready.unwrap()));
                format!("{} {}", slice.address_type, words.collect::<Vec<_>>().join(" "))
            })
            .collect();
        assert_eq!(told, ["IPv4 10.1.0.1=true 10.1.0.2=false", "IPv6 fd00::1=true"]);
        let meta = &plan.create[0].metadata;
        assert_eq!(meta.labels.as_ref().unwrap()["team"], "x");
        assert_eq!(meta.annotations.as_ref().unwrap().keys().collect::<Vec<_>>(), ["x"]);
        let settled = mirror(json!({"team": "x"}), Value::Null, subsets.clone(), plan.create.clone());
        assert!(settled.create.is_empty() && settled.update.is_empty() && settled.delete.is_empty());
        for (labels, selector) in [(json!({SKIP: "true"}), Value::Null), (json!({}), json!({"app": "db"}))] {
            let gone = mirror(labels, selector, subsets.clone(), plan.create.clone());
            assert_eq!((gone.create.len(), gone.delete.len()), (0, 2));
        }
    }
}
