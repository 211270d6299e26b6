//! CustomResourceDefinitions and their objects, asked as clients ask.

mod harness;

use std::time::Duration;

use harness::{Answer, Api};
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const TABS: &str = "/apis/stable.example.com/v1/namespaces/default/crontabs";

fn crd() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "kind": "CronTab", "shortNames": ["ct"], "categories": ["all"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["cronSpec"],
                        "x-kubernetes-validations": [{"rule": "self.replicas <= 10", "message": "too many replicas"}],
                        "properties": {
                            "cronSpec": {"type": "string", "pattern": "^\\S+( \\S+){4}$"},
                            "image": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "image is immutable"}]},
                            "replicas": {"type": "integer", "default": 1},
                            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                                "items": {"type": "object", "required": ["port"], "properties": {"port": {"type": "integer"}, "name": {"type": "string"}}}}
                        }},
                    "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}}
                }}},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
                "additionalPrinterColumns": [{"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec"}, {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"}],
                "selectableFields": [{"jsonPath": ".spec.image"}]
            }]
        }
    })
}

fn tab(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": {"name": name}, "spec": spec})
}

async fn until(api: &Api, path: &str, test: impl Fn(&Answer) -> bool) -> Answer {
    for _ in 0..500 {
        let answer = api.get(path).await;
        if test(&answer) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{path}: {}", api.get(path).await.json());
}

fn condition(crd: &Value, kind: &str) -> String {
    let conditions = crd["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition["type"] == kind);
    found.map_or_else(String::new, |condition| condition["status"].as_str().unwrap_or_default().to_owned())
}

async fn serve(api: &Api, crd: Value) -> Value {
    let path = format!("{CRDS}/{}", crd["metadata"]["name"].as_str().unwrap());
    let made = api.post(CRDS, crd).await;
    assert_eq!(made.code, 201, "{}", made.json());
    until(api, &path, |answer| condition(&answer.json(), "Established") == "True").await.json()
}

#[tokio::test]
async fn an_established_kind_is_discovered_and_its_objects_live_as_any() {
    let api = Api::new().await;
    let made = serve(&api, crd()).await;
    assert_eq!(made["spec"]["names"]["singular"], "crontab");
    assert_eq!(made["spec"]["names"]["listKind"], "CronTabList");
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(made["status"]["acceptedNames"]["plural"], "crontabs");
    assert_eq!(condition(&made, "NamesAccepted"), "True");
    let list = api.get("/apis/stable.example.com/v1").await.json();
    let names: Vec<&str> = list["resources"].as_array().unwrap().iter().map(|found| found["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["crontabs", "crontabs/scale", "crontabs/status"]);
    assert_eq!(list["resources"][0]["shortNames"], json!(["ct"]));

    let spec = json!({"cronSpec": "* * * * */5", "image": "a", "unknown": 1, "free": {"kept": [1, null]}});
    let answer = api.post(TABS, tab("one", spec)).await;
    assert_eq!(answer.code, 201, "{}", answer.json());
    let object = answer.json();
    assert_eq!(object["spec"], json!({"cronSpec": "* * * * */5", "image": "a", "replicas": 1, "free": {"kept": [1, null]}}));
    assert_eq!(object["metadata"]["generation"], 1);
    assert_eq!(answer.warnings(), ["299 - \"unknown field \\\"spec.unknown\\\"\""]);
    assert_eq!(api.get(&format!("{TABS}/one")).await.json(), object);
    let list = api.get(TABS).await.json();
    assert_eq!((&list["kind"], list["items"][0]["kind"].as_str()), (&json!("CronTabList"), Some("CronTab")));

    let strict = api.post(&format!("{TABS}?fieldValidation=Strict"), tab("two", json!({"cronSpec": "* * * * *", "unknown": 1}))).await;
    assert_eq!(strict.code, 400);
    assert!(strict.message().contains("strict decoding error: unknown field \"spec.unknown\""), "{}", strict.message());
}

#[tokio::test]
async fn invalid_objects_are_refused_in_upstreams_words() {
    let api = Api::new().await;
    serve(&api, crd()).await;
    let cases = [
        (
            json!({}),
            "CronTab.stable.example.com \"x\" is invalid: [spec.cronSpec: Required value, <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation]",
        ),
        (
            json!({"cronSpec": "no"}),
            "CronTab.stable.example.com \"x\" is invalid: spec.cronSpec: Invalid value: \"no\": spec.cronSpec in body should match '^\\S+( \\S+){4}$'",
        ),
        (
            json!({"cronSpec": "* * * * *", "replicas": 11}),
            "CronTab.stable.example.com \"x\" is invalid: spec: Invalid value: too many replicas",
        ),
        (
            json!({"cronSpec": "* * * * *", "ports": [{"port": 1}, {"port": 1}]}),
            "CronTab.stable.example.com \"x\" is invalid: spec.ports[1]: Duplicate value: {\"port\":1}",
        ),
    ];
    for (spec, wanted) in cases {
        let answer = api.post(TABS, tab("x", spec)).await;
        assert_eq!((answer.code, answer.message().as_str()), (422, wanted));
    }
    api.post(TABS, tab("ok", json!({"cronSpec": "* * * * *", "image": "a"}))).await;
    let changed = api.merge(&format!("{TABS}/ok"), json!({"spec": {"image": "b"}})).await;
    assert_eq!(changed.message(), "CronTab.stable.example.com \"ok\" is invalid: spec.image: Invalid value: \"b\": image is immutable");
    let media = api.ask("PATCH", &format!("{TABS}/ok"), "application/strategic-merge-patch+json", "{}").await;
    assert_eq!(media.code, 415);
    assert_eq!(api.ask("POST", TABS, "application/vnd.kubernetes.protobuf", "k8s").await.code, 415);
}

#[tokio::test]
async fn status_and_scale_are_written_apart() {
    let api = Api::new().await;
    serve(&api, crd()).await;
    let one = format!("{TABS}/one");
    api.post(TABS, tab("one", json!({"cronSpec": "* * * * *"}))).await;
    let written =
        api.merge(&format!("{one}/status"), json!({"spec": {"replicas": 7}, "status": {"replicas": 3, "selector": "a=b"}})).await.json();
    assert_eq!(
        (&written["spec"]["replicas"], &written["status"]["replicas"], &written["metadata"]["generation"]),
        (&json!(1), &json!(3), &json!(1))
    );
    let main = api.merge(&one, json!({"spec": {"replicas": 2}, "status": {"replicas": 9}})).await.json();
    assert_eq!(
        (&main["spec"]["replicas"], &main["status"]["replicas"], &main["metadata"]["generation"]),
        (&json!(2), &json!(3), &json!(2))
    );
    let scale = api.get(&format!("{one}/scale")).await.json();
    assert_eq!((&scale["spec"], &scale["status"]), (&json!({"replicas": 2}), &json!({"replicas": 3, "selector": "a=b"})));
    let scaled = api.merge(&format!("{one}/scale"), json!({"spec": {"replicas": 5}})).await;
    assert_eq!((scaled.code, &scaled.json()["spec"]["replicas"]), (200, &json!(5)));
    assert_eq!(api.get(&one).await.json()["spec"]["replicas"], 5);
}

#[tokio::test]
async fn apply_merges_by_the_schemas_keys() {
    let api = Api::new().await;
    serve(&api, crd()).await;
    let apply = async |manager: &str, spec: Value| {
        let path = format!("{TABS}/one?fieldManager={manager}");
        api.ask("PATCH", &path, "application/apply-patch+yaml", tab("one", spec).to_string()).await
    };
    let first = apply("a", json!({"cronSpec": "* * * * *", "ports": [{"port": 80, "name": "web"}]})).await;
    assert_eq!(first.code, 201, "{}", first.json());
    let second = apply("b", json!({"ports": [{"port": 81}]})).await;
    assert_eq!(second.json()["spec"]["ports"], json!([{"port": 80, "name": "web"}, {"port": 81}]), "{}", second.json());
    let conflict = apply("b", json!({"cronSpec": "1 * * * *"})).await;
    assert_eq!(conflict.code, 409);
    assert!(conflict.message().contains("conflict with \"a\": .spec.cronSpec"), "{}", conflict.message());
}

#[tokio::test]
async fn tables_selectors_and_watches_know_the_kind() {
    let api = Api::new().await;
    serve(&api, crd()).await;
    let mut watch = api.watch(&format!("{TABS}?watch=1&fieldSelector=spec.image%3Da")).await;
    api.post(TABS, tab("one", json!({"cronSpec": "* * * * *", "image": "a"}))).await;
    api.post(TABS, tab("two", json!({"cronSpec": "* * * * *", "image": "b"}))).await;
    assert_eq!(watch.line().await, "ADDED one");
    api.delete(&format!("{TABS}/one")).await;
    assert_eq!(watch.line().await, "DELETED one");
    let selected = api.get(&format!("{TABS}?fieldSelector=spec.image%3Db")).await.json();
    assert_eq!(selected["items"].as_array().unwrap().len(), 1);
    assert_eq!(api.get(&format!("{TABS}?fieldSelector=spec.other%3Db")).await.code, 400);
    let request = http::Request::builder().uri(TABS).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = api.send(request.body(harness::body("")).unwrap(), harness::admin()).await.json();
    let columns: Vec<&str> = table["columnDefinitions"].as_array().unwrap().iter().map(|column| column["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "Spec", "Replicas"]);
    assert_eq!(table["rows"][0]["cells"], json!(["two", "* * * * *", 1]));
}

#[tokio::test]
async fn a_changed_schema_prunes_and_defaults_what_was_stored_before() {
    let api = Api::new().await;
    serve(&api, crd()).await;
    api.post(TABS, tab("one", json!({"cronSpec": "* * * * *", "image": "a"}))).await;
    let path = format!("{CRDS}/crontabs.stable.example.com");
    let mut changed = api.get(&path).await.json();
    let properties = &mut changed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    properties["added"] = json!({"type": "string", "default": "new"});
    properties.as_object_mut().unwrap().remove("image");
    changed["spec"]["versions"][0].as_object_mut().unwrap().remove("selectableFields");
    let answer = api.put(&path, changed).await;
    assert_eq!(answer.code, 200, "{}", answer.json());
    let read = until(&api, &format!("{TABS}/one"), |answer| answer.json()["spec"]["added"] == "new").await.json();
    assert_eq!(read["spec"], json!({"cronSpec": "* * * * *", "replicas": 1, "added": "new"}));
    assert_eq!(api.get(TABS).await.json()["items"][0]["spec"], read["spec"]);
}

#[tokio::test]
async fn versions_without_conversion_differ_in_name_only() {
    let api = Api::new().await;
    let mut both = crd();
    let mut old = both["spec"]["versions"][0].clone();
    old["name"] = "v1beta1".into();
    old["storage"] = false.into();
    old["deprecated"] = true.into();
    both["spec"]["versions"].as_array_mut().unwrap().push(old);
    serve(&api, both.clone()).await;
    let beta = TABS.replace("/v1/", "/v1beta1/");
    let mut object = tab("one", json!({"cronSpec": "* * * * *"}));
    object["apiVersion"] = "stable.example.com/v1beta1".into();
    let made = api.post(&beta, object).await;
    assert_eq!((made.code, &made.json()["apiVersion"]), (201, &json!("stable.example.com/v1beta1")));
    assert_eq!(made.warnings(), ["299 - \"stable.example.com/v1beta1 CronTab is deprecated\""]);
    assert_eq!(api.get(&format!("{TABS}/one")).await.json()["apiVersion"], "stable.example.com/v1");
    let mut watch = api.watch(&format!("{beta}?watch=1")).await;
    let event = watch.next().await.unwrap();
    assert_eq!(event["object"]["apiVersion"], "stable.example.com/v1beta1");
    let stored = store::Store::get(&*api.store, b"/registry/stable.example.com/crontabs/default/one").await.unwrap().unwrap();
    let stored: Value = serde_json::from_slice(&stored.value).unwrap();
    assert_eq!(stored["apiVersion"], "stable.example.com/v1");
}

#[tokio::test]
async fn a_deleted_definition_takes_its_objects_along() {
    let api = Api::new().await;
    let made = serve(&api, crd()).await;
    let path = format!("{CRDS}/crontabs.stable.example.com");
    assert!(made["metadata"]["finalizers"].is_null());
    api.post(TABS, tab("one", json!({"cronSpec": "* * * * *"}))).await;
    let mut held = tab("held", json!({"cronSpec": "* * * * *"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.post(TABS, held).await;
    let marked = api.delete(&path).await.json();
    assert_eq!(marked["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    until(&api, &format!("{TABS}/one"), |answer| answer.code == 404).await;
    let waiting = until(&api, &path, |answer| condition(&answer.json(), "Terminating") == "True").await;
    assert_eq!(waiting.code, 200);
    assert_eq!(api.post(TABS, tab("late", json!({"cronSpec": "* * * * *"}))).await.code, 405);
    api.merge(&format!("{TABS}/held"), json!({"metadata": {"finalizers": null}})).await;
    until(&api, &path, |answer| answer.code == 404).await;
    until(&api, TABS, |answer| answer.code == 404).await;
}

#[tokio::test]
async fn names_belong_to_who_had_them_first() {
    let api = Api::new().await;
    serve(&api, crd()).await;
    let mut second = crd();
    second["metadata"]["name"] = "others.stable.example.com".into();
    second["spec"]["names"] = json!({"plural": "others", "singular": "other", "kind": "CronTab", "shortNames": ["ct"]});
    assert_eq!(api.post(CRDS, second).await.code, 201);
    let path = format!("{CRDS}/others.stable.example.com");
    let refused = until(&api, &path, |answer| condition(&answer.json(), "NamesAccepted") == "False").await.json();
    assert_eq!(condition(&refused, "Established"), "False");
    let accepted =
        refused["status"]["conditions"].as_array().unwrap().iter().find(|found| found["type"] == "NamesAccepted").unwrap().clone();
    assert_eq!((&accepted["reason"], &accepted["message"]), (&json!("ShortNamesConflict"), &json!("\"ct\" is already in use")));
}

#[tokio::test]
async fn wrong_definitions_are_refused() {
    let api = Api::new().await;
    let change = |edit: &dyn Fn(&mut Value)| {
        let mut changed = crd();
        edit(&mut changed);
        changed
    };
    let cases = [
        (
            change(&|crd| crd["metadata"]["name"] = "x".into()),
            "metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group",
        ),
        (
            change(&|crd| crd["spec"]["scope"] = "Nowhere".into()),
            "spec.scope: Unsupported value: \"Nowhere\": supported values: \"Cluster\", \"Namespaced\"",
        ),
        (change(&|crd| crd["spec"]["versions"][0]["storage"] = false.into()), "must have exactly one version marked as storage version"),
        (
            change(&|crd| crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = json!({"type": "object", "properties": {"a": {}}})),
            "spec.versions[0].schema.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields",
        ),
        (
            change(&|crd| {
                crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"][0]["rule"] =
                    "self.nope > 1".into()
            }),
            "compilation failed: ERROR: <input>:1:5: undefined field 'nope'",
        ),
    ];
    for (crd, wanted) in cases {
        let answer = api.post(CRDS, crd).await;
        assert_eq!(answer.code, 422, "{wanted}: {}", answer.json());
        assert!(answer.message().contains(wanted), "{}", answer.message());
    }
}

#[tokio::test]
async fn openapi_speaks_of_custom_kinds_while_they_are_served() {
    let api = Api::new().await;
    let before = api.get("/openapi/v3").await.json();
    assert!(before["paths"]["apis/stable.example.com/v1"].is_null());
    serve(&api, crd()).await;
    let index = api.get("/openapi/v3").await.json();
    let url = index["paths"]["apis/stable.example.com/v1"]["serverRelativeURL"].as_str().expect("listed").to_owned();
    let document = api.get(&url).await.json();
    let schema = &document["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(schema["properties"]["spec"]["properties"]["replicas"]["default"], 1);
    assert_eq!(index["paths"]["apis/apps/v1"], before["paths"]["apis/apps/v1"]);
}

/// `v1` holds `spec.cronSpec`, `v2` holds the same as a list `spec.fields`.
fn converted(object: &Value, to: &str) -> Value {
    let mut object = object.clone();
    object["apiVersion"] = to.into();
    if to.ends_with("/v2") {
        let fields: Vec<&str> = object["spec"]["cronSpec"].as_str().unwrap_or_default().split(' ').collect();
        object["spec"] = json!({"fields": fields});
    } else {
        let fields: Vec<&str> = object["spec"]["fields"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        object["spec"] = json!({"cronSpec": fields.join(" ")});
    }
    object
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_converts_between_versions() {
    use harness::https::{Https, Reply};
    let hook = Https::start(&["hook.default.svc"], |seen| {
        let request = &seen.body["request"];
        let to = request["desiredAPIVersion"].as_str().unwrap_or_default();
        let objects: Vec<Value> = request["objects"].as_array().into_iter().flatten().map(|object| converted(object, to)).collect();
        let response = match seen.path.starts_with("/broken") {
            true => json!({"uid": request["uid"], "result": {"status": "Failed", "message": "cannot"}}),
            false => json!({"uid": request["uid"], "convertedObjects": objects, "result": {"status": "Success"}}),
        };
        Reply::Json(json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response}))
    })
    .await;
    let api = Api::new().await;
    let mut both = crd();
    let version = |name: &str, storage: bool, property: (&str, Value)| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": {property.0: property.1}}}}}})
    };
    both["spec"]["versions"] = json!([
        version("v1", true, ("cronSpec", json!({"type": "string"}))),
        version("v2", false, ("fields", json!({"type": "array", "items": {"type": "string"}}))),
    ]);
    let client = |path: &str| json!({"url": format!("https://localhost:{}{path}", hook.port), "caBundle": hook.bundle()});
    both["spec"]["conversion"] = json!({"strategy": "Webhook",
        "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": client("/convert")}});
    serve(&api, both).await;
    let second = TABS.replace("/v1/", "/v2/");
    let mut object = tab("one", json!({"fields": ["1", "2"]}));
    object["apiVersion"] = "stable.example.com/v2".into();
    let made = api.post(&second, object).await;
    assert_eq!((made.code, &made.json()["spec"]), (201, &json!({"fields": ["1", "2"]})), "{}", made.json());
    assert_eq!(api.get(&format!("{TABS}/one")).await.json()["spec"], json!({"cronSpec": "1 2"}));
    api.merge(&format!("{TABS}/one"), json!({"spec": {"cronSpec": "3 4"}})).await;
    let read = api.get(&second).await.json();
    assert_eq!(read["items"][0]["spec"], json!({"fields": ["3", "4"]}));
    let mut watch = api.watch(&format!("{second}?watch=1")).await;
    assert_eq!(watch.next().await.unwrap()["object"]["spec"], json!({"fields": ["3", "4"]}));
    let path = format!("{CRDS}/crontabs.stable.example.com");
    api.merge(&path, json!({"spec": {"conversion": {"webhook": {"clientConfig": client("/broken")}}}})).await;
    let failed = until(&api, &format!("{second}/one"), |answer| answer.code == 500).await;
    assert_eq!(failed.message(), "conversion webhook for stable.example.com/v1, Kind=CronTab failed: cannot");
}
