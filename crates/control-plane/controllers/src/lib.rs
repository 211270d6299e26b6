//! The controllers: loops that make what is match what was asked for, each reading caches and writing through the API.
//!
//! A folder per controller in one shape: `observe` gathers a world from the caches, `plan` decides in a pure function, `act` writes
//! idempotently. [`all`] lists them; [`run`] starts all of them at once on shared caches. Each controller is one task with one queue
//! of keys (one key, one running reconcile); wake-ups come from the caches' callbacks.
//!
//! An idle cluster writes nothing: every plan compares before it writes. There is no self-imposed rate limit; writes for one owner
//! go out [`act::IN_FLIGHT`] at a time.
//!
//! Read in this order: [`context`], [`replicaset`], [`deployment`], then any other.

mod act;
mod context;
mod devices;
mod discovery;
mod finalizer;
mod hash;
mod history;
mod intstr;
mod kinds;
mod pod_control;
mod pods;
mod revisioned;
mod selector;
mod service;
mod slices;

mod attach_detach;
mod bootstrap_token;
mod certificates;
mod cluster_role_aggregation;
mod cron_job;
mod daemon_set;
mod deployment;
mod device_taint_eviction;
mod disruption;
mod endpoint_slice;
mod endpoint_slice_mirroring;
mod endpoints;
mod ephemeral_volume;
mod garbage_collector;
mod horizontal_pod_autoscaler;
mod job;
mod legacy_token_cleaner;
mod local_path;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod node_ttl;
mod persistent_volume_claim_protection;
mod persistent_volume_protection;
mod pod_gc;
mod replicaset;
mod resource_claim;
mod resource_pool_status;
mod resource_quota;
mod root_ca;
mod service_account;
mod service_account_token;
mod service_cidr;
mod service_ip_address;
mod service_load_balancer;
mod stateful_set;
mod storage_version_migration;
mod taint_eviction;
mod trust_bundle;
mod volume_attributes_class_protection;
mod volume_binder;
mod volume_expander;
mod volume_snapshot;

use std::pin::Pin;

use client::Client;
use reconcile::Caches;
use stdx::Drain;

use context::Context;
pub use context::{Config, NodeProbe, RootCa};
pub use node_ipam::ClusterRange;
use replicaset::replication_controller;

/// One controller: its name in logs and its life.
struct Controller {
    name: &'static str,
    run: fn(Context) -> Pin<Box<dyn Future<Output = ()> + Send>>,
}

macro_rules! controller {
    ($($module:ident)::+) => {
        Controller { name: $($module)::+::NAME, run: |context| Box::pin($($module)::+::run(context)) }
    };
}

/// Every controller; the order has no meaning.
fn all() -> Vec<Controller> {
    vec![
        controller!(deployment),
        controller!(replicaset),
        controller!(replication_controller),
        controller!(daemon_set),
        controller!(stateful_set),
        controller!(job),
        controller!(cron_job),
        controller!(horizontal_pod_autoscaler),
        controller!(endpoint_slice),
        controller!(endpoint_slice_mirroring),
        controller!(endpoints),
        controller!(garbage_collector),
        controller!(namespace),
        controller!(node_lifecycle),
        controller!(taint_eviction),
        controller!(pod_gc),
        controller!(disruption),
        controller!(resource_quota),
        controller!(service_account),
        controller!(root_ca),
        controller!(node_ipam),
        controller!(cluster_role_aggregation),
        controller!(certificates::approve),
        controller!(certificates::sign),
        controller!(certificates::clean),
        controller!(certificates::pods),
        controller!(certificates::pods_clean),
        controller!(service_account_token),
        controller!(legacy_token_cleaner),
        controller!(volume_binder),
        controller!(local_path),
        controller!(persistent_volume_protection),
        controller!(persistent_volume_claim_protection),
        controller!(ephemeral_volume),
        controller!(service_load_balancer),
        controller!(node_ttl),
        controller!(bootstrap_token),
        controller!(resource_claim),
        controller!(service_cidr),
        controller!(service_ip_address),
        controller!(storage_version_migration),
        controller!(trust_bundle),
        controller!(attach_detach),
        controller!(volume_expander),
        controller!(volume_snapshot),
        controller!(volume_attributes_class_protection),
        controller!(device_taint_eviction),
        controller!(resource_pool_status),
    ]
}

/// Runs every controller until `drain`. `client` is `system:kube-controller-manager` or may do as much.
pub async fn run(client: Client, config: Config, drain: Drain) {
    let reading = stdx::drain();
    run_on(client.clone(), Caches::new(&client, reading.clone()), config, drain).await;
    reading.stop();
}

/// The same in one of several processes: only the holder of the Lease runs the controllers, on caches of its own, which end with its term.
pub async fn run_as_leader(client: Client, config: Config, election: reconcile::leader::Config, drain: Drain) {
    reconcile::leader::run(client.clone(), election, drain, |term| run(client.clone(), config.clone(), term)).await;
}

/// The same on caches that other components of the process share. They must outlive this, or a controller that is still waiting for its caches
/// when the stop comes never ends.
pub async fn run_on(client: Client, caches: Caches, config: Config, drain: Drain) {
    let context = Context::new(client, caches, config, drain);
    let mut tasks = tokio::task::JoinSet::new();
    for controller in all() {
        tracing::debug!(controller = controller.name, "starting");
        tasks.spawn((controller.run)(context.for_controller(controller.name)));
    }
    while tasks.join_next().await.is_some() {}
    context.end_caches();
}
