//! What this node takes and grants: new pods, and more for those that are here.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::EventKind;

use crate::observe::Observed;
use crate::podspec::{self, Qos};
use crate::resize::{self, Given, Grant, Room};
use crate::worker::{Agent, Record, lock};
use crate::world::{Verdict, Waiting};
use crate::{admit, amounts};

/// What a pod can hold of a node.
const CLAIMED: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// What one pod holds; worked out once, for every new pod asks it of all others.
#[derive(Debug, Default)]
pub struct Claims {
    /// In the order of [`CLAIMED`].
    amounts: [i64; CLAIMED.len()],
    ports: Vec<(String, String, i32)>,
}

impl Claims {
    /// Is there anything that somebody else could lack?
    fn is_some(&self) -> bool {
        !self.ports.is_empty() || self.amounts.iter().any(|amount| *amount > 0)
    }

    fn of(pod: &Pod) -> Self {
        Self { amounts: CLAIMED.map(|name| amounts::pod_request(pod, name)), ports: podspec::host_ports(pod) }
    }
}

impl Agent {
    /// Judges, once, whether the node takes the pod at all. What runs already was taken.
    pub async fn admit(&self, record: &Arc<Record>, pod: &Pod, gone: bool, observed: &Observed) {
        let taken = gone || podspec::is_terminal(pod) || pod.metadata.deletion_timestamp.is_some();
        if record.memory().admitted {
            return;
        }
        if !taken {
            self.refresh_labels(pod).await;
        }
        let new = !taken && observed.sandboxes.is_empty() && observed.containers.is_empty();
        {
            // One at a time: what one takes, the next one does not have.
            let _one = lock(&self.admitting);
            if new && let Some(verdict) = admit::judge(pod, &self.admission(&record.uid, pod)) {
                self.refuse(record, pod, verdict);
            }
            record.memory().admitted = true;
        }
        if new && record.memory().verdict.is_none() {
            self.give_own(record, pod).await;
        }
    }

    fn refuse(&self, record: &Record, pod: &Pod, verdict: Verdict) {
        let said = verdict.message.strip_prefix("Pod was rejected: ").unwrap_or(&verdict.message).to_owned();
        self.event(&reconcile::reference_to(pod), EventKind::Warning, &verdict.reason, said);
        record.memory().verdict = Some(verdict);
    }

    /// Processors and memory of its own, and devices.
    async fn give_own(&self, record: &Record, pod: &Pod) {
        let living = |record: &&Arc<Record>| {
            let (pod, gone) = record.view();
            !gone && !record.memory().finished && !podspec::is_terminal(&pod)
        };
        // Most pods want nothing of their own, and a look at all others is long.
        let active = || -> BTreeSet<String> { lock(&self.records).values().filter(living).map(|record| record.uid.clone()).collect() };
        let free = |name: &str| self.devices.free_on(name);
        if let Err((reason, why)) = self.placement.place(pod, &active, &free) {
            let message = format!("Pod was rejected: {why}");
            return self.refuse(record, pod, Verdict { reason: reason.into(), message, disrupts: false, grace_seconds: None });
        }
        if let Err(why) = self.devices.give(pod, &active).await {
            let message = format!("Pod was rejected: Allocate failed due to {why}, which is unexpected");
            self.refuse(record, pod, Verdict { reason: "UnexpectedAdmissionError".into(), message, disrupts: false, grace_seconds: None });
        }
    }

    /// The Node may have been labelled a moment before the pod was bound to it: labels that do not fit are looked up again.
    async fn refresh_labels(&self, pod: &Pod) {
        let known = admit::Node { name: self.config.node_name.clone(), labels: lock(&self.node_labels).clone(), ..admit::Node::default() };
        if admit::affinity(pod, &known).is_none() {
            return;
        }
        let found = self.client.get::<Node>(None, &self.config.node_name).await;
        // Who cannot be asked is not held against the pod.
        *lock(&self.node_labels) = found.ok().map(|node| node.metadata.labels.unwrap_or_default());
    }

    /// The node as a new pod finds it.
    fn admission(&self, uid: &str, pod: &Pod) -> admit::Node {
        // A look at all others is long: with thousands of pods longer than the start of one.
        let asks = Claims::of(pod).is_some() || lock(&self.records).len() > self.config.pods_max as usize;
        let others = if asks { self.others(uid) } else { Vec::new() };
        admit::Node {
            room: self.room(&others),
            pods: u32::try_from(others.len()).unwrap_or(u32::MAX),
            pods_max: self.config.pods_max,
            ports: others.iter().flat_map(|claims| claims.ports.iter().cloned()).collect(),
            pressures: lock(&self.pressures).clone(),
            sysctls: self.config.unsafe_sysctls.clone(),
            app_armor: crate::node::has_app_armor(),
            shutting_down: false,
            name: self.config.node_name.clone(),
            labels: lock(&self.node_labels).clone(),
        }
    }

    /// What the pods hold that are here, but for `uid`.
    fn others(&self, uid: &str) -> Vec<Arc<Claims>> {
        let records: Vec<Arc<Record>> = lock(&self.records).values().filter(|record| record.uid != uid).cloned().collect();
        let holds = |record: &Arc<Record>| {
            let memory = record.memory();
            if memory.finished || !memory.admitted || memory.verdict.is_some() {
                return None;
            }
            drop(memory);
            let wish = lock(&record.wish);
            if wish.gone || podspec::is_terminal(&wish.pod) {
                return None;
            }
            let pod = wish.pod.clone();
            drop(wish);
            let mut claims = lock(&record.claims);
            if claims.is_none() {
                let grant = lock(&record.grant).clone();
                *claims = Some(Arc::new(grant.map_or_else(|| Claims::of(&pod), |grant| Claims::of(&grant.apply(&pod)))));
            }
            claims.clone()
        };
        records.iter().filter_map(holds).collect()
    }

    fn room(&self, others: &[Arc<Claims>]) -> Room {
        let used = CLAIMED.iter().enumerate().map(|(at, name)| ((*name).to_owned(), others.iter().map(|claims| claims.amounts[at]).sum()));
        Room { allocatable: self.allocatable.clone(), used: used.collect() }
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
                *lock(&record.claims) = None;
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
