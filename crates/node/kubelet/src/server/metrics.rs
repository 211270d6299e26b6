//! `/metrics`, `/metrics/resource`, `/metrics/cadvisor` and `/metrics/probes` under upstream's names, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;

use cri::v1;
use http::{Response, StatusCode};

use super::stats::{Usage, value};
use super::{Body, Server, full};

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Families in order of their first sample; each is written with its type once.
#[derive(Default)]
struct Text(BTreeMap<&'static str, (&'static str, &'static str, String)>);

impl Text {
    fn add(&mut self, name: &'static str, kind: &'static str, help: &'static str, labels: &[(&str, &str)], value: f64, at: Option<i64>) {
        let (_, _, lines) = self.0.entry(name).or_insert_with(|| (kind, help, String::new()));
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let time = at.map(|at| format!(" {}", at / 1_000_000)).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{name}{labels} {value}{time}");
    }
    fn finish(self) -> String {
        let family =
            |(name, (kind, help, lines)): (&str, (&str, &str, String))| format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}");
        self.0.into_iter().map(family).collect()
    }
}

fn answer(text: String) -> Response<Body> {
    full(StatusCode::OK, CONTENT_TYPE, text)
}

/// The process's metrics and the kubelet's counts.
pub(super) async fn kubelet(server: &Server) -> Response<Body> {
    let mut text = Text::default();
    let containers = server.runtime.list_containers(v1::ListContainersRequest::default()).await.map(|answer| answer.containers);
    for (name, state) in [
        ("created", v1::ContainerState::ContainerCreated),
        ("running", v1::ContainerState::ContainerRunning),
        ("exited", v1::ContainerState::ContainerExited),
    ] {
        let count = containers.iter().flatten().filter(|container| container.state == state as i32).count();
        text.add(
            "kubelet_running_containers",
            "gauge",
            "Number of containers currently running",
            &[("container_state", name)],
            count as f64,
            None,
        );
    }
    let sandboxes =
        server.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.map(|answer| answer.items).unwrap_or_default();
    let ready = sandboxes.iter().filter(|sandbox| sandbox.state == v1::PodSandboxState::SandboxReady as i32).count();
    text.add("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox", &[], ready as f64, None);
    text.add(
        "kubelet_desired_pods",
        "gauge",
        "The number of pods the kubelet is being instructed to run",
        &[("static", "")],
        server.pods.list().len() as f64,
        None,
    );
    text.add("kubelet_node_name", "gauge", "The node's name. The count is always 1.", &[("node", &server.node_name)], 1.0, None);
    volumes(&mut text, &server.pods.volumes().await);
    answer(telemetry::exposition() + &text.finish())
}

/// Claims alone, as upstream: other volumes are in the summary.
fn volumes(text: &mut Text, all: &[crate::storage::usage::Usage]) {
    let mut seen = std::collections::BTreeSet::new();
    for usage in all {
        let Some(claim) = usage.claim.as_deref().filter(|claim| seen.insert((usage.namespace.as_str(), *claim))) else { continue };
        let labels = [("namespace", usage.namespace.as_str()), ("persistentvolumeclaim", claim)];
        for (name, help, value) in [
            ("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", usage.bytes.capacity),
            ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", usage.bytes.available),
            ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", usage.bytes.used),
            ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", usage.inodes.capacity),
            ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", usage.inodes.available),
            ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", usage.inodes.used),
        ] {
            text.add(name, "gauge", help, &labels, value as f64, None);
        }
    }
}

/// What the resource metrics pipeline (metrics-server) reads.
pub(super) async fn resource(server: &Server) -> Response<Body> {
    let sandboxes = match server.runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await {
        Ok(answer) => answer.stats,
        Err(error) => return super::routes::failed(&error),
    };
    let mut text = Text::default();
    let (usage, now) = (Usage::of_node(), now());
    let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
    let cpu_help = "Cumulative cpu time consumed by the node in core-seconds";
    text.add("node_cpu_usage_seconds_total", "counter", cpu_help, &[], seconds(usage.cpu_nanoseconds), Some(now));
    let working = usage.memory_total.saturating_sub(usage.memory_available);
    text.add("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes", &[], working as f64, Some(now));
    text.add(
        "node_swap_usage_bytes",
        "gauge",
        "Current swap usage of the node in bytes. Reported only on non-windows systems",
        &[],
        usage.swap_total.saturating_sub(usage.swap_free) as f64,
        Some(now),
    );
    for stats in &sandboxes {
        let (Some(pod), Some(linux)) = (stats.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref()), &stats.linux) else {
            continue;
        };
        let labels = [("namespace", pod.namespace.as_str()), ("pod", pod.name.as_str())];
        if let Some((at, used)) = cpu(linux.cpu.as_ref()) {
            text.add(
                "pod_cpu_usage_seconds_total",
                "counter",
                "Cumulative cpu time consumed by the pod in core-seconds",
                &labels,
                seconds(used),
                Some(at),
            );
        }
        if let Some((at, used)) = memory(linux.memory.as_ref()) {
            text.add("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes", &labels, used as f64, Some(at));
        }
        for container in &linux.containers {
            let Some(name) =
                container.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref()).map(|metadata| metadata.name.as_str())
            else {
                continue;
            };
            let labels = [("container", name), ("namespace", pod.namespace.as_str()), ("pod", pod.name.as_str())];
            if let Some((at, used)) = cpu(container.cpu.as_ref()) {
                text.add(
                    "container_cpu_usage_seconds_total",
                    "counter",
                    "Cumulative cpu time consumed by the container in core-seconds",
                    &labels,
                    seconds(used),
                    Some(at),
                );
            }
            if let Some((at, used)) = memory(container.memory.as_ref()) {
                text.add(
                    "container_memory_working_set_bytes",
                    "gauge",
                    "Current working set of the container in bytes",
                    &labels,
                    used as f64,
                    Some(at),
                );
            }
        }
    }
    start_times(server, &mut text);
    text.add("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise", &[], 0.0, None);
    answer(text.finish())
}

/// Start times of running containers, as the pods' statuses tell them.
fn start_times(server: &Server, text: &mut Text) {
    let help = "Start time of the container since unix epoch in seconds";
    for pod in server.pods.list() {
        let status = pod.status.as_ref();
        let lists = [
            status.and_then(|status| status.container_statuses.as_ref()),
            status.and_then(|status| status.init_container_statuses.as_ref()),
        ];
        for container in lists.into_iter().flatten().flatten() {
            let started = container.state.as_ref().and_then(|state| state.running.as_ref()).and_then(|running| running.started_at.as_ref());
            let Some(started) = started else { continue };
            let labels = [
                ("container", container.name.as_str()),
                ("namespace", crate::podspec::namespace(&pod)),
                ("pod", crate::podspec::name(&pod)),
            ];
            text.add("container_start_time_seconds", "gauge", help, &labels, started.0.as_second() as f64, None);
        }
    }
}

/// What dashboards read of containers, under the names of cAdvisor.
pub(super) async fn cadvisor(server: &Server) -> Response<Body> {
    let sandboxes = match server.runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await {
        Ok(answer) => answer.stats,
        Err(error) => return super::routes::failed(&error),
    };
    let mut text = Text::default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    text.add("machine_cpu_cores", "gauge", "Number of logical CPU cores.", &[], cores as f64, None);
    text.add(
        "machine_memory_bytes",
        "gauge",
        "Amount of memory installed on the machine.",
        &[],
        Usage::of_node().memory_total as f64,
        None,
    );
    for stats in &sandboxes {
        let (Some(pod), Some(linux)) = (stats.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref()), &stats.linux) else {
            continue;
        };
        let id = stats.attributes.as_ref().map(|attributes| format!("/pods/{}", attributes.id)).unwrap_or_default();
        let of_pod = |name: &'static str, image: &'static str| {
            [("container", name), ("id", id.as_str()), ("image", image), ("namespace", pod.namespace.as_str()), ("pod", pod.name.as_str())]
        };
        group(&mut text, &of_pod("", ""), linux.cpu.as_ref(), linux.memory.as_ref());
        for interface in linux.network.iter().flat_map(|network| &network.interfaces) {
            let labels = [
                ("id", id.as_str()),
                ("interface", interface.name.as_str()),
                ("namespace", pod.namespace.as_str()),
                ("pod", pod.name.as_str()),
            ];
            for (name, help, bytes) in [
                ("container_network_receive_bytes_total", "Cumulative count of bytes received", &interface.rx_bytes),
                ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", &interface.tx_bytes),
                ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", &interface.rx_errors),
                (
                    "container_network_transmit_errors_total",
                    "Cumulative count of errors encountered while transmitting",
                    &interface.tx_errors,
                ),
            ] {
                text.add(name, "counter", help, &labels, value(bytes).unwrap_or(0) as f64, None);
            }
        }
        for container in &linux.containers {
            let Some(attributes) = &container.attributes else { continue };
            let Some(metadata) = &attributes.metadata else { continue };
            let labels = [
                ("container", metadata.name.as_str()),
                ("id", attributes.id.as_str()),
                ("name", attributes.id.as_str()),
                ("namespace", pod.namespace.as_str()),
                ("pod", pod.name.as_str()),
            ];
            group(&mut text, &labels, container.cpu.as_ref(), container.memory.as_ref());
            stalls(&mut text, &labels, container);
            if let Some(used) = container.writable_layer.as_ref().and_then(|layer| value(&layer.used_bytes)) {
                text.add(
                    "container_fs_usage_bytes",
                    "gauge",
                    "Number of bytes that are consumed by the container on this filesystem.",
                    &labels,
                    used as f64,
                    None,
                );
            }
        }
    }
    start_times(server, &mut text);
    answer(text.finish())
}

fn group(text: &mut Text, labels: &[(&str, &str)], cpu_usage: Option<&v1::CpuUsage>, memory_usage: Option<&v1::MemoryUsage>) {
    if let Some((at, used)) = cpu(cpu_usage) {
        text.add(
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed in seconds.",
            labels,
            used as f64 / 1e9,
            Some(at),
        );
    }
    let Some(memory) = memory_usage else { return };
    for (name, help, bytes) in [
        ("container_memory_working_set_bytes", "Current working set in bytes.", &memory.working_set_bytes),
        (
            "container_memory_usage_bytes",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            &memory.usage_bytes,
        ),
        ("container_memory_rss", "Size of RSS in bytes.", &memory.rss_bytes),
    ] {
        if let Some(bytes) = value(bytes) {
            text.add(name, "gauge", help, labels, bytes as f64, Some(memory.timestamp));
        }
    }
}

/// Pressure stall information (KEP-4205).
fn stalls(text: &mut Text, labels: &[(&str, &str)], container: &v1::ContainerStats) {
    let psi = |usage: Option<Option<v1::PsiStats>>| usage.flatten().unwrap_or_default();
    let cpu = psi(container.cpu.as_ref().map(|usage| usage.psi));
    let memory = psi(container.memory.as_ref().map(|usage| usage.psi));
    let io = psi(container.io.as_ref().map(|usage| usage.psi));
    for (name, help, data) in [
        (
            "container_pressure_cpu_stalled_seconds_total",
            "Total time duration no tasks in the container could make progress due to CPU congestion.",
            cpu.full,
        ),
        (
            "container_pressure_cpu_waiting_seconds_total",
            "Total time duration tasks in the container have waited due to CPU congestion.",
            cpu.some,
        ),
        (
            "container_pressure_io_stalled_seconds_total",
            "Total time duration no tasks in the container could make progress due to IO congestion.",
            io.full,
        ),
        (
            "container_pressure_io_waiting_seconds_total",
            "Total time duration tasks in the container have waited due to IO congestion.",
            io.some,
        ),
        (
            "container_pressure_memory_stalled_seconds_total",
            "Total time duration no tasks in the container could make progress due to memory congestion.",
            memory.full,
        ),
        (
            "container_pressure_memory_waiting_seconds_total",
            "Total time duration tasks in the container have waited due to memory congestion.",
            memory.some,
        ),
    ] {
        if let Some(data) = data {
            text.add(name, "counter", help, labels, data.total as f64 / 1e6, None);
        }
    }
}

/// Results of probes since the kubelet started.
pub(super) fn probes(server: &Server) -> Response<Body> {
    let mut text = Text::default();
    let help = "Cumulative number of a liveness, readiness or startup probe for a container by result.";
    for ((namespace, pod, uid, container, kind), counts) in server.pods.probe_counts() {
        for (result, count) in [("successful", counts.0), ("failed", counts.1)] {
            let labels = [
                ("container", container.as_str()),
                ("namespace", namespace.as_str()),
                ("pod", pod.as_str()),
                ("pod_uid", uid.as_str()),
                ("probe_type", kind.as_str()),
                ("result", result),
            ];
            if count > 0 {
                text.add("prober_probe_total", "counter", help, &labels, count as f64, None);
            }
        }
    }
    answer(text.finish())
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

fn cpu(usage: Option<&v1::CpuUsage>) -> Option<(i64, u64)> {
    let usage = usage?;
    Some((usage.timestamp, value(&usage.usage_core_nano_seconds)?))
}

fn memory(usage: Option<&v1::MemoryUsage>) -> Option<(i64, u64)> {
    let usage = usage?;
    Some((usage.timestamp, value(&usage.working_set_bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_family_stand_together_below_one_type() {
        let mut text = Text::default();
        text.add("b", "gauge", "help b", &[("pod", "x\"y")], 1.0, None);
        text.add("a", "counter", "help a", &[], 0.5, Some(1_500_000_000));
        text.add("b", "gauge", "help b", &[("pod", "z")], 2.0, None);
        assert_eq!(
            text.finish(),
            "# HELP a help a\n# TYPE a counter\na 0.5 1500\n# HELP b help b\n# TYPE b gauge\nb{pod=\"x\\\"y\"} 1\nb{pod=\"z\"} 2\n"
        );
    }
}
