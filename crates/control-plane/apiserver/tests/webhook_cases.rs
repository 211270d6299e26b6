//! Admission webhooks in tables: which writes they hear of, as what, under which conditions; and that their failures stay theirs.

mod harness;

use std::time::{Duration, Instant};

use harness::Api;
use harness::cases::{make, namespace, pod};
use harness::hooks::{CONFIG_MAPS, MUTATING, VALIDATING, create, hook, mutating, server, validating};
use serde_json::{Value, json};

#[tokio::test]
async fn every_subresource_is_told_with_its_kind_and_operation() {
    let (server, api) = (server().await, Api::new().await);
    namespace(&api, "a", json!({}), json!({})).await;
    let limited = json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}]});
    make(&api, "/api/v1/namespaces/a/pods", pod("p", limited)).await;
    make(&api, "/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    make(&api, "/api/v1/namespaces/a/services", service).await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment =
        json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}});
    make(&api, "/apis/apps/v1/namespaces/a/deployments", deployment).await;
    let rules = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"], "scope": "*"}]);
    validating(&api, vec![hook(&server, "w.example.com", "/deny", json!({"rules": rules}))]).await;
    let (pods, apps) = ("/api/v1/namespaces/a/pods/p", "/apis/apps/v1/namespaces/a/deployments/d");
    let debugger = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i"}]}});
    let larger = json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "3"}}}]}});
    // Method, path, body, operation, resource, subresource, kind.
    let cases: Vec<(&str, String, Value, [&str; 4])> = vec![
        ("GET", format!("{pods}/exec?command=ls"), Value::Null, ["CONNECT", "pods", "exec", "PodExecOptions"]),
        ("POST", format!("{pods}/attach"), json!({}), ["CONNECT", "pods", "attach", "PodAttachOptions"]),
        ("POST", format!("{pods}/portforward?ports=80"), json!({}), ["CONNECT", "pods", "portforward", "PodPortForwardOptions"]),
        ("GET", format!("{pods}/proxy/x"), Value::Null, ["CONNECT", "pods", "proxy", "PodProxyOptions"]),
        ("GET", "/api/v1/namespaces/a/services/s/proxy/".into(), Value::Null, ["CONNECT", "services", "proxy", "ServiceProxyOptions"]),
        ("GET", "/api/v1/nodes/n/proxy/".into(), Value::Null, ["CONNECT", "nodes", "proxy", "NodeProxyOptions"]),
        ("PATCH", format!("{pods}/status"), json!({"status": {"phase": "Running"}}), ["UPDATE", "pods", "status", "Pod"]),
        ("STRATEGIC", format!("{pods}/ephemeralcontainers"), debugger, ["UPDATE", "pods", "ephemeralcontainers", "Pod"]),
        ("STRATEGIC", format!("{pods}/resize"), larger, ["UPDATE", "pods", "resize", "Pod"]),
        (
            "POST",
            format!("{pods}/binding"),
            json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}),
            ["CREATE", "pods", "binding", "Binding"],
        ),
        ("POST", format!("{pods}/eviction"), json!({"metadata": {"name": "p"}}), ["CREATE", "pods", "eviction", "Eviction"]),
        (
            "POST",
            "/api/v1/namespaces/a/serviceaccounts/default/token".into(),
            json!({"spec": {"audiences": ["x"]}}),
            ["CREATE", "serviceaccounts", "token", "TokenRequest"],
        ),
        ("PATCH", format!("{apps}/scale"), json!({"spec": {"replicas": 2}}), ["UPDATE", "deployments", "scale", "Scale"]),
        ("PATCH", format!("{apps}/status"), json!({"status": {"replicas": 1}}), ["UPDATE", "deployments", "status", "Deployment"]),
        ("PATCH", apps.into(), json!({"metadata": {"labels": {"x": "y"}}}), ["UPDATE", "deployments", "", "Deployment"]),
        ("DELETE", apps.into(), Value::Null, ["DELETE", "deployments", "", "Deployment"]),
        ("POST", "/api/v1/namespaces".into(), json!({"metadata": {"name": "b"}}), ["CREATE", "namespaces", "", "Namespace"]),
    ];
    for (method, path, body, expected) in cases {
        let (method, content_type) = match method {
            "PATCH" => ("PATCH", "application/merge-patch+json"),
            "STRATEGIC" => ("PATCH", "application/strategic-merge-patch+json"),
            other => (other, "application/json"),
        };
        let before = server.seen().len();
        let answer = api.ask(method, &path, content_type, if body.is_null() { String::new() } else { body.to_string() }).await;
        let message = "admission webhook \"w.example.com\" denied the request: not today";
        assert_eq!((answer.code, answer.message().as_str()), (403, message), "{method} {path}");
        // The server writes objects of its own meanwhile.
        let asked = server.seen()[before..].iter().map(|seen| seen.body["request"].clone()).collect::<Vec<Value>>();
        let ours = asked.iter().rfind(|request| request["userInfo"]["username"] != "system:apiserver");
        let request = ours.unwrap_or_else(|| panic!("{path}: nobody was asked"));
        let found = ["/operation", "/resource/resource", "/subResource", "/kind/kind"]
            .map(|at| request.pointer(at).and_then(Value::as_str).unwrap_or_default());
        assert_eq!(found, expected, "{method} {path}");
    }
}

#[tokio::test]
async fn conditions_and_selectors_choose_the_writes() {
    let server = server().await;
    let condition = |name: &str, expression: &str| json!({"name": name, "expression": expression});
    let (yes, no) = (condition("yes", "object.metadata.name == 'c'"), condition("no", "object.metadata.name == 'other'"));
    let error = condition("error", "object.metadata.labels.none == 'x'");
    let rights = |verb: &str| condition("rights", &format!("authorizer.group('').resource('secrets').check('{verb}').allowed()"));
    let broken = "configmaps \"c\" is forbidden: expression 'object.metadata.labels.none == 'x'' resulted in error: no such key: labels";
    let labels = |key: &str, value: &str| json!({"matchLabels": {key: value}});
    let own = "kubernetes.io/metadata.name";
    // What the webhook says of itself, and what becomes of the write that it would deny.
    let cases: Vec<(Value, Result<(), &str>)> = vec![
        (json!({"matchConditions": [yes]}), Err("denied the request")),
        (json!({"matchConditions": [no]}), Ok(())),
        (json!({"matchConditions": [yes, no]}), Ok(())),
        (json!({"matchConditions": [error]}), Err(broken)),
        (json!({"matchConditions": [error], "failurePolicy": "Ignore"}), Ok(())),
        (json!({"matchConditions": [error, no]}), Ok(())),
        (json!({"matchConditions": [rights("get")]}), Err("denied the request")),
        (json!({"matchConditions": [condition("who", "request.userInfo.username == 'nobody'")]}), Ok(())),
        (json!({"objectSelector": labels("skip", "me")}), Ok(())),
        (json!({"objectSelector": {"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]}}), Err("denied the request")),
        (json!({"namespaceSelector": labels(own, "default")}), Err("denied the request")),
        (json!({"namespaceSelector": labels(own, "other")}), Ok(())),
        (json!({"rules": [{"operations": ["UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]}), Ok(())),
        (
            json!({"rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "scope": "Cluster"}]}),
            Ok(()),
        ),
    ];
    for (more, expected) in cases {
        let api = Api::new().await;
        validating(&api, vec![hook(&server, "w.example.com", "/deny", more.clone())]).await;
        let answer = create(&api, "c").await;
        match expected {
            Ok(()) => assert_eq!(answer.code, 201, "{more}: {}", answer.message()),
            Err(part) => assert!(answer.code == 403 && answer.message().contains(part), "{more}: {}", answer.message()),
        }
    }
}

#[tokio::test]
async fn conditions_that_do_not_compile_are_refused_when_they_are_written() {
    let (server, api) = (server().await, Api::new().await);
    let broken = json!({"matchConditions": [{"name": "x", "expression": "object.metadata.name =="}]});
    let configuration = json!({"metadata": {"name": "v"}, "webhooks": [hook(&server, "w.example.com", "/allow", broken)]});
    for path in [VALIDATING, MUTATING] {
        let refused = api.post(path, configuration.clone()).await;
        assert_eq!(refused.code, 422, "{}", refused.message());
        assert!(refused.message().contains("webhooks[0].matchConditions[0].expression: Invalid value"), "{}", refused.message());
        assert!(refused.message().contains("compilation failed"), "{}", refused.message());
    }
}

#[tokio::test]
async fn mutating_webhooks_that_fail_are_named_and_fail_nobody_else() {
    let server = server().await;
    for (path, part) in [
        ("/hang", "context deadline exceeded"),
        ("/crash", "EOF"),
        ("/nonsense", "couldn't get version/kind"),
        ("/error", "an error on the server"),
        ("/wrong-uid", "received invalid webhook response: expected response.uid="),
    ] {
        let api = Api::new().await;
        mutating(&api, "m", vec![hook(&server, "broken.example.com", path, json!({}))]).await;
        let refused = create(&api, "c").await;
        let head = "Internal error occurred: failed calling webhook \"broken.example.com\": ";
        assert!(refused.code == 500 && refused.message().starts_with(head), "{path}: {}", refused.message());
        assert!(refused.message().contains(part), "{path}: {}", refused.message());
    }
}

#[tokio::test]
async fn a_server_with_a_hundred_writes_at_a_webhook_that_hangs_answers_everybody_else() {
    let (server, api) = (server().await, std::sync::Arc::new(Api::new().await));
    validating(&api, vec![hook(&server, "slow.example.com", "/hang", json!({"timeoutSeconds": 2}))]).await;
    let mut held = tokio::task::JoinSet::new();
    for number in 0..100 {
        let api = api.clone();
        held.spawn(async move { create(&api, &format!("c{number}")).await.message() });
    }
    while server.seen().len() < 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let started = Instant::now();
    for number in 0..50 {
        assert_eq!(api.get("/api/v1/namespaces/default").await.code, 200);
        let secret = json!({"metadata": {"name": format!("s{number}")}});
        assert_eq!(api.post("/api/v1/namespaces/default/secrets", secret).await.code, 201);
    }
    assert_eq!(
        held.try_join_next().map(|ended| ended.unwrap()),
        None,
        "all were held while the others were served in {:?}",
        started.elapsed()
    );
    let messages = held.join_all().await;
    assert!(messages.iter().all(|message| message.contains("slow.example.com") && message.contains("context deadline exceeded")));
    assert_eq!(api.get(CONFIG_MAPS).await.json()["items"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn policies_and_webhooks_see_what_each_other_made() {
    let (server, api) = (server().await, Api::new().await);
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rule = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]});
    // The policy runs before webhooks; asked again it finds what they made.
    let count = "[JSONPatch{op: 'add', path: '/metadata/annotations', value: {'labels': string(has(object.metadata.labels) ? size(object.metadata.labels) : 0)}}]";
    let spec = |again: &str| json!({"matchConstraints": {"resourceRules": [rule]}, "reinvocationPolicy": again, "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": count}}]});
    mutating(&api, "m", vec![hook(&server, "label.example.com", "/label/a", json!({}))]).await;
    for (again, expected) in [("Never", "0"), ("IfNeeded", "1")] {
        make(&api, &format!("{group}/mutatingadmissionpolicies"), json!({"metadata": {"name": "p"}, "spec": spec(again)})).await;
        make(&api, &format!("{group}/mutatingadmissionpolicybindings"), json!({"metadata": {"name": "b"}, "spec": {"policyName": "p"}}))
            .await;
        let made = create(&api, &again.to_lowercase()).await.json();
        assert_eq!(made["metadata"]["labels"], json!({"a": ""}), "{again}");
        assert_eq!(made["metadata"]["annotations"]["labels"], expected, "{again}");
        for path in ["mutatingadmissionpolicybindings/b", "mutatingadmissionpolicies/p"] {
            let gone = api.delete(&format!("{group}/{path}")).await;
            assert_eq!(gone.code, 200);
        }
        assert_eq!(api.get(&format!("{group}/mutatingadmissionpolicies")).await.code, 200);
    }
}

#[tokio::test]
async fn a_webhook_that_is_replaced_is_never_asked_again() {
    let (server, api) = (server().await, Api::new().await);
    for round in 0..20 {
        for (path, code) in [("/deny", 403), ("/allow", 201)] {
            let configuration = json!({"metadata": {"name": "v"}, "webhooks": [hook(&server, "w.example.com", path, json!({}))]});
            assert_eq!(api.post(VALIDATING, configuration).await.code, 201);
            let answer = create(&api, &format!("c{round}")).await;
            assert_eq!(answer.code, code, "{round} {path}: {}", answer.message());
            assert_eq!(api.delete(&format!("{VALIDATING}/v")).await.code, 200);
        }
    }
}
