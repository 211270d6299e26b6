use serde_json::json;

use super::*;

const PODS: Resource<'static> = Resource { group: "", plural: "pods" };

fn usage(resource: Resource<'_>, object: &Value) -> String {
    shown(resource.usage(object, 100).iter())
}

#[test]
fn objects_cost_what_upstream_says() {
    let core = |plural| Resource { group: "", plural };
    let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}, "limits": {"cpu": "2"}}});
    let pod = json!({"spec": {"containers": [container("500m"), container("250m")], "initContainers": [container("1")], "overhead": {"cpu": "10m"}}});
    let ended = json!({"spec": pod["spec"], "status": {"phase": "Succeeded"}});
    let service = |kind: &str| json!({"spec": {"type": kind, "ports": [{"port": 1}, {"port": 2}]}});
    let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "5Gi"}}}});
    let alternatives =
        json!([{"deviceClassName": "gpu", "count": 3}, {"deviceClassName": "gpu"}, {"deviceClassName": "all", "allocationMode": "All"}]);
    let requests = json!([{"exactly": {"deviceClassName": "gpu", "count": 2}}, {"firstAvailable": alternatives}]);
    let devices = json!({"spec": {"devices": {"requests": requests}}});
    let cases = [
        (PODS, &pod, "count/pods=1,cpu=1010m,limits.cpu=4010m,memory=2Gi,pods=1,requests.cpu=1010m,requests.memory=2Gi"),
        (PODS, &ended, "count/pods=1"),
        (core("services"), &service("NodePort"), "count/services=1,services=1,services.loadbalancers=0,services.nodeports=2"),
        (core("services"), &service("LoadBalancer"), "count/services=1,services=1,services.loadbalancers=1,services.nodeports=2"),
        (
            core("persistentvolumeclaims"),
            &claim,
            "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/requests.storage=5Gi,persistentvolumeclaims=1,requests.storage=5Gi",
        ),
        (core("secrets"), &json!({}), "count/secrets=1,secrets=1"),
        (
            Resource { group: "resource.k8s.io", plural: "resourceclaims" },
            &devices,
            "all.deviceclass.resource.k8s.io/devices=32,count/resourceclaims.resource.k8s.io=1,gpu.deviceclass.resource.k8s.io/devices=5",
        ),
        (Resource { group: "apps", plural: "replicasets" }, &json!({}), "count/replicasets.apps=1"),
    ];
    for (resource, object, expected) in cases {
        assert_eq!(usage(resource, object), expected);
    }
}

#[test]
fn scopes_choose_the_pods() {
    let quota = |scope: Value| json!({"spec": {"scopeSelector": {"matchExpressions": [scope]}}, "status": {"hard": {"pods": "1"}}});
    let plain = |name: &str| json!({"spec": {"scopes": [name]}, "status": {"hard": {"pods": "1"}}});
    let effort = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}], "priorityClassName": "high"}});
    let best = json!({"spec": {"containers": [{"name": "c"}], "activeDeadlineSeconds": 5}});
    let crossing =
        json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["x"]}]}}}});
    let class = |operator: &str, values: Value| quota(json!({"scopeName": "PriorityClass", "operator": operator, "values": values}));
    let cases = [
        (plain("BestEffort"), [false, true, true]),
        (plain("NotBestEffort"), [true, false, false]),
        (plain("Terminating"), [false, true, false]),
        (plain("NotTerminating"), [true, false, true]),
        (plain("CrossNamespacePodAffinity"), [false, false, true]),
        (class("In", json!(["high"])), [true, false, false]),
        (class("NotIn", json!(["high"])), [false, true, true]),
        (class("Exists", json!([])), [true, false, false]),
        (class("DoesNotExist", json!([])), [false, true, true]),
    ];
    for (quota, expected) in cases {
        let found = [&effort, &best, &crossing].map(|pod| PODS.matches(&quota, pod));
        assert_eq!(found, expected, "{quota}");
        assert!(!Resource { group: "", plural: "services" }.matches(&quota, &json!({})), "only pods have these scopes");
    }
}

#[test]
fn bounded_compute_resources_must_be_said() {
    let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}});
    let bounded = ["requests.cpu".to_owned(), "limits.memory".to_owned(), "pods".to_owned()];
    let expected = "must specify limits.memory for: a,b; requests.cpu for: a";
    assert_eq!(PODS.missing(&pod, bounded.iter()).as_deref(), Some(expected));
}
