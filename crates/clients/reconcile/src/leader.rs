//! One of many identical processes acts: whoever holds a Lease (KEP-589's `coordination.k8s.io/v1` lock, as client-go's
//! `leaderelection`).
//!
//! Losing the Lease is told by the drain that `work` was given; who still works after that may meet another leader. A leader that
//! cannot renew gives up before anybody else may take over: `renew_deadline` < `lease_duration`.
//!
//! Time is compared against our own clock at the moment we last saw the Lease change, never against the times written in it: clocks
//! of other machines are not trusted.

use std::time::Duration;

use client::{Client, Error};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use stdx::{Backoff, Drain};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::events::{EventKind, EventRecorder};
use crate::object::reference_to;

const RETRY_FIRST: Duration = Duration::from_millis(50);

/// Which Lease, who we are, and the times; upstream's defaults are 15, 10 and 2 seconds.
#[derive(Clone, Debug)]
pub struct Config {
    pub namespace: String,
    pub name: String,
    /// Unique among the candidates.
    pub identity: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl Config {
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Waits for leadership, runs `work` with a drain that stops when leadership is lost, and starts over; ends with `drain`.
/// The Lease is given back on an orderly end, so that the next leader need not wait.
pub async fn run<F, R>(client: Client, config: Config, drain: Drain, work: F)
where
    F: Fn(Drain) -> R,
    R: Future<Output = ()>,
{
    let recorder = EventRecorder::start(&client, &config.identity, None, drain.clone());
    let mut election = Election { client, config, observed: None, recorder };
    while !drain.is_stopping() {
        if drain.run(election.acquire()).await.is_none() {
            return;
        }
        info!(lease = %election.config.name, "became leader");
        election.tell("became leader");
        let term = drain.child();
        let lead = work(term.clone());
        tokio::pin!(lead);
        tokio::select! {
            () = &mut lead => {}
            () = election.hold() => {
                warn!(lease = %election.config.name, "lost leadership");
                election.tell("stopped leading");
                term.stop();
                lead.await;
            }
            () = drain.stopping() => {
                term.stop();
                lead.await;
                election.release().await;
            }
        }
    }
}

struct Election {
    client: Client,
    config: Config,
    /// The Lease as last seen, and when by our clock.
    observed: Option<(Lease, Instant)>,
    recorder: EventRecorder,
}

impl Election {
    async fn acquire(&mut self) {
        // A server that is just starting shall not cost a whole period.
        let mut backoff = Backoff::new(RETRY_FIRST.min(self.config.retry_period), self.config.retry_period);
        loop {
            let wait = match self.try_hold().await {
                Ok(true) => return,
                Ok(false) => self.config.retry_period,
                Err(error) => {
                    debug!(lease = %self.config.name, %error, "cannot take the lease");
                    backoff.next_wait()
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Leadership is a public matter: `kubectl describe lease` shows when it changed hands.
    fn tell(&self, what: &str) {
        let Some((lease, _)) = &self.observed else { return };
        let message = format!("{} {what}", self.config.identity);
        self.recorder.event(&reference_to(lease), EventKind::Normal, "LeaderElection", message);
    }

    /// Renews until it failed for `renew_deadline`, or somebody else has the Lease.
    async fn hold(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.config.retry_period).await;
            let left = self.config.renew_deadline.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.try_hold()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => debug!(lease = %self.config.name, %error, "cannot renew the lease"),
                Err(_) => return,
            }
            if renewed.elapsed() >= self.config.renew_deadline {
                return;
            }
        }
    }

    /// True where the Lease is ours now.
    async fn try_hold(&mut self) -> Result<bool, Error> {
        let config = &self.config;
        let found = match self.client.get::<Lease>(Some(&config.namespace), &config.name).await {
            Ok(lease) => lease,
            Err(error) if error.is_not_found() => {
                let lease = self.client.create(&next_lease(config, None)).await?;
                self.observed = Some((lease, Instant::now()));
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let unchanged = self.observed.as_ref().is_some_and(|(seen, _)| seen.spec == found.spec);
        if !unchanged {
            self.observed = Some((found.clone(), Instant::now()));
        }
        let seen_at = self.observed.as_ref().map_or_else(Instant::now, |(_, at)| *at);
        if !may_take(&self.config, &found, seen_at.elapsed()) {
            return Ok(false);
        }
        match self.client.replace(&next_lease(&self.config, Some(&found))).await {
            Ok(lease) => {
                self.observed = Some((lease, Instant::now()));
                Ok(true)
            }
            // A conflict says that the Lease was written meanwhile, not by whom: the next look decides.
            Err(error) => Err(error),
        }
    }

    async fn release(&mut self) {
        let Some((lease, _)) = self.observed.take() else { return };
        let mut given_back = self.client.replace(&freed(&self.config, &lease)).await;
        // A renewal that was under way when the stop came may have been written after all.
        if given_back.as_ref().is_err_and(Error::is_conflict) {
            given_back = match self.client.get::<Lease>(Some(&self.config.namespace), &self.config.name).await {
                Ok(found) if is_held_by(&found, &self.config.identity) => self.client.replace(&freed(&self.config, &found)).await,
                other => other,
            };
        }
        if let Err(error) = given_back {
            debug!(lease = %self.config.name, %error, "cannot give the lease back");
        }
    }
}

fn is_held_by(lease: &Lease, identity: &str) -> bool {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) == Some(identity)
}

/// The Lease with nobody as its holder.
fn freed(config: &Config, lease: &Lease) -> Lease {
    let mut lease = next_lease(config, Some(lease));
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
    }
    lease
}

/// Ours, nobody's, or unchanged for as long as its holder asked.
fn may_take(config: &Config, lease: &Lease, unchanged_for: Duration) -> bool {
    let Some(spec) = &lease.spec else { return true };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let granted =
        spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(config.lease_duration, Duration::from_secs);
    holder.is_empty() || holder == config.identity || unchanged_for >= granted
}

fn next_lease(config: &Config, current: Option<&Lease>) -> Lease {
    let now = MicroTime(Timestamp::now());
    let spec = current.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let ours = spec.holder_identity.as_deref() == Some(config.identity.as_str());
    let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(!ours && current.is_some());
    let next = LeaseSpec {
        holder_identity: Some(config.identity.clone()),
        lease_duration_seconds: i32::try_from(config.lease_duration.as_secs()).ok(),
        acquire_time: if ours { spec.acquire_time } else { Some(now.clone()) },
        renew_time: Some(now),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    };
    let fresh = || ObjectMeta { namespace: Some(config.namespace.clone()), name: Some(config.name.clone()), ..ObjectMeta::default() };
    Lease { metadata: current.map_or_else(fresh, |lease| lease.metadata.clone()), spec: Some(next) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_free_ours_or_left_unchanged_too_long() {
        let config = Config::new("kube-system", "c", "me");
        let held_by = |holder: &str| {
            let spec = LeaseSpec { holder_identity: Some(holder.into()), lease_duration_seconds: Some(15), ..LeaseSpec::default() };
            Lease { spec: Some(spec), ..Lease::default() }
        };
        let cases = [("", 0, true), ("me", 0, true), ("other", 14, false), ("other", 15, true)];
        for (holder, seconds, expected) in cases {
            assert_eq!(may_take(&config, &held_by(holder), Duration::from_secs(seconds)), expected, "{holder} after {seconds} s");
        }
        let taken = next_lease(&config, Some(&held_by("other"))).spec.unwrap();
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("me"), Some(1)));
    }

    /// What two candidates do, as a log: who begins and who ends.
    type Log = std::sync::Arc<std::sync::Mutex<Vec<String>>>;

    fn candidate(api: &std::sync::Arc<testkit::fake_api::FakeApi>, name: &str, log: &Log) -> Drain {
        let (drain, mine, log) = (stdx::drain(), name.to_owned(), log.clone());
        let (renew_deadline, retry_period) = (Duration::from_millis(600), Duration::from_millis(20));
        let lease_duration = Duration::from_secs(1);
        let config = Config { lease_duration, renew_deadline, retry_period, ..Config::new("kube-system", "c", name) };
        let (client, until) = (api.client(), drain.clone());
        tokio::spawn(run(client, config, until, move |term| {
            let (log, mine) = (log.clone(), mine.clone());
            async move {
                let say = |what: &str| log.lock().unwrap().push(format!("{mine} {what}"));
                say("leads");
                term.stopping().await;
                say("rests");
            }
        }));
        drain
    }

    async fn until(log: &Log, length: usize) -> Vec<String> {
        for _ in 0..1_000 {
            let log = log.lock().unwrap().clone();
            if log.len() >= length {
                return log;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {length} lines, only {:?}", log.lock().unwrap());
    }

    fn api() -> std::sync::Arc<testkit::fake_api::FakeApi> {
        let api = testkit::fake_api::FakeApi::new();
        api.serve("coordination.k8s.io/v1", "leases", "Lease", true);
        api
    }

    const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";

    #[tokio::test]
    async fn one_of_two_leads_and_hands_over_at_once_when_it_ends_in_order() {
        let (api, log) = (api(), Log::default());
        let first = candidate(&api, "a", &log);
        until(&log, 1).await;
        let _second = candidate(&api, "b", &log);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(*log.lock().unwrap(), ["a leads"], "b waits while a renews");
        first.stop();
        assert_eq!(until(&log, 3).await, ["a leads", "a rests", "b leads"]);
        let lease = api.get(LEASES, "kube-system", "c").unwrap();
        assert_eq!((&lease["spec"]["holderIdentity"], &lease["spec"]["leaseTransitions"]), (&"b".into(), &1.into()));
    }

    #[tokio::test]
    async fn a_lease_is_given_back_though_a_renewal_was_under_way_and_not_when_it_is_anothers() {
        for (holder, left) in [("a", ""), ("thief", "thief")] {
            let api = api();
            let config = Config::new("kube-system", "c", "a");
            let lease = api.client().create(&next_lease(&config, None)).await.unwrap();
            let observed = Some((lease, Instant::now()));
            let mut election = Election { client: api.client(), config, observed, recorder: EventRecorder::discard() };
            // Written, but not seen any more by who stops.
            api.edit(LEASES, "kube-system", "c", |lease| {
                lease["spec"]["renewTime"] = "2030-01-01T00:00:00.000000Z".into();
                lease["spec"]["holderIdentity"] = holder.into();
            });
            election.release().await;
            assert_eq!(api.get(LEASES, "kube-system", "c").unwrap()["spec"]["holderIdentity"], left, "{holder}");
        }
    }

    #[tokio::test]
    async fn a_leader_whose_lease_is_taken_rests_and_one_whose_lease_is_only_edited_goes_on() {
        let (api, log) = (api(), Log::default());
        let _leader = candidate(&api, "a", &log);
        until(&log, 1).await;
        api.edit(LEASES, "kube-system", "c", |lease| lease["metadata"]["labels"] = serde_json::json!({"by": "hand"}));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(*log.lock().unwrap(), ["a leads"]);
        api.edit(LEASES, "kube-system", "c", |lease| lease["spec"]["holderIdentity"] = "thief".into());
        assert_eq!(until(&log, 2).await, ["a leads", "a rests"]);
        // The thief never renews, so that its time runs out.
        assert_eq!(until(&log, 3).await[2], "a leads");
    }
}
