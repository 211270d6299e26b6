//! `/stats/summary` (`k8s.io/kubelet/pkg/apis/stats/v1alpha1`): what node, pods and containers use.

use std::path::Path;

use cri::v1;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Body, Server};
use http::Response;

/// The whole summary.
pub(super) async fn summary(server: &Server) -> Response<Body> {
    let sandboxes = match server.runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await {
        Ok(answer) => answer.stats,
        Err(error) => return super::routes::failed(&error),
    };
    let (name, data, images) = (server.node_name.clone(), server.data_directory.clone(), server.image_directory.clone());
    let node = tokio::task::spawn_blocking(move || node(&name, &data, &images)).await.unwrap_or(Value::Null);
    let volumes = server.pods.volumes().await;
    let pods: Vec<Value> = sandboxes.iter().filter_map(|stats| pod(stats, &volumes)).collect();
    super::json(&json!({ "node": node, "pods": pods }))
}

fn node(name: &str, data: &Path, images: &Path) -> Value {
    let now = meta::time::seconds(Timestamp::now());
    let usage = Usage::of_node();
    json!({
        "nodeName": name,
        "startTime": meta::time::seconds(usage.booted_at),
        "cpu": {"time": now, "usageCoreNanoSeconds": usage.cpu_nanoseconds, "psi": pressure("cpu")},
        "memory": {
            "time": now, "availableBytes": usage.memory_available, "usageBytes": usage.memory_total - usage.memory_free,
            "workingSetBytes": usage.memory_total.saturating_sub(usage.memory_available), "rssBytes": usage.memory_anonymous, "psi": pressure("memory"),
        },
        "swap": {"time": now, "swapAvailableBytes": usage.swap_free, "swapUsageBytes": usage.swap_total.saturating_sub(usage.swap_free)},
        "io": {"time": now, "psi": pressure("io")},
        "fs": file_system(data, &now),
        "runtime": {"imageFs": file_system(images, &now), "containerFs": file_system(images, &now)},
        "rlimit": {"time": now, "maxpid": usage.processes_max, "curproc": usage.processes},
    })
}

/// The machine's own counters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub cpu_nanoseconds: u64,
    pub memory_total: u64,
    pub memory_available: u64,
    memory_free: u64,
    memory_anonymous: u64,
    pub swap_total: u64,
    pub swap_free: u64,
    processes: u64,
    processes_max: u64,
    pub booted_at: Timestamp,
}

impl Usage {
    pub fn of_node() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (stat, memory, load) = (read("/proc/stat"), read("/proc/meminfo"), read("/proc/loadavg"));
        let bytes = |key: &str| {
            let line = memory.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        // user nice system idle iowait irq softirq steal, in hundredths of a second; idle and iowait are no use.
        let ticks: Vec<u64> =
            stat.lines().next().unwrap_or_default().split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
        let busy: u64 = ticks.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, ticks)| ticks).sum();
        let booted = stat.lines().find_map(|line| line.strip_prefix("btime ")).and_then(|text| text.trim().parse::<i64>().ok());
        Self {
            cpu_nanoseconds: busy.saturating_mul(10_000_000),
            memory_total: bytes("MemTotal:"),
            memory_available: bytes("MemAvailable:"),
            memory_free: bytes("MemFree:"),
            memory_anonymous: bytes("AnonPages:"),
            swap_total: bytes("SwapTotal:"),
            swap_free: bytes("SwapFree:"),
            processes: load.split_whitespace().nth(3).and_then(|pair| pair.split_once('/')?.1.parse().ok()).unwrap_or(0),
            processes_max: read("/proc/sys/kernel/pid_max").trim().parse().unwrap_or(0),
            booted_at: booted.and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or_default(),
        }
    }
}

/// Pressure stall information of the machine (KEP-4205); `null` where the kernel has none.
fn pressure(resource: &str) -> Value {
    let Ok(text) = std::fs::read_to_string(Path::new("/proc/pressure").join(resource)) else { return Value::Null };
    let mut all = Map::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(kind) = words.next() else { continue };
        let values: Map<String, Value> = words
            .filter_map(|word| {
                let (key, value) = word.split_once('=')?;
                let value = if key == "total" { json!(value.parse::<u64>().ok()?) } else { json!(value.parse::<f64>().ok()?) };
                Some((key.to_owned(), value))
            })
            .collect();
        all.insert(kind.into(), Value::Object(values));
    }
    Value::Object(all)
}

fn file_system(path: &Path, now: &str) -> Value {
    let Ok(disk) = rustix::fs::statvfs(path) else { return json!({"time": now}) };
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    json!({
        "time": now, "availableBytes": bytes(disk.f_bavail), "capacityBytes": bytes(disk.f_blocks),
        "usedBytes": bytes(disk.f_blocks.saturating_sub(disk.f_bfree)),
        "inodesFree": disk.f_ffree, "inodes": disk.f_files, "inodesUsed": disk.f_files.saturating_sub(disk.f_ffree),
    })
}

fn volume(usage: &crate::storage::usage::Usage, now: &str) -> Value {
    let mut shown = json!({
        "time": now, "name": usage.volume,
        "availableBytes": usage.bytes.available, "capacityBytes": usage.bytes.capacity, "usedBytes": usage.bytes.used,
        "inodesFree": usage.inodes.available, "inodes": usage.inodes.capacity, "inodesUsed": usage.inodes.used,
    });
    if let Some(claim) = &usage.claim {
        shown["pvcRef"] = json!({"name": claim, "namespace": usage.namespace});
    }
    shown
}

fn pod(stats: &v1::PodSandboxStats, volumes: &[crate::storage::usage::Usage]) -> Option<Value> {
    let attributes = stats.attributes.as_ref()?;
    let metadata = attributes.metadata.as_ref()?;
    let linux = stats.linux.as_ref()?;
    let containers: Vec<Value> = linux.containers.iter().filter_map(container).collect();
    let processes = linux.process.as_ref().and_then(|process| value(&process.process_count));
    let layers: u64 = linux.containers.iter().filter_map(|c| value(&c.writable_layer.as_ref()?.used_bytes)).sum();
    let now = meta::time::seconds(Timestamp::now());
    let volumes: Vec<Value> = volumes.iter().filter(|usage| usage.pod_uid == metadata.uid).map(|usage| volume(usage, &now)).collect();
    Some(json!({
        "volume": volumes,
        "podRef": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
        "cpu": cpu(linux.cpu.as_ref()),
        "memory": memory(linux.memory.as_ref()),
        "io": io(linux.io.as_ref()),
        "network": network(linux.network.as_ref()),
        "process_stats": {"process_count": processes},
        "ephemeral-storage": {"usedBytes": layers},
        "containers": containers,
    }))
}

fn container(stats: &v1::ContainerStats) -> Option<Value> {
    let name = &stats.attributes.as_ref()?.metadata.as_ref()?.name;
    let layer = stats.writable_layer.as_ref();
    Some(json!({
        "name": name,
        "cpu": cpu(stats.cpu.as_ref()),
        "memory": memory(stats.memory.as_ref()),
        "io": io(stats.io.as_ref()),
        "rootfs": layer.map(|layer| json!({"time": at(layer.timestamp), "usedBytes": value(&layer.used_bytes), "inodesUsed": value(&layer.inodes_used)})),
    }))
}

fn network(usage: Option<&v1::NetworkUsage>) -> Value {
    let Some(usage) = usage else { return Value::Null };
    let interface = |interface: &v1::NetworkInterfaceUsage| {
        json!({
            "name": interface.name, "rxBytes": value(&interface.rx_bytes), "rxErrors": value(&interface.rx_errors),
            "txBytes": value(&interface.tx_bytes), "txErrors": value(&interface.tx_errors),
        })
    };
    let mut shown = usage.default_interface.as_ref().map_or_else(|| json!({}), interface);
    shown["time"] = at(usage.timestamp).into();
    shown["interfaces"] = usage.interfaces.iter().map(interface).collect();
    shown
}

fn at(nanoseconds: i64) -> String {
    let time = Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default();
    meta::time::seconds(time)
}

pub(super) fn value(value: &Option<v1::UInt64Value>) -> Option<u64> {
    value.as_ref().map(|value| value.value)
}

fn cpu(usage: Option<&v1::CpuUsage>) -> Value {
    let Some(usage) = usage else { return json!({}) };
    json!({
        "time": at(usage.timestamp), "usageNanoCores": value(&usage.usage_nano_cores), "usageCoreNanoSeconds": value(&usage.usage_core_nano_seconds),
        "psi": psi(usage.psi.as_ref()),
    })
}

fn memory(usage: Option<&v1::MemoryUsage>) -> Value {
    let Some(usage) = usage else { return json!({}) };
    json!({
        "time": at(usage.timestamp), "availableBytes": value(&usage.available_bytes), "workingSetBytes": value(&usage.working_set_bytes),
        "usageBytes": value(&usage.usage_bytes), "rssBytes": value(&usage.rss_bytes),
        "pageFaults": value(&usage.page_faults), "majorPageFaults": value(&usage.major_page_faults),
        "psi": psi(usage.psi.as_ref()),
    })
}

fn io(usage: Option<&v1::IoUsage>) -> Value {
    usage.map_or(Value::Null, |usage| json!({"time": at(usage.timestamp), "psi": psi(usage.psi.as_ref())}))
}

/// `null` where kernel or runtime tell none.
fn psi(stalls: Option<&v1::PsiStats>) -> Value {
    let data = |data: &Option<v1::PsiData>| {
        let data = data.unwrap_or_default();
        json!({"total": data.total, "avg10": data.avg10, "avg60": data.avg60, "avg300": data.avg300})
    };
    stalls.map_or(Value::Null, |stalls| json!({"full": data(&stalls.full), "some": data(&stalls.some)}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_tells_what_it_has_and_uses() {
        let node = node("n", Path::new("/"), Path::new("/"));
        let number = |path: &str| node.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {node}"));
        for path in [
            "/cpu/usageCoreNanoSeconds",
            "/memory/workingSetBytes",
            "/memory/availableBytes",
            "/fs/capacityBytes",
            "/runtime/imageFs/availableBytes",
            "/rlimit/maxpid",
        ] {
            assert!(number(path) > 0, "{path}");
        }
        assert_eq!(node["nodeName"], "n");
    }
}
