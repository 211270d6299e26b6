//! Services of type LoadBalancer get the addresses of the nodes, where no other load balancer has given them addresses.
//!
//! Every node answers on a Service's `status.loadBalancer` addresses through the proxy, so that its own addresses are as good as any. A
//! Service with a `loadBalancerClass`, or with addresses that are no node's, is somebody else's: it is never touched.

use std::collections::BTreeSet;
use std::sync::Arc;

use client::{Client, Error, Patch};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Service};
use reconcile::{Cache, EventKind, EventRecorder, ObjectKey, Outcome, Queue, key_of, reference_to};
use serde_json::json;

use crate::context::Context;

pub(crate) const NAME: &str = "service-lb-controller";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

struct Controller {
    client: Client,
    services: Cache<Service>,
    nodes: Cache<Node>,
    recorder: EventRecorder,
}

pub(crate) async fn run(context: Context) {
    if !context.config.node_load_balancer {
        return;
    }
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        services: context.caches.of(),
        nodes: context.caches.of(),
        recorder: context.recorder("service-controller"),
    });
    let queue: Queue<ObjectKey> = Queue::new();
    let (by_service, by_node, services) = (queue.clone(), queue.clone(), controller.services.clone());
    controller.services.on_change(move |_, new| {
        let concerned = new.filter(|service| is_ours(service) || has_addresses(service));
        concerned.into_iter().for_each(|service| by_service.add(key_of(&service.metadata)));
    });
    controller.nodes.on_change(move |old, new| {
        if old.map(|node| addresses(node)) != new.map(|node| addresses(node)) {
            services.list().iter().filter(|service| is_ours(service)).for_each(|service| by_node.add(key_of(&service.metadata)));
        }
    });
    tokio::join!(controller.services.synced(), controller.nodes.synced());
    reconcile::run(NAME, queue, 2, context.drain, move |key| controller.clone().reconcile(key)).await;
}

fn is_ours(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none() && service.metadata.deletion_timestamp.is_none()
}

fn ingress(service: &Service) -> &[LoadBalancerIngress] {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.and_then(|status| status.ingress.as_deref()).unwrap_or_default()
}

fn has_addresses(service: &Service) -> bool {
    !ingress(service).is_empty()
}

/// The addresses of a node that takes traffic from outside; none of one that is to be left out.
fn addresses(node: &Node) -> Vec<String> {
    if node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED)) {
        return Vec::new();
    }
    let listed = node.status.as_ref().and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    listed.filter(|address| address.type_ == "InternalIP").map(|address| address.address.clone()).collect()
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(service) = self.services.get_key(&key) else { return Outcome::Done };
        match plan(&service, &self.nodes.list()) {
            Some(addresses) => self.act(&service, addresses).await.into(),
            None => Outcome::Done,
        }
    }

    async fn act(&self, service: &Service, addresses: Vec<String>) -> Result<(), Error> {
        let key = key_of(&service.metadata);
        let message = if addresses.is_empty() { None } else { Some("Ensured load balancer") };
        let ingress: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let meta = json!({"uid": service.metadata.uid, "resourceVersion": service.metadata.resource_version});
        let patch = json!({"metadata": meta, "status": {"loadBalancer": {"ingress": ingress}}});
        client::ignore_not_found(self.client.patch::<Service>(key.namespace(), &key.name, &Patch::Merge(patch), "status").await)?;
        let about = reference_to(service);
        message.into_iter().for_each(|message| self.recorder.event(&about, EventKind::Normal, "EnsuredLoadBalancer", message));
        Ok(())
    }
}

/// The addresses that the Service shall have; `None` where it has them, or is not ours.
fn plan(service: &Service, nodes: &[Arc<Node>]) -> Option<Vec<String>> {
    let all: BTreeSet<String> = nodes.iter().flat_map(|node| addresses(node)).collect();
    let current: Vec<String> = ingress(service).iter().map(|entry| entry.ip.clone().unwrap_or_default()).collect();
    let was_type = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
    if !is_ours(service) {
        // No longer of this type: what we gave is taken back.
        let given = !was_type && !current.is_empty() && current.iter().all(|address| all.contains(address));
        return given.then(Vec::new);
    }
    if !current.is_empty() && !current.iter().any(|address| all.contains(address)) {
        return None;
    }
    let families = crate::service::families(service);
    let fits = |address: &String| families.iter().any(|family| (family == "IPv6") == address.contains(':'));
    let wanted: Vec<String> = all.into_iter().filter(fits).collect();
    (wanted != current).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_load_balancer_has_the_nodes_addresses_unless_somebody_else_gave_it_others() {
        let node = |address: &str, labels: Value| -> Arc<Node> {
            let addresses = json!([{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": "h"}]);
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": address, "labels": labels}, "status": {"addresses": addresses}}))
                    .unwrap(),
            )
        };
        let nodes = [node("10.0.0.2", json!({})), node("10.0.0.1", json!({})), node("10.0.0.9", json!({EXCLUDED: ""}))];
        let service = |kind: &str, class: Option<&str>, current: &[&str]| -> Service {
            let ingress: Vec<_> = current.iter().map(|ip| json!({"ip": ip})).collect();
            serde_json::from_value(json!({"metadata": {}, "spec": {"type": kind, "loadBalancerClass": class}, "status": {"loadBalancer": {"ingress": ingress}}})).unwrap()
        };
        let given = |kind: &str, class, current: &[&str]| plan(&service(kind, class, current), &nodes).map(|all| all.join(" "));
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(given("LoadBalancer", None, &[]), text("10.0.0.1 10.0.0.2"));
        assert_eq!(given("LoadBalancer", None, &["10.0.0.1", "10.0.0.2"]), None);
        assert_eq!(given("LoadBalancer", None, &["10.0.0.1"]), text("10.0.0.1 10.0.0.2"));
        assert_eq!(given("LoadBalancer", None, &["203.0.113.1"]), None);
        assert_eq!(given("LoadBalancer", Some("metal.lb/x"), &[]), None);
        assert_eq!(given("ClusterIP", None, &["10.0.0.1"]), text(""));
        assert_eq!(given("ClusterIP", None, &[]), None);
    }
}
