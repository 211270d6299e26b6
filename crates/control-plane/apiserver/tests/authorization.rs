//! Decisions of the whole server, one a line: who, verb, what, and the refusal (empty: allowed).

mod harness;

use auth::UserInfo;
use harness::{Answer, Api, body};
use http::Request;
use serde_json::{Value, json};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const GROUP: &str = "rbac.authorization.k8s.io";

async fn ask(api: &Api, user: UserInfo, method: &str, path: &str, content: Value) -> Answer {
    let content_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", content_type);
    api.send(request.body(body(content.to_string())).unwrap(), user).await
}

fn jane() -> UserInfo {
    UserInfo::authenticated("jane", &[])
}

fn node(name: &str) -> UserInfo {
    UserInfo::authenticated(&format!("system:node:{name}"), &["system:nodes"])
}

fn role(name: &str, rules: Value) -> Value {
    json!({"metadata": {"name": name}, "rules": rules})
}

fn bind(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({"metadata": {"name": name}, "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role},
        "subjects": [{"kind": "User", "apiGroup": GROUP, "name": user}]})
}

fn pods(verbs: &[&str]) -> Value {
    json!([{"verbs": verbs, "apiGroups": [""], "resources": ["pods"]}])
}

#[tokio::test]
async fn nobody_gives_away_more_than_they_have() {
    let api = Api::new().await;
    let may =
        json!([{"verbs": ["*"], "apiGroups": [GROUP], "resources": ["roles", "rolebindings", "clusterroles", "clusterrolebindings"]}]);
    let mut held = may.as_array().unwrap().clone();
    // All that there is but `escalate` and `bind`.
    held[0]["verbs"] = json!(["get", "list", "create", "update", "patch", "delete"]);
    held.extend(pods(&["get", "list"]).as_array().unwrap().clone());
    assert_eq!(api.post(&format!("{RBAC}/clusterroles"), role("author", json!(held))).await.code, 201);
    assert_eq!(api.post(&format!("{RBAC}/clusterrolebindings"), bind("author", "ClusterRole", "author", "jane")).await.code, 201);
    assert_eq!(api.post(&format!("{RBAC}/namespaces/default/roles"), role("known", pods(&["get"]))).await.code, 201);
    api.get(&format!("{RBAC}/clusterrolebindings")).await;
    let roles = "namespaces/default/roles";
    let bindings = "namespaces/default/rolebindings";
    let held = "user \"jane\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n";
    let gather = json!({"metadata": {"name": "gather"}, "rules": [],
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
    let cases = [
        ("POST", roles, role("a", pods(&["get"])), String::new()),
        (
            "POST",
            roles,
            role("b", pods(&["get", "delete", "create"])),
            format!(
                "roles.rbac.authorization.k8s.io \"b\" is forbidden: {held}{{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\" \"create\"]}}"
            ),
        ),
        (
            "PATCH",
            "namespaces/default/roles/a",
            json!({"rules": pods(&["watch"])}),
            format!(
                "roles.rbac.authorization.k8s.io \"a\" is forbidden: {held}{{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"watch\"]}}"
            ),
        ),
        ("PATCH", "namespaces/default/roles/a", json!({"metadata": {"labels": {"x": "y"}}}), String::new()),
        ("POST", bindings, bind("a", "Role", "known", "joe"), String::new()),
        ("POST", bindings, bind("c", "Role", "absent", "joe"), "roles.rbac.authorization.k8s.io \"absent\" not found".to_owned()),
        (
            "POST",
            "clusterrolebindings",
            bind("d", "ClusterRole", "system:kube-dns", "joe"),
            format!(
                "clusterrolebindings.rbac.authorization.k8s.io \"d\" is forbidden: {held}\
                 {{APIGroups:[\"\"], Resources:[\"endpoints\"], Verbs:[\"list\" \"watch\"]}}\n\
                 {{APIGroups:[\"\"], Resources:[\"services\"], Verbs:[\"list\" \"watch\"]}}\n\
                 {{APIGroups:[\"discovery.k8s.io\"], Resources:[\"endpointslices\"], Verbs:[\"list\" \"watch\"]}}"
            ),
        ),
        (
            "POST",
            "clusterroles",
            gather,
            "clusterroles.rbac.authorization.k8s.io \"gather\" is forbidden: must have cluster-admin privileges to use an aggregationRule"
                .to_owned(),
        ),
    ];
    for (method, path, content, refusal) in cases {
        let answer = ask(&api, jane(), method, &format!("{RBAC}/{path}"), content.clone()).await;
        assert_eq!(if answer.code < 300 { String::new() } else { answer.message() }, refusal, "{method} {path} {content}");
    }
}

/// A cluster with two nodes; pod `p` with secret `s` runs on n1.
async fn two_nodes() -> Api {
    let api = Api::new().await;
    for name in ["n1", "n2"] {
        assert_eq!(api.post("/api/v1/nodes", json!({"metadata": {"name": name}})).await.code, 201);
        let lease = json!({"metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": {"holderIdentity": name}});
        assert_eq!(api.post("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", lease).await.code, 201);
    }
    for secret in ["s", "other"] {
        assert_eq!(api.post("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": secret}})).await.code, 201);
    }
    assert_eq!(api.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await.code, 201);
    for (name, on, secret) in [("p", "n1", "s"), ("q", "n2", "other")] {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": on, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "secret": {"secretName": secret}}]}});
        let made = api.post("/api/v1/namespaces/default/pods", pod).await;
        assert_eq!(made.code, 201, "{}", made.message());
    }
    api.get("/api/v1/pods").await;
    api
}

#[tokio::test]
async fn a_kubelet_touches_only_what_belongs_to_its_node() {
    let api = two_nodes().await;
    let (core, leases) = ("/api/v1/namespaces/default", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases");
    let status = json!({"status": {"phase": "Running"}});
    let label = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    let cases = [
        ("GET", format!("{core}/secrets/s"), Value::Null, 200, ""),
        ("GET", format!("{core}/secrets/other"), Value::Null, 403, "no relationship found between node 'n1' and this object"),
        ("GET", format!("{core}/secrets"), Value::Null, 403, "No Object name found"),
        ("GET", "/api/v1/secrets".into(), Value::Null, 403, "can only read namespaced object of this type"),
        ("GET", format!("{core}/secrets?fieldSelector=metadata.name%3Ds"), Value::Null, 200, ""),
        ("DELETE", format!("{core}/secrets/s"), Value::Null, 403, "can only read resources of this type"),
        ("GET", "/api/v1/nodes/n1".into(), Value::Null, 200, ""),
        // Its pod network has routes to the other nodes.
        ("GET", "/api/v1/nodes/n2".into(), Value::Null, 200, ""),
        ("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1".into(), Value::Null, 200, ""),
        ("GET", "/api/v1/pods".into(), Value::Null, 403, "can only list/watch pods with spec.nodeName field selector"),
        ("GET", format!("{core}/pods/p"), Value::Null, 200, ""),
        ("GET", format!("{core}/pods/q"), Value::Null, 403, "no relationship found between node 'n1' and this object"),
        ("PATCH", format!("{core}/pods/p/status"), status.clone(), 200, ""),
        (
            "PATCH",
            format!("{core}/pods/q/status"),
            status.clone(),
            403,
            "can only update pod status for pods with spec.nodeName set to itself",
        ),
        ("PATCH", format!("{core}/pods/p"), label("a"), 403, "cannot patch resource \"pods\""),
        ("DELETE", format!("{core}/pods/q"), Value::Null, 403, "can only delete pods with spec.nodeName set to itself"),
        ("PATCH", "/api/v1/nodes/n1".into(), label("kubelet.kubernetes.io/a"), 200, ""),
        ("PATCH", "/api/v1/nodes/n1".into(), label("node-restriction.kubernetes.io/a"), 403, "is not allowed to modify labels"),
        ("PATCH", "/api/v1/nodes/n2".into(), label("a"), 403, "node \"n1\" is not allowed to modify node \"n2\""),
        ("DELETE", "/api/v1/nodes/n1".into(), Value::Null, 403, "cannot delete resource \"nodes\""),
        ("GET", format!("{leases}/n1"), Value::Null, 200, ""),
        ("GET", format!("{leases}/n2"), Value::Null, 403, "can only access node lease with the same name as the requesting node"),
        ("GET", format!("{leases}"), Value::Null, 403, "can only get, create, update, patch, or delete a node lease"),
        ("GET", format!("{core}/services"), Value::Null, 200, ""),
        ("GET", format!("{core}/endpoints/e"), Value::Null, 404, "not found"),
        ("GET", format!("{RBAC}/clusterroles"), Value::Null, 403, "cannot list resource \"clusterroles\""),
        ("POST", format!("{core}/configmaps"), json!({"metadata": {"name": "m"}}), 403, "can only read resources of this type"),
    ];
    for (method, path, content, code, words) in cases {
        let answer = ask(&api, node("n1"), method, &path, content).await;
        assert_eq!(answer.code, code, "{method} {path}: {}", answer.message());
        assert!(answer.message().contains(words), "{method} {path}: {}", answer.message());
    }
    assert_eq!(api.delete(&format!("{core}/pods/p?gracePeriodSeconds=0")).await.code, 200);
    api.get("/api/v1/pods").await;
    assert_eq!(ask(&api, node("n1"), "GET", &format!("{core}/secrets/s"), Value::Null).await.code, 403);
}

#[tokio::test]
async fn default_credentials_do_what_their_component_needs_and_no_more() {
    let api = Api::new().await;
    let account = |name: &str| {
        let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
        UserInfo::authenticated(&format!("system:serviceaccount:kube-system:{name}"), &groups)
    };
    let component = |name: &str| UserInfo::authenticated(name, &[]);
    // who, verb, group/resource, namespace, allowed
    let cases = [
        (component("system:kube-scheduler"), "create", "/pods/binding", "a", true),
        (component("system:kube-scheduler"), "get", "/secrets", "a", false),
        (component("system:kube-scheduler"), "create", "/pods", "a", false),
        (component("system:kube-controller-manager"), "create", "/pods", "a", false),
        (component("system:kube-controller-manager"), "watch", "apps/deployments", "", true),
        (component("system:kube-proxy"), "list", "/secrets", "", false),
        (component("system:kube-proxy"), "watch", "discovery.k8s.io/endpointslices", "", true),
        (account("deployment-controller"), "create", "apps/replicasets", "a", true),
        (account("deployment-controller"), "create", "/pods", "a", false),
        (account("replicaset-controller"), "create", "/pods", "a", true),
        (account("replicaset-controller"), "get", "/secrets", "a", false),
        (account("default"), "list", "/pods", "kube-system", false),
        (node("n1"), "list", "/secrets", "", false),
        (node("n1"), "create", "/pods/exec", "a", false),
    ];
    for (user, verb, what, namespace, allowed) in cases {
        let (group, resource) = what.split_once('/').unwrap();
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let attributes = json!({"verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": namespace});
        let review = json!({"spec": {"user": user.username, "groups": user.groups, "resourceAttributes": attributes}});
        let answer = api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review).await;
        assert_eq!(answer.json()["status"]["allowed"], allowed, "{} {verb} {what}: {}", user.username, answer.json()["status"]);
    }
}

#[tokio::test]
async fn a_review_says_why() {
    let api = Api::new().await;
    assert_eq!(api.post(&format!("{RBAC}/namespaces/default/rolebindings"), bind("b", "ClusterRole", "view", "jane")).await.code, 201);
    api.get(&format!("{RBAC}/rolebindings")).await;
    let attributes = json!({"verb": "list", "resource": "pods", "namespace": "default"});
    let review = json!({"spec": {"user": "jane", "resourceAttributes": attributes}});
    let status = api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review).await.json()["status"].clone();
    let why = "RBAC: allowed by RoleBinding \"b/default\" of ClusterRole \"view\" to User \"jane\"";
    assert_eq!(status, json!({"allowed": true, "reason": why}));
}

#[tokio::test]
async fn the_reviews_answer_as_the_requests_themselves_would_be() {
    let api = Api::new().await;
    let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods/log"], "resourceNames": ["p"]},
        {"verbs": ["list"], "apiGroups": ["apps"], "resources": ["*"]}]);
    assert_eq!(api.post(&format!("{RBAC}/namespaces/default/roles"), role("r", rules)).await.code, 201);
    assert_eq!(api.post(&format!("{RBAC}/namespaces/default/rolebindings"), bind("b", "Role", "r", "jane")).await.code, 201);
    api.get(&format!("{RBAC}/rolebindings")).await;
    let authorization = "/apis/authorization.k8s.io/v1";
    let (subject, own) = (format!("{authorization}/subjectaccessreviews"), format!("{authorization}/selfsubjectaccessreviews"));
    let (local, listing) =
        (format!("{authorization}/namespaces/default/localsubjectaccessreviews"), format!("{authorization}/selfsubjectrulesreviews"));
    let log = |name: &str| json!({"verb": "get", "resource": "pods", "subresource": "log", "name": name, "namespace": "default"});
    let of = |attributes: Value| json!({"spec": {"user": "jane", "resourceAttributes": attributes}});
    let selecting = |selector: Value| {
        let mut attributes = log("p");
        attributes["fieldSelector"] = selector;
        of(attributes)
    };
    // where, what, the answer or the refusal
    let cases = [
        (&subject, of(log("p")), Ok(true)),
        (&subject, of(log("q")), Ok(false)),
        (&subject, of(json!({"verb": "list", "group": "apps", "resource": "deployments", "namespace": "default"})), Ok(true)),
        (&subject, of(json!({"verb": "list", "group": "apps", "resource": "deployments"})), Ok(false)),
        (&subject, json!({"spec": {"groups": ["system:masters"], "resourceAttributes": log("q")}}), Ok(true)),
        (
            &subject,
            json!({"spec": {"user": "x", "groups": ["system:unauthenticated"], "nonResourceAttributes": {"verb": "get", "path": "/version"}}}),
            Ok(true),
        ),
        (&subject, json!({"spec": {"user": "x", "nonResourceAttributes": {"verb": "get", "path": "/metrics"}}}), Ok(false)),
        (&subject, selecting(json!({"requirements": [{"key": "a", "operator": "In", "values": ["b"]}]})), Ok(true)),
        (&own, json!({"spec": {"resourceAttributes": log("p")}}), Ok(true)),
        (&own, json!({"spec": {"resourceAttributes": log("q")}}), Ok(false)),
        (&local, of(log("p")), Ok(true)),
        (
            &subject,
            json!({"spec": {"user": "jane"}}),
            Err(
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ),
        ),
        (
            &subject,
            json!({"spec": {"resourceAttributes": log("p")}}),
            Err("spec.user: Invalid value: \"\": at least one of user or group must be specified"),
        ),
        (&subject, selecting(json!({})), Err("spec.resourceAttributes.fieldSelector.requirements: Required value")),
        (
            &subject,
            selecting(json!({"rawSelector": "a=b", "requirements": [{"key": "a", "operator": "Exists"}]})),
            Err("may not specified at the same time as requirements"),
        ),
        (
            &subject,
            selecting(json!({"requirements": [{"key": "a", "operator": "In"}]})),
            Err("must be specified when `operator` is 'In' or 'NotIn'"),
        ),
        (
            &local,
            of(json!({"verb": "get", "resource": "pods", "namespace": "other"})),
            Err("spec.resourceAttributes.namespace: Invalid value: \"other\": must match metadata.namespace"),
        ),
        (
            &local,
            json!({"spec": {"user": "x", "nonResourceAttributes": {"verb": "get", "path": "/"}}}),
            Err("disallowed on this kind of request"),
        ),
        (
            &subject,
            json!({"metadata": {"name": "n"}, "spec": {"user": "x", "resourceAttributes": log("p")}}),
            Err("metadata: Invalid value: {\"name\":\"n\"}: must be empty"),
        ),
        (
            &local,
            json!({"metadata": {"name": "n"}, "spec": {"user": "x", "resourceAttributes": log("p")}}),
            Err("metadata: Invalid value: {\"name\":\"n\"}: must be empty except for namespace"),
        ),
        (&listing, json!({"spec": {}}), Err("no namespace on request")),
    ];
    for (path, review, expected) in cases {
        // Oneself may be asked about by everybody, others by the administrator.
        let who = if path.contains("self") { jane() } else { harness::admin() };
        let answer = ask(&api, who, "POST", path, review.clone()).await;
        match expected {
            Ok(allowed) => assert_eq!((answer.code, &answer.json()["status"]["allowed"]), (201, &json!(allowed)), "{path} {review}"),
            Err(words) => assert!(answer.code >= 400 && answer.message().contains(words), "{path} {review}: {}", answer.message()),
        }
    }
    let listed = ask(&api, jane(), "POST", &listing, json!({"spec": {"namespace": "default"}})).await.json()["status"].clone();
    assert_eq!(listed["incomplete"], false);
    let held = listed["resourceRules"].as_array().unwrap();
    assert!(held.contains(&json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods/log"], "resourceNames": ["p"]})));
    assert!(held.contains(&json!({"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]})));
}

#[tokio::test]
async fn a_request_is_decided_by_approval_alone_and_keeps_what_was_decided() {
    use base64::Engine;
    let api = Api::new().await;
    let pem = base64::engine::general_purpose::STANDARD.encode(auth::csr::make("jane", &[], &[]).unwrap().1);
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let spec = json!({"request": pem, "signerName": "example.com/s", "usages": ["client auth"]});
    assert_eq!(api.post(requests, json!({"metadata": {"name": "r"}, "spec": spec})).await.code, 201);
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "e2e"});
    let path = |part: &str| format!("{requests}/r/{part}");
    let by_hand = json!({"metadata": {"annotations": {"a": "b"}}, "status": {"conditions": [condition("Custom")], "certificate": "eA=="}});
    let patched = api.merge(&path("approval"), by_hand).await.json();
    assert_eq!((&patched["metadata"]["annotations"]["a"], &patched["status"]["certificate"]), (&json!("b"), &Value::Null));
    assert!(
        patched["status"]["conditions"][0]["lastUpdateTime"].is_string()
            && patched["status"]["conditions"][0]["lastTransitionTime"].is_string()
    );
    let mut approved = patched.clone();
    approved["status"]["conditions"].as_array_mut().unwrap().push(condition("Approved"));
    let approved = api.put(&path("approval"), approved).await.json();
    let kinds = |object: &Value| {
        object["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&approved), ["Custom", "Approved"]);
    let mut status = approved.clone();
    status["metadata"]["annotations"]["c"] = "d".into();
    status["status"]["conditions"][1]["reason"] = "another".into();
    status["status"]["conditions"].as_array_mut().unwrap().push(condition("Update"));
    let updated = api.put(&path("status"), status).await.json();
    assert_eq!(kinds(&updated), ["Custom", "Approved", "Update"]);
    assert_eq!((&updated["metadata"]["annotations"]["c"], &updated["status"]["conditions"][1]["reason"]), (&json!("d"), &json!("e2e")));
    let denied = api.merge(&path("status"), json!({"status": {"conditions": [condition("Denied")]}})).await;
    assert_eq!(denied.code, 422, "{}", denied.message());
}

#[tokio::test]
async fn what_the_administrator_changed_in_a_default_role_stays() {
    let store = std::sync::Arc::new(store::memory::Memory::new());
    let start = || apiserver::Server::new(apiserver::Config::default(), store.clone()).unwrap();
    let api = Api { server: start(), store: store.clone() };
    api.server.bootstrap().await.unwrap();
    let path = format!("{RBAC}/clusterroles/system:kube-dns");
    let extra = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
    assert_eq!(api.merge(&path, json!({"rules": [extra]})).await.code, 200);
    assert_eq!(api.delete(&format!("{RBAC}/clusterroles/system:basic-user")).await.code, 200);
    let again = Api { server: start(), store };
    again.server.bootstrap().await.unwrap();
    let rules = again.get(&path).await.json()["rules"].as_array().unwrap().clone();
    assert!(rules.contains(&extra) && rules.len() == 3, "{rules:?}");
    assert_eq!(again.get(&format!("{RBAC}/clusterroles/system:basic-user")).await.code, 200);
}
