//! The Node object: registered, kept true, and kept alive by its Lease.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::Patch;
use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSystemInfo, ObjectReference,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use meta::quantity::{Format, Quantity as Amount};
use serde_json::json;
use stdx::{Backoff, Drain};

use crate::config::Config;
use crate::evict::Pressure;
use crate::worker::{Agent, lock};

const LEASES: &str = "kube-node-lease";
/// How often the node looks whether its status changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Upstream's limits of `status.images`.
/// How often a node without a pod range looks for one, and for how long; then it looks as seldom as at everything else.
const RANGE_INTERVAL: Duration = Duration::from_millis(10);
const RANGE_WITHIN: Duration = Duration::from_secs(10);
const IMAGES_MAX: usize = 50;
const IMAGE_NAMES_MAX: usize = 5;

/// What the machine has.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub disk_bytes: i64,
    pub swap_bytes: i64,
    /// Huge pages of 2 MiB and of 1 GiB, in bytes.
    pub hugepages_2m: i64,
    pub hugepages_1g: i64,
}

impl Machine {
    pub fn look(data_directory: &Path) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kibibytes = |key: &str| {
            let line = memory.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse::<i64>().ok()
        };
        let pages =
            |size: &str| read_trimmed(&format!("/sys/kernel/mm/hugepages/hugepages-{size}kB/nr_hugepages")).parse().unwrap_or(0_i64);
        let disk = rustix::fs::statvfs(data_directory).or_else(|_| rustix::fs::statvfs("/"));
        let disk_bytes = disk.map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
        Self {
            cpu_milli: i64::try_from(cpus).unwrap_or(1) * 1000,
            memory_bytes: kibibytes("MemTotal:").unwrap_or(0) * 1024,
            disk_bytes: i64::try_from(disk_bytes).unwrap_or(i64::MAX),
            swap_bytes: kibibytes("SwapTotal:").unwrap_or(0) * 1024,
            hugepages_2m: pages("2048") << 21,
            hugepages_1g: pages("1048576") << 30,
        }
    }
}

/// Capacity and allocatable, by the machine and the configuration.
fn resources(config: &Config, machine: Machine) -> (BTreeMap<String, Quantity>, BTreeMap<String, Quantity>) {
    let cpu = if machine.cpu_milli % 1000 == 0 { (machine.cpu_milli / 1000).to_string() } else { format!("{}m", machine.cpu_milli) };
    let mut capacity = BTreeMap::from([
        ("cpu".to_owned(), Quantity(cpu)),
        ("memory".to_owned(), Quantity(format!("{}Ki", machine.memory_bytes / 1024))),
        ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", machine.disk_bytes / 1024))),
        ("pods".to_owned(), Quantity(config.pods_max.to_string())),
        ("hugepages-1Gi".to_owned(), Quantity(Amount::new(machine.hugepages_1g, Format::BinarySi).to_string())),
        ("hugepages-2Mi".to_owned(), Quantity(Amount::new(machine.hugepages_2m, Format::BinarySi).to_string())),
    ]);
    capacity.extend(config.capacity.iter().map(|(name, amount)| (name.clone(), Quantity(amount.clone()))));
    let mut allocatable = capacity.clone();
    // Huge pages are taken off the memory: nobody else can use it.
    if let Some(memory) = allocatable.get_mut("memory").filter(|_| machine.hugepages_1g + machine.hugepages_2m > 0)
        && let Ok(amount) = Amount::parse(&memory.0)
    {
        *memory = Quantity((amount - Amount::new(machine.hugepages_1g + machine.hugepages_2m, Format::BinarySi)).to_string());
    }
    for (name, reserved) in &config.reserved {
        if let (Some(have), Ok(reserved)) = (allocatable.get_mut(name), Amount::parse(reserved))
            && let Ok(amount) = Amount::parse(&have.0)
        {
            *have = Quantity((amount - reserved).to_string());
        }
    }
    (capacity, allocatable)
}

/// The amount of `resource` that pods may use: milli-units for cpu, else units.
pub fn allocatable(config: &Config, machine: Machine, resource: &str) -> i64 {
    let (_, allocatable) = resources(config, machine);
    let amount = allocatable.get(resource).and_then(|amount| Amount::parse(&amount.0).ok());
    amount.map_or(0, |amount| if resource == "cpu" { amount.milli_value() } else { amount.value() })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), config.node_name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), architecture().to_owned()),
        ("beta.kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("beta.kubernetes.io/arch".to_owned(), architecture().to_owned()),
    ]);
    if config.control_plane {
        labels.insert("node-role.kubernetes.io/control-plane".into(), String::new());
    }
    labels.extend(config.labels.clone());
    labels
}

fn read_trimmed(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn system_info(config: &Config, runtime: &v1::VersionResponse) -> NodeSystemInfo {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).map(|name| name.trim_matches('"').to_owned());
    let machine_id = read_trimmed("/etc/machine-id");
    let system_uuid = read_trimmed("/sys/class/dmi/id/product_uuid");
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: read_trimmed("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("{}://{}", runtime.runtime_name, runtime.runtime_version),
        kernel_version: read_trimmed("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: config.version.clone(),
        system_uuid: if system_uuid.is_empty() { machine_id.clone() } else { system_uuid },
        machine_id,
        operating_system: "linux".into(),
        os_image: pretty.unwrap_or_else(|| "Linux".into()),
        ..NodeSystemInfo::default()
    }
}

fn conditions(
    former: &[NodeCondition],
    runtime: &Result<v1::StatusResponse, cri::Error>,
    pressures: &[Pressure],
    now: Timestamp,
) -> Vec<NodeCondition> {
    let failures: Vec<String> = match runtime {
        Err(error) => vec![format!("container runtime is down: {error}")],
        Ok(answer) => {
            let conditions = answer.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            conditions
                .iter()
                .filter(|condition| !condition.status)
                .map(|condition| {
                    format!("container runtime status check may not have completed yet: {} {}", condition.r#type, condition.message)
                })
                .collect()
        }
    };
    let ready = match failures.is_empty() {
        true => ("Ready", "True", "KubeletReady", "kubelet is posting ready status".to_owned()),
        false => ("Ready", "False", "KubeletNotReady", format!("[{}]", failures.join(", "))),
    };
    let pressure = |kind: Pressure, bad: (&'static str, &str), good: (&'static str, &str)| {
        let on = pressures.contains(&kind);
        let (reason, message) = if on { bad } else { good };
        (kind.condition(), if on { "True" } else { "False" }, reason, message.to_owned())
    };
    let all = [
        pressure(
            Pressure::Memory,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressure(
            Pressure::Disk,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            Pressure::Pid,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        ready,
    ];
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let of = |(kind, status, reason, message): (&str, &str, &str, String)| {
        let before = former.iter().find(|condition| condition.type_ == kind && condition.status == status);
        NodeCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: before.and_then(|before| before.last_transition_time.clone()).or_else(|| Some(now.clone())),
        }
    };
    all.into_iter().map(of).collect()
}

fn handlers(runtime: &Result<v1::StatusResponse, cri::Error>) -> Option<Vec<NodeRuntimeHandler>> {
    let handlers = &runtime.as_ref().ok()?.runtime_handlers;
    let shown = handlers.iter().map(|handler| NodeRuntimeHandler {
        // The API leaves out an empty name: written, it would differ from what is read back.
        name: Some(handler.name.clone()).filter(|name| !name.is_empty()),
        features: handler.features.map(|features| NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
            user_namespaces: Some(features.user_namespaces),
        }),
    });
    (!handlers.is_empty()).then(|| shown.collect())
}

/// Does this host's kernel enforce AppArmor profiles?
pub fn has_app_armor() -> bool {
    read_trimmed("/sys/module/apparmor/parameters/enabled") == "Y"
}

fn node_image(image: v1::Image) -> ContainerImage {
    ContainerImage {
        names: Some(image.repo_digests.into_iter().chain(image.repo_tags).take(IMAGE_NAMES_MAX).collect()),
        // The API leaves out a zero: written, it would differ from what is read back, and the status would be written at every look.
        size_bytes: i64::try_from(image.size).ok().filter(|bytes| *bytes > 0),
    }
}

impl Agent {
    /// Registers the node, then keeps its status and its lease until `drain`. `port` is the server's.
    pub async fn keep_node(self: Arc<Self>, machine: Machine, port: u16, drain: Drain) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(7));
        let node = loop {
            match self.register(machine, port).await {
                Ok(node) => break node,
                Err(error) => {
                    tracing::warn!(node = %self.config.node_name, %error, "register the node; will retry");
                    if drain.run(tokio::time::sleep(backoff.next_wait())).await.is_none() {
                        return;
                    }
                }
            }
        };
        tracing::info!(node = %self.config.node_name, "node registered");
        let lease = self.clone();
        let uid = node.metadata.uid.clone().unwrap_or_default();
        *lock(&self.node_uid) = Some(uid.clone());
        *lock(&self.node_labels) = node.metadata.labels.clone();
        let status = drain.run(self.keep_status(node, machine, port));
        futures_util::future::join(status, drain.run(lease.keep_lease(uid))).await;
    }

    async fn status(&self, former: &NodeStatus, machine: Machine, port: u16) -> NodeStatus {
        let version = self.runtime.version().await.unwrap_or_default();
        let runtime = self.runtime.status(v1::StatusRequest::default()).await;
        let (mut capacity, mut allocatable) = resources(&self.config, machine);
        // Extended resources that somebody else told of stay.
        for (name, amount) in former.capacity.iter().flatten().filter(|(name, _)| name.contains('/')) {
            capacity.entry(name.clone()).or_insert_with(|| amount.clone());
        }
        // What a client tells of in the capacity is there to be allocated.
        for (name, amount) in capacity.iter().filter(|(name, _)| name.contains('/')) {
            allocatable.insert(name.clone(), amount.clone());
        }
        for (name, (all, healthy)) in self.devices.amounts() {
            capacity.insert(name.clone(), Quantity(all.to_string()));
            allocatable.insert(name, Quantity(healthy.to_string()));
        }
        let ips = self.config.node_ips.iter().map(|ip| NodeAddress { type_: "InternalIP".into(), address: ip.to_string() });
        let hostname = NodeAddress { type_: "Hostname".into(), address: self.config.node_name.clone() };
        let ours = conditions(former.conditions.as_deref().unwrap_or_default(), &runtime, &lock(&self.pressures), Timestamp::now());
        let foreign = former.conditions.iter().flatten().filter(|condition| !ours.iter().any(|own| own.type_ == condition.type_));
        NodeStatus {
            addresses: Some(ips.chain([hostname]).collect()),
            conditions: Some(foreign.cloned().chain(ours.clone()).collect()),
            capacity: Some(capacity),
            allocatable: Some(allocatable),
            daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(port) }) }),
            node_info: Some(system_info(&self.config, &version)),
            images: Some(self.node_images().await),
            runtime_handlers: handlers(&runtime),
            features: runtime
                .as_ref()
                .ok()
                .and_then(|answer| answer.features.as_ref())
                .map(|features| NodeFeatures { supplemental_groups_policy: Some(features.supplemental_groups_policy) }),
            ..NodeStatus::default()
        }
    }

    /// As upstream's events name a node: its name stands for its uid.
    pub fn node_reference(&self) -> ObjectReference {
        let name = &self.config.node_name;
        ObjectReference { kind: Some("Node".into()), name: Some(name.clone()), uid: Some(name.clone()), ..ObjectReference::default() }
    }

    async fn node_images(&self) -> Vec<ContainerImage> {
        let Ok(answer) = self.images.list_images(v1::ListImagesRequest::default()).await else { return Vec::new() };
        let mut images = answer.images;
        images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
        images.into_iter().take(IMAGES_MAX).map(node_image).collect()
    }

    async fn register(&self, machine: Machine, port: u16) -> Result<Node, client::Error> {
        let spec = NodeSpec {
            pod_cidr: self.config.pod_cidr.clone(),
            pod_cidrs: self.config.pod_cidr.clone().map(|cidr| vec![cidr]),
            taints: (!self.config.taints.is_empty()).then(|| self.config.taints.clone()),
            ..NodeSpec::default()
        };
        let metadata = ObjectMeta {
            name: Some(self.config.node_name.clone()),
            labels: Some(labels(&self.config)),
            annotations: Some(BTreeMap::from([("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned())])),
            ..ObjectMeta::default()
        };
        let status = self.status(&NodeStatus::default(), machine, port).await;
        let node = Node { metadata, spec: Some(spec), status: Some(status) };
        match self.client.create(&node).await {
            // The status comes with the registration, as upstream; a server that drops it gets it from the first look.
            Ok(stored) => Ok(stored),
            Err(error) if error.is_already_exists() => self.adopt(node).await,
            Err(error) => Err(error),
        }
    }

    /// A node that was here before gets our labels and, where it has none, the pod range.
    async fn adopt(&self, wanted: Node) -> Result<Node, client::Error> {
        let name = &self.config.node_name;
        let known: Node = self.client.get(None, name).await?;
        let mut patch = json!({"metadata": {"labels": wanted.metadata.labels}});
        let has_cidr = known.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_some());
        if let (false, Some(cidr)) = (has_cidr, &self.config.pod_cidr) {
            patch["spec"] = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
        }
        let labelled = wanted
            .metadata
            .labels
            .iter()
            .flatten()
            .all(|(key, value)| known.metadata.labels.as_ref().and_then(|labels| labels.get(key)) == Some(value));
        if labelled && patch.get("spec").is_none() {
            return Ok(known);
        }
        self.client.patch::<Node>(None, name, &Patch::Strategic(patch), "").await
    }

    /// Tells the runtime the ranges that the cluster gave this node, as soon as it has them.
    async fn tell_ranges(&self, node: &Node, told: &mut Vec<String>) {
        let ranges = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
        if ranges.is_empty() || ranges == *told {
            return;
        }
        let network_config = Some(v1::NetworkConfig { pod_cidr: ranges.join(",") });
        let request = v1::UpdateRuntimeConfigRequest { runtime_config: Some(v1::RuntimeConfig { network_config }) };
        match self.runtime.update_runtime_config(request).await {
            Ok(_) => *told = ranges,
            Err(error) => tracing::warn!(%error, ranges = ranges.join(","), "tell the runtime the node's pod ranges; will retry"),
        }
    }

    async fn keep_status(&self, mut node: Node, machine: Machine, port: u16) {
        let mut told = Vec::new();
        self.tell_ranges(&node, &mut told).await;
        let mut shown = node.status.take().unwrap_or_default();
        let mut written: Option<tokio::time::Instant> = None;
        // The cluster gives a new node its range within moments, and it cannot be ready before.
        let hasty = tokio::time::Instant::now() + RANGE_WITHIN;
        loop {
            let waiting = told.is_empty();
            let new = self.status(&shown, machine, port).await;
            let due = written.is_none_or(|at| at.elapsed() >= self.config.status_interval);
            if due || !same(&shown, &new) {
                match self.write_status(&new).await {
                    Ok(mut stored) => {
                        *lock(&self.node_labels) = stored.metadata.labels.clone();
                        self.tell_ranges(&stored, &mut told).await;
                        shown = stored.status.take().unwrap_or(new);
                        written = Some(tokio::time::Instant::now());
                    }
                    Err(error) => tracing::warn!(%error, "update the node's status; will retry"),
                }
            }
            if waiting && !told.is_empty() {
                continue;
            }
            let pause = if told.is_empty() && tokio::time::Instant::now() < hasty { RANGE_INTERVAL } else { LOOK_INTERVAL };
            tokio::select! { () = tokio::time::sleep(pause) => {}, () = self.node_changed.notified() => {}, () = self.devices.changed.notified() => {} }
            // What others wrote meanwhile counts as well: a range, or extended resources.
            if let Ok(mut found) = self.client.get::<Node>(None, &self.config.node_name).await {
                if told.is_empty() {
                    self.tell_ranges(&found, &mut told).await;
                }
                shown = found.status.take().unwrap_or(shown);
            }
        }
    }

    async fn write_status(&self, status: &NodeStatus) -> Result<Node, client::Error> {
        let mut body = json!({"status": status});
        // Addresses merge by type: a second InternalIP or an old one must not mix with the new list.
        if let Some(addresses) = body["status"]["addresses"].as_array_mut() {
            addresses.push(json!({"$patch": "replace"}));
        }
        self.client.patch::<Node>(None, &self.config.node_name, &Patch::Strategic(body), "status").await
    }

    async fn keep_lease(self: Arc<Self>, node_uid: String) {
        let mut held: Option<Lease> = None;
        loop {
            match self.renew(held.take(), &node_uid).await {
                Ok(lease) => held = Some(lease),
                Err(error) => tracing::warn!(%error, "renew the node's lease; will retry"),
            }
            tokio::time::sleep(self.config.lease_interval).await;
        }
    }

    async fn renew(&self, held: Option<Lease>, node_uid: &str) -> Result<Lease, client::Error> {
        let name = &self.config.node_name;
        let held = match held {
            Some(lease) => Some(lease),
            None => match self.client.get::<Lease>(Some(LEASES), name).await {
                Ok(lease) => Some(lease),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            },
        };
        let now = Some(MicroTime(Timestamp::now()));
        let Some(mut lease) = held else {
            let owner = OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.clone(),
                uid: node_uid.into(),
                ..OwnerReference::default()
            };
            let metadata = ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(LEASES.into()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            };
            let spec = LeaseSpec {
                holder_identity: Some(name.clone()),
                lease_duration_seconds: i32::try_from(self.config.lease_duration.as_secs()).ok(),
                renew_time: now,
                ..LeaseSpec::default()
            };
            return self.client.create(&Lease { metadata, spec: Some(spec) }).await;
        };
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(name.clone());
        spec.lease_duration_seconds = i32::try_from(self.config.lease_duration.as_secs()).ok();
        spec.renew_time = now;
        self.client.replace(&lease).await
    }
}

/// Equal but for heartbeats.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |status: &NodeStatus| {
        let mut status = status.clone();
        status.conditions.iter_mut().flatten().for_each(|condition| condition.last_heartbeat_time = None);
        // Order is no difference, and what others own is not compared.
        status.conditions.iter_mut().for_each(|conditions| conditions.sort_by(|a, b| a.type_.cmp(&b.type_)));
        (
            status.conditions,
            status.addresses,
            status.capacity,
            status.allocatable,
            status.node_info,
            status.images.unwrap_or_default(),
            status.daemon_endpoints,
            status.runtime_handlers,
            status.features,
        )
    };
    still(a) == still(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_resources_are_taken_off_and_overrides_replace_the_machines() {
        let mut config = Config::new("node", "192.0.2.1".parse().unwrap());
        config.reserved = BTreeMap::from([("cpu".to_owned(), "500m".to_owned())]);
        config.capacity = BTreeMap::from([("memory".to_owned(), "1Gi".to_owned()), ("example.com/gpu".to_owned(), "2".to_owned())]);
        let machine =
            Machine { cpu_milli: 4000, memory_bytes: 8 << 30, disk_bytes: 1 << 40, swap_bytes: 0, hugepages_2m: 0, hugepages_1g: 0 };
        let (capacity, free) = resources(&config, machine);
        assert_eq!((capacity["cpu"].0.as_str(), free["cpu"].0.as_str()), ("4", "3500m"));
        assert_eq!((capacity["memory"].0.as_str(), capacity["example.com/gpu"].0.as_str()), ("1Gi", "2"));
        assert_eq!(allocatable(&config, machine, "cpu"), 3500);
    }

    #[test]
    fn image_without_a_known_size_reads_back_as_it_was_written() {
        let image = v1::Image { repo_tags: vec!["i:1".into()], ..v1::Image::default() };
        assert_eq!(json!(node_image(image)), json!({"names": ["i:1"]}));
    }

    #[test]
    fn runtime_that_is_down_makes_the_node_not_ready_and_keeps_the_transition_time() {
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let up = conditions(&[], &Ok(v1::StatusResponse::default()), &[], at(10));
        let later = conditions(&up, &Ok(v1::StatusResponse::default()), &[], at(20));
        let ready = |list: &[NodeCondition]| list.iter().find(|condition| condition.type_ == "Ready").unwrap().clone();
        assert_eq!((ready(&later).status.as_str(), ready(&later).last_transition_time), ("True", Some(Time(at(10)))));
        let down = ready(&conditions(&later, &Err(cri::Error::internal("gone")), &[], at(30)));
        assert_eq!((down.status.as_str(), down.reason.as_deref()), ("False", Some("KubeletNotReady")));
        assert_eq!(down.last_transition_time, Some(Time(at(30))));
    }
}
