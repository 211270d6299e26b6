//! What clients see of creating, reading, changing and deleting objects.

mod harness;

use harness::Api;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"a": "1"}})
}

fn deployment(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[tokio::test]
async fn an_object_lives_from_create_to_delete() {
    let api = Api::new().await;
    let made = api.post(MAPS, map("m")).await;
    assert_eq!(made.code, 201);
    let object = made.json();
    assert_eq!((&object["kind"], &object["apiVersion"], &object["data"]["a"]), (&json!("ConfigMap"), &json!("v1"), &json!("1")));
    for field in ["uid", "creationTimestamp", "resourceVersion"] {
        assert!(object["metadata"][field].is_string(), "{field}");
    }
    assert_eq!(api.get(&format!("{MAPS}/m")).await.json(), object);
    let again = api.post(MAPS, map("m")).await;
    assert_eq!((again.code, again.message().as_str()), (409, "configmaps \"m\" already exists"));
    let gone = api.delete(&format!("{MAPS}/m")).await;
    assert_eq!((gone.code, &gone.json()["status"], &gone.json()["details"]["uid"]), (200, &json!("Success"), &object["metadata"]["uid"]));
    let missing = api.get(&format!("{MAPS}/m")).await;
    assert_eq!((missing.code, missing.message().as_str()), (404, "configmaps \"m\" not found"));
}

#[tokio::test]
async fn a_stale_update_is_a_conflict_and_an_equal_one_writes_nothing() {
    let api = Api::new().await;
    let first = api.post(MAPS, map("m")).await.json();
    let mut second = first.clone();
    second["data"]["a"] = "2".into();
    let path = format!("{MAPS}/m");
    let updated = api.put(&path, second.clone()).await;
    assert_eq!(updated.code, 200);
    assert_ne!(updated.json()["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let stale = api.put(&path, first).await;
    assert_eq!(stale.code, 409);
    assert_eq!(
        stale.message(),
        "Operation cannot be fulfilled on configmaps \"m\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let same = api.put(&path, updated.json()).await;
    assert_eq!((same.code, same.version()), (200, updated.version()));
    let unpatched = api.merge(&path, json!({"data": {"a": "2"}})).await;
    assert_eq!((unpatched.code, unpatched.version()), (200, updated.version()));
}

#[tokio::test]
async fn some_kinds_refuse_an_update_that_does_not_say_over_which_version() {
    let api = Api::new().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    // collection, object, message or none where the update is taken
    let budget = json!({"metadata": {"name": "x"}, "spec": {"minAvailable": 1}});
    let cases = [
        (MAPS, map("x"), None),
        (leases, json!({"metadata": {"name": "x"}}), Some("leases.coordination.k8s.io")),
        ("/apis/policy/v1/namespaces/default/poddisruptionbudgets", budget, Some("poddisruptionbudgets.policy")),
        ("/apis/node.k8s.io/v1/runtimeclasses", json!({"metadata": {"name": "x"}, "handler": "h"}), Some("runtimeclasses.node.k8s.io")),
    ];
    for (collection, object, refused) in cases {
        let path = format!("{collection}/x");
        assert_eq!(api.post(collection, object.clone()).await.code, 201, "{collection}");
        for version in ["", "0"] {
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = version.into();
            let blind = api.put(&path, object).await;
            let wanted = refused.map_or(String::new(), |kind| {
                format!("{kind} \"x\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update")
            });
            assert_eq!((blind.code, blind.message()), (if refused.is_some() { 422 } else { 200 }, wanted), "{collection}");
        }
        let sighted = api.get(&path).await.json();
        assert_eq!(api.put(&path, sighted).await.code, 200, "{collection}");
        assert_eq!(api.merge(&path, json!({"metadata": {"labels": {"a": "b"}}})).await.code, 200, "{collection}: a patch says it");
    }
    let created = api.put(&format!("{leases}/y"), json!({"metadata": {"name": "y"}})).await;
    assert_eq!(created.code, 201, "a lease that is absent is created: {}", created.message());
    let nameless = api.put(&format!("{MAPS}/x"), json!({"data": {}})).await;
    assert_eq!(
        (nameless.code, nameless.message().as_str()),
        (400, "the name of the object (x based on URL) was undeterminable: name must be provided")
    );
}

#[tokio::test]
async fn every_kind_of_patch_changes_what_it_says() {
    let api = Api::new().await;
    api.post(DEPLOYMENTS, deployment("d")).await;
    let path = format!("{DEPLOYMENTS}/d");
    let image = |answer: &harness::Answer| answer.json()["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    let container = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "strategic"}]}}}});
    let strategic = api.ask("PATCH", &path, "application/strategic-merge-patch+json", container.to_string()).await;
    assert_eq!((strategic.code, image(&strategic)), (200, json!("strategic")));
    let operations = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "json"}]);
    let patched = api.ask("PATCH", &path, "application/json-patch+json", operations.to_string()).await;
    assert_eq!((patched.code, image(&patched)), (200, json!("json")));
    assert_eq!(patched.json()["metadata"]["generation"], 3);
    let merged = api.merge(&path, json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!((&merged.json()["metadata"]["labels"]["x"], &merged.json()["metadata"]["generation"]), (&json!("y"), &json!(3)));
    let config = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {replicas: 7}}";
    let refused = api.ask("PATCH", &format!("{path}?fieldManager=me"), "application/apply-patch+yaml", config).await;
    assert_eq!(refused.code, 409, "{}", refused.message());
    let applied = api.ask("PATCH", &format!("{path}?fieldManager=me&force=true"), "application/apply-patch+yaml", config).await;
    assert_eq!((applied.code, &applied.json()["spec"]["replicas"]), (200, &json!(7)), "{}", applied.message());
    let fresh = "{apiVersion: v1, kind: ConfigMap, metadata: {name: new}, data: {k: v}}";
    let created = api.ask("PATCH", &format!("{MAPS}/new?fieldManager=me"), "application/apply-patch+yaml", fresh).await;
    assert_eq!((created.code, &created.json()["data"]["k"]), (201, &json!("v")), "{}", created.message());
    assert_eq!(api.ask("PATCH", &path, "text/plain", "x").await.code, 415);
    let odd = "{apiVersion: v1, kind: ConfigMap, metadata: {name: new, foo: x}, data: {k: v}, dada: {}}";
    for mode in ["Strict", "Warn", "Ignore"] {
        let query = format!("{MAPS}/new?fieldManager=me&fieldValidation={mode}");
        let undeclared = api.ask("PATCH", &query, "application/apply-patch+yaml", odd).await;
        let why = "errors:\n  .dada: field not declared in schema\n  .metadata.foo: field not declared in schema";
        let whole = format!("failed to create typed patch object (default/new; v1, Kind=ConfigMap): {why}");
        assert_eq!((undeclared.code, undeclared.message()), (400, whole), "{mode}");
    }
}

#[tokio::test]
async fn a_dry_run_shows_the_result_and_leaves_nothing() {
    let api = Api::new().await;
    let shown = api.post(&format!("{MAPS}?dryRun=All"), map("m")).await;
    assert_eq!((shown.code, shown.version().as_str()), (201, ""));
    assert_eq!(api.get(&format!("{MAPS}/m")).await.code, 404);
    api.post(MAPS, map("m")).await;
    let path = format!("{MAPS}/m?dryRun=All");
    assert_eq!(api.merge(&path, json!({"data": {"a": "9"}})).await.json()["data"]["a"], "9");
    assert_eq!(api.delete(&path).await.code, 200);
    assert_eq!(api.get(&format!("{MAPS}/m")).await.json()["data"]["a"], "1");
    assert_eq!(api.post(&format!("{MAPS}?dryRun=Some"), map("n")).await.code, 422);
    let service = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.96.7.7", "ports": [{"port": 80}]}});
    let services = "/api/v1/namespaces/default/services";
    assert_eq!(api.post(&format!("{services}?dryRun=All"), service.clone()).await.code, 201);
    assert_eq!(api.post(services, service.clone()).await.code, 201);
    let mut twin = service;
    twin["metadata"]["name"] = "t".into();
    let taken = api.post(services, twin.clone()).await;
    assert!(
        taken.code == 422 && taken.message().contains("failed to allocate IP 10.96.7.7: provided IP is already allocated"),
        "{}",
        taken.message()
    );
    api.delete(&format!("{services}/s")).await;
    assert_eq!(api.post(services, twin).await.code, 201);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_removed() {
    let api = Api::new().await;
    let mut held = map("m");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.post(MAPS, held).await;
    let path = format!("{MAPS}/m");
    let marked = api.delete(&path).await.json();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
    let added = api.merge(&path, json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}})).await;
    assert_eq!(added.code, 422);
    assert_eq!(api.merge(&path, json!({"metadata": {"finalizers": null}})).await.code, 200);
    assert_eq!(api.get(&path).await.code, 404);
}

#[tokio::test]
async fn deletion_follows_preconditions_and_propagation() {
    let api = Api::new().await;
    api.post(DEPLOYMENTS, deployment("d")).await;
    let path = format!("{DEPLOYMENTS}/d");
    let wrong = api.ask("DELETE", &path, "application/json", json!({"preconditions": {"uid": "other"}}).to_string()).await;
    assert_eq!(wrong.code, 409);
    let words =
        "Operation cannot be fulfilled on Deployment.apps \"d\": the UID in the precondition (other) does not match the UID in record (";
    assert!(wrong.message().starts_with(words), "{}", wrong.message());
    let foreground = api.delete(&format!("{path}?propagationPolicy=Foreground")).await.json();
    assert_eq!(foreground["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    let orphan = api.delete(&format!("{path}?propagationPolicy=Orphan")).await.json();
    assert_eq!(orphan["metadata"]["finalizers"], json!(["orphan"]));
    assert_eq!(api.delete(&format!("{path}?propagationPolicy=Sideways")).await.code, 422);
    assert_eq!(api.delete(&format!("{path}?propagationPolicy=Background")).await.code, 200);
    assert_eq!(api.get(&path).await.code, 404);
}

#[tokio::test]
async fn a_namespace_ends_when_its_finalizers_are_gone() {
    let api = Api::new().await;
    api.post("/api/v1/namespaces", json!({"metadata": {"name": "a"}})).await;
    let ending = api.delete("/api/v1/namespaces/a").await.json();
    assert_eq!(ending["status"]["phase"], "Terminating");
    assert_eq!(api.delete("/api/v1/namespaces/a").await.code, 409);
    let late = api.post("/api/v1/namespaces/a/configmaps", map("m")).await;
    assert_eq!(late.code, 403);
    assert!(late.message().contains("because it is being terminated"), "{}", late.message());
    let mut empty = api.get("/api/v1/namespaces/a").await.json();
    empty["spec"]["finalizers"] = json!([]);
    assert_eq!(api.put("/api/v1/namespaces/a/finalize", empty).await.code, 200);
    assert_eq!(api.get("/api/v1/namespaces/a").await.code, 404);
    let nowhere = api.post("/api/v1/namespaces/a/configmaps", map("m")).await;
    assert_eq!((nowhere.code, nowhere.message().as_str()), (404, "namespaces \"a\" not found"));
}

#[tokio::test]
async fn status_and_spec_are_written_through_their_own_doors() {
    let api = Api::new().await;
    api.post(DEPLOYMENTS, deployment("d")).await;
    let path = format!("{DEPLOYMENTS}/d");
    let both = json!({"spec": {"replicas": 5}, "status": {"replicas": 4}});
    let main = api.merge(&path, both.clone()).await.json();
    assert_eq!((&main["spec"]["replicas"], &main["status"]["replicas"]), (&json!(5), &Value::Null));
    let both = json!({"spec": {"replicas": 9}, "status": {"replicas": 4}});
    let status = api.merge(&format!("{path}/status"), both).await.json();
    assert_eq!((&status["spec"]["replicas"], &status["status"]["replicas"]), (&json!(5), &json!(4)));
    let scale = api.get(&format!("{path}/scale")).await.json();
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["replicas"], &scale["status"]["selector"]),
        (&json!(5), &json!(4), &json!("app=d"))
    );
    assert_eq!(api.merge(&format!("{path}/scale"), json!({"spec": {"replicas": 1}})).await.json()["spec"]["replicas"], 1);
    assert_eq!(api.get(&path).await.json()["spec"]["replicas"], 1);
}

#[tokio::test]
async fn an_applied_scale_owns_the_replicas() {
    let api = Api::new().await;
    let path = format!("{DEPLOYMENTS}/d/scale");
    let scale =
        |replicas: i64| format!("{{apiVersion: autoscaling/v1, kind: Scale, metadata: {{name: d}}, spec: {{replicas: {replicas}}}}}");
    let apply = async |query: &str, replicas: i64| {
        api.ask("PATCH", &format!("{path}?{query}"), "application/apply-patch+yaml", scale(replicas)).await
    };
    assert_eq!(apply("fieldManager=a", 3).await.code, 404);
    api.post(&format!("{DEPLOYMENTS}?fieldManager=maker"), deployment("d")).await;
    let conflict = apply("fieldManager=a", 3).await;
    assert!(
        conflict.code == 409 && conflict.message().contains("conflict with \"maker\" using apps/v1: .spec.replicas"),
        "{}",
        conflict.message()
    );
    let forced = apply("fieldManager=a&force=true", 3).await;
    assert_eq!((forced.code, &forced.json()["kind"], &forced.json()["spec"]["replicas"]), (200, &json!("Scale"), &json!(3)));
    let fields = api.get(&format!("{DEPLOYMENTS}/d")).await.json()["metadata"]["managedFields"].clone();
    let owner = fields.as_array().unwrap().iter().find(|entry| entry["manager"] == "a").unwrap();
    assert_eq!(
        (&owner["operation"], &owner["apiVersion"], &owner["subresource"], &owner["fieldsV1"]),
        (&json!("Apply"), &json!("apps/v1"), &json!("scale"), &json!({"f:spec": {"f:replicas": {}}}))
    );
    assert_eq!(
        apply("fieldManager=a", -1).await.message(),
        "Scale.autoscaling \"d\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
    );
    assert_eq!(apply("", 1).await.code, 422);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let api = Api::new().await;
    api.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let pods = "/api/v1/namespaces/default/pods";
    let made = api.post(pods, json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let bind = |node: &str| json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}});
    let path = format!("{pods}/p/binding");
    assert_eq!(api.post(&path, bind("n1")).await.code, 201);
    let twice = api.post(&path, bind("n2")).await;
    assert_eq!(twice.code, 409);
    assert!(twice.message().ends_with("pod p is already assigned to node \"n1\""), "{}", twice.message());
    let pod = api.get(&format!("{pods}/p")).await.json();
    assert_eq!(pod["spec"]["nodeName"], "n1");
    assert_eq!(
        (&pod["status"]["conditions"][0]["type"], &pod["status"]["conditions"][0]["status"]),
        (&json!("PodScheduled"), &json!("True"))
    );
    let dying = api.delete(&format!("{pods}/p")).await.json();
    assert_eq!(dying["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(api.delete(&format!("{pods}/p?gracePeriodSeconds=0")).await.code, 200);
    assert_eq!(api.get(&format!("{pods}/p")).await.code, 404);
}

#[tokio::test]
async fn a_deletion_that_names_its_grace_period_has_that_one_even_where_the_pod_has_none() {
    let api = Api::new().await;
    api.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let pods = "/api/v1/namespaces/default/pods";
    let spec = json!({"nodeName": "n1", "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i"}]});
    assert_eq!(api.post(pods, json!({"metadata": {"name": "p"}, "spec": spec})).await.code, 201);
    assert_eq!(api.delete(&format!("{pods}/p?gracePeriodSeconds=60")).await.code, 200);
    let dying = api.get(&format!("{pods}/p")).await.json();
    assert_eq!((&dying["metadata"]["deletionGracePeriodSeconds"], &dying["metadata"]["generation"]), (&json!(60), &json!(2)));
    assert_eq!(api.delete(&format!("{pods}/p")).await.code, 200);
    assert_eq!(api.get(&format!("{pods}/p")).await.code, 404);
}

#[tokio::test]
async fn an_approval_writes_its_conditions_and_the_metadata() {
    let api = Api::new().await;
    let request = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, include_str!("harness/sample.csr"));
    let spec = json!({"request": request, "signerName": "example.com/mine", "usages": ["client auth"]});
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    assert_eq!(api.post(requests, json!({"metadata": {"name": "r"}, "spec": spec})).await.code, 201);
    let conditions = json!([{"type": "Mine", "status": "True", "reason": "x"}]);
    let patch = json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"signerName": "x/y"}, "status": {"conditions": conditions}});
    let approved = api.merge(&format!("{requests}/r/approval"), patch).await;
    assert_eq!(approved.code, 200, "{}", approved.message());
    let approved = approved.json();
    assert_eq!(approved["metadata"]["annotations"], json!({"a": "b"}));
    assert_eq!(
        (&approved["status"]["conditions"][0]["type"], &approved["spec"]["signerName"]),
        (&json!("Mine"), &json!("example.com/mine"))
    );
}

#[tokio::test]
async fn what_is_only_asked_has_no_table() {
    let api = Api::new().await;
    let review = json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}}).to_string();
    for (accept, code) in
        [("application/json;as=Table;v=v1;g=meta.k8s.io", 406), ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", 201)]
    {
        let request = http::Request::builder().method("POST").uri("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews");
        let request = request.header("accept", accept).header("content-type", "application/json").body(harness::body(review.clone()));
        assert_eq!(api.send(request.unwrap(), harness::admin()).await.code, code, "{accept}");
    }
}

#[tokio::test]
async fn names_are_generated_and_checked() {
    let api = Api::new().await;
    let one = api.post(MAPS, json!({"metadata": {"generateName": "m-"}})).await.json();
    let name = one["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("m-") && name.len() == 7, "{name}");
    let nameless = api.post(MAPS, json!({"metadata": {}})).await;
    assert!(nameless.message().contains("metadata.name: Required value: name or generateName is required"), "{}", nameless.message());
    let bad = api.post(MAPS, map("Upper_Case")).await;
    assert_eq!(bad.code, 422);
    let elsewhere = api.post(MAPS, json!({"metadata": {"name": "m", "namespace": "other"}})).await;
    assert_eq!(elsewhere.message(), "the namespace of the provided object does not match the namespace sent on the request");
}

#[tokio::test]
async fn bad_input_is_named_and_changes_nothing() {
    let api = Api::new().await;
    let big = format!("{{\"metadata\":{{\"name\":\"m\"}},\"data\":{{\"a\":\"{}\"}}}}", "x".repeat(4 << 20));
    // path suffix, content type, body, code, part of the message
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("", "application/json", "{\"metadata\":", 400, "unexpected end of JSON input"),
        ("", "application/json", "", 400, ""),
        ("", "application/json", "[]", 400, ""),
        ("", "application/yaml", "a: [", 400, "yaml"),
        ("", "application/json", "{\"metadata\":{\"name\":\"m\"},\"data\":{\"a\":1}}", 400, "data"),
        (
            "?fieldValidation=Strict",
            "application/json",
            "{\"metadata\":{\"name\":\"m\"},\"foo\":1}",
            400,
            "strict decoding error: unknown field \"foo\"",
        ),
        ("?fieldValidation=Perhaps", "application/json", "{}", 422, "fieldValidation"),
        ("", "text/plain", "hello", 415, "accepted media types include: application/json"),
        ("", "application/vnd.kubernetes.protobuf", "k8s\u{0}garbage", 400, ""),
        (
            "",
            "application/json",
            "{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"m\"}}",
            400,
            "cannot be handled as a ConfigMap",
        ),
        (
            "",
            "application/json",
            "{\"kind\":\"ConfigMap\",\"apiVersion\":\"v2\",\"metadata\":{\"name\":\"m\"}}",
            400,
            "does not match the expected API version (v1)",
        ),
        ("", "application/json", &big, 413, "Request entity too large"),
    ];
    let before = api.get(MAPS).await.version();
    for (suffix, content_type, content, code, words) in cases {
        let answer = api.ask("POST", &format!("{MAPS}{suffix}"), content_type, content.to_string()).await;
        let shown = content.get(..60).unwrap_or(content);
        assert_eq!((answer.code, answer.json()["kind"].as_str()), (*code, Some("Status")), "{shown}: {}", answer.message());
        assert!(answer.message().contains(words), "{shown}: {}", answer.message());
    }
    assert_eq!(api.get(MAPS).await.version(), before);
    let warned = api.post(MAPS, json!({"metadata": {"name": "m"}, "foo": 1})).await;
    assert_eq!((warned.code, warned.warnings()), (201, vec!["299 - \"unknown field \\\"foo\\\"\"".to_owned()]));
    for (method, path, code) in [
        ("PUT", MAPS, 405),
        ("POST", "/api/v1/configmaps", 405),
        ("GET", "/api/v1/configmaps/m", 404),
        ("GET", "/api/v1/configmaps?fieldSelector=metadata.name%3Dm", 200),
        ("GET", "/api/v1/namespaces/default/nothing", 404),
        ("GET", "/apis/none/v1/x", 404),
    ] {
        assert_eq!(api.ask(method, path, "application/json", "{}").await.code, code, "{method} {path}");
    }
}

#[tokio::test]
async fn a_collection_is_deleted_in_chunks() {
    let api = Api::new().await;
    for name in ["a", "b", "c"] {
        api.post(MAPS, map(name)).await;
    }
    let names = |answer: &harness::Answer| {
        let items = answer.json()["items"].as_array().unwrap().clone();
        items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let first = api.delete(&format!("{MAPS}?limit=2")).await;
    assert_eq!(
        (first.code, names(&first), &first.json()["metadata"]["remainingItemCount"]),
        (200, vec!["a".into(), "b".into()], &json!(1))
    );
    assert_eq!(names(&api.get(MAPS).await), ["c"]);
    let token = first.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    let rest = api.delete(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!((rest.code, names(&rest), &rest.json()["metadata"]["continue"]), (200, vec!["c".into()], &Value::Null));
    assert!(names(&api.get(MAPS).await).is_empty());
    assert_eq!(api.delete(&format!("{MAPS}?continue=nonsense")).await.code, 400);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let api = Api::new().await;
    for (name, label) in [("a", "x"), ("b", "x"), ("c", "y")] {
        let mut object = map(name);
        object["metadata"]["labels"] = json!({"l": label});
        api.post(MAPS, object).await;
    }
    assert_eq!(api.delete(&format!("{MAPS}?labelSelector=l%3Dx")).await.code, 200);
    let left: Vec<Value> =
        api.get(MAPS).await.json()["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone()).collect();
    assert_eq!(left, ["c"]);
}

#[tokio::test]
async fn services_have_addresses_of_every_range_that_is_ready() {
    let api = Api::new().await;
    let services = "/api/v1/namespaces/default/services";
    let wanting = |name: &str, address: &str| json!({"metadata": {"name": name}, "spec": {"clusterIP": address, "ports": [{"port": 80}]}});
    let outside = api.post(services, wanting("a", "10.200.0.7")).await;
    let words = "failed to allocate IP 10.200.0.7: the provided network does not match the current range";
    assert!(outside.code == 422 && outside.message().contains(words), "{}", outside.message());

    let ranges = "/apis/networking.k8s.io/v1/servicecidrs";
    let range = json!({"metadata": {"name": "second", "finalizers": ["example.com/held"]}, "spec": {"cidrs": ["10.200.0.0/24"]}});
    assert_eq!(api.post(ranges, range).await.code, 201);
    assert_eq!(api.post(services, wanting("a", "10.200.0.7")).await.code, 201);
    let edges = ["10.200.0.0", "10.200.0.255"];
    for edge in edges {
        assert_eq!(api.post(services, wanting("edge", edge)).await.code, 422, "{edge}");
    }

    let parent = json!({"group": "gateway.networking.k8s.io", "resource": "gateways", "name": "g"});
    let address = json!({"metadata": {"name": "10.200.0.8"}, "spec": {"parentRef": parent}});
    assert_eq!(api.post("/apis/networking.k8s.io/v1/ipaddresses", address).await.code, 201);
    let taken = api.post(services, wanting("b", "10.200.0.8")).await;
    assert!(taken.message().contains("failed to allocate IP 10.200.0.8: provided IP is already allocated"), "{}", taken.message());

    assert_eq!(api.delete(&format!("{ranges}/second")).await.code, 200);
    let leaving = api.post(services, wanting("b", "10.200.0.9")).await;
    assert!(leaving.code == 422 && leaving.message().contains("does not match the current range"), "{}", leaving.message());
}

#[tokio::test]
async fn a_full_range_is_followed_by_the_next() {
    let small = apiserver::Network { first: "10.96.0.0".parse().unwrap(), prefix: 30 };
    let ranges = apiserver::Ranges { networks: vec![small], ..Default::default() };
    let api = Api::with(apiserver::Config { services: ranges, ..apiserver::Config::default() }).await;
    let services = "/api/v1/namespaces/default/services";
    let any = |name: &str| json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    // The first of two is the `kubernetes` Service's.
    assert_eq!(api.post(services, any("a")).await.json()["spec"]["clusterIP"], "10.96.0.2");
    let full = api.post(services, any("b")).await;
    assert!(full.message().contains("range is full"), "{}", full.message());
    let more = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.201.0.0/30"]}});
    assert_eq!(api.post("/apis/networking.k8s.io/v1/servicecidrs", more).await.code, 201);
    let next = api.post(services, any("b")).await.json()["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(next.starts_with("10.201.0."), "{next}");
}
