//! Real admission webhooks over TLS: what they are told, in which order, and what their answers and failures mean.

mod harness;

use harness::Api;
use harness::hooks::{CONFIG_MAPS, MUTATING, VALIDATING, create, hook, mutating, server, validating};
use harness::https::{Https, Reply};
use serde_json::{Value, json};

#[tokio::test]
async fn a_webhooks_answer_and_failure_are_told_in_upstreams_words() {
    let server = server().await;
    let url = |path: &str| format!("\"https://localhost:{}{path}?timeout=1s\"", server.port);
    let failed = |why: String| format!("Internal error occurred: failed calling webhook \"w.example.com\": {why}");
    let cases = [
        ("/allow", 201, String::new()),
        ("/deny", 403, "admission webhook \"w.example.com\" denied the request: not today".to_owned()),
        (
            "/nonsense",
            500,
            failed(
                "failed to call webhook: couldn't get version/kind; json parse error: invalid character '<' looking for beginning of value"
                    .into(),
            ),
        ),
        (
            "/error",
            500,
            failed("failed to call webhook: an error on the server (\"boom\") has prevented the request from succeeding".into()),
        ),
        ("/missing", 500, failed("failed to call webhook: the server could not find the requested resource".into())),
        ("/hang", 500, failed(format!("failed to call webhook: Post {}: context deadline exceeded", url("/hang")))),
        ("/crash", 500, failed(format!("failed to call webhook: Post {}: EOF", url("/crash")))),
    ];
    for (path, code, message) in cases {
        for policy in ["Fail", "Ignore"] {
            let api = Api::new().await;
            validating(&api, vec![hook(&server, "w.example.com", path, json!({"failurePolicy": policy}))]).await;
            let answer = create(&api, "c").await;
            let ignored = policy == "Ignore" && code == 500;
            let expected = if ignored { (201, String::new()) } else { (code, message.clone()) };
            assert_eq!((answer.code, answer.message()), expected, "{path} {policy}");
            // Everybody else goes on.
            assert_eq!(api.get("/api/v1/namespaces/default").await.code, 200);
        }
    }
}

#[tokio::test]
async fn an_answer_to_another_question_is_none() {
    let (server, api) = (server().await, Api::new().await);
    validating(&api, vec![hook(&server, "w.example.com", "/wrong-uid", json!({}))]).await;
    let message = create(&api, "c").await.message();
    let head =
        "Internal error occurred: failed calling webhook \"w.example.com\": received invalid webhook response: expected response.uid=";
    assert!(message.starts_with(head), "{message}");
}

#[tokio::test]
async fn what_cannot_be_reached_or_trusted_is_named() {
    let (server, api) = (server().await, Api::new().await);
    let other = Https::start(&[], |_| Reply::Hang).await;
    let service = |name: &str| json!({"clientConfig": {"service": {"name": name, "namespace": "default", "path": "/allow"}}});
    let port = server.port;
    let cases = [
        (
            json!({"clientConfig": {"url": "https://localhost:1/x", "caBundle": server.bundle()}}),
            "Post \"https://localhost:1/x?timeout=1s\": dial tcp 127.0.0.1:1: connect: connection refused".to_owned(),
        ),
        (service("gone"), "Post \"https://gone.default.svc:443/allow?timeout=1s\": service \"gone\" not found".into()),
        (
            json!({"clientConfig": {"url": format!("https://localhost:{port}/allow"), "caBundle": other.bundle()}}),
            format!(
                "Post \"https://localhost:{port}/allow?timeout=1s\": tls: failed to verify certificate: x509: certificate signed by unknown authority"
            ),
        ),
        (
            json!({"clientConfig": {"url": format!("https://127.0.0.1:{port}/allow"), "caBundle": server.bundle()}}),
            format!(
                "Post \"https://127.0.0.1:{port}/allow?timeout=1s\": tls: failed to verify certificate: x509: certificate is valid for hook.default.svc, localhost, not 127.0.0.1"
            ),
        ),
    ];
    for (config, why) in cases {
        let mut wanted = hook(&server, "w.example.com", "/allow", config);
        if wanted["clientConfig"]["service"].is_object() {
            wanted["clientConfig"]["caBundle"] = server.bundle().into();
        }
        validating(&api, vec![wanted]).await;
        let answer = create(&api, "c").await;
        let expected = format!("Internal error occurred: failed calling webhook \"w.example.com\": failed to call webhook: {why}");
        assert_eq!(answer.message(), expected);
        // A broken webhook never stands in the way of its own removal.
        assert_eq!(api.delete(&format!("{VALIDATING}/v")).await.code, 200);
    }
}

#[tokio::test]
async fn a_service_of_a_webhook_is_found_by_its_endpoints() {
    let (server, api) = (server().await, Api::new().await);
    let service = json!({"metadata": {"name": "hook"}, "spec": {"ports": [{"port": 443, "name": "https"}]}});
    assert_eq!(api.post("/api/v1/namespaces/default/services", service).await.code, 201);
    let slice = json!({
        "metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
        "addressType": "IPv4",
        "ports": [{"name": "https", "port": server.port}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}],
    });
    // The API takes no loopback address for an endpoint: what a controller would write goes into the store itself.
    let key = b"/registry/endpointslices/default/hook-1".to_vec();
    let mut stored = slice.clone();
    stored["kind"] = "EndpointSlice".into();
    stored["apiVersion"] = "discovery.k8s.io/v1".into();
    stored["metadata"]["namespace"] = "default".into();
    use store::Store;
    let revision = api.store.put(&key, stored.to_string().into(), store::Expect::Absent).await.expect("stored");
    let listed = format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?resourceVersion={revision}");
    assert_eq!(api.get(&listed).await.code, 200);
    let config =
        json!({"clientConfig": {"service": {"name": "hook", "namespace": "default", "path": "/deny"}, "caBundle": server.bundle()}});
    validating(&api, vec![hook(&server, "w.example.com", "", config)]).await;
    assert_eq!(create(&api, "c").await.message(), "admission webhook \"w.example.com\" denied the request: not today");
    assert_eq!(server.seen()[0].headers["host"], "hook.default.svc:443");
}

#[tokio::test]
async fn mutating_webhooks_run_in_order_and_again_where_they_ask_for_it() {
    let (server, api) = (server().await, Api::new().await);
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    mutating(&api, "b", vec![hook(&server, "third.example.com", "/label/c", json!({}))]).await;
    let first = hook(&server, "first.example.com", "/label/a", again);
    mutating(&api, "a", vec![first, hook(&server, "second.example.com", "/label/b", json!({}))]).await;
    let answer = create(&api, "c").await;
    assert_eq!(answer.json()["metadata"]["labels"], json!({"a": "", "b": "a", "c": "a-b"}));
    let asked: Vec<String> = server.seen().iter().map(|seen| seen.path.split('?').next().unwrap_or_default().to_owned()).collect();
    assert_eq!(asked, ["/label/a", "/label/b", "/label/c", "/label/a"], "only the first asked for a second round");
}

#[tokio::test]
async fn a_patch_passes_through_the_schema_like_any_write() {
    let (server, api) = (server().await, Api::new().await);
    mutating(&api, "a", vec![hook(&server, "w.example.com", "/junk", json!({}))]).await;
    let answer = create(&api, "c").await;
    assert_eq!((answer.code, answer.json()["spec"].is_null()), (201, true), "an unknown field is dropped");
    assert_eq!(api.delete(&format!("{MUTATING}/a")).await.code, 200);
    mutating(&api, "a", vec![hook(&server, "w.example.com", "/broken-patch", json!({"failurePolicy": "Ignore"}))]).await;
    let answer = create(&api, "d").await;
    assert_eq!(answer.code, 500, "a patch that does not apply is no failed call");
}

#[tokio::test]
async fn the_webhook_is_told_what_was_asked() {
    let (server, api) = (server().await, Api::new().await);
    // Not of everything: the server writes objects of its own meanwhile.
    let rules = json!([{"operations": ["*"], "apiGroups": ["apps"], "apiVersions": ["*"], "resources": ["deployments", "deployments/*"]}]);
    validating(&api, vec![hook(&server, "w.example.com", "/allow", json!({"rules": rules}))]).await;
    let container = json!({"name": "c", "image": "i"});
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}});
    let spec = json!({"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    let deployment = json!({"metadata": {"name": "d"}, "spec": spec});
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let answer = api.post(&format!("{deployments}?dryRun=All&fieldManager=me"), deployment.clone()).await;
    assert_eq!(answer.warnings(), ["299 - \"take care\""]);
    api.post(deployments, deployment).await;
    let scaled = api.merge(&format!("{deployments}/d/scale"), json!({"spec": {"replicas": 3}})).await;
    assert_eq!(scaled.json()["spec"]["replicas"], 3, "{}", scaled.message());
    api.delete(&format!("{deployments}/d")).await;
    let asked: Vec<Value> = server.seen().iter().map(|seen| seen.body["request"].clone()).collect();
    assert_eq!((&asked[0]["dryRun"], &asked[0]["options"]["fieldManager"]), (&json!(true), &json!("me")));
    assert_eq!(asked[0]["options"]["kind"], "CreateOptions");
    assert_eq!(asked[1]["object"]["apiVersion"], "apps/v1");
    assert_eq!(asked[2]["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!((&asked[2]["resource"]["resource"], &asked[2]["subResource"]), (&json!("deployments"), &json!("scale")));
    assert_eq!((&asked[2]["object"]["spec"]["replicas"], &asked[2]["oldObject"]["spec"]["replicas"]), (&json!(3), &json!(1)));
    assert_eq!((&asked[3]["operation"], &asked[3]["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(asked[3]["oldObject"]["metadata"]["name"], "d");
    assert_eq!(asked[3]["options"]["kind"], "DeleteOptions");
}

#[tokio::test]
async fn a_dry_run_asks_only_webhooks_without_side_effects() {
    let (server, api) = (server().await, Api::new().await);
    // The API takes no such webhook any more; it may be there from an older version.
    let hooks = [hook(&server, "w.example.com", "/allow", json!({"sideEffects": "Unknown"}))];
    let stored = json!({"kind": "ValidatingWebhookConfiguration", "apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "v"}, "webhooks": hooks});
    let key = b"/registry/validatingwebhookconfigurations/v".to_vec();
    let revision = store::Store::put(&*api.store, &key, stored.to_string().into(), store::Expect::Absent).await.expect("stored");
    assert_eq!(api.get(&format!("{VALIDATING}?resourceVersion={revision}")).await.code, 200);
    let object = json!({"metadata": {"name": "c"}});
    let refused = api.post(&format!("{CONFIG_MAPS}?dryRun=All"), object.clone()).await;
    assert_eq!((refused.code, refused.message()), (400, "admission webhook \"w.example.com\" does not support dry run".into()));
    assert_eq!(api.post(CONFIG_MAPS, object).await.code, 201);
}

#[tokio::test]
async fn connecting_to_a_pod_can_be_denied() {
    let (server, api) = (server().await, Api::new().await);
    let rules = json!([{"operations": ["CONNECT"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/exec", "pods/attach"]}]);
    validating(&api, vec![hook(&server, "w.example.com", "/deny", json!({"rules": rules}))]).await;
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(api.post("/api/v1/namespaces/default/serviceaccounts", account).await.code, 201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(api.post("/api/v1/namespaces/default/pods", pod).await.code, 201);
    let answer = api.post("/api/v1/namespaces/default/pods/p/exec?command=ls&container=c&stdin=true", json!({})).await;
    assert_eq!((answer.code, answer.message()), (403, "admission webhook \"w.example.com\" denied the request: not today".into()));
    let request = server.seen()[0].body["request"].clone();
    let options = json!({"kind": "PodExecOptions", "apiVersion": "v1", "stdin": true, "container": "c", "command": ["ls"]});
    assert_eq!((&request["object"], &request["kind"]["kind"]), (&options, &json!("PodExecOptions")));
}

#[tokio::test]
async fn webhook_configurations_are_out_of_webhooks_reach() {
    let (server, api) = (server().await, Api::new().await);
    let rules = json!([{"operations": ["*"], "apiGroups": ["admissionregistration.k8s.io"], "apiVersions": ["*"], "resources": ["*"]}]);
    validating(&api, vec![hook(&server, "deny.example.com", "/deny", json!({"rules": rules}))]).await;
    mutating(&api, "m", vec![hook(&server, "label.example.com", "/label/a", json!({"rules": rules}))]).await;
    let changed = api.merge(&format!("{VALIDATING}/v"), json!({"metadata": {"annotations": {"a": "b"}}})).await;
    assert_eq!((changed.code, changed.json()["metadata"]["labels"].is_null()), (200, true));
    assert_eq!(api.delete(&format!("{VALIDATING}/v")).await.code, 200);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn equivalent_versions_of_a_resource_are_the_same_to_a_rule() {
    let (server, api) = (server().await, Api::new().await);
    let rules =
        json!([{"operations": ["*"], "apiGroups": ["autoscaling"], "apiVersions": ["v1"], "resources": ["horizontalpodautoscalers"]}]);
    for (policy, code) in [("Exact", 201), ("Equivalent", 403)] {
        validating(&api, vec![hook(&server, "w.example.com", "/deny", json!({"rules": rules, "matchPolicy": policy}))]).await;
        let spec = json!({"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}});
        let scaler = json!({"metadata": {"name": policy.to_lowercase()}, "spec": spec});
        let answer = api.post("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", scaler).await;
        assert_eq!(answer.code, code, "{policy}: {}", answer.message());
        api.delete(&format!("{VALIDATING}/v")).await;
    }
    let request = server.seen()[0].body["request"].clone();
    assert_eq!((&request["kind"]["version"], &request["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
    assert_eq!(request["object"]["apiVersion"], "autoscaling/v1");
}

#[tokio::test]
async fn a_custom_resource_is_shown_and_changed_in_the_version_that_the_rule_names() {
    let (server, api) = (server().await, Api::new().await);
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}}});
    let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": schema});
    let crd = json!({
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [version("v1", true), version("v2", false)],
        },
    });
    assert_eq!(api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd).await.code, 201);
    let widgets = "/apis/example.com/v2/namespaces/default/widgets";
    for _ in 0..100 {
        if api.get(widgets).await.code == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let rules = json!([{"operations": ["*"], "apiGroups": ["example.com"], "apiVersions": ["v1"], "resources": ["widgets"]}]);
    mutating(&api, "m", vec![hook(&server, "label.example.com", "/label/a", json!({"rules": rules}))]).await;
    let widget = json!({"apiVersion": "example.com/v2", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 1}});
    let made = api.post(widgets, widget).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let (request, object) = (server.seen()[0].body["request"].clone(), made.json());
    assert_eq!((&request["kind"]["version"], &request["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
    assert_eq!(request["object"]["apiVersion"], "example.com/v1");
    assert_eq!((&object["apiVersion"], &object["metadata"]["labels"]["a"]), (&json!("example.com/v2"), &json!("")));
    assert_eq!(object["spec"]["size"], 1);
}
