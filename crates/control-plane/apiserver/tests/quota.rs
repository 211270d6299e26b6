//! Resource quotas against the whole server: what each scope and each resource counts, one line a case.

mod harness;

use harness::Api;
use harness::cases::{Case, Made, Refused, check, make, namespace, pod};
use serde_json::{Value, json};

/// A namespace with one quota, whose status says that nothing of it is used.
async fn quota(api: &Api, name: &str, spec: Value) {
    namespace(api, name, json!({}), json!({})).await;
    let path = format!("/api/v1/namespaces/{name}/resourcequotas");
    make(api, &path, json!({"metadata": {"name": "q"}, "spec": spec})).await;
    // The quota controller's part.
    let used: serde_json::Map<String, Value> = spec["hard"].as_object().unwrap().keys().map(|key| (key.clone(), "0".into())).collect();
    let told = api.merge(&format!("{path}/q/status"), json!({"status": {"hard": spec["hard"], "used": used}})).await;
    assert_eq!(told.code, 200, "{}", told.message());
    assert_eq!(api.get(&format!("{path}?resourceVersion={}", told.version())).await.code, 200);
}

fn scoped(scope: &str, operator: &str, values: Value) -> Value {
    let mut expression = json!({"scopeName": scope, "operator": operator});
    if !values.is_null() {
        expression["values"] = values;
    }
    json!({"hard": {"pods": "0"}, "scopeSelector": {"matchExpressions": [expression]}})
}

fn plain(scope: &str) -> Value {
    json!({"hard": {"pods": "0"}, "scopes": [scope]})
}

#[tokio::test]
async fn every_scope_counts_its_pods_and_no_others() {
    let api = Api::new().await;
    make(&api, "/apis/scheduling.k8s.io/v1/priorityclasses", json!({"metadata": {"name": "high"}, "value": 1000})).await;
    let limited = json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]});
    let across = |more: Value| {
        let mut term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}});
        term.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
    };
    let (none, high) = (json!({}), json!({"priorityClassName": "high"}));
    let (ends, effort) = (json!({"activeDeadlineSeconds": 5}), limited);
    // Scope, a pod that it counts, a pod that it does not.
    let cases = [
        ("terminating", plain("Terminating"), &ends, &none),
        ("not-terminating", plain("NotTerminating"), &none, &ends),
        ("best-effort", plain("BestEffort"), &none, &effort),
        ("not-best-effort", plain("NotBestEffort"), &effort, &none),
        ("class-in", scoped("PriorityClass", "In", json!(["high"])), &high, &none),
        ("class-not-in", scoped("PriorityClass", "NotIn", json!(["high"])), &none, &high),
        ("class-exists", scoped("PriorityClass", "Exists", Value::Null), &high, &none),
        ("class-does-not-exist", scoped("PriorityClass", "DoesNotExist", Value::Null), &none, &high),
        ("affinity", scoped("CrossNamespacePodAffinity", "Exists", Value::Null), &across(json!({"namespaces": ["x"]})), &across(json!({}))),
        ("affinity-selector", plain("CrossNamespacePodAffinity"), &across(json!({"namespaceSelector": {}})), &none),
        ("ends-exists", scoped("Terminating", "Exists", Value::Null), &ends, &none),
    ];
    for (name, spec, counted, other) in cases {
        quota(&api, name, spec).await;
        let path: &'static str = Box::leak(format!("/api/v1/namespaces/{name}/pods").into_boxed_str());
        let table: Vec<Case> = vec![
            (
                "counted",
                path,
                pod(&format!("{name}-1"), counted.clone()),
                Refused(403, "exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0"),
            ),
            ("not counted", path, pod(&format!("{name}-2"), other.clone()), Made),
        ];
        check(&api, table).await;
    }
}

#[tokio::test]
async fn every_resource_is_counted_by_its_name() {
    let api = Api::new().await;
    let claim = |class: &str, attributes: Value| {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": "2Gi"}}});
        if !attributes.is_null() {
            spec["volumeAttributesClassName"] = attributes;
        }
        json!({"metadata": {"generateName": "c-"}, "spec": spec})
    };
    let service = |kind: &str| json!({"metadata": {"generateName": "s-"}, "spec": {"type": kind, "ports": [{"port": 80}]}});
    let compute = |requests: Value, limits: Value| {
        let mut made = pod("", json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": requests, "limits": limits}}]}));
        made["metadata"] = json!({"generateName": "p-"});
        made
    };
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"metadata": {"generateName": "d-"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let device = |class: &str| json!({"metadata": {"generateName": "r-"}, "spec": {"devices": {"requests": [{"name": "d", "exactly": {"deviceClassName": class}}]}}});
    let map = json!({"metadata": {"generateName": "m-"}});
    let (core, pods) = ("/api/v1/namespaces", "pods");
    let gold = json!({"hard": {"persistentvolumeclaims": "0"}, "scopeSelector": {"matchExpressions": [{"scopeName": "VolumeAttributesClass", "operator": "In", "values": ["gold"]}]}});
    let hard = |name: &str, amount: &str| json!({"hard": {name: amount}});
    // Quota, where, what exceeds it (and how that is told), what does not.
    let cases: Vec<(&str, Value, &str, &str, Value, &str, Option<Value>)> = vec![
        ("configmaps", hard("configmaps", "0"), core, "configmaps", map.clone(), "requested: configmaps=1", None),
        ("secrets", hard("secrets", "0"), core, "secrets", map.clone(), "requested: secrets=1", None),
        ("count-core", hard("count/configmaps", "0"), core, "configmaps", map.clone(), "requested: count/configmaps=1", None),
        (
            "count-apps",
            hard("count/deployments.apps", "0"),
            "/apis/apps/v1/namespaces",
            "deployments",
            deployment,
            "requested: count/deployments.apps=1",
            None,
        ),
        ("services", hard("services", "0"), core, "services", service("ClusterIP"), "requested: services=1", None),
        (
            "node-ports",
            hard("services.nodeports", "0"),
            core,
            "services",
            service("NodePort"),
            "requested: services.nodeports=1",
            Some(service("ClusterIP")),
        ),
        (
            "balancers",
            hard("services.loadbalancers", "0"),
            core,
            "services",
            service("LoadBalancer"),
            "requested: services.loadbalancers=1",
            Some(service("NodePort")),
        ),
        (
            "claims",
            hard("persistentvolumeclaims", "0"),
            core,
            "persistentvolumeclaims",
            claim("x", Value::Null),
            "requested: persistentvolumeclaims=1",
            None,
        ),
        (
            "storage",
            hard("requests.storage", "1Gi"),
            core,
            "persistentvolumeclaims",
            claim("x", Value::Null),
            "requested: requests.storage=2Gi",
            None,
        ),
        (
            "storage-class",
            hard("gold.storageclass.storage.k8s.io/requests.storage", "1Gi"),
            core,
            "persistentvolumeclaims",
            claim("gold", Value::Null),
            "requested: gold.storageclass.storage.k8s.io/requests.storage=2Gi",
            Some(claim("x", Value::Null)),
        ),
        (
            "class-claims",
            hard("gold.storageclass.storage.k8s.io/persistentvolumeclaims", "0"),
            core,
            "persistentvolumeclaims",
            claim("gold", Value::Null),
            "gold.storageclass.storage.k8s.io/persistentvolumeclaims=1",
            Some(claim("x", Value::Null)),
        ),
        (
            "attributes",
            gold,
            core,
            "persistentvolumeclaims",
            claim("x", json!("gold")),
            "requested: persistentvolumeclaims=1",
            Some(claim("x", json!("silver"))),
        ),
        (
            "cpu",
            hard("cpu", "1"),
            core,
            pods,
            compute(json!({"cpu": "2"}), json!({})),
            "requested: cpu=2, used: cpu=0, limited: cpu=1",
            Some(compute(json!({"cpu": "1"}), json!({}))),
        ),
        (
            "limits",
            hard("limits.memory", "1Gi"),
            core,
            pods,
            compute(json!({}), json!({"memory": "2Gi"})),
            "requested: limits.memory=2Gi",
            Some(compute(json!({}), json!({"memory": "1Gi"}))),
        ),
        (
            "unsaid",
            hard("requests.memory", "1Gi"),
            core,
            pods,
            compute(json!({}), json!({})),
            "failed quota: q: must specify requests.memory for: c",
            None,
        ),
        (
            "ephemeral",
            hard("requests.ephemeral-storage", "1Gi"),
            core,
            pods,
            compute(json!({"ephemeral-storage": "2Gi"}), json!({})),
            "requested: requests.ephemeral-storage=2Gi",
            Some(compute(json!({}), json!({}))),
        ),
        (
            "gpu",
            hard("requests.example.com/gpu", "1"),
            core,
            pods,
            compute(json!({}), json!({"example.com/gpu": "2"})),
            "requested: requests.example.com/gpu=2",
            Some(compute(json!({}), json!({}))),
        ),
        (
            "huge-pages",
            hard("hugepages-2Mi", "2Mi"),
            core,
            pods,
            compute(json!({"cpu": "1", "hugepages-2Mi": "4Mi"}), json!({"hugepages-2Mi": "4Mi"})),
            "requested: hugepages-2Mi=4Mi",
            None,
        ),
        (
            "devices",
            hard("gpu.deviceclass.resource.k8s.io/devices", "0"),
            "/apis/resource.k8s.io/v1/namespaces",
            "resourceclaims",
            device("gpu"),
            "requested: gpu.deviceclass.resource.k8s.io/devices=1",
            Some(device("other")),
        ),
        (
            "count-claims",
            hard("count/resourceclaims.resource.k8s.io", "0"),
            "/apis/resource.k8s.io/v1/namespaces",
            "resourceclaims",
            device("gpu"),
            "requested: count/resourceclaims.resource.k8s.io=1",
            None,
        ),
    ];
    for (name, spec, root, plural, exceeding, said, other) in cases {
        quota(&api, name, spec).await;
        let path = format!("{root}/{name}/{plural}");
        let refused = api.post(&path, exceeding).await;
        assert_eq!(refused.code, 403, "{name}: {}", refused.message());
        assert!(refused.message().contains(said), "{name}: {}", refused.message());
        if let Some(other) = other {
            let made = api.post(&path, other).await;
            assert_eq!(made.code, 201, "{name}: {}", made.message());
        }
    }
}

#[tokio::test]
async fn a_quota_that_nobody_has_counted_yet_lets_nothing_in() {
    let api = Api::new().await;
    namespace(&api, "a", json!({}), json!({})).await;
    make(&api, "/api/v1/namespaces/a/resourcequotas", json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "5"}}})).await;
    let told = api.merge("/api/v1/namespaces/a/resourcequotas/q/status", json!({"status": {"hard": {"pods": "5"}}})).await;
    assert_eq!(api.get(&format!("/api/v1/namespaces/a/resourcequotas?resourceVersion={}", told.version())).await.code, 200);
    let refused = api.post("/api/v1/namespaces/a/pods", pod("p", json!({}))).await;
    assert!(refused.message().contains("status unknown for quota: q, resources: pods"), "{}", refused.message());
}
