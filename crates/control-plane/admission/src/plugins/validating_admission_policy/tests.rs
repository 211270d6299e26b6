use super::*;
use crate::fixture::{Objects, run, write};

fn policy(spec: Value) -> Value {
    let mut spec = spec;
    let rule = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]});
    spec["matchConstraints"] = json!({"resourceRules": [rule]});
    json!({"kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"}, "spec": spec})
}

fn binding(spec: Value) -> Value {
    let mut spec = spec;
    spec["policyName"] = "p".into();
    json!({"metadata": {"name": "b"}, "spec": spec})
}

/// The verdict on a pod labelled `app: web`, its warnings and its audit annotations.
async fn judged(policy: Value, binding: Value) -> (Result<(), String>, Vec<String>, Vec<(String, String)>) {
    let objects = Objects::default()
        .with("namespaces", json!({"metadata": {"name": "a", "labels": {"team": "t"}}}))
        .with("configmaps", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "a", "labels": {"x": "y"}}, "data": {"allowed": "web"}}))
        .with("validatingadmissionpolicies", policy)
        .with("validatingadmissionpolicybindings", binding);
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "a", "labels": {"app": "web"}}});
    let mut attributes = write(Operation::Create, "pods", "Pod", object);
    let verdict = run(ValidatingAdmissionPolicy::default(), objects, &mut attributes).await;
    (verdict, attributes.notes.take_warnings(), attributes.notes.take_annotations())
}

#[tokio::test]
async fn validations_deny_in_upstreams_words() {
    let denied = |why: &str| Err(format!("pods \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: {why}"));
    let one = |validation: Value| json!({"validations": [validation]});
    let cases = [
        (one(json!({"expression": "object.metadata.labels.app == 'web'"})), Ok(())),
        (one(json!({"expression": "object.metadata.labels.app == 'db'"})), denied("failed expression: object.metadata.labels.app == 'db'")),
        (one(json!({"expression": "false", "message": "no"})), denied("no")),
        (one(json!({"expression": "false", "message": "no", "messageExpression": "'no ' + object.metadata.name"})), denied("no x")),
        (
            one(json!({"expression": "object.spec.replicas > 1"})),
            denied("expression 'object.spec.replicas > 1' resulted in error: no such key: spec"),
        ),
        (json!({"validations": [{"expression": "object.spec.replicas > 1"}], "failurePolicy": "Ignore"}), Ok(())),
        (
            json!({"variables": [{"name": "app", "expression": "object.metadata.labels.app"}], "validations": [{"expression": "variables.app == 'db'", "messageExpression": "'app is ' + variables.app"}]}),
            denied("app is web"),
        ),
        (
            json!({"matchConditions": [{"name": "n", "expression": "request.name != 'x'"}], "validations": [{"expression": "false"}]}),
            Ok(()),
        ),
        (one(json!({"expression": "namespaceObject.metadata.labels.team == 'other'", "message": "team"})), denied("team")),
        (
            one(json!({"expression": "authorizer.group('').resource('pods').check('delete').allowed()", "message": "rights"})),
            denied("rights"),
        ),
    ];
    for (spec, expected) in cases {
        let (verdict, ..) = judged(policy(spec.clone()), binding(json!({"validationActions": ["Deny"]}))).await;
        assert_eq!(verdict, expected, "{spec}");
    }
}

#[tokio::test]
async fn a_binding_says_what_a_failure_does() {
    let failing = || {
        policy(
            json!({"validations": [{"expression": "false", "message": "no"}], "auditAnnotations": [{"key": "k", "valueExpression": "'v ' + object.metadata.name"}]}),
        )
    };
    let (verdict, warnings, notes) = judged(failing(), binding(json!({"validationActions": ["Warn", "Audit"]}))).await;
    assert_eq!(verdict, Ok(()));
    assert_eq!(warnings, ["Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': no"]);
    let said: BTreeMap<String, String> = notes.into_iter().collect();
    assert_eq!(said["p/k"], "v x");
    let failures: Value = serde_json::from_str(&said["validation.policy.admission.k8s.io/validation_failure"]).expect("JSON");
    assert_eq!(failures[0]["message"], "no");
    let elsewhere = json!({"validationActions": ["Deny"], "matchResources": {"namespaceSelector": {"matchLabels": {"team": "other"}}}});
    assert_eq!(judged(failing(), binding(elsewhere)).await.0, Ok(()));
}

#[tokio::test]
async fn parameters_come_from_the_binding() {
    let with_params = || {
        policy(json!({
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "validations": [{"expression": "object.metadata.labels.app == params.data.allowed", "message": "app"}],
        }))
    };
    let refused = |why: &str| Err(format!("pods \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: {why}"));
    let none = refused("failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction");
    let cases = [
        (json!({"name": "c", "parameterNotFoundAction": "Deny"}), Ok(())),
        (json!({"selector": {"matchLabels": {"x": "y"}}, "parameterNotFoundAction": "Deny"}), Ok(())),
        (json!({"name": "gone", "parameterNotFoundAction": "Deny"}), none),
        (json!({"name": "gone", "parameterNotFoundAction": "Allow"}), Ok(())),
    ];
    for (reference, expected) in cases {
        let (verdict, ..) = judged(with_params(), binding(json!({"validationActions": ["Deny"], "paramRef": reference}))).await;
        assert_eq!(verdict, expected, "{reference}");
    }
}

#[tokio::test]
async fn a_policy_that_does_not_compile_is_not_taken() {
    let cases = [
        (
            json!({"validations": [{"expression": "object.x =="}]}),
            "spec.validations[0].expression: Invalid value: \"object.x ==\": compilation failed: ERROR: <input>:1:12: Syntax error",
        ),
        (
            json!({"validations": [{"expression": "'text'"}]}),
            "spec.validations[0].expression: Invalid value: \"'text'\": must evaluate to bool",
        ),
        (json!({"validations": [{"expression": "params.x"}]}), "undeclared reference to 'params'"),
        (
            json!({"validations": [{"expression": "true"}], "variables": [{"name": "a", "expression": "variables.b"}]}),
            "spec.variables[0].expression",
        ),
    ];
    for (spec, expected) in cases {
        let mut attributes = write(Operation::Create, "validatingadmissionpolicies", "ValidatingAdmissionPolicy", policy(spec.clone()));
        attributes.gvk.group = "admissionregistration.k8s.io".into();
        let refused = run(ValidatingAdmissionPolicy::default(), Objects::default(), &mut attributes).await.expect_err("refused");
        assert!(refused.contains(expected), "{spec}: {refused}");
    }
}
