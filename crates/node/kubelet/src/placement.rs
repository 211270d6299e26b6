//! Which processors and which memory a pod's containers get for themselves.
//!
//! [`topology`] says what the machine has, [`processors`] chooses among them (KEP-3570: the static CPU manager), [`affinity`] brings what
//! processors, memory and devices would like together (KEP-693: the topology manager). [`Placement`] keeps who has what, on the disk too.
//! Memory is pinned for Guaranteed pods (KEP-1769). Source: upstream's `pkg/kubelet/cm/{cpumanager,memorymanager,topologymanager}`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::config::Config;
use crate::node::Machine;
use crate::podspec::{self, Qos, Role};
use crate::worker::{Agent, lock};
use crate::{admit, amounts, crispec};

/// Upstream's cpuManagerReconcilePeriod.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(10);

pub mod affinity;
pub mod processors;
pub mod topology;

use affinity::{Hint, Nodes};
pub use topology::Topology;

pub type Cpus = BTreeSet<u32>;

/// What the node was told to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    pub pins_cpus: bool,
    /// `full-pcpus-only`: nobody shares a core.
    pub whole_cores: bool,
    pub pins_memory: bool,
    pub alignment: Alignment,
    /// One choice for all of a pod's containers.
    pub pod_scope: bool,
    /// Processors that no container gets for itself.
    pub reserved_cpus: Cpus,
    /// Bytes that no container gets, by NUMA node.
    pub reserved_memory: BTreeMap<u32, u64>,
}

/// The topology manager's policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alignment {
    #[default]
    None,
    BestEffort,
    Restricted,
    SingleNode,
}

/// What a container has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Processors of its own; none means the shared ones.
    pub cpus: Cpus,
    /// Bytes of memory on each NUMA node; none means any.
    pub memory: BTreeMap<u32, u64>,
}

#[derive(Default, Serialize, Deserialize)]
struct State {
    /// By pod and container.
    places: BTreeMap<String, BTreeMap<String, Place>>,
}

/// Who has what.
pub struct Placement {
    pub policies: Policies,
    topology: Topology,
    file: PathBuf,
    state: Mutex<State>,
    /// The shared processors are others.
    pub changed: Notify,
}

/// Free devices of a resource: their NUMA nodes by id.
pub type FreeDevices<'a> = &'a dyn Fn(&str) -> BTreeMap<String, Vec<i64>>;

impl Placement {
    /// What is known from before, as far as the machine still has it.
    pub fn open(policies: Policies, topology: Topology, data: &Path) -> Self {
        let file = data.join("placement.json");
        let mut state: State = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let all = topology.cpus();
        state.places.retain(|_, pod| pod.values().all(|place| place.cpus.is_subset(&all)));
        Self { policies, topology, file, state: Mutex::new(state), changed: Notify::new() }
    }

    /// Finds a place for every container of a new pod. `active` are the pods that may have one; they are asked for only where places are given.
    pub fn place(&self, pod: &Pod, active: &dyn Fn() -> BTreeSet<String>, devices: FreeDevices<'_>) -> Result<(), admit::Refusal> {
        if self.policies == Policies::default() {
            return Ok(());
        }
        let active = active();
        let mut state = lock(&self.state);
        let uid = podspec::uid(pod);
        state.places.retain(|holder, _| holder == uid || active.contains(holder));
        let mut given: BTreeMap<String, Place> = state.places.get(uid).cloned().unwrap_or_default();
        let whole = self.policies.pod_scope.then(|| self.align(&state, &pod_wants(pod), devices)).transpose()?;
        // What an init container had, those after it may have again.
        let mut reusable = Place::default();
        for (role, container) in podspec::containers(pod) {
            if given.contains_key(&container.name) || role == Role::Ephemeral {
                continue;
            }
            let nodes = match whole {
                Some(nodes) => nodes,
                None => self.align(&state, &wants(pod, &container), devices)?,
            };
            let place = self.give(&state, &given, pod, &container, nodes, &reusable)?;
            match role {
                Role::Init => reusable = place.clone(),
                _ => reusable.cpus.retain(|cpu| !place.cpus.contains(cpu)),
            }
            if place != Place::default() {
                given.insert(container.name.clone(), place);
            }
        }
        if !given.is_empty() {
            state.places.insert(uid.into(), given);
            self.save(&state);
            self.changed.notify_one();
        }
        Ok(())
    }

    fn give(
        &self,
        state: &State,
        given: &BTreeMap<String, Place>,
        pod: &Pod,
        container: &Container,
        nodes: Nodes,
        reusable: &Place,
    ) -> Result<Place, admit::Refusal> {
        let mut place = Place::default();
        let count = self.own_cpus(pod, container);
        if count > 0 {
            let threads = self.topology.threads_per_core();
            if self.policies.whole_cores && count % threads != 0 {
                let why = format!("SMT Alignment Error: requested {count} cpus not multiple cpus per core = {threads}");
                return Err(("SMTAlignmentError", why));
            }
            let mut free = self.free_cpus(state);
            given.values().for_each(|place| free.retain(|cpu| !place.cpus.contains(cpu)));
            free.extend(&reusable.cpus);
            let taken = processors::take(&self.topology, &free, count, nodes);
            place.cpus = taken.ok_or_else(|| {
                let why = format!("not enough cpus available to satisfy request: requested={count}, available={}", free.len());
                ("UnexpectedAdmissionError", format!("Allocate failed due to {why}, which is unexpected"))
            })?;
        }
        if self.policies.pins_memory && podspec::qos(pod) == Qos::Guaranteed {
            let asked = amounts::requested(container.resources.as_ref(), "memory").and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
            place.memory = self.take_memory(state, asked, nodes).ok_or_else(|| {
                ("UnexpectedAdmissionError", "Allocate failed due to [memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available, which is unexpected".to_owned())
            })?;
        }
        Ok(place)
    }

    /// How many processors the container gets for itself: a whole number of a Guaranteed pod.
    fn own_cpus(&self, pod: &Pod, container: &Container) -> usize {
        if !self.policies.pins_cpus || podspec::qos(pod) != Qos::Guaranteed {
            return 0;
        }
        let milli = amounts::requested(container.resources.as_ref(), "cpu").unwrap_or(0);
        if milli % 1000 == 0 { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 }
    }

    fn free_cpus(&self, state: &State) -> Cpus {
        let mut free = self.topology.cpus();
        free.retain(|cpu| !self.policies.reserved_cpus.contains(cpu));
        state.places.values().flat_map(BTreeMap::values).for_each(|place| free.retain(|cpu| !place.cpus.contains(cpu)));
        free
    }

    /// Bytes that nobody has, by NUMA node.
    fn free_memory(&self, state: &State) -> BTreeMap<u32, u64> {
        let mut free = self.topology.memory.clone();
        let taken = state.places.values().flat_map(BTreeMap::values).flat_map(|place| &place.memory);
        for (node, bytes) in taken.chain(&self.policies.reserved_memory) {
            free.entry(*node).and_modify(|free| *free = free.saturating_sub(*bytes));
        }
        free
    }

    fn take_memory(&self, state: &State, bytes: u64, nodes: Nodes) -> Option<BTreeMap<u32, u64>> {
        let free = self.free_memory(state);
        let enough = |nodes: &Nodes| free.iter().filter(|(node, _)| nodes.has(**node)).map(|(_, free)| *free).sum::<u64>() >= bytes;
        // No wider than it must be.
        let mut choices: Vec<Nodes> = Nodes::all_of(&self.topology.nodes()).into_iter().filter(|choice| choice.within(nodes)).collect();
        choices.sort_by_key(|choice| choice.count());
        let chosen = choices.into_iter().find(enough).or(Some(nodes).filter(enough))?;
        let mut left = bytes;
        let mut taken = BTreeMap::new();
        for (node, free) in free.into_iter().filter(|(node, _)| chosen.has(*node)) {
            let part = left.min(free);
            left -= part;
            taken.insert(node, part);
        }
        Some(taken)
    }

    /// The NUMA nodes that suit everything that is wanted; all of them where nobody minds.
    fn align(&self, state: &State, wants: &Wants, devices: FreeDevices<'_>) -> Result<Nodes, admit::Refusal> {
        let nodes = self.topology.nodes();
        if self.policies.alignment == Alignment::None {
            return Ok(Nodes::of(&nodes));
        }
        let mut hints: Vec<Vec<Hint>> = Vec::new();
        if self.policies.pins_cpus && wants.guaranteed && wants.cpus > 0 {
            let (all, free) = (self.topology.cpus(), self.free_cpus(state));
            let count = |of: &Cpus, mask: Nodes| self.topology.all.iter().filter(|cpu| of.contains(&cpu.id) && mask.has(cpu.node)).count();
            let wanted = wants.cpus;
            hints.push(affinity::hints(&nodes, |mask| count(&all, mask) >= wanted, |mask| count(&free, mask) >= wanted));
        }
        if self.policies.pins_memory && wants.guaranteed && wants.memory > 0 {
            let free = self.free_memory(state);
            let sum =
                |of: &BTreeMap<u32, u64>, mask: Nodes| of.iter().filter(|(node, _)| mask.has(**node)).map(|(_, bytes)| *bytes).sum::<u64>();
            let wanted = wants.memory;
            hints.push(affinity::hints(&nodes, |mask| sum(&self.topology.memory, mask) >= wanted, |mask| sum(&free, mask) >= wanted));
        }
        for (name, count) in &wants.others {
            let free = devices(name);
            // Devices that lie nowhere in particular suit everywhere.
            if free.is_empty() || free.values().any(Vec::is_empty) {
                continue;
            }
            let on = |mask: Nodes| {
                free.values().filter(|at| at.iter().any(|node| u32::try_from(*node).is_ok_and(|node| mask.has(node)))).count()
            };
            hints.push(affinity::hints(&nodes, |mask| on(mask) >= *count, |mask| on(mask) >= *count));
        }
        let (best, preferred) = affinity::merge(&nodes, &hints, self.policies.alignment == Alignment::SingleNode);
        let refused = matches!(self.policies.alignment, Alignment::Restricted | Alignment::SingleNode) && !preferred;
        if refused {
            return Err(("TopologyAffinityError", "Resources cannot be allocated with Topology locality".into()));
        }
        Ok(best)
    }

    /// What `container` is pinned to: its processors and NUMA nodes as the kernel's lists; empty is not pinned.
    pub fn pins(&self, uid: &str, container: &str) -> (String, String) {
        let state = lock(&self.state);
        let place = state.places.get(uid).and_then(|pod| pod.get(container)).cloned().unwrap_or_default();
        let own = !place.cpus.is_empty();
        let cpus = if own { topology::list(&place.cpus) } else { self.shared_in(&state) };
        (cpus, topology::list(&place.memory.keys().copied().collect()))
    }

    /// The processors of all who have none of their own; empty where nobody is pinned.
    pub fn shared(&self) -> String {
        self.shared_in(&lock(&self.state))
    }

    fn shared_in(&self, state: &State) -> String {
        if !self.policies.pins_cpus {
            return String::new();
        }
        let mut shared = self.free_cpus(state);
        shared.extend(&self.policies.reserved_cpus);
        topology::list(&shared)
    }

    pub fn of(&self, uid: &str, container: &str) -> Option<Place> {
        lock(&self.state).places.get(uid).and_then(|pod| pod.get(container)).cloned()
    }

    /// Processors that could be somebody's own.
    pub fn allocatable_cpus(&self) -> Cpus {
        let mut all = self.topology.cpus();
        all.retain(|cpu| !self.policies.reserved_cpus.contains(cpu));
        all
    }

    pub fn release(&self, uid: &str) {
        let mut state = lock(&self.state);
        if state.places.remove(uid).is_some() {
            self.save(&state);
            self.changed.notify_one();
        }
    }

    fn save(&self, state: &State) {
        let new = self.file.with_extension("new");
        let written = serde_json::to_vec(state).map_err(std::io::Error::other).and_then(|text| std::fs::write(&new, text));
        if let Err(error) = written.and_then(|()| std::fs::rename(&new, &self.file)) {
            tracing::error!(%error, file = %self.file.display(), "write which processors containers have");
        }
    }
}

/// What is aligned.
#[derive(Default)]
struct Wants {
    guaranteed: bool,
    cpus: usize,
    memory: u64,
    others: BTreeMap<String, usize>,
}

fn wants(pod: &Pod, container: &Container) -> Wants {
    let of = |name: &str| amounts::requested(container.resources.as_ref(), name).unwrap_or(0);
    wants_of(pod, of)
}

fn pod_wants(pod: &Pod) -> Wants {
    wants_of(pod, |name| amounts::pod_request(pod, name))
}

fn wants_of(pod: &Pod, of: impl Fn(&str) -> i64) -> Wants {
    let milli = of("cpu");
    let names = amounts::names(pod).into_iter().filter(|name| name.contains('/'));
    let others = names.map(|name| (name.clone(), usize::try_from(of(&name)).unwrap_or(0))).filter(|(_, count)| *count > 0);
    Wants {
        guaranteed: podspec::qos(pod) == Qos::Guaranteed,
        cpus: if milli % 1000 == 0 { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 },
        memory: u64::try_from(of("memory")).unwrap_or(0),
        others: others.collect(),
    }
}

/// As the configuration and this machine have it.
pub fn open(config: &Config, machine: Machine) -> Placement {
    let topology = Topology::look(u64::try_from(machine.memory_bytes).unwrap_or(0));
    let mut policies = config.placement.clone();
    if policies.pins_cpus && policies.reserved_cpus.is_empty() {
        let milli =
            config.reserved.get("cpu").and_then(|amount| meta::quantity::Quantity::parse(amount).ok()).map_or(0, |cpu| cpu.milli_value());
        let count = usize::try_from(milli.max(0)).unwrap_or(0).div_ceil(1000);
        policies.reserved_cpus = processors::take(&topology, &topology.cpus(), count, Nodes::of(&topology.nodes())).unwrap_or_default();
    }
    Placement::open(policies, topology, &config.data_directory)
}

impl Agent {
    /// Pins a container that is about to be made.
    pub fn pin(&self, uid: &str, container: &str, config: &mut v1::ContainerConfig) {
        let (cpus, memory) = self.placement.pins(uid, container);
        let own = self.placement.of(uid, container).is_some_and(|place| !place.cpus.is_empty());
        let resources = config.linux.get_or_insert_default().resources.get_or_insert_default();
        (resources.cpuset_cpus, resources.cpuset_mems) = (cpus, memory);
        if own {
            // Who has processors of its own is not throttled on them (upstream: DisableCPUQuotaWithExclusiveCPUs).
            resources.cpu_quota = -1;
        }
    }

    /// Whoever has no processors of its own runs on those that are shared, whichever these now are.
    pub async fn keep_shared_processors(self: Arc<Self>) {
        if !self.placement.policies.pins_cpus {
            return;
        }
        let mut told: BTreeMap<String, String> = BTreeMap::new();
        loop {
            let running = v1::ContainerFilter {
                state: Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning as i32 }),
                ..Default::default()
            };
            let listed = self.runtime.list_containers(v1::ListContainersRequest { filter: Some(running) }).await;
            let containers = listed.map(|answer| answer.containers).unwrap_or_default();
            told.retain(|id, _| containers.iter().any(|container| container.id == *id));
            for container in containers {
                let label = |name: &str| container.labels.get(name).cloned().unwrap_or_default();
                let (cpus, _) = self.placement.pins(&label(crispec::LABEL_UID), &label(crispec::LABEL_CONTAINER));
                if told.get(&container.id) == Some(&cpus) {
                    continue;
                }
                let linux = v1::LinuxContainerResources { cpuset_cpus: cpus.clone(), ..Default::default() };
                let request =
                    v1::UpdateContainerResourcesRequest { container_id: container.id.clone(), linux: Some(linux), ..Default::default() };
                match self.runtime.update_container_resources(request).await {
                    Ok(_) => drop(told.insert(container.id, cpus)),
                    Err(error) => tracing::warn!(%error, container = container.id, "move a container to other processors; will retry"),
                }
            }
            let _ = tokio::time::timeout(RECONCILE_INTERVAL, self.placement.changed.notified()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::podspec::tests::pod;

    fn asking(uid: &str, cpu: &str, memory: &str) -> Pod {
        let mut pod = pod(json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": cpu, "memory": memory}}}]}));
        pod.metadata.uid = Some(uid.into());
        pod
    }

    fn active() -> BTreeSet<String> {
        ["a", "b", "c", "d"].map(str::to_owned).into()
    }

    fn opened(policies: Policies, root: &Path) -> Placement {
        // Two sockets that are NUMA nodes of a gibibyte, with two cores of two threads each.
        Placement::open(policies, topology::tests::machine(2, 2, 2, 1 << 30), root)
    }

    const NO_DEVICES: FreeDevices<'_> = &|_| BTreeMap::new();

    #[test]
    fn whole_processors_of_guaranteed_pods_are_theirs_alone_and_come_back() {
        let root = tempfile::tempdir().unwrap();
        let policies = Policies { pins_cpus: true, reserved_cpus: [0].into(), ..Policies::default() };
        let placement = opened(policies.clone(), root.path());
        placement.place(&asking("a", "2", "1Mi"), &active, NO_DEVICES).unwrap();
        // A whole core before two halves.
        assert_eq!((placement.pins("a", "c").0, placement.shared()), ("2,6".into(), "0-1,3-5,7".into()));
        placement.place(&asking("b", "1500m", "1Mi"), &active, NO_DEVICES).unwrap();
        assert_eq!(placement.pins("b", "c").0, "0-1,3-5,7");
        let again = opened(policies, root.path());
        assert_eq!(again.pins("a", "c").0, "2,6");
        let refused = again.place(&asking("c", "6", "1Mi"), &active, NO_DEVICES).unwrap_err();
        assert_eq!(refused.0, "UnexpectedAdmissionError");
        assert!(refused.1.contains("requested=6, available=5"), "{}", refused.1);
        again.release("a");
        again.place(&asking("c", "6", "1Mi"), &active, NO_DEVICES).unwrap();
        assert_eq!(again.shared().split(',').count(), 2, "{}", again.shared());
    }

    #[test]
    fn half_a_core_is_refused_where_cores_are_not_shared() {
        let root = tempfile::tempdir().unwrap();
        let policies = Policies { pins_cpus: true, whole_cores: true, ..Policies::default() };
        let refused = opened(policies, root.path()).place(&asking("a", "1", "1Mi"), &active, NO_DEVICES).unwrap_err();
        assert_eq!(refused, ("SMTAlignmentError", "SMT Alignment Error: requested 1 cpus not multiple cpus per core = 2".into()));
    }

    #[test]
    fn processors_memory_and_devices_meet_on_one_node_or_the_pod_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let strict = |alignment| Policies { pins_cpus: true, pins_memory: true, alignment, ..Policies::default() };
        let on_one = |_: &str| BTreeMap::from([("gpu".to_owned(), vec![1])]);
        let mut with_device = asking("a", "2", "512Mi");
        let limits = with_device.spec.as_mut().unwrap().containers[0].resources.as_mut().unwrap().limits.as_mut().unwrap();
        limits.insert("acme.com/gpu".into(), k8s_openapi::apimachinery::pkg::api::resource::Quantity("1".into()));
        let placement = opened(strict(Alignment::SingleNode), root.path());
        placement.place(&with_device, &active, &on_one).unwrap();
        assert_eq!(placement.pins("a", "c"), ("1,5".into(), "1".into()));
        let wide = asking("b", "6", "1Mi");
        assert_eq!(placement.place(&wide, &active, NO_DEVICES).unwrap_err().0, "TopologyAffinityError");
        let other = tempfile::tempdir().unwrap();
        let best = opened(strict(Alignment::BestEffort), other.path());
        best.place(&wide, &active, NO_DEVICES).unwrap();
        // More memory than a node has: both, and no other pod gets what is not there.
        let memory = opened(Policies { pins_memory: true, ..Policies::default() }, tempfile::tempdir().unwrap().path());
        memory.place(&asking("a", "500m", "1536Mi"), &active, NO_DEVICES).unwrap();
        assert_eq!(memory.pins("a", "c").1, "0-1");
        assert!(memory.place(&asking("b", "500m", "1Gi"), &active, NO_DEVICES).unwrap_err().1.contains("NUMA"));
    }
}
