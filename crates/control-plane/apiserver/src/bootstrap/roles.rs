//! The default ClusterRoles, Roles and their bindings.
//!
//! Source: `plugin/pkg/auth/authorizer/rbac/bootstrappolicy`. The controllers of this cluster run in one process under one identity,
//! `system:kube-controller-manager`, whose role is therefore wide; the roles per controller that upstream has are not made.

use serde_json::{Value, json};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const RBAC: &str = "rbac.authorization.k8s.io";

/// (resource, object).
pub fn all() -> Vec<(&'static str, Value)> {
    let mut objects: Vec<(&'static str, Value)> = cluster_roles().into_iter().map(|role| ("clusterroles", role)).collect();
    objects.extend(cluster_role_bindings().into_iter().map(|binding| ("clusterrolebindings", binding)));
    objects.push(("roles", authentication_reader()));
    objects
}

/// Rules and subjects that are missing are added, unless the object opts out (`rbac.authorization.kubernetes.io/autoupdate: "false"`).
pub fn repair(old: &mut Value, wanted: &Value) {
    if old["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] == "false" {
        return;
    }
    for list in ["rules", "subjects"] {
        let Some(wanted) = wanted[list].as_array() else { continue };
        let missing: Vec<Value> =
            wanted.iter().filter(|item| !old[list].as_array().is_some_and(|have| have.contains(item))).cloned().collect();
        if missing.is_empty() {
            continue;
        }
        match old[list].as_array_mut() {
            Some(have) => have.extend(missing),
            None => old[list] = missing.into(),
        }
    }
}

fn labelled(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    })
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    json!({"metadata": labelled(name), "rules": rules})
}

fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": groups, "resources": resources})
}

fn paths(paths: &[&str]) -> Value {
    json!({"verbs": ["get"], "nonResourceURLs": paths})
}

fn cluster_roles() -> Vec<Value> {
    let discovery =
        ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version", "/version/"];
    let reviews = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"];
    let mut roles = vec![
        role("cluster-admin", vec![rule(&["*"], &["*"], &["*"]), json!({"verbs": ["*"], "nonResourceURLs": ["*"]})]),
        role("system:discovery", vec![paths(&discovery)]),
        role(
            "system:basic-user",
            vec![
                rule(&["create"], &["authorization.k8s.io"], &reviews),
                rule(&["create"], &["authentication.k8s.io"], &["selfsubjectreviews"]),
            ],
        ),
        role("system:public-info-viewer", vec![paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"])]),
        role(
            "system:service-account-issuer-discovery",
            vec![paths(&[
                "/.well-known/openid-configuration",
                "/.well-known/openid-configuration/",
                "/openid/v1/jwks",
                "/openid/v1/jwks/",
            ])],
        ),
        role(
            "system:monitoring",
            vec![paths(&["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*"])],
        ),
        role(
            "system:auth-delegator",
            vec![
                rule(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
                rule(&["create"], &["authorization.k8s.io"], &["subjectaccessreviews"]),
            ],
        ),
        role(
            "system:kubelet-api-admin",
            vec![
                rule(READ, &[""], &["nodes"]),
                rule(&["proxy"], &[""], &["nodes"]),
                rule(&["*"], &[""], &["nodes/log", "nodes/metrics", "nodes/proxy", "nodes/stats"]),
            ],
        ),
        role("system:node", node_rules()),
        role("system:node-proxier", proxier_rules()),
        role("system:kube-scheduler", scheduler_rules()),
        role("system:kube-controller-manager", vec![rule(&["*"], &["*"], &["*"]), json!({"verbs": ["*"], "nonResourceURLs": ["*"]})]),
        role(
            "system:kube-dns",
            vec![
                rule(&["list", "watch"], &[""], &["endpoints", "services"]),
                rule(&["list", "watch"], &["discovery.k8s.io"], &["endpointslices"]),
            ],
        ),
    ];
    roles.extend(user_roles());
    roles
}

/// admin, edit and view are aggregated: other roles join them by label.
fn user_roles() -> Vec<Value> {
    let (view, edit, admin) = (view_rules(), edit_rules(), admin_rules());
    let to = |name: &str| format!("{RBAC}/aggregate-to-{name}");
    let part = |name: &str, rules: &[Value]| {
        let mut role = role(&format!("system:aggregate-to-{name}"), rules.to_vec());
        role["metadata"]["labels"][to(name)] = "true".into();
        role
    };
    let whole = |name: &str, joins: Option<&str>, rules: Vec<Value>| {
        let mut role = role(name, rules);
        role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {(to(name)): "true"}}]});
        if let Some(above) = joins {
            role["metadata"]["labels"][to(above)] = "true".into();
        }
        role
    };
    let all = |lists: &[&Vec<Value>]| lists.iter().flat_map(|list| list.iter().cloned()).collect::<Vec<_>>();
    vec![
        part("view", &view),
        part("edit", &edit),
        part("admin", &admin),
        whole("view", Some("edit"), view.clone()),
        whole("edit", Some("admin"), all(&[&edit, &view])),
        whole("admin", None, all(&[&admin, &edit, &view])),
    ]
}

const CORE_READ: &[&str] = &[
    "configmaps",
    "endpoints",
    "persistentvolumeclaims",
    "persistentvolumeclaims/status",
    "pods",
    "replicationcontrollers",
    "replicationcontrollers/scale",
    "serviceaccounts",
    "services",
    "services/status",
    "bindings",
    "events",
    "limitranges",
    "namespaces/status",
    "pods/log",
    "pods/status",
    "replicationcontrollers/status",
    "resourcequotas",
    "resourcequotas/status",
    "namespaces",
];
const APPS: &[&str] = &[
    "controllerrevisions",
    "daemonsets",
    "daemonsets/status",
    "deployments",
    "deployments/scale",
    "deployments/status",
    "replicasets",
    "replicasets/scale",
    "replicasets/status",
    "statefulsets",
    "statefulsets/scale",
    "statefulsets/status",
];
const APPS_WRITE: &[&str] = &[
    "daemonsets",
    "deployments",
    "deployments/rollback",
    "deployments/scale",
    "replicasets",
    "replicasets/scale",
    "statefulsets",
    "statefulsets/scale",
];
const NETWORKING: &[&str] = &["ingresses", "ingresses/status", "networkpolicies"];

fn view_rules() -> Vec<Value> {
    vec![
        rule(READ, &[""], CORE_READ),
        rule(READ, &["discovery.k8s.io"], &["endpointslices"]),
        rule(READ, &["apps"], APPS),
        rule(READ, &["autoscaling"], &["horizontalpodautoscalers", "horizontalpodautoscalers/status"]),
        rule(READ, &["batch"], &["cronjobs", "cronjobs/status", "jobs", "jobs/status"]),
        rule(READ, &["policy"], &["poddisruptionbudgets", "poddisruptionbudgets/status"]),
        rule(READ, &["networking.k8s.io"], NETWORKING),
        rule(READ, &["events.k8s.io"], &["events"]),
    ]
}

fn edit_rules() -> Vec<Value> {
    let core = [
        "configmaps",
        "persistentvolumeclaims",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "secrets",
        "serviceaccounts",
        "services",
        "services/proxy",
    ];
    let mut rules = vec![
        rule(READ, &[""], &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"]),
        rule(&["impersonate"], &[""], &["serviceaccounts"]),
        rule(WRITE, &[""], &["pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"]),
        rule(&["create"], &[""], &["pods/eviction"]),
        rule(WRITE, &[""], &core),
        rule(&["create"], &[""], &["serviceaccounts/token"]),
        rule(WRITE, &["apps"], APPS_WRITE),
        rule(WRITE, &["autoscaling"], &["horizontalpodautoscalers"]),
        rule(WRITE, &["batch"], &["cronjobs", "jobs"]),
        rule(WRITE, &["policy"], &["poddisruptionbudgets"]),
        rule(WRITE, &["networking.k8s.io"], &["ingresses", "networkpolicies"]),
    ];
    rules.push(rule(
        &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        &["coordination.k8s.io"],
        &["leases"],
    ));
    rules
}

fn admin_rules() -> Vec<Value> {
    let all = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    vec![rule(&["create"], &["authorization.k8s.io"], &["localsubjectaccessreviews"]), rule(&all, &[RBAC], &["rolebindings", "roles"])]
}

fn node_rules() -> Vec<Value> {
    vec![
        rule(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
        rule(&["create"], &["authorization.k8s.io"], &["localsubjectaccessreviews", "subjectaccessreviews"]),
        rule(READ, &[""], &["services"]),
        rule(&["create", "get", "list", "watch"], &[""], &["nodes"]),
        rule(&["patch", "update"], &[""], &["nodes/status"]),
        rule(&["patch", "update"], &[""], &["nodes"]),
        rule(&["create", "patch", "update"], &["", "events.k8s.io"], &["events"]),
        rule(READ, &[""], &["pods"]),
        rule(&["create", "delete"], &[""], &["pods"]),
        rule(&["patch", "update"], &[""], &["pods/status"]),
        rule(&["create"], &[""], &["pods/eviction"]),
        rule(READ, &[""], &["configmaps", "secrets"]),
        rule(&["get"], &[""], &["persistentvolumeclaims", "persistentvolumes"]),
        rule(&["get"], &[""], &["endpoints"]),
        rule(READ, &["certificates.k8s.io"], &["certificatesigningrequests"]),
        rule(&["create"], &["certificates.k8s.io"], &["certificatesigningrequests"]),
        rule(&["create", "delete", "get", "patch", "update"], &["coordination.k8s.io"], &["leases"]),
        rule(&["get"], &["storage.k8s.io"], &["volumeattachments"]),
        rule(&["create"], &[""], &["serviceaccounts/token"]),
        rule(&["get"], &[""], &["serviceaccounts"]),
        rule(&["get", "patch", "update"], &[""], &["persistentvolumeclaims/status"]),
        rule(READ, &["storage.k8s.io"], &["csidrivers"]),
        rule(&["create", "delete", "get", "patch", "update"], &["storage.k8s.io"], &["csinodes"]),
        rule(READ, &["node.k8s.io"], &["runtimeclasses"]),
    ]
}

fn proxier_rules() -> Vec<Value> {
    vec![
        rule(&["list", "watch"], &[""], &["endpoints", "services"]),
        rule(READ, &[""], &["nodes"]),
        rule(&["create", "patch", "update"], &["", "events.k8s.io"], &["events"]),
        rule(&["list", "watch"], &["discovery.k8s.io"], &["endpointslices"]),
        rule(&["list", "watch"], &["networking.k8s.io"], &["servicecidrs"]),
    ]
}

fn scheduler_rules() -> Vec<Value> {
    vec![
        rule(&["create", "patch", "update"], &["", "events.k8s.io"], &["events"]),
        rule(&["create", "get", "list", "update", "watch"], &["coordination.k8s.io"], &["leases"]),
        rule(READ, &[""], &["namespaces", "nodes"]),
        rule(&["delete", "get", "list", "watch"], &[""], &["pods"]),
        rule(&["create"], &[""], &["bindings", "pods/binding"]),
        rule(&["patch", "update"], &[""], &["pods/status"]),
        rule(READ, &[""], &["replicationcontrollers", "services"]),
        rule(READ, &["apps"], &["replicasets", "statefulsets"]),
        rule(READ, &["policy"], &["poddisruptionbudgets"]),
        rule(&["get", "list", "patch", "update", "watch"], &[""], &["persistentvolumeclaims", "persistentvolumes"]),
        rule(READ, &["storage.k8s.io"], &["csidrivers", "csinodes", "csistoragecapacities", "storageclasses", "volumeattachments"]),
        rule(READ, &["scheduling.k8s.io"], &["podgroups", "priorityclasses"]),
        rule(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
        rule(&["create"], &["authorization.k8s.io"], &["subjectaccessreviews"]),
    ]
}

fn binding(name: &str, role: &str, kind: &str, subjects: &[&str]) -> Value {
    let subject = |name: &&str| json!({"kind": kind, "apiGroup": RBAC, "name": name});
    json!({
        "metadata": labelled(name),
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": subjects.iter().map(subject).collect::<Vec<_>>(),
    })
}

fn cluster_role_bindings() -> Vec<Value> {
    let (all, none) = ("system:authenticated", "system:unauthenticated");
    vec![
        binding("cluster-admin", "cluster-admin", "Group", &["system:masters"]),
        binding("system:discovery", "system:discovery", "Group", &[all]),
        binding("system:basic-user", "system:basic-user", "Group", &[all]),
        binding("system:public-info-viewer", "system:public-info-viewer", "Group", &[all, none]),
        binding("system:monitoring", "system:monitoring", "Group", &["system:monitoring"]),
        binding("system:service-account-issuer-discovery", "system:service-account-issuer-discovery", "Group", &["system:serviceaccounts"]),
        binding("system:node", "system:node", "Group", &["system:nodes"]),
        binding("system:node-proxier", "system:node-proxier", "User", &["system:kube-proxy"]),
        binding("system:kube-scheduler", "system:kube-scheduler", "User", &["system:kube-scheduler"]),
        binding("system:kube-controller-manager", "system:kube-controller-manager", "User", &["system:kube-controller-manager"]),
        binding("system:kube-dns", "system:kube-dns", "User", &["system:kube-dns"]),
    ]
}

fn authentication_reader() -> Value {
    let mut role = role(
        "extension-apiserver-authentication-reader",
        vec![json!({
            "verbs": READ, "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["extension-apiserver-authentication"],
        })],
    );
    role["metadata"]["namespace"] = "kube-system".into();
    role
}
