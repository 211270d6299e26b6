//! In-place resize (KEP-1287): what a pod was granted of what it asks for, and what its containers still have to be told. Pure.
//!
//! A pod runs with its [`Grant`]. What its spec asks for after a resize becomes the grant where the node has it; until then the
//! pod says why not (`PodResizePending`), and then until its control groups follow (`PodResizeInProgress`).

use std::collections::BTreeMap;

use cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::podspec::{self, Role};
use crate::world::{Seen, State, Waiting, World};
use crate::{amounts, crispec};

type Requirements = Option<ResourceRequirements>;

/// The resources that the pod and its containers were granted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    pod: Requirements,
    containers: BTreeMap<String, Requirements>,
}

impl Grant {
    pub fn of_spec(pod: &Pod) -> Self {
        let spec = podspec::spec(pod);
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        Self {
            pod: spec.resources.clone(),
            containers: all.map(|container| (container.name.clone(), container.resources.clone())).collect(),
        }
    }

    /// What a kubelet before this one granted, as the pod's status tells; the spec where it tells nothing.
    pub fn of_status(pod: &Pod) -> Self {
        let mut grant = Self::of_spec(pod);
        let status = pod.status.as_ref();
        let lists = [
            status.and_then(|status| status.container_statuses.as_ref()),
            status.and_then(|status| status.init_container_statuses.as_ref()),
        ];
        for known in lists.into_iter().flatten().flatten() {
            let running = known.state.as_ref().is_some_and(|state| state.running.is_some());
            if let (Some(resources), Some(own), true) = (&known.resources, grant.containers.get_mut(&known.name), running) {
                let own = own.get_or_insert_default();
                let granted = known.allocated_resources.clone().or_else(|| resources.requests.clone());
                overlay(&mut own.requests, granted.as_ref());
                overlay(&mut own.limits, resources.limits.as_ref());
            }
        }
        grant
    }

    /// The pod with these resources in place of what its spec asks for.
    pub fn apply(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        let Some(spec) = pod.spec.as_mut() else { return pod };
        spec.resources.clone_from(&self.pod);
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            if let Some(granted) = self.containers.get(&container.name) {
                container.resources.clone_from(granted);
            }
        }
        pod
    }
}

/// Only cpu and memory can differ from the spec, and only where the spec has them.
fn overlay(
    own: &mut Option<BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
    known: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
) {
    for name in ["cpu", "memory"] {
        if let (Some(own), Some(known)) = (own.as_mut().and_then(|list| list.get_mut(name)), known.and_then(|list| list.get(name))) {
            own.clone_from(known);
        }
    }
}

/// What the node has for pods, and what its other pods hold of it.
#[derive(Clone, Debug, Default)]
pub struct Room {
    pub allocatable: BTreeMap<String, i64>,
    pub used: BTreeMap<String, i64>,
}

/// May `wanted` have what it asks for, where it now has what `granted` asks for?
pub fn judge(wanted: &Pod, granted: &Pod, room: &Room) -> Result<(), Waiting> {
    for resource in ["cpu", "memory"] {
        let asked = amounts::pod_request(wanted, resource);
        if asked <= amounts::pod_request(granted, resource) {
            continue;
        }
        let of = |map: &BTreeMap<String, i64>| map.get(resource).copied().unwrap_or(0);
        let (capacity, used) = (of(&room.allocatable), of(&room.used));
        if asked > capacity {
            let message = format!("Node didn't have enough capacity: {resource}, requested: {asked}, capacity: {capacity}");
            return Err(Waiting { reason: "Infeasible", message });
        }
        if asked > capacity - used {
            let message = format!("Node didn't have enough resource: {resource}, requested: {asked}, used: {used}, capacity: {capacity}");
            return Err(Waiting { reason: "Deferred", message });
        }
    }
    Ok(())
}

/// What a container was last given: in its pod's words, and in the runtime's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    requirements: ResourceRequirements,
    linux: v1::LinuxContainerResources,
}

impl Given {
    /// What `container` of `pod` is to have.
    pub fn of(pod: &Pod, container: &Container) -> Self {
        let linux = crispec::resources(pod, container, &crispec::Node::default());
        Self { requirements: container.resources.clone().unwrap_or_default(), linux }
    }

    /// What every container of `pod` has, by name.
    pub fn all(pod: &Pod) -> BTreeMap<String, Self> {
        podspec::containers(pod).iter().map(|(_, container)| (container.name.clone(), Self::of(pod, container))).collect()
    }

    /// Whether `resource` is another amount in `other`.
    fn differs(&self, other: &Self, resource: &str) -> bool {
        let of = |given: &Self| {
            let own = Some(&given.requirements);
            let linux =
                if resource == "cpu" { (given.linux.cpu_shares, given.linux.cpu_quota) } else { (given.linux.memory_limit_in_bytes, 0) };
            (amounts::requested(own, resource), amounts::limited(own, resource), linux)
        };
        of(self) != of(other)
    }
}

/// A container that does not yet run with what it was granted.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending<'a> {
    pub seen: &'a Seen,
    pub wanted: v1::LinuxContainerResources,
    /// The container asked to be restarted for this.
    pub restart: bool,
}

pub fn pending<'a>(world: &'a World<'a>) -> Vec<Pending<'a>> {
    let containers = podspec::containers(world.pod);
    let mut found = Vec::new();
    for (_, container) in containers.iter().filter(|(role, _)| matches!(role, Role::Main | Role::Sidecar)) {
        let Some(seen) = world.latest(&container.name).filter(|seen| seen.state == State::Running) else { continue };
        let Some(given) = world.memory.given.get(&container.name) else { continue };
        let wanted = Given::of(world.pod, container);
        let (cpu, memory) = (given.differs(&wanted, "cpu"), given.differs(&wanted, "memory"));
        if cpu || memory {
            let restart = (cpu && wants_restart(container, "cpu")) || (memory && wants_restart(container, "memory"));
            found.push(Pending { seen, wanted: wanted.linux, restart });
        }
    }
    found
}

fn wants_restart(container: &Container, resource: &str) -> bool {
    let policies = container.resize_policy.iter().flatten();
    policies.filter(|policy| policy.resource_name == resource).any(|policy| policy.restart_policy == "RestartContainer")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::podspec::tests::pod;

    fn asking(cpu: &str) -> Pod {
        pod(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": "8"}}}]}))
    }

    #[test]
    fn a_resize_is_granted_deferred_or_infeasible_by_what_the_node_has_left() {
        let room = Room { allocatable: BTreeMap::from([("cpu".into(), 4000)]), used: BTreeMap::from([("cpu".into(), 2500)]) };
        let reason = |cpu: &str| judge(&asking(cpu), &asking("1"), &room).err().map(|waiting| waiting.reason);
        assert_eq!((reason("1500m"), reason("2"), reason("5"), reason("500m")), (None, Some("Deferred"), Some("Infeasible"), None));
    }

    #[test]
    fn a_grant_outlives_the_kubelet_in_the_pods_status() {
        let mut after = asking("3");
        let status = json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {}}, "allocatedResources": {"cpu": "1"}, "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}]});
        after.status = serde_json::from_value(status).unwrap();
        let granted = Grant::of_status(&after).apply(&after);
        assert_eq!(amounts::pod_request(&granted, "cpu"), 1000);
        assert_eq!(amounts::pod_limit(&granted, "cpu"), Some(2000));
        assert_ne!(Grant::of_status(&after), Grant::of_spec(&after));
    }
}
