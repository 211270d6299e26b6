//! IPAddress: each address that a Service has as an object of its own, which names the Service (KEP-1880). Upstream's API server writes
//! them while it allocates; ours allocates in memory, and this loop keeps the objects.
//!
//! The key is an address.

use std::net::IpAddr;
use std::sync::Arc;

use client::{Client, DeleteParams, Error};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;

pub(crate) const NAME: &str = "service-ip-address-controller";
const BY_ADDRESS: &str = "services-by-address";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const US: &str = "ipallocator.k8s.io";

pub(crate) async fn run(context: Context) {
    let (services, objects): (Cache<Service>, Cache<IPAddress>) = (context.caches.of(), context.caches.of());
    services.index(BY_ADDRESS, |service| addresses(service).map(|address| address.to_string()).collect());
    let queue: Queue<ObjectKey> = Queue::new();
    let (by_service, by_object) = (queue.clone(), queue.clone());
    services.on_change(move |old, new| {
        let all = [old, new].into_iter().flatten().flat_map(|service| addresses(service));
        all.for_each(|address| by_service.add(ObjectKey::new("", address.to_string())));
    });
    objects.on_change(move |old, new| new.or(old).into_iter().for_each(|object| by_object.add(key_of(&object.metadata))));
    tokio::join!(services.synced(), objects.synced());
    let client: Client = context.client.clone();
    reconcile::run(NAME, queue, 4, context.drain, move |key| {
        let (client, owner, object) = (client.clone(), services.by_index(BY_ADDRESS, &key.name).into_iter().next(), objects.get_key(&key));
        async move { act(&client, &key.name, plan(&key.name, owner.as_deref(), object)).await.map(|()| Outcome::Done) }
    })
    .await;
}

fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    let listed = service.spec.as_ref().and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten();
    listed.filter_map(|address| address.parse().ok())
}

#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Create(Box<IPAddress>),
    /// By its uid.
    Delete(String),
}

/// Objects that others made are theirs.
fn plan(name: &str, owner: Option<&Service>, object: Option<Arc<IPAddress>>) -> Plan {
    let parent = owner.map(|service| ParentReference {
        group: None,
        resource: "services".into(),
        namespace: service.metadata.namespace.clone(),
        name: service.metadata.name.clone().unwrap_or_default(),
    });
    match (parent, object) {
        (None, None) => Plan::Nothing,
        (Some(parent), None) => {
            let family = if name.contains(':') { "IPv6" } else { "IPv4" };
            let labels = [(FAMILY.to_owned(), family.to_owned()), (MANAGED_BY.to_owned(), US.to_owned())];
            let metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(labels.into()), ..ObjectMeta::default() };
            Plan::Create(Box::new(IPAddress { metadata, spec: IPAddressSpec { parent_ref: parent } }))
        }
        (parent, Some(object)) => {
            let ours = object.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == US);
            let named = &object.spec.parent_ref;
            let same = parent.as_ref().is_some_and(|wanted| {
                (&wanted.resource, &wanted.namespace, &wanted.name) == (&named.resource, &named.namespace, &named.name)
            });
            let stale = ours && !same && object.metadata.deletion_timestamp.is_none();
            if stale { Plan::Delete(object.metadata.uid.clone().unwrap_or_default()) } else { Plan::Nothing }
        }
    }
}

async fn act(client: &Client, name: &str, plan: Plan) -> Result<(), Error> {
    match plan {
        Plan::Nothing => Ok(()),
        Plan::Create(object) => client::ignore_already_exists(client.create(&*object).await),
        // A parent does not change: the event of the deletion makes it anew.
        Plan::Delete(uid) => client::ignore_not_found(client.delete::<IPAddress>(None, name, &DeleteParams::of_uid(&uid)).await),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_names_the_service_that_has_it_and_goes_with_it() {
        let service = |name: &str| -> Service {
            serde_json::from_value(json!({"metadata": {"namespace": "a", "name": name}, "spec": {"clusterIPs": ["10.96.0.7", "None"]}}))
                .unwrap()
        };
        assert_eq!(addresses(&service("web")).count(), 1);
        let Plan::Create(object) = plan("10.96.0.7", Some(&service("web")), None) else { panic!("it is missing") };
        assert_eq!(object.metadata.labels.as_ref().unwrap()[FAMILY], "IPv4");
        let mut object = *object;
        object.metadata.uid = Some("u".into());
        let known = |object: &IPAddress| Some(Arc::new(object.clone()));
        assert_eq!(plan("10.96.0.7", Some(&service("web")), known(&object)), Plan::Nothing);
        assert_eq!(plan("10.96.0.7", Some(&service("other")), known(&object)), Plan::Delete("u".into()));
        assert_eq!(plan("10.96.0.7", None, known(&object)), Plan::Delete("u".into()));
        object.metadata.labels = None;
        assert_eq!(plan("10.96.0.7", None, known(&object)), Plan::Nothing, "somebody else's");
        assert_eq!(plan("10.96.0.7", None, None), Plan::Nothing);
    }
}
