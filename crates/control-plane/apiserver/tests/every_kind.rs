//! The life of an object of every built-in kind in every version, through the API: created, read in every encoding and view, replaced,
//! patched in four ways, listed, watched, deleted.

mod harness;

use harness::{Answer, Api, samples};
use schema::resources::{self, Resource};
use schema::{protobuf, table};
use serde_json::{Value, json};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const NAME: &str = "sample";

/// Where objects of the kind are created.
fn collection(facts: &Resource) -> String {
    let root = if facts.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}/{}", facts.group, facts.version) };
    let namespace = if facts.namespaced { "/namespaces/default" } else { "" };
    format!("{root}{namespace}/{}", facts.plural)
}

/// What went wrong with one kind, in the order of its life.
struct Life<'a> {
    api: &'a Api,
    facts: &'static Resource,
    path: String,
    wrong: Vec<String>,
}

/// Go's protobuf does not tell an empty list from none.
fn without_empty_lists(value: &Value) -> Value {
    match value {
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Array(items) => items.iter().map(without_empty_lists).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), without_empty_lists(value))).collect(),
        other => other.clone(),
    }
}

impl Life<'_> {
    fn expect(&mut self, step: &str, answer: &Answer, code: u16) -> bool {
        if answer.code != code {
            let text = String::from_utf8_lossy(&answer.bytes).into_owned();
            self.wrong.push(format!("{} {}: {step}: {} {text}", self.facts.api_version(), self.facts.kind, answer.code));
        }
        answer.code == code
    }

    fn check(&mut self, step: &str, fine: bool, seen: &Value) {
        if !fine {
            self.wrong.push(format!("{} {}: {step}: {seen}", self.facts.api_version(), self.facts.kind));
        }
    }

    async fn run(&mut self) {
        let facts = self.facts;
        let before = self.api.get(&collection(facts)).await;
        if !self.expect("list before", &before, 200) {
            return;
        }
        let mut watch = self.api.watch(&format!("{}?watch=1&resourceVersion={}", collection(facts), before.version())).await;
        let object = samples::sample(facts.group, facts.version, facts.kind, NAME);
        self.path = format!("{}/{}", collection(facts), object["metadata"]["name"].as_str().unwrap());
        let created = self.api.post(&collection(facts), object).await;
        if !self.expect("create", &created, 201) {
            return;
        }
        self.reads().await;
        self.writes().await;
        self.deletes().await;
        let mut words = Vec::new();
        while words.last().is_none_or(|word| word != "DELETED") {
            let Some(event) = watch.next().await else { break };
            let own = event["object"]["apiVersion"] == facts.api_version() && event["object"]["kind"] == facts.kind;
            self.check("a watched object says what it is", own, &event["object"]);
            words.push(event["type"].as_str().unwrap_or_default().to_owned());
        }
        let middle = words.get(1..words.len().saturating_sub(1)).unwrap_or_default();
        let fine = words.first().is_some_and(|word| word == "ADDED") && middle.iter().all(|word| word == "MODIFIED") && middle.len() >= 5;
        self.check("watch", fine, &json!(words));
    }

    async fn reads(&mut self) {
        let facts = self.facts;
        let plain = self.api.get(&self.path).await;
        self.expect("get", &plain, 200);
        let plain = plain.json();
        self.check("says what it is", plain["apiVersion"] == facts.api_version() && plain["kind"] == facts.kind, &plain);
        let found = table::by_gvk(facts.group, facts.version, facts.kind);
        let encoded = self.api.get_as(&self.path, PROTOBUF).await;
        let decoded = protobuf::decode(&encoded.bytes, found).map(|object| object.value).unwrap_or_default();
        self.check("protobuf is the same object", without_empty_lists(&decoded) == without_empty_lists(&plain), &decoded);
        let yaml = self.api.get_as(&self.path, "application/yaml").await;
        let decoded = schema::decode::parse_yaml(&yaml.bytes).map(|parsed| parsed.value).unwrap_or_default();
        self.check("YAML is the same object", decoded == plain, &decoded);
        for version in ["v1", "v1beta1"] {
            let table = self.api.get_as(&self.path, &format!("application/json;as=Table;v={version};g=meta.k8s.io")).await.json();
            let fine = table["kind"] == "Table" && table["rows"][0]["object"]["metadata"] == plain["metadata"];
            self.check("table", fine && !table["columnDefinitions"][0].is_null(), &table);
            let accept = format!("application/json;as=PartialObjectMetadata;v={version};g=meta.k8s.io");
            let partial = self.api.get_as(&self.path, &accept).await.json();
            self.check("metadata alone", partial["metadata"] == plain["metadata"] && partial["spec"].is_null(), &partial);
        }
        let list = self.api.get(&collection(facts)).await.json();
        self.check("list", list["kind"] == facts.list_kind && list["apiVersion"] == facts.api_version(), &list["kind"]);
        let listed = list["items"].as_array().into_iter().flatten().find(|item| item["metadata"]["uid"] == plain["metadata"]["uid"]);
        let Some(mut item) = listed.cloned() else {
            return self.check("is listed", false, &list);
        };
        item["apiVersion"] = plain["apiVersion"].clone();
        item["kind"] = plain["kind"].clone();
        self.check("a listed item is the object", item == plain, &item);
        let encoded = self.api.get_as(&collection(facts), PROTOBUF).await;
        let decoded = protobuf::decode(&encoded.bytes, None).map(|object| object.value).unwrap_or_default();
        let named = decoded["items"].as_array().into_iter().flatten().any(|item| item["metadata"]["uid"] == plain["metadata"]["uid"]);
        self.check("list in protobuf", decoded["kind"] == facts.list_kind && named, &decoded);
    }

    async fn writes(&mut self) {
        let mut object = self.api.get(&self.path).await.json();
        object["metadata"]["labels"] = json!({"put": "1"});
        let put = self.api.put(&self.path, object).await;
        self.expect("update", &put, 200);
        let found = table::by_gvk(self.facts.group, self.facts.version, self.facts.kind).unwrap();
        let mut object = put.json();
        object["metadata"]["labels"]["pb"] = "1".into();
        let put = self.api.ask("PUT", &self.path, PROTOBUF, protobuf::encode(&object, found)).await;
        self.expect("update in protobuf", &put, 200);
        let applied = json!({"apiVersion": object["apiVersion"], "kind": object["kind"],
            "metadata": {"name": object["metadata"]["name"], "labels": {"apply": "1"}}});
        let patches = [
            ("application/json-patch+json", "", json!([{"op": "add", "path": "/metadata/labels/json", "value": "1"}])),
            ("application/merge-patch+json", "", json!({"metadata": {"labels": {"merge": "1"}}})),
            ("application/strategic-merge-patch+json", "", json!({"metadata": {"labels": {"strategic": "1"}}})),
            ("application/apply-patch+yaml", "?fieldManager=test", applied),
        ];
        for (content_type, query, patch) in patches {
            let answer = self.api.ask("PATCH", &format!("{}{query}", self.path), content_type, patch.to_string()).await;
            self.expect(content_type, &answer, 200);
        }
        let labels = self.api.get(&self.path).await.json()["metadata"]["labels"].clone();
        let kept = ["put", "pb", "json", "merge", "strategic", "apply"].iter().all(|label| labels[label] == "1");
        self.check("every write is kept", kept, &labels);
    }

    async fn deletes(&mut self) {
        let gone = self.api.delete(&format!("{}?gracePeriodSeconds=0", self.path)).await;
        self.expect("delete", &gone, 200);
        if self.api.get(&self.path).await.code == 200 {
            // Who protects it is not running here.
            let freed = match self.facts.kind {
                "Namespace" => {
                    let mut object = self.api.get(&self.path).await.json();
                    object["spec"]["finalizers"] = json!([]);
                    self.api.put(&format!("{}/finalize", self.path), object).await
                }
                _ => self.api.merge(&self.path, json!({"metadata": {"finalizers": null}})).await,
            };
            self.expect("remove the finalizers", &freed, 200);
        }
        let missing = self.api.get(&self.path).await;
        self.expect("get after deletion", &missing, 404);
    }
}

#[tokio::test]
async fn every_kind_in_every_version_lives_through_the_api() {
    let api = Api::with_all_apis().await;
    api.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let mut wrong = Vec::new();
    let mut lived = 0;
    for facts in resources::all().iter().filter(|facts| ["create", "get"].iter().all(|verb| facts.verbs.contains(verb))) {
        let mut life = Life { api: &api, facts, path: String::new(), wrong: Vec::new() };
        life.run().await;
        wrong.extend(life.wrong);
        lived += 1;
    }
    assert!(wrong.is_empty(), "{} complaints:\n{}", wrong.len(), wrong.join("\n"));
    assert!(lived > 80, "{lived}");
}

/// Kinds that exist in several versions, with the versions.
fn versions() -> Vec<Vec<&'static Resource>> {
    let mut all: Vec<Vec<&'static Resource>> = Vec::new();
    for facts in resources::all().iter().filter(|facts| facts.verbs.contains(&"watch")) {
        // Events are one resource in two groups.
        let same = |other: &&Resource| other.plural == facts.plural && (other.group == facts.group || facts.plural == "events");
        match all.iter_mut().find(|versions| versions.iter().any(|other| same(other))) {
            Some(versions) => versions.push(facts),
            None => all.push(vec![facts]),
        }
    }
    all.into_iter().filter(|versions| versions.len() > 1).collect()
}

#[tokio::test]
async fn an_object_made_in_one_version_is_read_listed_and_watched_in_every_other() {
    let api = Api::with_all_apis().await;
    let kinds = versions();
    assert!(kinds.len() >= 15, "{}", kinds.len());
    for made in kinds.iter().flat_map(|versions| versions.iter().map(move |facts| (*facts, versions))) {
        let (facts, versions) = made;
        let object = samples::sample(facts.group, facts.version, facts.kind, NAME);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let created = api.post(&collection(facts), object).await;
        assert_eq!(created.code, 201, "{} {}: {}", facts.api_version(), facts.kind, created.message());
        let written = created.json();
        assert_eq!(written["metadata"]["managedFields"][0]["apiVersion"], facts.api_version(), "{}", facts.kind);
        for other in versions {
            let word = format!("{} {} read as {}", facts.api_version(), facts.kind, other.api_version());
            let read = api.get(&format!("{}/{name}", collection(other))).await.json();
            assert_eq!((&read["apiVersion"], &read["kind"]), (&json!(other.api_version()), &json!(other.kind)), "{word}");
            assert_eq!(read["metadata"]["uid"], written["metadata"]["uid"], "{word}");
            let list = api.get(&collection(other)).await.json();
            let listed = list["items"].as_array().unwrap().iter().any(|item| item["metadata"]["uid"] == written["metadata"]["uid"]);
            assert!(listed && list["apiVersion"] == other.api_version(), "{word}: {list}");
            let mut watch = api.watch(&format!("{}?watch=1&fieldSelector=metadata.name%3D{name}", collection(other))).await;
            let event = watch.next().await.unwrap();
            assert_eq!((&event["type"], &event["object"]), (&json!("ADDED"), &read), "{word}");
            // Written back as it was read, nothing changes but what the write itself records.
            let put = api.put(&format!("{}/{name}", collection(other)), read).await;
            assert_eq!(put.code, 200, "{word}: {}", put.message());
            let mut again = api.get(&format!("{}/{name}", collection(facts))).await.json();
            let mut before = written.clone();
            for value in [&mut again, &mut before] {
                value["metadata"] = Value::Null;
            }
            assert_eq!(again, before, "{word} and back");
        }
        assert_eq!(api.delete(&format!("{}/{name}", collection(facts))).await.code, 200);
    }
}
