//! What all pods may use together, and each class of them: the control groups above the pods'. Source: upstream's `pkg/kubelet/cm`
//! (node allocatable, QoS containers).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meta::quantity::Quantity;

use crate::amounts;
use crate::config::Reserved;
use crate::node::Machine;
use crate::podspec::{self, Qos};
use crate::server::Pods;
use crate::worker::Agent;

/// Upstream's period of its QoS manager is a minute; shares follow pods sooner here.
const INTERVAL: Duration = Duration::from_secs(10);
/// The least that the kernel takes.
const SHARES_MIN: u64 = 2;

/// By path below the root; the groups of reserved resources by their path on the host.
type Wanted = BTreeMap<String, cgroups::Limits>;

fn shares(milli: i64) -> u64 {
    u64::try_from(milli.max(0) * 1024 / 1000).unwrap_or(0).max(SHARES_MIN)
}

fn amount(reserved: &BTreeMap<String, String>, name: &str) -> i64 {
    let parsed = reserved.get(name).and_then(|amount| Quantity::parse(amount).ok());
    parsed.map_or(0, |amount| if name == "cpu" { amount.milli_value() } else { amount.value() })
}

impl Agent {
    /// Keeps the groups' limits.
    pub async fn keep_groups(self: Arc<Self>, machine: Machine) {
        let Some(root) = self.config.cgroup_root.clone() else { return };
        let mut set = Wanted::new();
        loop {
            let wanted = self.groups(machine);
            let changed: Wanted = wanted
                .iter()
                .filter(|(path, limits)| set.get(*path) != Some(*limits))
                .map(|(path, limits)| (path.clone(), limits.clone()))
                .collect();
            let root = root.clone();
            let done = tokio::task::spawn_blocking(move || {
                let root = cgroups::Root::detect(&root)?;
                changed.iter().try_for_each(|(path, limits)| root.create(path)?.set(limits))
            });
            match done.await {
                Ok(Ok(())) => set = wanted,
                Ok(Err(error)) => tracing::warn!(%error, "limit what all pods use together; will retry"),
                Err(error) => tracing::error!(%error, "limit what all pods use together"),
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    fn groups(&self, machine: Machine) -> Wanted {
        let reserved = &self.config.reserved;
        let mut wanted = Wanted::new();
        if self.config.enforced.iter().any(|name| name == "pods") {
            let memory = machine.memory_bytes - amount(reserved, "memory");
            let limits = cgroups::Limits {
                // Without anything reserved a limit would only cost time at every page.
                memory: Some(if amount(reserved, "memory") > 0 { memory.max(1) } else { -1 }),
                cpu_shares: Some(shares(machine.cpu_milli - amount(reserved, "cpu"))),
                ..cgroups::Limits::default()
            };
            wanted.insert("pods".into(), limits);
        }
        let pods = Pods::list(self);
        let burstable = pods.iter().filter(|pod| !podspec::is_terminal(pod) && podspec::qos(pod) == Qos::Burstable);
        let milli: i64 = burstable.map(|pod| amounts::pod_request(pod, "cpu")).sum();
        for (class, milli) in [("pods/burstable", milli), ("pods/besteffort", 0)] {
            wanted.insert(class.into(), cgroups::Limits { cpu_shares: Some(shares(milli)), ..cgroups::Limits::default() });
        }
        wanted
    }

    /// Limits the groups that resources are reserved for; they must be there. `Err` names the one that is not.
    pub fn limit_reserved(&self) -> Result<(), String> {
        for (name, reserved) in [("system-reserved", &self.config.system_reserved), ("kube-reserved", &self.config.kube_reserved)] {
            if self.config.enforced.iter().any(|enforced| enforced == name) {
                limit(reserved).map_err(|why| format!("failed to enforce {name}: {why}"))?;
            }
        }
        Ok(())
    }
}

fn limit(reserved: &Reserved) -> Result<(), String> {
    let Some(path) = &reserved.group else { return Ok(()) };
    let root = cgroups::Root::detect(path).map_err(|error| error.to_string())?;
    let mut group = root.open("").map_err(|error| error.to_string())?;
    if !group.exists() {
        return Err(format!("the control group {path:?} does not exist"));
    }
    let of = |name: &str| Some(amount(&reserved.amounts, name)).filter(|amount| *amount > 0);
    let limits = cgroups::Limits { memory: of("memory"), cpu_shares: of("cpu").map(shares), pids: of("pid"), ..cgroups::Limits::default() };
    group.set(&limits).map_err(|error| error.to_string())
}
