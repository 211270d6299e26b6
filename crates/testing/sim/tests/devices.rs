//! Devices for pods (DRA) against the real API server and controllers, in one process.

use std::sync::Arc;
use std::time::Duration;

use client::{Client, DeleteParams, ListParams};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice};
use serde_json::{Value, json};
use sim::{Embedded, Parts};

const NAMESPACE: &str = "default";
const DRIVER: &str = "gpu.example.com";

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// Two nodes with two devices each, and a template for claims of one.
async fn cluster() -> (Client, Embedded) {
    let store = Arc::new(store::memory::Memory::new());
    let settings = controllers::Config::default();
    let embedded = Embedded::start(store, Parts { controllers: Some(settings), ..Parts::default() }).await.unwrap();
    let api = embedded.admin();
    if let Err(error) = api.create::<Namespace>(&object(json!({ "metadata": { "name": NAMESPACE } }))).await {
        assert!(error.is_already_exists(), "{error}");
    }
    if let Err(error) = api.create::<ServiceAccount>(&object(json!({ "metadata": { "name": "default", "namespace": NAMESPACE } }))).await {
        assert!(error.is_already_exists(), "{error}");
    }
    for name in ["a", "b"] {
        let status = json!({
            "allocatable": { "cpu": "8", "memory": "8Gi", "pods": "20" },
            "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": null }],
        });
        api.create::<Node>(&object(
            json!({ "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } }, "status": status }),
        ))
        .await
        .unwrap();
        let devices: Vec<Value> = (0..2).map(|number| json!({ "name": format!("gpu-{number}") })).collect();
        let spec = json!({ "driver": DRIVER, "nodeName": name, "pool": { "name": name, "generation": 1, "resourceSliceCount": 1 }, "devices": devices });
        api.create::<ResourceSlice>(&object(json!({ "metadata": { "name": name }, "spec": spec }))).await.unwrap();
    }
    let selector = json!({ "cel": { "expression": format!("device.driver == '{DRIVER}'") } });
    api.create::<DeviceClass>(&object(json!({ "metadata": { "name": "gpu" }, "spec": { "selectors": [selector] } }))).await.unwrap();
    let template = json!({ "metadata": { "name": "one", "namespace": NAMESPACE }, "spec": { "spec": one() } });
    api.create::<ResourceClaimTemplate>(&object(template)).await.unwrap();
    (api, embedded)
}

fn one() -> Value {
    json!({ "devices": { "requests": [{ "name": "gpu", "exactly": { "deviceClassName": "gpu" } }] } })
}

async fn create_pod(api: &Client, name: &str, claim: Value) {
    let container = json!({ "name": "c", "image": "i", "resources": { "claims": [{ "name": "gpu" }] } });
    let mut named = json!({ "name": "gpu" });
    named.as_object_mut().unwrap().extend(claim.as_object().unwrap().clone());
    let spec = json!({
        "containers": [container], "resourceClaims": [named], "terminationGracePeriodSeconds": 0,
        // The heartbeats of these nodes are old.
        "tolerations": [{ "operator": "Exists" }],
    });
    api.create::<Pod>(&object(json!({ "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec }))).await.unwrap();
}

fn of_template() -> Value {
    json!({ "resourceClaimTemplateName": "one" })
}

async fn until<T>(api: &Client, name: &str, of: impl Fn(&Pod) -> Option<T>) -> T {
    for _ in 0..1000 {
        if let Some(found) = api.get::<Pod>(Some(NAMESPACE), name).await.ok().as_ref().and_then(&of) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name}: {:#?}", api.get::<Pod>(Some(NAMESPACE), name).await.map(|pod| (pod.spec.and_then(|spec| spec.node_name), pod.status)))
}

async fn node_of(api: &Client, name: &str) -> String {
    until(api, name, |pod| pod.spec.as_ref()?.node_name.clone()).await
}

async fn refusal(api: &Client, name: &str) -> String {
    let message = |pod: &Pod| {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?.message.clone()
    };
    until(api, name, message).await
}

/// Pool and device of every claim that is allocated, with the number of its users.
async fn allocated(api: &Client) -> Vec<(String, usize)> {
    let claims = api.list::<ResourceClaim>(&ListParams::in_namespace(NAMESPACE)).await.unwrap().items;
    let of = |claim: ResourceClaim| {
        let status = claim.status?;
        let users = status.reserved_for.map_or(0, |users| users.len());
        let results = status.allocation?.devices?.results?;
        Some(results.into_iter().map(move |result| (format!("{}/{}", result.pool, result.device), users)))
    };
    let mut all: Vec<_> = claims.into_iter().filter_map(of).flatten().collect();
    all.sort();
    all
}

#[tokio::test]
async fn pods_get_devices_of_their_own_and_the_next_one_waits_until_one_is_given_back() {
    let (api, _cluster) = cluster().await;
    for number in 0..4 {
        create_pod(&api, &format!("p{number}"), of_template()).await;
    }
    for number in 0..4 {
        node_of(&api, &format!("p{number}")).await;
    }
    let expected = [("a/gpu-0", 1), ("a/gpu-1", 1), ("b/gpu-0", 1), ("b/gpu-1", 1)].map(|(device, users)| (device.to_owned(), users));
    assert_eq!(allocated(&api).await, expected);
    create_pod(&api, "late", of_template()).await;
    assert_eq!(
        refusal(&api, "late").await,
        "0/2 nodes are available: 2 cannot allocate all claims. still not schedulable, preemption: 0/2 nodes are available: \
         2 Preemption is not helpful for scheduling."
    );
    let gone = node_of(&api, "p2").await;
    api.delete::<Pod>(Some(NAMESPACE), "p2", &DeleteParams::default()).await.unwrap();
    assert_eq!(node_of(&api, "late").await, gone);
}

#[tokio::test]
async fn pods_that_share_a_claim_go_where_its_device_is() {
    let (api, _cluster) = cluster().await;
    let by_name = json!({ "resourceClaimName": "shared" });
    create_pod(&api, "early", by_name.clone()).await;
    assert!(refusal(&api, "early").await.starts_with("0/2 nodes are available: resourceclaim.resource.k8s.io \"shared\" not found."));
    let claim = json!({ "metadata": { "name": "shared", "namespace": NAMESPACE }, "spec": one() });
    api.create::<ResourceClaim>(&object(claim)).await.unwrap();
    let node = node_of(&api, "early").await;
    for number in 0..3 {
        create_pod(&api, &format!("p{number}"), by_name.clone()).await;
        assert_eq!(node_of(&api, &format!("p{number}")).await, node);
    }
    assert_eq!(allocated(&api).await, [(format!("{node}/gpu-0"), 4)]);
    let claim: ResourceClaim = api.get(Some(NAMESPACE), "shared").await.unwrap();
    assert_eq!(claim.metadata.finalizers.as_deref(), Some(&["resource.kubernetes.io/delete-protection".to_owned()][..]));
}
