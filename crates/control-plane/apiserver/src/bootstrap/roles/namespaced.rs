//! Roles inside kube-system and kube-public.

use serde_json::Value;

use super::{EVENTS, READ, Words, account, binding, group, role, rule, user, words};

const SYSTEM: &str = "kube-system";
const PUBLIC: &str = "kube-public";
const READER: &str = "extension-apiserver-authentication-reader";

/// Namespace, name, rules.
const ALL: &[(&str, &str, &[Words])] = &[
    (SYSTEM, READER, &[rule(READ, "core", "configmaps").named("extension-apiserver-authentication")]),
    (SYSTEM, "sternpost:network", &[rule(READ, "core", "configmaps").named("coredns")]),
    (SYSTEM, "sternpost:node-network", &[rule("impersonate", "core", "serviceaccounts").named("sternpost-network")]),
    (SYSTEM, "system:controller:bootstrap-signer", &[rule(READ, "core", "secrets")]),
    (SYSTEM, "system:controller:cloud-provider", &[rule("create get list watch", "core", "configmaps")]),
    (SYSTEM, "system:controller:token-cleaner", &[rule("delete get list watch", "core", "secrets"), EVENTS]),
    (
        SYSTEM,
        "system::leader-locking-kube-controller-manager",
        &[rule("watch", "core", "configmaps"), rule("get update", "core", "configmaps").named("kube-controller-manager")],
    ),
    (
        SYSTEM,
        "system::leader-locking-kube-scheduler",
        &[rule("watch", "core", "configmaps"), rule("get update", "core", "configmaps").named("kube-scheduler")],
    ),
    (
        PUBLIC,
        "system:controller:bootstrap-signer",
        &[rule(READ, "core", "configmaps"), rule("update", "core", "configmaps").named("cluster-info"), EVENTS],
    ),
];

fn within(namespace: &str, mut object: Value) -> Value {
    object["metadata"]["namespace"] = namespace.into();
    object
}

pub fn roles() -> Vec<Value> {
    ALL.iter().map(|(namespace, name, rules)| within(namespace, role(name, words(rules)))).collect()
}

pub fn bindings() -> Vec<Value> {
    let (controllers, scheduler) = ("kube-controller-manager", "kube-scheduler");
    let users = || vec![user("system:kube-controller-manager"), user("system:kube-scheduler")];
    let named = |name: &str| vec![account(name)];
    let locking = |name: &str| vec![user(&format!("system:{name}")), account(name)];
    let list = [
        (SYSTEM, "system::extension-apiserver-authentication-reader", READER, users()),
        (SYSTEM, "system::leader-locking-kube-controller-manager", "", locking(controllers)),
        (SYSTEM, "system::leader-locking-kube-scheduler", "", locking(scheduler)),
        (SYSTEM, "sternpost:network", "", named("sternpost-network")),
        (SYSTEM, "sternpost:node-network", "", vec![group("system:nodes")]),
        (SYSTEM, "system:controller:bootstrap-signer", "", named("bootstrap-signer")),
        (SYSTEM, "system:controller:cloud-provider", "", named("cloud-provider")),
        (SYSTEM, "system:controller:token-cleaner", "", named("token-cleaner")),
        (PUBLIC, "system:controller:bootstrap-signer", "", named("bootstrap-signer")),
    ];
    let bind = |(namespace, name, role, subjects): (&str, &str, &str, Vec<Value>)| {
        within(namespace, binding(name, "Role", if role.is_empty() { name } else { role }, subjects))
    };
    list.into_iter().map(bind).collect()
}
