//! Device taint eviction (DRA, KEP-5055): a pod leaves whose device got a taint with the effect `NoExecute` that its claim does not
//! tolerate, be it the driver's own taint in a ResourceSlice or an administrator's DeviceTaintRule.
//!
//! One queue holds both: a key with a namespace is a pod, one without is a rule whose status says how many pods it concerns. A rule's
//! status is written at once for each new specification and every ten seconds at most while pods are evicted.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::{Client, DeleteParams, Error, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{DeviceTaintRule, DeviceTaintRuleStatus, ResourceClaim, ResourceSlice};
use reconcile::{Cache, EventKind, EventRecorder, ObjectKey, Outcome, Queue, key_of, reference_to};
use serde_json::json;

use crate::context::Context;
use crate::{act, discovery, pods};

mod plan;
mod rule_status;

use plan::Eviction;

pub(crate) const NAME: &str = "device-taint-eviction-controller";
const WORKERS: usize = 8;
/// A rule's status is written no more often than this.
const STATUS_PERIOD: Duration = Duration::from_secs(10);

/// The index of slices by their pool.
const BY_POOL: &str = "pool";

fn pool(driver: &str, name: &str) -> String {
    format!("{driver}/{name}")
}

struct Controller {
    client: Client,
    pods: Cache<Pod>,
    claims: Cache<ResourceClaim>,
    slices: Cache<ResourceSlice>,
    rules: Cache<DeviceTaintRule>,
    recorder: EventRecorder,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Pods that were told they would go, by uid: told again when they need not.
    doomed: HashSet<String>,
    /// Evicted pods by the rule's uid, since this process began.
    evicted: HashMap<String, usize>,
}

pub(crate) async fn run(context: Context) {
    if !discovery::is_served(&context, "resource.k8s.io/v1", "devicetaintrules").await {
        return;
    }
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        pods: context.caches.of(),
        claims: context.caches.of(),
        slices: context.caches.of(),
        rules: context.caches.of(),
        recorder: context.recorder(NAME),
        memory: Mutex::default(),
    });
    controller.slices.index(BY_POOL, |slice| vec![pool(&slice.spec.driver, &slice.spec.pool.name)]);
    let queue: Queue<ObjectKey> = Queue::new();
    controller.wake(&queue);
    tokio::join!(controller.pods.synced(), controller.claims.synced(), controller.slices.synced(), controller.rules.synced());
    let wake = queue.clone();
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key, wake.clone())).await;
}

impl Controller {
    fn wake(&self, queue: &Queue<ObjectKey>) {
        let by_pod = queue.clone();
        self.pods.on_change(move |old, new| {
            let made = |pod: &Pod| pod.status.as_ref().and_then(|status| status.resource_claim_statuses.clone());
            let same = old.zip(new).is_some_and(|(old, new)| pods::node_name(old) == pods::node_name(new) && made(old) == made(new));
            let concerned = new.or(old).filter(|pod| !same && !plan::claims(pod).is_empty());
            concerned.into_iter().for_each(|pod| by_pod.add(key_of(&pod.metadata)));
        });
        let by_claim = queue.clone();
        self.claims.on_change(move |old, new| {
            let users = [old, new].into_iter().flatten().flat_map(|claim| plan::users(claim));
            users.for_each(|key| by_claim.add(key));
        });
        let (by_slice, claims) = (queue.clone(), self.claims.clone());
        self.slices.on_change(move |old, new| {
            let tainted = |slice: &&Arc<ResourceSlice>| slice.spec.devices.iter().flatten().any(|device| device.taints.is_some());
            if [old, new].into_iter().flatten().any(|slice| tainted(&slice)) {
                wake_users(&claims, &by_slice);
            }
        });
        let (by_rule, claims) = (queue.clone(), self.claims.clone());
        self.rules.on_change(move |old, new| {
            if old.zip(new).is_some_and(|(old, new)| old.spec == new.spec) {
                return;
            }
            // First the rule: who asks what it would do hears before it is done.
            new.into_iter().for_each(|rule| by_rule.add(key_of(&rule.metadata)));
            wake_users(&claims, &by_rule);
        });
    }

    async fn reconcile(self: Arc<Self>, key: ObjectKey, queue: Queue<ObjectKey>) -> Outcome {
        match key.namespace() {
            Some(_) => self.reconcile_pod(&key, &queue).await.into(),
            None => self.reconcile_rule(&key).await.into(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reconcile_pod(&self, key: &ObjectKey, queue: &Queue<ObjectKey>) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.get_key(key).filter(|pod| pod.metadata.deletion_timestamp.is_none()) else { return Ok(Outcome::Done) };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let Some(eviction) = self.eviction(&pod, &self.rules.list()) else {
            if self.memory().doomed.remove(&uid) {
                self.recorder.event(&reference_to(&*pod), EventKind::Normal, "DeviceTaintManagerEviction", "Cancelling deletion");
            }
            return Ok(Outcome::Done);
        };
        eviction.rules.iter().for_each(|rule| queue.add_after(ObjectKey::new("", rule.clone()), STATUS_PERIOD));
        let left = eviction.at.as_second() - Timestamp::now().as_second();
        if let Some(left) = u64::try_from(left).ok().filter(|left| *left > 0) {
            self.memory().doomed.insert(uid);
            return Ok(Outcome::RequeueAfter(Duration::from_secs(left)));
        }
        self.evict(&pod).await?;
        let mut memory = self.memory();
        memory.doomed.remove(&uid);
        let uids = eviction.rules.iter().filter_map(|name| self.rules.get("", name)?.metadata.uid.clone());
        uids.for_each(|uid| *memory.evicted.entry(uid).or_default() += 1);
        Ok(Outcome::Done)
    }

    fn eviction(&self, pod: &Pod, rules: &[Arc<DeviceTaintRule>]) -> Option<Eviction> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let claims: Vec<_> = plan::claims(pod).iter().filter_map(|name| self.claims.get(namespace, name)).collect();
        let devices = claims.iter().flat_map(|claim| plan::allocated(claim));
        let pools: BTreeSet<String> = devices.map(|device| pool(&device.driver, &device.pool)).collect();
        let slices = pools.iter().flat_map(|pool| self.slices.by_index(BY_POOL, pool)).collect();
        plan::plan(pod, &claims, &crate::devices::pools(slices), rules, Timestamp::now())
    }

    async fn evict(&self, pod: &Pod) -> Result<(), Error> {
        let key = key_of(&pod.metadata);
        self.recorder.event(&reference_to(pod), EventKind::Normal, "DeviceTaintManagerEviction", "Marking for deletion");
        let why = ("DeletionByDeviceTaintManager", "Device Taint manager: deleting due to NoExecute taint");
        let conditions = pods::with_disruption(pod, why.0, why.1);
        let meta = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version});
        let patch = json!({"metadata": meta, "status": {"conditions": conditions}});
        let marked = self.client.patch::<Pod>(key.namespace(), &key.name, &Patch::Merge(patch), "status").await;
        client::ignore_not_found(marked)?;
        let params = DeleteParams::of_uid(pod.metadata.uid.as_deref().unwrap_or_default());
        client::ignore_not_found(self.client.delete::<Pod>(key.namespace(), &key.name, &params).await)
    }

    async fn reconcile_rule(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let Some(rule) = self.rules.get_key(key) else { return Ok(Outcome::Done) };
        let now = Timestamp::now();
        if let Some(wait) = rule_status::too_early(&rule, now, STATUS_PERIOD) {
            return Ok(Outcome::RequeueAfter(wait));
        }
        let evicted = self.memory().evicted.get(rule.metadata.uid.as_deref().unwrap_or_default()).copied().unwrap_or(0);
        let Some(condition) = rule_status::plan(&rule, &self.concerned(&rule), evicted, now) else { return Ok(Outcome::Done) };
        let mut next = DeviceTaintRule::clone(&rule);
        let conditions = next.status.get_or_insert_with(DeviceTaintRuleStatus::default).conditions.get_or_insert_default();
        conditions.retain(|known| known.type_ != condition.type_);
        conditions.push(condition);
        act::write_status(&self.client, &next).await?;
        Ok(Outcome::Done)
    }

    /// What the rule means for the cluster, or would if its effect was `NoExecute`.
    fn concerned(&self, rule: &Arc<DeviceTaintRule>) -> rule_status::Concerned {
        let mut harsh = DeviceTaintRule::clone(rule);
        harsh.spec.taint.effect = plan::NO_EXECUTE.into();
        let alone = [Arc::new(harsh)];
        let mut found = rule_status::Concerned::default();
        for pod in self.pods.list().iter().filter(|pod| pod.metadata.deletion_timestamp.is_none() && !plan::claims(pod).is_empty()) {
            if self.eviction(pod, &alone).is_some_and(|eviction| !eviction.rules.is_empty()) {
                found.pods += 1;
                found.namespaces.insert(pod.metadata.namespace.clone().unwrap_or_default());
            }
        }
        let pools = crate::devices::pools(self.slices.list());
        found.published = plan::published(&pools).filter(|device| crate::devices::selects(rule, device)).count();
        let allocated = self.claims.list();
        found.allocated = allocated.iter().flat_map(|claim| plan::allocated(claim)).filter(|id| crate::devices::selects(rule, id)).count();
        found
    }
}

/// Wakes every pod that uses a claim: taints change rarely.
fn wake_users(claims: &Cache<ResourceClaim>, queue: &Queue<ObjectKey>) {
    claims.list().iter().flat_map(|claim| plan::users(claim)).for_each(|key| queue.add(key));
}
