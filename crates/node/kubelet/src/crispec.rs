//! From a pod to what the runtime is asked for: the sandbox's and each container's CRI configuration. Pure.

use std::collections::HashMap;
use std::path::Path;

use cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use plugins::device::Allocated;

use crate::amounts;
use crate::config::Config;
use crate::env::{self, Error, Facts};
use crate::podspec::{self, Role};
use crate::users::IdRange;

pub const LABEL_POD: &str = "io.kubernetes.pod.name";
pub const LABEL_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const LABEL_UID: &str = "io.kubernetes.pod.uid";
pub const LABEL_CONTAINER: &str = "io.kubernetes.container.name";
pub const ANNOTATION_HASH: &str = "io.kubernetes.container.hash";
pub const ANNOTATION_RESTARTS: &str = "io.kubernetes.container.restartCount";
pub const ANNOTATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const ANNOTATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const ANNOTATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Where the container's own file for its last words lies on the host.
pub const ANNOTATION_MESSAGE_FILE: &str = "io.sternpost.container.terminationMessageFile";

const CPU_PERIOD_US: i64 = 100_000;

/// `<namespace>_<name>_<uid>` below the log directory.
pub fn log_directory(pod: &Pod, config: &Config) -> std::path::PathBuf {
    config.log_directory.join(format!("{}_{}_{}", podspec::namespace(pod), podspec::name(pod), podspec::uid(pod)))
}

/// The pod's host name: `hostnameOverride`, `hostname`, or its name cut to 63 characters.
pub fn hostname(pod: &Pod) -> String {
    let spec = podspec::spec(pod);
    let chosen = spec.hostname_override.as_deref().or(spec.hostname.as_deref()).filter(|name| !name.is_empty());
    let mut name: String = chosen.unwrap_or(podspec::name(pod)).chars().take(63).collect();
    while name.ends_with(['-', '.']) {
        name.pop();
    }
    name
}

/// `<hostname>.<subdomain>.<namespace>.svc.<domain>`, where the pod has a subdomain.
pub fn fully_qualified(pod: &Pod, config: &Config) -> Option<String> {
    let subdomain = podspec::spec(pod).subdomain.as_deref().filter(|name| !name.is_empty())?;
    Some(format!("{}.{subdomain}.{}.svc.{}", hostname(pod), podspec::namespace(pod), config.cluster_domain))
}

/// The pod's control group below the root, where the kubelet makes it.
pub fn pod_cgroup(pod: &Pod) -> String {
    let [guaranteed, burstable, best_effort] = pod_cgroups(podspec::uid(pod));
    match podspec::qos(pod) {
        podspec::Qos::Guaranteed => guaranteed,
        podspec::Qos::Burstable => burstable,
        podspec::Qos::BestEffort => best_effort,
    }
}

/// Where it may be: the classes but for the best have a group of their own (upstream: cgroups-per-qos).
pub fn pod_cgroups(uid: &str) -> [String; 3] {
    ["pods", "pods/burstable", "pods/besteffort"].map(|class| format!("{class}/pod{uid}"))
}

/// `users`: the ids of a pod with a user namespace.
pub fn sandbox(pod: &Pod, config: &Config, dns: v1::DnsConfig, attempt: u32, users: Option<IdRange>) -> v1::PodSandboxConfig {
    let spec = podspec::spec(pod);
    let security = spec.security_context.clone().unwrap_or_default();
    let mut labels: HashMap<String, String> = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.extend(pod_labels(pod));
    let privileged = podspec::containers(pod).iter().any(|(_, container)| is_privileged(container));
    let full = fully_qualified(pod, config).filter(|_| spec.set_hostname_as_fqdn == Some(true));
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: podspec::name(pod).into(),
            uid: podspec::uid(pod).into(),
            namespace: podspec::namespace(pod).into(),
            attempt,
        }),
        hostname: if spec.host_network == Some(true) { String::new() } else { full.unwrap_or_else(|| hostname(pod)) },
        log_directory: log_directory(pod, config).display().to_string(),
        dns_config: Some(dns),
        port_mappings: podspec::containers(pod).iter().flat_map(|(_, container)| ports(container)).collect(),
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(v1::LinuxPodSandboxConfig {
            // The built-in runtime takes it below its own root.
            cgroup_parent: config.pod_cgroups.as_ref().map_or_else(|| pod_cgroup(pod), |root| format!("/{root}/{}", pod_cgroup(pod))),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod, users)),
                run_as_user: security.run_as_user.map(|value| v1::Int64Value { value }),
                run_as_group: security.run_as_group.map(|value| v1::Int64Value { value }),
                supplemental_groups: groups(pod),
                privileged,
                seccomp: security.seccomp_profile.as_ref().map(|profile| seccomp(profile, &config.seccomp_directory)),
                ..Default::default()
            }),
            sysctls: security.sysctls.iter().flatten().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
            resources: Some(pod_resources(pod, config.pod_pids_max)),
            overhead: overhead(pod),
            ..Default::default()
        }),
        windows: None,
    }
}

fn pod_labels(pod: &Pod) -> [(String, String); 3] {
    [
        (LABEL_POD.into(), podspec::name(pod).into()),
        (LABEL_NAMESPACE.into(), podspec::namespace(pod).into()),
        (LABEL_UID.into(), podspec::uid(pod).into()),
    ]
}

fn ports(container: &Container) -> Vec<v1::PortMapping> {
    let ports = container.ports.iter().flatten();
    ports
        .map(|port| v1::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => v1::Protocol::Udp,
                Some("SCTP") => v1::Protocol::Sctp,
                _ => v1::Protocol::Tcp,
            } as i32,
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

fn namespaces(pod: &Pod, users: Option<IdRange>) -> v1::NamespaceOption {
    let spec = podspec::spec(pod);
    let node_or = |on: Option<bool>, otherwise: v1::NamespaceMode| if on == Some(true) { v1::NamespaceMode::Node } else { otherwise };
    let shared = spec.share_process_namespace == Some(true);
    let pid = if shared { v1::NamespaceMode::Pod } else { v1::NamespaceMode::Container };
    v1::NamespaceOption {
        network: node_or(spec.host_network, v1::NamespaceMode::Pod) as i32,
        pid: node_or(spec.host_pid, pid) as i32,
        ipc: node_or(spec.host_ipc, v1::NamespaceMode::Pod) as i32,
        // Said only where it is asked for: what comes of it is the runtime's to say.
        userns_options: users.map(IdRange::cri),
        ..Default::default()
    }
}

fn groups(pod: &Pod) -> Vec<i64> {
    let Some(security) = &podspec::spec(pod).security_context else { return Vec::new() };
    security.fs_group.into_iter().chain(security.supplemental_groups.iter().flatten().copied()).collect()
}

fn seccomp(profile: &SeccompProfile, directory: &Path) -> v1::SecurityProfile {
    let file = profile.localhost_profile.as_ref().map(|name| directory.join(name).display().to_string());
    security_profile(&profile.type_, file.as_deref())
}

fn security_profile(kind: &str, localhost: Option<&str>) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let kind = match kind {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Localhost" => ProfileType::Localhost,
        _ => ProfileType::Unconfined,
    };
    v1::SecurityProfile { profile_type: kind as i32, localhost_ref: localhost.unwrap_or_default().into() }
}

fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|security| security.privileged) == Some(true)
}

/// 1,024 shares are one processor; at least 2 (upstream: MilliCPUToShares).
pub fn cpu_shares(milli: i64) -> i64 {
    (milli * 1024 / 1000).clamp(2, 262_144)
}

/// Microseconds per [`CPU_PERIOD_US`]; 0 is unlimited.
pub fn cpu_quota(milli: i64) -> i64 {
    if milli == 0 { 0 } else { (milli * CPU_PERIOD_US / 1000).max(1000) }
}

/// What the whole pod may use (upstream: ResourceConfigForPod).
pub fn pod_resources(pod: &Pod, pids_max: Option<u64>) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_shares: cpu_shares(amounts::pod_request(pod, "cpu")),
        // Only where every container has a limit does the pod as a whole.
        cpu_quota: amounts::pod_limit(pod, "cpu").map_or(0, cpu_quota),
        memory_limit_in_bytes: amounts::pod_limit(pod, "memory").unwrap_or(0),
        hugepage_limits: hugepages(|resource| amounts::pod_limit(pod, resource), pod),
        unified: pids_max.map(|max| ("pids.max".to_owned(), max.to_string())).into_iter().collect(),
        ..Default::default()
    }
}

fn overhead(pod: &Pod) -> Option<v1::LinuxContainerResources> {
    let overhead = podspec::spec(pod).overhead.as_ref()?;
    let of = |resource: &str| overhead.get(resource).map_or(0, |quantity| amounts::amount(resource, quantity));
    let (cpu, memory) = (of("cpu"), of("memory"));
    Some(v1::LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_shares: cpu_shares(cpu),
        cpu_quota: cpu_quota(cpu),
        memory_limit_in_bytes: memory,
        ..Default::default()
    })
}

/// The kernel's page sizes that the machine has, each with what may be used of it: nothing where nothing is asked for.
fn hugepages(limit: impl Fn(&str) -> Option<i64>, pod: &Pod) -> Vec<v1::HugepageLimit> {
    let asked = amounts::names(pod);
    let sizes = asked.iter().filter_map(|name| name.strip_prefix("hugepages-"));
    sizes
        .map(|size| v1::HugepageLimit {
            page_size: format!("{}B", size.trim_end_matches('i')),
            limit: limit(&format!("hugepages-{size}")).and_then(|limit| u64::try_from(limit).ok()).unwrap_or(0),
        })
        .collect()
}

/// What the node has to do with a container's resources.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub memory_bytes: i64,
    /// Bytes of swap, where pods may use it (KEP-2400: `LimitedSwap`).
    pub swap_bytes: Option<i64>,
    /// Out of memory, a container loses all its processes and not one of them: what is left of it would rarely be of use.
    pub kills_together: bool,
}

/// What [`container`] needs beyond the pod.
pub struct ContainerInput<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub role: Role,
    pub attempt: u32,
    pub facts: &'a Facts,
    /// Volumes, `/etc/hosts`, the termination log: made by `mounts`.
    pub mounts: Vec<v1::Mount>,
    pub devices: Vec<v1::Device>,
    pub message_file: &'a Path,
    /// The runtime's reference of the image that is on the node.
    pub image_ref: &'a str,
    /// The user that the image names, for `runAsNonRoot`.
    pub image_user: ImageUser,
    pub node: Node,
    /// A container that names no seccomp profile gets the runtime's own.
    pub seccomp_default: bool,
    pub seccomp_directory: &'a Path,
    /// The ids of a pod with a user namespace.
    pub users: Option<IdRange>,
    /// For an ephemeral container with a target: that container's id.
    pub target_id: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageUser {
    #[default]
    Root,
    Uid(i64),
    Name(String),
}

pub fn container(input: &ContainerInput<'_>) -> Result<v1::ContainerConfig, Error> {
    let ContainerInput { pod, container, attempt, facts, .. } = *input;
    let envs = env::of_container(pod, container, facts)?;
    check_user(pod, container, &input.image_user)?;
    let lookup = |name: &str| envs.iter().find(|(key, _)| key == name).map(|(_, value)| String::from_utf8_lossy(value).into_owned());
    let expand = |list: &Option<Vec<String>>| list.iter().flatten().map(|text| env::expand(text, lookup)).collect();
    let mut labels = HashMap::from(pod_labels(pod));
    labels.insert(LABEL_CONTAINER.into(), container.name.clone());
    let image = container.image.clone().unwrap_or_default();
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(v1::ImageSpec { image: input.image_ref.into(), user_specified_image: image, ..Default::default() }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: envs.iter().map(|(key, value)| v1::KeyValue { key: key.clone(), value: value.clone().into() }).collect(),
        mounts: mounts(input),
        devices: input.devices.clone(),
        labels,
        annotations: annotations(input),
        log_path: format!("{}/{attempt}.log", container.name),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        stop_signal: stop_signal(container),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources(pod, container, &input.node)),
            security_context: Some(security(input)),
        }),
        ..Default::default()
    })
}

/// What device plugins and the drivers of claims gave a container.
pub fn add_devices(config: &mut v1::ContainerConfig, given: Allocated, named: Vec<String>) {
    config.envs.extend(given.envs.into_iter().map(|(key, value)| v1::KeyValue { key, value: value.into() }));
    config.annotations.extend(given.annotations);
    config.mounts.extend(given.mounts.into_iter().map(|mount| v1::Mount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        readonly: mount.read_only,
        ..Default::default()
    }));
    config.devices.extend(given.devices.into_iter().map(|device| v1::Device {
        container_path: device.container_path,
        host_path: device.host_path,
        permissions: device.permissions,
    }));
    let names = given.cdi_devices.into_iter().map(|device| device.name).chain(named);
    config.cdi_devices.extend(names.map(|name| v1::CdiDevice { name }));
}

/// In a user namespace volumes show the owners that they have on the disk.
fn mounts(input: &ContainerInput<'_>) -> Vec<v1::Mount> {
    let ids = input.users.map(IdRange::cri).unwrap_or_default();
    let mapped = |mount: &v1::Mount| v1::Mount { uid_mappings: ids.uids.clone(), gid_mappings: ids.gids.clone(), ..mount.clone() };
    input.mounts.iter().map(mapped).collect()
}

fn annotations(input: &ContainerInput<'_>) -> HashMap<String, String> {
    let container = input.container;
    HashMap::from([
        (ANNOTATION_HASH.into(), podspec::container_hash(container)),
        (ANNOTATION_RESTARTS.into(), input.attempt.to_string()),
        (ANNOTATION_MESSAGE_PATH.into(), message_path(container).into()),
        (ANNOTATION_MESSAGE_POLICY.into(), container.termination_message_policy.clone().unwrap_or_else(|| "File".into())),
        (ANNOTATION_MESSAGE_FILE.into(), input.message_file.display().to_string()),
        (ANNOTATION_GRACE.into(), podspec::spec(input.pod).termination_grace_period_seconds.unwrap_or(30).to_string()),
    ])
}

pub fn message_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/dev/termination-log")
}

pub fn resources(pod: &Pod, container: &Container, node: &Node) -> v1::LinuxContainerResources {
    let request = amounts::requested(container.resources.as_ref(), "cpu").unwrap_or(0);
    let memory = amounts::container_limit(pod, container, "memory").unwrap_or(0);
    v1::LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_shares: cpu_shares(request),
        cpu_quota: cpu_quota(amounts::container_limit(pod, container, "cpu").unwrap_or(0)),
        memory_limit_in_bytes: memory,
        memory_swap_limit_in_bytes: memory_and_swap(pod, container, memory, node),
        hugepage_limits: hugepages(|resource| amounts::container_limit(pod, container, resource), pod),
        oom_score_adj: podspec::oom_score(pod, container, node.memory_bytes),
        unified: node.kills_together.then(|| ("memory.oom.group".to_owned(), "1".to_owned())).into_iter().collect(),
        ..Default::default()
    }
}

/// As much swap as memory where nobody may swap; else in proportion to the memory asked for, for Burstable pods only (KEP-2400).
fn memory_and_swap(pod: &Pod, container: &Container, memory: i64, node: &Node) -> i64 {
    let asked = amounts::requested(container.resources.as_ref(), "memory").unwrap_or(0);
    let Some(swap) = node.swap_bytes else { return memory };
    if podspec::qos(pod) != podspec::Qos::Burstable || asked == 0 || asked == memory || memory == 0 {
        return memory;
    }
    let share = i128::from(asked) * i128::from(swap) / i128::from(node.memory_bytes.max(1));
    memory.saturating_add(i64::try_from(share).unwrap_or(0))
}

/// The signal that the container asks to be stopped with (KEP-4960).
fn stop_signal(container: &Container) -> i32 {
    let name = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref()).unwrap_or_default();
    let name = name.replace('+', "PLUS").replace('-', "MINUS");
    v1::Signal::from_str_name(&format!("SIGNAL_{name}")).map_or(0, |signal| signal as i32)
}

fn security(input: &ContainerInput<'_>) -> v1::LinuxContainerSecurityContext {
    let pod_level = podspec::spec(input.pod).security_context.clone().unwrap_or_default();
    let own = input.container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let mut namespaces = namespaces(input.pod, input.users);
    if let Some(target) = &input.target_id {
        namespaces.pid = v1::NamespaceMode::Target as i32;
        namespaces.target_id = target.clone();
    }
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let value = |value: i64| v1::Int64Value { value };
    v1::LinuxContainerSecurityContext {
        capabilities: Some(v1::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces),
        run_as_user: own.run_as_user.or(pod_level.run_as_user).map(value),
        run_as_group: own.run_as_group.or(pod_level.run_as_group).map(value),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(input.pod),
        supplemental_groups_policy: i32::from(pod_level.supplemental_groups_policy.as_deref() == Some("Strict")),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: if unmasked { Vec::new() } else { paths(MASKED_PATHS) },
        readonly_paths: if unmasked { Vec::new() } else { paths(READONLY_PATHS) },
        seccomp: own
            .seccomp_profile
            .as_ref()
            .or(pod_level.seccomp_profile.as_ref())
            .map(|profile| seccomp(profile, input.seccomp_directory))
            .or_else(|| (input.seccomp_default && !privileged).then(|| security_profile("RuntimeDefault", None))),
        apparmor: own
            .app_armor_profile
            .as_ref()
            .or(pod_level.app_armor_profile.as_ref())
            .map(|profile| security_profile(&profile.type_, profile.localhost_profile.as_deref())),
        ..Default::default()
    }
}

fn paths(list: &[&str]) -> Vec<String> {
    list.iter().map(|path| (*path).to_owned()).collect()
}

/// Upstream's `DefaultProcMount`.
const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Upstream: verifyRunAsNonRoot.
fn check_user(pod: &Pod, container: &Container, image_user: &ImageUser) -> Result<(), Error> {
    let pod_level = podspec::spec(pod).security_context.as_ref();
    let own = container.security_context.as_ref();
    let non_root = own.and_then(|own| own.run_as_non_root).or(pod_level.and_then(|pod| pod.run_as_non_root));
    if non_root != Some(true) {
        return Ok(());
    }
    let user = own.and_then(|own| own.run_as_user).or(pod_level.and_then(|pod| pod.run_as_user));
    let shown = format!("(pod: {:?}, container: {})", podspec::format_pod(pod), container.name);
    match (user, image_user) {
        (Some(0), _) => Err(Error(format!("container's runAsUser breaks non-root policy {shown}"))),
        (Some(_), _) => Ok(()),
        (None, ImageUser::Root | ImageUser::Uid(0)) => Err(Error(format!("container has runAsNonRoot and image will run as root {shown}"))),
        (None, ImageUser::Uid(_)) => Ok(()),
        (None, ImageUser::Name(name)) => Err(Error(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {shown}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::podspec::tests::pod;

    fn built(spec: serde_json::Value, user: ImageUser) -> Result<v1::ContainerConfig, Error> {
        let pod = pod(spec);
        let container = &podspec::spec(&pod).containers[0];
        super::container(&ContainerInput {
            pod: &pod,
            container,
            role: Role::Main,
            attempt: 2,
            facts: &Facts::default(),
            mounts: Vec::new(),
            devices: Vec::new(),
            message_file: Path::new("/m"),
            image_ref: "sha256:1",
            image_user: user,
            node: Node { memory_bytes: 8 << 30, swap_bytes: None, kills_together: true },
            seccomp_default: false,
            seccomp_directory: Path::new("/profiles"),
            users: None,
            target_id: None,
        })
    }

    #[test]
    fn container_configuration_carries_command_resources_and_security() {
        let config = built(
            json!({"securityContext": {"runAsUser": 1000, "fsGroup": 2000}, "containers": [{
            "name": "c", "image": "i:1", "command": ["sh", "-c", "echo $(A)"], "env": [{"name": "A", "value": "x"}],
            "resources": {"requests": {"cpu": "250m"}, "limits": {"cpu": "500m", "memory": "64Mi"}},
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}),
            ImageUser::Root,
        )
        .unwrap();
        assert_eq!(config.command, ["sh", "-c", "echo x"]);
        assert_eq!(config.log_path, "c/2.log");
        let linux = config.linux.unwrap();
        let resources = linux.resources.unwrap();
        assert_eq!((resources.cpu_shares, resources.cpu_quota, resources.memory_limit_in_bytes), (256, 50_000, 64 << 20));
        assert_eq!(resources.unified["memory.oom.group"], "1");
        let security = linux.security_context.unwrap();
        assert_eq!(security.run_as_user.unwrap().value, 1000);
        assert!(security.no_new_privs && security.capabilities.unwrap().drop_capabilities == ["ALL"]);
        assert_eq!(security.supplemental_groups, [2000]);
    }

    #[test]
    fn non_root_is_checked_against_pod_and_image() {
        let spec =
            |user: serde_json::Value| json!({"securityContext": {"runAsNonRoot": true, "runAsUser": user}, "containers": [{"name": "c"}]});
        assert!(built(spec(json!(5)), ImageUser::Root).is_ok());
        assert!(built(spec(json!(0)), ImageUser::Root).unwrap_err().0.contains("breaks non-root policy"));
        assert!(built(spec(json!(null)), ImageUser::Root).unwrap_err().0.contains("image will run as root"));
        assert!(built(spec(json!(null)), ImageUser::Name("www".into())).unwrap_err().0.contains("non-numeric user (www)"));
        assert!(built(spec(json!(null)), ImageUser::Uid(7)).is_ok());
    }

    #[test]
    fn sandbox_follows_host_namespaces_and_host_name_rules() {
        let config = Config::new("node", "192.0.2.1".parse().unwrap());
        let shared = sandbox(
            &pod(json!({"containers": [], "shareProcessNamespace": true, "hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true})),
            &config,
            Default::default(),
            1,
            None,
        );
        assert_eq!(shared.hostname, "h.s.default.svc.cluster.local");
        let host = sandbox(&pod(json!({"containers": [], "hostNetwork": true, "hostPID": true})), &config, Default::default(), 0, None);
        let options = host.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        assert_eq!((options.network, options.pid, options.ipc), (2, 2, 0));
        assert_eq!(options.userns_options, None);
        let own_users = sandbox(
            &pod(json!({"containers": [], "hostUsers": false})),
            &config,
            Default::default(),
            0,
            Some(IdRange { first: 65_536, length: 65_536 }),
        );
        assert!(own_users.linux.unwrap().security_context.unwrap().namespace_options.unwrap().userns_options.is_some());
        assert_eq!(shared.linux.unwrap().security_context.unwrap().namespace_options.unwrap().pid, 0);
    }
}
