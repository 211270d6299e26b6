//! Cluster-wide roles of users, nodes and components.

use serde_json::{Value, json};

use super::{ALL, EVENTS, RBAC, READ, WRITE, Words, binding, group, paths, role, rule, user, words};

/// What every node may do; the Node authorizer narrows it down to the node's own objects.
pub const NODE: &[Words] = &[
    rule("create", "authentication.k8s.io", "tokenreviews"),
    rule("create", "authorization.k8s.io", "localsubjectaccessreviews subjectaccessreviews"),
    rule(READ, "core", "services"),
    rule("create get list watch", "core", "nodes"),
    rule("patch update", "core", "nodes/status"),
    rule("patch update", "core", "nodes"),
    EVENTS,
    rule(READ, "core", "pods"),
    rule("create delete", "core", "pods"),
    rule("patch update", "core", "pods/status"),
    rule("create", "core", "pods/eviction"),
    rule(READ, "core", "configmaps secrets"),
    rule("get", "core", "persistentvolumeclaims persistentvolumes"),
    rule("get", "core", "endpoints"),
    rule("create get list watch", "certificates.k8s.io", "certificatesigningrequests"),
    rule("create delete get patch update", "coordination.k8s.io", "leases"),
    rule("get", "storage.k8s.io", "volumeattachments"),
    rule("create", "core", "serviceaccounts/token"),
    rule("get patch update", "core", "persistentvolumeclaims/status"),
    rule(READ, "storage.k8s.io", "csidrivers"),
    rule("create delete get patch update", "storage.k8s.io", "csinodes"),
    rule(READ, "node.k8s.io", "runtimeclasses"),
    rule("get", "resource.k8s.io", "resourceclaims"),
    rule("create delete deletecollection get list patch update watch", "resource.k8s.io", "resourceslices"),
    rule(READ, "certificates.k8s.io", "clustertrustbundles"),
    rule("create get list watch", "certificates.k8s.io", "podcertificaterequests"),
    rule("get", "core", "serviceaccounts"),
];

const PROXY: &[Words] = &[
    rule("list watch", "core", "endpoints services"),
    rule(READ, "core", "nodes"),
    EVENTS,
    rule("list watch", "discovery.k8s.io", "endpointslices"),
    rule("list watch", "networking.k8s.io", "servicecidrs"),
];

const SCHEDULER: &[Words] = &[
    EVENTS,
    rule("create", "coordination.k8s.io", "leases"),
    rule("get list update watch", "coordination.k8s.io", "leases"),
    rule(READ, "core", "nodes"),
    rule("delete get list watch", "core", "pods"),
    rule("create", "core", "bindings pods/binding"),
    rule("patch update", "core", "pods/status"),
    rule(READ, "core", "replicationcontrollers services"),
    rule(READ, "apps", "replicasets"),
    rule(READ, "apps", "statefulsets"),
    rule(READ, "policy", "poddisruptionbudgets"),
    rule(READ, "core", "persistentvolumeclaims persistentvolumes"),
    rule("create", "authentication.k8s.io", "tokenreviews"),
    rule("create", "authorization.k8s.io", "subjectaccessreviews"),
    rule(READ, "storage.k8s.io", "csinodes"),
    rule(READ, "core", "namespaces"),
    rule(READ, "storage.k8s.io", "csidrivers"),
    rule(READ, "storage.k8s.io", "csistoragecapacities"),
    rule(READ, "storage.k8s.io", "volumeattachments"),
    rule(READ, "resource.k8s.io", "deviceclasses"),
    rule("get list patch update watch", "resource.k8s.io", "resourceclaims"),
    rule("get list patch update watch", "resource.k8s.io", "resourceclaims/status"),
    rule(READ, "core", "pods/finalizers"),
    rule(READ, "resource.k8s.io", "resourceslices"),
    rule(READ, "resource.k8s.io", "devicetaintrules"),
    rule("create delete", "resource.k8s.io", "resourceclaims"),
    rule(READ, "scheduling.k8s.io", "priorityclasses podgroups workloads"),
];

/// What the process of the controllers does under its own name. Each controller has an account of its own: see `controllers`.
const CONTROLLER_MANAGER: &[Words] = &[
    EVENTS,
    rule("create", "coordination.k8s.io", "leases"),
    rule("get update", "coordination.k8s.io", "leases").named("kube-controller-manager"),
    rule("create", "core", "secrets serviceaccounts"),
    rule("delete", "core", "secrets"),
    rule("get", "core", "configmaps namespaces secrets serviceaccounts"),
    rule("update", "core", "secrets serviceaccounts"),
    rule("create", "authentication.k8s.io", "tokenreviews"),
    rule("create", "authorization.k8s.io", "subjectaccessreviews"),
    rule("list watch", "*", "*"),
    rule("create", "core", "serviceaccounts/token"),
];

const VOLUME_SCHEDULER: &[Words] = &[
    rule("get list patch update watch", "core", "persistentvolumes"),
    rule(READ, "storage.k8s.io", "storageclasses"),
    rule("get list patch update watch", "core", "persistentvolumeclaims"),
];

const PROVISIONER: &[Words] = &[
    rule("create delete get list watch", "core", "persistentvolumes"),
    rule("get list update watch", "core", "persistentvolumeclaims"),
    rule(READ, "storage.k8s.io", "storageclasses"),
    rule("watch", "core", "events"),
    EVENTS,
];

const KUBELET_API: &[Words] = &[
    rule(READ, "core", "nodes"),
    rule("proxy", "core", "nodes"),
    rule("*", "core", "nodes/checkpoint nodes/configz nodes/healthz nodes/log nodes/metrics nodes/pods nodes/proxy nodes/stats"),
];

const SNAPSHOTS: &str = "snapshot.storage.k8s.io";
const SIGNING_REQUESTS: &str = "certificatesigningrequests";

/// Name and rules of the roles that need no more than a table.
const PLAIN: &[(&str, &[Words])] = &[
    (
        "system:basic-user",
        &[
            rule("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
            rule("create", "authentication.k8s.io", "selfsubjectreviews"),
        ],
    ),
    (
        "system:auth-delegator",
        &[rule("create", "authentication.k8s.io", "tokenreviews"), rule("create", "authorization.k8s.io", "subjectaccessreviews")],
    ),
    ("system:heapster", &[rule(READ, "core", "events namespaces nodes pods"), rule(READ, "extensions", "deployments")]),
    ("system:kube-aggregator", &[rule(READ, "core", "endpoints services")]),
    ("system:kube-controller-manager", CONTROLLER_MANAGER),
    ("system:kube-dns", &[rule("list watch", "core", "endpoints services"), rule("list watch", "discovery.k8s.io", "endpointslices")]),
    ("system:kube-scheduler", SCHEDULER),
    ("system:kubelet-api-admin", KUBELET_API),
    ("system:node", NODE),
    ("system:node-bootstrapper", &[rule("create get list watch", "certificates.k8s.io", SIGNING_REQUESTS)]),
    ("system:node-problem-detector", &[rule("get", "core", "nodes"), rule("patch", "core", "nodes/status"), EVENTS]),
    ("system:node-proxier", PROXY),
    // The proxy and DNS of a node run in its agent, with its identity.
    (
        "sternpost:node-network",
        &[
            rule("get list watch", "core", "services namespaces nodes"),
            rule("get list watch", "discovery.k8s.io", "endpointslices"),
            rule("get list watch", "networking.k8s.io", "networkpolicies"),
        ],
    ),
    // Policies speak of all pods, which a node's own identity does not see: nodes read them as this account.
    (
        "sternpost:network",
        &[
            rule("list watch", "core", "pods"),
            rule("list watch", "apiextensions.k8s.io", "customresourcedefinitions"),
            rule("list watch", "policy.networking.k8s.io", "adminnetworkpolicies baselineadminnetworkpolicies clusternetworkpolicies"),
        ],
    ),
    // A node looks after those volumes of the built-in provisioner that are on its disk: it removes their data and says so.
    (
        "sternpost:node-volumes",
        &[
            rule("list watch", "core", "persistentvolumes"),
            rule("patch", "core", "persistentvolumes/status"),
            rule("list watch", SNAPSHOTS, "volumesnapshotcontents"),
            rule("patch", SNAPSHOTS, "volumesnapshotcontents/status"),
        ],
    ),
    (
        "sternpost:local-path",
        &[
            rule("create delete get list update watch", "core", "persistentvolumes"),
            rule("get list update watch", "core", "persistentvolumeclaims"),
            rule("update", "core", "persistentvolumeclaims/status"),
            rule("create get list watch", "storage.k8s.io", "storageclasses"),
            rule(READ, "core", "nodes"),
            rule("create get", "core", "configmaps"),
            rule("get", SNAPSHOTS, "volumesnapshots volumesnapshotcontents"),
            EVENTS,
        ],
    ),
    (
        "sternpost:volume-snapshots",
        &[
            rule("get list patch update watch", SNAPSHOTS, "volumesnapshots"),
            rule("patch update", SNAPSHOTS, "volumesnapshots/status"),
            rule("create delete get list patch update watch", SNAPSHOTS, "volumesnapshotcontents"),
            rule("patch update", SNAPSHOTS, "volumesnapshotcontents/status"),
            rule("create get list watch", SNAPSHOTS, "volumesnapshotclasses"),
            rule("create", "apiextensions.k8s.io", "customresourcedefinitions"),
            rule("get list update watch", "core", "persistentvolumeclaims"),
            rule(READ, "core", "persistentvolumes nodes"),
            rule("create get", "core", "configmaps"),
            EVENTS,
        ],
    ),
    // The jobs of CSI's sidecars, where a driver leaves them to us.
    (
        "sternpost:csi-sidecars",
        &[
            rule("create delete get list patch update watch", "core", "persistentvolumes"),
            rule("get list update watch", "core", "persistentvolumeclaims"),
            rule("patch update", "core", "persistentvolumeclaims/status"),
            rule("get", "core", "secrets"),
            rule(READ, "core", "nodes"),
            rule(READ, "storage.k8s.io", "csinodes storageclasses"),
            rule("get list patch update watch", "storage.k8s.io", "volumeattachments"),
            rule("patch update", "storage.k8s.io", "volumeattachments/status"),
            rule("create delete get list patch update watch", "storage.k8s.io", "csistoragecapacities"),
            rule(READ, "storage.k8s.io", "csidrivers"),
            rule(READ, SNAPSHOTS, "volumesnapshots volumesnapshotclasses"),
            rule("get list patch update watch", SNAPSHOTS, "volumesnapshotcontents"),
            rule("patch update", SNAPSHOTS, "volumesnapshotcontents/status"),
            EVENTS,
        ],
    ),
    ("system:persistent-volume-provisioner", PROVISIONER),
    ("system:volume-scheduler", VOLUME_SCHEDULER),
    (
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &[rule("create", "certificates.k8s.io", "certificatesigningrequests/nodeclient")],
    ),
    (
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &[rule("create", "certificates.k8s.io", "certificatesigningrequests/selfnodeclient")],
    ),
    ("system:certificates.k8s.io:kube-apiserver-client-approver", &[approver("kubernetes.io/kube-apiserver-client")]),
    ("system:certificates.k8s.io:kube-apiserver-client-kubelet-approver", &[approver("kubernetes.io/kube-apiserver-client-kubelet")]),
    ("system:certificates.k8s.io:kubelet-serving-approver", &[approver("kubernetes.io/kubelet-serving")]),
    ("system:certificates.k8s.io:legacy-unknown-approver", &[approver("kubernetes.io/legacy-unknown")]),
    ("system:cluster-trust-bundle-discovery", &[rule(READ, "certificates.k8s.io", "clustertrustbundles")]),
];

const fn approver(signer: &'static str) -> Words {
    rule("approve", "certificates.k8s.io", "signers").named(signer)
}

/// Name and paths.
const PATHS: &[(&str, &[&str])] = &[
    (
        "system:discovery",
        &["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version", "/version/"],
    ),
    ("system:public-info-viewer", &["/healthz", "/livez", "/readyz", "/version", "/version/"]),
    (
        "system:service-account-issuer-discovery",
        &["/.well-known/openid-configuration", "/.well-known/openid-configuration/", "/openid/v1/jwks", "/openid/v1/jwks/"],
    ),
    (
        "system:monitoring",
        &["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*", "/flagz", "/statusz"],
    ),
];

pub fn roles() -> Vec<Value> {
    let everything = json!([
        {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
        {"verbs": ["*"], "nonResourceURLs": ["*"]},
    ]);
    let mut roles = vec![json!({"metadata": super::labelled("cluster-admin"), "rules": everything})];
    roles.extend(PLAIN.iter().map(|(name, rules)| role(name, words(rules))));
    roles.extend(PATHS.iter().map(|(name, list)| role(name, vec![paths(list)])));
    roles.extend(user_roles());
    roles
}

/// admin, edit and view are aggregated: other roles join them by label.
fn user_roles() -> Vec<Value> {
    let (view, edit, admin) = (words(VIEW), words(EDIT), words(ADMIN));
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
    // In the order in which their controller will find them: by name.
    let with_view = [edit.clone(), view.clone()].concat();
    let with_edit = [with_view.clone(), admin.clone()].concat();
    vec![
        part("view", &view),
        part("edit", &edit),
        part("admin", &admin),
        whole("view", Some("edit"), view),
        whole("edit", Some("admin"), with_view),
        whole("admin", None, with_edit),
    ]
}

const VIEW: &[Words] = &[
    rule(
        READ,
        "core",
        "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers \
         replicationcontrollers/scale serviceaccounts services services/status",
    ),
    rule(
        READ,
        "core",
        "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas \
         resourcequotas/status",
    ),
    rule(READ, "core", "namespaces"),
    rule(READ, "discovery.k8s.io", "endpointslices"),
    rule(
        READ,
        "apps",
        "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status replicasets \
         replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
    ),
    rule(READ, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
    rule(READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
    rule(
        READ,
        "extensions",
        "daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses ingresses/status networkpolicies \
         replicasets replicasets/scale replicasets/status replicationcontrollers/scale",
    ),
    rule(READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
    rule(READ, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
    rule(READ, "resource.k8s.io", "resourceclaims resourceclaims/status resourceclaimtemplates"),
];

const EDIT: &[Words] = &[
    rule(READ, "core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
    rule("impersonate", "core", "serviceaccounts"),
    rule(WRITE, "core", "pods pods/attach pods/exec pods/portforward pods/proxy"),
    rule("create", "core", "pods/eviction"),
    rule(
        WRITE,
        "core",
        "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets serviceaccounts services \
         services/proxy",
    ),
    rule("create", "core", "serviceaccounts/token"),
    rule(
        WRITE,
        "apps",
        "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale",
    ),
    rule(WRITE, "autoscaling", "horizontalpodautoscalers"),
    rule(WRITE, "batch", "cronjobs jobs"),
    rule(
        WRITE,
        "extensions",
        "daemonsets deployments deployments/rollback deployments/scale ingresses networkpolicies replicasets replicasets/scale \
         replicationcontrollers/scale",
    ),
    rule(WRITE, "policy", "poddisruptionbudgets"),
    rule(WRITE, "networking.k8s.io", "ingresses networkpolicies"),
    rule(ALL, "coordination.k8s.io", "leases"),
    rule(WRITE, "resource.k8s.io", "resourceclaims resourceclaimtemplates"),
];

const ADMIN: &[Words] = &[rule("create", "authorization.k8s.io", "localsubjectaccessreviews"), rule(ALL, RBAC, "rolebindings roles")];

pub fn bindings() -> Vec<Value> {
    let (all, none) = (group("system:authenticated"), group("system:unauthenticated"));
    // Nodes are the Node authorizer's business: the binding of their role has no subjects, as upstream.
    let subjects = [
        ("cluster-admin", vec![group("system:masters")]),
        ("system:monitoring", vec![group("system:monitoring")]),
        ("system:discovery", vec![all.clone()]),
        ("system:basic-user", vec![all.clone()]),
        ("system:public-info-viewer", vec![all, none]),
        ("system:node", vec![]),
        ("system:node-proxier", vec![user("system:kube-proxy")]),
        ("system:kube-controller-manager", vec![user("system:kube-controller-manager")]),
        ("system:kube-dns", vec![super::account("kube-dns"), user("system:kube-dns")]),
        ("system:kube-scheduler", vec![user("system:kube-scheduler")]),
        ("system:volume-scheduler", vec![user("system:kube-scheduler")]),
        ("system:service-account-issuer-discovery", vec![group("system:serviceaccounts")]),
        ("system:cluster-trust-bundle-discovery", vec![group("system:serviceaccounts")]),
    ];
    let mut bindings: Vec<Value> = subjects.into_iter().map(|(name, subjects)| binding(name, "ClusterRole", name, subjects)).collect();
    // Joining, as kubeadm sets it up: a bootstrap token asks for a node's first certificate, a node renews its own.
    let (joining, nodes) = (group("system:bootstrappers:kubeadm:default-node-token"), group("system:nodes"));
    let requests = "system:certificates.k8s.io:certificatesigningrequests";
    bindings.push(binding("sternpost:node-network", "ClusterRole", "sternpost:node-network", vec![nodes.clone()]));
    bindings.push(binding("sternpost:network", "ClusterRole", "sternpost:network", vec![super::account("sternpost-network")]));
    bindings.push(binding("sternpost:node-volumes", "ClusterRole", "sternpost:node-volumes", vec![nodes.clone()]));
    let provisioner = vec![super::account("local-path-provisioner")];
    bindings.push(binding("sternpost:local-path", "ClusterRole", "sternpost:local-path", provisioner));
    let snapshots = vec![super::account("volume-snapshot-controller")];
    bindings.push(binding("sternpost:volume-snapshots", "ClusterRole", "sternpost:volume-snapshots", snapshots));
    bindings.push(binding("sternpost:csi-sidecars", "ClusterRole", "sternpost:csi-sidecars", vec![super::account("csi-sidecars")]));
    bindings.push(binding("sternpost:kubelet-bootstrap", "ClusterRole", "system:node-bootstrapper", vec![joining.clone()]));
    bindings.push(binding("sternpost:node-autoapprove-bootstrap", "ClusterRole", &format!("{requests}:nodeclient"), vec![joining]));
    bindings.push(binding("sternpost:node-autoapprove-renewal", "ClusterRole", &format!("{requests}:selfnodeclient"), vec![nodes]));
    // What the API server shows to kubelets: no more than their own API.
    let kubelets = vec![user("kube-apiserver-kubelet-client")];
    bindings.push(binding("sternpost:apiserver-kubelet-client", "ClusterRole", "system:kubelet-api-admin", kubelets));
    bindings
}
