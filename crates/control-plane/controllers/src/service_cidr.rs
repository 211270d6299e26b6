//! ServiceCIDRs are ready from the start, and are not deleted while a Service has an address that no other range covers (KEP-1880).

use std::net::IpAddr;
use std::sync::Arc;

use client::{Client, Error};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::{act, finalizer};

pub(crate) const NAME: &str = "service-cidr-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

pub(crate) async fn run(context: Context) {
    let (ranges, services): (Cache<ServiceCIDR>, Cache<Service>) = (context.caches.of(), context.caches.of());
    let queue: Queue<ObjectKey> = Queue::new();
    let (by_range, by_service, all) = (queue.clone(), queue.clone(), ranges.clone());
    ranges.on_change(move |_, new| new.into_iter().for_each(|range| by_range.add(key_of(&range.metadata))));
    services.on_change(move |old, new| {
        if let (Some(_), None) = (old, new) {
            let leaving = all.list().into_iter().filter(|range| range.metadata.deletion_timestamp.is_some());
            leaving.for_each(|range| by_service.add(key_of(&range.metadata)));
        }
    });
    tokio::join!(ranges.synced(), services.synced());
    let client: Client = context.client.clone();
    reconcile::run(NAME, queue, 1, context.drain, move |key| {
        let (client, ranges, services) = (client.clone(), ranges.clone(), services.clone());
        async move {
            let Some(range) = ranges.get_key(&key) else { return Outcome::Done };
            act(&client, &range, plan(&range, &ranges.list(), &services.list(), Timestamp::now())).await.into()
        }
    })
    .await;
}

#[derive(Default)]
struct Plan {
    finalizer: Option<finalizer::Change>,
    condition: Option<Condition>,
}

/// The network and the length of its prefix.
fn parse(cidr: &str) -> Option<(IpAddr, u32)> {
    let (address, length) = cidr.split_once('/')?;
    Some((address.parse().ok()?, length.parse().ok()?))
}

fn contains(range: &ServiceCIDR, address: IpAddr) -> bool {
    let cidrs = range.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    let holds = |(network, length): (IpAddr, u32)| match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let shift = 32_u32.saturating_sub(length);
            u32::from(network).checked_shr(shift) == u32::from(address).checked_shr(shift)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let shift = 128_u32.saturating_sub(length);
            u128::from(network).checked_shr(shift) == u128::from(address).checked_shr(shift)
        }
        _ => false,
    };
    cidrs.iter().filter_map(|cidr| parse(cidr)).any(holds)
}

fn plan(range: &ServiceCIDR, all: &[Arc<ServiceCIDR>], services: &[Arc<Service>], now: Timestamp) -> Plan {
    let others = || all.iter().filter(|other| other.metadata.name != range.metadata.name && other.metadata.deletion_timestamp.is_none());
    let addresses = services.iter().filter_map(|service| service.spec.as_ref()).flat_map(|spec| spec.cluster_ips.iter().flatten());
    let mut orphaned = addresses.filter_map(|address| address.parse().ok()).filter(|address: &IpAddr| contains(range, *address));
    let in_use = orphaned.any(|address| !others().any(|other| contains(other, address)));
    let leaving = range.metadata.deletion_timestamp.is_some();
    let (status, reason, message) = match leaving && in_use {
        false => ("True", "", "Kubernetes Service CIDR is ready"),
        true => {
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            ("False", "Terminating", message)
        }
    };
    let known = range.status.as_ref().and_then(|status| status.conditions.as_ref());
    let right = known.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == status);
    let condition = Condition {
        type_: "Ready".into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Time(now),
        observed_generation: None,
    };
    let wanted = !right && (!leaving || in_use);
    Plan { finalizer: finalizer::decide(&range.metadata, FINALIZER, in_use), condition: wanted.then_some(condition) }
}

async fn act(client: &Client, range: &ServiceCIDR, plan: Plan) -> Result<(), Error> {
    if let Some(condition) = plan.condition {
        let mut next = range.clone();
        let conditions = next.status.get_or_insert_default().conditions.get_or_insert_default();
        conditions.retain(|known| known.type_ != condition.type_);
        conditions.push(condition);
        // Its event brings the finalizer's turn.
        return act::write_status(client, &next).await;
    }
    match plan.finalizer {
        Some(change) => finalizer::write(client, range, FINALIZER, change).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_range_goes_when_no_service_needs_it() {
        let range = |name: &str, cidr: &str, leaving: bool| -> Arc<ServiceCIDR> {
            let meta = json!({"name": name, "finalizers": [FINALIZER], "deletionTimestamp": leaving.then_some("2026-01-01T00:00:00Z")});
            Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": {"cidrs": [cidr]}})).unwrap())
        };
        let service = |address: &str| -> Arc<Service> {
            Arc::new(serde_json::from_value(json!({"metadata": {}, "spec": {"clusterIPs": [address]}})).unwrap())
        };
        let told = |all: &[Arc<ServiceCIDR>], services: &[Arc<Service>]| {
            let plan = plan(&all[0], all, services, Timestamp::UNIX_EPOCH);
            (plan.condition.map(|condition| condition.status), plan.finalizer)
        };
        let leaving = range("a", "10.0.0.0/24", true);
        assert_eq!(told(&[range("a", "10.0.0.0/24", false)], &[]), (Some("True".into()), None));
        assert_eq!(told(&[leaving.clone()], &[service("10.0.0.7")]), (Some("False".into()), None));
        assert_eq!(told(&[leaving.clone()], &[service("10.0.1.7")]), (None, Some(finalizer::Change::Remove)));
        assert_eq!(told(&[leaving, range("b", "10.0.0.0/16", false)], &[service("10.0.0.7")]), (None, Some(finalizer::Change::Remove)));
    }
}
