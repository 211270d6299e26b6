//! What policies in CEL are given and say, in tables against the real server: parameters, selectors, messages, annotations.

mod harness;

use harness::cases::{make, namespace};
use harness::{Answer, Api};
use serde_json::{Value, json};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

/// Objects are merged: what a case says goes over what every policy says.
fn over(mut base: Value, more: Value) -> Value {
    base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    base
}

async fn policy(api: &Api, name: &str, spec: Value) {
    let rules = json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]);
    let spec = over(json!({"matchConstraints": {"resourceRules": rules}}), spec);
    make(api, &format!("{GROUP}/validatingadmissionpolicies"), json!({"metadata": {"name": name}, "spec": spec})).await;
}

async fn binding(api: &Api, name: &str, policy: &str, spec: Value) {
    let spec = over(json!({"policyName": policy, "validationActions": ["Deny"]}), spec);
    make(api, &format!("{GROUP}/validatingadmissionpolicybindings"), json!({"metadata": {"name": name}, "spec": spec})).await;
}

/// Takes away the binding and whatever else a case made.
async fn clear(api: &Api, paths: &[String]) {
    for path in paths {
        let answer = api.delete(path).await;
        assert_eq!(answer.code, 200, "{path}: {}", answer.message());
    }
}

async fn create(api: &Api, place: &str, name: &str, data: Value) -> Answer {
    api.post(&format!("/api/v1/namespaces/{place}/configmaps"), json!({"metadata": {"name": name}, "data": data})).await
}

fn said(answer: &Answer) -> (u16, String) {
    let message = answer.message();
    (answer.code, message.split_once("denied request: ").map_or(message.clone(), |(_, why)| why.to_owned()))
}

#[tokio::test]
async fn parameters_are_found_by_name_selector_and_namespace_or_their_absence_has_its_meaning() {
    let api = Api::new().await;
    namespace(&api, "a", json!({}), json!({})).await;
    namespace(&api, "limits", json!({}), json!({})).await;
    let limit = |name: &str, most: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}, "data": {"most": most}});
    make(&api, "/api/v1/namespaces/limits/configmaps", limit("two", "2", json!({"for": "all", "size": "s"}))).await;
    make(&api, "/api/v1/namespaces/limits/configmaps", limit("four", "4", json!({"for": "all"}))).await;
    make(&api, "/api/v1/namespaces/a/configmaps", limit("own", "1", json!({}))).await;
    let kind = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    let validation = json!({"expression": "size(object.data) <= int(params.data.most)",
        "messageExpression": "'at most ' + params.data.most + ' (' + params.metadata.name + ')'"});
    policy(&api, "few", json!({"paramKind": kind, "validations": [validation]})).await;
    let three = json!({"x": "1", "y": "2", "z": "3"});
    let deny = |reference: Value| over(json!({"parameterNotFoundAction": "Deny"}), reference);
    let nothing = "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    let cases = [
        ("by name", deny(json!({"name": "two", "namespace": "limits"})), 422, "at most 2 (two)"),
        ("another", deny(json!({"name": "four", "namespace": "limits"})), 201, ""),
        ("in the write's own namespace", deny(json!({"name": "own"})), 422, "at most 1 (own)"),
        (
            "by selector, one of two holds",
            deny(json!({"selector": {"matchLabels": {"for": "all"}}, "namespace": "limits"})),
            422,
            "at most 2 (two)",
        ),
        (
            "by selector, the other",
            deny(json!({"selector": {"matchExpressions": [{"key": "size", "operator": "DoesNotExist"}]}, "namespace": "limits"})),
            201,
            "",
        ),
        ("none there, refused", deny(json!({"name": "gone", "namespace": "limits"})), 422, nothing),
        ("none selected, refused", deny(json!({"selector": {"matchLabels": {"for": "nobody"}}, "namespace": "limits"})), 422, nothing),
        ("none there, allowed", json!({"name": "gone", "namespace": "limits", "parameterNotFoundAction": "Allow"}), 201, ""),
    ];
    for (case, reference, code, why) in cases {
        binding(&api, "b", "few", json!({"paramRef": reference})).await;
        let answer = create(&api, "a", "m", three.clone()).await;
        assert_eq!((said(&answer).0, answer.code != 201 && !said(&answer).1.contains(why)), (code, false), "{case}: {:?}", said(&answer));
        let mut made = vec![format!("{GROUP}/validatingadmissionpolicybindings/b")];
        if answer.code == 201 {
            made.push("/api/v1/namespaces/a/configmaps/m".into());
        }
        clear(&api, &made).await;
    }
    let invalid = [
        json!({"name": "two", "selector": {}, "parameterNotFoundAction": "Deny"}),
        json!({"parameterNotFoundAction": "Deny"}),
        json!({"name": "two", "parameterNotFoundAction": "Maybe"}),
    ];
    for reference in invalid {
        let spec = json!({"policyName": "few", "validationActions": ["Deny"], "paramRef": reference});
        let answer =
            api.post(&format!("{GROUP}/validatingadmissionpolicybindings"), json!({"metadata": {"name": "w"}, "spec": spec})).await;
        assert_eq!(answer.code, 422, "{reference}");
    }
}

#[tokio::test]
async fn a_parameter_of_a_cluster_wide_kind_has_no_namespace() {
    let api = Api::new().await;
    namespace(&api, "a", json!({}), json!({})).await;
    let kind = json!({"apiVersion": "v1", "kind": "Namespace"});
    let validation = json!({"expression": "object.metadata.name.startsWith(params.metadata.name)", "message": "not its prefix"});
    policy(&api, "prefix", json!({"paramKind": kind, "validations": [validation]})).await;
    binding(&api, "b", "prefix", json!({"paramRef": {"name": "kube-system", "parameterNotFoundAction": "Deny"}})).await;
    assert_eq!(said(&create(&api, "a", "m", json!({})).await), (422, "not its prefix".into()));
    assert_eq!(create(&api, "a", "kube-system-m", json!({})).await.code, 201);
    clear(&api, &[format!("{GROUP}/validatingadmissionpolicybindings/b")]).await;
    binding(&api, "b", "prefix", json!({"paramRef": {"name": "kube-system", "namespace": "a", "parameterNotFoundAction": "Deny"}})).await;
    let why = "failed to configure binding: paramRef.namespace must not be provided for a cluster-scoped `paramKind`";
    assert_eq!(said(&create(&api, "a", "m", json!({})).await), (422, why.into()));
}

#[tokio::test]
async fn selectors_conditions_and_exclusions_choose_the_writes_of_a_policy_and_of_its_binding() {
    let api = Api::new().await;
    namespace(&api, "prod", json!({"env": "prod"}), json!({})).await;
    namespace(&api, "test", json!({"env": "test"}), json!({})).await;
    let rules = |resources: Value| json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": resources}]);
    let by_label = json!({"matchLabels": {"env": "prod"}});
    let object = json!({"matchLabels": {"judged": "yes"}});
    let named = json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "resourceNames": ["free"]}]);
    let constraints = |more: Value| json!({"matchConstraints": over(json!({"resourceRules": rules(json!(["configmaps"]))}), more)});
    let condition = json!([{"name": "not-skipped", "expression": "!object.metadata.name.startsWith('skip')"}]);
    let in_namespace = json!([{"name": "prod", "expression": "namespaceObject.metadata.labels['env'] == 'prod'"}]);
    // What the policy says, what its binding says, the namespace, the name, whether the write is judged.
    let cases = [
        ("everything", json!({}), json!({}), "test", "m", true),
        ("the policy's namespaces", constraints(json!({"namespaceSelector": by_label})), json!({}), "prod", "m", true),
        ("others", constraints(json!({"namespaceSelector": by_label})), json!({}), "test", "m", false),
        ("the binding's namespaces", json!({}), json!({"matchResources": {"namespaceSelector": by_label}}), "prod", "m", true),
        ("others than the binding's", json!({}), json!({"matchResources": {"namespaceSelector": by_label}}), "test", "m", false),
        ("objects without the label", constraints(json!({"objectSelector": object})), json!({}), "test", "m", false),
        ("the binding's rules", json!({}), json!({"matchResources": {"resourceRules": rules(json!(["secrets"]))}}), "test", "m", false),
        ("an excluded name", constraints(json!({"excludeResourceRules": named})), json!({}), "test", "free", false),
        ("beside it", constraints(json!({"excludeResourceRules": named})), json!({}), "test", "m", true),
        ("a condition that holds", json!({"matchConditions": condition}), json!({}), "test", "m", true),
        ("one that does not", json!({"matchConditions": condition}), json!({}), "test", "skip-m", false),
        ("a condition on the namespace", json!({"matchConditions": in_namespace}), json!({}), "prod", "m", true),
        ("another namespace", json!({"matchConditions": in_namespace}), json!({}), "test", "m", false),
    ];
    for (case, spec, bound, place, name, judged) in cases {
        policy(&api, "p", over(json!({"validations": [{"expression": "false", "message": "no"}]}), spec)).await;
        binding(&api, "b", "p", bound).await;
        let answer = create(&api, place, name, json!({})).await;
        assert_eq!(answer.code, if judged { 422 } else { 201 }, "{case}: {}", answer.message());
        let mut made = ["policybindings/b", "policies/p"].map(|end| format!("{GROUP}/validatingadmission{end}")).to_vec();
        if !judged {
            made.push(format!("/api/v1/namespaces/{place}/configmaps/{name}"));
        }
        clear(&api, &made).await;
    }
}

#[tokio::test]
async fn what_is_said_follows_message_expression_reason_and_failure_policy() {
    let api = Api::new().await;
    namespace(&api, "a", json!({}), json!({})).await;
    let long = "'x'.replace('x', 'yyyyyyyyyyyyyyyy')";
    let cases = [
        ("an expression", json!({"expression": "false"}), json!({}), 422, "failed expression: false"),
        ("a message", json!({"expression": "false", "message": "plain"}), json!({}), 422, "plain"),
        (
            "a message that is made",
            json!({"expression": "false", "message": "plain", "messageExpression": "'not ' + object.metadata.name"}),
            json!({}),
            422,
            "not m",
        ),
        (
            "one that cannot be made",
            json!({"expression": "false", "message": "plain", "messageExpression": "object.data.absent"}),
            json!({}),
            422,
            "plain",
        ),
        ("an empty one", json!({"expression": "false", "message": "plain", "messageExpression": "'  '"}), json!({}), 422, "plain"),
        ("of two lines", json!({"expression": "false", "message": "plain", "messageExpression": "'a\\nb'"}), json!({}), 422, "plain"),
        ("a long one", json!({"expression": "false", "messageExpression": long}), json!({}), 422, "yyyyyyyyyyyyyyyy"),
        ("Forbidden", json!({"expression": "false", "message": "no", "reason": "Forbidden"}), json!({}), 403, "no"),
        ("Unauthorized", json!({"expression": "false", "message": "no", "reason": "Unauthorized"}), json!({}), 401, "no"),
        ("too large", json!({"expression": "false", "message": "no", "reason": "RequestEntityTooLarge"}), json!({}), 413, "no"),
        ("a variable", json!({"expression": "variables.fits", "message": "does not fit"}), json!({}), 422, "does not fit"),
        (
            "a failure",
            json!({"expression": "object.data.absent == 'x'"}),
            json!({}),
            422,
            "expression 'object.data.absent == 'x'' resulted in error: no such key: absent",
        ),
        ("a failure that is ignored", json!({"expression": "object.data.absent == 'x'"}), json!({"failurePolicy": "Ignore"}), 201, ""),
    ];
    for (case, validation, more, code, expected) in cases {
        let spec = json!({"validations": [validation], "variables": [{"name": "fits", "expression": "size(object.data) > 5"}]});
        policy(&api, "p", over(spec, more)).await;
        binding(&api, "b", "p", json!({})).await;
        let answer = create(&api, "a", "m", json!({"k": "v"})).await;
        let why = if code == 201 { String::new() } else { said(&answer).1 };
        assert_eq!((answer.code, why.as_str()), (code, expected), "{case}");
        let mut made = ["policybindings/b", "policies/p"].map(|end| format!("{GROUP}/validatingadmission{end}")).to_vec();
        if code == 201 {
            made.push("/api/v1/namespaces/a/configmaps/m".into());
        }
        clear(&api, &made).await;
    }
}

#[tokio::test]
async fn what_a_policy_tells_the_audit_trail_is_written_there() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.log");
    let api = Api::with(apiserver::Config { audit_file: Some(file.clone()), ..apiserver::Config::default() }).await;
    namespace(&api, "a", json!({}), json!({})).await;
    let annotations = json!([
        {"key": "size", "valueExpression": "string(size(object.data))"},
        {"key": "silent", "valueExpression": "null"},
    ]);
    let validations = json!([{"expression": "size(object.data) < 2", "message": "many"}]);
    policy(&api, "p", json!({"validations": validations, "auditAnnotations": annotations})).await;
    binding(&api, "b", "p", json!({"validationActions": ["Audit", "Warn"]})).await;
    let answer = create(&api, "a", "m", json!({"x": "1", "y": "2"})).await;
    assert_eq!((answer.code, answer.warnings().len()), (201, 1), "{}", answer.message());
    let event = harness_event(&file, "m").await;
    assert_eq!(event["annotations"]["p/size"], "2");
    assert_eq!(event["annotations"].get("p/silent"), None, "null says nothing");
    let failure: Value =
        serde_json::from_str(event["annotations"]["validation.policy.admission.k8s.io/validation_failure"].as_str().unwrap()).unwrap();
    let expected =
        json!([{"message": "many", "policy": "p", "binding": "b", "expressionIndex": 0, "validationActions": ["Audit", "Warn"]}]);
    let sorted = |value: &Value| {
        let mut value = value.clone();
        value[0]["validationActions"].as_array_mut().unwrap().sort_by_key(ToString::to_string);
        value
    };
    assert_eq!(sorted(&failure), sorted(&expected));
}

/// The line of the trail about the creation of a ConfigMap, once it is written.
async fn harness_event(file: &std::path::Path, name: &str) -> Value {
    for _ in 0..200 {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ours = |event: &Value| {
            event["verb"] == "create"
                && event["stage"] == "ResponseComplete"
                && event["objectRef"]["resource"] == "configmaps"
                && (event["objectRef"]["name"] == name || event["annotations"].get("p/size").is_some())
        };
        if let Some(event) = lines.filter(ours).last() {
            return event;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the trail never told of {name}")
}
