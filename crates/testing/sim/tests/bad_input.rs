//! What users ask for by mistake or in spite, on a whole cluster: it says clearly what is wrong, comes to rest, and nothing was written in a
//! hot loop on the way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::{Client, ListParams, Patch};
use http::Method;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Pod};
use serde_json::{Value, json};
use sim::{Embedded, Parts};
use store::Store;
use store::memory::Memory;

/// More writes of one object than this within the test, which takes less than a minute, are a hot loop. A failing create is tried again after
/// 5 ms, 10 ms and so on up to a minute: fourteen times in the first one. Leases and Events have rhythms of their own.
const WRITES_MAX: usize = 30;

struct Cluster {
    store: Arc<Memory>,
    cluster: Embedded,
    api: Client,
}

async fn cluster() -> Cluster {
    let store = Arc::new(Memory::new());
    let cluster = Embedded::start(store.clone(), Parts::default()).await.unwrap();
    let api = cluster.admin();
    let nodes = hollow::Config { nodes: 3, ..hollow::Config::default() };
    tokio::spawn(hollow::run(nodes, api.clone(), cluster.drain.clone()));
    let cluster = Cluster { store, cluster, api };
    cluster
        .until("three nodes take pods", async |c| {
            let nodes = c.get("/api/v1/nodes").await["items"].as_array().cloned().unwrap_or_default();
            nodes.iter().filter(|node| node["spec"]["taints"].as_array().is_none_or(Vec::is_empty)).count() == 3
        })
        .await;
    cluster
}

impl Cluster {
    async fn post(&self, path: &str, object: Value) -> Result<Value, client::Error> {
        self.api.request_json(Method::POST, path, Some(Bytes::from(object.to_string()))).await
    }

    async fn get(&self, path: &str) -> Value {
        self.api.request_json(Method::GET, path, None).await.unwrap_or_default()
    }

    async fn until(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) {
        for _ in 0..600 {
            if holds(self).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let events = self.events().await;
        panic!("never: {what}; events: {events:#?}");
    }

    async fn events(&self) -> Vec<String> {
        let events = self.api.list::<Event>(&ListParams::default()).await.unwrap().items;
        let text = |event: Event| {
            let about = event.involved_object;
            let (kind, name) = (about.kind.unwrap_or_default(), about.name.unwrap_or_default());
            format!("{kind} {name} {}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default())
        };
        events.into_iter().map(text).collect()
    }

    async fn says(&self, about: &str, what: &str) -> bool {
        self.events().await.iter().any(|event| event.starts_with(about) && event.contains(what))
    }

    /// The status of a condition, and its reason.
    async fn condition(&self, path: &str, kind: &str) -> (String, String) {
        let object = self.get(path).await;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default();
        let text = |part: &str| found[part].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"))
    }

    /// How often each object was written since `after`, those that breathe left out.
    fn writes(&self, after: u64) -> BTreeMap<String, usize> {
        let mut writes = BTreeMap::new();
        for event in self.store.history(b"/registry/", after).unwrap() {
            let key = String::from_utf8_lossy(event.key()).into_owned();
            if !key.contains("/leases/") && !key.contains("/events/") && !key.contains("/minions/") {
                *writes.entry(key).or_insert(0) += 1;
            }
        }
        writes
    }

    /// A second long nothing is written but what breathes.
    async fn comes_to_rest(&self) {
        let mut seen = BTreeMap::new();
        for _ in 0..30 {
            let revision = self.store.revision();
            tokio::time::sleep(Duration::from_secs(1)).await;
            seen = self.writes(revision);
            if seen.is_empty() {
                break;
            }
        }
        assert!(seen.is_empty(), "still written: {seen:?}");
        let hot: BTreeMap<_, _> = self.writes(0).into_iter().filter(|(_, count)| *count > WRITES_MAX).collect();
        assert!(hot.is_empty(), "a hot loop: {hot:?}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.cluster.stop();
    }
}

fn template(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "x"}]}})
}

fn replicas_of(app: &str, selector: &str, replicas: i32, namespace: &str) -> Value {
    let spec = json!({"replicas": replicas, "selector": {"matchLabels": {"app": selector}}, "template": template(selector)});
    json!({"metadata": {"namespace": namespace, "name": app}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_wishes_are_refused_or_explained_and_nothing_runs_hot() {
    let c = cluster().await;
    let apps = "/apis/apps/v1/namespaces/default";

    // Refused at the door, with the field.
    let scale = json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {"replicas": -1}});
    c.post(&format!("{apps}/deployments"), replicas_of("web", "web", 2, "default")).await.unwrap();
    let negative = c.api.request_json::<Value>(Method::PUT, &format!("{apps}/deployments/web/scale"), Some(scale.to_string().into())).await;
    assert!(negative.unwrap_err().to_string().contains("spec.replicas: Invalid value: -1: must be greater than or equal to 0"));
    let mut foreign = replicas_of("foreign", "a", 1, "default");
    foreign["spec"]["template"] = template("b");
    let refused = c.post(&format!("{apps}/deployments"), foreign).await.unwrap_err().to_string();
    assert!(refused.contains("`selector` does not match template `labels`"), "{refused}");
    let schedule = json!({"metadata": {"name": "x"}, "spec": {"schedule": "soon", "jobTemplate": {"spec": {"template": template("x")}}}});
    assert!(c.post("/apis/batch/v1/namespaces/default/cronjobs", schedule).await.unwrap_err().is_invalid());

    // Taken, and explained: pods that policy forbids, quotas that are full, classes and targets that do not exist, budgets over strangers.
    let strict = json!({"metadata": {"name": "strict", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    c.post("/api/v1/namespaces", strict).await.unwrap();
    c.post("/apis/apps/v1/namespaces/strict/deployments", replicas_of("no", "no", 3, "strict")).await.unwrap();
    c.post("/api/v1/namespaces", json!({"metadata": {"name": "small"}})).await.unwrap();
    let quota = json!({"metadata": {"name": "two"}, "spec": {"hard": {"pods": "2"}}});
    c.post("/api/v1/namespaces/small/resourcequotas", quota).await.unwrap();
    c.until("the quota counts", async |c| c.get("/api/v1/namespaces/small/resourcequotas/two").await["status"]["used"]["pods"] == "0")
        .await;
    c.post("/apis/apps/v1/namespaces/small/replicasets", replicas_of("big", "big", 50, "small")).await.unwrap();
    let claim = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "none"});
    c.post("/api/v1/namespaces/default/persistentvolumeclaims", json!({"metadata": {"name": "unmet"}, "spec": claim})).await.unwrap();
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "nobody"});
    let hpa = json!({"metadata": {"name": "hpa"}, "spec": {"scaleTargetRef": target, "maxReplicas": 3}});
    c.post("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", hpa).await.unwrap();
    let lonely = json!({"metadata": {"name": "lonely", "labels": {"alone": "yes"}}, "spec": template("lonely")["spec"]});
    c.post("/api/v1/namespaces/default/pods", lonely).await.unwrap();
    let budget = json!({"metadata": {"name": "pdb"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"alone": "yes"}}}});
    c.post("/apis/policy/v1/namespaces/default/poddisruptionbudgets", budget).await.unwrap();
    let huge = json!({"metadata": {"name": "huge"}, "spec": {"containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": "9000"}}}]}});
    c.post("/api/v1/namespaces/default/pods", huge).await.unwrap();

    let failure = ("True".to_owned(), "FailedCreate".to_owned());
    c.until("the Deployment fails", async |c| {
        c.condition("/apis/apps/v1/namespaces/strict/deployments/no", "ReplicaFailure").await == failure
    })
    .await;
    c.until("the ReplicaSet says why", async |c| c.says("ReplicaSet no-", "violates PodSecurity \"restricted").await).await;
    c.until("the quota is named", async |c| c.says("ReplicaSet big", "exceeded quota: two").await).await;
    c.until("two of fifty", async |c| c.get("/apis/apps/v1/namespaces/small/replicasets/big").await["status"]["readyReplicas"] == 2).await;
    c.until("the class is named", async |c| c.says("PersistentVolumeClaim unmet", "storageclass.storage.k8s.io \"none\" not found").await)
        .await;
    let no_target = ("False".to_owned(), "FailedGetScale".to_owned());
    let hpa = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/hpa";
    c.until("no target", async |c| c.condition(hpa, "AbleToScale").await == no_target).await;
    c.until("no controller", async |c| c.says("PodDisruptionBudget pdb UnmanagedPods", "were found to be unmanaged").await).await;
    c.until("no node", async |c| c.says("Pod huge FailedScheduling", "0/3 nodes are available: 3 Insufficient cpu").await).await;
    c.comes_to_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sets_that_want_the_same_pods_leave_each_others_alone() {
    let c = cluster().await;
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    c.post(sets, replicas_of("one", "same", 4, "default")).await.unwrap();
    c.post(sets, replicas_of("two", "same", 3, "default")).await.unwrap();
    let ready = async |c: &Cluster, name: &str| c.get(&format!("{sets}/{name}")).await["status"]["readyReplicas"].clone();
    c.until("both whole", async |c| ready(c, "one").await == 4 && ready(c, "two").await == 3).await;
    c.comes_to_rest().await;
    assert_eq!(c.api.list::<Pod>(&ListParams::default()).await.unwrap().items.len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_in_the_controllers_own_objects_is_put_right() {
    let c = cluster().await;
    c.post("/apis/apps/v1/namespaces/default/deployments", replicas_of("web", "web", 3, "default")).await.unwrap();
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    c.post("/api/v1/namespaces/default/services", json!({"metadata": {"name": "web"}, "spec": spec})).await.unwrap();
    let endpoints = async |c: &Cluster| {
        let slices =
            c.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name=web").await;
        slices["items"][0].clone()
    };
    c.until("three endpoints", async |c| endpoints(c).await["endpoints"].as_array().is_some_and(|all| all.len() == 3)).await;

    let pods = c.api.list::<Pod>(&ListParams::in_namespace("default")).await.unwrap().items;
    let stolen = pods[0].metadata.name.clone().unwrap();
    c.api.patch::<Pod>(Some("default"), &stolen, &Patch::Merge(json!({"metadata": {"labels": {"app": "mine"}}})), "").await.unwrap();
    c.until("the stolen pod is free", async |c| {
        let pod: Pod = c.api.get(Some("default"), &stolen).await.unwrap();
        pod.metadata.owner_references.is_none_or(|owners| owners.is_empty())
    })
    .await;
    let set = c.api.list::<ReplicaSet>(&ListParams::in_namespace("default")).await.unwrap().items.remove(0);
    let set = set.metadata.name.unwrap();
    let patch = Patch::Merge(json!({"spec": {"replicas": 9}}));
    c.api.patch::<ReplicaSet>(Some("default"), &set, &patch, "").await.unwrap();
    let status = Patch::Merge(json!({"status": {"replicas": 77, "readyReplicas": 77}}));
    c.api.patch::<Deployment>(Some("default"), "web", &status, "status").await.unwrap();
    let slice = endpoints(&c).await["metadata"]["name"].as_str().unwrap().to_owned();
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{slice}");
    let mut edited = c.get(&path).await;
    edited["endpoints"] = json!([{"addresses": ["192.0.2.1"]}]);
    c.api.request_json::<Value>(Method::PUT, &path, Some(edited.to_string().into())).await.unwrap();

    c.until("the count is right again", async |c| {
        let (set, web) = (
            c.get(&format!("/apis/apps/v1/namespaces/default/replicasets/{set}")).await,
            c.get("/apis/apps/v1/namespaces/default/deployments/web").await,
        );
        set["spec"]["replicas"] == 3
            && set["status"]["readyReplicas"] == 3
            && web["status"]["replicas"] == 3
            && web["status"]["readyReplicas"] == 3
    })
    .await;
    c.until("the slice leads to pods again", async |c| {
        let listed = endpoints(c).await["endpoints"].as_array().cloned().unwrap_or_default();
        listed.len() == 3
            && listed.iter().all(|endpoint| endpoint["targetRef"]["kind"] == "Pod" && endpoint["targetRef"]["name"] != stolen.as_str())
    })
    .await;
    c.comes_to_rest().await;
    assert!(c.api.get::<Pod>(Some("default"), &stolen).await.unwrap().metadata.deletion_timestamp.is_none(), "the stolen pod lives");
}
