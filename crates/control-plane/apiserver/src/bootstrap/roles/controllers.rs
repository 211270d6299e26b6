//! A role for each controller, bound to the service account of its name in kube-system: no controller can do more than it must.

use serde_json::Value;

use super::{EVENTS, READ, Words, account, binding, role, rule, words};

const PREFIX: &str = "system:controller:";
const PVC: &str = "persistentvolumeclaims";
const PV: &str = "persistentvolumes";
const ADMISSION: &str = "admissionregistration.k8s.io";
const CERTIFICATES: &str = "certificates.k8s.io";
const DISCOVERY: &str = "discovery.k8s.io";
const STORAGE: &str = "storage.k8s.io";
const RESOURCE: &str = "resource.k8s.io";

/// Workloads list their pods and write them.
const PODS: Words = rule("create delete list patch watch", "core", "pods");

const ALL: &[(&str, &[Words])] = &[
    (
        "attachdetach-controller",
        &[
            rule("list watch", "core", "persistentvolumeclaims persistentvolumes"),
            rule(READ, "core", "nodes"),
            rule("patch update", "core", "nodes/status"),
            rule("list watch", "core", "pods"),
            EVENTS,
            rule("create delete get list watch", STORAGE, "volumeattachments"),
            rule(READ, STORAGE, "csidrivers"),
            rule(READ, STORAGE, "csinodes"),
        ],
    ),
    (
        "certificate-controller",
        &[
            rule("delete get list watch", CERTIFICATES, "certificatesigningrequests"),
            rule("update", CERTIFICATES, "certificatesigningrequests/approval certificatesigningrequests/status"),
            // Serving too, beside upstream's: only names and addresses that the Node has.
            rule("approve", CERTIFICATES, "signers").named("kubernetes.io/kube-apiserver-client-kubelet kubernetes.io/kubelet-serving"),
            rule("sign", CERTIFICATES, "signers").named(
                "kubernetes.io/kube-apiserver-client kubernetes.io/kube-apiserver-client-kubelet kubernetes.io/kubelet-serving \
                 kubernetes.io/legacy-unknown kubernetes.io/kube-apiserver-client-pod",
            ),
            rule("get list watch", CERTIFICATES, "podcertificaterequests"),
            rule("update", CERTIFICATES, "podcertificaterequests/status"),
            rule("create", "authorization.k8s.io", "subjectaccessreviews"),
            EVENTS,
        ],
    ),
    ("clusterrole-aggregation-controller", &[rule("escalate get list patch update watch", super::RBAC, "clusterroles")]),
    (
        "cronjob-controller",
        &[
            rule("get list update watch", "batch", "cronjobs"),
            rule("create delete get list patch update watch", "batch", "jobs"),
            rule("update", "batch", "cronjobs/status"),
            rule("update", "batch", "cronjobs/finalizers"),
            rule("delete list watch", "core", "pods"),
            EVENTS,
        ],
    ),
    (
        "daemon-set-controller",
        &[
            rule(READ, "apps extensions", "daemonsets"),
            rule("update", "apps extensions", "daemonsets/status"),
            rule("update", "apps extensions", "daemonsets/finalizers"),
            rule("list watch", "core", "nodes"),
            PODS,
            rule("create", "core", "pods/binding"),
            rule("create delete get list patch update watch", "apps", "controllerrevisions"),
            EVENTS,
        ],
    ),
    (
        "deployment-controller",
        &[
            rule("get list patch update watch", "apps extensions", "deployments"),
            rule("update", "apps extensions", "deployments/status"),
            rule("update", "apps extensions", "deployments/finalizers"),
            rule("create delete get list patch update watch", "apps extensions", "replicasets"),
            rule("get list update watch", "core", "pods"),
            EVENTS,
        ],
    ),
    (
        "device-taint-eviction-controller",
        &[
            rule("delete get list watch", "core", "pods"),
            rule("patch update", "core", "pods/status"),
            rule(READ, RESOURCE, "resourceclaims"),
            rule(READ, RESOURCE, "resourceslices"),
            rule(READ, RESOURCE, "deviceclasses"),
            rule(READ, RESOURCE, "devicetaintrules"),
            rule("patch update", RESOURCE, "devicetaintrules/status"),
            EVENTS,
        ],
    ),
    (
        "disruption-controller",
        &[
            rule(READ, "apps extensions", "deployments"),
            rule(READ, "apps extensions", "replicasets"),
            rule(READ, "core", "replicationcontrollers"),
            rule(READ, "policy", "poddisruptionbudgets"),
            rule(READ, "apps", "statefulsets"),
            rule("update", "policy", "poddisruptionbudgets/status"),
            rule("patch update", "core", "pods/status"),
            rule("get", "*", "*/scale"),
            EVENTS,
        ],
    ),
    (
        "endpoint-controller",
        &[
            rule(READ, "core", "pods services"),
            rule("create delete get list update watch", "core", "endpoints"),
            rule("create", "core", "endpoints/restricted"),
            EVENTS,
        ],
    ),
    (
        "endpointslice-controller",
        &[
            rule(READ, "core", "nodes pods services"),
            rule("update", "core", "services/finalizers"),
            rule("create delete get list update watch", DISCOVERY, "endpointslices"),
            EVENTS,
        ],
    ),
    (
        "endpointslicemirroring-controller",
        &[
            rule(READ, "core", "endpoints services"),
            rule("update", "core", "services/finalizers"),
            rule("update", "core", "endpoints/finalizers"),
            rule("create delete get list update watch", DISCOVERY, "endpointslices"),
            EVENTS,
        ],
    ),
    (
        "ephemeral-volume-controller",
        &[rule(READ, "core", "pods"), rule("update", "core", "pods/finalizers"), rule("create get list watch", "core", PVC), EVENTS],
    ),
    (
        "expand-controller",
        &[
            rule("get list patch update watch", "core", PV),
            rule("patch update", "core", "persistentvolumeclaims/status"),
            rule(READ, "core", PVC),
            EVENTS,
            rule("get", "core", "services"),
        ],
    ),
    ("generic-garbage-collector", &[rule("delete get list patch update watch", "*", "*"), EVENTS]),
    (
        "horizontal-pod-autoscaler",
        &[
            rule(READ, "autoscaling", "horizontalpodautoscalers"),
            rule("update", "autoscaling", "horizontalpodautoscalers/status"),
            rule("get update", "*", "*/scale"),
            rule("list watch", "core", "pods"),
            rule("list watch", "metrics.k8s.io", "pods"),
            rule(READ, "custom.metrics.k8s.io", "*"),
            rule(READ, "external.metrics.k8s.io", "*"),
            EVENTS,
        ],
    ),
    (
        "job-controller",
        &[
            rule("delete get list patch update watch", "batch", "jobs"),
            rule("update", "batch", "jobs/status"),
            rule("update", "batch", "jobs/finalizers"),
            PODS,
            EVENTS,
        ],
    ),
    (
        "kube-apiserver-serving-clustertrustbundle-publisher",
        &[
            rule("attest", CERTIFICATES, "signers").named("kubernetes.io/kube-apiserver-serving"),
            rule("create delete list update watch", CERTIFICATES, "clustertrustbundles"),
            EVENTS,
        ],
    ),
    (
        "legacy-service-account-token-cleaner",
        &[
            rule("get", "core", "configmaps").named("kube-apiserver-legacy-service-account-token-tracking"),
            rule("delete patch", "core", "secrets"),
        ],
    ),
    (
        "namespace-controller",
        &[
            rule("delete get list watch", "core", "namespaces"),
            rule("update", "core", "namespaces/finalize namespaces/status"),
            rule("delete deletecollection get list watch", "*", "*"),
        ],
    ),
    (
        "node-controller",
        &[
            rule("delete get list patch update watch", "core", "nodes"),
            rule("patch update", "core", "nodes/status"),
            rule("patch update", "core", "pods/status"),
            rule("delete get list watch", "core", "pods"),
            EVENTS,
        ],
    ),
    (
        "persistent-volume-binder",
        &[
            rule("create delete get list update watch", "core", PV),
            rule("update", "core", "persistentvolumes/status"),
            rule("get list update watch", "core", PVC),
            rule("update", "core", "persistentvolumeclaims/status"),
            rule("create delete get list watch", "core", "pods"),
            rule(READ, STORAGE, "storageclasses"),
            rule("list watch", "core", "nodes"),
            EVENTS,
            rule("watch", "core", "events"),
            rule("get", "core", "services"),
        ],
    ),
    (
        "pod-garbage-collector",
        &[rule("delete list watch", "core", "pods"), rule(READ, "core", "nodes"), rule("patch", "core", "pods/status")],
    ),
    ("podcertificaterequestcleaner", &[rule("delete get list watch", CERTIFICATES, "podcertificaterequests")]),
    ("pv-protection-controller", &[rule("get list update watch", "core", PV), EVENTS]),
    ("pvc-protection-controller", &[rule("get list update watch", "core", PVC), rule(READ, "core", "pods"), EVENTS]),
    (
        "replicaset-controller",
        &[
            rule("get list update watch", "apps extensions", "replicasets"),
            rule("update", "apps extensions", "replicasets/status"),
            rule("update", "apps extensions", "replicasets/finalizers"),
            PODS,
            EVENTS,
        ],
    ),
    (
        "replication-controller",
        &[
            rule("get list update watch", "core", "replicationcontrollers"),
            rule("update", "core", "replicationcontrollers/status"),
            rule("update", "core", "replicationcontrollers/finalizers"),
            PODS,
            EVENTS,
        ],
    ),
    (
        "resource-claim-controller",
        &[
            rule(READ, "core", "pods"),
            rule("update", "core", "pods/finalizers"),
            rule("create delete get list watch", RESOURCE, "resourceclaims"),
            rule("patch update", RESOURCE, "resourceclaims resourceclaims/status"),
            rule("patch update", "core", "pods/status"),
            EVENTS,
        ],
    ),
    ("resourcequota-controller", &[rule("list watch", "*", "*"), rule("update", "core", "resourcequotas/status"), EVENTS]),
    ("root-ca-cert-publisher", &[rule("create update", "core", "configmaps"), EVENTS]),
    ("route-controller", &[rule("list watch", "core", "nodes"), rule("patch", "core", "nodes/status"), EVENTS]),
    (
        "resourcepoolstatusrequest-controller",
        &[
            rule("delete get list watch", RESOURCE, "resourcepoolstatusrequests"),
            rule("patch update", RESOURCE, "resourcepoolstatusrequests/status"),
            rule(READ, RESOURCE, "resourceslices"),
            rule(READ, RESOURCE, "resourceclaims"),
            rule(READ, RESOURCE, "devicetaintrules"),
        ],
    ),
    (
        "selinux-warning-controller",
        &[EVENTS, rule(READ, "core", PV), rule(READ, "core", PVC), rule(READ, "core", "pods"), rule(READ, STORAGE, "csidrivers")],
    ),
    ("service-account-controller", &[rule("create", "core", "serviceaccounts"), EVENTS]),
    (
        "service-cidrs-controller",
        &[
            rule("get list patch update watch", "networking.k8s.io", "servicecidrs"),
            rule("patch update", "networking.k8s.io", "servicecidrs/finalizers"),
            rule("patch update", "networking.k8s.io", "servicecidrs/status"),
            // Beside upstream's, whose API server writes these objects itself.
            rule("create delete get list watch", "networking.k8s.io", "ipaddresses"),
            rule(READ, "core", "services"),
            EVENTS,
        ],
    ),
    (
        "service-controller",
        &[rule(READ, "core", "services"), rule("patch update", "core", "services/status"), rule("list watch", "core", "nodes"), EVENTS],
    ),
    (
        "statefulset-controller",
        &[
            rule("list watch", "core", "pods"),
            rule(READ, "apps", "statefulsets"),
            rule("update", "apps", "statefulsets/status"),
            rule("update", "apps", "statefulsets/finalizers"),
            rule("create delete get patch update", "core", "pods"),
            rule("create delete get list patch update watch", "apps", "controllerrevisions"),
            rule("create get list watch", "core", PVC),
            rule("delete update", "core", PVC),
            rule("update", "core", "pods/finalizers"),
            EVENTS,
        ],
    ),
    (
        "storage-version-migrator-controller",
        &[rule("create list patch watch", "*", "*"), rule("update", "storagemigration.k8s.io", "storageversionmigrations/status")],
    ),
    ("ttl-after-finished-controller", &[rule("delete get list watch", "batch", "jobs"), EVENTS]),
    ("ttl-controller", &[rule("list patch update watch", "core", "nodes"), EVENTS]),
    (
        "validatingadmissionpolicy-status-controller",
        &[
            rule(READ, ADMISSION, "validatingadmissionpolicies"),
            rule("get patch update", ADMISSION, "validatingadmissionpolicies/status"),
            EVENTS,
        ],
    ),
    (
        "volumeattributesclass-protection-controller",
        &[rule(READ, "core", PVC), rule(READ, "core", PV), rule("get list update watch", STORAGE, "volumeattributesclasses"), EVENTS],
    ),
];

pub fn roles() -> Vec<Value> {
    ALL.iter().map(|(name, rules)| role(&format!("{PREFIX}{name}"), words(rules))).collect()
}

pub fn bindings() -> Vec<Value> {
    let bind = |name: &str| {
        let full = format!("{PREFIX}{name}");
        binding(&full, "ClusterRole", &full, vec![account(name)])
    };
    ALL.iter().map(|(name, _)| bind(name)).collect()
}
