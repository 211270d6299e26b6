//! A pod's claims allocated and reserved for it, written before the pod is bound.

use std::sync::Arc;
use std::time::Duration;

use client::{Client, Patch};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reconcile::{Cache, Cached, ObjectKey};
use serde_json::json;
use tokio::time::Instant;

use super::Decision;

/// Keeps a claim while its devices are in use.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Tries while others write the claim as well.
const TRIES_MAX: usize = 5;
/// How often a claim is looked at while a driver prepares its devices.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long drivers may take (upstream's `bindingTimeout`).
pub(crate) const PREPARATION_MAX: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} claim {claim}: {source}")]
    Api { step: &'static str, claim: ObjectKey, source: client::Error },
    #[error("claim {0} got deleted in the meantime")]
    Deleted(ObjectKey),
    #[error("claim {0} got allocated elsewhere in the meantime")]
    Allocated(ObjectKey),
    #[error("claim {0} binding failed: a device's binding failure condition is true")]
    Failed(ObjectKey),
    #[error("claim {0} binding timeout")]
    Late(ObjectKey),
}

/// A decision with who it is for.
pub(crate) struct Reservation {
    pub decision: Decision,
    pub pod: ObjectKey,
    pub uid: String,
    pub claims: Cache<ResourceClaim>,
}

/// What was written, with the claims' revisions, and how it ended.
pub(crate) struct Written {
    pub claims: Vec<(ObjectKey, u64)>,
    pub result: Result<(), Error>,
}

impl Reservation {
    pub async fn carry_out(&self, client: &Client) -> Written {
        let mut claims = Vec::new();
        let mut pending = Vec::new();
        for (claim, allocation) in &self.decision.claims {
            match self.reserve(client, claim, allocation.as_ref()).await {
                Ok(Some(written)) => {
                    claims.push((written.key(), written.resource_version().parse().unwrap_or(0)));
                    if waits_for_driver(&written) {
                        pending.push(written);
                    }
                }
                Ok(None) => {}
                Err(error) => return Written { claims, result: Err(error) },
            }
        }
        let until = Instant::now() + PREPARATION_MAX;
        for claim in pending {
            if let Err(error) = self.prepared(client, &claim, until).await {
                return Written { claims, result: Err(error) };
            }
        }
        Written { claims, result: Ok(()) }
    }

    /// The claim with the pod among its users, and the allocation where it is new; `None` where it was so before.
    async fn reserve(
        &self,
        client: &Client,
        claim: &Arc<ResourceClaim>,
        allocation: Option<&AllocationResult>,
    ) -> Result<Option<ResourceClaim>, Error> {
        let key = claim.key();
        let failed = |step| {
            let claim = key.clone();
            move |source| Error::Api { step, claim, source }
        };
        let (mut current, mut attempt) = (ResourceClaim::clone(claim), 0);
        loop {
            attempt += 1;
            if current.metadata.deletion_timestamp.is_some() || current.uid() != claim.uid() {
                return Err(Error::Deleted(key));
            }
            if self.is_reserved(&current) {
                return Ok((attempt > 1).then_some(current));
            }
            let written = self.reserve_once(client, &current, allocation).await;
            match written {
                Ok(written) => return Ok(Some(written)),
                Err(Error::Api { source, .. }) if attempt < TRIES_MAX && (source.is_conflict() || source.status().is_none()) => {
                    current = client.get::<ResourceClaim>(key.namespace(), &key.name).await.map_err(failed("get updated"))?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn reserve_once(
        &self,
        client: &Client,
        claim: &ResourceClaim,
        allocation: Option<&AllocationResult>,
    ) -> Result<ResourceClaim, Error> {
        let key = claim.key();
        let failed = |step| {
            let claim = key.clone();
            move |source| Error::Api { step, claim, source }
        };
        let mut next = claim.clone();
        if let Some(allocation) = allocation {
            if next.status.as_ref().is_some_and(|status| status.allocation.is_some()) {
                return Err(Error::Allocated(key));
            }
            let known = next.metadata.finalizers.clone().unwrap_or_default();
            if !known.iter().any(|name| name == FINALIZER) {
                let finalizers: Vec<String> = known.into_iter().chain([FINALIZER.to_owned()]).collect();
                let meta = json!({ "uid": next.uid(), "resourceVersion": next.resource_version(), "finalizers": finalizers });
                let patch = Patch::Merge(json!({ "metadata": meta }));
                next = client.patch(key.namespace(), &key.name, &patch, "").await.map_err(failed("add finalizer to"))?;
            }
            next.status.get_or_insert_default().allocation = Some(stamped(allocation.clone()));
        }
        let user =
            ResourceClaimConsumerReference { api_group: None, resource: "pods".into(), name: self.pod.name.clone(), uid: self.uid.clone() };
        next.status.get_or_insert_default().reserved_for.get_or_insert_default().push(user);
        let step = if allocation.is_some() { "add allocation and reservation to" } else { "add reservation to" };
        client.replace_status(&next).await.map_err(failed(step))
    }

    fn is_reserved(&self, claim: &ResourceClaim) -> bool {
        let users = claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default();
        users.iter().any(|user| user.uid == self.uid)
    }

    /// Waits for the drivers' conditions (KEP-5007). Devices that failed are given back.
    async fn prepared(&self, client: &Client, claim: &ResourceClaim, until: Instant) -> Result<(), Error> {
        let key = claim.key();
        let error = loop {
            let now = self.claims.get_key(&key).filter(|now| now.uid() == claim.uid());
            let state = now.as_deref().map_or(State::Waiting, state);
            match state {
                State::Ready => return Ok(()),
                State::Failed => break Error::Failed(key.clone()),
                State::Waiting if Instant::now() >= until => break Error::Late(key.clone()),
                State::Waiting => tokio::time::sleep(LOOK_EVERY).await,
            }
        };
        let back = json!({ "metadata": { "uid": claim.uid() }, "status": { "allocation": null, "reservedFor": null, "devices": null } });
        // Whoever fails here finds it again with the next attempt.
        let _ = client.patch::<ResourceClaim>(key.namespace(), &key.name, &Patch::Merge(back), "status").await;
        Err(error)
    }
}

enum State {
    Ready,
    Waiting,
    Failed,
}

fn waits_for_driver(claim: &ResourceClaim) -> bool {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    needs_preparation(allocation)
}

fn needs_preparation(allocation: Option<&AllocationResult>) -> bool {
    let results = allocation.and_then(|allocation| allocation.devices.as_ref()?.results.as_deref()).unwrap_or_default();
    results.iter().any(|result| result.binding_conditions.as_ref().is_some_and(|conditions| !conditions.is_empty()))
}

/// Drivers measure their time from the allocation.
fn stamped(mut allocation: AllocationResult) -> AllocationResult {
    if needs_preparation(Some(&allocation)) {
        allocation.allocation_timestamp = Some(Time(jiff::Timestamp::now()));
    }
    allocation
}

fn state(claim: &ResourceClaim) -> State {
    let Some(status) = &claim.status else { return State::Waiting };
    let results = status.allocation.as_ref().and_then(|allocation| allocation.devices.as_ref()?.results.as_deref()).unwrap_or_default();
    let mut ready = true;
    for result in results {
        let device = status.devices.iter().flatten().find(|device| {
            device.driver == result.driver
                && device.pool == result.pool
                && device.device == result.device
                && device.share_id == result.share_id
        });
        let is_true = |name: &String| {
            let conditions = device.and_then(|device| device.conditions.as_deref()).unwrap_or_default();
            conditions.iter().any(|condition| condition.type_ == *name && condition.status == "True")
        };
        if result.binding_failure_conditions.iter().flatten().any(is_true) {
            return State::Failed;
        }
        ready &= result.binding_conditions.iter().flatten().all(is_true);
    }
    if ready { State::Ready } else { State::Waiting }
}
