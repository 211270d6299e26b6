//! When the node runs out of something, and which pod has to go then. Pure; `pressure` looks and acts.
//!
//! Source: upstream's `pkg/kubelet/eviction` and "Node-pressure Eviction" of the documentation.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use meta::quantity::{Format, Quantity};

use crate::world::Verdict;
use crate::{admit, amounts, podspec};

/// What a pod under memory or disk pressure gets to end when the threshold is hard.
const HARD_GRACE_SECONDS: i64 = 1;

/// What the node can be short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    Memory,
    Disk,
    Pid,
}

impl Pressure {
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }
    /// The resource's name in messages and in pods' requests.
    fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
            Self::Pid => "pids",
        }
    }
}

/// Signals of eviction under upstream's names.
pub const SIGNALS: &[(&str, Pressure)] = &[
    ("memory.available", Pressure::Memory),
    ("nodefs.available", Pressure::Disk),
    ("nodefs.inodesFree", Pressure::Disk),
    ("imagefs.available", Pressure::Disk),
    ("imagefs.inodesFree", Pressure::Disk),
    ("containerfs.available", Pressure::Disk),
    ("containerfs.inodesFree", Pressure::Disk),
    ("pid.available", Pressure::Pid),
];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Least {
    Amount(i64),
    /// Of the capacity, 0 to 1.
    Share(f64),
}

/// Below this the node is under pressure.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    pub signal: String,
    pub least: Least,
    /// How long it must last before pods go; none for a hard threshold.
    pub grace: Option<Duration>,
}

/// Available and capacity of one signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    pub available: i64,
    pub capacity: i64,
}

impl Threshold {
    /// `value` is a quantity or a percentage, as in `evictionHard`. `Err` is a sentence.
    pub fn parse(signal: &str, value: &str, grace: Option<Duration>) -> Result<Self, String> {
        if !SIGNALS.iter().any(|(name, _)| *name == signal) {
            return Err(format!("unknown eviction signal {signal:?}"));
        }
        let bad = || format!("eviction threshold of {signal}: {value:?} is neither a quantity nor a percentage");
        let least = match value.strip_suffix('%') {
            Some(percent) => {
                Least::Share(percent.trim().parse::<f64>().ok().filter(|p| (0.0..=100.0).contains(p)).ok_or_else(bad)? / 100.0)
            }
            None => Least::Amount(Quantity::parse(value).map_err(|_| bad())?.value()),
        };
        Ok(Self { signal: signal.into(), least, grace })
    }

    pub fn pressure(&self) -> Pressure {
        SIGNALS.iter().find(|(name, _)| *name == self.signal).map_or(Pressure::Disk, |(_, pressure)| *pressure)
    }

    pub fn amount(&self, level: Level) -> i64 {
        match self.least {
            Least::Amount(amount) => amount,
            Least::Share(share) => (level.capacity as f64 * share) as i64,
        }
    }

    pub fn is_met(&self, levels: &BTreeMap<&'static str, Level>) -> bool {
        levels.get(self.signal.as_str()).is_some_and(|level| level.available < self.amount(*level))
    }
}

/// What a pod uses now.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    pub memory: i64,
    pub disk: i64,
    pub pids: i64,
    /// By container, of what the node is short of: memory, or bytes of its layer and logs.
    pub containers: Vec<(String, i64)>,
}

impl Usage {
    /// What of the disk a pod holds: its volumes count, whoever of its containers filled them.
    pub fn on_disk(self, storage: Storage) -> Self {
        let disk = storage.containers.iter().chain(&storage.volumes).map(|(_, bytes)| bytes).sum();
        Self { disk, containers: storage.containers, ..self }
    }

    fn of(&self, pressure: Pressure) -> i64 {
        match pressure {
            Pressure::Memory => self.memory,
            Pressure::Disk => self.disk,
            Pressure::Pid => self.pids,
        }
    }
}

/// The pods in the order in which they have to go: those that use more than they asked for, then the less important ones, then those
/// that use the most beyond what they asked for.
pub fn rank<'a, T: AsRef<Pod>>(pods: &'a [(T, Usage)], pressure: Pressure) -> Vec<&'a (T, Usage)> {
    let mut ranked: Vec<&(T, Usage)> = pods.iter().filter(|(pod, _)| !admit::is_critical(pod.as_ref())).collect();
    ranked.sort_by_key(|(pod, usage)| {
        let pod = pod.as_ref();
        let asked = if pressure == Pressure::Pid { 0 } else { amounts::pod_request(pod, pressure.resource()) };
        let beyond = usage.of(pressure) - asked;
        (beyond <= 0, podspec::spec(pod).priority.unwrap_or(0), std::cmp::Reverse(beyond))
    });
    ranked
}

/// The end of `pod` for the node's sake, in upstream's words.
pub fn verdict(pod: &Pod, usage: &Usage, threshold: &Threshold, level: Level, grace_max: i64) -> Verdict {
    let pressure = threshold.pressure();
    let resource = pressure.resource();
    let show = |amount: i64| match threshold.signal.as_str() {
        "pid.available" | "nodefs.inodesFree" | "imagefs.inodesFree" => amount.to_string(),
        _ => Quantity::new(amount, Format::BinarySi).to_string(),
    };
    let named = if threshold.signal.ends_with("inodesFree") { "inodes" } else { resource };
    let mut message = format!(
        "The node was low on resource: {named}. Threshold quantity: {}, available: {}. ",
        show(threshold.amount(level)),
        kibibytes(level.available, &threshold.signal)
    );
    if pressure != Pressure::Pid && named == resource {
        for (name, used) in &usage.containers {
            let asked = podspec::container(pod, name).and_then(|(_, c)| amounts::requested(c.resources.as_ref(), resource)).unwrap_or(0);
            if *used > asked {
                let (used, asked) = (kibibytes(*used, "memory"), Quantity::new(asked, Format::BinarySi));
                message.push_str(&format!("Container {name} was using {used}, request is {asked}, has larger consumption of {resource}. "));
            }
        }
    }
    let soft = podspec::spec(pod).termination_grace_period_seconds.unwrap_or(30).min(grace_max);
    let grace_seconds = Some(if threshold.grace.is_some() { soft } else { HARD_GRACE_SECONDS });
    Verdict { reason: "Evicted".into(), message, disrupts: true, grace_seconds }
}

fn kibibytes(amount: i64, signal: &str) -> String {
    if signal.starts_with("pid") || signal.ends_with("inodesFree") { amount.to_string() } else { format!("{}Ki", amount / 1024) }
}

/// Local storage of one pod, in bytes.
#[derive(Clone, Debug, Default)]
pub struct Storage {
    /// Writable layer and logs by container.
    pub containers: Vec<(String, i64)>,
    /// Directories of emptyDir volumes on disk by volume.
    pub volumes: Vec<(String, i64)>,
}

/// Has the pod used more local storage than it may?
pub fn storage_verdict(pod: &Pod, used: &Storage) -> Option<Verdict> {
    let over = |name: &str, limit: i64| used.volumes.iter().any(|(volume, bytes)| volume == name && *bytes > limit);
    let volume = podspec::spec(pod).volumes.iter().flatten().find_map(|volume| {
        let limit = volume.empty_dir.as_ref()?.size_limit.as_ref()?;
        let amount = amounts::amount("ephemeral-storage", limit);
        (amount > 0 && over(&volume.name, amount))
            .then(|| format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.0))
    });
    let container = || {
        used.containers.iter().find_map(|(name, bytes)| {
            let (_, container) = podspec::container(pod, name)?;
            let limit = container.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")?;
            (*bytes > amounts::amount("ephemeral-storage", limit))
                .then(|| format!("Container {name} exceeded its local ephemeral storage limit {:?}. ", limit.0))
        })
    };
    let whole = || {
        let limit = amounts::pod_limit(pod, "ephemeral-storage").or_else(|| any_limit(pod))?;
        let total: i64 = used.containers.iter().chain(&used.volumes).map(|(_, bytes)| bytes).sum();
        let limit_text = Quantity::new(limit, Format::BinarySi);
        (total > limit).then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit_text}. "))
    };
    let message = volume.or_else(whole).or_else(container)?;
    Some(Verdict { reason: "Evicted".into(), message, disrupts: false, grace_seconds: Some(HARD_GRACE_SECONDS) })
}

/// The sum of the limits that there are.
fn any_limit(pod: &Pod) -> Option<i64> {
    let all = podspec::containers(pod);
    let limits: Vec<i64> =
        all.iter().filter_map(|(_, container)| amounts::limited(container.resources.as_ref(), "ephemeral-storage")).collect();
    (limits.len() == all.len() && !limits.is_empty()).then(|| limits.iter().sum())
}

/// Must the pod's local storage be looked at?
pub fn limits_storage(pod: &Pod) -> bool {
    let volumes = podspec::spec(pod).volumes.iter().flatten();
    let sized = |volume: &k8s_openapi::api::core::v1::Volume| {
        volume.empty_dir.as_ref().is_some_and(|empty| empty.size_limit.is_some() && empty.medium.as_deref().unwrap_or("").is_empty())
    };
    volumes.into_iter().any(sized)
        || podspec::containers(pod).iter().any(|(_, c)| amounts::limited(c.resources.as_ref(), "ephemeral-storage").is_some())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn named(name: &str, priority: i32, request: &str) -> Arc<Pod> {
        let mut pod = podspec::tests::pod(
            json!({"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"memory": request}}}]}),
        );
        pod.metadata.name = Some(name.into());
        Arc::new(pod)
    }

    #[test]
    fn greedy_pods_go_first_then_unimportant_ones_then_the_largest() {
        let used = |mebibytes: i64| Usage { memory: mebibytes << 20, ..Usage::default() };
        let pods = [
            (named("modest", 0, "100Mi"), used(50)),
            (named("greedy", 0, "10Mi"), used(50)),
            (named("greedier", 0, "10Mi"), used(90)),
            (named("important", 100, "10Mi"), used(500)),
            (named("critical", 2_000_000_000, "0"), used(900)),
        ];
        let order: Vec<&str> = rank(&pods, Pressure::Memory).iter().map(|(pod, _)| podspec::name(pod)).collect();
        assert_eq!(order, ["greedier", "greedy", "important", "modest"]);
    }

    #[test]
    fn who_filled_a_volume_goes_before_who_did_not() {
        let stored = |volume: i64| Storage { containers: vec![("c".into(), 1 << 20)], volumes: vec![("v".into(), volume << 20)] };
        let usage = |volume: i64| Usage { disk: 1 << 20, ..Usage::default() }.on_disk(stored(volume));
        let pods = [(named("modest", 0, "0"), usage(2)), (named("greedy", 0, "0"), usage(500))];
        let order: Vec<&str> = rank(&pods, Pressure::Disk).iter().map(|(pod, _)| podspec::name(pod)).collect();
        assert_eq!((order[0], usage(500).disk), ("greedy", 501 << 20));
    }

    #[test]
    fn thresholds_are_amounts_and_percentages() {
        let levels = BTreeMap::from([("memory.available", Level { available: 90 << 20, capacity: 1 << 30 })]);
        for (value, met) in [("100Mi", true), ("80Mi", false), ("10%", true), ("5%", false)] {
            assert_eq!(Threshold::parse("memory.available", value, None).unwrap().is_met(&levels), met, "{value}");
        }
        assert!(Threshold::parse("memory.free", "1", None).unwrap_err().contains("memory.free"));
        assert!(Threshold::parse("memory.available", "lots", None).is_err());
    }

    #[test]
    fn an_eviction_says_what_was_short_and_who_used_it() {
        let threshold = Threshold::parse("memory.available", "100Mi", None).unwrap();
        let usage = Usage { memory: 50 << 20, containers: vec![("c".into(), 50 << 20)], ..Usage::default() };
        let verdict = verdict(&named("p", 0, "10Mi"), &usage, &threshold, Level { available: 60 << 20, capacity: 1 << 30 }, 0);
        assert_eq!(
            verdict.message,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 61440Ki. Container c was using 51200Ki, request is 10Mi, has larger consumption of memory. "
        );
        assert!(verdict.disrupts && verdict.grace_seconds == Some(1));
    }

    #[test]
    fn a_pod_that_outgrows_its_local_storage_is_told_which_limit_it_was() {
        let pod = podspec::tests::pod(json!({
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}],
            "containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "2Mi"}}}]}));
        let said = |volume: i64, container: i64| {
            let used = Storage { containers: vec![("c".into(), container << 20)], volumes: vec![("v".into(), volume << 20)] };
            storage_verdict(&pod, &used).map(|verdict| verdict.message)
        };
        assert_eq!(said(1, 1), None);
        assert_eq!(said(2, 0).unwrap(), "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
        assert_eq!(said(0, 3).unwrap(), "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ");
        assert!(limits_storage(&pod));
    }
}
