//! The controllers together on an API server in memory, with a double of a kubelet that makes pods ready.

use std::sync::Arc;
use std::time::Duration;

use client::{DeleteParams, Propagation};
use controllers::Config;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use reconcile::{Caches, Outcome, Queue, key_of};
use serde_json::{Value, json};
use stdx::Drain;
use testkit::fake_api::FakeApi;

const PODS: &str = "/api/v1/pods";
const SETS: &str = "/apis/apps/v1/replicasets";
const DEPLOYMENTS: &str = "/apis/apps/v1/deployments";

struct Cluster {
    api: Arc<FakeApi>,
    client: client::Client,
    drain: Drain,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

fn cluster() -> Cluster {
    let api = FakeApi::new();
    for (group_version, plural, kind, namespaced) in [
        ("v1", "pods", "Pod", true),
        ("v1", "namespaces", "Namespace", false),
        ("v1", "services", "Service", true),
        ("v1", "endpoints", "Endpoints", true),
        ("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true),
        ("batch/v1", "jobs", "Job", true),
        ("v1", "configmaps", "ConfigMap", true),
        ("v1", "serviceaccounts", "ServiceAccount", true),
        ("apps/v1", "replicasets", "ReplicaSet", true),
        ("apps/v1", "deployments", "Deployment", true),
        ("resource.k8s.io/v1", "devicetaintrules", "DeviceTaintRule", false),
    ] {
        api.serve(group_version, plural, kind, namespaced);
    }
    let (client, drain) = (api.client(), stdx::drain());
    let config = Config { root_ca: "PEM".into(), ..Config::default() };
    tokio::spawn(controllers::run(client.clone(), config, drain.clone()));
    tokio::spawn(kubelet(client.clone(), drain.clone()));
    Cluster { api, client, drain }
}

/// Makes every pod Running and Ready.
async fn kubelet(client: client::Client, drain: Drain) {
    let pods = Caches::new(&client, drain.clone()).of::<Pod>();
    let queue = Queue::new();
    let wake = queue.clone();
    pods.on_change(move |_, new| new.into_iter().for_each(|pod| wake.add(key_of(&pod.metadata))));
    reconcile::run("kubelet", queue, 16, drain, move |key| {
        let (client, pods) = (client.clone(), pods.clone());
        async move {
            let Some(pod) = pods.get_key(&key).filter(|pod| pod.status.is_none()) else { return Outcome::Done };
            let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "podIPs": [{"ip": "10.0.0.1"}]});
            let ready = Pod { status: serde_json::from_value(status).ok(), ..Pod::clone(&pod) };
            match client.replace_status(&ready).await {
                Err(error) if !error.is_not_found() => Outcome::Err(error.into()),
                _ => Outcome::Done,
            }
        }
    })
    .await;
}

/// Waits, for ten seconds at most, until `what` holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn deployment(replicas: i32, image: &str) -> Deployment {
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
    let spec =
        json!({"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template, "progressDeadlineSeconds": 600});
    serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "web"}, "spec": spec})).unwrap()
}

fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default()
}

fn is_complete(api: &FakeApi, replicas: i32) -> bool {
    let found = api.get(DEPLOYMENTS, "a", "web").unwrap();
    found["status"]["availableReplicas"] == replicas
        && found["status"]["updatedReplicas"] == replicas
        && found["status"]["replicas"] == replicas
        && found["status"]["observedGeneration"] == found["metadata"]["generation"]
        && condition(&found, "Progressing")["reason"] == "NewReplicaSetAvailable"
}

fn created(api: &FakeApi) -> usize {
    api.writes().iter().filter(|write| *write == "POST /api/v1/namespaces/a/pods").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_makes_exactly_its_pods_rolls_to_a_new_template_and_then_writes_nothing() {
    let cluster = cluster();
    cluster.client.create(&deployment(100, "v1")).await.unwrap();
    until("100 available", || is_complete(&cluster.api, 100)).await;
    assert_eq!(created(&cluster.api), 100, "not one pod too many was ever made");

    cluster.api.edit(DEPLOYMENTS, "a", "web", |web| {
        web["spec"]["template"]["spec"]["containers"][0]["image"] = json!("v2");
        web["metadata"]["generation"] = json!(2);
    });
    until("rolled", || is_complete(&cluster.api, 100) && cluster.api.all(PODS).len() == 100).await;
    let images: Vec<Value> = cluster.api.all(PODS).iter().map(|pod| pod["spec"]["containers"][0]["image"].clone()).collect();
    assert!(images.iter().all(|image| image == "v2"));
    assert_eq!((created(&cluster.api), cluster.api.all(SETS).len()), (200, 2));
    let revision =
        cluster.api.get(DEPLOYMENTS, "a", "web").unwrap()["metadata"]["annotations"]["deployment.kubernetes.io/revision"].clone();
    assert_eq!(revision, "2");

    tokio::time::sleep(Duration::from_millis(300)).await;
    let writes = cluster.api.writes().len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(cluster.api.writes()[writes..], [] as [String; 0], "an idle cluster writes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pod_is_replaced_and_a_scale_down_deletes_as_many_as_asked() {
    let cluster = cluster();
    cluster.client.create(&deployment(5, "v1")).await.unwrap();
    until("5 available", || is_complete(&cluster.api, 5)).await;
    let victim = cluster.api.all(PODS)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.client.delete::<Pod>(Some("a"), &victim, &Default::default()).await.unwrap();
    until("replaced", || created(&cluster.api) == 6 && is_complete(&cluster.api, 5)).await;
    cluster.api.edit(DEPLOYMENTS, "a", "web", |web| web["spec"]["replicas"] = json!(2));
    until("2 left", || cluster.api.all(PODS).len() == 2 && is_complete(&cluster.api, 2)).await;
    assert_eq!(created(&cluster.api), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_namespace_gets_its_account_and_the_root_certificate() {
    let cluster = cluster();
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "fresh"}})).unwrap();
    cluster.client.create(&namespace).await.unwrap();
    until("a default account", || cluster.api.get("/api/v1/serviceaccounts", "fresh", "default").is_some()).await;
    until("the certificate", || cluster.api.get("/api/v1/configmaps", "fresh", "kube-root-ca.crt").is_some()).await;
    cluster.client.delete::<k8s_openapi::api::core::v1::ServiceAccount>(Some("fresh"), "default", &Default::default()).await.unwrap();
    until("the account again", || cluster.api.get("/api/v1/serviceaccounts", "fresh", "default").is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_lists_the_pods_that_serve_it_as_they_come_and_go() {
    let cluster = cluster();
    let spec = json!({"selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ports": [{"port": 80, "targetPort": 8080}]});
    let service: k8s_openapi::api::core::v1::Service =
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "web"}, "spec": spec})).unwrap();
    cluster.client.create(&service).await.unwrap();
    cluster.client.create(&deployment(3, "v1")).await.unwrap();
    let api = cluster.api.clone();
    let ready = move || {
        let slices = api.all("/apis/discovery.k8s.io/v1/endpointslices");
        let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count()
    };
    let api = cluster.api.clone();
    let listed = move || {
        let subsets = api.get("/api/v1/endpoints", "a", "web").unwrap_or_default()["subsets"].clone();
        subsets[0]["addresses"].as_array().map_or(0, Vec::len)
    };
    until("three endpoints", || ready() == 3 && listed() == 3).await;
    cluster.api.edit(DEPLOYMENTS, "a", "web", |web| web["spec"]["replicas"] = json!(1));
    until("one endpoint", || ready() == 1 && listed() == 1).await;
    cluster.client.delete::<k8s_openapi::api::core::v1::Service>(Some("a"), "web", &Default::default()).await.unwrap();
    until("no slices", || {
        cluster.api.all("/apis/discovery.k8s.io/v1/endpointslices").is_empty() && cluster.api.all("/api/v1/endpoints").is_empty()
    })
    .await;
}

async fn with_deployment(replicas: i32) -> Cluster {
    let cluster = cluster();
    cluster.client.create(&deployment(replicas, "v1")).await.unwrap();
    until("available", || is_complete(&cluster.api, replicas)).await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_deployment_takes_a_thousand_dependents_with_it() {
    let cluster = with_deployment(1000).await;
    cluster.client.delete::<Deployment>(Some("a"), "web", &DeleteParams::background()).await.unwrap();
    until("all gone", || cluster.api.all(PODS).is_empty() && cluster.api.all(SETS).is_empty()).await;
    assert_eq!(created(&cluster.api), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreground_deletion_ends_with_the_owner_and_an_orphaning_one_leaves_the_dependents() {
    let cluster = with_deployment(5).await;
    let how = |propagation| DeleteParams { propagation: Some(propagation), ..DeleteParams::default() };
    cluster.client.delete::<Deployment>(Some("a"), "web", &how(Propagation::Foreground)).await.unwrap();
    assert!(cluster.api.get(DEPLOYMENTS, "a", "web").is_some(), "it waits for its dependents");
    until("the owner gone", || cluster.api.get(DEPLOYMENTS, "a", "web").is_none()).await;
    assert!(cluster.api.all(SETS).is_empty() && cluster.api.all(PODS).is_empty());

    let cluster = with_deployment(5).await;
    cluster.client.delete::<Deployment>(Some("a"), "web", &how(Propagation::Orphan)).await.unwrap();
    until("the owner gone", || cluster.api.get(DEPLOYMENTS, "a", "web").is_none()).await;
    let sets = cluster.api.all(SETS);
    assert_eq!((sets.len(), cluster.api.all(PODS).len()), (1, 5));
    assert!(sets[0]["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_is_emptied_before_it_goes() {
    let cluster = cluster();
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}});
    let namespace: Namespace = serde_json::from_value(namespace).unwrap();
    cluster.client.create(&namespace).await.unwrap();
    cluster.client.create(&deployment(5, "v1")).await.unwrap();
    until("available", || is_complete(&cluster.api, 5)).await;
    cluster.client.delete::<Namespace>(None, "a", &Default::default()).await.unwrap();
    until("the namespace gone", || cluster.api.get("/api/v1/namespaces", "", "a").is_none()).await;
    assert!(cluster.api.all(DEPLOYMENTS).is_empty() && cluster.api.all("/api/v1/serviceaccounts").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_counts_each_end_once_and_leaves_no_finalizer_behind() {
    let cluster = cluster();
    let template = json!({"metadata": {"labels": {"job": "j"}}, "spec": {"containers": [{"name": "c"}], "restartPolicy": "Never"}});
    let spec = json!({"completions": 10, "parallelism": 3, "template": template});
    let job: k8s_openapi::api::batch::v1::Job =
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "j"}, "spec": spec})).unwrap();
    cluster.client.create(&job).await.unwrap();
    let api = cluster.api.clone();
    let complete = || condition(&api.get("/apis/batch/v1/jobs", "a", "j").unwrap(), "Complete")["status"] == "True";
    until("complete", || {
        for pod in api.all(PODS).iter().filter(|pod| pod["status"]["phase"] == "Running") {
            api.edit(PODS, "a", pod["metadata"]["name"].as_str().unwrap(), |pod| pod["status"]["phase"] = json!("Succeeded"));
        }
        complete()
    })
    .await;
    assert_eq!((created(&api), api.get("/apis/batch/v1/jobs", "a", "j").unwrap()["status"]["succeeded"].clone()), (10, json!(10)));
    cluster.client.delete::<k8s_openapi::api::batch::v1::Job>(Some("a"), "j", &DeleteParams::background()).await.unwrap();
    until("no pods", || api.all(PODS).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_rolls_its_numbered_pods_and_a_daemon_set_follows_the_nodes() {
    use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
    use k8s_openapi::api::core::v1::Node;
    let cluster = cluster();
    let api = cluster.api.clone();
    let template = |image: &str| json!({"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
    let spec = json!({"replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "template": template("v1"),
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]});
    let set: StatefulSet = serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "db"}, "spec": spec})).unwrap();
    cluster.client.create(&set).await.unwrap();
    let of = |image: &str| {
        let all = api.all(PODS);
        let of_image = all.iter().filter(|pod| pod["spec"]["containers"][0]["image"] == image && pod["status"]["phase"] == "Running");
        of_image.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    until("three numbered pods", || of("v1") == ["db-0", "db-1", "db-2"]).await;
    assert!(api.get("/api/v1/persistentvolumeclaims", "a", "data-db-2").is_some());
    api.edit("/apis/apps/v1/statefulsets", "a", "db", |set| set["spec"]["template"] = template("v2"));
    until("rolled", || of("v2") == ["db-0", "db-1", "db-2"]).await;
    assert_eq!(api.all("/apis/apps/v1/controllerrevisions").len(), 2);

    let node = |name: &str| -> Node {
        let ready = json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]);
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"conditions": ready}})).unwrap()
    };
    cluster.client.create(&node("n1")).await.unwrap();
    let template = json!({"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c", "image": "agent"}]}});
    let spec = json!({"selector": {"matchLabels": {"app": "agent"}}, "template": template});
    let agent: DaemonSet = serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "agent"}, "spec": spec})).unwrap();
    cluster.client.create(&agent).await.unwrap();
    until("a daemon", || of("agent").len() == 1).await;
    cluster.client.create(&node("n2")).await.unwrap();
    until("two daemons", || of("agent").len() == 2).await;
    let ready = || api.get("/apis/apps/v1/daemonsets", "a", "agent").unwrap()["status"]["numberReady"] == 2;
    until("both counted", ready).await;
}

/// Everything that a user may ask for, possible or not.
fn wishes() -> Vec<(&'static str, Value)> {
    let template = |app: &str| json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    let selector = |app: &str| json!({"matchLabels": {"app": app}});
    let meta = |name: &str| json!({"namespace": "a", "name": name});
    let claim = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "none"});
    vec![
        (
            "/api/v1/namespaces/a/replicationcontrollers",
            json!({"metadata": meta("rc"), "spec": {"replicas": 3, "selector": {"app": "rc"}, "template": template("rc")}}),
        ),
        (
            "/apis/apps/v1/namespaces/a/replicasets",
            json!({"metadata": meta("one"), "spec": {"replicas": 2, "selector": selector("same"), "template": template("same")}}),
        ),
        // Wants the same pods as the one before.
        (
            "/apis/apps/v1/namespaces/a/replicasets",
            json!({"metadata": meta("two"), "spec": {"replicas": 2, "selector": selector("same"), "template": template("same")}}),
        ),
        (
            "/apis/apps/v1/namespaces/a/deployments",
            json!({"metadata": meta("negative"), "spec": {"replicas": -3, "selector": selector("n"), "template": template("n")}}),
        ),
        (
            "/apis/apps/v1/namespaces/a/statefulsets",
            json!({"metadata": meta("db"), "spec": {"replicas": 2, "serviceName": "db", "selector": selector("db"), "template": template("db")}}),
        ),
        (
            "/apis/batch/v1/namespaces/a/cronjobs",
            json!({"metadata": meta("never"), "spec": {"schedule": "0 0 30 2 *", "jobTemplate": {"spec": {"template": template("cron")}}}}),
        ),
        (
            "/apis/batch/v1/namespaces/a/cronjobs",
            json!({"metadata": meta("nonsense"), "spec": {"schedule": "soon", "jobTemplate": {"spec": {"template": template("cron")}}}}),
        ),
        ("/api/v1/namespaces/a/persistentvolumeclaims", json!({"metadata": meta("unmet"), "spec": claim})),
        (
            "/apis/policy/v1/namespaces/a/poddisruptionbudgets",
            json!({"metadata": meta("pdb"), "spec": {"minAvailable": "50%", "selector": selector("rc")}}),
        ),
        (
            "/apis/autoscaling/v2/namespaces/a/horizontalpodautoscalers",
            json!({"metadata": meta("hpa"), "spec": {"scaleTargetRef": {"apiVersion": "x/v1", "kind": "Nothing", "name": "x"}, "maxReplicas": 3}}),
        ),
        (
            "/api/v1/namespaces/a/services",
            json!({"metadata": meta("rc"), "spec": {"type": "LoadBalancer", "selector": {"app": "rc"}, "ports": [{"port": 80}]}}),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_asked_for_the_controllers_come_to_rest() {
    let cluster = cluster();
    for (path, object) in wishes() {
        let body = bytes::Bytes::from(object.to_string());
        cluster.client.request_json::<Value>(http::Method::POST, path, Some(body)).await.unwrap();
    }
    let api = cluster.api.clone();
    let pods = || api.all(PODS).iter().filter(|pod| pod["status"]["phase"] == "Running").count();
    until("nine pods", || pods() == 9).await;
    until("the budget", || api.get("/apis/policy/v1/poddisruptionbudgets", "a", "pdb").unwrap()["status"]["disruptionsAllowed"] == 1).await;
    // Somebody else's hand in what is ours.
    api.edit("/api/v1/replicationcontrollers", "a", "rc", |rc| rc["status"] = json!({"replicas": 77}));
    until("put right", || api.get("/api/v1/replicationcontrollers", "a", "rc").unwrap()["status"]["replicas"] == 3).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let writes = cluster.api.writes().len();
    tokio::time::sleep(Duration::from_millis(900)).await;
    let after: Vec<String> = cluster.api.writes()[writes..].iter().filter(|write| !write.contains("/events")).cloned().collect();
    assert_eq!(after, [] as [String; 0]);
    assert_eq!(created(&api), 9, "two sets that want the same pods do not take them from each other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_loses_its_pods_before_what_they_need() {
    let cluster = cluster();
    let api = cluster.api.clone();
    post(&cluster, "/api/v1/namespaces", json!({"metadata": {"name": "b"}, "spec": {"finalizers": ["kubernetes"]}})).await;
    post(&cluster, "/api/v1/namespaces/b/configmaps", json!({"metadata": {"namespace": "b", "name": "needed"}})).await;
    let held = json!({"metadata": {"namespace": "b", "name": "held", "finalizers": ["e2e.example/hold"]}, "spec": {"containers": [{"name": "c"}]}});
    post(&cluster, "/api/v1/namespaces/b/pods", held).await;
    cluster.client.delete::<Namespace>(None, "b", &Default::default()).await.unwrap();
    let told = || condition(&api.get("/api/v1/namespaces", "", "b").unwrap(), "NamespaceContentRemaining")["message"].clone();
    until("it says what remains", || told() == "Some resources are remaining: pods. has 1 resource instances").await;
    assert!(api.get("/api/v1/configmaps", "b", "needed").is_some(), "the pod may still need it");
    assert!(!api.get(PODS, "b", "held").unwrap()["metadata"]["deletionTimestamp"].is_null());
    let body = json!({"metadata": {"finalizers": null}});
    cluster.client.patch::<Pod>(Some("b"), "held", &client::Patch::Merge(body), "").await.unwrap();
    until("the namespace gone", || api.get("/api/v1/namespaces", "", "b").is_none()).await;
    assert!(api.get("/api/v1/configmaps", "b", "needed").is_none());
}

async fn post(cluster: &Cluster, path: &str, object: Value) {
    let body = bytes::Bytes::from(object.to_string());
    cluster.client.request_json::<Value>(http::Method::POST, path, Some(body)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_attached_while_a_pod_on_the_node_uses_it_and_goes_to_the_next_node_after_that() {
    const ATTACHMENTS: &str = "/apis/storage.k8s.io/v1/volumeattachments";
    let cluster = cluster();
    let api = cluster.api.clone();
    for name in ["n1", "n2"] {
        let annotations = json!({"volumes.kubernetes.io/controller-managed-attach-detach": "true"});
        let status = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        post(&cluster, "/api/v1/nodes", json!({"metadata": {"name": name, "annotations": annotations}, "status": status})).await;
    }
    let csi = json!({"driver": "csi.example.org", "volumeHandle": "h"});
    let claim =
        json!({"volumeName": "v", "storageClassName": "", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    post(&cluster, "/api/v1/namespaces/a/persistentvolumeclaims", json!({"metadata": {"namespace": "a", "name": "data"}, "spec": claim}))
        .await;
    let volume = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "csi": csi});
    post(&cluster, "/api/v1/persistentvolumes", json!({"metadata": {"name": "v"}, "spec": volume})).await;
    let pod = |name: &str, node: &str| {
        let volumes = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]);
        json!({"metadata": {"namespace": "a", "name": name}, "spec": {"nodeName": node, "containers": [{"name": "c"}], "volumes": volumes}})
    };
    post(&cluster, "/api/v1/namespaces/a/pods", pod("first", "n1")).await;
    until("an attachment", || api.all(ATTACHMENTS).len() == 1).await;
    let attachment = api.all(ATTACHMENTS).remove(0);
    assert_eq!((attachment["spec"]["nodeName"].as_str(), attachment["spec"]["attacher"].as_str()), (Some("n1"), Some("csi.example.org")));
    api.edit(ATTACHMENTS, "", attachment["metadata"]["name"].as_str().unwrap(), |live| live["status"] = json!({"attached": true}));
    let listed = |node: &str| api.get("/api/v1/nodes", "", node).unwrap()["status"]["volumesAttached"][0]["name"].clone();
    until("the node may mount it", || listed("n1") == "kubernetes.io/csi/csi.example.org^h").await;

    // Mounted on the first node, it is not for the second.
    api.edit("/api/v1/nodes", "", "n1", |node| node["status"]["volumesInUse"] = json!(["kubernetes.io/csi/csi.example.org^h"]));
    post(&cluster, "/api/v1/namespaces/a/pods", pod("second", "n2")).await;
    let events = || api.all("/api/v1/events").into_iter().filter(|event| event["reason"] == "FailedAttachVolume").collect::<Vec<_>>();
    until("the second pod hears why", || !events().is_empty()).await;
    assert_eq!(events()[0]["message"], "Multi-Attach error for volume \"v\" Volume is already used by pod(s) first");
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    cluster.client.delete::<Pod>(Some("a"), "first", &now).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(api.all(ATTACHMENTS)[0]["spec"]["nodeName"], "n1", "it is still mounted there");
    api.edit("/api/v1/nodes", "", "n1", |node| node["status"]["volumesInUse"] = json!([]));
    until("it moved", || {
        api.all(ATTACHMENTS).iter().map(|attachment| attachment["spec"]["nodeName"].clone()).collect::<Vec<_>>() == ["n2"]
    })
    .await;
    assert_eq!(listed("n1"), Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_writes_every_object_once_and_says_so() {
    const MIGRATIONS: &str = "/apis/storagemigration.k8s.io/v1/storageversionmigrations";
    let cluster = cluster();
    let api = cluster.api.clone();
    for number in 0..20 {
        post(&cluster, "/api/v1/namespaces/b/configmaps", json!({"metadata": {"namespace": "b", "name": format!("m{number}")}})).await;
    }
    let of = |name: &str, plural: &str| json!({"metadata": {"name": name}, "spec": {"resource": {"group": "", "resource": plural}}});
    post(&cluster, MIGRATIONS, of("maps", "configmaps")).await;
    post(&cluster, MIGRATIONS, of("nothing", "widgets")).await;
    let is = |name: &str, kind: &str| condition(&api.get(MIGRATIONS, "", name).unwrap(), kind)["status"] == "True";
    until("done", || is("maps", "Succeeded")).await;
    until("refused", || is("nothing", "Failed")).await;
    let rewritten = api.writes().iter().filter(|write| write.starts_with("PATCH /api/v1/namespaces/b/configmaps/m")).count();
    assert_eq!(rewritten, 20);
    assert!(!is("maps", "Running"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_leaves_a_device_that_a_rule_taints_and_the_rule_counts_it() {
    const RULES: &str = "/apis/resource.k8s.io/v1/devicetaintrules";
    let cluster = cluster();
    let api = cluster.api.clone();
    let pod = json!({"metadata": {"namespace": "a", "name": "user"}, "spec": {"nodeName": "n1", "containers": [{"name": "c"}],
        "resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}]}});
    post(&cluster, "/api/v1/namespaces/a/pods", pod).await;
    let uid = api.get(PODS, "a", "user").unwrap()["metadata"]["uid"].clone();
    let result = json!({"driver": "d", "pool": "p", "device": "gpu-0", "request": "r"});
    let status =
        json!({"allocation": {"devices": {"results": [result]}}, "reservedFor": [{"resource": "pods", "name": "user", "uid": uid}]});
    let claim = json!({"metadata": {"namespace": "a", "name": "gpu"}, "spec": {}, "status": status});
    post(&cluster, "/apis/resource.k8s.io/v1/namespaces/a/resourceclaims", claim).await;
    let rule = |name: &str, effect: &str| {
        let taint = json!({"key": "k", "effect": effect, "timeAdded": "2026-01-01T00:00:00Z"});
        json!({"metadata": {"name": name, "generation": 1}, "spec": {"deviceSelector": {"device": "gpu-0"}, "taint": taint}})
    };
    post(&cluster, RULES, rule("ask", "None")).await;
    let told =
        |name: &str| condition(&api.get(RULES, "", name).unwrap(), "EvictionInProgress")["message"].as_str().unwrap_or_default().to_owned();
    until("what would happen", || told("ask").contains("1 allocated device selected. 1 pod would be evicted in 1 namespace")).await;
    assert!(api.get(PODS, "a", "user").is_some());
    post(&cluster, RULES, rule("do", "NoExecute")).await;
    until("evicted", || api.get(PODS, "a", "user").is_none()).await;
    until("an event", || api.all("/api/v1/events").iter().any(|event| event["reason"] == "DeviceTaintManagerEviction")).await;
}
