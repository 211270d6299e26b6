//! The next pods from the queue: a node for each, or room made for it, or the reasons why not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use reconcile::{Cached, ObjectKey};
use tracing::debug;

use super::report::Report;
use super::{BINDINGS_MAX, BURST, Scheduler, act};
use crate::class::{Class, target};
use crate::devices::bind::Reservation;
use crate::filters::Objection;
use crate::metrics::metrics;
use crate::plan::{Extra, FitError, Request};
use crate::preemption::{self, Budgets, Candidate, Preemptor};
use crate::profile::{Plugin, Plugins, Profile};
use crate::snapshot::{Slot, Snapshot};
use crate::{devices, volumes};

/// What a failed attempt says of resource claims after the reasons, of pods without any as well (as upstream).
const NO_CLAIMS: &str = "no new claims to deallocate";

impl Scheduler {
    /// Places some waiting pods; `false` when none waits.
    pub(super) async fn schedule_some(&mut self) -> bool {
        for done in 0..BURST {
            if self.bindings.len() >= BINDINGS_MAX
                && let Some(Ok(bound)) = self.bindings.join_next().await
            {
                self.bound(bound);
            }
            let Some(key) = self.queue.pop(Instant::now()) else { return done > 0 };
            match self.world.pods.get_key(&key) {
                Some(pod) => self.schedule(&key, &pod).await,
                None => self.queue.remove(&key),
            }
        }
        true
    }

    async fn schedule(&mut self, key: &ObjectKey, pod: &Arc<Pod>) {
        let class = self.class_of(pod);
        let Some(profile) = self.profiles.get(&class.scheduler_name).cloned() else { return self.queue.remove(key) };
        let start = Instant::now();
        if let Some(together) = self.gangs.members_to_place(key, pod) {
            return self.schedule_gang(together, start).await;
        }
        let verdicts = self.ask_extenders(pod, &class, &profile).await;
        match self.place(key, pod, &class, &profile, verdicts.as_ref()) {
            Ok((slot, decided)) => {
                metrics().algorithm_duration.observe(start.elapsed().as_secs_f64());
                self.assume(key, pod, &class, slot);
                self.start_binding(key, pod, slot, decided, start);
            }
            Err(error) => self.unschedulable(key, pod, &class, &profile, error, start),
        }
    }

    /// Finds a node; with it comes what its choice decides. Its devices are the pod's from then on.
    pub(super) fn place(
        &mut self,
        key: &ObjectKey,
        pod: &Pod,
        class: &Arc<Class>,
        profile: &Arc<Profile>,
        extenders: Option<&crate::extender::Verdicts>,
    ) -> Result<(Slot, Decided), Arc<FitError>> {
        let refused = |plugin, why| Arc::new(FitError::refused(self.snapshot.len(), plugin, why));
        self.devices.refresh();
        let needs = self.volumes.needs(pod).map_err(|refusal| refused(refusal.plugin, refusal.why))?;
        let devices = match profile.filters.has(Plugin::DynamicResources) {
            true => self.devices.needs(pod).map_err(|why| refused(Plugin::DynamicResources, why))?,
            false => None,
        };
        let snapshot = &self.snapshot;
        let own = Own { volumes: needs.as_ref(), devices: devices.as_ref(), extenders };
        let judge = |slot: Slot| own.objection(snapshot, slot);
        let extra: Option<Extra<'_>> = if own.is_nothing() { None } else { Some(&judge) };
        let nominated = self.nominated.get(key).map(String::as_str);
        let bonus = |slot: Slot| extenders.map_or(0, |verdicts| verdicts.score(snapshot.name(slot)));
        let bonus: Option<&dyn Fn(Slot) -> i64> = if extenders.is_some() { Some(&bonus) } else { None };
        let alternatives = |slot: Slot| devices.as_ref().map_or(0, |needs| needs.score(&snapshot.details[slot]));
        let scores = profile.weights.dynamic_resources > 0 && devices.as_ref().is_some_and(devices::Needs::scores);
        let alternatives: Option<&dyn Fn(Slot) -> i64> = if scores { Some(&alternatives) } else { None };
        let request = Request { pod: Some(key), target: target(pod), nominated, extra, bonus, devices: alternatives };
        let slot = self.planner.place(snapshot, profile, class, &request)?;
        let decisions = needs.as_ref().filter(|needs| !needs.waiting.is_empty()).map(|needs| needs.decide(&snapshot.details[slot]));
        let within = Duration::from_secs(profile.bind_timeout_seconds);
        let volumes = decisions.map(|decisions| self.volumes.assume(decisions, within));
        let devices = devices.and_then(|devices| devices.decide(&snapshot.details[slot]));
        let devices = devices.map(|decision| {
            self.devices.assume(key, &decision);
            let claims = self.devices.claims.clone();
            Reservation { decision, pod: key.clone(), uid: pod.uid().to_owned(), claims }
        });
        Ok((slot, Decided { volumes, devices }))
    }

    /// The pod occupies its node before the API knows.
    pub(super) fn assume(&mut self, key: &ObjectKey, pod: &Pod, class: &Arc<Class>, slot: Slot) {
        let node = self.snapshot.name(slot).to_owned();
        self.forget_victims(key);
        if let Some(nominated) = self.nominated.remove(key) {
            self.snapshot.forget_nomination(&nominated, key);
        }
        self.occupy(key, pod, &node, class, true);
        // Waiting pods may want this one's company.
        let (wants, came) =
            (class.neighbour.labels.is_empty(), crate::profile::Plugins::of(&[Plugin::PodTopologySpread, Plugin::InterPodAffinity]));
        if !wants {
            self.wake(came, None);
        }
    }

    pub(super) fn start_binding(&mut self, key: &ObjectKey, pod: &Arc<Pod>, slot: Slot, decided: Decided, start: Instant) {
        let order = act::Order {
            key: key.clone(),
            pod: pod.clone(),
            node: self.snapshot.name(slot).to_owned(),
            volumes: decided.volumes,
            devices: decided.devices,
            since: start,
            binder: self.extenders.iter().find(|extender| extender.binds() && extender.is_interested(pod)).cloned(),
        };
        self.bindings.spawn(act::bind(self.client.clone(), order));
    }

    fn unschedulable(
        &mut self,
        key: &ObjectKey,
        pod: &Arc<Pod>,
        class: &Arc<Class>,
        profile: &Arc<Profile>,
        error: Arc<FitError>,
        start: Instant,
    ) {
        debug!(pod = %key, %error, "does not fit");
        let labels = [profile.scheduler_name.as_str(), "unschedulable"];
        metrics().attempts.with_label_values(&labels).inc();
        metrics().attempt_duration.with_label_values(&labels).observe(start.elapsed().as_secs_f64());
        let mut error = FitError::clone(&error);
        let outcome = self.make_room(key, pod, class, profile, &error);
        let claims = self.take_back(pod, &error);
        let mut report = Report::unschedulable(pod, String::new());
        let before = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref()).unwrap_or_default();
        match outcome {
            Room::Made(candidate) => {
                report.message = error.to_string();
                self.preempt(key, pod, class, &candidate, report);
                let plugins = self.wakers(key, error.plugins);
                return self.queue.unschedulable(key, plugins, Instant::now());
            }
            // Its victims are still going: everything stays as it is.
            Room::Awaited(why) => error.after = format!("{claims}, preemption: {why}"),
            Room::Impossible(why) => {
                error.after = format!("{claims}, preemption: {why}");
                if self.nominated.contains_key(key) || !before.is_empty() {
                    self.forget_nomination(key);
                    report.nominate("");
                }
            }
            Room::NoNodes => {}
        }
        report.message = error.to_string();
        let plugins = self.wakers(key, error.plugins);
        self.queue.unschedulable(key, plugins, Instant::now());
        self.report(pod, report);
    }

    /// Whose objections keep the pod waiting.
    fn wakers(&self, key: &ObjectKey, objectors: Plugins) -> Plugins {
        match self.has_victims_left(key) {
            true => Plugin::DefaultPreemption.bit(),
            false if self.nominated.contains_key(key) => objectors.with(Plugin::NodeResourcesFit),
            false => objectors,
        }
    }

    /// A claim whose devices the pod cannot reach, and that nobody else uses, is allocated anew. Says what upstream says of it.
    fn take_back(&self, pod: &Pod, error: &FitError) -> &'static str {
        const AWAY: &str = "resourceclaim not available on the node";
        if devices::claim_names(pod).next().is_none() {
            return NO_CLAIMS;
        }
        let away = error.reasons.contains_key(AWAY).then(|| self.devices.needs(pod).ok().flatten()?.unavailable(pod)).flatten();
        match away {
            Some(claim) => {
                self.reports.take_back(&claim);
                "deallocation of ResourceClaim completed"
            }
            None => "still not schedulable",
        }
    }

    fn make_room(&mut self, key: &ObjectKey, pod: &Pod, class: &Arc<Class>, profile: &Arc<Profile>, error: &FitError) -> Room {
        if error.nodes == 0 {
            return Room::NoNodes;
        }
        if !profile.preemption {
            return Room::NoNodes;
        }
        if !class.preempts {
            return Room::Awaited("not eligible due to preemptionPolicy=Never.".into());
        }
        let helpless = |nodes: usize| {
            let reasons = [("Preemption is not helpful for scheduling".to_owned(), nodes)].into();
            Room::Impossible(FitError { nodes, reasons, ..FitError::default() }.to_string())
        };
        if error.before.is_some() || target(pod).is_some() && !error.resolvable {
            return helpless(self.snapshot.len());
        }
        if self.victims_are_going(key, class) {
            return Room::Awaited("not eligible due to terminating pod on the nominated node.".into());
        }
        self.refresh_budgets();
        metrics().preemption_attempts.inc();
        let needs = match self.volumes.needs(pod) {
            Ok(needs) => needs,
            Err(_) => return helpless(self.snapshot.len()),
        };
        let Ok(devices) = self.devices.needs(pod) else { return helpless(self.snapshot.len()) };
        let own = Own { volumes: needs.as_ref(), devices: devices.as_ref(), extenders: None };
        let snapshot = &self.snapshot;
        let only = target(pod).map(|only| snapshot.slot(only));
        if only == Some(None) {
            return helpless(snapshot.len());
        }
        let judge = |slot: Slot| own.objection(snapshot, slot);
        let preemptor = Preemptor {
            pod: key,
            only: only.flatten(),
            nominated: self.nominated.contains_key(key),
            extra: if own.is_nothing() { None } else { Some(&judge) },
        };
        let budgets = Budgets { all: &self.budgets, generation: self.budgets_generation };
        let board = self.planner.board(snapshot, profile, class);
        match preemption::find(board, snapshot, &preemptor, &budgets) {
            Ok(candidate) => Room::Made(candidate),
            Err(error) => Room::Impossible(error.to_string()),
        }
    }

    /// Less important pods on the node that the pod waits for are on their way out.
    fn victims_are_going(&self, key: &ObjectKey, class: &Class) -> bool {
        // Those that were told to go count as going though the API does not show it yet: else another node's pods would go as well.
        if self.has_victims_left(key) {
            return true;
        }
        let Some(slot) = self.nominated.get(key).and_then(|node| self.snapshot.slot(node)) else { return false };
        let going = |pod: &crate::snapshot::Resident| pod.class.priority < class.priority && pod.class.neighbour.terminating;
        self.snapshot.details[slot].pods.iter().any(going)
    }
}

/// How preemption went.
enum Room {
    Made(Candidate),
    Awaited(String),
    Impossible(String),
    NoNodes,
}

/// What the choice of a node decides beside the binding.
#[derive(Default)]
pub(super) struct Decided {
    pub volumes: Option<crate::volumes::bind::Binding>,
    pub devices: Option<Reservation>,
}

/// What is one pod's own and not its class's.
struct Own<'a> {
    volumes: Option<&'a volumes::Needs<'a>>,
    devices: Option<&'a devices::Needs<'a>>,
    extenders: Option<&'a crate::extender::Verdicts>,
}

impl Own<'_> {
    fn is_nothing(&self) -> bool {
        self.volumes.is_none() && self.devices.is_none() && self.extenders.is_none()
    }

    fn objection(&self, snapshot: &Snapshot, slot: Slot) -> Option<Objection> {
        let node = &snapshot.details[slot];
        self.volumes
            .and_then(|needs| needs.objection(node))
            .or_else(|| self.devices.and_then(|needs| needs.objection(node)))
            .or_else(|| self.extenders.and_then(|verdicts| verdicts.objection(snapshot.name(slot))))
    }
}
