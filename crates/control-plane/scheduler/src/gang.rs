//! Pods that run together or not at all: the members of a PodGroup with the gang policy (KEP-4671).
//!
//! A member enters the queue once the group exists and has enough members. They are placed in one go, each on the state that the others leave;
//! where fewer than the group's minimum find a place, none is bound.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use reconcile::{Cached, ObjectKey};

#[derive(Default)]
pub struct Gangs {
    /// The minimum of each group; 0 without the gang policy.
    groups: HashMap<ObjectKey, usize>,
    members: HashMap<ObjectKey, BTreeMap<ObjectKey, bool>>,
    of_pod: HashMap<ObjectKey, ObjectKey>,
}

/// The group that a pod names.
fn group_of(pod: &Pod) -> Option<ObjectKey> {
    let name = pod.spec.as_ref()?.scheduling_group.as_ref()?.pod_group_name.as_ref()?;
    Some(ObjectKey::new(pod.namespace(), name))
}

impl Gangs {
    /// A group appeared, changed or went; returns the members for which that may matter.
    pub fn set_group(&mut self, key: &ObjectKey, group: Option<&PodGroup>) -> Vec<ObjectKey> {
        match group {
            Some(group) => {
                let gang = group.spec.scheduling_policy.gang.as_ref();
                self.groups.insert(key.clone(), gang.map_or(0, |gang| gang.min_count.try_into().unwrap_or(0)));
            }
            None => drop(self.groups.remove(key)),
        }
        self.waiting(key)
    }

    /// A member was seen; the others that wait are returned when it is the one that completes the group.
    pub fn observe(&mut self, key: &ObjectKey, pod: &Pod, bound: bool) -> Vec<ObjectKey> {
        let Some(group) = group_of(pod) else { return Vec::new() };
        let members = self.members.entry(group.clone()).or_default();
        let before = members.len();
        members.insert(key.clone(), bound);
        let after = members.len();
        self.of_pod.insert(key.clone(), group.clone());
        let minimum = self.groups.get(&group).copied().unwrap_or(usize::MAX);
        if before < minimum && after >= minimum && before != after { self.waiting(&group) } else { Vec::new() }
    }

    pub fn forget(&mut self, key: &ObjectKey) {
        let Some(group) = self.of_pod.remove(key) else { return };
        if let Some(members) = self.members.get_mut(&group) {
            members.remove(key);
            if members.is_empty() {
                self.members.remove(&group);
            }
        }
    }

    /// The pod belongs to no gang, or enough of its gang are there.
    pub fn is_ready(&self, pod: &Pod) -> bool {
        let Some(group) = group_of(pod) else { return true };
        let Some(minimum) = self.groups.get(&group) else { return false };
        self.members.get(&group).map_or(0, BTreeMap::len) >= *minimum
    }

    /// The members that must find a place together with this one, itself among them, and how many of them at least; `None` where it may go
    /// alone.
    pub fn members_to_place(&self, key: &ObjectKey, pod: &Pod) -> Option<Together> {
        let group = group_of(pod)?;
        let minimum = *self.groups.get(&group)?;
        let members = self.members.get(&group)?;
        let bound = members.values().filter(|bound| **bound).count();
        if bound >= minimum {
            return None;
        }
        let mut pods = self.waiting(&group);
        if !pods.contains(key) {
            pods.push(key.clone());
        }
        Some(Together { group, pods, needed: minimum - bound })
    }

    fn waiting(&self, group: &ObjectKey) -> Vec<ObjectKey> {
        let members = self.members.get(group).into_iter().flatten();
        members.filter(|(_, bound)| !**bound).map(|(key, _)| key.clone()).collect()
    }
}

/// Pods to be placed in one go.
#[derive(Debug, PartialEq)]
pub struct Together {
    pub group: ObjectKey,
    pub pods: Vec<ObjectKey>,
    /// At least so many of them.
    pub needed: usize,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn member(name: &str) -> (ObjectKey, Pod) {
        let pod = json!({ "metadata": { "namespace": "a", "name": name }, "spec": { "containers": [], "schedulingGroup": { "podGroupName": "g" } } });
        (ObjectKey::new("a", name), serde_json::from_value(pod).unwrap())
    }

    fn group(minimum: i32) -> PodGroup {
        let spec = json!({ "schedulingPolicy": { "gang": { "minCount": minimum } } });
        serde_json::from_value(json!({ "metadata": { "namespace": "a", "name": "g" }, "spec": spec })).unwrap()
    }

    #[test]
    fn a_member_waits_for_its_group_and_for_enough_others() {
        let mut gangs = Gangs::default();
        let ((one, first), (two, second)) = (member("one"), member("two"));
        gangs.observe(&one, &first, false);
        assert!(!gangs.is_ready(&first), "no group yet");
        gangs.set_group(&ObjectKey::new("a", "g"), Some(&group(2)));
        assert!(!gangs.is_ready(&first), "one of two");
        assert_eq!(gangs.observe(&two, &second, false), [one.clone(), two.clone()], "the second completes the group");
        assert!(gangs.is_ready(&first));
        let together = gangs.members_to_place(&one, &first).unwrap();
        assert_eq!((together.pods.len(), together.needed), (2, 2));
        gangs.observe(&one, &first, true);
        gangs.observe(&two, &second, true);
        let (three, third) = member("three");
        gangs.observe(&three, &third, false);
        assert_eq!(gangs.members_to_place(&three, &third), None, "the gang runs: a third may come alone");
    }
}
