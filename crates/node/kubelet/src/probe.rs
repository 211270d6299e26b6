//! Probes: liveness, readiness and startup of all pods, driven by one timer task.
//!
//! A pod's worker says which probes its running containers need ([`Probes::sync`]); the timer task starts each check when it is due, and
//! a changed verdict wakes the worker. [`check`] does one check.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use stdx::Drain;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

pub mod check;

/// Checks that run at once; more wait, which only delays them.
const CHECKS_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// One probe of one running container.
#[derive(Clone, Debug)]
pub struct Target {
    pub kind: Kind,
    pub container: Container,
    pub container_id: String,
    pub probe: Probe,
    pub pod_ip: String,
    /// Time since the container started, for the initial delay.
    pub running_for: Duration,
    /// A verdict known from before, so that a restart of the kubelet does not make a ready pod unready.
    pub initial: Option<bool>,
}

/// Told of each failed check.
pub type OnFailure = Arc<dyn Fn(&str, &Target, &str) + Send + Sync>;
/// Told of the pod whose verdict changed.
pub type OnChange = Arc<dyn Fn(&str) + Send + Sync>;
pub type Check = Arc<dyn Fn(Target) -> futures_util::future::BoxFuture<'static, Result<(), String>> + Send + Sync>;

type Key = (String, String, Kind);

#[derive(Clone)]
pub struct Probes(Arc<Shared>);

/// Successes and failures by pod, container's name and kind.
type Counts = BTreeMap<Key, (u64, u64)>;

struct Shared {
    counts: Mutex<Counts>,
    state: Mutex<BTreeMap<Key, Entry>>,
    changed: Notify,
    check: Check,
    on_failure: OnFailure,
    on_change: OnChange,
}

/// 0 <= successes, failures; at most one of them is not zero.
struct Entry {
    target: Arc<Target>,
    verdict: Option<bool>,
    successes: i32,
    failures: i32,
    due: Instant,
    running: bool,
}

impl Probes {
    /// Starts the timer task.
    pub fn start(check: Check, on_failure: OnFailure, on_change: OnChange, drain: Drain) -> Self {
        let probes = Self(Arc::new(Shared {
            counts: Mutex::default(),
            state: Mutex::default(),
            changed: Notify::new(),
            check,
            on_failure,
            on_change,
        }));
        let task = probes.clone();
        tokio::spawn(async move { drain.run(task.drive()).await });
        probes
    }

    /// Makes `targets` the probes of pod `uid`; those that are known keep their verdicts.
    pub fn sync(&self, uid: &str, targets: Vec<Target>) {
        let mut state = self.lock();
        let wanted: Vec<Key> = targets.iter().map(|target| (uid.to_owned(), target.container_id.clone(), target.kind)).collect();
        let before = state.len();
        state.retain(|key, _| key.0 != uid || wanted.contains(key));
        if wanted.is_empty() {
            self.0.counts.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| key.0 != uid);
        }
        let mut changed = state.len() != before;
        for (key, target) in wanted.into_iter().zip(targets) {
            if state.contains_key(&key) {
                continue;
            }
            changed = true;
            let delay = Duration::from_secs(u64::try_from(target.probe.initial_delay_seconds.unwrap_or(0)).unwrap_or(0));
            let due = Instant::now() + delay.saturating_sub(target.running_for);
            // Liveness is taken for granted, readiness is not (upstream's initial results).
            let verdict = target.initial.or(match target.kind {
                Kind::Liveness => Some(true),
                Kind::Readiness => Some(false),
                Kind::Startup => None,
            });
            state.insert(key, Entry { target: Arc::new(target), verdict, successes: 0, failures: 0, due, running: false });
        }
        drop(state);
        if changed {
            self.0.changed.notify_one();
        }
    }

    /// The verdicts on pod `uid`, by container id.
    pub fn verdicts(&self, uid: &str) -> BTreeMap<(String, Kind), bool> {
        let state = self.lock();
        let from = (uid.to_owned(), String::new(), Kind::Startup);
        let of_pod = state.range(from..).take_while(|(key, _)| key.0 == uid);
        of_pod.filter_map(|(key, entry)| Some(((key.1.clone(), key.2), entry.verdict?))).collect()
    }

    /// How often each probe of the pods that run now succeeded and failed; the key names the container.
    pub fn counts(&self) -> BTreeMap<(String, String, Kind), (u64, u64)> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn drive(self) {
        let limit = Arc::new(Semaphore::new(CHECKS_MAX));
        loop {
            let changed = self.0.changed.notified();
            let next = self.start_due(&limit);
            match next {
                Some(at) => tokio::select! { () = changed => {}, () = tokio::time::sleep_until(at) => {} },
                None => changed.await,
            }
        }
    }

    /// Starts every check that is due; returns when the next one is.
    fn start_due(&self, limit: &Arc<Semaphore>) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.lock();
        for (key, entry) in state.iter_mut().filter(|(_, entry)| !entry.running && entry.due <= now) {
            entry.running = true;
            let (probes, key, target, limit) = (self.clone(), key.clone(), entry.target.clone(), limit.clone());
            tokio::spawn(async move {
                let _permit = limit.acquire().await;
                let timeout = Duration::from_secs(u64::try_from(target.probe.timeout_seconds.unwrap_or(1).max(1)).unwrap_or(1));
                let check = (probes.0.check)((*target).clone());
                let result = tokio::time::timeout(timeout, check).await;
                let result = result.unwrap_or_else(|_| Err(check::timeout_message(&target, timeout)));
                probes.judge(&key, &target, result);
            });
        }
        state.values().filter(|entry| !entry.running).map(|entry| entry.due).min()
    }

    fn judge(&self, key: &Key, target: &Arc<Target>, result: Result<(), String>) {
        if let Err(message) = &result {
            (self.0.on_failure)(&key.0, target, message);
        }
        {
            let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry((key.0.clone(), target.container.name.clone(), key.2)).or_default();
            if result.is_ok() { count.0 += 1 } else { count.1 += 1 }
        }
        let mut state = self.lock();
        // The container may be gone since.
        let Some(entry) = state.get_mut(key) else { return };
        let changed = entry.judge(result.is_ok());
        let period = Duration::from_secs(u64::try_from(entry.target.probe.period_seconds.unwrap_or(10).max(1)).unwrap_or(10));
        entry.running = false;
        entry.due = Instant::now() + period;
        // A startup or liveness probe that decided against the container rests: the container will be replaced.
        if entry.verdict == Some(false) && key.2 != Kind::Readiness {
            entry.due = Instant::now() + Duration::from_secs(3600);
        } else if entry.verdict == Some(true) && key.2 == Kind::Startup {
            entry.due = Instant::now() + Duration::from_secs(86_400);
        }
        drop(state);
        self.0.changed.notify_one();
        if changed {
            (self.0.on_change)(&key.0);
        }
    }
}

impl Entry {
    /// Counts one result; true where the verdict changed.
    fn judge(&mut self, success: bool) -> bool {
        let threshold = |value: Option<i32>, otherwise: i32| value.unwrap_or(otherwise).max(1);
        if success {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
        } else {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
        }
        let reached = if success {
            self.successes >= threshold(self.target.probe.success_threshold, 1)
        } else {
            self.failures >= threshold(self.target.probe.failure_threshold, 3)
        };
        let changed = reached && self.verdict != Some(success);
        if changed {
            self.verdict = Some(success);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    fn target(kind: Kind, probe: serde_json::Value) -> Target {
        Target {
            kind,
            container: Container::default(),
            container_id: "c".into(),
            probe: serde_json::from_value(probe).unwrap(),
            pod_ip: "127.0.0.1".into(),
            running_for: Duration::ZERO,
            initial: None,
        }
    }

    #[test]
    fn thresholds_count_consecutive_results_only() {
        let target = Arc::new(target(Kind::Readiness, json!({"failureThreshold": 3, "successThreshold": 2})));
        let mut entry = Entry { target, verdict: Some(false), successes: 0, failures: 0, due: Instant::now(), running: false };
        let verdicts: Vec<Option<bool>> = [true, false, true, true, false, false, true, false, false, false]
            .into_iter()
            .map(|result| {
                entry.judge(result);
                entry.verdict
            })
            .collect();
        let (no, yes) = (Some(false), Some(true));
        assert_eq!(verdicts, [no, no, no, yes, yes, yes, yes, yes, yes, no]);
    }

    #[tokio::test]
    async fn due_probes_are_checked_and_a_changed_verdict_wakes_the_pod_once() {
        let (woken, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let changed = Arc::new(Notify::new());
        let (count, failures, wake) = (woken.clone(), failed.clone(), changed.clone());
        let probes = Probes::start(
            Arc::new(|_| Box::pin(async { Err("no".into()) })),
            Arc::new(move |_, _, _| {
                failures.fetch_add(1, Ordering::SeqCst);
            }),
            Arc::new(move |_| {
                count.fetch_add(1, Ordering::SeqCst);
                wake.notify_one();
            }),
            stdx::drain(),
        );
        let later = Target { container_id: "later".into(), ..target(Kind::Liveness, json!({"initialDelaySeconds": 60})) };
        probes.sync("u", vec![target(Kind::Liveness, json!({"failureThreshold": 1})), later]);
        changed.notified().await;
        assert_eq!(probes.verdicts("u").get(&("c".into(), Kind::Liveness)), Some(&false));
        assert_eq!(probes.verdicts("u").get(&("later".into(), Kind::Liveness)), Some(&true));
        assert_eq!((woken.load(Ordering::SeqCst), failed.load(Ordering::SeqCst)), (1, 1));
        probes.sync("u", vec![]);
        assert!(probes.verdicts("u").is_empty());
    }
}
