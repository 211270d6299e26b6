//! The scheduler against the real API server, in one process: what it writes, and when.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use client::{Body, Client, DeleteParams, ListParams, Object, Patch, Transport};
use k8s_openapi::api::core::v1::{Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use k8s_openapi::api::storage::v1::StorageClass;
use reconcile::EventRecorder;
use serde_json::{Value, json};
use sim::{Embedded, Parts};
use tokio::sync::Notify;

const NAMESPACE: &str = "default";

struct Cluster {
    api: Client,
    embedded: Embedded,
}

async fn cluster(nodes: &[(&str, Value)]) -> Cluster {
    cluster_with(nodes, scheduler::Config::default()).await
}

async fn cluster_with(nodes: &[(&str, Value)], config: scheduler::Config) -> Cluster {
    cluster_of(nodes, Some(config)).await
}

async fn cluster_of(nodes: &[(&str, Value)], scheduler: Option<scheduler::Config>) -> Cluster {
    let store = Arc::new(store::memory::Memory::new());
    let embedded = Embedded::start(store, Parts { controllers: None, scheduler, taints: false }).await.unwrap();
    let api = embedded.admin();
    if let Err(error) = api.create::<Namespace>(&object(json!({ "metadata": { "name": NAMESPACE } }))).await {
        assert!(error.is_already_exists(), "{error}");
    }
    api.create::<ServiceAccount>(&object(json!({ "metadata": { "name": "default", "namespace": NAMESPACE } }))).await.unwrap();
    api.create::<PriorityClass>(&object(json!({ "metadata": { "name": "high" }, "value": 1000 }))).await.unwrap();
    for (name, more) in nodes {
        let mut node = json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "status": { "allocatable": { "cpu": "2", "memory": "4Gi", "pods": "10" } },
        });
        merge(&mut node, more.clone());
        api.create::<Node>(&object(node)).await.unwrap();
    }
    Cluster { api, embedded }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn cpu(amount: &str) -> Value {
    json!({ "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": amount } } }] })
}

impl Cluster {
    async fn pod(&self, name: &str, spec: Value) {
        let mut pod = json!({
            "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "app": name } },
            "spec": { "containers": [{ "name": "c", "image": "i" }], "terminationGracePeriodSeconds": 0 },
        });
        merge(&mut pod["spec"], spec);
        self.api.create::<Pod>(&object(pod)).await.unwrap();
    }

    async fn get<K: Object>(&self, name: &str) -> Option<K> {
        self.api.get::<K>(Some(NAMESPACE), name).await.ok()
    }

    /// Waits until `of` says something of the pod.
    async fn until<T>(&self, name: &str, of: impl Fn(&Pod) -> Option<T>) -> T {
        for _ in 0..1000 {
            if let Some(found) = self.get::<Pod>(name).await.as_ref().and_then(&of) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name}: {:#?}", self.get::<Pod>(name).await.map(|pod| (pod.spec.and_then(|spec| spec.node_name), pod.status)))
    }

    async fn node_of(&self, name: &str) -> String {
        self.until(name, |pod| pod.spec.as_ref()?.node_name.clone()).await
    }

    /// The message of the pod's PodScheduled condition once it is there.
    async fn refusal(&self, name: &str) -> String {
        self.until(name, |pod| condition(pod, "PodScheduled").filter(|(status, ..)| status == "False").map(|(_, _, message)| message)).await
    }
}

fn condition(pod: &Pod, kind: &str) -> Option<(String, String, String)> {
    let found = pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)?;
    Some((found.status.clone(), found.reason.clone().unwrap_or_default(), found.message.clone().unwrap_or_default()))
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_says_so_and_goes_where_room_is_made() {
    let cluster = cluster(&[("a", json!({}))]).await;
    cluster.pod("first", cpu("1500m")).await;
    assert_eq!(cluster.node_of("first").await, "a");
    cluster.pod("second", cpu("1")).await;
    assert_eq!(
        cluster.refusal("second").await,
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: \
         1 No preemption victims found for incoming pod."
    );
    cluster.api.delete::<Pod>(Some(NAMESPACE), "first", &DeleteParams::default()).await.unwrap();
    assert_eq!(cluster.node_of("second").await, "a");
    let events = cluster.api.list::<Event>(&ListParams::in_namespace(NAMESPACE)).await.unwrap().items;
    let of = |name: &str, reason: &str| {
        let about = |event: &&Event| event.involved_object.name.as_deref() == Some(name) && event.reason.as_deref() == Some(reason);
        events.iter().find(about).and_then(|event| event.message.clone())
    };
    assert_eq!(of("first", "Scheduled").as_deref(), Some("Successfully assigned default/first to a"));
    assert!(of("second", "FailedScheduling").is_some());
}

/// Keeps the first binding back until it is let go.
struct Held {
    inner: Arc<dyn Transport>,
    taken: AtomicBool,
    arrived: Notify,
    go: Notify,
}

impl Transport for Held {
    fn send(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>> {
        Box::pin(async move {
            if request.uri().path().ends_with("/binding") && !self.taken.swap(true, Ordering::SeqCst) {
                self.arrived.notify_one();
                self.go.notified().await;
            }
            self.inner.send(request).await
        })
    }
}

#[tokio::test]
async fn a_pod_made_anew_under_its_name_while_the_former_is_being_bound_is_scheduled() {
    let cluster = cluster_of(&[("a", json!({}))], None).await;
    let inner = cluster.embedded.transport("system:kube-scheduler", &[]);
    let held = Arc::new(Held { inner, taken: AtomicBool::new(false), arrived: Notify::new(), go: Notify::new() });
    let (client, drain) = (Client::new(held.clone()), cluster.embedded.drain.clone());
    let recorder = EventRecorder::start(&client, "default-scheduler", None, drain.clone());
    tokio::spawn(scheduler::run(scheduler::Config::default(), client, cluster.embedded.caches.clone(), recorder, drain));
    cluster.pod("one", json!({})).await;
    held.arrived.notified().await;
    cluster.api.delete::<Pod>(Some(NAMESPACE), "one", &DeleteParams::default()).await.unwrap();
    cluster.pod("one", json!({})).await;
    // The scheduler sees the new one while it still waits for the answer about the other.
    tokio::time::sleep(Duration::from_millis(200)).await;
    held.go.notify_one();
    assert_eq!(cluster.node_of("one").await, "a");
}

/// Counts the bindings, which wait until the gate is open.
struct Gate {
    inner: Arc<dyn Transport>,
    arrived: AtomicUsize,
    open: tokio::sync::watch::Sender<bool>,
}

impl Transport for Gate {
    fn send(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>> {
        Box::pin(async move {
            if request.uri().path().ends_with("/binding") {
                self.arrived.fetch_add(1, Ordering::SeqCst);
                let _ = self.open.subscribe().wait_for(|open| *open).await;
            }
            self.inner.send(request).await
        })
    }
}

#[tokio::test]
async fn a_member_that_comes_while_its_gang_is_being_bound_joins_it_and_nobody_is_bound_twice() {
    let cluster = cluster_of(&[("a", json!({}))], None).await;
    let inner = cluster.embedded.transport("system:kube-scheduler", &[]);
    let gate = Arc::new(Gate { inner, arrived: AtomicUsize::new(0), open: tokio::sync::watch::Sender::new(false) });
    let (client, drain) = (Client::new(gate.clone()), cluster.embedded.drain.clone());
    let recorder = EventRecorder::start(&client, "default-scheduler", None, drain.clone());
    tokio::spawn(scheduler::run(scheduler::Config::default(), client, cluster.embedded.caches.clone(), recorder, drain));
    let group = json!({
        "metadata": { "name": "g", "namespace": NAMESPACE },
        "spec": { "schedulingPolicy": { "gang": { "minCount": 3 } } },
    });
    cluster.api.create::<PodGroup>(&object(group)).await.unwrap();
    // Of two processors, so that nobody has room twice.
    let container = json!([{ "name": "c", "image": "i", "resources": { "requests": { "cpu": "450m" } } }]);
    let member = json!({ "schedulingGroup": { "podGroupName": "g" }, "containers": container });
    for name in ["one", "two", "three"] {
        cluster.pod(name, member.clone()).await;
    }
    let arrived = async |count: usize| {
        for _ in 0..1_000 {
            if gate.arrived.load(Ordering::SeqCst) >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} of {count} bindings", gate.arrived.load(Ordering::SeqCst));
    };
    arrived(3).await;
    cluster.pod("four", member.clone()).await;
    arrived(4).await;
    gate.open.send_replace(true);
    for name in ["one", "two", "three", "four"] {
        assert_eq!(cluster.node_of(name).await, "a");
    }
    assert_eq!(gate.arrived.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_gated_pod_waits_until_its_last_gate_is_gone() {
    let cluster = cluster(&[("a", json!({}))]).await;
    cluster.pod("held", json!({ "schedulingGates": [{ "name": "example.com/hold" }] })).await;
    cluster.pod("free", json!({})).await;
    cluster.node_of("free").await;
    assert_eq!(cluster.get::<Pod>("held").await.unwrap().spec.unwrap().node_name, None);
    let open = Patch::Merge(json!({ "spec": { "schedulingGates": null } }));
    cluster.api.patch::<Pod>(Some(NAMESPACE), "held", &open, "").await.unwrap();
    cluster.node_of("held").await;
}

#[tokio::test]
async fn a_pod_of_another_scheduler_is_left_alone_and_one_of_a_second_profile_is_not() {
    let mut config = scheduler::Config::default();
    config.profiles.push(scheduler::profile::Profile::named("second"));
    let cluster = cluster_with(&[("a", json!({}))], config).await;
    cluster.pod("foreign", json!({ "schedulerName": "mine" })).await;
    cluster.pod("ours", json!({ "schedulerName": "second" })).await;
    cluster.node_of("ours").await;
    assert_eq!(cluster.get::<Pod>("foreign").await.unwrap().spec.unwrap().node_name, None);
}

#[tokio::test]
async fn an_important_pod_takes_the_place_of_the_least_important_ones_that_no_budget_protects() {
    let cluster = cluster(&[("a", json!({})), ("b", json!({}))]).await;
    for name in ["on-a", "on-b"] {
        let node = name.trim_start_matches("on-");
        let mut spec = cpu("2");
        spec["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
        cluster.pod(name, spec).await;
        cluster.node_of(name).await;
    }
    let budget = json!({
        "metadata": { "name": "keep", "namespace": NAMESPACE },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "on-a" } } },
    });
    cluster.api.create::<PodDisruptionBudget>(&object(budget)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut spec = cpu("1");
    spec["priorityClassName"] = "high".into();
    cluster.pod("important", spec).await;
    assert_eq!(cluster.node_of("important").await, "b");
    assert!(cluster.get::<Pod>("on-b").await.is_none(), "the victim is gone");
    assert!(cluster.get::<Pod>("on-a").await.is_some());
}

#[tokio::test]
async fn a_preemptor_waits_for_its_victims_and_sends_no_others_away() {
    let cluster = cluster(&[("a", json!({})), ("b", json!({})), ("c", json!({}))]).await;
    for number in 0..3 {
        let mut spec = cpu("1900m");
        spec["terminationGracePeriodSeconds"] = json!(30);
        cluster.pod(&format!("low-{number}"), spec).await;
        cluster.node_of(&format!("low-{number}")).await;
    }
    let mut spec = cpu("1");
    spec["priorityClassName"] = "high".into();
    cluster.pod("important", spec).await;
    cluster.until("important", |pod| pod.status.as_ref()?.nominated_node_name.clone()).await;
    // What happens meanwhile wakes it, and finds it waiting.
    for number in 0..5 {
        let name = format!("small-{number}");
        cluster.pod(&name, cpu("50m")).await;
        cluster.node_of(&name).await;
        cluster.api.delete::<Pod>(Some(NAMESPACE), &name, &DeleteParams::default()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let pods = cluster.api.list::<Pod>(&ListParams::in_namespace(NAMESPACE)).await.unwrap().items;
    let going: Vec<_> = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()).collect();
    assert_eq!(going.len(), 1, "one victim is enough");
    assert_eq!(condition(going[0], "DisruptionTarget").unwrap().1, "PreemptionByScheduler");
}

#[tokio::test]
async fn a_pod_that_may_not_preempt_waits() {
    let cluster = cluster(&[("a", json!({}))]).await;
    cluster.pod("running", cpu("2")).await;
    cluster.node_of("running").await;
    let never = json!({ "metadata": { "name": "polite" }, "value": 1000, "preemptionPolicy": "Never" });
    cluster.api.create::<PriorityClass>(&object(never)).await.unwrap();
    let mut spec = cpu("1");
    spec["priorityClassName"] = "polite".into();
    cluster.pod("polite", spec).await;
    let refusal = cluster.refusal("polite").await;
    assert!(refusal.ends_with("preemption: not eligible due to preemptionPolicy=Never."), "{refusal}");
    assert!(cluster.get::<Pod>("running").await.is_some());
}

#[tokio::test]
async fn a_claim_that_waits_for_its_first_consumer_gets_the_volume_of_the_chosen_node() {
    let cluster = cluster(&[("a", json!({})), ("b", json!({}))]).await;
    let class = json!({
        "metadata": { "name": "local" }, "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
    });
    cluster.api.create::<StorageClass>(&object(class)).await.unwrap();
    let claim = json!({
        "metadata": { "name": "data", "namespace": NAMESPACE },
        "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "local", "resources": { "requests": { "storage": "1Gi" } } },
    });
    let volumes = json!({ "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }] });
    cluster.pod("user", volumes).await;
    assert!(cluster.refusal("user").await.starts_with("0/2 nodes are available: persistentvolumeclaim \"data\" not found."));
    cluster.api.create::<PersistentVolumeClaim>(&object(claim)).await.unwrap();
    let none = "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind.";
    cluster.until("user", |pod| condition(pod, "PodScheduled").filter(|(_, _, message)| message.starts_with(none))).await;
    let volume = json!({
        "metadata": { "name": "disk-b" },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "local", "capacity": { "storage": "2Gi" }, "local": { "path": "/d" },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": ["b"] }] }] } },
        },
    });
    cluster.api.create::<PersistentVolume>(&object(volume)).await.unwrap();
    // The binder of claims is not part of this cluster: this test plays it, once the scheduler has chosen.
    let mut promised = false;
    for _ in 0..1000 {
        let volume: PersistentVolume = cluster.api.get(None, "disk-b").await.unwrap();
        promised = volume.spec.is_some_and(|spec| spec.claim_ref.is_some_and(|claim| claim.name.as_deref() == Some("data")));
        if promised {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(promised, "the volume is promised to the claim");
    let bound = Patch::Merge(json!({
        "metadata": { "annotations": { "pv.kubernetes.io/bind-completed": "yes" } }, "spec": { "volumeName": "disk-b" },
    }));
    cluster.api.patch::<PersistentVolumeClaim>(Some(NAMESPACE), "data", &bound, "").await.unwrap();
    assert_eq!(cluster.node_of("user").await, "b");
}

#[tokio::test]
async fn five_hundred_pods_of_one_template_fill_the_nodes_evenly() {
    let nodes: Vec<String> = (0..10).map(|number| format!("n{number}")).collect();
    let large = json!({ "status": { "allocatable": { "cpu": "6", "memory": "12Gi", "pods": "60" } } });
    let nodes: Vec<(&str, Value)> = nodes.iter().map(|name| (name.as_str(), large.clone())).collect();
    let cluster = cluster(&nodes).await;
    for number in 0..500 {
        cluster.pod(&format!("p{number}"), cpu("100m")).await;
    }
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for number in 0..500 {
        *counts.entry(cluster.node_of(&format!("p{number}")).await).or_default() += 1;
    }
    assert!(counts.len() == 10 && counts.values().all(|count| *count == 50), "{counts:?}");
}
