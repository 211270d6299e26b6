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

#[tokio::test]
async fn impersonation_needs_its_own_right() {
    let api = Api::new().await;
    let ask = async |user: UserInfo| {
        let request = Request::builder().uri(MAPS).header("impersonate-user", "joe").header("impersonate-group", "devs");
        api.send(request.body(body("")).unwrap(), user).await
    };
    assert!(ask(admin()).await.message().contains("User \"joe\" cannot list"));
    let refused = ask(UserInfo::authenticated("jane", &[])).await;
    assert_eq!(
        refused.message(),
        "users \"joe\" is forbidden: User \"jane\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
}

#[tokio::test]
async fn a_token_works_as_long_as_its_service_account() {
    let store = Arc::new(store::memory::Memory::new());
    let directory = tempfile::tempdir().unwrap();
    let names = auth::pki::Names {
        api_hosts: vec![],
        api_addresses: vec![],
        cluster_domain: "cluster.local".into(),
        node_name: "n".into(),
        node_addresses: vec![],
    };
    let pki = auth::pki::Pki::open(directory.path(), &names).unwrap();
    let issuer = Issuer::new(&pki.service_account_key, auth::tokens::ISSUER).unwrap();
    let config = apiserver::Config { issuer: Some(std::sync::Arc::new(issuer)), ..apiserver::Config::default() };
    let api = Api { server: apiserver::Server::new(config, store.clone()).unwrap(), store };
    api.server.bootstrap().await.unwrap();
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
