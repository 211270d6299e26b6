//! API Priority and Fairness as clients see it.

mod harness;

use apiserver::{Body, Config, Server};
use auth::UserInfo;
use bytes::Bytes;
use harness::Api;
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use serde_json::json;
use store::Store;

const FLOW: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

#[tokio::test]
async fn the_default_flows_are_there_and_named_in_every_answer() {
    let api = Api::new().await;
    let schemas = api.get(&format!("{FLOW}/flowschemas")).await.json();
    assert_eq!(schemas["items"].as_array().unwrap().len(), 11);
    assert_eq!(api.get(&format!("{FLOW}/prioritylevelconfigurations")).await.json()["items"].as_array().unwrap().len(), 8);
    let uid = |name: &str| {
        let found = schemas["items"].as_array().unwrap().iter().find(|schema| schema["metadata"]["name"] == name).unwrap();
        found["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    for (user, schema) in [(harness::admin(), "exempt"), (UserInfo::authenticated("jane", &[]), "global-default")] {
        let answer = api.send(Request::builder().uri("/version").body(harness::body("")).unwrap(), user).await;
        assert_eq!(answer.headers["x-kubernetes-pf-flowschema-uid"], uid(schema), "{schema}");
        assert!(answer.headers.contains_key("x-kubernetes-pf-prioritylevel-uid"));
    }
}

#[tokio::test]
async fn nobody_gives_the_last_resort_another_form() {
    let api = Api::new().await;
    for (path, patch, code) in [
        ("flowschemas/catch-all", json!({"spec": {"matchingPrecedence": 5}}), 422),
        ("flowschemas/exempt", json!({"spec": {"rules": []}}), 422),
        ("prioritylevelconfigurations/catch-all", json!({"spec": {"limited": {"nominalConcurrencyShares": 500}}}), 422),
        ("prioritylevelconfigurations/exempt", json!({"spec": {"exempt": {"nominalConcurrencyShares": 5}}}), 200),
        ("flowschemas/catch-all", json!({"metadata": {"labels": {"a": "b"}}}), 200),
        ("flowschemas/service-accounts", json!({"spec": {"matchingPrecedence": 8000}}), 200),
    ] {
        let answer = api.merge(&format!("{FLOW}/{path}"), patch).await;
        assert_eq!(answer.code, code, "{path}: {}", answer.message());
        assert!(code == 200 || answer.message().contains("must equal the fixed value"), "{path}: {}", answer.message());
    }
}

#[tokio::test]
async fn what_every_cluster_has_is_written_once_and_comes_back() {
    let api = Api::new().await;
    let before = api.store.revision();
    api.server.bootstrap().await.unwrap();
    assert_eq!(api.store.revision(), before, "what is right is not written again");
    for path in ["flowschemas/exempt", "prioritylevelconfigurations/workload-low"] {
        assert_eq!(api.delete(&format!("{FLOW}/{path}")).await.code, 200);
        api.server.bootstrap().await.unwrap();
        assert_eq!(api.get(&format!("{FLOW}/{path}")).await.code, 200, "{path}");
    }
}

/// A body whose end does not come before its sender is dropped.
fn endless() -> (tokio::sync::mpsc::Sender<()>, Body) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<()>(1);
    let stream = futures_util::stream::once(async move {
        receiver.recv().await;
        Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from_static(b"{}")))
    });
    (sender, BodyExt::boxed(StreamBody::new(Box::pin(stream))))
}

#[tokio::test]
async fn who_finds_no_seat_is_told_to_come_again_and_others_go_on() {
    let store = std::sync::Arc::new(store::memory::Memory::new());
    let config = Config { reads_inflight_max: 8, writes_inflight_max: 0, ..Config::default() };
    let api = Api { server: Server::new(config, store.clone()).unwrap(), store };
    api.server.bootstrap().await.unwrap();
    let level = json!({"metadata": {"name": "narrow"}, "spec": {"type": "Limited",
        "limited": {"nominalConcurrencyShares": 1, "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"}}}});
    assert_eq!(api.post(&format!("{FLOW}/prioritylevelconfigurations"), level).await.code, 201);
    let rule = json!({"subjects": [{"kind": "User", "user": {"name": "flood"}}],
        "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}]});
    let schema = json!({"metadata": {"name": "flood"}, "spec": {"matchingPrecedence": 50, "priorityLevelConfiguration": {"name": "narrow"}, "rules": [rule]}});
    assert_eq!(api.post(&format!("{FLOW}/flowschemas"), schema).await.code, 201);
    api.get(&format!("{FLOW}/flowschemas")).await;
    api.get(&format!("{FLOW}/prioritylevelconfigurations")).await;
    let user = |name: &str| UserInfo::authenticated(name, &[]);
    let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (release, body) = endless();
    let slow = Request::builder().method("POST").uri(review).header("content-type", "application/json").body(body).unwrap();
    let (server, flood) = (api.server.clone(), user("flood"));
    let slow = tokio::spawn(async move { server.handle(slow, Some(flood)).await.status() });
    let ask = async |name: &str| {
        let request = Request::builder().uri("/api/v1/namespaces/default/pods").body(harness::body("")).unwrap();
        api.send(request, user(name)).await
    };
    let mut refused = ask("flood").await;
    for _ in 0..200 {
        if refused.code == 429 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        refused = ask("flood").await;
    }
    assert_eq!((refused.code, refused.headers["retry-after"].to_str().unwrap()), (429, "1"));
    assert_eq!(refused.message(), "too many requests, please try again later");
    assert_eq!(ask("other").await.code, 403, "another flow is served");
    let dump = async |table: &str| {
        let answer = api.get(&format!("/debug/api_priority_and_fairness/{table}")).await;
        String::from_utf8_lossy(&answer.bytes).into_owned()
    };
    let cells = |table: &str| -> Vec<Vec<String>> {
        table.lines().map(|line| line.split(',').map(|cell| cell.trim().to_owned()).collect()).collect()
    };
    let levels = cells(&dump("dump_priority_levels").await);
    assert_eq!(levels[0][..3], ["PriorityLevelName", "ActiveQueues", "IsIdle"]);
    let narrow = levels.iter().find(|row| row[0] == "narrow").expect("the level");
    assert_eq!((narrow[2].as_str(), narrow[5].as_str()), ("false", "1"), "{narrow:?}");
    assert!(narrow[7].parse::<u64>().unwrap() >= 1, "rejected: {narrow:?}");
    let requests = cells(&dump("dump_requests?includeRequestDetails=1").await);
    let running = requests.iter().find(|row| row[0] == "narrow").expect("the request that runs");
    assert_eq!((running[1].as_str(), running[10].as_str(), running[11].as_str()), ("flood", "flood", "create"));
    assert_eq!(running[12], review);
    assert!(cells(&dump("dump_queues").await).iter().any(|row| row[0] == "global-default" && row[1] == "127"));
    // The process's metrics are those of its first server: which one that is depends on the order of the tests.
    let metrics = String::from_utf8_lossy(&api.get("/metrics").await.bytes).into_owned();
    assert!(metrics.contains("apiserver_flowcontrol_nominal_limit_seats{priority_level=\"catch-all\"}"));
    let stranger = Request::builder().uri("/debug/api_priority_and_fairness/dump_queues").body(harness::body("")).unwrap();
    assert_eq!(api.send(stranger, user("other")).await.code, 403);
    drop(release);
    assert_eq!(slow.await.unwrap(), 422);
    assert_eq!(ask("flood").await.code, 403, "the seat is free again");
}

/// The condition of a schema, once it has this status.
async fn dangling(api: &Api, name: &str, status: &str) -> serde_json::Value {
    let mut last = json!(null);
    for _ in 0..200 {
        last = api.get(&format!("{FLOW}/flowschemas/{name}")).await.json()["status"]["conditions"][0].clone();
        if last["status"] == status {
            return last;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{name} never became {status}: {last}");
}

#[tokio::test]
async fn a_flow_schema_says_whether_its_level_exists() {
    let api = Api::new().await;
    let found = dangling(&api, "global-default", "False").await;
    assert_eq!((&found["type"], &found["reason"]), (&json!("Dangling"), &json!("Found")));
    let rule = json!({"subjects": [{"kind": "User", "user": {"name": "ann"}}],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]});
    let spec = json!({"matchingPrecedence": 50, "priorityLevelConfiguration": {"name": "later"}, "rules": [rule]});
    assert_eq!(api.post(&format!("{FLOW}/flowschemas"), json!({"metadata": {"name": "early"}, "spec": spec})).await.code, 201);
    let missing = dangling(&api, "early", "True").await;
    let message = "This FlowSchema references the PriorityLevelConfiguration object named \"later\" but there is no such object";
    assert_eq!((&missing["reason"], &missing["message"]), (&json!("NotFound"), &json!(message)));
    let asked = async || {
        let request = Request::builder().uri("/version").body(harness::body("")).unwrap();
        let answer = api.send(request, UserInfo::authenticated("ann", &[])).await;
        answer.headers["x-kubernetes-pf-flowschema-uid"].to_str().unwrap().to_owned()
    };
    let uid =
        async |name: &str| api.get(&format!("{FLOW}/flowschemas/{name}")).await.json()["metadata"]["uid"].as_str().unwrap().to_owned();
    assert_eq!(asked().await, uid("global-default").await, "a schema without a level is passed over");
    let limited = json!({"nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}});
    let level = json!({"metadata": {"name": "later"}, "spec": {"type": "Limited", "limited": limited}});
    assert_eq!(api.post(&format!("{FLOW}/prioritylevelconfigurations"), level).await.code, 201);
    dangling(&api, "early", "False").await;
    assert_eq!(asked().await, uid("early").await);
    assert_eq!(api.delete(&format!("{FLOW}/prioritylevelconfigurations/later")).await.code, 200);
    dangling(&api, "early", "True").await;
}
