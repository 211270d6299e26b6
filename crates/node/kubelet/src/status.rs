//! The pod's status as users see it, from the same world that the plan saw. Pure. Upstream: `kubelet_pods.go` and `status/generate.go`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, ContainerUser,
    HostIP, LinuxContainerUser, PodCondition, PodIP, PodStatus, ResourceRequirements, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use meta::quantity::{Format, Quantity};

use crate::env::Facts;
use crate::plan::{Plan, is_started};
use crate::podspec::{self, Role};
use crate::probe::Kind;
use crate::world::{Seen, State, Waiting, World};
use crate::{amounts, crispec};

/// Seconds only: the API's times have no more.
fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// `ended`: everything of the pod is stopped and it will not run again. The addresses come with `facts`, which remember those of a
/// sandbox that is stopped: a pod that ends before its first status was written still tells where it was.
pub fn status(world: &World<'_>, plan: &Plan, facts: &Facts, ended: bool) -> PodStatus {
    let former = world.pod.status.clone().unwrap_or_default();
    let containers = podspec::containers(world.pod);
    let of = |roles: &[Role]| -> Vec<ContainerStatus> {
        containers
            .iter()
            .filter(|(role, _)| roles.contains(role))
            .map(|(role, container)| container_status(world, plan, *role, container))
            .collect()
    };
    let (init, main, ephemeral) = (of(&[Role::Init, Role::Sidecar]), of(&[Role::Main]), of(&[Role::Ephemeral]));
    let phase = match phase(world, &init, &main, ended, former.phase.as_deref()) {
        "Succeeded" | "Failed" if !podspec::is_terminal(world.pod) && may_run(world) => unfinished(&main),
        phase => phase,
    };
    let former_ips = || former.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    let ips: Vec<String> = if facts.pod_ips.is_empty() { former_ips() } else { facts.pod_ips.clone() };
    let host_ips = &facts.host_ips;
    let verdict = world.memory.verdict.as_ref().filter(|_| phase == "Failed");
    let mut status = PodStatus {
        phase: Some(phase.into()),
        message: verdict
            .map(|verdict| verdict.message.clone())
            .or_else(|| former.message.clone().filter(|_| podspec::is_terminal(world.pod))),
        reason: verdict.map(|verdict| verdict.reason.clone()).or_else(|| former.reason.clone().filter(|_| podspec::is_terminal(world.pod))),
        host_ip: host_ips.first().cloned(),
        host_ips: Some(host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: former.start_time.clone().or_else(|| world.memory.start_time.map(time)),
        qos_class: former.qos_class.clone().or_else(|| Some(podspec::qos(world.pod).as_str().into())),
        observed_generation: world.pod.metadata.generation,
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: (!main.is_empty()).then_some(main),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        ..PodStatus::default()
    };
    status.conditions = Some(conditions(world, &status, former.conditions.as_deref().unwrap_or_default()));
    status
}

fn container_status(world: &World<'_>, plan: &Plan, role: Role, container: &Container) -> ContainerStatus {
    let mut status =
        ContainerStatus { name: container.name.clone(), image: container.image.clone().unwrap_or_default(), ..Default::default() };
    let waiting = plan.waiting.get(&container.name);
    let Some(seen) = world.latest(&container.name) else {
        status.state = Some(waiting_state(waiting.cloned().unwrap_or_else(|| unstarted(world, role))));
        status.started = Some(false);
        return former_of_gone(world, container, status);
    };
    status.restart_count = i32::try_from(seen.attempt).unwrap_or(i32::MAX);
    status.container_id = Some(container_id(seen));
    if role != Role::Ephemeral {
        status.resources = Some(resources_in_use(container, seen));
        status.allocated_resources = container.resources.as_ref().and_then(|resources| resources.requests.clone());
    }
    status.user = seen.user.as_ref().filter(|_| seen.state == State::Running).map(|user| ContainerUser {
        linux: Some(LinuxContainerUser { uid: user.uid, gid: user.gid, supplemental_groups: Some(user.supplemental_groups.clone()) }),
    });
    status.stop_signal = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone());
    let mounts: Vec<VolumeMountStatus> = container.volume_mounts.iter().flatten().map(volume_mount).collect();
    status.volume_mounts = (!mounts.is_empty()).then_some(mounts);
    if !seen.image.is_empty() {
        status.image = seen.image.clone();
    }
    status.image_id = seen.image_id.clone();
    let before = world.former(&container.name).filter(|former| former.state == State::Exited).map(terminated);
    status.last_state = before;
    match (seen.state, waiting) {
        (State::Running, _) => {
            let running = ContainerStateRunning { started_at: seen.started_at.map(time) };
            status.state = Some(ContainerState { running: Some(running), ..Default::default() });
            status.started = Some(is_started(world, container, seen));
            // An init container is ready once it succeeded, an ephemeral one never (upstream: prober_manager.go UpdatePodStatus).
            status.ready = matches!(role, Role::Main | Role::Sidecar) && is_ready(world, container, seen);
        }
        (State::Exited, Some(waiting)) => {
            status.last_state = Some(terminated(seen));
            status.state = Some(waiting_state(waiting.clone()));
            status.started = Some(false);
        }
        (State::Exited, None) => {
            status.state = Some(terminated(seen));
            status.started = Some(false);
            status.ready = role == Role::Init && seen.exit_code == 0;
        }
        (State::Created | State::Unknown, waiting) => {
            status.state = Some(waiting_state(waiting.cloned().unwrap_or_else(|| unstarted(world, role))));
            status.started = Some(false);
        }
    }
    status
}

/// What the container was given, with what its control group says of it while it runs (upstream: convertContainerStatusResources).
fn resources_in_use(container: &Container, seen: &Seen) -> ResourceRequirements {
    let mut resources = container.resources.clone().unwrap_or_default();
    resources.claims = None;
    let Some(actual) = seen.resources.as_ref().filter(|_| seen.state == State::Running) else { return resources };
    let milli = |milli: i64| Quantity::from_milli(milli, Format::DecimalSi).to_string();
    let put = |list: &mut Option<BTreeMap<String, ApiQuantity>>, name: &str, text: String| {
        list.get_or_insert_default().insert(name.into(), ApiQuantity(text));
    };
    if let Some(asked) = amounts::limited(Some(&resources), "cpu")
        && actual.cpu_quota > 0
        && actual.cpu_quota != crispec::cpu_quota(asked)
    {
        put(&mut resources.limits, "cpu", milli(actual.cpu_quota * 1000 / actual.cpu_period.max(1)));
    }
    if let Some(asked) = amounts::limited(Some(&resources), "memory")
        && actual.memory_limit_in_bytes > 0
        && actual.memory_limit_in_bytes != asked
    {
        put(&mut resources.limits, "memory", Quantity::new(actual.memory_limit_in_bytes, Format::BinarySi).to_string());
    }
    if let Some(asked) = amounts::requested(Some(&resources), "cpu")
        && actual.cpu_shares > 2
        && actual.cpu_shares != crispec::cpu_shares(asked)
    {
        put(&mut resources.requests, "cpu", milli((actual.cpu_shares * 1000 + 1023) / 1024));
    }
    resources
}

fn volume_mount(mount: &VolumeMount) -> VolumeMountStatus {
    let recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
    let shown = if recursive { "Enabled" } else { "Disabled" };
    VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only.filter(|on| *on),
        recursive_read_only: (mount.read_only == Some(true)).then(|| shown.to_owned()),
        volume_status: None,
    }
}

/// A container of which the runtime knows nothing although the API saw it (its record was removed): it keeps its last state.
fn former_of_gone(world: &World<'_>, container: &Container, mut status: ContainerStatus) -> ContainerStatus {
    let former = world.pod.status.as_ref();
    let lists =
        [former.and_then(|former| former.container_statuses.as_ref()), former.and_then(|former| former.init_container_statuses.as_ref())];
    let known = lists.into_iter().flatten().flatten().find(|known| known.name == container.name);
    if let Some(known) = known.filter(|known| known.state.as_ref().is_some_and(|state| state.terminated.is_some())) {
        status = known.clone();
        status.ready = known.ready && world.containers.is_empty();
    }
    status
}

fn unstarted(world: &World<'_>, role: Role) -> Waiting {
    let has_init = podspec::spec(world.pod).init_containers.iter().flatten().next().is_some();
    let reason = if has_init && role != Role::Ephemeral { "PodInitializing" } else { "ContainerCreating" };
    Waiting { reason, message: String::new() }
}

fn waiting_state(waiting: Waiting) -> ContainerState {
    let message = (!waiting.message.is_empty()).then_some(waiting.message);
    ContainerState { waiting: Some(ContainerStateWaiting { reason: Some(waiting.reason.into()), message }), ..Default::default() }
}

fn container_id(seen: &Seen) -> String {
    format!("{}://{}", seen.runtime, seen.id)
}

fn terminated(seen: &Seen) -> ContainerState {
    let reason = match (seen.reason.is_empty(), seen.exit_code) {
        (false, _) => seen.reason.clone(),
        (true, 0) => "Completed".into(),
        (true, _) => "Error".into(),
    };
    let terminated = ContainerStateTerminated {
        container_id: Some(container_id(seen)),
        exit_code: seen.exit_code,
        finished_at: seen.finished_at.map(time),
        // A container that never ran shows the beginning of time, as upstream.
        started_at: Some(time(seen.started_at.unwrap_or(Timestamp::UNIX_EPOCH))),
        message: (!seen.message.is_empty()).then(|| seen.message.clone()),
        reason: Some(reason),
        signal: None,
    };
    ContainerState { terminated: Some(terminated), ..Default::default() }
}

pub fn is_ready(world: &World<'_>, container: &Container, seen: &Seen) -> bool {
    is_started(world, container, seen) && (container.readiness_probe.is_none() || world.probe(seen, Kind::Readiness) == Some(true))
}

/// Does anything of the pod still use what it holds of the node? Then it is not done yet, whatever was decided: who waits for its end
/// may give that away (KEP-3329; upstream: mergePodStatus).
fn may_run(world: &World<'_>) -> bool {
    world.containers.iter().any(|seen| matches!(seen.state, State::Running | State::Unknown))
}

fn unfinished(main: &[ContainerStatus]) -> &'static str {
    if main.iter().any(|status| status.container_id.is_some()) { "Running" } else { "Pending" }
}

/// Upstream: getPhase.
fn phase(world: &World<'_>, init: &[ContainerStatus], main: &[ContainerStatus], ended: bool, former: Option<&str>) -> &'static str {
    match former {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ if world.memory.verdict.is_some() => return "Failed",
        _ => {}
    }
    let exit = |status: &ContainerStatus| status.state.as_ref().and_then(|state| state.terminated.as_ref()).map(|ended| ended.exit_code);
    let is_running = |status: &ContainerStatus| status.state.as_ref().is_some_and(|state| state.running.is_some());
    let ended_before = |status: &ContainerStatus| status.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
    let began = main.iter().any(|status| is_running(status) || exit(status).is_some() || ended_before(status));
    if !began {
        let failed = |status: &ContainerStatus, code: i32| {
            podspec::container(world.pod, &status.name)
                .is_some_and(|(role, container)| role == Role::Init && !podspec::restarts(world.pod, role, &container, code))
        };
        if init.iter().any(|status| exit(status).is_some_and(|code| code != 0 && failed(status, code))) {
            return "Failed";
        }
        return if ended { "Failed" } else { "Pending" };
    }
    let last_exit = |status: &ContainerStatus| {
        let before = status.last_state.as_ref().and_then(|state| state.terminated.as_ref()).map(|ended| ended.exit_code);
        exit(status).or(before)
    };
    let restartable = main.iter().filter(|status| !is_running(status)).any(|status| {
        last_exit(status)
            .zip(podspec::container(world.pod, &status.name))
            .is_some_and(|(code, (role, container))| podspec::restarts(world.pod, role, &container, code))
    });
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in main {
        match (is_running(status), exit(status)) {
            (true, _) => running += 1,
            (_, Some(code)) => {
                stopped += 1;
                succeeded += u32::from(code == 0);
            }
            _ if ended_before(status) => stopped += 1,
            _ => waiting += 1,
        }
    }
    match () {
        () if waiting > 0 && !ended => "Pending",
        () if running > 0 => "Running",
        () if restartable && !ended => "Running",
        () if stopped == succeeded && waiting == 0 => "Succeeded",
        () => "Failed",
    }
}

fn conditions(world: &World<'_>, status: &PodStatus, former: &[PodCondition]) -> Vec<PodCondition> {
    let phase = status.phase.as_deref().unwrap_or_default();
    let sandbox_ready = world.sandbox().is_some_and(|sandbox| sandbox.ready);
    let mut judged: BTreeMap<&str, (bool, Option<&str>, Option<String>)> = BTreeMap::new();
    judged.insert("PodReadyToStartContainers", (sandbox_ready, None, None));
    judged.insert("Initialized", initialized(world, status, phase));
    let containers = containers_ready(status, phase);
    judged.insert("Ready", ready(world, former, &containers));
    judged.insert("ContainersReady", containers);
    judged.insert("PodScheduled", (true, None, None));
    let ours = |condition: &PodCondition| judged.contains_key(condition.type_.as_str()) || OCCASIONAL.contains(&condition.type_.as_str());
    let mut list: Vec<PodCondition> = former.iter().filter(|condition| !ours(condition)).cloned().collect();
    if let Some(waiting) = &world.memory.resize_waiting {
        judged.insert("PodResizePending", (true, Some(waiting.reason), Some(waiting.message.clone())));
    }
    if let Some(error) = resizing(world) {
        judged.insert("PodResizeInProgress", (true, error.as_ref().map(|_| "Error"), error));
    }
    if let Some(verdict) = world.memory.verdict.as_ref().filter(|verdict| verdict.disrupts) {
        judged.insert("DisruptionTarget", (true, Some("TerminationByKubelet"), Some(verdict.message.clone())));
    } else if let Some(known) = former.iter().find(|condition| condition.type_ == "DisruptionTarget") {
        list.push(known.clone());
    }
    for kind in CONDITIONS.iter().chain(OCCASIONAL).copied() {
        let Some((on, reason, message)) = judged.remove(kind) else { continue };
        let text = if on { "True" } else { "False" };
        let before = former.iter().find(|condition| condition.type_ == kind);
        let same = before.filter(|before| before.status == text).and_then(|before| before.last_transition_time.clone());
        list.push(PodCondition {
            type_: kind.into(),
            status: text.into(),
            reason: reason.map(str::to_owned),
            message,
            last_transition_time: same.or_else(|| Some(time(world.now))),
            observed_generation: world.pod.metadata.generation,
            last_probe_time: None,
        });
    }
    list
}

const CONDITIONS: &[&str] = &["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
/// Conditions of ours that a pod has only while they hold.
pub const OCCASIONAL: &[&str] = &["PodResizePending", "PodResizeInProgress", "DisruptionTarget"];

/// Is a resize that was granted not yet done, and why not?
fn resizing(world: &World<'_>) -> Option<Option<String>> {
    if podspec::is_terminal(world.pod) || world.memory.verdict.is_some() {
        return None;
    }
    let pending = !crate::resize::pending(world).is_empty() || !world.memory.resize_failed.is_empty();
    pending.then(|| world.memory.resize_failed.values().next().map(|failure| failure.message.clone()))
}

type Judgement = (bool, Option<&'static str>, Option<String>);

fn names(statuses: &[&ContainerStatus]) -> String {
    format!("[{}]", statuses.iter().map(|status| status.name.as_str()).collect::<Vec<_>>().join(" "))
}

fn initialized(world: &World<'_>, status: &PodStatus, phase: &str) -> Judgement {
    if phase == "Succeeded" {
        return (true, Some("PodCompleted"), None);
    }
    let mains = status.container_statuses.iter().flatten();
    let began = mains.clone().any(|main| main.container_id.is_some());
    let sidecar = |name: &str| podspec::container(world.pod, name).is_some_and(|(role, _)| role == Role::Sidecar);
    let done = |init: &&ContainerStatus| began || if sidecar(&init.name) { init.started == Some(true) } else { init.ready };
    let pending: Vec<&ContainerStatus> = status.init_container_statuses.iter().flatten().filter(|init| !done(init)).collect();
    if pending.is_empty() {
        (true, None, None)
    } else {
        (false, Some("ContainersNotInitialized"), Some(format!("containers with incomplete status: {}", names(&pending))))
    }
}

fn containers_ready(status: &PodStatus, phase: &str) -> Judgement {
    match phase {
        "Succeeded" => return (false, Some("PodCompleted"), None),
        "Failed" => return (false, Some("PodFailed"), None),
        _ => {}
    }
    let unready: Vec<&ContainerStatus> = status.container_statuses.iter().flatten().filter(|main| !main.ready).collect();
    if unready.is_empty() {
        (true, None, None)
    } else {
        (false, Some("ContainersNotReady"), Some(format!("containers with unready status: {}", names(&unready))))
    }
}

fn ready(world: &World<'_>, former: &[PodCondition], containers: &Judgement) -> Judgement {
    if !containers.0 {
        return containers.clone();
    }
    let mut missing = Vec::new();
    for gate in podspec::spec(world.pod).readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match former.iter().find(|condition| condition.type_ == *kind) {
            None => missing.push(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            Some(condition) if condition.status != "True" => {
                missing.push(format!("the status of pod readiness gate {kind:?} is not \"True\", but {}", condition.status));
            }
            Some(_) => {}
        }
    }
    if missing.is_empty() { (true, None, None) } else { (false, Some("ReadinessGatesNotReady"), Some(missing.join(", "))) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::podspec::tests::pod;
    use crate::world::{Memory, Sandbox};

    fn seen(name: &str, attempt: u32, state: State, exit_code: i32) -> Seen {
        let at = Timestamp::from_second(1000).ok();
        Seen {
            id: format!("{name}{attempt}"),
            name: name.into(),
            sandbox_id: "s".into(),
            attempt,
            state,
            started_at: at,
            finished_at: at,
            exit_code,
            reason: String::new(),
            message: "bye".into(),
            image: "i:1".into(),
            image_id: "sha256:1".into(),
            hash: String::new(),
            runtime: "sternpost".into(),
            resources: None,
            user: None,
        }
    }

    fn shown(spec: Value, containers: &[Seen], ended: bool) -> Value {
        let pod = pod(spec);
        // What is stopped has no address of its own any more; the kubelet remembers it.
        let ips = if ended { vec![] } else { vec!["10.244.0.2".into()] };
        let sandboxes = [Sandbox { id: "s".into(), attempt: 0, ready: !ended, ips }];
        let facts = Facts { pod_ips: vec!["10.244.0.2".into()], host_ips: vec!["192.0.2.1".into()], ..Facts::default() };
        let (memory, probes) = (Memory { start_time: Timestamp::from_second(900).ok(), ..Memory::default() }, BTreeMap::new());
        let now = Timestamp::from_second(2000).unwrap();
        let world = World { pod: &pod, gone: false, sandboxes: &sandboxes, containers, memory: &memory, probes: &probes, now };
        let plan = crate::plan::plan(&world);
        serde_json::to_value(status(&world, &plan, &facts, ended)).unwrap()
    }

    fn condition(status: &Value, kind: &str) -> (String, String) {
        let all = status["conditions"].as_array().unwrap();
        let found = all.iter().find(|condition| condition["type"] == kind).unwrap();
        (found["status"].as_str().unwrap().into(), found["message"].as_str().unwrap_or_default().into())
    }

    #[test]
    fn running_pod_is_ready_with_addresses_and_ids() {
        let status = shown(json!({"containers": [{"name": "a", "image": "i"}]}), &[seen("a", 1, State::Running, 0)], false);
        assert_eq!((&status["phase"], &status["podIP"], &status["hostIP"]), (&json!("Running"), &json!("10.244.0.2"), &json!("192.0.2.1")));
        let container = &status["containerStatuses"][0];
        assert_eq!((&container["containerID"], &container["restartCount"]), (&json!("sternpost://a1"), &json!(1)));
        assert_eq!((&container["ready"], &container["started"]), (&json!(true), &json!(true)));
        assert_eq!(condition(&status, "Ready").0, "True");
        assert_eq!(status["qosClass"], "BestEffort");
    }

    #[test]
    fn new_pod_is_pending_and_says_what_is_missing() {
        let status = shown(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b"}]}), &[], false);
        assert_eq!(status["phase"], "Pending");
        assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
        assert_eq!(condition(&status, "Initialized"), ("False".into(), "containers with incomplete status: [i]".into()));
        assert_eq!(condition(&status, "Ready"), ("False".into(), "containers with unready status: [a b]".into()));
    }

    #[test]
    fn init_container_is_ready_once_it_succeeded() {
        let init = |state: State, code: i32| {
            let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
            let status = shown(spec, &[seen("i", 1, state, code)], false);
            (status["initContainerStatuses"][0]["ready"].clone(), condition(&status, "Initialized").0)
        };
        assert_eq!(init(State::Running, 0), (json!(false), "False".into()));
        assert_eq!(init(State::Exited, 3), (json!(false), "False".into()));
        assert_eq!(init(State::Exited, 0), (json!(true), "True".into()));
    }

    #[test]
    fn readiness_probe_without_a_result_is_not_ready() {
        let status = shown(json!({"containers": [{"name": "a", "readinessProbe": {}}]}), &[seen("a", 0, State::Running, 0)], false);
        assert_eq!(status["containerStatuses"][0]["ready"], false);
        assert_eq!((&status["phase"], condition(&status, "ContainersReady").0), (&json!("Running"), "False".to_owned()));
    }

    #[test]
    fn phases_of_ended_containers_follow_the_restart_policy() {
        let phase = |policy: &str, code: i32, ended: bool| {
            let spec = json!({"restartPolicy": policy, "containers": [{"name": "a"}]});
            shown(spec, &[seen("a", 0, State::Exited, code)], ended)["phase"].as_str().unwrap().to_owned()
        };
        assert_eq!(phase("Always", 0, false), "Running");
        assert_eq!(phase("Never", 0, false), "Succeeded");
        assert_eq!(phase("Never", 3, false), "Failed");
        assert_eq!(phase("OnFailure", 3, false), "Running");
        assert_eq!(phase("Always", 0, true), "Succeeded");
        assert_eq!(phase("Always", 137, true), "Failed");
    }

    #[test]
    fn a_pod_is_not_done_while_a_sidecar_of_it_runs() {
        let spec =
            json!({"restartPolicy": "Never", "initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
        let phase = |sidecar: State| {
            let containers = [seen("a", 0, State::Exited, 3), seen("s", 0, sidecar, 0)];
            shown(spec.clone(), &containers, false)["phase"].as_str().unwrap().to_owned()
        };
        assert_eq!((phase(State::Running), phase(State::Exited)), ("Running".to_owned(), "Failed".to_owned()));
    }

    #[test]
    fn a_pod_that_is_to_end_fails_once_its_containers_have_stopped() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let facts = Facts::default();
        let said = |state: State| {
            let (containers, probes) = ([seen("a", 0, state, 9)], BTreeMap::new());
            let verdict = crate::world::Verdict { reason: "Evicted".into(), message: "why".into(), disrupts: true, grace_seconds: None };
            let memory = Memory { verdict: Some(verdict), ..Memory::default() };
            let now = Timestamp::from_second(2000).unwrap();
            let world = World { pod: &pod, gone: false, sandboxes: &[], containers: &containers, memory: &memory, probes: &probes, now };
            let status = status(&world, &crate::plan::plan(&world), &facts, false);
            let disrupted = status.conditions.iter().flatten().any(|condition| condition.type_ == "DisruptionTarget");
            (status.phase.unwrap(), status.reason, disrupted)
        };
        assert_eq!(said(State::Running), ("Running".into(), None, true));
        assert_eq!(said(State::Exited), ("Failed".into(), Some("Evicted".into()), true));
    }

    #[test]
    fn ended_pod_still_tells_the_address_it_had() {
        let status = shown(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}), &[seen("a", 0, State::Exited, 0)], true);
        assert_eq!((&status["podIP"], &status["podIPs"]), (&json!("10.244.0.2"), &json!([{"ip": "10.244.0.2"}])));
    }

    #[test]
    fn ended_container_tells_code_reason_and_last_words() {
        let status = shown(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}), &[seen("a", 0, State::Exited, 3)], false);
        let ended = &status["containerStatuses"][0]["state"]["terminated"];
        assert_eq!((&ended["exitCode"], &ended["reason"], &ended["message"]), (&json!(3), &json!("Error"), &json!("bye")));
        assert_eq!(ended["startedAt"], "1970-01-01T00:16:40Z");
    }
}
