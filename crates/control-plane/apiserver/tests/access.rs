//! Who may do what.

mod harness;

use std::sync::Arc;

use auth::UserInfo;
use auth::tokens::Issuer;
use harness::{Api, admin, body};
use http::Request;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn as_user(api: &Api, user: UserInfo, method: &str, path: &str, content: Value) -> harness::Answer {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    api.send(request.body(body(content.to_string())).unwrap(), user).await
}

#[tokio::test]
async fn nobody_does_what_no_role_allows() {
    let api = Api::new().await;
    let jane = || UserInfo::authenticated("jane", &[]);
    let refused = as_user(&api, jane(), "GET", MAPS, json!({})).await;
    assert_eq!(refused.code, 403);
    let words = "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"";
    assert_eq!(refused.message(), words);
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"});
    let binding = json!({"metadata": {"name": "b"}, "roleRef": role, "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}]});
    assert_eq!(as_user(&api, admin(), "POST", bindings, binding).await.code, 201);
    assert_eq!(api.get(bindings).await.code, 200);
    assert_eq!(as_user(&api, jane(), "GET", MAPS, json!({})).await.code, 200);
    assert_eq!(as_user(&api, jane(), "POST", MAPS, json!({"metadata": {"name": "m"}})).await.code, 403);
    assert_eq!(as_user(&api, jane(), "GET", "/api/v1/namespaces/kube-system/configmaps", json!({})).await.code, 403);
}

#[tokio::test]
async fn strangers_see_health_and_version_only() {
    let api = Api::new().await;
    for (path, code) in [("/healthz", 200), ("/readyz", 200), ("/version", 200), ("/api", 403), ("/metrics", 403), (MAPS, 403)] {
        let request = Request::builder().uri(path).body(body("")).unwrap();
        assert_eq!(api.server.handle(request, None).await.status().as_u16(), code, "{path}");
    }
    let request = Request::builder().uri(MAPS).header("authorization", "Bearer nonsense").body(body("")).unwrap();
    assert_eq!(api.server.handle(request, None).await.status().as_u16(), 401);
}

/// Who asks, with which rights, as whom (headers), for what; the user that it becomes, or the refusal.
type Impersonation<'a> = (&'a str, &'a [Value], &'a [(&'a str, &'a str)], Result<(&'a str, &'a str), &'a str>);

#[tokio::test]
async fn impersonation_needs_its_own_right_for_everything_that_is_claimed() {
    let api = Api::new().await;
    let groups = "/apis/rbac.authorization.k8s.io/v1";
    let right = |verb: &str, group: &str, resource: &str| json!({"verbs": [verb], "apiGroups": [group], "resources": [resource]});
    let users = [right("impersonate", "", "users")];
    let accounts = [right("impersonate", "", "serviceaccounts")];
    let all = [
        users[0].clone(),
        right("impersonate", "", "groups"),
        right("impersonate", "authentication.k8s.io", "userextras/scopes"),
        right("impersonate", "authentication.k8s.io", "uids"),
    ];
    let authn = "authentication.k8s.io";
    let create = |mode: &str| right(&format!("impersonate-on:{mode}:create"), authn, "selfsubjectreviews");
    let constrained =
        [right("impersonate:user-info", authn, "users"), right("impersonate:user-info", authn, "groups"), create("user-info")];
    let elsewhere = [constrained[0].clone(), right("impersonate-on:user-info:list", authn, "selfsubjectreviews")];
    let as_account = [right("impersonate:serviceaccount", authn, "serviceaccounts"), create("serviceaccount")];
    let as_node = [right("impersonate:arbitrary-node", authn, "nodes"), create("arbitrary-node")];
    let own_node = [right("impersonate:associated-node", authn, "nodes"), create("associated-node")];
    let joe = ("impersonate-user", "joe");
    let node = ("impersonate-user", "system:node:n1");
    let no = |what: &str| {
        format!(
            "selfsubjectreviews.authentication.k8s.io is forbidden: User \"USER\" cannot impersonate-on:{what}:create resource \"selfsubjectreviews\" in API group \"authentication.k8s.io\" at the cluster scope"
        )
    };
    let (no_user, no_node, no_account) = (no("user-info"), no("arbitrary-node"), no("serviceaccount"));
    let masters = "groups.authentication.k8s.io \"system:masters\" is forbidden: User \"USER\" cannot impersonate:user-info resource \"groups\" in API group \"authentication.k8s.io\" at the cluster scope: impersonating the system:masters group is not allowed";
    let cases: &[Impersonation<'_>] = &[
        ("nobody", &[], &[joe], Err(&no_user)),
        ("old", &users, &[joe], Ok(("joe", "system:authenticated"))),
        ("old", &users, &[joe, ("impersonate-group", "devs")], Err(&no_user)),
        (
            "old",
            &users,
            &[("impersonate-user", "system:anonymous")],
            Err(
                "selfsubjectreviews.authentication.k8s.io is forbidden: User \"system:anonymous\" cannot create resource \"selfsubjectreviews\" in API group \"authentication.k8s.io\" at the cluster scope",
            ),
        ),
        ("old", &users, &[("impersonate-user", "system:serviceaccount:a:b")], Err(&no_account)),
        ("old", &users, &[node], Ok(("system:node:n1", "system:authenticated"))),
        ("old", &users, &[("impersonate-group", "devs")], Err("requested impersonation without impersonating a user name")),
        (
            "accounts",
            &accounts,
            &[("impersonate-user", "system:serviceaccount:a:b")],
            Ok(("system:serviceaccount:a:b", "system:serviceaccounts,system:serviceaccounts:a,system:authenticated")),
        ),
        (
            "all",
            &all,
            &[joe, ("impersonate-group", "devs"), ("impersonate-extra-scopes", "x"), ("impersonate-uid", "7")],
            Ok(("joe", "devs,system:authenticated")),
        ),
        ("all", &all, &[joe, ("impersonate-extra-other", "x")], Err(&no_user)),
        ("all", &all, &[joe, ("impersonate-group", "system:masters")], Ok(("joe", "system:masters,system:authenticated"))),
        ("new", &constrained, &[joe, ("impersonate-group", "devs")], Ok(("joe", "devs,system:authenticated"))),
        ("new", &constrained, &[joe, ("impersonate-group", "system:masters")], Err(masters)),
        ("new", &constrained, &[("impersonate-user", "system:serviceaccount:a:b")], Err(&no_account)),
        ("new", &constrained, &[node], Err(&no_node)),
        ("elsewhere", &elsewhere, &[joe], Err(&no_user)),
        (
            "as-account",
            &as_account,
            &[("impersonate-user", "system:serviceaccount:a:b")],
            Ok(("system:serviceaccount:a:b", "system:serviceaccounts,system:serviceaccounts:a,system:authenticated")),
        ),
        ("as-node", &as_node, &[node], Ok(("system:node:n1", "system:nodes,system:authenticated"))),
        ("own-node", &own_node, &[node], Err(&no_node)),
        ("system:serviceaccount:a:agent", &own_node, &[node], Ok(("system:node:n1", "system:nodes,system:authenticated"))),
        ("system:serviceaccount:a:agent", &own_node, &[("impersonate-user", "system:node:n2")], Err(&no_node)),
    ];
    for (at, (name, rights, headers, expected)) in cases.iter().enumerate() {
        let role = format!("case{at}");
        api.post(&format!("{groups}/clusterroles"), json!({"metadata": {"name": role}, "rules": rights})).await;
        let binding = json!({"metadata": {"name": role}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name}]});
        assert_eq!(api.post(&format!("{groups}/clusterrolebindings"), binding).await.code, 201);
        api.get(&format!("{groups}/clusterrolebindings")).await;
        let mut user = UserInfo::authenticated(name, &[]);
        if name.ends_with(":agent") {
            user.extra.insert("authentication.kubernetes.io/node-name".into(), vec!["n1".into()]);
        }
        let mut request = Request::builder().method("POST").uri("/apis/authentication.k8s.io/v1/selfsubjectreviews");
        request = request.header("content-type", "application/json");
        for (key, value) in *headers {
            request = request.header(*key, *value);
        }
        let answer = api.send(request.body(body("{}")).unwrap(), user).await;
        let info = answer.json()["status"]["userInfo"].clone();
        let groups: Vec<&str> = info["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let got = match answer.code {
            201 => Ok((info["username"].as_str().unwrap().to_owned(), groups.join(","))),
            _ => Err(answer.message().replace(&format!("{name:?}"), "\"USER\"")),
        };
        let expected = expected.map(|(user, groups)| (user.to_owned(), groups.to_owned())).map_err(str::to_owned);
        assert_eq!(got, expected, "{at}: {name} {headers:?}");
        assert_eq!(
            api.delete(&format!("{groups}/clusterrolebindings/{role}", groups = "/apis/rbac.authorization.k8s.io/v1")).await.code,
            200
        );
        api.get("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings").await;
    }
}

/// Upstream has no such paths; here a role of the namespace would decide about what belongs to the whole cluster.
#[tokio::test]
async fn a_role_of_a_namespace_reaches_nothing_outside_of_it() {
    let api = Api::new().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let all = json!({"metadata": {"name": "all"}, "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    assert_eq!(api.post(&format!("{rbac}/namespaces/default/roles"), all).await.code, 201);
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "all"});
    let binding = json!({"metadata": {"name": "b"}, "roleRef": role, "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}]});
    assert_eq!(api.post(&format!("{rbac}/namespaces/default/rolebindings"), binding).await.code, 201);
    assert_eq!(api.get(&format!("{rbac}/namespaces/default/rolebindings")).await.code, 200);
    assert_eq!(api.post("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await.code, 201);
    let jane = || UserInfo::authenticated("jane", &[]);
    let ask = async |method: &str, path: &str| as_user(&api, jane(), method, path, json!({"metadata": {"name": "x"}})).await.code;
    assert_eq!((ask("GET", MAPS).await, ask("GET", "/api/v1/nodes").await), (200, 403));
    let inside = "/api/v1/namespaces/default";
    for path in ["nodes", "nodes/n", "nodes/n/status", "nodes/n/proxy/", "namespaces", "namespaces/kube-system", "persistentvolumes"] {
        assert_eq!(ask("GET", &format!("{inside}/{path}")).await, 404, "{path}");
    }
    for (method, path) in [
        ("POST", format!("{rbac}/namespaces/default/clusterroles")),
        ("DELETE", format!("{inside}/nodes/n")),
        ("DELETE", format!("{inside}/nodes")),
        ("GET", format!("{inside}/nodes?watch=true")),
        ("POST", format!("{inside}/namespaces")),
        ("GET", "/api/v1/watch/namespaces/default/nodes".into()),
    ] {
        assert_eq!(ask(method, &path).await, 404, "{method} {path}");
    }
    assert_eq!(api.get("/api/v1/nodes/n").await.code, 200);
    assert_eq!((ask("GET", inside).await, ask("GET", &format!("{inside}/status")).await), (200, 200));
}

/// A server that makes and believes service account tokens, and what makes them.
async fn with_tokens() -> (Api, Arc<Issuer>) {
    let directory = tempfile::tempdir().unwrap();
    let names = auth::pki::Names {
        api_hosts: vec![],
        api_addresses: vec![],
        cluster_domain: "cluster.local".into(),
        node_name: "n".into(),
        node_addresses: vec![],
    };
    let pki = auth::pki::Pki::open(directory.path(), &names).unwrap();
    let issuer = Arc::new(Issuer::new(&pki.service_account_key, auth::tokens::ISSUER).unwrap());
    let config = apiserver::Config { issuer: Some(issuer.clone()), ..apiserver::Config::default() };
    (Api::with(config).await, issuer)
}

#[tokio::test]
async fn a_secrets_token_is_noted_when_it_is_used_and_refused_when_it_is_marked() {
    use base64::Engine;
    let (api, issuer) = with_tokens().await;
    let (accounts, secrets) = ("/api/v1/namespaces/default/serviceaccounts", "/api/v1/namespaces/default/secrets");
    let made = json!({"metadata": {"name": "bot"}, "secrets": [{"name": "made-with-it"}]});
    let uid = api.post(accounts, made).await.json()["metadata"]["uid"].as_str().unwrap().to_owned();
    let account = auth::tokens::Reference { name: "bot".into(), uid: uid.clone() };
    let mut tokens = Vec::new();
    for name in ["made-with-it", "made-by-hand"] {
        let token = issuer.issue_legacy("default", &account, name).unwrap();
        let data = json!({"token": base64::engine::general_purpose::STANDARD.encode(&token)});
        let notes = json!({"kubernetes.io/service-account.name": "bot", "kubernetes.io/service-account.uid": uid});
        let secret = json!({"metadata": {"name": name, "annotations": notes}, "type": "kubernetes.io/service-account-token", "data": data});
        let answer = api.post(secrets, secret).await;
        assert_eq!(answer.code, 201, "{}", answer.message());
        tokens.push((name, token));
    }
    let ask = async |token: &str| {
        let request = Request::builder().uri("/api").header("authorization", format!("Bearer {token}")).body(body("")).unwrap();
        let response = api.server.handle(request, None).await;
        let warnings = response.headers().get_all("warning").iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        (response.status().as_u16(), warnings)
    };
    let label = async |name: &str, key: &str| api.get(&format!("{secrets}/{name}")).await.json()["metadata"]["labels"][key].clone();
    let advice = "299 - \"Use tokens from the TokenRequest API or manually created secret-based tokens instead of auto-generated \
                  secret-based tokens.\"";
    for (name, token) in &tokens {
        assert_eq!(label(name, "kubernetes.io/legacy-token-last-used").await, Value::Null);
        let warned = if *name == "made-with-it" { vec![advice.to_owned()] } else { Vec::new() };
        assert_eq!(ask(token).await, (200, warned), "{name}");
        let day = label(name, "kubernetes.io/legacy-token-last-used").await;
        assert_eq!(day.as_str().unwrap().len(), "2026-11-21".len(), "{day}");
    }
    let tracking = api.get("/api/v1/namespaces/kube-system/configmaps/kube-apiserver-legacy-service-account-token-tracking").await;
    assert_eq!(tracking.json()["data"]["since"], label("made-by-hand", "kubernetes.io/legacy-token-last-used").await);
    let marked = json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": "2026-01-01"}}});
    assert_eq!(api.merge(&format!("{secrets}/made-with-it"), marked).await.code, 200);
    let token = &tokens[0].1;
    assert_eq!(ask(token).await.0, 401, "it is marked as invalid");
    let review = api.post("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": token}})).await.json();
    assert_eq!(review["status"]["authenticated"], Value::Null);
    let unmarked = json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": null}}});
    assert_eq!(api.merge(&format!("{secrets}/made-with-it"), unmarked).await.code, 200);
    assert_eq!(ask(token).await.0, 200, "the label is gone");
    assert_eq!(api.delete(&format!("{secrets}/made-with-it")).await.code, 200);
    assert_eq!(ask(token).await.0, 401, "the Secret is gone");
    // As the controller makes them: asked of the API, bound to the Secret that holds them.
    let notes = json!({"kubernetes.io/service-account.name": "bot", "kubernetes.io/service-account.uid": uid});
    let secret = json!({"metadata": {"name": "bound", "annotations": notes}, "type": "kubernetes.io/service-account-token"});
    assert_eq!(api.post(secrets, secret).await.code, 201);
    let request = json!({"spec": {"boundObjectRef": {"kind": "Secret", "apiVersion": "v1", "name": "bound"}}});
    let made = api.post(&format!("{accounts}/bot/token"), request).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let token = made.json()["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(ask(&token).await.0, 200, "it is good, whoever holds it");
    assert_eq!(label("bound", "kubernetes.io/legacy-token-last-used").await, Value::Null, "the Secret does not hold it");
    let data = json!({"data": {"token": base64::engine::general_purpose::STANDARD.encode(&token)}});
    assert_eq!(api.merge(&format!("{secrets}/bound"), data).await.code, 200);
    assert_eq!(ask(&token).await.0, 200);
    assert!(label("bound", "kubernetes.io/legacy-token-last-used").await.is_string());
}

#[tokio::test]
async fn a_token_works_as_long_as_its_service_account() {
    let (api, _) = with_tokens().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    api.post(accounts, json!({"metadata": {"name": "bot"}})).await;
    let made = api.post(&format!("{accounts}/bot/token"), json!({"spec": {"expirationSeconds": 600}})).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let token = made.json()["status"]["token"].as_str().unwrap().to_owned();
    let ask = async |path: &str| {
        let request = Request::builder().uri(path).header("authorization", format!("Bearer {token}")).body(body("")).unwrap();
        api.server.handle(request, None).await.status().as_u16()
    };
    assert_eq!((ask("/api").await, ask(MAPS).await), (200, 403));
    let review = api.post("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": token}})).await.json();
    assert_eq!(review["status"]["user"]["username"], "system:serviceaccount:default:bot");
    assert_eq!(api.post(&format!("{accounts}/bot/token"), json!({"spec": {"expirationSeconds": 5}})).await.code, 422);
    api.delete(&format!("{accounts}/bot")).await;
    assert_eq!(ask("/api").await, 401);
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_have() {
    let api = Api::new().await;
    let jane = || UserInfo::authenticated("jane", &[]);
    let group = "rbac.authorization.k8s.io";
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let bind = |name: &str, role: &str, user: &str| {
        json!({"metadata": {"name": name}, "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": group, "name": user}]})
    };
    assert_eq!(api.post(bindings, bind("a", "admin", "jane")).await.code, 201);
    api.get(bindings).await;
    assert_eq!(as_user(&api, jane(), "POST", bindings, bind("b", "view", "joe")).await.code, 201);
    let refused = as_user(&api, jane(), "POST", bindings, bind("c", "cluster-admin", "joe")).await;
    assert_eq!(refused.code, 403);
    assert!(refused.message().contains("is attempting to grant RBAC permissions not currently held"), "{}", refused.message());
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
    let role =
        |resource: &str| json!({"metadata": {"name": resource}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [resource]}]});
    assert_eq!(as_user(&api, jane(), "POST", roles, role("pods")).await.code, 201);
    assert_eq!(as_user(&api, jane(), "POST", roles, role("nodes")).await.code, 403);
}
