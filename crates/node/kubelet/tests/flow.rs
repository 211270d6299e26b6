//! Whole lives of pods: an API in memory, a runtime in memory, the real kubelet between them.

mod fake;

use std::sync::Arc;
use std::time::Duration;

use client::Client;
use fake::Fake;
use kubelet::Config;
use serde_json::{Value, json};
use stdx::Drain;
use testkit::fake_api::FakeApi;

struct World {
    api: Arc<FakeApi>,
    client: Client,
    runtime: Arc<Fake>,
    root: tempfile::TempDir,
    drain: Drain,
}

impl World {
    fn new(images: &[&str]) -> Self {
        let api = FakeApi::new();
        Self { client: api.client(), api, runtime: Fake::new(images), root: tempfile::tempdir().unwrap(), drain: stdx::drain() }
    }

    fn start(&mut self) {
        self.drain = stdx::drain();
        let root = self.root.path();
        let mut config = Config::new("node", "192.0.2.1".parse().unwrap());
        config.data_directory = root.join("data");
        config.runtime_directory = root.join("run");
        config.log_directory = root.join("logs");
        config.port = 0;
        tokio::spawn(kubelet::run(config, self.client.clone(), self.runtime.clone(), self.runtime.clone(), self.drain.clone()));
    }

    async fn create(&self, plural: &str, object: Value) {
        let path = format!("/api/v1/namespaces/default/{plural}");
        let body = serde_json::to_vec(&object).unwrap().into();
        self.client.request_json::<Value>(http::Method::POST, &path, Some(body)).await.unwrap();
    }

    async fn pod(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = "node".into();
        let metadata = json!({"name": name, "namespace": "default"});
        self.create("pods", json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})).await;
    }

    /// Waits until the pod looks as `test` wants.
    async fn until(&self, name: &str, what: &str, test: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..400 {
            last = self.api.get("/api/v1/pods", "default", name).unwrap_or(Value::Null);
            if test(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{name} never was {what}: {last:#}\n{:?}", self.runtime.lock().calls);
    }

    async fn ready(&self, name: &str) -> Value {
        self.until(name, "ready", |pod| pod["status"]["containerStatuses"][0]["ready"] == true && pod["status"]["phase"] == "Running").await
    }

    fn reasons(&self) -> Vec<String> {
        self.api
            .all("/api/v1/events")
            .iter()
            .map(|event| format!("{} {}", event["reason"].as_str().unwrap(), event["message"].as_str().unwrap()))
            .collect()
    }
}

fn web() -> Value {
    json!({"containers": [{"name": "c", "image": "web:1"}]})
}

fn waiting(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_becomes_running_with_status_and_node_registers_and_renews_its_lease() {
    let mut world = World::new(&["web:1"]);
    world.start();
    world.pod("a", web()).await;
    let pod = world.ready("a").await;
    assert_eq!(pod["status"]["podIP"], "10.244.0.9");
    assert_eq!(pod["status"]["hostIP"], "192.0.2.1");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    assert!(pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("fake://c"));
    let node = world.api.get("/api/v1/nodes", "", "node").unwrap();
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "node");
    assert!(
        node["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    );
    for _ in 0..100 {
        if world.reasons().len() >= 3 && world.api.get("/apis/coordination.k8s.io/v1/leases", "kube-node-lease", "node").is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let reasons = world.reasons();
    for expected in [
        "Pulled Container image \"web:1\" already present on machine and can be accessed by the pod",
        "Created Created container: c",
        "Started Started container c",
    ] {
        assert!(reasons.iter().any(|reason| reason == expected), "{expected} in {reasons:?}");
    }
    assert!(world.api.get("/apis/coordination.k8s.io/v1/leases", "kube-node-lease", "node").is_some());
    world.drain.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashed_container_restarts_at_once_and_then_backs_off() {
    let mut world = World::new(&["web:1"]);
    world.start();
    world.pod("a", web()).await;
    world.ready("a").await;
    world.runtime.exit(&world.runtime.containers("c")[0].0, 3);
    let pod = world
        .until("a", "restarted", |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"] == 1 && pod["status"]["containerStatuses"][0]["ready"] == true
        })
        .await;
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(3), &json!("Error")));
    let second =
        world.runtime.containers("c").into_iter().find(|(_, container)| container.config.metadata.as_ref().unwrap().attempt == 1).unwrap();
    world.runtime.exit(&second.0, 3);
    let pod = world.until("a", "backing off", |pod| waiting(pod) == "CrashLoopBackOff").await;
    let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.starts_with("back-off 10s restarting failed container=c pod=a_default("), "{message}");
    world.drain.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_pod_is_stopped_with_its_grace_and_leaves_nothing_behind() {
    let mut world = World::new(&["web:1"]);
    world.start();
    world.pod("a", json!({"terminationGracePeriodSeconds": 7, "containers": [{"name": "c", "image": "web:1", "lifecycle": {"preStop": {"exec": {"command": ["bye"]}}}}]})).await;
    let pod = world.ready("a").await;
    let directory = world.root.path().join("data/pods").join(pod["metadata"]["uid"].as_str().unwrap());
    assert!(directory.exists());
    world.api.edit("/api/v1/pods", "default", "a", |pod| {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = 7.into();
    });
    world.until("a", "gone", Value::is_null).await;
    for _ in 0..200 {
        if world.runtime.lock().sandboxes.is_empty() && !directory.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert!(world.runtime.lock().containers.is_empty() && world.runtime.lock().sandboxes.is_empty());
    assert!(!directory.exists());
    assert_eq!((world.runtime.calls("exec bye"), world.runtime.calls("stop ")), (1, 1));
    world.drain.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_config_map_is_named_and_its_arrival_starts_the_container() {
    let mut world = World::new(&["web:1"]);
    world.start();
    world.pod("a", json!({"containers": [{"name": "c", "image": "web:1", "envFrom": [{"configMapRef": {"name": "conf"}}]}]})).await;
    let pod = world.until("a", "refused", |pod| waiting(pod) == "CreateContainerConfigError").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"], "configmap \"conf\" not found");
    world
        .create(
            "configmaps",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf", "namespace": "default"}, "data": {"A": "1"}}),
        )
        .await;
    world.ready("a").await;
    let envs = &world.runtime.containers("c")[0].1.config.envs;
    assert!(envs.iter().any(|variable| variable.key == "A" && variable.value == "1"));
    world.drain.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_is_pulled_and_one_that_does_not_exist_is_told() {
    let mut world = World::new(&[]);
    world.start();
    world.pod("a", web()).await;
    world.pod("b", json!({"containers": [{"name": "d", "image": "missing:1"}]})).await;
    world.ready("a").await;
    assert_eq!(world.runtime.calls("pull web:1"), 1);
    let pod = world.until("b", "told", |pod| waiting(pod) == "ErrImagePull").await;
    assert_eq!(pod["status"]["phase"], "Pending");
    world.until("b", "backing off", |pod| waiting(pod) == "ImagePullBackOff").await;
    world.drain.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_kubelet_adopts_what_runs_and_removes_what_was_deleted_meanwhile() {
    let mut world = World::new(&["web:1"]);
    world.start();
    world.pod("a", web()).await;
    world.pod("b", json!({"containers": [{"name": "d", "image": "web:1"}]})).await;
    world.ready("a").await;
    world.ready("b").await;
    world.drain.stop();
    tokio::time::sleep(Duration::from_millis(200)).await;
    // As left by a daemon that was killed between the removals.
    let logs = world.root.path().join("logs/default_gone_0c5f1e0e");
    std::fs::create_dir_all(logs.join("c")).unwrap();
    world
        .client
        .request_json::<Value>(http::Method::DELETE, "/api/v1/namespaces/default/pods/b", Some(r#"{"gracePeriodSeconds":0}"#.into()))
        .await
        .unwrap();
    world.start();
    for _ in 0..200 {
        if world.runtime.lock().sandboxes.len() == 1 && !logs.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert!(world.runtime.containers("d").is_empty());
    assert!(!logs.exists());
    assert_eq!((world.runtime.calls("create c"), world.runtime.containers("c").len()), (1, 1));
    world.ready("a").await;
    world.drain.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_gate_readiness_and_restart_and_init_containers_go_first() {
    let mut world = World::new(&["web:1"]);
    world.start();
    let probe = |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 1});
    world.pod("a", json!({"initContainers": [{"name": "i", "image": "web:1"}], "containers": [{"name": "c", "image": "web:1", "readinessProbe": probe("true")}]})).await;
    world.until("a", "initializing", |pod| pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object()).await;
    assert!(world.runtime.containers("c").is_empty());
    world.runtime.exit(&world.runtime.containers("i")[0].0, 0);
    world.ready("a").await;
    world.pod("b", json!({"containers": [{"name": "d", "image": "web:1", "livenessProbe": probe("false")}]})).await;
    world.until("b", "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1).await;
    assert!(world.runtime.calls("stop ") >= 1);
    world.drain.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_end_succeeded_or_failed_and_their_sandbox_stops() {
    let mut world = World::new(&["web:1"]);
    world.start();
    world.pod("a", json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "web:1"}]})).await;
    world.ready("a").await;
    world.runtime.exit(&world.runtime.containers("c")[0].0, 0);
    let pod = world.until("a", "done", |pod| pod["status"]["phase"] == "Succeeded").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    assert!(world.runtime.lock().sandboxes.values().all(|(_, up)| !up));
    world.drain.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_config_map_reaches_the_volume_and_a_foreign_verdict_on_readiness_is_corrected() {
    let mut world = World::new(&["web:1"]);
    world.start();
    let conf = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf", "namespace": "default"}, "data": {"a": "1"}});
    world.create("configmaps", conf).await;
    let volumes = json!([{"name": "v", "configMap": {"name": "conf"}}]);
    let mounts = json!([{"name": "v", "mountPath": "/conf"}]);
    world.pod("a", json!({"volumes": volumes, "containers": [{"name": "c", "image": "web:1", "volumeMounts": mounts}]})).await;
    world.ready("a").await;
    let mount = world.runtime.containers("c")[0].1.config.mounts.iter().find(|mount| mount.container_path == "/conf").unwrap().clone();
    let file = std::path::Path::new(&mount.host_path).join("a");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1");
    world.api.edit("/api/v1/configmaps", "default", "conf", |conf| conf["data"]["a"] = "2".into());
    for _ in 0..200 {
        if std::fs::read_to_string(&file).unwrap() == "2" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "2");
    let set_ready = |pod: &mut Value, on: &str| {
        let conditions = pod["status"]["conditions"].as_array_mut().unwrap();
        conditions.iter_mut().find(|condition| condition["type"] == "Ready").unwrap()["status"] = on.into();
    };
    world.api.edit("/api/v1/pods", "default", "a", |pod| set_ready(pod, "False"));
    let is_ready = |pod: &Value| {
        pod["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    world.until("a", "ready again", is_ready).await;
    world.drain.stop();
}
