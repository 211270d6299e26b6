//! What users get wrong: refused by name of object and field, with nothing half-made.

use std::process::Command;

use cluster::Namespace;
use serde_json::Value;

/// Sends a body as it is, past kubectl's own checks; returns the answer.
fn post(ns: &Namespace, path: &str, content_type: &str, body: &str) -> Value {
    let token = ns.cluster.kubectl(&["create", "token", "-n", "kube-system", "stest-admin"]);
    let token = if token.succeeded() { token.ok() } else { admin_token(ns) };
    let url = format!("{}{path}", ns.cluster.server());
    let header = format!("Authorization: Bearer {}", token.trim());
    let content = format!("Content-Type: {content_type}");
    let mut curl = Command::new("curl");
    curl.args(["-sk", "-H", &header, "-H", &content, "--data-binary", "@-", &url]);
    let answer = cluster::run(&mut curl, body).ok();
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"))
}

fn admin_token(ns: &Namespace) -> String {
    // Two tests may do this at once: that it exists already is fine.
    ns.cluster.kubectl(&["create", "serviceaccount", "-n", "kube-system", "stest-admin"]);
    let binding =
        ["create", "clusterrolebinding", "stest-admin", "--clusterrole=cluster-admin", "--serviceaccount=kube-system:stest-admin"];
    ns.cluster.kubectl(&binding);
    ns.cluster.kubectl(&["create", "token", "-n", "kube-system", "stest-admin"]).ok()
}

#[test]
fn malformed_json_and_yaml_are_bad_requests() {
    let ns = Namespace::new("malformed");
    let path = format!("/api/v1/namespaces/{}/configmaps", ns.name);
    for (content_type, body) in [
        ("application/json", r#"{"kind":"ConfigMap","#),
        ("application/json", "[1,2]"),
        ("application/json", ""),
        ("application/yaml", "a: [b\nc"),
        ("application/vnd.kubernetes.protobuf", "k8s\0rubbish"),
        ("application/vnd.kubernetes.protobuf", "rubbish"),
    ] {
        let status = post(&ns, &path, content_type, body);
        assert_eq!((&status["kind"], &status["status"]), (&"Status".into(), &"Failure".into()), "{content_type} {body:?}: {status}");
        assert_eq!(status["code"], 400, "{content_type} {body:?}: {status}");
        assert_eq!(status["reason"], "BadRequest", "{content_type} {body:?}: {status}");
    }
    let status = post(&ns, &path, "text/plain", "hello");
    assert_eq!((&status["code"], &status["reason"]), (&415.into(), &"UnsupportedMediaType".into()), "{status}");
    let deep = "[".repeat(100_000);
    let status = post(&ns, &path, "application/json", &deep);
    assert_eq!(status["code"], 400, "{status}");
    assert_eq!(ns.kubectl(&["get", "configmaps", "-o", "name"]).ok().lines().filter(|line| !line.contains("kube-root-ca")).count(), 0);
    let local = ns.kubectl_with(&["apply", "-f", "-"], "a: [b\nc").fails();
    assert!(local.contains("error"), "{local}");
}

const POD: &str =
    r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"one"},"spec":{"containers":[{"name":"main","image":"sternpost.io/toolbox"}]}}"#;

#[test]
fn an_unknown_field_warns_or_fails_as_asked() {
    let ns = Namespace::new("unknown");
    let manifest = POD.replace(r#""name":"main","#, r#""name":"main","imagePolicy":"x","#);
    let strict = ns.kubectl_with(&["create", "-f", "-"], &manifest).fails();
    assert!(strict.contains("strict decoding error") && strict.contains(r#"unknown field "spec.containers[0].imagePolicy""#), "{strict}");
    ns.kubectl(&["get", "pod", "one"]).fails();
    let warned = ns.kubectl_with(&["create", "--validate=warn", "-f", "-"], &manifest);
    assert!(warned.succeeded() && warned.stderr.contains(r#"Warning: unknown field "spec.containers[0].imagePolicy""#), "{warned}");
    ns.kubectl(&["delete", "pod", "one", "--grace-period=0", "--force"]).ok();
    let ignored = ns.kubectl_with(&["create", "--validate=ignore", "-f", "-"], &manifest);
    assert!(ignored.succeeded() && !ignored.stderr.contains("unknown field"), "{ignored}");
    let duplicate = POD.replace(r#""name":"main","#, r#""name":"main","name":"again","#);
    let path = format!("/api/v1/namespaces/{}/pods?fieldValidation=Strict", ns.name);
    let status = post(&ns, &path, "application/json", &duplicate);
    assert!(status["message"].as_str().is_some_and(|text| text.contains(r#"duplicate field "spec.containers[0].name""#)), "{status}");
}

#[test]
fn a_wrong_type_names_the_field() {
    let ns = Namespace::new("types");
    let path = format!("/api/v1/namespaces/{}/pods", ns.name);
    for (from, to, field) in [
        (r#""containers":["#, r#""hostNetwork":"perhaps","containers":["#, "hostNetwork"),
        (r#""name":"main""#, r#""name":7"#, "name"),
        (r#""containers":["#, r#""nodeSelector":["a"],"containers":["#, "nodeSelector"),
        (r#""name":"main""#, r#""name":"main","ports":[{"containerPort":"http"}]"#, "containerPort"),
    ] {
        let status = post(&ns, &path, "application/json", &POD.replace(from, to));
        assert_eq!((&status["kind"], &status["code"]), (&"Status".into(), &400.into()), "{field}: {status}");
        assert!(status["message"].as_str().is_some_and(|text| text.contains(field)), "{field}: {status}");
    }
    assert_eq!(ns.kubectl(&["get", "pods", "-o", "name"]).ok(), "");
}

#[test]
fn an_invalid_object_lists_every_fault_with_its_field() {
    let ns = Namespace::new("invalid");
    let manifest = POD
        .replace(r#""name":"main""#, r#""name":"Main_1","ports":[{"containerPort":70000}]"#)
        .replace(r#""containers""#, r#""restartPolicy":"Sometimes","containers""#);
    let refused = ns.kubectl_with(&["create", "-f", "-"], &manifest).fails();
    assert!(refused.contains(r#"The Pod "one" is invalid"#), "{refused}");
    for text in [
        r#"spec.containers[0].name: Invalid value: "Main_1""#,
        r#"spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"#,
        r#"spec.restartPolicy: Unsupported value: "Sometimes""#,
    ] {
        assert!(refused.contains(text), "{text}: {refused}");
    }
    let path = format!("/api/v1/namespaces/{}/pods", ns.name);
    let status = post(&ns, &path, "application/json", &manifest);
    assert_eq!(
        (&status["code"], &status["reason"], &status["details"]["kind"], &status["details"]["name"]),
        (&422.into(), &"Invalid".into(), &"Pod".into(), &"one".into()),
        "{status}"
    );
    let fields: Vec<&str> =
        status["details"]["causes"].as_array().expect("causes").iter().filter_map(|cause| cause["field"].as_str()).collect();
    assert!(fields.contains(&"spec.containers[0].name") && fields.contains(&"spec.restartPolicy"), "{status}");
    assert_eq!(ns.kubectl(&["get", "pods", "-o", "name"]).ok(), "");
}

#[test]
fn a_service_with_a_taken_node_port_or_a_foreign_address_is_refused() {
    let ns = Namespace::new("service-bad");
    let service = |name: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: NodePort, ports: [{{port: 80, nodePort: 31999}}]{more}}}\n"
        )
    };
    ns.apply(&service("one", ""));
    let refused = ns.kubectl_with(&["create", "-f", "-"], &service("two", "")).fails();
    assert!(refused.contains("spec.ports[0].nodePort: Invalid value: 31999: provided port is already allocated"), "{refused}");
    let refused = ns.kubectl_with(&["create", "-f", "-"], &service("three", ", clusterIP: 192.0.2.7").replace("31999", "31998")).fails();
    assert!(refused.contains("192.0.2.7") && refused.contains("spec.clusterIPs"), "{refused}");
    let refused = ns.kubectl_with(&["create", "-f", "-"], &service("four", "").replace("31999", "80")).fails();
    assert!(refused.contains("80") && refused.contains("30000-32767"), "{refused}");
    assert_eq!(ns.kubectl(&["get", "services", "-o", "name"]).ok(), "service/one\n");
}

#[test]
fn what_exists_already_and_what_never_did_are_told_apart() {
    let ns = Namespace::new("exists");
    ns.kubectl(&["create", "configmap", "a"]).ok();
    let refused = ns.kubectl(&["create", "configmap", "a"]).fails();
    assert!(refused.contains(r#"configmaps "a" already exists"#), "{refused}");
    let refused = ns.kubectl(&["get", "configmap", "b"]).fails();
    assert!(refused.contains(r#"Error from server (NotFound): configmaps "b" not found"#), "{refused}");
    let refused = ns.kubectl(&["get", "gadgets"]).fails();
    assert!(refused.contains(r#"the server doesn't have a resource type "gadgets""#), "{refused}");
    let immutable = ns.kubectl(&["create", "deployment", "web", "--image=sternpost.io/toolbox", "--replicas=0"]);
    immutable.ok();
    let refused = ns.kubectl(&["patch", "deployment", "web", "-p", r#"{"spec":{"selector":{"matchLabels":{"app":"other"}}}}"#]).fails();
    assert!(
        refused.contains("spec.selector") && refused.contains("field is immutable")
            || refused.contains("`selector` does not match template `labels`"),
        "{refused}"
    );
}
