//! Short questions about a Pod that every other module asks.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, ResourceRequirements, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use meta::quantity::Quantity;
use sha2::{Digest, Sha256};

use crate::amounts;

/// Where a pod comes from: `api` or `file`; on mirror pods and static pods.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// On a mirror pod: the hash of the static pod that it shows.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// What a container is in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Init,
    /// An init container with `restartPolicy: Always` (KEP-753).
    Sidecar,
    Main,
    Ephemeral,
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}
/// `name_namespace(uid)`, as upstream's messages name a pod.
pub fn format_pod(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

/// All containers with their roles, in the order in which they start.
pub fn containers(pod: &Pod) -> Vec<(Role, std::borrow::Cow<'_, Container>)> {
    use std::borrow::Cow::{Borrowed, Owned};
    let spec = spec(pod);
    let init = spec.init_containers.iter().flatten();
    let init = init.map(|container| (if is_sidecar(container) { Role::Sidecar } else { Role::Init }, Borrowed(container)));
    let main = spec.containers.iter().map(|container| (Role::Main, Borrowed(container)));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| (Role::Ephemeral, Owned(ephemeral(container))));
    init.chain(main).chain(ephemeral).collect()
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn ephemeral(container: &EphemeralContainer) -> Container {
    let from = container.clone();
    Container {
        args: from.args,
        command: from.command,
        env: from.env,
        env_from: from.env_from,
        image: from.image,
        image_pull_policy: from.image_pull_policy,
        name: from.name,
        resources: from.resources,
        security_context: from.security_context,
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        termination_message_path: from.termination_message_path,
        termination_message_policy: from.termination_message_policy,
        tty: from.tty,
        volume_mounts: from.volume_mounts,
        working_dir: from.working_dir,
        ..Container::default()
    }
}

pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<(Role, std::borrow::Cow<'a, Container>)> {
    containers(pod).into_iter().find(|(_, container)| container.name == name)
}

/// Changes when the container must be made anew: its name or image changed (upstream hashes the same two).
pub fn container_hash(container: &Container) -> String {
    let digest = Sha256::digest(format!("{}\0{}", container.name, container.image.as_deref().unwrap_or_default()));
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The pod's restart policy, or the container's own where it has one.
pub fn restart_policy<'a>(pod: &'a Pod, role: Role, container: &'a Container) -> &'a str {
    let policy = spec(pod).restart_policy.as_deref().unwrap_or("Always");
    match role {
        Role::Sidecar => "Always",
        Role::Ephemeral => "Never",
        Role::Init if container.restart_policy.is_none() => {
            if policy == "Never" {
                "Never"
            } else {
                "OnFailure"
            }
        }
        Role::Init | Role::Main => container.restart_policy.as_deref().unwrap_or(policy),
    }
}

/// Does the pod come from this node's own files rather than from the API?
pub fn is_static(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(CONFIG_SOURCE));
    source.is_some_and(|source| source != "api")
}

/// Address (empty is any), protocol and port of every host port.
pub fn host_ports(pod: &Pod) -> Vec<(String, String, i32)> {
    let containers = containers(pod);
    let ports = containers.iter().filter(|(role, _)| *role != Role::Ephemeral).flat_map(|(_, container)| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let host = port.host_port.filter(|port| *port > 0)?;
            Some((port.host_ip.clone().unwrap_or_default(), port.protocol.clone().unwrap_or_else(|| "TCP".into()), host))
        })
        .collect()
}

/// The image volumes that the container mounts (KEP-4639).
pub fn image_volumes<'a>(pod: &'a Pod, container: &'a Container) -> impl Iterator<Item = &'a Volume> {
    let mounted = |volume: &&Volume| container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name);
    spec(pod).volumes.iter().flatten().filter(|volume| volume.image.is_some()).filter(mounted)
}

/// Under which name the image of a volume is remembered; no container can be called so.
pub fn volume_image(volume: &str) -> String {
    format!("volume {volume}")
}

pub fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

pub fn grace_seconds(pod: &Pod) -> i64 {
    let own = pod.metadata.deletion_grace_period_seconds;
    own.or(spec(pod).termination_grace_period_seconds).unwrap_or(30)
}

/// `None` for text that is no quantity: the API server lets none through.
pub fn quantity(value: &ApiQuantity) -> Option<Quantity> {
    Quantity::parse(&value.0).ok()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// A container's request (falling back to its limit) or limit of `resource`.
pub fn request(container: &Container, resource: &str) -> Option<Quantity> {
    let resources = container.resources.as_ref()?;
    let found = resources.requests.as_ref().and_then(|all| all.get(resource));
    found.or_else(|| resources.limits.as_ref().and_then(|all| all.get(resource))).and_then(quantity)
}
pub fn limit(container: &Container, resource: &str) -> Option<Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(resource).and_then(quantity)
}

/// Upstream's classes, by cpu and memory of the pod as a whole where it says them, else of all containers but ephemeral ones.
pub fn qos(pod: &Pod) -> Qos {
    let (mut any, mut guaranteed) = (false, true);
    let mut judge = |resources: Option<&ResourceRequirements>| {
        for resource in ["cpu", "memory"] {
            let request = amounts::requested(resources, resource).filter(|amount| *amount != 0);
            let limit = amounts::limited(resources, resource).filter(|amount| *amount != 0);
            any |= request.is_some() || limit.is_some();
            guaranteed &= request.is_some() && request == limit;
        }
    };
    let own = spec(pod).resources.as_ref();
    if own.is_some_and(|own| own.requests.is_some() || own.limits.is_some()) {
        judge(own);
    } else {
        let containers = containers(pod);
        containers.iter().filter(|(role, _)| *role != Role::Ephemeral).for_each(|(_, container)| judge(container.resources.as_ref()));
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// -997 to 1000 (upstream: GetContainerOOMScoreAdjust).
pub fn oom_score(pod: &Pod, container: &Container, memory_bytes: i64) -> i64 {
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = memory_share(pod, container);
            let score = 1000 - (1000_i128 * i128::from(request) / i128::from(memory_bytes.max(1))) as i64;
            score.clamp(3, 999)
        }
    }
}

/// What the container asks for of memory, with its part of what only the pod as a whole asks for (KEP-2837).
fn memory_share(pod: &Pod, container: &Container) -> i64 {
    let own = |container: &Container| amounts::requested(container.resources.as_ref(), "memory").unwrap_or(0);
    let Some(whole) = amounts::requested(spec(pod).resources.as_ref(), "memory") else { return own(container) };
    let containers = containers(pod);
    let sharing = || containers.iter().filter(|(role, _)| matches!(role, Role::Main | Role::Sidecar));
    let rest = whole - sharing().map(|(_, container)| own(container)).sum::<i64>();
    own(container) + rest.max(0) / i64::try_from(sharing().count().max(1)).unwrap_or(1)
}

/// May the container run again after it ended with `exit_code`? Its rules come before its policy (KEP-5307).
pub fn restarts(pod: &Pod, role: Role, container: &Container, exit_code: i32) -> bool {
    if rule(container, exit_code).is_some_and(|action| action.starts_with("Restart")) {
        return true;
    }
    match restart_policy(pod, role, container) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Does the whole pod begin anew after the container ended with `exit_code` (KEP-5532)?
pub fn restarts_all(container: &Container, exit_code: i32) -> bool {
    rule(container, exit_code) == Some("RestartAllContainers")
}

/// The action of the first rule that speaks of `exit_code`.
fn rule(container: &Container, exit_code: i32) -> Option<&str> {
    let matching = container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
            if codes.operator == "NotIn" { !listed } else { listed }
        })
    });
    matching.map(|rule| rule.action.as_str())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn pod(spec: serde_json::Value) -> Pod {
        let object = serde_json::json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u1", "labels": {"app": "web"}, "generation": 1}, "spec": spec,
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn qos_classes_are_upstreams() {
        let class = |resources: serde_json::Value| qos(&pod(serde_json::json!({"containers": [{"name": "a", "resources": resources}]})));
        assert_eq!(class(serde_json::json!({})), Qos::BestEffort);
        assert_eq!(class(serde_json::json!({"requests": {"cpu": "1"}})), Qos::Burstable);
        assert_eq!(class(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}})), Qos::Guaranteed);
        assert_eq!(
            class(serde_json::json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "0.5", "memory": "1Gi"}})),
            Qos::Guaranteed
        );
        assert_eq!(class(serde_json::json!({"requests": {"memory": "1Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}})), Qos::Burstable);
    }

    #[test]
    fn oom_scores_fall_with_the_share_of_memory_asked_for() {
        let pod = pod(serde_json::json!({"containers": [{"name": "a", "resources": {"requests": {"memory": "4Gi"}}}]}));
        assert_eq!(oom_score(&pod, &spec(&pod).containers[0], 16 << 30), 750);
        assert_eq!(oom_score(&pod, &spec(&pod).containers[0], 4 << 30), 3);
    }

    #[test]
    fn a_rule_for_an_exit_code_comes_before_the_policies() {
        let rule = |operator: &str, values: &[i32]| serde_json::json!([{"action": "Restart", "exitCodes": {"operator": operator, "values": values}}]);
        for (pod_policy, own, rules, code, expected) in [
            ("Never", Some("Never"), rule("In", &[42]), 42, true),
            ("Never", Some("Never"), rule("In", &[42]), 1, false),
            ("Never", Some("OnFailure"), rule("NotIn", &[3]), 3, true),
            ("Never", Some("Never"), rule("NotIn", &[3]), 3, false),
            ("Always", Some("Never"), serde_json::json!([]), 0, false),
            ("Never", Some("Always"), serde_json::json!([]), 0, true),
            ("OnFailure", None, serde_json::json!([]), 0, false),
        ] {
            let pod = pod(
                serde_json::json!({"restartPolicy": pod_policy, "containers": [{"name": "a", "restartPolicy": own, "restartPolicyRules": rules}]}),
            );
            assert_eq!(restarts(&pod, Role::Main, &spec(&pod).containers[0], code), expected, "{pod_policy} {own:?} {rules} {code}");
        }
    }
}
