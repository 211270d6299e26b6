//! Policies in CEL and quotas against the whole server.

mod harness;

use harness::{Api, admin};
use serde_json::{Value, json};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn make(api: &Api, path: &str, object: Value) {
    let answer = api.post(path, object).await;
    assert_eq!(answer.code, 201, "{}", answer.message());
    // Admission reads the watch cache, which follows the store.
    assert_eq!(api.get(&format!("{path}?resourceVersion={}", answer.version())).await.code, 200);
}

fn deployment(name: &str, replicas: i64) -> Value {
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}}, "template": template}})
}

fn constraints(resources: &[&str]) -> Value {
    json!({"resourceRules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": resources}]})
}

#[tokio::test]
async fn a_validating_policy_denies_and_warns() {
    let api = Api::new().await;
    let spec = json!({
        "matchConstraints": constraints(&["deployments"]),
        "validations": [{"expression": "object.spec.replicas <= 5", "messageExpression": "'replicas must be no greater than 5, but is ' + string(object.spec.replicas)"}],
    });
    make(&api, &format!("{GROUP}/validatingadmissionpolicies"), json!({"metadata": {"name": "few"}, "spec": spec})).await;
    let spec = json!({"policyName": "few", "validationActions": ["Deny"]});
    make(&api, &format!("{GROUP}/validatingadmissionpolicybindings"), json!({"metadata": {"name": "all"}, "spec": spec})).await;
    assert_eq!(api.post(DEPLOYMENTS, deployment("small", 5)).await.code, 201);
    let refused = api.post(DEPLOYMENTS, deployment("large", 6)).await;
    let why = "deployments.apps \"large\" is forbidden: ValidatingAdmissionPolicy 'few' with binding 'all' denied request: replicas must be no greater than 5, but is 6";
    assert_eq!((refused.code, refused.message().as_str(), refused.json()["reason"].as_str()), (422, why, Some("Invalid")));
    let warn = api.merge(&format!("{GROUP}/validatingadmissionpolicybindings/all"), json!({"spec": {"validationActions": ["Warn"]}})).await;
    assert_eq!(api.get(&format!("{GROUP}/validatingadmissionpolicybindings?resourceVersion={}", warn.version())).await.code, 200);
    let warned = api.post(DEPLOYMENTS, deployment("large", 6)).await;
    assert_eq!(warned.code, 201);
    assert!(
        warned.warnings()[0].contains("Validation failed for ValidatingAdmissionPolicy 'few' with binding 'all'"),
        "{:?}",
        warned.warnings()
    );
}

#[tokio::test]
async fn a_policy_asks_for_the_writers_rights() {
    let api = Api::new().await;
    let spec = json!({
        "matchConstraints": constraints(&["deployments"]),
        "validations": [{"expression": "authorizer.group('apps').resource('deployments').namespace('default').check('delete').allowed()", "message": "deleters only"}],
    });
    make(&api, &format!("{GROUP}/validatingadmissionpolicies"), json!({"metadata": {"name": "rights"}, "spec": spec})).await;
    let spec = json!({"policyName": "rights", "validationActions": ["Deny"]});
    make(&api, &format!("{GROUP}/validatingadmissionpolicybindings"), json!({"metadata": {"name": "all"}, "spec": spec})).await;
    let rules = json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["create"]}]);
    make(&api, "/apis/rbac.authorization.k8s.io/v1/clusterroles", json!({"metadata": {"name": "maker"}, "rules": rules})).await;
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "maker"});
    let subject = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}]);
    make(
        &api,
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        json!({"metadata": {"name": "maker"}, "roleRef": role, "subjects": subject}),
    )
    .await;
    for (user, code) in [(admin(), 201), (auth::UserInfo::authenticated("ann", &[]), 422)] {
        let request = http::Request::builder().method("POST").uri(DEPLOYMENTS).header("content-type", "application/json");
        let body = harness::body(deployment(&format!("d-{}", user.username), 1).to_string());
        let answer = api.send(request.body(body).unwrap(), user.clone()).await;
        assert_eq!(answer.code, code, "{}: {}", user.username, answer.message());
    }
}

#[tokio::test]
async fn a_mutating_policy_applies_and_patches() {
    let api = Api::new().await;
    let apply = "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'sidecar', image: 'proxy'}]}}}}";
    let patch = "[JSONPatch{op: 'add', path: '/metadata/annotations', value: {'made-by': request.userInfo.username}}]";
    let spec = json!({
        "matchConstraints": constraints(&["deployments"]),
        "reinvocationPolicy": "Never",
        "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression": patch}},
        ],
    });
    make(&api, &format!("{GROUP}/mutatingadmissionpolicies"), json!({"metadata": {"name": "sidecar"}, "spec": spec})).await;
    make(
        &api,
        &format!("{GROUP}/mutatingadmissionpolicybindings"),
        json!({"metadata": {"name": "all"}, "spec": {"policyName": "sidecar"}}),
    )
    .await;
    let made = api.post(DEPLOYMENTS, deployment("d", 1)).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let containers = made.json()["spec"]["template"]["spec"]["containers"].clone();
    let names: Vec<&str> = containers.as_array().unwrap().iter().filter_map(|container| container["name"].as_str()).collect();
    assert_eq!(names, ["c", "sidecar"]);
    assert_eq!(containers[1]["imagePullPolicy"], "Always", "what a policy adds gets its defaults");
    assert_eq!(made.json()["metadata"]["annotations"]["made-by"], "admin");
}

#[tokio::test]
async fn concurrent_creations_never_exceed_a_quota() {
    let api = std::sync::Arc::new(Api::new().await);
    make(&api, "/api/v1/namespaces/default/resourcequotas", json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "5"}}}))
        .await;
    let status = json!({"status": {"hard": {"configmaps": "5"}, "used": {"configmaps": "0"}}});
    let told = api.merge("/api/v1/namespaces/default/resourcequotas/q/status", status).await;
    assert_eq!(api.get(&format!("/api/v1/namespaces/default/resourcequotas?resourceVersion={}", told.version())).await.code, 200);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let api = api.clone();
        tasks.spawn(async move {
            let answer = api.post("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": format!("c{number}")}})).await;
            (answer.code, answer.message())
        });
    }
    let answers = tasks.join_all().await;
    assert_eq!(answers.iter().filter(|(code, _)| *code == 201).count(), 5, "{answers:?}");
    let refused = answers.iter().find(|(code, _)| *code != 201).unwrap();
    assert!(
        refused.1.ends_with("is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=5, limited: configmaps=5"),
        "{}",
        refused.1
    );
    let quota = api.get("/api/v1/namespaces/default/resourcequotas/q").await.json();
    assert_eq!(quota["status"]["used"]["configmaps"], "5");
}

/// The status of a policy once its newest generation was looked at.
async fn checked(api: &Api, name: &str) -> Value {
    for _ in 0..200 {
        let policy = api.get(&format!("{GROUP}/validatingadmissionpolicies/{name}")).await.json();
        if policy["status"]["observedGeneration"] == policy["metadata"]["generation"] {
            return policy["status"]["typeChecking"].clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{name} was never looked at");
}

#[tokio::test]
async fn a_policys_status_tells_what_its_expressions_have_against_the_types() {
    let api = Api::new().await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}, "when": {"type": "string", "format": "date-time"}}}}});
    let crd = json!({
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    });
    make(&api, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd).await;
    for _ in 0..200 {
        if api.get("/apis/example.com/v1/widgets").await.code == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let (apps, widgets) = (["apps", "deployments"], ["example.com", "widgets"]);
    // Each with the warnings that are expected: the field and a part of the sentence.
    let cases: [(&str, [&str; 2], Value, Vec<(&str, &str)>); 6] = [
        ("fine", apps, json!([{"expression": "object.spec.replicas > 1 && request.namespace != '' && params == null"}]), vec![]),
        (
            "wrong-type",
            apps,
            json!([{"expression": "object.spec.replicas > '1'"}]),
            vec![(
                "spec.validations[0].expression",
                "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'",
            )],
        ),
        (
            "no-field",
            apps,
            json!([{"expression": "true"}, {"expression": "object.spec.maxRetries < 10", "messageExpression": "string(object.spec.no)"}]),
            vec![
                ("spec.validations[1].expression", "undefined field 'maxRetries'"),
                ("spec.validations[1].messageExpression", "undefined field 'no'"),
            ],
        ),
        (
            "variable",
            apps,
            json!([{"expression": "variables.replicas == 'x'"}]),
            vec![("spec.validations[0].expression", "found no matching overload for '_==_' applied to '(int, string)'")],
        ),
        (
            "custom",
            widgets,
            json!([{"expression": "object.spec.size > 1 && object.spec.when < timestamp('2030-01-01T00:00:00Z') && object.metadata.labels.size() > 0"}]),
            vec![],
        ),
        (
            "custom-wrong",
            widgets,
            json!([{"expression": "object.spec.sise > 1"}]),
            vec![("spec.validations[0].expression", "example.com/v1, Kind=Widget: ERROR: <input>:1:12: undefined field 'sise'")],
        ),
    ];
    for (name, [group, resource], validations, expected) in cases {
        let rule = json!({"operations": ["CREATE"], "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource]});
        let spec = json!({
            "matchConstraints": {"resourceRules": [rule]}, "validations": validations, "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "variables": [{"name": "replicas", "expression": if group == "apps" { "object.spec.replicas" } else { "1" }}],
        });
        make(&api, &format!("{GROUP}/validatingadmissionpolicies"), json!({"metadata": {"name": name}, "spec": spec})).await;
        let said = checked(&api, name).await;
        let warnings = said["expressionWarnings"].as_array().cloned().unwrap_or_default();
        assert_eq!(warnings.len(), expected.len(), "{name}: {said}");
        for (warning, (field, part)) in warnings.iter().zip(expected) {
            assert_eq!(warning["fieldRef"], field, "{name}");
            assert!(warning["warning"].as_str().unwrap().contains(part), "{name}: {warning}");
        }
    }
}
