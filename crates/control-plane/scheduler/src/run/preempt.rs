//! Pods that go for more important ones: who waits for whom, and the writes that send them away beside the loop (KEP-4832).
//!
//! Each preemptor has a turn. Those whose turn has come, [`PREEMPTIONS_MAX`] at once, first say in their status where they wait, then all of their
//! victims are told to go together. A preemptor that finds a place meanwhile gives its turn up, and its victims stay.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Client, DeleteParams, Patch};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Cached, EventKind, ObjectKey};
use serde_json::json;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::Scheduler;
use super::announce::Announcement;
use super::report::Report;
use crate::class::Class;
use crate::filters::{self, Judged};
use crate::metrics::metrics;
use crate::preemption::Candidate;
use crate::profile::Plugin;
use crate::snapshot::Slot;

/// Preemptors whose victims are told to go at once.
const PREEMPTIONS_MAX: usize = 64;
/// How long an eviction may take to show before it counts as failed.
const EVICTION_MAX: Duration = Duration::from_secs(30);

/// Who waits for whom. There is one entry for each waiting pod at most.
#[derive(Default)]
pub(super) struct Preemptions {
    of: HashMap<ObjectKey, Preemption>,
    /// By each victim the pod that it goes for.
    by_victim: HashMap<ObjectKey, ObjectKey>,
    /// Those that were not begun.
    turns: BTreeMap<u64, ObjectKey>,
    turn: u64,
    running: JoinSet<Evicted>,
}

struct Preemption {
    turn: u64,
    /// When the victims were told.
    since: Option<Instant>,
    victims: Vec<(ObjectKey, Arc<str>)>,
    node: String,
    /// What the preemptor's status shall say first.
    report: Option<Report>,
}

impl Preemptions {
    fn add(&mut self, key: &ObjectKey, node: String, victims: Vec<(ObjectKey, Arc<str>)>, report: Option<Report>) {
        self.forget(key);
        self.turn += 1;
        self.turns.insert(self.turn, key.clone());
        victims.iter().for_each(|(victim, _)| drop(self.by_victim.insert(victim.clone(), key.clone())));
        self.of.insert(key.clone(), Preemption { turn: self.turn, since: None, victims, node, report });
    }

    fn forget(&mut self, key: &ObjectKey) {
        let Some(gone) = self.of.remove(key) else { return };
        self.turns.remove(&gone.turn);
        for (victim, _) in gone.victims {
            if self.by_victim.get(&victim) == Some(key) {
                self.by_victim.remove(&victim);
            }
        }
    }

    /// The next whose turn it is, while there are not too many at once.
    fn begin(&mut self) -> Option<(ObjectKey, &mut Preemption)> {
        if self.running.len() >= PREEMPTIONS_MAX {
            return None;
        }
        let (_, key) = self.turns.pop_first()?;
        let preemption = self.of.get_mut(&key)?;
        preemption.since = Some(Instant::now());
        Some((key, preemption))
    }

    /// Resolves when the victims of some preemptor were told; never while there are none.
    pub async fn next(&mut self) -> Evicted {
        loop {
            match self.running.join_next().await {
                Some(Ok(evicted)) => return evicted,
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    pub fn try_next(&mut self) -> Option<Evicted> {
        self.running.try_join_next()?.ok()
    }
}

/// The victims of that preemptor were told to go.
pub(super) struct Evicted {
    preemptor: ObjectKey,
    turn: u64,
    /// Those that go, and what is said of each.
    gone: Vec<Arc<Pod>>,
    message: String,
    failed: bool,
}

impl Scheduler {
    /// The pod waits for the candidate's node from now on, and its victims go as soon as its turn comes.
    pub(super) fn preempt(&mut self, key: &ObjectKey, pod: &Arc<Pod>, class: &Arc<Class>, candidate: &Candidate, mut report: Report) {
        let node = self.snapshot.name(candidate.slot).to_owned();
        metrics().preemption_victims.observe(candidate.victims.len() as f64);
        debug!(pod = %key, %node, victims = candidate.victims.len(), "makes room");
        self.nominate(key, &node, class);
        // Less important pods that counted on the room look for another place.
        for other in self.snapshot.nominated_below(candidate.slot, class.priority) {
            self.forget_nomination(&other.key);
            if let Some(pod) = self.world.pods.get_key(&other.key) {
                let mut report = Report::of(&pod);
                report.nominate("");
                self.reports.send(report);
            }
        }
        report.nominate(&node);
        let report = self.say(pod, report);
        let told = candidate.victims.iter().map(|victim| (ObjectKey::clone(&victim.key), victim.uid.clone())).collect();
        self.preemptions.add(key, node, told, report);
        self.begin_preemptions();
    }

    /// Tells the victims of those whose turn it is to go.
    fn begin_preemptions(&mut self) {
        while let Some((key, preemption)) = self.preemptions.begin() {
            let found = preemption.victims.iter().filter_map(|(victim, uid)| {
                let pod = self.world.pods.get_key(victim).filter(|pod| *pod.uid() == **uid)?;
                // One that goes already need not be told.
                pod.metadata.deletion_timestamp.is_none().then_some(pod)
            });
            let preemptor = self.world.pods.get_key(&key);
            let order = Order {
                victims: found.collect(),
                turn: preemption.turn,
                node: preemption.node.clone(),
                report: preemption.report.take(),
                uid: preemptor.as_ref().map(|pod| pod.uid().to_owned()).unwrap_or_default(),
                scheduler: preemptor
                    .as_ref()
                    .and_then(|pod| pod.spec.as_ref()?.scheduler_name.clone())
                    .unwrap_or_else(|| "default-scheduler".into()),
                preemptor: key,
            };
            self.preemptions.running.spawn(order.carry_out(self.client.clone()));
        }
    }

    /// A preemptor whose victims could not be told tries again.
    pub(super) fn evicted(&mut self, evicted: Evicted) {
        let Evicted { preemptor, turn, gone, message, failed } = evicted;
        for about in gone {
            let (kind, reason, action) = (EventKind::Normal, "Preempted", "Preempting");
            self.announcements.push(Announcement { about, kind, reason, action, message: message.clone() });
        }
        if failed && self.preemptions.of.get(&preemptor).is_some_and(|preemption| preemption.turn == turn) {
            self.preemptions.forget(&preemptor);
            self.queue.wake(&preemptor, Instant::now());
        }
        self.begin_preemptions();
    }

    /// A pod that waits for its victims is not looked at for every pod that goes: the last of its victims wakes it, and room elsewhere wakes
    /// the first of those who could use it.
    pub(super) fn wake_preemptors(&mut self, gone: &ObjectKey, slot: Option<Slot>) {
        let now = Instant::now();
        if let Some(preemptor) = self.preemptions.by_victim.remove(gone)
            && !self.has_victims_left(&preemptor)
        {
            return self.queue.wake(&preemptor, now);
        }
        let first = self.queue.first_unschedulable(Plugin::DefaultPreemption.bit());
        if let (Some((key, class)), Some(slot)) = (first, slot)
            && let Some(profile) = self.profiles.get(&class.scheduler_name)
            && filters::objection(&Judged { profile, snapshot: &self.snapshot, class: &class, slot, but: Some(&key) }).is_none()
        {
            self.queue.wake(&key, now);
        }
    }

    /// Some pod that was told to go for this one, or will be, is still there.
    pub(super) fn has_victims_left(&self, preemptor: &ObjectKey) -> bool {
        let there = |(victim, uid): &(ObjectKey, Arc<str>)| self.placed.get(victim).is_some_and(|placed| placed.uid == *uid);
        self.preemptions.of.get(preemptor).is_some_and(|preemption| preemption.victims.iter().any(there))
    }

    /// Evictions that did not come about: whoever waits for them tries again.
    pub(super) fn wake_after_failed_evictions(&mut self) {
        let is_late = |preemption: &Preemption| preemption.since.is_some_and(|since| since.elapsed() >= EVICTION_MAX);
        let late = self.preemptions.of.iter().filter(|(_, preemption)| is_late(preemption)).map(|(key, _)| key.clone());
        for key in late.collect::<Vec<ObjectKey>>() {
            self.preemptions.forget(&key);
            self.queue.wake(&key, Instant::now());
        }
    }

    pub(super) fn forget_victims(&mut self, preemptor: &ObjectKey) {
        self.preemptions.forget(preemptor);
    }
}

/// One preemptor's turn.
struct Order {
    preemptor: ObjectKey,
    uid: String,
    scheduler: String,
    turn: u64,
    node: String,
    report: Option<Report>,
    victims: Vec<Arc<Pod>>,
}

impl Order {
    async fn carry_out(self, client: Client) -> Evicted {
        if let Some(report) = &self.report {
            report.write(&client).await;
        }
        let told = join_all(self.victims.iter().map(|victim| self.evict(&client, victim))).await;
        let went = |told: Result<bool, ()>| told == Ok(true);
        let gone = self.victims.iter().zip(&told).filter(|(_, told)| went(**told)).map(|(victim, _)| victim.clone()).collect();
        let message = format!("Preempted by pod {} on node {}", self.uid, self.node);
        Evicted { preemptor: self.preemptor, turn: self.turn, gone, message, failed: told.iter().any(Result::is_err) }
    }

    /// Whether it was there to be told.
    async fn evict(&self, client: &Client, victim: &Arc<Pod>) -> Result<bool, ()> {
        let key = victim.key();
        match self.write(client, &key, victim.uid()).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(false),
            Err(error) => {
                warn!(pod = %key, %error, "cannot evict for a more important pod");
                Err(())
            }
        }
    }

    async fn write(&self, client: &Client, key: &ObjectKey, uid: &str) -> Result<(), client::Error> {
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": format!("{}: preempting to accommodate a higher priority pod", self.scheduler),
            "lastProbeTime": null, "lastTransitionTime": meta::time::now(),
        });
        let patch = Patch::Strategic(json!({ "metadata": { "uid": uid }, "status": { "conditions": [condition] } }));
        client.patch::<Pod>(key.namespace(), &key.name, &patch, "status").await?;
        client.delete::<Pod>(key.namespace(), &key.name, &DeleteParams::of_uid(uid)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preemptor_gets_its_turn_once_however_many_wait_but_for_those_that_gave_it_up() {
        const WAITING: usize = 20_000;
        let key = |number: usize| ObjectKey::new("default", format!("preemptor-{number}"));
        let victim = |number: usize| (ObjectKey::new("default", format!("victim-{number}")), Arc::from("uid"));
        let mut preemptions = Preemptions::default();
        (0..WAITING).for_each(|number| preemptions.add(&key(number), "node".into(), vec![victim(number)], None));
        preemptions.forget(&key(7));
        preemptions.add(&key(9), "other".into(), vec![victim(WAITING)], None);
        let mut begun: Vec<(ObjectKey, String)> = Vec::new();
        while let Some((key, preemption)) = preemptions.begin() {
            begun.push((key, preemption.node.clone()));
        }
        assert_eq!(begun.len(), WAITING - 1);
        assert_eq!(begun.last(), Some(&(key(9), "other".to_owned())), "what it changed its mind about is not done");
        assert!(!begun.iter().any(|(begun, _)| *begun == key(7)));
        assert_eq!(preemptions.by_victim.len(), WAITING - 1, "the pods of those who gave up go for nobody");
    }
}
