//! Whether the node takes a pod that was bound to it. Pure. Upstream: the kubelet's admission handlers (`pkg/kubelet/lifecycle`,
//! `pkg/kubelet/sysctl`, `pkg/security/apparmor`); a pod that is refused has failed for good.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod};

use crate::amounts;
use crate::evict::Pressure;
use crate::podspec::{self, Qos};
use crate::resize::Room;
use crate::world::Verdict;

/// Sysctls that concern the pod alone (upstream: `SafeSysctlAllowlist`).
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What the judgement needs of the node.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub room: Room,
    /// Pods that hold a place here, and how many places there are.
    pub pods: u32,
    pub pods_max: u32,
    /// Host ports in use: address (empty is any), protocol, port.
    pub ports: Vec<(String, String, i32)>,
    pub pressures: Vec<Pressure>,
    /// Sysctls that the configuration allows beside the safe ones; a trailing `*` stands for anything.
    pub sysctls: Vec<String>,
    pub app_armor: bool,
    pub shutting_down: bool,
    /// The Node's name and labels, once they are known.
    pub name: String,
    pub labels: Option<BTreeMap<String, String>>,
}

pub fn judge(pod: &Pod, node: &Node) -> Option<Verdict> {
    let refused = |(reason, message): (&str, String)| Verdict {
        reason: reason.into(),
        message: format!("Pod was rejected: {message}"),
        disrupts: false,
        grace_seconds: None,
    };
    let shutdown = || node.shutting_down.then(|| ("NodeShutdown", "Pod was rejected as the node is shutting down.".to_owned()));
    let found = shutdown().or_else(|| pressure(pod, node)).or_else(|| sysctls(pod, node)).or_else(|| app_armor(pod, node));
    found.or_else(|| resources(pod, node)).or_else(|| affinity(pod, node)).or_else(|| ports(pod, node)).map(refused)
}

pub type Refusal = (&'static str, String);

fn pressure(pod: &Pod, node: &Node) -> Option<Refusal> {
    if node.pressures.is_empty() || is_critical(pod) {
        return None;
    }
    // Under memory pressure alone, pods with requests still come in.
    let tolerates = podspec::spec(pod).tolerations.iter().flatten().any(|toleration| {
        toleration.key.as_deref().is_none_or(|key| key == "node.kubernetes.io/memory-pressure")
            && toleration.effect.as_deref() != Some("NoExecute")
    });
    if node.pressures == [Pressure::Memory] && (podspec::qos(pod) != Qos::BestEffort || tolerates) {
        return None;
    }
    let names: Vec<&str> = node.pressures.iter().map(|pressure| pressure.condition()).collect();
    Some(("Evicted", format!("The node had condition: [{}]. ", names.join(" "))))
}

/// Static pods and those of the highest priorities.
pub fn is_critical(pod: &Pod) -> bool {
    podspec::is_static(pod) || podspec::spec(pod).priority.unwrap_or(0) >= 2_000_000_000
}

fn sysctls(pod: &Pod, node: &Node) -> Option<Refusal> {
    let spec = podspec::spec(pod);
    for sysctl in spec.security_context.iter().flat_map(|security| security.sysctls.iter().flatten()) {
        let name = sysctl.name.replace('/', ".");
        let allowed = SAFE_SYSCTLS.contains(&name.as_str())
            || node.sysctls.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => *pattern == name,
            });
        let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix));
        let why = match () {
            () if name.starts_with("net.") && spec.host_network == Some(true) => "not allowed with host net enabled",
            () if ipc && spec.host_ipc == Some(true) => "not allowed with host ipc enabled",
            () if !allowed => "not allowlisted",
            () => continue,
        };
        return Some(("SysctlForbidden", format!("forbidden sysctl: {:?} {why}", sysctl.name)));
    }
    None
}

fn app_armor(pod: &Pod, node: &Node) -> Option<Refusal> {
    let spec = podspec::spec(pod);
    let own = podspec::containers(pod).into_iter().filter_map(|(_, container)| container.security_context.clone()?.app_armor_profile);
    let mut all = spec.security_context.iter().filter_map(|security| security.app_armor_profile.clone()).chain(own);
    let wanted = !node.app_armor && all.any(|profile| profile.type_ != "Unconfined");
    wanted.then(|| ("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned()))
}

fn resources(pod: &Pod, node: &Node) -> Option<Refusal> {
    let short = |resource: &str, asked: i64, used: i64, capacity: i64| {
        format!("Node didn't have enough resource: {resource}, requested: {asked}, used: {used}, capacity: {capacity}")
    };
    if node.pods >= node.pods_max {
        return Some(("OutOfpods", short("pods", 1, node.pods.into(), node.pods_max.into())));
    }
    for (resource, reason) in [("cpu", "OutOfcpu"), ("memory", "OutOfmemory"), ("ephemeral-storage", "OutOfephemeral-storage")] {
        let asked = amounts::pod_request(pod, resource);
        let capacity = node.room.allocatable.get(resource).copied().unwrap_or(0);
        let used = node.room.used.get(resource).copied().unwrap_or(0);
        if asked > 0 && asked > capacity - used {
            return Some((reason, short(resource, asked, used, capacity)));
        }
    }
    None
}

/// Was the pod bound to a node that it does not want?
pub fn affinity(pod: &Pod, node: &Node) -> Option<Refusal> {
    let labels = node.labels.as_ref()?;
    let spec = podspec::spec(pod);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref());
    let name = BTreeMap::from([("metadata.name".to_owned(), node.name.clone())]);
    let term = |term: &NodeSelectorTerm| {
        let (expressions, fields) =
            (term.match_expressions.as_deref().unwrap_or_default(), term.match_fields.as_deref().unwrap_or_default());
        // A term that says nothing matches nothing.
        (!expressions.is_empty() || !fields.is_empty())
            && expressions.iter().all(|one| matches(one, labels))
            && fields.iter().all(|one| matches(one, &name))
    };
    let fits = selected && required.is_none_or(|required| required.node_selector_terms.iter().any(term));
    (!fits).then(|| ("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".to_owned()))
}

fn matches(wanted: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let (value, values) = (labels.get(&wanted.key), wanted.values.as_deref().unwrap_or_default());
    let number = |text: Option<&String>| text.and_then(|text| text.parse::<i64>().ok());
    match wanted.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value).zip(number(values.first())).is_some_and(|(value, limit)| value > limit),
        "Lt" => number(value).zip(number(values.first())).is_some_and(|(value, limit)| value < limit),
        _ => false,
    }
}

fn ports(pod: &Pod, node: &Node) -> Option<Refusal> {
    let any = |address: &str| matches!(address, "" | "0.0.0.0" | "::");
    let taken = podspec::host_ports(pod).into_iter().any(|(address, protocol, port)| {
        node.ports
            .iter()
            .any(|(other, same, used)| *used == port && *same == protocol && (any(&address) || any(other) || *other == address))
    });
    taken.then(|| ("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports".to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::podspec::tests::pod;

    fn node() -> Node {
        let amounts = |cpu: i64| [("cpu".to_owned(), cpu), ("memory".to_owned(), 1 << 30)].into();
        Node {
            room: Room { allocatable: amounts(4000), used: [("cpu".to_owned(), 3000)].into() },
            pods: 1,
            pods_max: 10,
            ..Node::default()
        }
    }

    fn refusal(spec: serde_json::Value, node: &Node) -> Option<String> {
        judge(&pod(spec), node).map(|verdict| format!("{}: {}", verdict.reason, verdict.message))
    }

    #[test]
    fn a_pod_is_refused_in_upstreams_words_for_what_the_node_cannot_give() {
        let none = json!({"containers": [{"name": "a"}]});
        assert_eq!(refusal(none.clone(), &node()), None);
        for (spec, node, expected) in [
            (
                json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "2"}}}]}),
                node(),
                "OutOfcpu: Pod was rejected: Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000",
            ),
            (
                none.clone(),
                Node { pods: 10, ..node() },
                "OutOfpods: Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 10, capacity: 10",
            ),
            (
                json!({"containers": [{"name": "a"}], "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
                node(),
                "SysctlForbidden: Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted",
            ),
            (
                json!({"containers": [{"name": "a"}], "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}),
                node(),
                "AppArmor: Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host",
            ),
            (
                json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
                Node { ports: vec![("127.0.0.1".into(), "TCP".into(), 80)], ..node() },
                "NodePorts: Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
            ),
            (
                none,
                Node { pressures: vec![Pressure::Memory], ..node() },
                "Evicted: Pod was rejected: The node had condition: [MemoryPressure]. ",
            ),
        ] {
            assert_eq!(refusal(spec, &node).as_deref(), Some(expected));
        }
    }

    #[test]
    fn sysctls_are_allowed_by_name_and_by_pattern() {
        let spec = |name: &str| json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        let node = Node { sysctls: vec!["kernel.msg*".into()], ..node() };
        for (name, allowed) in
            [("kernel.shm_rmid_forced", true), ("net/ipv4/tcp_syncookies", true), ("kernel.msgmax", true), ("kernel.sem", false)]
        {
            assert_eq!(refusal(spec(name), &node).is_none(), allowed, "{name}");
        }
    }

    #[test]
    fn a_pod_for_other_nodes_is_refused_once_the_nodes_labels_are_known() {
        let node = Node { name: "n1".into(), labels: Some([("zone".to_owned(), "a".to_owned())].into()), ..node() };
        let affinity = |term: serde_json::Value| json!({"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}});
        let zone =
            |operator: &str, value: &str| affinity(json!({"matchExpressions": [{"key": "zone", "operator": operator, "values": [value]}]}));
        for (spec, fits) in [
            (json!({"containers": [], "nodeSelector": {"zone": "a"}}), true),
            (json!({"containers": [], "nodeSelector": {"zone": "b"}}), false),
            (zone("In", "a"), true),
            (zone("NotIn", "a"), false),
            (affinity(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]})), true),
            (affinity(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]})), false),
            (affinity(json!({})), false),
        ] {
            let said = refusal(spec.clone(), &node);
            assert_eq!(said.is_none(), fits, "{spec}: {said:?}");
            assert!(refusal(spec, &Node { labels: None, ..node.clone() }).is_none());
        }
    }
}
