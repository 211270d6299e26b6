//! The same pod under many names: the short way makes what the long way makes, and knows when it no longer holds.

mod harness;

use harness::cases::{make, namespace, pod};
use harness::{Answer, Api, admin, body};
use http::Request;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/a/pods";

async fn server() -> Api {
    let api = Api::new().await;
    namespace(&api, "a", json!({}), json!({})).await;
    api
}

/// Without what is each object's own.
fn alike(mut object: Value) -> Value {
    let metadata = object["metadata"].as_object_mut().unwrap();
    for name in ["name", "uid", "creationTimestamp", "resourceVersion"] {
        let own = metadata.insert(name.into(), Value::Null).unwrap_or_default();
        assert!(own.as_str().is_some_and(|own| !own.is_empty()), "{name}");
    }
    for entry in metadata["managedFields"].as_array_mut().unwrap() {
        assert!(entry["time"].as_str().is_some_and(|time| time.ends_with('Z')));
        entry["time"] = Value::Null;
    }
    // The token's volume has a name of its own where it is made the long way.
    let volume = object["spec"]["volumes"][0]["name"].as_str().unwrap().to_owned();
    assert!(volume.starts_with("kube-api-access-"));
    serde_json::from_str(&object.to_string().replace(&volume, "kube-api-access")).unwrap()
}

fn template() -> Value {
    let mut pod = pod("", json!({"nodeSelector": {"name": "b"}, "tolerations": [{"operator": "Exists"}]}));
    pod["metadata"] = json!({"labels": {"name": "d"}, "annotations": {"metadata": "{\"name\":\"e\"}\\"}});
    pod
}

fn named(name: &str) -> Value {
    let mut pod = template();
    pod["metadata"]["name"] = name.into();
    pod
}

/// The third and all that follow go the short way.
async fn warm(api: &Api) {
    for number in 0..3 {
        assert_eq!(api.post(PODS, named(&format!("warm-{number}"))).await.code, 201);
    }
}

#[tokio::test]
async fn repetitions_are_what_the_first_was() {
    let api = server().await;
    let (mut first, mut uids) = (None, std::collections::BTreeSet::new());
    for number in 0..6 {
        let name = format!("pod-{number}");
        let made = api.post(PODS, named(&name)).await;
        assert_eq!((made.code, made.json()["metadata"]["name"].as_str()), (201, Some(name.as_str())));
        let read = api.get(&format!("{PODS}/{name}")).await.json();
        assert_eq!(read, made.json());
        uids.insert(read["metadata"]["uid"].to_string());
        let read = alike(read);
        assert_eq!(&read, first.get_or_insert(read.clone()), "{number}");
    }
    assert_eq!(uids.len(), 6);
    let mut generated = template();
    generated["metadata"]["generateName"] = "web-".into();
    let mut names = std::collections::BTreeSet::new();
    let mut first = None;
    for number in 0..6 {
        let made = api.post(PODS, generated.clone()).await.json();
        assert!(made["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("web-") && name.len() == 9), "{made}");
        names.insert(made["metadata"]["name"].to_string());
        let made = alike(made);
        assert_eq!(&made, first.get_or_insert(made.clone()), "{number}");
    }
    assert_eq!(names.len(), 6);
}

#[tokio::test]
async fn a_repetition_is_refused_as_the_first_would_be() {
    let api = server().await;
    warm(&api).await;
    let refused = |answer: Answer, code: u16, words: &str| {
        assert_eq!(answer.code, code, "{}", answer.message());
        assert!(answer.message().contains(words), "{}", answer.message());
    };
    refused(api.post(PODS, named("warm-0")).await, 409, "pods \"warm-0\" already exists");
    refused(api.post(PODS, named("Not_A_Name")).await, 422, "metadata.name: Invalid value: \"Not_A_Name\"");
    refused(api.post(PODS, named(&"x".repeat(300))).await, 422, "metadata.name");
    assert_eq!(api.post(PODS, named("with.dots")).await.code, 201);
    refused(api.post("/api/v1/namespaces/none/pods", named("x")).await, 404, "namespaces \"none\" not found");
    let dry = api.post(&format!("{PODS}?dryRun=All"), named("dry")).await;
    assert_eq!((dry.code, api.get(&format!("{PODS}/dry")).await.code), (201, 404));
    // What it would do without the account.
    assert_eq!(api.delete("/api/v1/namespaces/a/serviceaccounts/default").await.code, 200);
    refused(api.post(PODS, named("y")).await, 403, "service account a/default");
    make(&api, "/api/v1/namespaces/a/serviceaccounts", json!({"metadata": {"name": "default"}, "imagePullSecrets": [{"name": "s"}]})).await;
    assert_eq!(api.post(PODS, named("z")).await.json()["spec"]["imagePullSecrets"], json!([{"name": "s"}]));
    assert_eq!(api.delete("/api/v1/namespaces/a").await.code, 200);
    refused(api.post(PODS, named("late")).await, 403, "because it is being terminated");
}

#[tokio::test]
async fn what_changes_in_the_cluster_changes_the_next_repetition() {
    let api = server().await;
    warm(&api).await;
    let limits = json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "default": {"cpu": "2"}}]}});
    let cpu = |answer: Answer| answer.json()["spec"]["containers"][0]["resources"]["limits"]["cpu"].clone();
    namespace(&api, "b", json!({}), json!({})).await;
    make(&api, "/api/v1/namespaces/b/limitranges", limits.clone()).await;
    assert_eq!(cpu(api.post(PODS, named("elsewhere")).await), Value::Null);
    make(&api, "/api/v1/namespaces/a/limitranges", limits).await;
    for number in 0..4 {
        assert_eq!(cpu(api.post(PODS, named(&format!("limited-{number}"))).await), "2");
    }
    let gone = api.delete("/api/v1/namespaces/a/limitranges/l").await;
    assert_eq!(gone.code, 200);
    assert_eq!(cpu(api.post(PODS, named("free")).await), Value::Null);
    let class = json!({"metadata": {"name": "p"}, "value": 7, "globalDefault": true});
    make(&api, "/apis/scheduling.k8s.io/v1/priorityclasses", class).await;
    for number in 0..3 {
        assert_eq!(api.post(PODS, named(&format!("important-{number}"))).await.json()["spec"]["priority"], 7);
    }
    // Upstream's level `restricted` refuses this pod.
    let strict = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    assert_eq!(api.merge("/api/v1/namespaces/a", strict).await.code, 200);
    assert_eq!(api.post(PODS, named("loose")).await.code, 403);
}

#[tokio::test]
async fn quotas_are_charged_for_each() {
    let api = server().await;
    warm(&api).await;
    let path = "/api/v1/namespaces/a/resourcequotas";
    make(&api, path, json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "5"}}})).await;
    // The controller's part.
    let told = api.merge(&format!("{path}/q/status"), json!({"status": {"hard": {"pods": "5"}, "used": {"pods": "0"}}})).await;
    assert_eq!(api.get(&format!("{path}?resourceVersion={}", told.version())).await.code, 200);
    let mut codes = Vec::new();
    for number in 0..7 {
        codes.push(api.post(PODS, named(&format!("charged-{number}"))).await.code);
    }
    assert_eq!(codes, [201, 201, 201, 201, 201, 403, 403]);
}

#[tokio::test]
async fn policies_judge_each_by_its_name() {
    let api = server().await;
    warm(&api).await;
    let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]);
    let spec = json!({"matchConstraints": {"resourceRules": rules}, "validations": [{"expression": "object.metadata.name != 'bad'"}]});
    let group = "/apis/admissionregistration.k8s.io/v1";
    make(&api, &format!("{group}/validatingadmissionpolicies"), json!({"metadata": {"name": "p"}, "spec": spec})).await;
    let spec = json!({"policyName": "p", "validationActions": ["Deny"]});
    make(&api, &format!("{group}/validatingadmissionpolicybindings"), json!({"metadata": {"name": "p"}, "spec": spec})).await;
    for (name, code) in [("good", 201), ("better", 201), ("bad", 422), ("best", 201), ("bad", 422)] {
        assert_eq!(api.post(PODS, named(name)).await.code, code, "{name}");
    }
}

#[tokio::test]
async fn everybody_owns_the_fields_that_they_wrote_and_is_warned() {
    let api = server().await;
    warm(&api).await;
    let manager = |answer: &Answer| answer.json()["metadata"]["managedFields"][0]["manager"].clone();
    for (number, name) in ["one", "two", "one", "two", "one", "two"].into_iter().enumerate() {
        let made = api.post(&format!("{PODS}?fieldManager={name}"), named(&format!("owned-{number}"))).await;
        assert_eq!(manager(&made), name);
    }
    for number in 0..4 {
        let mut wrong = named(&format!("wrong-{number}"));
        wrong["spec"]["unheardOf"] = 1.into();
        let made = api.post(PODS, wrong).await;
        assert_eq!((made.code, made.warnings()), (201, vec!["299 - \"unknown field \\\"spec.unheardOf\\\"\"".to_owned()]), "{number}");
    }
    // An audit annotation of admission's is there each time; so is the decoration of the answer.
    let table = Request::builder().method("POST").uri(PODS).header("content-type", "application/json");
    let table = table.header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io").body(body(named("shown").to_string())).unwrap();
    let table = api.send(table, admin()).await.json();
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("shown")));
}
