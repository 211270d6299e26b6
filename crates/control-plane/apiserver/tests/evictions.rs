//! Evictions: what a PodDisruptionBudget allows, and how a pod that goes is marked.

mod harness;

use harness::{Answer, Api};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

/// A running pod on a node, ready or not, that a finalizer keeps after its deletion.
async fn pod(api: &Api, name: &str, phase: &str, ready: bool) {
    let spec = json!({"nodeName": "n", "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i"}]});
    let metadata = json!({"name": name, "labels": {"app": "a"}, "finalizers": ["example.com/seen"]});
    let made = api.post(PODS, json!({"metadata": metadata, "spec": spec})).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let ready = if ready { "True" } else { "False" };
    let status = json!({"status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}});
    assert_eq!(api.merge(&format!("{PODS}/{name}/status"), status).await.code, 200);
}

async fn with_account() -> Api {
    let api = Api::new().await;
    api.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    api
}

/// A budget whose controller has spoken.
async fn budget(api: &Api, spec: Value, status: Value) {
    let mut spec = spec;
    spec["selector"] = json!({"matchLabels": {"app": "a"}});
    let made = api.post(BUDGETS, json!({"metadata": {"name": "b"}, "spec": spec})).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let mut all = json!({"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
    status.as_object().unwrap().iter().for_each(|(name, value)| all[name] = value.clone());
    let written = api.merge(&format!("{BUDGETS}/b/status"), json!({"status": all})).await;
    assert_eq!(written.code, 200, "{}", written.message());
}

async fn evict(api: &Api, name: &str, query: &str, options: Value) -> Answer {
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}, "deleteOptions": options});
    api.post(&format!("{PODS}/{name}/eviction{query}"), eviction).await
}

async fn get(api: &Api, path: &str) -> Value {
    api.get(path).await.json()
}

#[tokio::test]
async fn an_eviction_spends_the_budget_and_marks_the_pod() {
    let api = with_account().await;
    pod(&api, "p", "Running", true).await;
    budget(&api, json!({"minAvailable": 1}), json!({"disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1})).await;
    let tried = evict(&api, "p", "?dryRun=All", Value::Null).await;
    assert_eq!((tried.code, &tried.json()["status"]), (201, &json!("Success")), "{}", tried.message());
    assert_eq!(get(&api, &format!("{BUDGETS}/b")).await["status"]["disruptionsAllowed"], 1, "a dry run spends nothing");
    assert_eq!(get(&api, &format!("{PODS}/p")).await["metadata"]["deletionTimestamp"], Value::Null);

    assert_eq!(evict(&api, "p", "", Value::Null).await.code, 201);
    let status = get(&api, &format!("{BUDGETS}/b")).await["status"].clone();
    assert_eq!((&status["disruptionsAllowed"], status["disruptedPods"]["p"].is_string()), (&json!(0), true), "{status}");
    let condition = &status["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["status"], &condition["reason"]),
        (&json!("DisruptionAllowed"), &json!("False"), &json!("InsufficientPods"))
    );
    let gone = get(&api, &format!("{PODS}/p")).await;
    assert!(gone["metadata"]["deletionTimestamp"].is_string(), "{gone}");
    let mark = gone["status"]["conditions"].as_array().unwrap().iter().find(|condition| condition["type"] == "DisruptionTarget").unwrap();
    assert_eq!(
        (&mark["status"], &mark["reason"], &mark["message"]),
        (&json!("True"), &json!("EvictionByEvictionAPI"), &json!("Eviction API: evicting"))
    );
}

#[tokio::test]
async fn a_budget_refuses_with_its_reason() {
    let failed = json!([{"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "no scale",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    // status of the budget, code, Retry-After, part of the cause
    let cases = [
        (json!({"currentHealthy": 1, "desiredHealthy": 2}), 429, None, "The disruption budget b needs 2 healthy pods and has 1 currently"),
        (json!({"currentHealthy": 3, "desiredHealthy": 2}), 429, None, "The disruption budget b does not allow evicting pods currently"),
        (json!({"conditions": failed}), 429, None, "does not allow evicting pods currently because it failed sync: no scale"),
        (
            json!({"observedGeneration": 0, "disruptionsAllowed": 1}),
            429,
            Some("10"),
            "The disruption budget b is still being processed by the server.",
        ),
    ];
    for (status, code, retry_after, cause) in cases {
        let api = with_account().await;
        pod(&api, "p", "Running", true).await;
        budget(&api, json!({"minAvailable": 2}), status.clone()).await;
        let refused = evict(&api, "p", "", Value::Null).await;
        assert_eq!(refused.code, code, "{status}: {}", refused.message());
        assert_eq!(refused.message(), "Cannot evict pod as it would violate the pod's disruption budget.");
        assert_eq!(refused.headers.get("retry-after").map(|value| value.to_str().unwrap()), retry_after, "{status}");
        let said = refused.json()["details"]["causes"][0].clone();
        assert!(said["reason"] == "DisruptionBudget" && said["message"].as_str().unwrap().contains(cause), "{status}: {said}");
        assert_eq!(get(&api, &format!("{PODS}/p")).await["metadata"]["deletionTimestamp"], Value::Null);
    }
}

#[tokio::test]
async fn pods_that_serve_nobody_cost_nothing() {
    // phase, ready, policy, status of the budget, whether the pod goes
    let healthy = json!({"currentHealthy": 2, "desiredHealthy": 2});
    let short = json!({"currentHealthy": 1, "desiredHealthy": 2});
    let cases = [
        ("Pending", false, Value::Null, short.clone(), true),
        ("Succeeded", false, Value::Null, short.clone(), true),
        ("Failed", false, Value::Null, short.clone(), true),
        ("Running", false, Value::Null, healthy.clone(), true),
        ("Running", false, Value::Null, short.clone(), false),
        ("Running", false, json!("AlwaysAllow"), short.clone(), true),
        ("Running", true, json!("AlwaysAllow"), short, false),
    ];
    for (phase, ready, policy, status, goes) in cases {
        let api = with_account().await;
        pod(&api, "p", phase, ready).await;
        budget(&api, json!({"minAvailable": 2, "unhealthyPodEvictionPolicy": policy}), status.clone()).await;
        let answer = evict(&api, "p", "", Value::Null).await;
        assert_eq!(answer.code, if goes { 201 } else { 429 }, "{phase} {ready} {policy} {status}: {}", answer.message());
        assert_eq!(get(&api, &format!("{BUDGETS}/b")).await["status"]["disruptedPods"], Value::Null);
    }
}

#[tokio::test]
async fn an_eviction_is_about_the_pod_of_its_path() {
    let api = with_account().await;
    pod(&api, "p", "Running", true).await;
    let path = format!("{PODS}/p/eviction");
    let nameless = api.post(&path, json!({"metadata": {}})).await;
    assert_eq!((nameless.code, nameless.message().as_str()), (400, "name in URL does not match name in Eviction object"));
    let stale = evict(&api, "p", "", json!({"preconditions": {"resourceVersion": "1"}})).await;
    assert_eq!(stale.code, 409, "{}", stale.message());
    let older = json!({"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "p"}});
    assert_eq!(api.post(&path, older).await.code, 201);
    assert_eq!(evict(&api, "none", "", Value::Null).await.code, 404);
    pod(&api, "q", "Running", true).await;
    for name in ["b", "c"] {
        let spec = json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}});
        api.post(BUDGETS, json!({"metadata": {"name": name}, "spec": spec})).await;
    }
    let two = evict(&api, "q", "", Value::Null).await;
    assert!(two.code == 500 && two.message().starts_with("This pod has more than one PodDisruptionBudget"), "{}", two.message());
}
