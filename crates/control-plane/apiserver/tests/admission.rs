//! The built-in admission plugins against the whole server, one line a case.

mod harness;

use harness::Api;
use harness::cases::{Has, Made, Refused, check, make, namespace, pod};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/a/pods";
const CLAIMS: &str = "/api/v1/namespaces/a/persistentvolumeclaims";

/// A server with the namespace `a`, these plugins besides the usual ones, and their configurations.
async fn server(enable: &[&str], configurations: Value) -> Api {
    let configurations = configurations.as_object().unwrap().clone().into_iter().collect();
    let enable = enable.iter().map(|name| (*name).to_owned()).collect();
    let options = admission::Options { enable, configurations, ..admission::Options::default() };
    let api = Api::with(apiserver::Config { admission: options, ..apiserver::Config::default() }).await;
    namespace(&api, "a", json!({}), json!({})).await;
    api
}

#[tokio::test]
async fn namespace_lifecycle_guards_namespaces() {
    let api = server(&[], json!({})).await;
    make(&api, "/api/v1/namespaces", json!({"metadata": {"name": "ending", "finalizers": ["example.com/hold"]}})).await;
    assert_eq!(api.delete("/api/v1/namespaces/ending").await.code, 200);
    let map = || json!({"metadata": {"name": "m"}});
    check(
        &api,
        vec![
            ("a namespace that is not there", "/api/v1/namespaces/none/configmaps", map(), Refused(404, "namespaces \"none\" not found")),
            ("one that ends", "/api/v1/namespaces/ending/configmaps", map(), Refused(403, "because it is being terminated")),
            ("one that lives", "/api/v1/namespaces/a/configmaps", map(), Made),
        ],
    )
    .await;
    for name in ["default", "kube-system", "kube-public"] {
        let refused = api.delete(&format!("/api/v1/namespaces/{name}")).await;
        assert_eq!(
            (refused.code, refused.message()),
            (403, format!("namespaces \"{name}\" is forbidden: this namespace may not be deleted"))
        );
    }
}

#[tokio::test]
async fn limit_ranger_gives_defaults_and_bounds() {
    let api = server(&[], json!({})).await;
    let of_containers = json!({"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "min": {"cpu": "50m"}, "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "10"}});
    let of_pods = json!({"type": "Pod", "max": {"memory": "1Gi"}});
    let of_claims = json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "5Gi"}});
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [of_containers, of_pods, of_claims]}});
    make(&api, "/api/v1/namespaces/a/limitranges", range).await;
    let asks = |name: &str, requests: Value, limits: Value| {
        pod(name, json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": requests, "limits": limits}}]}))
    };
    let memory = || json!({"cpu": "100m", "memory": "10Mi"});
    let claim = |name: &str, size: &str| json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
    let resources = "/spec/containers/0/resources/limits/cpu";
    check(
        &api,
        vec![
            (
                "no memory limit for the pod",
                PODS,
                asks("p", json!({}), json!({})),
                Refused(403, "maximum memory usage per Pod is 1Gi.  No limit is specified"),
            ),
            ("defaults", PODS, asks("p1", json!({}), json!({"memory": "10Mi"})), Has(resources, json!("500m"))),
            (
                "the request's default",
                PODS,
                asks("p2", json!({}), json!({"memory": "10Mi"})),
                Has("/spec/containers/0/resources/requests/cpu", json!("100m")),
            ),
            (
                "the note",
                PODS,
                asks("p3", json!({"memory": "1Mi"}), json!({"memory": "10Mi"})),
                Has(
                    "/metadata/annotations/kubernetes.io~1limit-ranger",
                    json!("LimitRanger plugin set: cpu request for container c; cpu limit for container c"),
                ),
            ),
            (
                "too much",
                PODS,
                asks("p4", memory(), json!({"cpu": "2", "memory": "10Mi"})),
                Refused(403, "maximum cpu usage per Container is 1, but limit is 2"),
            ),
            (
                "too little",
                PODS,
                asks("p5", json!({"cpu": "10m"}), json!({"cpu": "20m", "memory": "10Mi"})),
                Refused(403, "minimum cpu usage per Container is 50m, but request is 10m"),
            ),
            (
                "the ratio",
                PODS,
                asks("p6", json!({"cpu": "50m"}), json!({"cpu": "1", "memory": "10Mi"})),
                Refused(403, "cpu max limit to request ratio per Container is 10, but provided ratio is 20.000000"),
            ),
            (
                "the pod's sum",
                PODS,
                asks("p7", json!({}), json!({"memory": "2Gi"})),
                Refused(403, "maximum memory usage per Pod is 1Gi, but limit is 2Gi"),
            ),
            ("a claim in bounds", CLAIMS, claim("c1", "2Gi"), Made),
            (
                "a claim too small",
                CLAIMS,
                claim("c2", "1Mi"),
                Refused(403, "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"),
            ),
            (
                "a claim too large",
                CLAIMS,
                claim("c3", "6Gi"),
                Refused(403, "maximum storage usage per PersistentVolumeClaim is 5Gi, but request is 6Gi"),
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn service_accounts_come_with_their_pods() {
    let api = server(&[], json!({})).await;
    make(&api, "/api/v1/namespaces", json!({"metadata": {"name": "bare"}})).await;
    let mirror = json!({"metadata": {"name": "m", "annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": pod("m", json!({"serviceAccountName": "default"}))["spec"]});
    check(
        &api,
        vec![
            ("the default account", PODS, pod("p1", json!({})), Has("/spec/serviceAccountName", json!("default"))),
            (
                "its token's place",
                PODS,
                pod("p2", json!({})),
                Has("/spec/containers/0/volumeMounts/0/mountPath", json!("/var/run/secrets/kubernetes.io/serviceaccount")),
            ),
            ("no token", PODS, pod("p3", json!({"automountServiceAccountToken": false})), Has("/spec/volumes", Value::Null)),
            (
                "an account that is not there",
                PODS,
                pod("p4", json!({"serviceAccountName": "none"})),
                Refused(403, "error looking up service account a/none: serviceaccount \"none\" not found"),
            ),
            (
                "a namespace without accounts",
                "/api/v1/namespaces/bare/pods",
                pod("p5", json!({})),
                Refused(403, "error looking up service account bare/default: serviceaccount \"default\" not found"),
            ),
            ("a mirror pod has none", PODS, mirror, Refused(403, "a mirror pod may not reference service accounts")),
        ],
    )
    .await;
}

#[tokio::test]
async fn priority_follows_from_the_class() {
    let api = server(&[], json!({})).await;
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    make(&api, classes, json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"})).await;
    check(
        &api,
        vec![
            ("none", PODS, pod("p1", json!({})), Has("/spec/priority", json!(0))),
            ("a class", PODS, pod("p2", json!({"priorityClassName": "high"})), Has("/spec/priority", json!(1000))),
            ("its policy", PODS, pod("p3", json!({"priorityClassName": "high"})), Has("/spec/preemptionPolicy", json!("Never"))),
            (
                "one that is not there",
                PODS,
                pod("p4", json!({"priorityClassName": "none"})),
                Refused(403, "no PriorityClass with name none was found"),
            ),
            (
                "a number of its own",
                PODS,
                pod("p5", json!({"priority": 5})),
                Refused(403, "the integer value of priority (5) must not be provided in pod spec"),
            ),
            (
                "a policy of its own",
                PODS,
                pod("p6", json!({"priorityClassName": "high", "preemptionPolicy": "PreemptLowerPriority"})),
                Refused(403, "the string value of PreemptionPolicy (PreemptLowerPriority) must not be provided"),
            ),
        ],
    )
    .await;
    make(&api, classes, json!({"metadata": {"name": "usual"}, "value": 7, "globalDefault": true})).await;
    check(
        &api,
        vec![
            ("the default class", PODS, pod("p7", json!({})), Has("/spec/priorityClassName", json!("usual"))),
            (
                "a second default",
                classes,
                json!({"metadata": {"name": "other"}, "value": 8, "globalDefault": true}),
                Refused(403, "PriorityClass usual is already marked as default. Only one default can exist"),
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn runtime_classes_give_overhead_and_scheduling() {
    let api = server(&[], json!({})).await;
    let class = json!({
        "metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"cpu": "100m"}},
        "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]},
    });
    make(&api, "/apis/node.k8s.io/v1/runtimeclasses", class).await;
    check(
        &api,
        vec![
            ("overhead", PODS, pod("p1", json!({"runtimeClassName": "vm"})), Has("/spec/overhead", json!({"cpu": "100m"}))),
            (
                "nodes",
                PODS,
                pod("p2", json!({"runtimeClassName": "vm", "nodeSelector": {"a": "b"}})),
                Has("/spec/nodeSelector", json!({"a": "b", "vm": "yes"})),
            ),
            ("tolerations", PODS, pod("p3", json!({"runtimeClassName": "vm"})), Has("/spec/tolerations/2/key", json!("vm"))),
            (
                "another overhead",
                PODS,
                pod("p4", json!({"runtimeClassName": "vm", "overhead": {"cpu": "1"}})),
                Refused(403, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"),
            ),
            (
                "overhead without a class",
                PODS,
                pod("p5", json!({"overhead": {"cpu": "1"}})),
                Refused(403, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"),
            ),
            (
                "nodes that contradict",
                PODS,
                pod("p6", json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}})),
                Refused(403, "conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no"),
            ),
            (
                "no such class",
                PODS,
                pod("p7", json!({"runtimeClassName": "none"})),
                Refused(403, "pod rejected: RuntimeClass \"none\" not found"),
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn defaults_that_every_cluster_gives() {
    let api = server(&[], json!({})).await;
    let storage = "/apis/storage.k8s.io/v1/storageclasses";
    let default = json!({"storageclass.kubernetes.io/is-default-class": "true"});
    make(&api, storage, json!({"metadata": {"name": "fast", "annotations": default}, "provisioner": "p"})).await;
    make(&api, storage, json!({"metadata": {"name": "grows"}, "provisioner": "p", "allowVolumeExpansion": true})).await;
    let classes = "/apis/networking.k8s.io/v1/ingressclasses";
    let chosen = json!({"ingressclass.kubernetes.io/is-default-class": "true"});
    make(&api, classes, json!({"metadata": {"name": "edge", "annotations": chosen}, "spec": {"controller": "e.com/c"}})).await;
    let claim = |name: &str, more: Value| {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"metadata": {"name": name}, "spec": spec})
    };
    let ingress = |name: &str, more: Value| {
        let mut spec = json!({"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"metadata": {"name": name}, "spec": spec})
    };
    let volume = json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}});
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/a/ingresses";
    check(
        &api,
        vec![
            ("DefaultStorageClass", CLAIMS, claim("c1", json!({})), Has("/spec/storageClassName", json!("fast"))),
            ("none is wanted", CLAIMS, claim("c2", json!({"storageClassName": ""})), Has("/spec/storageClassName", json!(""))),
            (
                "StorageObjectInUseProtection of claims",
                CLAIMS,
                claim("c3", json!({})),
                Has("/metadata/finalizers", json!(["kubernetes.io/pvc-protection"])),
            ),
            ("and of volumes", "/api/v1/persistentvolumes", volume, Has("/metadata/finalizers", json!(["kubernetes.io/pv-protection"]))),
            ("DefaultIngressClass", ingresses, ingress("i1", json!({})), Has("/spec/ingressClassName", json!("edge"))),
            (
                "one of its own",
                ingresses,
                ingress("i2", json!({"ingressClassName": "other"})),
                Has("/spec/ingressClassName", json!("other")),
            ),
            (
                "DefaultTolerationSeconds",
                PODS,
                pod("p1", json!({})),
                Has(
                    "/spec/tolerations/0",
                    json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
                ),
            ),
            ("for both", PODS, pod("p2", json!({})), Has("/spec/tolerations/1/key", json!("node.kubernetes.io/unreachable"))),
            (
                "TaintNodesByCondition",
                "/api/v1/nodes",
                json!({"metadata": {"name": "n"}}),
                Has("/spec/taints", json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])),
            ),
        ],
    )
    .await;
    make(&api, classes, json!({"metadata": {"name": "newer", "annotations": chosen}, "spec": {"controller": "e.com/c"}})).await;
    let grown = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    assert_eq!(api.merge(&format!("{CLAIMS}/c1/status"), json!({"status": {"phase": "Bound"}})).await.code, 200);
    let refused = api.merge(&format!("{CLAIMS}/c1"), grown).await;
    assert_eq!(refused.code, 403, "PersistentVolumeClaimResize: {}", refused.message());
}

#[tokio::test]
async fn optional_plugins_do_what_their_configuration_says() {
    let limits = json!({"limits": [{"type": "Namespace", "qps": 1, "burst": 2}]});
    let api = server(
        &["AlwaysPullImages", "DenyServiceExternalIPs", "EventRateLimit", "PodNodeSelector", "PodTolerationRestriction", "LimitPodHardAntiAffinityTopology", "ExtendedResourceToleration", "NamespaceExists"],
        json!({"EventRateLimit": limits, "PodNodeSelector": {"podNodeSelectorPluginConfig": {"clusterDefaultNodeSelector": "disk=ssd", "b": "zone=east"}}}),
    )
    .await;
    let notes = json!({
        "scheduler.alpha.kubernetes.io/node-selector": "zone=east",
        "scheduler.alpha.kubernetes.io/defaultTolerations": r#"[{"key": "team", "operator": "Exists"}]"#,
        "scheduler.alpha.kubernetes.io/tolerationsWhitelist": r#"[{"key": "team", "operator": "Exists"}, {"key": "node.kubernetes.io/not-ready", "operator": "Exists"}, {"key": "node.kubernetes.io/unreachable", "operator": "Exists"}]"#,
    });
    namespace(&api, "b", json!({}), notes).await;
    let others = "/api/v1/namespaces/b/pods";
    let affinity = |key: &str| json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": key, "labelSelector": {"matchLabels": {"a": "b"}}}]}}});
    let service = |name: &str, more: Value| {
        let mut spec = json!({"ports": [{"port": 80}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"metadata": {"name": name}, "spec": spec})
    };
    let event = |name: &str| json!({"metadata": {"name": name}, "involvedObject": {"namespace": "a", "kind": "Pod", "name": "p"}, "reason": "R", "message": "m", "type": "Normal"});
    let (services, events) = ("/api/v1/namespaces/a/services", "/api/v1/namespaces/a/events");
    let gpu = json!({"containers": [{"name": "c", "image": "i", "resources": {"limits": {"example.com/gpu": "1"}}}]});
    check(
        &api,
        vec![
            (
                "AlwaysPullImages",
                PODS,
                pod("p1", json!({"containers": [{"name": "c", "image": "i", "imagePullPolicy": "Never"}]})),
                Has("/spec/containers/0/imagePullPolicy", json!("Always")),
            ),
            (
                "DenyServiceExternalIPs",
                services,
                service("s1", json!({"externalIPs": ["1.2.3.4"]})),
                Refused(403, "Use of external IPs is denied by admission control"),
            ),
            ("no external address", services, service("s2", json!({})), Made),
            ("EventRateLimit, the first", events, event("e1"), Made),
            ("the second", events, event("e2"), Made),
            ("the third", events, event("e3"), Refused(429, "limit reached on type Namespace for key a")),
            ("PodNodeSelector's default", PODS, pod("p2", json!({})), Has("/spec/nodeSelector", json!({"disk": "ssd"}))),
            ("a namespace's own", others, pod("p3", json!({})), Has("/spec/nodeSelector", json!({"zone": "east"}))),
            (
                "one that contradicts",
                others,
                pod("p4", json!({"nodeSelector": {"zone": "west"}})),
                Refused(403, "pod node label selector conflicts with its namespace node label selector"),
            ),
            ("PodTolerationRestriction's default", others, pod("p5", json!({})), Has("/spec/tolerations/2/key", json!("team"))),
            (
                "one that is not allowed",
                others,
                pod("p6", json!({"tolerations": [{"key": "gpu", "operator": "Exists"}]})),
                Refused(403, "conflict with its namespace whitelist"),
            ),
            (
                "LimitPodHardAntiAffinityTopology",
                PODS,
                pod("p7", affinity("zone")),
                Refused(
                    403,
                    "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey zone but only key kubernetes.io/hostname is allowed",
                ),
            ),
            ("of hosts", PODS, pod("p8", affinity("kubernetes.io/hostname")), Made),
            (
                "ExtendedResourceToleration",
                PODS,
                pod("p9", gpu),
                Has("/spec/tolerations/2", json!({"key": "example.com/gpu", "operator": "Exists", "effect": "NoSchedule"})),
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn certificates_are_approved_and_signed_by_those_who_may() {
    let api = server(&[], json!({})).await;
    let bind = async |name: &str, rules: Value| {
        make(&api, "/apis/rbac.authorization.k8s.io/v1/clusterroles", json!({"metadata": {"name": name}, "rules": rules})).await;
        let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}]);
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
        make(
            &api,
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            json!({"metadata": {"name": name}, "roleRef": role, "subjects": subjects}),
        )
        .await;
    };
    let requests = |sub: &str, verbs: Value| json!({"apiGroups": ["certificates.k8s.io"], "resources": [format!("certificatesigningrequests{sub}")], "verbs": verbs});
    let signers = |verb: &str| json!({"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["example.com/*"], "verbs": [verb]});
    bind("plain", json!([requests("", json!(["*"])), requests("/approval", json!(["*"])), requests("/status", json!(["*"]))])).await;
    bind("approver", json!([requests("/approval", json!(["*"])), requests("", json!(["get"])), signers("approve")])).await;
    bind("signer", json!([requests("/status", json!(["*"])), requests("", json!(["get"])), signers("sign")])).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = |organization: &str| {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(parameters.serialize_request(&key).unwrap().pem().unwrap())
    };
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let request = |name: &str, signer: &str, organization: &str| json!({"metadata": {"name": name}, "spec": {"request": csr(organization), "signerName": signer, "usages": ["client auth"]}});
    check(
        &api,
        vec![
            (
                "CertificateSubjectRestriction",
                path,
                request("r1", "kubernetes.io/kube-apiserver-client", "system:masters"),
                Refused(403, "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"),
            ),
            ("another signer", path, request("r2", "example.com/s", "system:masters"), Made),
            ("another group", path, request("r3", "kubernetes.io/kube-apiserver-client", "devs"), Made),
        ],
    )
    .await;
    let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "R", "message": "m"}]}});
    let signed = json!({"status": {"certificate": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1BQT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo="}});
    let cases = [
        (
            "CertificateApproval",
            "plain",
            "approval",
            &approved,
            403,
            "user not permitted to approve requests with signerName \"example.com/s\"",
        ),
        ("who may", "approver", "approval", &approved, 200, ""),
        ("CertificateSigning", "plain", "status", &signed, 403, "user not permitted to sign requests with signerName \"example.com/s\""),
        ("who may sign", "signer", "status", &signed, 200, ""),
    ];
    for (what, user, sub, patch, code, message) in cases {
        let request = http::Request::builder().method("PATCH").uri(format!("{path}/r2/{sub}"));
        let request = request.header("content-type", "application/merge-patch+json").body(harness::body(patch.to_string())).unwrap();
        let answer = api.send(request, auth::UserInfo::authenticated(user, &[])).await;
        assert_eq!(answer.code, code, "{what}: {}", answer.message());
        assert!(answer.message().contains(message), "{what}: {}", answer.message());
    }
}
