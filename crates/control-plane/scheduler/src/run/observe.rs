//! What changed in the API, taken over into the snapshot and the queue.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use meta::selector::LabelSelector;
use reconcile::{Cached, ObjectKey};

use super::{Placed, Scheduler};
use crate::class::Class;
use crate::devices::{Help, PODS_BY_CLAIM};
use crate::filters::{self, Judged};
use crate::neighbours::DefaultSpread;
use crate::preemption::Budget;
use crate::profile::{Plugin, Plugins, Profile};
use crate::snapshot::{Nomination, Resident, Slot, Snapshot};

/// What a node's own change, or a pod's going from it, may overcome.
const NODE: [Plugin; 14] = [
    Plugin::NodeUnschedulable,
    Plugin::NodeName,
    Plugin::TaintToleration,
    Plugin::NodeAffinity,
    Plugin::NodePorts,
    Plugin::NodeResourcesFit,
    Plugin::NodeVolumeLimits,
    Plugin::VolumeBinding,
    Plugin::VolumeZone,
    Plugin::PodTopologySpread,
    Plugin::InterPodAffinity,
    Plugin::DynamicResources,
    Plugin::DefaultPreemption,
    Plugin::Extender,
];
const POD_GONE: [Plugin; 7] = [
    Plugin::NodePorts,
    Plugin::NodeResourcesFit,
    Plugin::VolumeRestrictions,
    Plugin::NodeVolumeLimits,
    Plugin::PodTopologySpread,
    Plugin::InterPodAffinity,
    Plugin::Extender,
];
const POD_CAME: [Plugin; 2] = [Plugin::PodTopologySpread, Plugin::InterPodAffinity];
const VOLUMES: [Plugin; 4] = [Plugin::VolumeRestrictions, Plugin::NodeVolumeLimits, Plugin::VolumeBinding, Plugin::VolumeZone];

impl Scheduler {
    pub(super) fn observe_everything(&mut self) {
        for namespace in self.world.namespaces.list() {
            self.observe_namespace(&namespace.key());
        }
        for claim in self.devices.claims.list() {
            self.devices.observe(&claim.key());
        }
        for node in self.world.nodes.list() {
            self.snapshot.set_node(&node);
        }
        // Those with a node first: the others shall find it taken.
        let (bound, waiting): (Vec<_>, Vec<_>) = self.world.pods.list().into_iter().partition(|pod| node_of(pod).is_some());
        for pod in bound.iter().chain(&waiting) {
            self.observe_pod(&pod.key());
        }
    }

    pub(super) fn observe_node(&mut self, key: &ObjectKey) {
        match self.world.nodes.get_key(key) {
            Some(node) => {
                if let Some(slot) = self.snapshot.set_node(&node) {
                    self.wake(Plugins::of(&NODE), Some(slot));
                    // What waited for the node's return is nominated again.
                    let waiting: Vec<ObjectKey> =
                        self.nominated.iter().filter(|(_, node)| **node == key.name).map(|(pod, _)| pod.clone()).collect();
                    waiting.iter().for_each(|pod| self.observe_pod(pod));
                }
            }
            None => {
                self.snapshot.remove_node(&key.name);
                self.wake(Plugins::of(&POD_CAME), None);
            }
        }
    }

    pub(super) fn observe_namespace(&mut self, key: &ObjectKey) {
        let namespace = self.world.namespaces.get_key(key);
        self.snapshot.set_namespace(&key.name, namespace.map(|namespace| namespace.metadata.labels.clone().unwrap_or_default()));
        self.wake(Plugin::InterPodAffinity.bit(), None);
    }

    pub(super) fn observe_volumes(&mut self) {
        self.wake(Plugins::of(&VOLUMES), None);
    }

    /// Slices, classes or rules changed.
    pub(super) fn observe_devices(&mut self) {
        self.devices.invalidate();
        self.wake(Plugin::DynamicResources.bit(), None);
    }

    pub(super) fn observe_resource_claim(&mut self, key: &ObjectKey) {
        if self.devices.observe(key) == Help::All {
            self.wake(Plugin::DynamicResources.bit(), None);
        }
        for pod in self.world.pods.by_index(PODS_BY_CLAIM, &key.to_string()) {
            let pod = pod.key();
            match self.gated.contains(&pod) {
                true => self.observe_pod(&pod),
                false => self.queue.wake(&pod, Instant::now()),
            }
        }
    }

    pub(super) fn observe_group(&mut self, key: &ObjectKey) {
        let group = self.world.groups.get_key(key);
        for pod in self.gangs.set_group(key, group.as_deref()) {
            self.observe_pod(&pod);
        }
    }

    pub(super) fn refresh_budgets(&mut self) {
        if !std::mem::take(&mut self.budgets_stale) {
            return;
        }
        let budget = |one: Arc<k8s_openapi::api::policy::v1::PodDisruptionBudget>| {
            let selector = serde_json::to_value(one.spec.as_ref()?.selector.as_ref()?).ok()?;
            let status = one.status.as_ref();
            Some(Budget {
                namespace: one.namespace().to_owned(),
                selector: LabelSelector::from_object(&selector).ok()?,
                allowed: status.and_then(|status| status.disruptions_allowed).map_or(0, i64::from),
                disrupted: status
                    .and_then(|status| status.disrupted_pods.as_ref())
                    .into_iter()
                    .flat_map(|pods| pods.keys().cloned())
                    .collect(),
            })
        };
        self.budgets = self.world.budgets.list().into_iter().filter_map(budget).collect();
        self.budgets_generation += 1;
    }

    pub(super) fn observe_pod(&mut self, key: &ObjectKey) {
        let pod = self.world.pods.get_key(key);
        let Some(pod) = pod.filter(|pod| !is_terminal(pod)) else {
            self.queue.remove(key);
            self.gated.remove(key);
            self.forget_nomination(key);
            self.gangs.forget(key);
            return self.release(key);
        };
        match node_of(&pod) {
            Some(node) => self.observe_bound(key, &pod, node),
            None if self.placed.get(key).is_some_and(|placed| *placed.uid == *pod.uid() && placed.assumed) => {}
            None => self.observe_waiting(key, &pod),
        }
    }

    fn observe_bound(&mut self, key: &ObjectKey, pod: &Pod, node: &str) {
        self.queue.remove(key);
        self.gated.remove(key);
        self.forget_nomination(key);
        let generation = pod.metadata.generation.unwrap_or(0);
        if let Some(placed) = self.placed.get_mut(key)
            && *placed.uid == *pod.uid()
            && *placed.node == *node
            && placed.generation == generation
            && placed.class.neighbour.terminating == pod.metadata.deletion_timestamp.is_some()
            && placed.class.neighbour.labels.iter().eq(pod.metadata.labels.iter().flatten())
        {
            placed.assumed = false;
            return;
        }
        let class = self.class_of(pod);
        let known = self.placed.get(key).is_some();
        self.release_silently(key);
        self.occupy(key, pod, node, &class, false);
        self.gangs.observe(key, pod, true);
        if known {
            // Its labels or requests changed, or it began to go: as if it went and came.
            let slot = self.snapshot.slot(node);
            self.wake(Plugins::of(&POD_GONE), slot);
        }
        self.wake(Plugins::of(&POD_CAME), None);
    }

    /// The pod occupies the node from now on.
    pub(super) fn occupy(&mut self, key: &ObjectKey, pod: &Pod, node: &str, class: &Arc<Class>, assumed: bool) {
        let uid: Arc<str> = pod.uid().into();
        let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(i64::MAX, |time| time.0.as_second());
        self.snapshot.add_pod(node, Resident { key: Arc::new(key.clone()), uid: uid.clone(), class: class.clone(), started });
        self.volumes.place(pod, node);
        let generation = pod.metadata.generation.unwrap_or(0);
        self.placed.insert(key.clone(), Placed { uid, node: node.into(), class: class.clone(), assumed, generation });
    }

    fn observe_waiting(&mut self, key: &ObjectKey, pod: &Pod) {
        self.release(key);
        let spec = pod.spec.as_ref();
        let name = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        let gated = spec.and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty());
        if !self.profiles.contains_key(name) || pod.metadata.deletion_timestamp.is_some() {
            self.gated.remove(key);
            self.forget_nomination(key);
            return self.queue.remove(key);
        }
        if gated {
            self.gated.insert(key.clone());
            return self.queue.remove(key);
        }
        for sibling in self.gangs.observe(key, pod, false) {
            if sibling != *key {
                self.observe_pod(&sibling);
            }
        }
        if !self.gangs.is_ready(pod) || !self.devices.is_ready(pod) {
            self.gated.insert(key.clone());
            return self.queue.remove(key);
        }
        self.gated.remove(key);
        let class = self.class_of(pod);
        self.renominate(key, pod, &class);
        if !self.queue.contains(key) {
            crate::metrics::metrics().incoming.with_label_values(&["UnscheduledPodAdd", "active"]).inc();
        }
        self.queue.add(key, &class, Instant::now());
    }

    /// What the pod's status says of the node that it waits for.
    fn renominate(&mut self, key: &ObjectKey, pod: &Pod, class: &Arc<Class>) {
        let wanted = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref()).filter(|name| !name.is_empty());
        let Some(node) = wanted else { return };
        if self.nominated.get(key).is_some_and(|known| known == node) && self.snapshot.slot(node).is_none() {
            return;
        }
        self.nominate(key, node, class);
    }

    pub(super) fn nominate(&mut self, key: &ObjectKey, node: &str, class: &Arc<Class>) {
        if self.nominated.get(key).is_some_and(|known| known != node) {
            self.forget_nomination(key);
        }
        self.nominated.insert(key.clone(), node.to_owned());
        self.snapshot.nominate(node, Nomination { key: Arc::new(key.clone()), class: class.clone() });
    }

    pub(super) fn forget_nomination(&mut self, key: &ObjectKey) {
        self.forget_victims(key);
        if let Some(node) = self.nominated.remove(key) {
            self.snapshot.forget_nomination(&node, key);
            let slot = self.snapshot.slot(&node);
            self.wake(Plugins::of(&POD_GONE), slot);
        }
    }

    /// The pod's class, known to the snapshot.
    pub(super) fn class_of(&mut self, pod: &Pod) -> Arc<Class> {
        let own = pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_ref()).is_some_and(|own| !own.is_empty());
        let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        let profile = self.profiles.get(name).filter(|profile| !own && !profile.spread_constraints.is_empty()).cloned();
        let owners = &self.world.owners;
        let state = if profile.is_some() { owners.state(pod) } else { 0 };
        let (class, new) = self.classes.of(pod, state, || default_spread(profile.as_deref(), owners, pod));
        if new {
            self.snapshot.register(&class);
        }
        class
    }

    /// The pod no longer occupies a node.
    pub(super) fn release(&mut self, key: &ObjectKey) {
        if let Some(node) = self.release_silently(key) {
            let slot = self.snapshot.slot(&node);
            self.wake(Plugins::of(&POD_GONE), slot);
            self.wake_preemptors(key, slot);
        }
    }

    fn release_silently(&mut self, key: &ObjectKey) -> Option<Arc<str>> {
        let placed = self.placed.remove(key)?;
        self.snapshot.remove_pod(&placed.node, key);
        self.volumes.remove(key);
        Some(placed.node)
    }

    /// Wakes pods that what happened may help: those to whom one of `plugins` objected. With a slot, only that node is better than before, so
    /// that a class which it still cannot take stays where it is.
    pub(super) fn wake(&mut self, plugins: Plugins, slot: Option<Slot>) {
        let (snapshot, profiles) = (&self.snapshot, &self.profiles);
        self.queue.wake_for(plugins, Instant::now(), |class| {
            let elsewhere = class.neighbour.has_terms() || !class.neighbour.spread.is_empty();
            slot.is_none_or(|slot| elsewhere || takes(snapshot, profiles.get(&class.scheduler_name), class, slot))
        });
    }
}

/// The node by itself may take the class, were it for room or after preemption.
fn takes(snapshot: &Snapshot, profile: Option<&Arc<Profile>>, class: &Class, slot: Slot) -> bool {
    let Some(profile) = profile else { return false };
    let judged = Judged { profile, snapshot, class, slot, but: None };
    filters::objection(&judged).is_none_or(|objection| {
        // Room can still be made where there are less important pods, or is kept for a nomination that may be the pod's own.
        let preempts = class.preempts && snapshot.details[slot].pods.iter().any(|pod| pod.class.priority < class.priority);
        !objection.unresolvable && (preempts || snapshot.rows[slot].nominated)
    })
}

fn default_spread(profile: Option<&Profile>, owners: &crate::owners::Owners, pod: &Pod) -> DefaultSpread {
    let Some(profile) = profile else { return DefaultSpread::default() };
    DefaultSpread { constraints: profile.spread_constraints.clone(), built_in: profile.spread_built_in, selector: owners.selector(pod) }
}

pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
