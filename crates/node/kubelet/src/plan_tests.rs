//! Scenes as tables: a pod, what the runtime shows, what is remembered; then what is done.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::*;
use crate::podspec::tests::pod;
use crate::world::{Memory, Sandbox};

struct Scene {
    pod: Pod,
    gone: bool,
    sandboxes: Vec<Sandbox>,
    containers: Vec<Seen>,
    memory: Memory,
    probes: BTreeMap<(String, Kind), bool>,
}

const NOW: i64 = 1_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn scene(spec: serde_json::Value) -> Scene {
    let sandbox = Sandbox { id: "s".into(), attempt: 0, ready: true, ips: vec!["10.244.0.2".into()] };
    let memory = Memory { volumes_ready: true, start_time: Some(at(NOW - 100)), ..Memory::default() };
    let mut scene = Scene { pod: pod(spec), gone: false, sandboxes: vec![sandbox], containers: vec![], memory, probes: BTreeMap::new() };
    for (_, container) in podspec::containers(&scene.pod) {
        for attempt in 0..3 {
            scene.memory.images.insert((container.name.clone(), attempt), Image::Ready("sha256:1".into()));
        }
    }
    scene
}

impl Scene {
    fn seen(mut self, name: &str, attempt: u32, state: State, exit_code: i32) -> Self {
        let hash = podspec::container(&self.pod, name).map(|(_, container)| podspec::container_hash(&container)).unwrap_or_default();
        self.containers.push(Seen {
            id: format!("{name}{attempt}"),
            name: name.into(),
            sandbox_id: "s".into(),
            attempt,
            state,
            started_at: Some(at(NOW - 50)),
            finished_at: (state == State::Exited).then(|| at(NOW - 3)),
            exit_code,
            reason: String::new(),
            message: String::new(),
            image: String::new(),
            image_id: String::new(),
            hash,
            runtime: "sternpost".into(),
            resources: None,
            user: None,
        });
        self
    }
    fn plan(&self) -> Plan {
        plan(&World {
            pod: &self.pod,
            gone: self.gone,
            sandboxes: &self.sandboxes,
            containers: &self.containers,
            memory: &self.memory,
            probes: &self.probes,
            now: at(NOW),
        })
    }
    /// The actions in short: `start a 1`.
    fn actions(&self) -> Vec<String> {
        let short = |action: &Action| match action {
            Action::MountVolumes => "mount".into(),
            Action::RunSandbox { attempt } => format!("sandbox {attempt}"),
            Action::StopSandbox(id) => format!("stop {id}"),
            Action::EnsureImage { container, attempt } => format!("image {container} {attempt}"),
            Action::Start { container, attempt, .. } => format!("start {container} {attempt}"),
            Action::Kill { id, grace_seconds, why, .. } => format!("kill {id} {grace_seconds} {why:?}"),
            Action::Remove { id, .. } => format!("remove {id}"),
            Action::Fail(verdict) => format!("fail {}", verdict.reason),
            Action::Finish => "finish".into(),
            Action::Forget => "forget".into(),
            Action::Retire => "retire".into(),
            Action::Resize { id, resources, .. } => format!("resize {id} to {} {}", resources.cpu_shares, resources.memory_limit_in_bytes),
        };
        self.plan().actions.iter().map(short).collect()
    }
    fn deleted(mut self, grace: i64) -> Self {
        self.pod.metadata.deletion_timestamp = Some(Time(at(NOW)));
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
        self
    }
}

fn two() -> serde_json::Value {
    json!({"containers": [{"name": "a"}, {"name": "b"}]})
}

#[test]
fn new_pod_gets_volumes_then_sandbox_then_images_then_containers() {
    let mut scene = scene(two());
    scene.memory.volumes_ready = false;
    let sandboxes = std::mem::take(&mut scene.sandboxes);
    assert_eq!(scene.actions(), ["mount"]);
    scene.memory.volumes_ready = true;
    assert_eq!(scene.actions(), ["sandbox 0"]);
    scene.sandboxes = sandboxes;
    assert_eq!(scene.actions(), ["start a 0", "start b 0"]);
    scene.memory.images.remove(&("b".into(), 0));
    assert_eq!(scene.actions(), ["start a 0", "image b 0"]);
    let scene = scene.seen("a", 0, State::Running, 0).seen("b", 0, State::Running, 0);
    assert_eq!(scene.plan(), Plan::default());
}

#[test]
fn dead_sandbox_is_replaced_with_a_higher_attempt_and_its_containers_begin_anew() {
    let mut scene = scene(two()).seen("a", 0, State::Exited, 137).seen("b", 0, State::Exited, 137);
    scene.sandboxes[0].ready = false;
    assert_eq!(scene.actions(), ["sandbox 1"]);
    scene.sandboxes.insert(0, Sandbox { id: "s1".into(), attempt: 1, ready: true, ips: vec![] });
    assert_eq!(scene.actions(), ["start a 1", "start b 1"]);
}

#[test]
fn init_containers_run_in_order_and_sidecars_let_the_next_go_once_started() {
    let spec = json!({"initContainers": [{"name": "i"}, {"name": "side", "restartPolicy": "Always", "startupProbe": {}}], "containers": [{"name": "a"}]});
    assert_eq!(scene(spec.clone()).actions(), ["start i 0"]);
    assert_eq!(scene(spec.clone()).seen("i", 0, State::Running, 0).actions(), [""; 0]);
    let scene = scene(spec).seen("i", 0, State::Exited, 0);
    assert_eq!(scene.actions(), ["start side 0"]);
    let mut scene = scene.seen("side", 0, State::Running, 0);
    assert_eq!(scene.actions(), [""; 0]);
    scene.probes.insert(("side0".into(), Kind::Startup), true);
    assert_eq!(scene.actions(), ["start a 0"]);
    let mut scene = scene.seen("a", 0, State::Running, 0);
    scene.containers[1].state = State::Exited;
    assert_eq!(scene.actions(), ["start side 1"]);
}

#[test]
fn restart_policies_decide_what_comes_back() {
    let actions = |policy: &str, code: i32| {
        scene(json!({"restartPolicy": policy, "containers": [{"name": "a"}]})).seen("a", 0, State::Exited, code).actions()
    };
    assert_eq!(actions("Always", 0), ["start a 1"]);
    assert_eq!(actions("OnFailure", 1), ["start a 1"]);
    assert_eq!(actions("OnFailure", 0), ["stop s"]);
    assert_eq!(actions("Never", 1), ["stop s"]);
    let init = |policy: &str| {
        scene(json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}))
            .seen("i", 0, State::Exited, 1)
            .actions()
    };
    assert_eq!(init("Never"), ["stop s"]);
    assert_eq!(init("Always"), ["start i 1"]);
}

#[test]
fn second_crash_waits_in_crash_loop_back_off_until_its_time() {
    let mut scene = scene(json!({"containers": [{"name": "a"}]})).seen("a", 1, State::Exited, 1);
    scene.memory.backoffs.insert("a".into(), Backoff { wait: Duration::from_secs(80), updated: at(NOW - 60) });
    let plan = scene.plan();
    assert_eq!((plan.actions.len(), plan.wake_at), (0, Some(at(NOW - 3 + 80))));
    let message = "back-off 1m20s restarting failed container=a pod=web_default(u1)";
    assert_eq!(plan.waiting["a"], Waiting { reason: "CrashLoopBackOff", message: message.into() });
    scene.memory.backoffs.insert("a".into(), Backoff { wait: Duration::from_secs(300), updated: at(NOW - 601) });
    assert_eq!(scene.actions(), ["start a 2"]);
}

#[test]
fn back_off_doubles_to_five_minutes_and_is_forgotten_after_ten() {
    let mut backoff = next_backoff(None, at(0));
    let mut waits = vec![backoff.wait.as_secs()];
    for _ in 0..6 {
        backoff = next_backoff(Some(&backoff), at(0));
        waits.push(backoff.wait.as_secs());
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(next_backoff(Some(&backoff), at(601)).wait.as_secs(), 10);
}

#[test]
fn failed_pull_is_shown_first_as_an_error_and_then_as_backing_off() {
    let mut scene = scene(json!({"containers": [{"name": "a", "image": "x:1"}]}));
    let failed = |ago: i64| Image::Failed {
        reason: "ErrImagePull",
        message: "no".into(),
        at: at(NOW - ago),
        until: at(NOW - ago + 10),
        wait: Duration::from_secs(10),
    };
    scene.memory.images.insert(("a".into(), 0), failed(1));
    assert_eq!(scene.plan().waiting["a"].reason, "ErrImagePull");
    scene.memory.images.insert(("a".into(), 0), failed(5));
    assert_eq!(
        scene.plan().waiting["a"],
        Waiting { reason: "ImagePullBackOff", message: "Back-off pulling image \"x:1\": ErrImagePull: no".into() }
    );
    assert_eq!(scene.plan().wake_at, Some(at(NOW + 5)));
    scene.memory.images.insert(("a".into(), 0), failed(10));
    assert_eq!(scene.actions(), ["image a 0"]);
}

#[test]
fn failed_probes_changed_images_and_failed_hooks_kill_the_container_once() {
    let spec = json!({"terminationGracePeriodSeconds": 9, "containers": [{"name": "a", "image": "x", "livenessProbe": {"terminationGracePeriodSeconds": 2}, "startupProbe": {}}]});
    let mut scene = scene(spec).seen("a", 0, State::Running, 0);
    scene.probes.insert(("a0".into(), Kind::Startup), true);
    assert_eq!(scene.actions(), [""; 0]);
    scene.probes.insert(("a0".into(), Kind::Liveness), false);
    assert_eq!(scene.actions(), ["kill a0 2 Liveness"]);
    scene.memory.stopping.insert("a0".into(), 2);
    assert_eq!(scene.actions(), [""; 0]);
    scene.memory.stopping.clear();
    scene.probes.insert(("a0".into(), Kind::Startup), false);
    assert_eq!(scene.actions(), ["kill a0 9 Startup"]);
    scene.memory.post_start.insert("a0".into(), PostStart::Failed("no".into()));
    assert_eq!(scene.actions(), ["kill a0 9 PostStart"]);
    scene.pod.spec.as_mut().unwrap().containers[0].image = Some("y".into());
    assert_eq!(scene.actions(), ["kill a0 9 Changed"]);
}

#[test]
fn deletion_stops_mains_then_sidecars_in_reverse_then_the_sandbox_then_tells_the_api() {
    let spec = json!({"initContainers": [{"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
    let running = |names: &[&str]| {
        let mut scene = scene(spec.clone()).deleted(7);
        for name in ["s1", "s2", "a"] {
            scene = scene.seen(name, 0, if names.contains(&name) { State::Running } else { State::Exited }, 0);
        }
        scene
    };
    assert_eq!(running(&["s1", "s2", "a"]).actions(), ["kill a0 7 PodEnds"]);
    assert_eq!(running(&["s1", "s2"]).actions(), ["kill s20 7 PodEnds"]);
    assert_eq!(running(&["s1"]).actions(), ["kill s10 7 PodEnds"]);
    assert_eq!(running(&[]).actions(), ["stop s"]);
    let mut stopped = running(&[]);
    stopped.sandboxes[0].ready = false;
    assert_eq!(stopped.actions(), ["finish"]);
    stopped.memory.finished = true;
    assert_eq!(stopped.actions(), [""; 0]);
    stopped.gone = true;
    assert_eq!(stopped.actions(), ["forget"]);
}

#[test]
fn impatient_deletion_shortens_a_stop_under_way() {
    let mut scene = scene(two()).seen("a", 0, State::Running, 0).deleted(1);
    scene.memory.stopping.insert("a0".into(), 30);
    assert_eq!(scene.actions(), ["kill a0 1 PodEnds"]);
}

#[test]
fn deadline_fails_the_pod_and_terminal_pods_start_nothing() {
    let mut scene = scene(json!({"activeDeadlineSeconds": 100, "containers": [{"name": "a"}]})).seen("a", 0, State::Running, 0);
    assert_eq!(scene.actions(), ["fail DeadlineExceeded"]);
    scene.memory.start_time = Some(at(NOW - 99));
    assert_eq!(scene.plan().wake_at, Some(at(NOW + 1)));
    scene.pod.status = serde_json::from_value(json!({"phase": "Failed"})).unwrap();
    assert_eq!(scene.actions(), ["kill a0 30 PodEnds"]);
}

#[test]
fn only_the_last_two_of_a_container_are_kept() {
    let scene = scene(two()).seen("b", 0, State::Running, 0).seen("a", 0, State::Exited, 1).seen("a", 1, State::Exited, 1).seen(
        "a",
        2,
        State::Running,
        1,
    );
    assert_eq!(scene.actions(), ["remove a0"]);
}

/// A running container `a` that was given 100m of a processor and shall have 200m.
fn resized(policy: &str) -> Scene {
    let spec = |cpu: &str| {
        json!({"restartPolicy": "OnFailure", "containers": [{"name": "a",
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}], "resources": {"requests": {"cpu": cpu}}}]})
    };
    let mut scene = scene(spec("200m")).seen("a", 0, State::Running, 0);
    scene.memory.given = crate::resize::Given::all(&pod(spec("100m")));
    scene
}

#[test]
fn a_grown_container_is_resized_in_place_or_replaced_as_it_asks() {
    assert_eq!(resized("NotRequired").actions(), ["resize a0 to 204 0"]);
    assert_eq!(resized("RestartContainer").actions(), ["kill a0 30 Resized"]);
    let mut done = resized("NotRequired");
    done.memory.given = crate::resize::Given::all(&done.pod);
    assert!(done.actions().is_empty());
}

#[test]
fn a_container_that_was_stopped_to_be_replaced_comes_back_whatever_it_exits_with() {
    let mut scene = scene(json!({"restartPolicy": "OnFailure", "containers": [{"name": "a"}]})).seen("a", 0, State::Exited, 0);
    assert!(is_complete(&World {
        pod: &scene.pod,
        gone: false,
        sandboxes: &scene.sandboxes,
        containers: &scene.containers,
        memory: &scene.memory,
        probes: &scene.probes,
        now: at(NOW),
    }));
    scene.memory.replaced.insert("a0".into());
    assert_eq!(scene.actions(), ["start a 1"]);
}

#[test]
fn a_rule_makes_all_containers_begin_anew_once_the_others_have_stopped() {
    let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "init"}],
        "containers": [{"name": "a", "restartPolicy": "Never", "restartPolicyRules": rule}, {"name": "b"}]});
    let ended = |b: State| scene(spec.clone()).seen("init", 0, State::Exited, 0).seen("a", 0, State::Exited, 42).seen("b", 0, b, 0);
    assert_eq!(ended(State::Running).actions(), ["kill b0 30 RestartAll"]);
    let mut stopped = ended(State::Exited);
    assert_eq!(stopped.actions(), ["retire"]);
    stopped.memory.retired = ["init0", "a0", "b0"].map(str::to_owned).into();
    stopped.memory.replaced = stopped.memory.retired.clone();
    assert_eq!(stopped.actions(), ["start init 1"]);
    let other = scene(spec).seen("init", 0, State::Exited, 0).seen("a", 0, State::Exited, 1).seen("b", 0, State::Exited, 0);
    assert!(other.plan().ending);
}

#[test]
fn a_clock_that_was_set_back_makes_nobody_wait_for_it() {
    for (back, waits) in [(0, true), (3600, false)] {
        let mut crashed = scene(two()).seen("a", 0, State::Exited, 1).seen("b", 0, State::Running, 0);
        crashed.memory.backoffs.insert("a".into(), Backoff { wait: Duration::from_secs(20), updated: at(NOW + back - 5) });
        crashed.containers[0].finished_at = Some(at(NOW + back - 3));
        assert_eq!(crashed.plan().waiting.contains_key("a"), waits, "a crash {back} s ago in the future");
        let mut failed = scene(two());
        failed.sandboxes.clear();
        failed.memory.sandbox_failed =
            Some(next_failure(None, Duration::from_secs(8), "FailedCreatePodSandBox", "m".into(), at(NOW + back - 1)));
        assert_eq!(failed.actions().is_empty(), waits, "a sandbox that failed {back} s ago in the future");
    }
}
