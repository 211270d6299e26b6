//! kube-rs, by its typed API, its watcher and its reflector: ten kinds from creation to deletion, then a cache that follows.
//! `KUBECONFIG` and `NAMESPACE` say where; a panic says what went wrong.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::Role;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() {
    let namespace = std::env::var("NAMESPACE").expect("NAMESPACE");
    let config = kube::Config::from_kubeconfig(&Default::default()).await.expect("the kubeconfig says where");
    let client = Client::try_from(config).expect("a client");
    ten_kinds(&client, &namespace).await;
    a_reflector_follows(&client, &namespace).await;
    println!("ten kinds and a reflector: done");
}

/// Reads events until one is an object of this name with these annotations (`Some`), or its deletion (`None`).
async fn until<K: ResourceExt + Debug>(
    events: &mut (impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Unpin),
    name: &str,
    annotations: Option<&[(&str, &str)]>,
) {
    let found = async {
        while let Some(event) = events.try_next().await.expect("the watch goes on") {
            let hit = match (&event, annotations) {
                (watcher::Event::Apply(object) | watcher::Event::InitApply(object), Some(wanted)) => {
                    let has = |(key, value): &(&str, &str)| object.annotations().get(*key).is_some_and(|found| found == value);
                    object.name_any() == name && wanted.iter().all(has)
                }
                (watcher::Event::Delete(object), None) => object.name_any() == name,
                _ => false,
            };
            if hit {
                return;
            }
        }
        panic!("the watch ended before {name} with {annotations:?}");
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no event about {name} with {annotations:?}"));
}

async fn visit<K>(client: &Client, namespace: &str, parts: Value)
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let kind = K::kind(&Default::default()).into_owned();
    let api_version = K::api_version(&Default::default()).into_owned();
    let name = format!("rs-{}", kind.to_lowercase());
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let object = |name: &str, annotations: Value| {
        let mut object = parts.clone();
        object["apiVersion"] = api_version.clone().into();
        object["kind"] = kind.clone().into();
        object["metadata"] = json!({"name": name, "labels": {"rs": kind}, "annotations": annotations});
        object
    };
    let selected = format!("rs={kind}");
    // Streaming lists: the watch sends what is there first.
    let mut events = pin!(watcher(api.clone(), watcher::Config::default().labels(&selected).streaming_lists()));
    let made: K = serde_json::from_value(object(&name, json!({}))).expect("the object is of its kind");
    let made = api.create(&PostParams::default(), &made).await.unwrap_or_else(|error| panic!("create {kind}: {error}"));
    assert!(made.uid().is_some() && made.resource_version().is_some(), "{kind}");
    until(&mut events, &name, Some(&[])).await;

    let plain = PatchParams::default();
    let note = |key: &str, value: &str| json!({"metadata": {"annotations": {key: value}}});
    api.patch(&name, &plain, &Patch::Merge(note("merge", "1"))).await.unwrap_or_else(|error| panic!("merge {kind}: {error}"));
    let patched = api.patch(&name, &plain, &Patch::Strategic(note("strategic", "1"))).await;
    let patched = patched.unwrap_or_else(|error| panic!("strategic {kind}: {error}"));
    assert!(patched.annotations().contains_key("merge"), "{kind}: {:?}", patched.annotations());
    until(&mut events, &name, Some(&[("merge", "1"), ("strategic", "1")])).await;

    let stale = api.replace(&name, &PostParams::default(), &made).await;
    assert!(matches!(&stale, Err(kube::Error::Api(status)) if status.is_conflict()), "{kind}: {stale:?}");
    let other = PatchParams::apply("rs-other");
    let applied = json!({"apiVersion": api_version, "kind": kind, "metadata": {"annotations": {"merge": "2"}}});
    let conflict = api.patch(&name, &other, &Patch::Apply(&applied)).await;
    assert!(matches!(&conflict, Err(kube::Error::Api(status)) if status.is_conflict()), "{kind}: {conflict:?}");
    api.patch(&name, &other.clone().force(), &Patch::Apply(&applied)).await.unwrap_or_else(|error| panic!("apply {kind}: {error}"));
    until(&mut events, &name, Some(&[("merge", "2")])).await;
    let second = format!("{name}-2");
    api.patch(&second, &other, &Patch::Apply(object(&second, json!({})))).await.unwrap_or_else(|error| panic!("apply {kind}: {error}"));

    let page = ListParams::default().labels(&selected).limit(1);
    let first = api.list(&page).await.expect("a first page");
    let token = first.metadata.continue_.clone().unwrap_or_default();
    let rest = api.list(&page.continue_token(&token)).await.expect("a second page");
    let names: Vec<String> = first.iter().chain(rest.iter()).map(ResourceExt::name_any).collect();
    assert_eq!(names, [name.as_str(), second.as_str()], "{kind}");
    api.delete(&name, &DeleteParams::default()).await.unwrap_or_else(|error| panic!("delete {kind}: {error}"));
    until(&mut events, &name, None).await;
    let rest = api.delete_collection(&DeleteParams::default(), &ListParams::default().labels(&selected)).await;
    rest.unwrap_or_else(|error| panic!("deletecollection {kind}: {error}"));
    until(&mut events, &second, None).await;
    assert!(api.get_opt(&name).await.expect("an answer").is_none(), "{kind}");
}

async fn ten_kinds(client: &Client, ns: &str) {
    let selector = json!({"matchLabels": {"app": "a"}});
    let pod = |policy: &str| {
        json!({"metadata": {"labels": {"app": "a"}},
            "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "sternpost.io/toolbox"}]}})
    };
    let path = json!({"path": "/", "pathType": "Exact", "backend": {"service": {"name": "s", "port": {"number": 80}}}});
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "none"});
    visit::<ConfigMap>(client, ns, json!({"data": {"a": "1"}})).await;
    visit::<Secret>(client, ns, json!({"data": {"a": "AAH/"}})).await;
    visit::<Service>(client, ns, json!({"spec": {"ports": [{"port": 80}]}})).await;
    visit::<ServiceAccount>(client, ns, json!({"automountServiceAccountToken": true})).await;
    let storage = json!({"requests": {"storage": "1Mi"}});
    visit::<PersistentVolumeClaim>(client, ns, json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": storage}})).await;
    visit::<Deployment>(client, ns, json!({"spec": {"replicas": 0, "selector": selector, "template": pod("Always")}})).await;
    let job = json!({"spec": {"template": pod("Never")}});
    visit::<CronJob>(client, ns, json!({"spec": {"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": job}})).await;
    visit::<Role>(client, ns, json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]})).await;
    visit::<Ingress>(client, ns, json!({"spec": {"rules": [{"host": "a.example.com", "http": {"paths": [path]}}]}})).await;
    visit::<PodDisruptionBudget>(client, ns, json!({"spec": {"minAvailable": 1, "selector": selector}})).await;
    let scaler = json!({"spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 3}});
    visit::<HorizontalPodAutoscaler>(client, ns, scaler).await;
}

async fn a_reflector_follows(client: &Client, ns: &str) {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), ns);
    let object = |name: &str| ConfigMap {
        metadata: kube::api::ObjectMeta { name: Some(name.into()), ..Default::default() },
        data: Some(BTreeMap::from([("a".into(), "1".into())])),
        ..Default::default()
    };
    api.create(&PostParams::default(), &object("before")).await.expect("created");
    let (store, writer) = reflector::store();
    let following = reflector(writer, watcher(api.clone(), watcher::Config::default())).applied_objects();
    let following = tokio::spawn(async move { following.try_for_each(|_| async { Ok(()) }).await });
    tokio::time::timeout(PATIENCE, store.wait_until_ready()).await.expect("in time").expect("the reflector lives");
    api.create(&PostParams::default(), &object("after")).await.expect("created");
    let names = |wanted: &'static [&'static str]| {
        let store = store.clone();
        async move {
            loop {
                let mut names: Vec<String> = store.state().iter().map(|object| object.name_any()).collect();
                names.retain(|name| name != "kube-root-ca.crt");
                names.sort();
                if names == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, names(&["after", "before"])).await.expect("both are seen");
    api.delete("before", &DeleteParams::default()).await.expect("deleted");
    tokio::time::timeout(PATIENCE, names(&["after"])).await.expect("the deletion is seen");
    following.abort();
}
