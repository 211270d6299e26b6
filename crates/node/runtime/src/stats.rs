//! What containers and pods use, from their control groups.

use std::path::Path;
use std::sync::Arc;

use cri::v1;

use crate::state::{Container, Inner, Sandbox, lock};
use crate::{Result, shim};

fn value(value: Option<u64>) -> Option<v1::UInt64Value> {
    value.map(|value| v1::UInt64Value { value })
}

/// How long the group waited for the resource (KEP-4205).
fn psi(group: &cgroups::Cgroup, resource: &str) -> Option<v1::PsiStats> {
    let found = group.pressure(resource)?;
    let data = |stall: cgroups::Stall| {
        let [avg10, avg60, avg300] = stall.averages;
        v1::PsiData { total: stall.total, avg10, avg60, avg300 }
    };
    Some(v1::PsiStats { full: Some(data(found.full)), some: Some(data(found.some)) })
}

fn io(group: &cgroups::Cgroup, timestamp: i64) -> Option<v1::IoUsage> {
    psi(group, "io").map(|psi| v1::IoUsage { timestamp, psi: Some(psi) })
}

fn cpu(group: &cgroups::Cgroup, stats: &cgroups::Stats, timestamp: i64) -> v1::CpuUsage {
    v1::CpuUsage { timestamp, usage_core_nano_seconds: value(stats.cpu_nanos), psi: psi(group, "cpu"), ..Default::default() }
}

fn memory(group: &cgroups::Cgroup, stats: &cgroups::Stats, timestamp: i64) -> v1::MemoryUsage {
    let available = stats.memory_limit.zip(stats.working_set).map(|(limit, used)| limit.saturating_sub(used));
    v1::MemoryUsage {
        timestamp,
        working_set_bytes: value(stats.working_set),
        available_bytes: value(available),
        usage_bytes: value(stats.memory_usage),
        rss_bytes: value(stats.rss),
        page_faults: value(stats.page_faults),
        major_page_faults: value(stats.major_page_faults),
        psi: psi(group, "memory"),
    }
}

impl Inner {
    pub async fn container_stats(self: &Arc<Self>, container: Arc<Container>) -> Result<v1::ContainerStats> {
        self.blocking(move |inner| inner.measure_container(&container)).await
    }

    fn measure_container(&self, container: &Container) -> Result<v1::ContainerStats> {
        let record = lock(&container.record).clone();
        let config = record.config.unwrap_or_default();
        let group = self.cgroups.open(&record.cgroup)?;
        let stats = group.stats();
        let at = shim::now();
        let upper = self.config.data_dir.join("containers").join(&container.id).join("upper");
        let (used, inodes) = images::usage(&upper);
        Ok(v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: record.id,
                metadata: config.metadata,
                labels: config.labels,
                annotations: config.annotations,
            }),
            cpu: Some(cpu(&group, &stats, at)),
            memory: Some(memory(&group, &stats, at)),
            writable_layer: Some(v1::FilesystemUsage {
                timestamp: at,
                fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.config.data_dir.display().to_string() }),
                used_bytes: value(Some(used)),
                inodes_used: value(Some(inodes)),
            }),
            swap: None,
            io: io(&group, at),
        })
    }

    pub async fn list_container_stats(self: &Arc<Self>, filter: Option<v1::ContainerStatsFilter>) -> Result<Vec<v1::ContainerStats>> {
        let filter = filter.unwrap_or_default();
        let listed = self.list_containers(Some(v1::ContainerFilter {
            id: filter.id,
            pod_sandbox_id: filter.pod_sandbox_id,
            label_selector: filter.label_selector,
            state: None,
        }));
        self.blocking(move |inner| {
            let found = listed.iter().filter_map(|c| inner.container(&c.id).ok());
            Ok(found.filter_map(|c| inner.measure_container(&c).ok()).collect())
        })
        .await
    }

    pub async fn sandbox_stats(self: &Arc<Self>, sandbox: Arc<Sandbox>) -> Result<v1::PodSandboxStats> {
        self.blocking(move |inner| inner.measure_sandbox(&sandbox)).await
    }

    fn measure_sandbox(&self, sandbox: &Sandbox) -> Result<v1::PodSandboxStats> {
        let record = lock(&sandbox.record).clone();
        let config = record.config.unwrap_or_default();
        let group = self.cgroups.open(&record.cgroup)?;
        let stats = group.stats();
        let at = shim::now();
        let containers: Vec<v1::ContainerStats> =
            self.containers_of(&sandbox.id).iter().filter_map(|c| self.measure_container(c).ok()).collect();
        let processes = containers.iter().filter_map(|c| c.attributes.as_ref()).filter_map(|a| self.container(&a.id).ok());
        let processes = processes.filter_map(|c| self.cgroups.open(&lock(&c.record).cgroup).ok()?.stats().processes).sum();
        let linux = v1::LinuxPodSandboxStats {
            cpu: Some(cpu(&group, &stats, at)),
            memory: Some(memory(&group, &stats, at)),
            network: network_usage(sandbox, at),
            process: Some(v1::ProcessUsage { timestamp: at, process_count: value(Some(processes)) }),
            containers,
            io: io(&group, at),
        };
        Ok(v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: record.id,
                metadata: config.metadata,
                labels: config.labels,
                annotations: config.annotations,
            }),
            linux: Some(linux),
            windows: None,
        })
    }

    pub async fn list_sandbox_stats(self: &Arc<Self>, filter: Option<v1::PodSandboxStatsFilter>) -> Result<Vec<v1::PodSandboxStats>> {
        let filter = filter.unwrap_or_default();
        let listed = self.list_sandboxes(Some(v1::PodSandboxFilter { id: filter.id, label_selector: filter.label_selector, state: None }));
        self.blocking(move |inner| {
            let found = listed.iter().filter_map(|s| inner.sandbox(&s.id).ok());
            Ok(found.filter_map(|s| inner.measure_sandbox(&s).ok()).collect())
        })
        .await
    }
}

/// Counters of the pod's `eth0`, through any of its processes' view of the network.
fn network_usage(sandbox: &Sandbox, timestamp: i64) -> Option<v1::NetworkUsage> {
    let pid = lock(&sandbox.connection).as_ref()?.peer_pid()?;
    let interfaces = parse_net_dev(&std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("net/dev")).ok()?);
    let default_interface = interfaces.iter().find(|i| i.name == "eth0").cloned();
    Some(v1::NetworkUsage { timestamp, default_interface, interfaces })
}

fn parse_net_dev(text: &str) -> Vec<v1::NetworkInterfaceUsage> {
    let line = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_whitespace().map_while(|c| c.parse().ok()).collect();
        let counter = |index: usize| value(counters.get(index).copied());
        Some(v1::NetworkInterfaceUsage {
            name: name.trim().to_owned(),
            rx_bytes: counter(0),
            rx_errors: counter(2),
            tx_bytes: counter(8),
            tx_errors: counter(10),
        })
    };
    text.lines().skip(2).filter_map(line).filter(|i| i.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_counters_are_found_in_their_columns() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 0 0 0 0 0 20 4 5 0 0 0 0 0\n";
        let found = parse_net_dev(text);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].rx_bytes, found[0].rx_errors, found[0].tx_bytes, found[0].tx_errors),
            (value(Some(10)), value(Some(3)), value(Some(20)), value(Some(5)))
        );
    }
}
