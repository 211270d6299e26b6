//! What this node takes and grants: new pods, and more for those that are here.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use reconcile::EventKind;

use crate::observe::Observed;
use crate::podspec::{self, Qos};
use crate::resize::{self, Given, Grant, Room};
use crate::worker::{Agent, Record, Wish, lock};
use crate::world::Waiting;
use crate::{admit, amounts};

impl Agent {
    /// Judges, once, whether the node takes the pod at all. What runs already was taken.
    pub fn admit(&self, record: &Arc<Record>, pod: &Pod, gone: bool, observed: &Observed) {
        let taken = gone || podspec::is_terminal(pod) || pod.metadata.deletion_timestamp.is_some();
        if record.memory().admitted {
            return;
        }
        // One at a time: what one takes, the next one does not have.
        let _one = lock(&self.admitting);
        if !taken
            && observed.sandboxes.is_empty()
            && observed.containers.is_empty()
            && let Some(verdict) = admit::judge(pod, &self.admission(&record.uid))
        {
            let said = verdict.message.strip_prefix("Pod was rejected: ").unwrap_or(&verdict.message).to_owned();
            self.event(&reconcile::reference_to(pod), EventKind::Warning, &verdict.reason, said);
            record.memory().verdict = Some(verdict);
        }
        record.memory().admitted = true;
    }

    /// The node as a new pod finds it.
    fn admission(&self, uid: &str) -> admit::Node {
        let others = self.others(uid);
        admit::Node {
            room: self.room(&others),
            pods: u32::try_from(others.len()).unwrap_or(u32::MAX),
            pods_max: self.config.pods_max,
            ports: others.iter().flat_map(|pod| podspec::host_ports(pod)).collect(),
            pressures: lock(&self.pressures).clone(),
            sysctls: self.config.unsafe_sysctls.clone(),
            app_armor: crate::node::has_app_armor(),
            shutting_down: false,
        }
    }

    /// The pods that hold something of this node, with what they were granted, but for `uid`.
    fn others(&self, uid: &str) -> Vec<Arc<Pod>> {
        let records: Vec<Arc<Record>> = lock(&self.records).values().filter(|record| record.uid != uid).cloned().collect();
        let holds = |record: &Arc<Record>| {
            let Wish { pod, gone } = lock(&record.wish).clone();
            let memory = record.memory();
            if gone || memory.finished || !memory.admitted || memory.verdict.is_some() || podspec::is_terminal(&pod) {
                return None;
            }
            drop(memory);
            let grant = lock(&record.grant).clone();
            Some(grant.map_or(pod.clone(), |grant| Arc::new(grant.apply(&pod))))
        };
        records.iter().filter_map(holds).collect()
    }

    fn room(&self, others: &[Arc<Pod>]) -> Room {
        let names = ["cpu", "memory", "ephemeral-storage"];
        let used = names.map(|name| (name.to_owned(), others.iter().map(|pod| amounts::pod_request(pod, name)).sum()));
        Room { allocatable: self.allocatable.clone(), used: used.into() }
    }

    /// The pod with the resources that it was granted. What it asks for beyond them is granted where the node has it (KEP-1287).
    pub fn granted(&self, record: &Arc<Record>, pod: Arc<Pod>, gone: bool) -> Arc<Pod> {
        let known = lock(&record.grant).clone();
        let grant = known.unwrap_or_else(|| {
            let grant = Grant::of_status(&pod);
            // What a kubelet before this one left running has what it was granted then.
            record.memory().given = Given::all(&grant.apply(&pod));
            *lock(&record.grant) = Some(grant.clone());
            grant
        });
        let wanted = Grant::of_spec(&pod);
        if grant == wanted {
            let mut memory = record.memory();
            (memory.resize_waiting, memory.resize_since) = (None, None);
            return pod;
        }
        let now = Arc::new(grant.apply(&pod));
        if gone || podspec::is_terminal(&pod) || record.memory().verdict.is_some() {
            return now;
        }
        let judged = resize::judge(&pod, &now, &self.room(&self.others(&record.uid)));
        match judged.and_then(|()| self.let_first(record, &pod)) {
            Ok(()) => {
                *lock(&record.grant) = Some(wanted);
                let mut memory = record.memory();
                (memory.resize_waiting, memory.resize_since) = (None, None);
                drop(memory);
                pod
            }
            Err(waiting) => {
                let mut memory = record.memory();
                memory.resize_since.get_or_insert_with(Timestamp::now);
                memory.resize_waiting = Some(waiting);
                drop(memory);
                now
            }
        }
    }

    /// Of those that wait for room the important ones come first, then those of the better class, then those that wait longest.
    fn let_first(&self, record: &Arc<Record>, pod: &Pod) -> Result<(), Waiting> {
        let rank = |record: &Record, pod: &Pod| {
            let class = match podspec::qos(pod) {
                Qos::Guaranteed => 0,
                Qos::Burstable => 1,
                Qos::BestEffort => 2,
            };
            let since = record.memory().resize_since.unwrap_or(Timestamp::MAX);
            (std::cmp::Reverse(podspec::spec(pod).priority.unwrap_or(0)), class, since)
        };
        let own = rank(record, pod);
        let others: Vec<Arc<Record>> = lock(&self.records).values().filter(|other| other.uid != record.uid).cloned().collect();
        for other in others {
            let waits = other.memory().resize_waiting.as_ref().is_some_and(|waiting| waiting.reason == "Deferred");
            let (wanted, gone) = other.view();
            if !waits || gone || podspec::is_terminal(&wanted) || rank(&other, &wanted) >= own {
                continue;
            }
            let granted = lock(&other.grant).as_ref().map_or_else(|| (*wanted).clone(), |grant| grant.apply(&wanted));
            if resize::judge(&wanted, &granted, &self.room(&self.others(&other.uid))).is_ok() {
                self.queue.add(other.uid.clone());
                let message = format!("pod {} waits for the same resources and comes first", podspec::format_pod(&wanted));
                return Err(Waiting { reason: "Deferred", message });
            }
        }
        Ok(())
    }
}
