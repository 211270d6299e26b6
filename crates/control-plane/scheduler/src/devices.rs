//! Devices for ResourceClaims (upstream's DynamicResources: KEP-4381, with prioritized alternatives, admin access, taints, partitions and
//! shared capacity).
//!
//! [`inventory`] is what drivers publish, [`Devices`] knows besides which of it is in use; [`Devices::needs`] reads a pod's claims once;
//! [`Needs::objection`] judges a node by searching it ([`search`]); [`Needs::decide`] says what the chosen node gives; [`bind`] writes it. What
//! is decided and not yet seen in the API counts as in use.

mod allocation;
pub(crate) mod bind;
mod capacity;
pub mod inventory;
mod search;
mod selector;
mod wanted;

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelector, Pod};
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice};
use meta::Quantity;
use reconcile::{Cache, Cached, Caches, ObjectKey};

use crate::filters::Objection;
use crate::profile::Plugin;
use crate::snapshot::Details;
use crate::volumes::fixed;
use capacity::Amounts;
use inventory::{DeviceId, Inventory};
use search::{Search, Taken, Use};
use selector::Selectors;
use wanted::Wanted;

/// Pods that may share a claim.
const USERS_MAX: usize = 256;
/// Of the alternatives of a request, the first scores so much.
const ALTERNATIVES_MAX: i64 = 8;
/// The index of pods by the claims that they use.
pub(crate) const PODS_BY_CLAIM: &str = "resource claims";

/// What is there and what is in use.
pub struct Devices {
    pub(crate) claims: Cache<ResourceClaim>,
    slices: Cache<ResourceSlice>,
    classes: Cache<DeviceClass>,
    rules: Cache<DeviceTaintRule>,
    selectors: Selectors,
    inventory: Inventory,
    stale: bool,
    /// By the inventory's positions.
    usage: Vec<Use>,
    held: HashMap<ObjectKey, Held>,
    /// Claims of decisions on their way, by pod.
    deciding: HashMap<ObjectKey, Vec<ObjectKey>>,
}

/// Devices of a claim.
struct Held {
    devices: Vec<(DeviceId, Option<Amounts>)>,
    /// The API does not show it yet.
    assumed: Option<Assumed>,
}

/// A decision on its way.
struct Assumed {
    /// The claim's revision with it, once it is written.
    written: Option<u64>,
}

/// Whom a change of a claim may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Help {
    /// The pods that use it.
    Users,
    /// Everybody: devices became free.
    All,
}

/// What the choice of a node decides for the pod's claims.
pub(crate) struct Decision {
    pub claims: Vec<(Arc<ResourceClaim>, Option<AllocationResult>)>,
}

/// The claims that the pod names; `None` for one that is still to be made of its template. Claims that are not needed are left out.
pub(crate) fn claim_names(pod: &Pod) -> impl Iterator<Item = Option<&str>> {
    let made = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_deref()).unwrap_or_default();
    let asked = pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default();
    asked.iter().filter_map(move |claim| match (&claim.resource_claim_name, made.iter().find(|status| status.name == claim.name)) {
        (Some(name), _) => Some(Some(name.as_str())),
        (None, Some(made)) => made.resource_claim_name.as_deref().map(Some),
        (None, None) => Some(None),
    })
}

/// For [`PODS_BY_CLAIM`].
pub(crate) fn claims_index(pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    claim_names(pod).flatten().map(|name| format!("{namespace}/{name}")).collect()
}

/// What [`Devices`] reads, as lists of one moment.
#[derive(Default)]
pub struct Lists {
    pub claims: Vec<ResourceClaim>,
    pub slices: Vec<ResourceSlice>,
    pub classes: Vec<DeviceClass>,
    pub rules: Vec<DeviceTaintRule>,
}

impl Devices {
    pub fn new(caches: &Caches) -> Self {
        Self::over(caches.of(), caches.of(), caches.of(), caches.of())
    }

    pub fn of(lists: Lists) -> Self {
        let mut devices = Self::over(fixed(lists.claims), fixed(lists.slices), fixed(lists.classes), fixed(lists.rules));
        for claim in devices.claims.list() {
            devices.observe(&claim.key());
        }
        devices.refresh();
        devices
    }

    fn over(
        claims: Cache<ResourceClaim>,
        slices: Cache<ResourceSlice>,
        classes: Cache<DeviceClass>,
        rules: Cache<DeviceTaintRule>,
    ) -> Self {
        Self {
            claims,
            slices,
            classes,
            rules,
            selectors: Selectors::default(),
            inventory: Inventory::default(),
            stale: true,
            usage: Vec::new(),
            held: HashMap::new(),
            deciding: HashMap::new(),
        }
    }

    pub async fn synced(&self) {
        self.claims.synced().await;
        self.slices.synced().await;
        self.classes.synced().await;
        self.rules.synced().await;
    }

    pub(crate) fn subscribe(&self) -> [reconcile::Wakeups; 4] {
        [self.claims.subscribe(), self.slices.subscribe(), self.classes.subscribe(), self.rules.subscribe()]
    }

    /// Claims that are made of templates exist.
    pub(crate) fn is_ready(&self, pod: &Pod) -> bool {
        let asked = pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default();
        if asked.is_empty() {
            return true;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let named = |name: &str| asked.iter().any(|claim| claim.resource_claim_name.as_deref() == Some(name));
        claim_names(pod).all(|name| name.is_some_and(|name| named(name) || self.claims.get(namespace, name).is_some()))
    }

    /// Slices or rules changed.
    pub(crate) fn invalidate(&mut self) {
        self.stale = true;
    }

    /// A claim changed.
    pub(crate) fn observe(&mut self, key: &ObjectKey) -> Help {
        let claim = self.claims.get_key(key);
        let allocated = claim.as_ref().and_then(|claim| claim.status.as_ref()?.allocation.as_ref());
        let known = self.held.get(key);
        if let (Some(claim), None, Some(assumed)) = (&claim, allocated, known.and_then(|held| held.assumed.as_ref())) {
            let seen: u64 = claim.resource_version().parse().unwrap_or(0);
            if assumed.written.is_none_or(|written| seen < written) {
                return Help::Users;
            }
        }
        let had = known.is_some();
        let devices = allocated.map(devices_of).unwrap_or_default();
        match devices.is_empty() {
            true => self.let_go(key),
            false => self.hold(key, Held { devices, assumed: None }),
        }
        if had && allocated.is_none() { Help::All } else { Help::Users }
    }

    /// The pod's decision is on its way to the API.
    pub(crate) fn assume(&mut self, pod: &ObjectKey, decision: &Decision) {
        for (claim, allocation) in &decision.claims {
            if let Some(allocation) = allocation {
                let assumed = Some(Assumed { written: None });
                self.hold(&claim.key(), Held { devices: devices_of(allocation), assumed });
                self.deciding.entry(pod.clone()).or_default().push(claim.key());
            }
        }
    }

    /// The decision's writes have ended, some of them well: with the claims' revisions.
    pub(crate) fn settle(&mut self, pod: &ObjectKey, written: &[(ObjectKey, u64)]) {
        for (key, revision) in written {
            if let Some(assumed) = self.held.get_mut(key).and_then(|held| held.assumed.as_mut()) {
                assumed.written = Some(*revision);
            }
        }
        self.release(pod);
        written.iter().for_each(|(key, _)| {
            self.observe(key);
        });
    }

    /// What the pod was promised, and what was not written, is free again.
    pub(crate) fn release(&mut self, pod: &ObjectKey) {
        for key in self.deciding.remove(pod).unwrap_or_default() {
            let unwritten = |assumed: &Assumed| assumed.written.is_none();
            if self.held.get(&key).and_then(|held| held.assumed.as_ref()).is_some_and(unwritten) {
                self.let_go(&key);
                self.observe(&key);
            }
        }
    }

    /// Takes over what changed; before [`Devices::needs`].
    pub(crate) fn refresh(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        self.inventory = Inventory::new(self.inventory.generation + 1, self.slices.list(), &self.rules.list());
        self.usage = vec![Use::default(); self.inventory.devices.len()];
        for (id, share) in self.held.values().flat_map(|held| &held.devices) {
            count(&self.inventory, &mut self.usage, id, share.as_ref(), true);
        }
    }

    fn hold(&mut self, key: &ObjectKey, held: Held) {
        self.let_go(key);
        held.devices.iter().for_each(|(id, share)| count(&self.inventory, &mut self.usage, id, share.as_ref(), true));
        self.held.insert(key.clone(), held);
    }

    fn let_go(&mut self, key: &ObjectKey) {
        let Some(held) = self.held.remove(key) else { return };
        held.devices.iter().for_each(|(id, share)| count(&self.inventory, &mut self.usage, id, share.as_ref(), false));
    }

    /// `None`: the pod needs no devices. What keeps it from every node comes as the reason.
    pub(crate) fn needs(&self, pod: &Pod) -> Result<Option<Needs<'_>>, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut needs = Needs { world: self, claims: Vec::new(), places: Vec::new(), wanted: Vec::new() };
        for name in claim_names(pod) {
            let Some(name) = name else {
                return Err(format!("pod {:?}: ResourceClaim not created yet", pod.key().to_string()));
            };
            let claim = self.claims.get(namespace, name);
            let claim = claim.ok_or_else(|| format!("resourceclaim.resource.k8s.io {name:?} not found"))?;
            needs.add(pod, claim)?;
        }
        Ok((!needs.claims.is_empty()).then_some(needs))
    }
}

/// The devices of an allocation that nobody else may have, or a share of them.
fn devices_of(allocation: &AllocationResult) -> Vec<(DeviceId, Option<Amounts>)> {
    let results = allocation.devices.as_ref().and_then(|devices| devices.results.as_deref()).unwrap_or_default();
    let own = results.iter().filter(|result| result.admin_access != Some(true));
    own.map(|result| {
        let id = DeviceId { driver: result.driver.clone(), pool: result.pool.clone(), device: result.device.clone() };
        let amounts = result.consumed_capacity.iter().flatten();
        let amounts = amounts.filter_map(|(name, amount)| Some((name.clone(), Quantity::parse(&amount.0).ok()?)));
        (id, result.share_id.as_ref().map(|_| amounts.collect()))
    })
    .collect()
}

fn count(inventory: &Inventory, usage: &mut [Use], id: &DeviceId, share: Option<&Amounts>, more: bool) {
    let Some(used) = inventory.find(id).and_then(|at| usage.get_mut(at)) else { return };
    match (share, more) {
        (None, true) => used.exclusive += 1,
        (None, false) => used.exclusive = used.exclusive.saturating_sub(1),
        (Some(share), true) => used.shares.push(share.clone()),
        (Some(share), false) => {
            if let Some(at) = used.shares.iter().position(|other| other == share) {
                used.shares.swap_remove(at);
            }
        }
    }
}

/// What a pod's claims ask of a node.
pub(crate) struct Needs<'a> {
    world: &'a Devices,
    /// In the pod's order.
    claims: Vec<Arc<ResourceClaim>>,
    /// Where the devices of claims that are allocated can be reached.
    places: Vec<NodeSelector>,
    wanted: Vec<Wanted>,
}

impl Needs<'_> {
    fn add(&mut self, pod: &Pod, claim: Arc<ResourceClaim>) -> Result<(), String> {
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("resourceclaim {:?} is being deleted", claim.name()));
        }
        if let Some(owner) = claim.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
            && owner.kind == "Pod"
            && owner.uid != pod.uid()
        {
            return Err(format!("ResourceClaim {} was not created for pod {} (pod is not owner)", claim.key(), pod.key()));
        }
        let status = claim.status.as_ref();
        match status.and_then(|status| status.allocation.as_ref()) {
            Some(allocation) => {
                let users = status.and_then(|status| status.reserved_for.as_deref()).unwrap_or_default();
                if users.len() >= USERS_MAX && !users.iter().any(|user| user.uid == pod.uid()) {
                    return Err("resourceclaim in use".into());
                }
                self.places.extend(allocation.node_selector.clone());
            }
            None => {
                let held = self.world.held.get(&claim.key());
                if held.and_then(|held| held.assumed.as_ref()).is_some() {
                    return Err(format!("resource claim {} is in the process of being allocated", claim.key()));
                }
                self.wanted.push(Wanted::of(&claim, &self.world.classes, &self.world.selectors)?);
            }
        }
        self.claims.push(claim);
        Ok(())
    }

    pub fn objection(&self, node: &Details) -> Option<Objection> {
        if !self.is_within_reach(node) {
            return Some(Objection::unresolvable(Plugin::DynamicResources, "resourceclaim not available on the node"));
        }
        match self.search(node) {
            Ok(Some(_)) => None,
            Ok(None) => Some(Objection::unresolvable(Plugin::DynamicResources, "cannot allocate all claims")),
            Err(why) => Some(Objection::unresolvable(Plugin::DynamicResources, why)),
        }
    }

    /// Nodes differ in how good their devices are.
    pub fn scores(&self) -> bool {
        self.wanted.iter().any(Wanted::has_alternatives)
    }

    /// The more, the earlier the alternatives that the node can give.
    pub fn score(&self, node: &Details) -> i64 {
        let Ok(Some(taken)) = self.search(node) else { return 0 };
        let mut chosen: Vec<(usize, usize, usize)> = taken.iter().map(|one| (one.claim, one.request, one.alternative)).collect();
        chosen.dedup();
        let listed = |(claim, request, _): &&(usize, usize, usize)| self.wanted[*claim].requests[*request].asks.len() > 1;
        chosen.iter().filter(listed).map(|(_, _, alternative)| ALTERNATIVES_MAX - *alternative as i64).sum()
    }

    /// What the node gives; `None` where it no longer has everything.
    pub fn decide(&self, node: &Details) -> Option<Decision> {
        let taken = self.search(node).ok().flatten()?;
        let allocation = |claim: &Arc<ResourceClaim>| {
            let at = self.wanted.iter().position(|wanted| Arc::ptr_eq(&wanted.claim, claim))?;
            let own: Vec<&Taken<'_>> = taken.iter().filter(|one| one.claim == at).collect();
            Some(allocation::result(&self.world.inventory, claim, &own, &node.name))
        };
        Some(Decision { claims: self.claims.iter().map(|claim| (claim.clone(), allocation(claim))).collect() })
    }

    /// A claim that is allocated where the pod cannot go, and that nobody but the pod uses: it can be taken back.
    pub fn unavailable(&self, pod: &Pod) -> Option<Arc<ResourceClaim>> {
        let unused = |claim: &&Arc<ResourceClaim>| {
            let Some(status) = claim.status.as_ref().filter(|status| status.allocation.is_some()) else { return false };
            status.reserved_for.iter().flatten().all(|user| user.uid == pod.uid())
        };
        self.claims.iter().find(unused).cloned()
    }

    fn is_within_reach(&self, node: &Details) -> bool {
        self.places.iter().all(|selector| inventory::selects(selector, node))
    }

    fn search(&self, node: &Details) -> Result<Option<Vec<Taken<'_>>>, String> {
        Search::run(&self.world.inventory, &self.world.usage, &self.wanted, node)
    }
}

#[cfg(test)]
mod tests;
