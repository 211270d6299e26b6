//! ServiceAccount: every pod runs as a service account that exists, and gets its token mounted.

use std::sync::Arc;
use std::time::Duration;

use meta::names;
use meta::status::Status;
use rules::value::{annotation, at, has, items_mut, list, set, text};
use serde_json::{Value, json};

use crate::{Attributes, Lookup, Operation, Plugin, Verdict, core};

/// Where client libraries look for the token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// An hour and seven seconds: upstream's odd number tells these tokens from requested ones.
const TOKEN_SECONDS: i64 = 3607;
/// A pod made right after its namespace waits so often for the namespace's default account.
const DEFAULT_ACCOUNT_ATTEMPTS: usize = 10;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(100);

pub struct ServiceAccount;

impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            if !attributes.is("", "pods") {
                return Ok(());
            }
            let Some(pod) = &attributes.object else { return Ok(()) };
            // A mirror pod shows what runs from a file: it gets nothing from the API.
            if annotation(pod, "kubernetes.io/config.mirror").is_some() {
                return mirror_pod(attributes, pod);
            }
            let name = rules::value::text_or(pod, "spec.serviceAccountName", "default").to_owned();
            let account = find(attributes, &name, lookup).await?;
            if let Some(pod) = attributes.object.as_mut() {
                give(pod, &name, &account);
            }
            Ok(())
        })
    }
}

fn mirror_pod(attributes: &Attributes, pod: &Value) -> Result<(), Status> {
    if !text(pod, "spec.serviceAccountName").is_empty() {
        return Err(attributes.forbidden("a mirror pod may not reference service accounts"));
    }
    let has_token = |volume: &Value| list(volume, "projected.sources").iter().any(|source| has(source, "serviceAccountToken"));
    if list(pod, "spec.volumes").iter().any(has_token) {
        return Err(attributes.forbidden("a mirror pod may not use ServiceAccountToken volume projections"));
    }
    Ok(())
}

async fn find(attributes: &Attributes, name: &str, lookup: &dyn Lookup) -> Result<Arc<Value>, Status> {
    let attempts = if name == "default" { DEFAULT_ACCOUNT_ATTEMPTS } else { 1 };
    for attempt in 0..attempts {
        if attempt > 0 {
            tokio::time::sleep(ATTEMPT_PAUSE).await;
        }
        if let Some(account) = lookup.get(&core("serviceaccounts"), &attributes.namespace, name).await? {
            return Ok(account);
        }
    }
    let namespace = &attributes.namespace;
    Err(attributes.forbidden(format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found")))
}

fn give(pod: &mut Value, name: &str, account: &Value) {
    set(pod, "spec.serviceAccountName", name);
    set(pod, "spec.serviceAccount", name);
    let wish = at(pod, "spec.automountServiceAccountToken").as_bool();
    if wish.or(at(account, "automountServiceAccountToken").as_bool()).unwrap_or(true) {
        mount_token(pod);
    }
    if list(pod, "spec.imagePullSecrets").is_empty() && !list(account, "imagePullSecrets").is_empty() {
        let secrets: Vec<Value> = list(account, "imagePullSecrets").iter().map(|secret| json!({"name": text(secret, "name")})).collect();
        set(pod, "spec.imagePullSecrets", secrets);
    }
}

fn mount_token(pod: &mut Value) {
    let is_token = |volume: &&Value| text(volume, "name").starts_with(VOLUME_PREFIX) && has(volume, "projected");
    let existing = list(pod, "spec.volumes").iter().find(is_token).map(|volume| text(volume, "name").to_owned());
    let fresh = existing.is_none();
    let name = existing.unwrap_or_else(|| names::generate_name(VOLUME_PREFIX));
    let mut mounted = false;
    for kind in ["spec.initContainers", "spec.containers"] {
        for container in items_mut(pod, kind) {
            if list(container, "volumeMounts").iter().any(|mount| text(mount, "mountPath") == MOUNT_PATH) {
                continue;
            }
            push(container, "volumeMounts", json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
            mounted = true;
        }
    }
    if fresh && mounted {
        push(pod, "spec.volumes", json!({"name": name, "projected": token_source()}));
    }
}

pub(crate) fn push(object: &mut Value, path: &str, item: Value) {
    let mut items = list(object, path).to_vec();
    items.push(item);
    set(object, path, items);
}

/// Token, cluster CA and namespace, as every in-cluster client expects them.
fn token_source() -> Value {
    json!({"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Objects, run, write};

    fn account(name: &str, more: Value) -> Value {
        let mut object = json!({"metadata": {"name": name, "namespace": "a"}});
        object.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        object
    }

    fn pod(spec: Value) -> Attributes {
        write(Operation::Create, "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec}))
    }

    #[tokio::test]
    async fn a_pod_gets_the_default_account_and_its_token() {
        let objects = Objects::default().with("serviceaccounts", account("default", json!({"imagePullSecrets": [{"name": "s"}]})));
        let mut attributes = pod(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}));
        assert_eq!(run(ServiceAccount, objects, &mut attributes).await, Ok(()));
        let spec = &attributes.object.expect("object")["spec"];
        assert_eq!((&spec["serviceAccountName"], &spec["imagePullSecrets"]), (&json!("default"), &json!([{"name": "s"}])));
        let volume = &spec["volumes"][0];
        let name = text(volume, "name");
        assert!(name.starts_with(VOLUME_PREFIX) && name.len() == VOLUME_PREFIX.len() + 5, "{name}");
        assert_eq!(volume["projected"]["sources"].as_array().map(Vec::len), Some(3));
        for kind in ["initContainers", "containers"] {
            assert_eq!(spec[kind][0]["volumeMounts"], json!([{"name": name, "readOnly": true, "mountPath": MOUNT_PATH}]));
        }
    }

    #[tokio::test]
    async fn the_token_stays_away_where_pod_or_account_say_so() {
        for (account_says, pod_says, mounted) in
            [(json!(false), json!(null), false), (json!(false), json!(true), true), (json!(null), json!(false), false)]
        {
            let objects =
                Objects::default().with("serviceaccounts", account("robot", json!({"automountServiceAccountToken": account_says})));
            let spec = json!({"serviceAccountName": "robot", "containers": [{"name": "c"}], "automountServiceAccountToken": pod_says});
            let mut attributes = pod(spec);
            assert_eq!(run(ServiceAccount, objects, &mut attributes).await, Ok(()));
            assert_eq!(has(&attributes.object.expect("object"), "spec.volumes"), mounted, "{account_says} {pod_says}");
        }
    }

    #[tokio::test]
    async fn a_pod_of_an_unknown_account_is_refused() {
        let mut attributes = pod(json!({"serviceAccountName": "robot", "containers": []}));
        let expected = "pods \"p\" is forbidden: error looking up service account a/robot: serviceaccount \"robot\" not found";
        assert_eq!(run(ServiceAccount, Objects::default(), &mut attributes).await, Err(expected.to_owned()));
    }

    #[tokio::test]
    async fn a_mount_of_ones_own_is_left_alone() {
        let objects = Objects::default().with("serviceaccounts", account("default", json!({})));
        let mut attributes = pod(json!({"containers": [{"name": "c", "volumeMounts": [{"name": "mine", "mountPath": MOUNT_PATH}]}]}));
        assert_eq!(run(ServiceAccount, objects, &mut attributes).await, Ok(()));
        assert!(!has(&attributes.object.expect("object"), "spec.volumes"));
    }
}
