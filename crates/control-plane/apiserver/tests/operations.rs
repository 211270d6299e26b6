//! Every operation that upstream publishes exists here and answers as listed.
//!
//! The published list lies beside the repository, in `../shared/spec`; without it this test fails.

mod harness;

use std::path::Path;
use std::sync::Arc;

use harness::{Answer, Api, admin, body, samples};
use http::Request;
use schema::resources;
use serde_json::{Value, json};

/// What is listed and not served, with the reason.
const EXCEPTIONS: [(&str, &str); 2] = [
    ("/logs/", "the log files of the master's disk: off by default upstream since 1.20 (--enable-logs-handler)"),
    ("/logs/{logpath}", "the same"),
];

/// One line of the list.
struct Operation {
    method: String,
    path: String,
    action: String,
    /// `group/version/Kind`.
    gvk: String,
    produces: Vec<String>,
}

fn operations() -> Vec<Operation> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/spec/operations-1.37.tsv");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let operation = |line: &str| {
        let columns: Vec<&str> = line.split('\t').collect();
        let column = |at: usize| columns.get(at).copied().unwrap_or_default().to_owned();
        let produces = column(9).split_whitespace().map(str::to_owned).collect();
        Operation { method: column(0), path: column(1), action: column(3), gvk: column(4), produces }
    };
    text.lines().skip(1).map(operation).collect()
}

/// A server with an object of every kind, all called `sample` but for those whose names have a form.
async fn populated() -> (Api, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let names = auth::pki::Names {
        api_hosts: vec![],
        api_addresses: vec![],
        cluster_domain: "cluster.local".into(),
        node_name: "n".into(),
        node_addresses: vec![],
    };
    let pki = auth::pki::Pki::open(folder.path(), &names).unwrap();
    let issuer = auth::tokens::Issuer::new(&pki.service_account_key, auth::tokens::ISSUER).unwrap();
    let served = resources::Served::parse("api/all=true").unwrap();
    let api = Api::with(apiserver::Config { issuer: Some(Arc::new(issuer)), served, ..apiserver::Config::default() }).await;
    api.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    for facts in resources::all().iter().filter(|facts| ["create", "get"].iter().all(|verb| facts.verbs.contains(verb))) {
        let object = samples::sample(facts.group, facts.version, facts.kind, "sample");
        let made = api.post(&collection(facts.group, facts.version, facts.namespaced, facts.plural), object).await;
        assert!([201, 409].contains(&made.code), "{} {}: {}", facts.version, facts.kind, made.message());
    }
    (api, folder)
}

fn collection(group: &str, version: &str, namespaced: bool, plural: &str) -> String {
    let root = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/{version}") };
    format!("{root}{}/{plural}", if namespaced { "/namespaces/default" } else { "" })
}

/// The resource and the subresource that a path template is about, and the template's parts.
fn subject(path: &str) -> Option<(&'static resources::Resource, String)> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let rest = match rest {
        ["namespaces", "{namespace}", rest @ ..] => rest,
        rest => rest,
    };
    let facts = resources::find(group, version, rest.first()?)?;
    Some((facts, rest.get(2).copied().unwrap_or_default().to_owned()))
}

/// The body of a create that is no kept object.
fn request_body(kind: &str) -> Value {
    match kind {
        "Binding" => json!({"metadata": {"name": "sample"}, "target": {"kind": "Node", "name": "sample"}}),
        "Eviction" => json!({"metadata": {"name": "sample"}}),
        "TokenRequest" => json!({"spec": {"expirationSeconds": 600}}),
        "TokenReview" => json!({"spec": {"token": "x"}}),
        "SelfSubjectRulesReview" => json!({"spec": {"namespace": "default"}}),
        "LocalSubjectAccessReview" => {
            json!({"metadata": {"namespace": "default"}, "spec": {"user": "u",
                "resourceAttributes": {"namespace": "default", "verb": "get", "resource": "pods"}}})
        }
        "SubjectAccessReview" => json!({"spec": {"user": "u", "resourceAttributes": {"verb": "get", "resource": "pods"}}}),
        "SelfSubjectAccessReview" => json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}),
        _ => json!({}),
    }
}

/// Runs one operation without a lasting effect and says what is wrong with the answer.
async fn run(api: &Api, operation: &Operation) -> Vec<String> {
    let Some((facts, subresource)) = subject(&operation.path) else {
        let answer = api.get(&operation.path).await;
        return complaint(operation, &answer, answer.code == 200);
    };
    let kind = operation.gvk.rsplit('/').next().unwrap_or_default();
    let sample = match ["get", "create"].iter().all(|verb| facts.verbs.contains(verb)) {
        true => samples::sample(facts.group, facts.version, facts.kind, "sample"),
        false => json!({"metadata": {"name": "etcd-0"}}),
    };
    let name = sample["metadata"]["name"].as_str().unwrap();
    let path = operation.path.replace("{namespace}", "default").replace("{name}", name).replace("{path}", "x");
    let dry = format!("{path}?dryRun=All");
    match operation.action.as_str() {
        "list" | "get" => read(api, operation, &path, &subresource).await,
        "post" => {
            let fresh = || samples::sample(facts.group, facts.version, facts.kind, "another");
            let content = if subresource.is_empty() && facts.verbs.contains(&"get") { fresh() } else { request_body(kind) };
            let answer = api.post(&dry, content).await;
            // A second IPAddress of the same address, a second CRD of the same names.
            complaint(operation, &answer, [200, 201].contains(&answer.code) || answer.json()["reason"] == "AlreadyExists")
        }
        "put" => {
            // `finalize` and the like can only be written: the object is read without them.
            let mut current = api.get(&path).await;
            if current.code == 405 {
                current = api.get(path.trim_end_matches(&format!("/{subresource}"))).await;
            }
            let answer = api.put(&dry, current.json()).await;
            complaint(operation, &answer, answer.code == 200)
        }
        "patch" => {
            let answer = api.merge(&dry, json!({})).await;
            complaint(operation, &answer, answer.code == 200)
        }
        "delete" | "deletecollection" => {
            let answer = api.delete(&dry).await;
            complaint(operation, &answer, answer.code == 200)
        }
        // Nobody answers behind the server: that it tries to connect is what can be seen.
        "connect" => {
            let request = Request::builder().method(operation.method.as_str()).uri(&path).body(body("")).unwrap();
            let answer = api.send(request, admin()).await;
            complaint(operation, &answer, ![404, 405].contains(&answer.code))
        }
        other => vec![format!("{} {}: unknown action {other}", operation.method, operation.path)],
    }
}

async fn read(api: &Api, operation: &Operation, path: &str, subresource: &str) -> Vec<String> {
    if subresource == "log" {
        let answer = api.get(path).await;
        return complaint(operation, &answer, ![404, 405].contains(&answer.code));
    }
    let mut wrong = Vec::new();
    for media in operation.produces.iter().filter(|media| !media.contains("stream=watch") && !media.ends_with("-seq")) {
        let answer = api.get_as(path, media).await;
        let given = answer.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let same = given.split(';').next() == media.split(';').next();
        wrong.extend(complaint(operation, &answer, answer.code == 200 && same).into_iter().map(|text| format!("{media}: {text}")));
        if media == "application/json" {
            let (value, wanted) = (answer.json(), operation.gvk.as_str());
            let (group_version, kind) = wanted.rsplit_once('/').unwrap_or_default();
            let kind = if operation.action == "list" { format!("{kind}List") } else { kind.to_owned() };
            let said = value["apiVersion"] == group_version.trim_start_matches('/') && value["kind"] == kind.as_str();
            wrong.extend(complaint(operation, &answer, said));
        }
    }
    wrong
}

fn complaint(operation: &Operation, answer: &Answer, fine: bool) -> Vec<String> {
    let text: String = String::from_utf8_lossy(&answer.bytes).chars().take(400).collect();
    if fine { Vec::new() } else { vec![format!("{} {}: {} {text}", operation.method, operation.path, answer.code)] }
}

#[tokio::test]
async fn every_published_operation_exists_and_answers_as_listed() {
    let (api, _folder) = populated().await;
    let api = Arc::new(api);
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for operation in operations() {
        if EXCEPTIONS.iter().any(|(path, _)| *path == operation.path) {
            continue;
        }
        tried += 1;
        wrong.extend(run(&api, &operation).await);
    }
    assert!(tried > 950, "{tried}");
    assert!(wrong.is_empty(), "{} of {tried} operations:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn methods_that_are_not_published_are_refused() {
    let (api, _folder) = populated().await;
    let operations = operations();
    let mut wrong = Vec::new();
    for operation in operations.iter().filter(|operation| subject(&operation.path).is_some() && operation.action != "connect") {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let listed = operations.iter().any(|other| other.path == operation.path && other.method == method);
            if listed || operation.path.contains("/proxy") {
                continue;
            }
            let path = operation.path.replace("{namespace}", "default").replace("{name}", "sample");
            let answer = api.ask(method, &path, "application/json", "{}").await;
            if answer.code != 405 {
                wrong.push(format!("{method} {path}: {} {}", answer.code, answer.message()));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn beta_and_alpha_versions_are_there_only_where_they_are_asked_for() {
    let api = Api::new().await;
    for facts in resources::all().iter().filter(|facts| facts.verbs.contains(&"list")) {
        let answer = api.get(&collection(facts.group, facts.version, facts.namespaced, facts.plural)).await;
        assert_eq!(answer.code, if facts.stable { 200 } else { 404 }, "{} {}", facts.api_version(), facts.plural);
    }
    assert_eq!(api.get("/apis/resource.k8s.io/v1beta1").await.code, 404);
    assert_eq!(api.get("/apis/lifecycle.k8s.io").await.code, 404);
    let served = resources::Served::parse("resource.k8s.io/v1beta1=true,apps/v1=false").unwrap();
    let api = Api::with(apiserver::Config { served, ..apiserver::Config::default() }).await;
    let group = api.get("/apis/resource.k8s.io").await.json();
    let versions: Vec<&str> = group["versions"].as_array().unwrap().iter().filter_map(|version| version["version"].as_str()).collect();
    assert_eq!((versions, group["preferredVersion"]["version"].as_str()), (vec!["v1", "v1beta1"], Some("v1")));
    assert_eq!(api.get("/apis/apps/v1/deployments").await.code, 404);
    assert!(api.get("/openapi/v3").await.json()["paths"]["apis/apps/v1"].is_null());
}
