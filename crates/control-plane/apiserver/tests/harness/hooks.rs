//! Webhooks over TLS that behave as their path says, and configurations that name them.
#![allow(dead_code)]

use base64::Engine;
use serde_json::{Value, json};

use super::https::{Https, Reply, Seen};
use super::{Answer, Api};

pub const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
pub const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
pub const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub fn review(seen: &Seen, response: Value) -> Reply {
    let mut response = response;
    response["uid"] = seen.body["request"]["uid"].clone();
    Reply::Json(json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}))
}

pub fn patch(seen: &Seen, operations: Value) -> Reply {
    let encoded = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    review(seen, json!({"allowed": true, "patchType": "JSONPatch", "patch": encoded}))
}

/// Behaves as its path says.
pub async fn server() -> Https {
    Https::start(&["hook.default.svc"], |seen| match seen.path.split('?').next().unwrap_or_default() {
        "/allow" => review(seen, json!({"allowed": true, "warnings": ["take care"], "auditAnnotations": {"seen": "yes"}})),
        "/deny" => review(seen, json!({"allowed": false, "status": {"message": "not today", "code": 403, "reason": "Forbidden"}})),
        "/nonsense" => Reply::Text(200, "<html>".into()),
        "/wrong-uid" => {
            Reply::Json(json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": {"uid": "x", "allowed": true}}))
        }
        "/error" => Reply::Text(500, "boom".into()),
        "/missing" => Reply::Text(404, "no such page".into()),
        "/hang" => Reply::Hang,
        "/crash" => Reply::Crash,
        path if path.starts_with("/label/") => {
            let key = path.trim_start_matches("/label/");
            let labels = &seen.body["request"]["object"]["metadata"]["labels"];
            if labels[key].is_string() {
                return review(seen, json!({"allowed": true}));
            }
            let sorted: Vec<&str> = labels.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
            match labels.is_object() {
                true => patch(seen, json!([{"op": "add", "path": format!("/metadata/labels/{key}"), "value": sorted.join("-")}])),
                false => patch(seen, json!([{"op": "add", "path": "/metadata/labels", "value": {key: ""}}])),
            }
        }
        "/junk" => patch(seen, json!([{"op": "add", "path": "/spec", "value": 1}])),
        "/broken-patch" => patch(seen, json!([{"op": "remove", "path": "/no/such"}])),
        other => Reply::Text(404, other.into()),
    })
    .await
}

pub fn hook(server: &Https, name: &str, path: &str, more: Value) -> Value {
    let mut hook = json!({
        "name": name,
        "clientConfig": {"url": format!("https://localhost:{}{path}", server.port), "caBundle": server.bundle()},
        "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 1,
    });
    hook.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
    hook
}

pub async fn configure(api: &Api, path: &str, kind: &str, name: &str, hooks: Vec<Value>) {
    let configuration = json!({
        "kind": kind, "apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}, "webhooks": hooks,
    });
    let answer = api.post(path, configuration).await;
    assert_eq!(answer.code, 201, "{}", answer.message());
    // Webhooks are read from the watch cache, which follows the store.
    let listed = format!("{path}?resourceVersion={}", answer.version());
    assert_eq!(api.get(&listed).await.code, 200);
}

pub async fn validating(api: &Api, hooks: Vec<Value>) {
    configure(api, VALIDATING, "ValidatingWebhookConfiguration", "v", hooks).await;
}

pub async fn mutating(api: &Api, name: &str, hooks: Vec<Value>) {
    configure(api, MUTATING, "MutatingWebhookConfiguration", name, hooks).await;
}

pub async fn create(api: &Api, name: &str) -> Answer {
    api.post(CONFIG_MAPS, json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}})).await
}
