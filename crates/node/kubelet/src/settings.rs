//! Upstream's `KubeletConfiguration` (`kubelet.config.k8s.io/v1beta1`): what this kubelet takes from such a file.
//!
//! A field that upstream knows and that does not concern this kubelet is taken and left alone; one that asks for something that is not
//! there is an error, and so is a field that nobody knows.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use meta::quantity::Quantity;
use serde::Deserialize;
use serde_json::Value;

use crate::config::Config;
use crate::evict::Threshold;
use crate::placement::Alignment;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{path}: {why}")]
    Invalid { path: String, why: String },
}

/// The fields that count here, and nothing else of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Fields {
    static_pod_path: Option<std::path::PathBuf>,
    max_pods: Option<u32>,
    pod_pids_limit: Option<i64>,
    cluster_domain: Option<String>,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Option<Vec<std::net::IpAddr>>,
    resolv_conf: Option<std::path::PathBuf>,
    container_log_max_size: Option<String>,
    container_log_max_files: Option<usize>,
    container_log_monitor_interval: Option<String>,
    node_lease_duration_seconds: Option<u64>,
    node_status_report_frequency: Option<String>,
    allowed_unsafe_sysctls: Option<Vec<String>>,
    seccomp_default: Option<bool>,
    system_reserved: Option<BTreeMap<String, String>>,
    kube_reserved: Option<BTreeMap<String, String>>,
    eviction_hard: Option<BTreeMap<String, String>>,
    eviction_soft: Option<BTreeMap<String, String>>,
    eviction_soft_grace_period: Option<BTreeMap<String, String>>,
    eviction_max_pod_grace_period: Option<i64>,
    eviction_pressure_transition_period: Option<String>,
    #[serde(rename = "imageMinimumGCAge")]
    image_minimum_gc_age_upstream: Option<String>,
    #[serde(rename = "imageMaximumGCAge")]
    image_maximum_gc_age: Option<String>,
    image_pull_credentials_verification_policy: Option<String>,
    preloaded_images_verification_allowlist: Option<Vec<String>>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<u8>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: Option<u8>,
    register_with_taints: Option<Vec<Taint>>,
    memory_swap: Option<MemorySwap>,
    #[serde(rename = "singleProcessOOMKill")]
    single_process_oom_kill: Option<bool>,
    user_namespaces: Option<UserNamespaces>,
    container_runtime_endpoint: Option<String>,
    cpu_manager_policy: Option<String>,
    cpu_manager_policy_options: Option<BTreeMap<String, String>>,
    #[serde(rename = "reservedSystemCPUs")]
    reserved_system_cpus: Option<String>,
    memory_manager_policy: Option<String>,
    reserved_memory: Option<Vec<ReservedMemory>>,
    topology_manager_policy: Option<String>,
    topology_manager_scope: Option<String>,
    enforce_node_allocatable: Option<Vec<String>>,
    system_reserved_cgroup: Option<String>,
    kube_reserved_cgroup: Option<String>,
    shutdown_grace_period: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MemorySwap {
    swap_behavior: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ReservedMemory {
    numa_node: u32,
    limits: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct UserNamespaces {
    ids_per_pod: Option<i64>,
}

/// Upstream's other fields: known, and without effect here.
const KNOWN: &[&str] = &[
    "apiVersion",
    "kind",
    "enableServer",
    "podLogsDir",
    "syncFrequency",
    "fileCheckFrequency",
    "httpCheckFrequency",
    "staticPodURL",
    "staticPodURLHeader",
    "address",
    "port",
    "readOnlyPort",
    "tlsCertFile",
    "tlsPrivateKeyFile",
    "tlsCipherSuites",
    "tlsMinVersion",
    "tlsCurvePreferences",
    "rotateCertificates",
    "serverTLSBootstrap",
    "authentication",
    "authorization",
    "registryPullQPS",
    "registryBurst",
    "eventRecordQPS",
    "eventBurst",
    "enableDebuggingHandlers",
    "enableContentionProfiling",
    "healthzPort",
    "healthzBindAddress",
    "oomScoreAdj",
    "streamingConnectionIdleTimeout",
    "nodeStatusUpdateFrequency",
    "volumeStatsAggPeriod",
    "kubeletCgroups",
    "systemCgroups",
    "cgroupRoot",
    "cgroupsPerQOS",
    "cgroupDriver",
    "cpuManagerReconcilePeriod",
    "topologyManagerPolicyOptions",
    "qosReserved",
    "runtimeRequestTimeout",
    "hairpinMode",
    "podCIDR",
    "runOnce",
    "cpuCFSQuota",
    "cpuCFSQuotaPeriod",
    "nodeStatusMaxImages",
    "maxOpenFiles",
    "contentType",
    "kubeAPIQPS",
    "kubeAPIBurst",
    "serializeImagePulls",
    "maxParallelImagePulls",
    "evictionMinimumReclaim",
    "mergeDefaultEvictionSettings",
    "podsPerCore",
    "enableControllerAttachDetach",
    "protectKernelDefaults",
    "makeIPTablesUtilChains",
    "iptablesMasqueradeBit",
    "iptablesDropBit",
    "featureGates",
    "failSwapOn",
    "containerLogMaxWorkers",
    "configMapAndSecretChangeDetectionStrategy",
    "volumePluginDir",
    "providerID",
    "kernelMemcgNotification",
    "logging",
    "enableSystemLogHandler",
    "enableSystemLogQuery",
    "shutdownGracePeriodCriticalPods",
    "shutdownGracePeriodByPodPriority",
    "crashLoopBackOff",
    "enableProfilingHandler",
    "enableDebugFlagsHandler",
    "memoryThrottlingFactor",
    "registerNode",
    "tracing",
    "localStorageCapacityIsolation",
    "imageServiceEndpoint",
    "showHiddenMetricsForVersion",
    "memoryReservationPolicy",
];

/// What a file changes outside of [`Config`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// The socket of another runtime.
    pub runtime_endpoint: Option<String>,
}

/// Reads `path` into `config`.
pub fn read(path: &Path, config: &mut Config) -> Result<Elsewhere, Error> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: shown.clone(), source })?;
    apply(&text, config).map_err(|why| Error::Invalid { path: shown, why })
}

/// `Err` is a sentence that names the field.
pub fn apply(text: &str, config: &mut Config) -> Result<Elsewhere, String> {
    let value: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if value["kind"] != "KubeletConfiguration" || value["apiVersion"] != "kubelet.config.k8s.io/v1beta1" {
        return Err("a kubelet.config.k8s.io/v1beta1 KubeletConfiguration was expected".into());
    }
    let fields: Fields = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    let own = own_names();
    if let Some(unknown) =
        value.as_object().and_then(|object| object.keys().find(|key| !KNOWN.contains(&key.as_str()) && !own.contains(&key.as_str())))
    {
        return Err(format!("unknown field {unknown:?}"));
    }
    for (name, value, fine) in [("shutdownGracePeriod", &fields.shutdown_grace_period, "0s")] {
        if let Some(other) = value.as_deref().filter(|value| !value.is_empty() && !value.eq_ignore_ascii_case(fine)) {
            return Err(format!("{name}: {other:?} is not supported by this kubelet"));
        }
    }
    plain(&fields, config)?;
    reserved(&fields, config)?;
    placement(&fields, config)?;
    eviction(&fields, config)?;
    config.shown = value;
    Ok(Elsewhere { runtime_endpoint: fields.container_runtime_endpoint.filter(|endpoint| !endpoint.is_empty()) })
}

fn own_names() -> &'static [&'static str] {
    &[
        "staticPodPath",
        "maxPods",
        "podPidsLimit",
        "singleProcessOOMKill",
        "clusterDomain",
        "clusterDNS",
        "resolvConf",
        "containerLogMaxSize",
        "containerLogMaxFiles",
        "containerLogMonitorInterval",
        "nodeLeaseDurationSeconds",
        "nodeStatusReportFrequency",
        "allowedUnsafeSysctls",
        "seccompDefault",
        "systemReserved",
        "kubeReserved",
        "evictionHard",
        "evictionSoft",
        "evictionSoftGracePeriod",
        "evictionMaxPodGracePeriod",
        "evictionPressureTransitionPeriod",
        "imageMinimumGCAge",
        "imageMaximumGCAge",
        "imagePullCredentialsVerificationPolicy",
        "preloadedImagesVerificationAllowlist",
        "imageGCHighThresholdPercent",
        "imageGCLowThresholdPercent",
        "registerWithTaints",
        "memorySwap",
        "userNamespaces",
        "containerRuntimeEndpoint",
        "cpuManagerPolicy",
        "cpuManagerPolicyOptions",
        "reservedSystemCPUs",
        "memoryManagerPolicy",
        "reservedMemory",
        "topologyManagerPolicy",
        "topologyManagerScope",
        "enforceNodeAllocatable",
        "systemReservedCgroup",
        "kubeReservedCgroup",
        "shutdownGracePeriod",
    ]
}

fn plain(fields: &Fields, config: &mut Config) -> Result<(), String> {
    fn set<T: Clone>(to: &mut T, from: &Option<T>) {
        if let Some(from) = from {
            to.clone_from(from);
        }
    }
    set(&mut config.pods_max, &fields.max_pods);
    set(&mut config.cluster_domain, &fields.cluster_domain);
    set(&mut config.cluster_dns, &fields.cluster_dns);
    set(&mut config.resolv_conf, &fields.resolv_conf);
    set(&mut config.log_files_max, &fields.container_log_max_files);
    set(&mut config.unsafe_sysctls, &fields.allowed_unsafe_sysctls);
    set(&mut config.seccomp_default, &fields.seccomp_default);
    set(&mut config.taints, &fields.register_with_taints);
    set(&mut config.image_gc.high_percent, &fields.image_gc_high_threshold_percent);
    set(&mut config.image_gc.low_percent, &fields.image_gc_low_threshold_percent);
    if let Some(text) = &fields.image_maximum_gc_age {
        let age = duration(text).ok_or_else(|| format!("imageMaximumGCAge: {text:?} is not a duration"))?;
        config.image_gc.age_max = Some(age).filter(|age| !age.is_zero());
    }
    if let Some(policy) = &fields.image_pull_credentials_verification_policy {
        let allowlist = fields.preloaded_images_verification_allowlist.clone().unwrap_or_default();
        let parsed = crate::pulled::Policy::parse(policy, allowlist);
        config.pulled_images = parsed.ok_or_else(|| format!("imagePullCredentialsVerificationPolicy: {policy:?} is not a policy"))?;
    }
    if config.image_gc.low_percent > config.image_gc.high_percent {
        return Err("imageGCLowThresholdPercent must not be above imageGCHighThresholdPercent".into());
    }
    if let Some(path) = fields.static_pod_path.clone() {
        config.static_pods = Some(path).filter(|path| !path.as_os_str().is_empty());
    }
    if let Some(limit) = fields.pod_pids_limit {
        config.pod_pids_max = u64::try_from(limit).ok().filter(|limit| *limit > 0);
    }
    if let Some(size) = &fields.container_log_max_size {
        let bytes = Quantity::parse(size).ok().and_then(|size| u64::try_from(size.value()).ok()).filter(|bytes| *bytes > 0);
        config.log_bytes_max = bytes.ok_or_else(|| format!("containerLogMaxSize: {size:?} is not an amount of bytes"))?;
    }
    if let Some(seconds) = fields.node_lease_duration_seconds {
        config.lease_duration = Duration::from_secs(seconds);
        // Upstream renews four times in the lease's life.
        config.lease_interval = Duration::from_secs((seconds / 4).max(1));
    }
    for (name, value, to) in [
        ("containerLogMonitorInterval", &fields.container_log_monitor_interval, &mut config.log_interval),
        ("nodeStatusReportFrequency", &fields.node_status_report_frequency, &mut config.status_interval),
        ("imageMinimumGCAge", &fields.image_minimum_gc_age_upstream, &mut config.image_gc.age_min),
    ] {
        if let Some(text) = value {
            *to = duration(text).ok_or_else(|| format!("{name}: {text:?} is not a duration"))?;
        }
    }
    if let Some(ids) = fields.user_namespaces.as_ref().and_then(|users| users.ids_per_pod) {
        let valid = u32::try_from(ids).ok().filter(|ids| *ids > 0 && ids % 65_536 == 0 && *ids <= u32::MAX / 2);
        config.user_ids_per_pod = valid.ok_or_else(|| format!("userNamespaces.idsPerPod: {ids} is not a multiple of 65536"))?;
    }
    match fields.memory_swap.as_ref().map(|swap| swap.swap_behavior.as_str()) {
        None | Some("" | "NoSwap") => config.limited_swap = false,
        Some("LimitedSwap") => config.limited_swap = true,
        Some(other) => return Err(format!("memorySwap.swapBehavior: {other:?} is neither NoSwap nor LimitedSwap")),
    }
    config.single_process_oom_kill = fields.single_process_oom_kill;
    Ok(())
}

fn reserved(fields: &Fields, config: &mut Config) -> Result<(), String> {
    for (name, amount) in [&fields.system_reserved, &fields.kube_reserved].into_iter().flatten().flatten() {
        let more = Quantity::parse(amount).map_err(|_| format!("{name}: {amount:?} is not a quantity"))?;
        let before = config.reserved.get(name).and_then(|before| Quantity::parse(before).ok());
        config.reserved.insert(name.clone(), before.map_or(more, |before| before + more).to_string());
    }
    let group = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    config.system_reserved.group = group(&fields.system_reserved_cgroup);
    config.system_reserved.amounts = fields.system_reserved.clone().unwrap_or_default();
    config.kube_reserved.group = group(&fields.kube_reserved_cgroup);
    config.kube_reserved.amounts = fields.kube_reserved.clone().unwrap_or_default();
    if let Some(enforced) = &fields.enforce_node_allocatable {
        let none = enforced.iter().any(|name| name == "none");
        config.enforced = enforced.iter().filter(|name| !none && !name.is_empty()).cloned().collect();
    }
    for name in &config.enforced {
        let group = match name.as_str() {
            "pods" => continue,
            "system-reserved" => (&config.system_reserved.group, "systemReservedCgroup"),
            "kube-reserved" => (&config.kube_reserved.group, "kubeReservedCgroup"),
            "system-reserved-compressible" | "kube-reserved-compressible" => {
                return Err(format!("enforceNodeAllocatable: {name:?} is not supported by this kubelet"));
            }
            _ => {
                return Err(format!(
                    "enforceNodeAllocatable: {name:?} is none of \"none\", \"pods\", \"system-reserved\", \"kube-reserved\""
                ));
            }
        };
        if group.0.is_none() {
            return Err(format!("enforceNodeAllocatable: {name:?} needs {} ", group.1).trim_end().to_owned());
        }
    }
    Ok(())
}

fn placement(fields: &Fields, config: &mut Config) -> Result<(), String> {
    let to = &mut config.placement;
    let unknown = |name: &str, value: &str| format!("{name}: {value:?} is not supported by this kubelet");
    to.pins_cpus = match fields.cpu_manager_policy.as_deref() {
        None | Some("" | "none") => false,
        Some("static") => true,
        Some(other) => return Err(unknown("cpuManagerPolicy", other)),
    };
    for (option, value) in fields.cpu_manager_policy_options.iter().flatten() {
        match (option.as_str(), value.as_str()) {
            ("full-pcpus-only", value) => to.whole_cores = value == "true",
            (_, "false") => {}
            _ => return Err(unknown("cpuManagerPolicyOptions", option)),
        }
    }
    if let Some(list) = &fields.reserved_system_cpus {
        to.reserved_cpus =
            crate::placement::topology::parse(list).ok_or_else(|| format!("reservedSystemCPUs: {list:?} is no list of processors"))?;
        if !to.reserved_cpus.is_empty() {
            config.reserved.insert("cpu".into(), to.reserved_cpus.len().to_string());
        }
    }
    if to.pins_cpus && to.reserved_cpus.is_empty() && !config.reserved.contains_key("cpu") {
        return Err("cpuManagerPolicy: the static policy requires systemReserved.cpu + kubeReserved.cpu or reservedSystemCPUs to be greater than zero".into());
    }
    to.pins_memory = match fields.memory_manager_policy.as_deref() {
        None | Some("" | "None") => false,
        Some("Static") => true,
        Some(other) => return Err(unknown("memoryManagerPolicy", other)),
    };
    for reserved in fields.reserved_memory.iter().flatten() {
        for (name, amount) in &reserved.limits {
            let bytes = Quantity::parse(amount).ok().and_then(|amount| u64::try_from(amount.value()).ok());
            let bytes = bytes.ok_or_else(|| format!("reservedMemory: {amount:?} is not an amount of {name}"))?;
            if name == "memory" {
                *to.reserved_memory.entry(reserved.numa_node).or_default() += bytes;
            }
        }
    }
    if to.pins_memory && to.reserved_memory.is_empty() {
        return Err("memoryManagerPolicy: the Static policy requires reservedMemory".into());
    }
    to.alignment = match fields.topology_manager_policy.as_deref() {
        None | Some("" | "none") => Alignment::None,
        Some("best-effort") => Alignment::BestEffort,
        Some("restricted") => Alignment::Restricted,
        Some("single-numa-node") => Alignment::SingleNode,
        Some(other) => return Err(unknown("topologyManagerPolicy", other)),
    };
    to.pod_scope = match fields.topology_manager_scope.as_deref() {
        None | Some("" | "container") => false,
        Some("pod") => true,
        Some(other) => return Err(unknown("topologyManagerScope", other)),
    };
    Ok(())
}

fn eviction(fields: &Fields, config: &mut Config) -> Result<(), String> {
    if fields.eviction_hard.is_some() || fields.eviction_soft.is_some() {
        let mut thresholds = Vec::new();
        for (signal, value) in fields.eviction_hard.iter().flatten() {
            thresholds.push(Threshold::parse(signal, value, None)?);
        }
        if fields.eviction_hard.is_none() {
            thresholds = config.eviction.thresholds.clone();
        }
        for (signal, value) in fields.eviction_soft.iter().flatten() {
            let grace = fields.eviction_soft_grace_period.as_ref().and_then(|all| all.get(signal)).and_then(|text| duration(text));
            let grace = grace.ok_or_else(|| format!("evictionSoftGracePeriod: {signal} has none"))?;
            thresholds.push(Threshold::parse(signal, value, Some(grace))?);
        }
        config.eviction.thresholds = thresholds;
    }
    if let Some(seconds) = fields.eviction_max_pod_grace_period {
        config.eviction.grace_seconds_max = seconds;
    }
    if let Some(text) = &fields.eviction_pressure_transition_period {
        config.eviction.transition =
            duration(text).ok_or_else(|| format!("evictionPressureTransitionPeriod: {text:?} is not a duration"))?;
    }
    Ok(())
}

/// Go's form: `1h30m`, `10s`, `500ms`, `0`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut total, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|letter: char| letter.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, after) = tail.split_at(letters);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    fn applied(text: &str) -> Result<(Config, Elsewhere), String> {
        let mut config = Config::new("node", "192.0.2.1".parse().unwrap());
        let elsewhere = apply(&format!("{HEAD}{text}"), &mut config)?;
        Ok((config, elsewhere))
    }

    #[test]
    fn an_upstream_file_sets_what_it_names() {
        let (config, elsewhere) = applied(
            "maxPods: 42\nstaticPodPath: /etc/pods\nsystemReserved: {cpu: 500m}\nkubeReserved: {cpu: 250m}\nevictionHard: {memory.available: 200Mi}\n\
             evictionSoft: {nodefs.available: 20%}\nevictionSoftGracePeriod: {nodefs.available: 1m30s}\ncontainerLogMaxSize: 1Mi\n\
             containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\nserializeImagePulls: false\nmemorySwap: {swapBehavior: LimitedSwap}\n",
        )
        .unwrap();
        assert_eq!((config.pods_max, config.static_pods.unwrap().to_str().unwrap().to_owned()), (42, "/etc/pods".into()));
        assert_eq!((config.reserved["cpu"].as_str(), config.log_bytes_max, config.limited_swap), ("750m", 1 << 20, true));
        let graces: Vec<_> = config.eviction.thresholds.iter().map(|threshold| (threshold.signal.as_str(), threshold.grace)).collect();
        assert_eq!(graces, [("memory.available", None), ("nodefs.available", Some(Duration::from_secs(90)))]);
        assert_eq!(elsewhere.runtime_endpoint.unwrap(), "unix:///run/containerd/containerd.sock");
    }

    #[test]
    fn what_cannot_be_obeyed_is_an_error_that_names_the_field() {
        for (text, word) in [
            ("maxPod: 1", "maxPod"),
            ("cpuManagerPolicy: static", "cpuManagerPolicy"),
            ("evictionHard: {disk: 1Gi}", "disk"),
            ("evictionSoft: {memory.available: 1Gi}", "evictionSoftGracePeriod"),
            ("memorySwap: {swapBehavior: Unlimited}", "Unlimited"),
            ("containerLogMaxSize: much", "containerLogMaxSize"),
        ] {
            assert!(applied(text).unwrap_err().contains(word), "{text}");
        }
        assert!(apply("kind: Pod", &mut Config::new("n", "192.0.2.1".parse().unwrap())).is_err());
    }

    #[test]
    fn durations_are_gos() {
        for (text, milliseconds) in
            [("0", Some(0)), ("1m30s", Some(90_000)), ("1.5h", Some(5_400_000)), ("20ms", Some(20)), ("5", None), ("", None)]
        {
            assert_eq!(duration(text), milliseconds.map(Duration::from_millis), "{text}");
        }
    }
}
