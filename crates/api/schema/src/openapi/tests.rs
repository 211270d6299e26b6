use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;

fn apps() -> Value {
    v3::document("apps", "v1", &Kind::all_built_in(), &undescribed)
}

#[test]
fn kubectl_finds_field_validation_and_media_types_on_the_patch_of_a_kind() {
    let document = apps();
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"], json!({"group": "apps", "version": "v1", "kind": "Deployment"}));
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert!(patch["parameters"].as_array().unwrap().iter().any(|parameter| parameter["name"] == "fieldValidation"));
    for media in ["application/strategic-merge-patch+json", "application/apply-patch+yaml", "application/merge-patch+json"] {
        assert!(patch["requestBody"]["content"].get(media).is_some(), "{media}");
    }
}

#[test]
fn schemas_carry_merge_keys_list_types_and_kinds() {
    let schemas = &apps()["components"]["schemas"];
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"], json!([{"group": "apps", "version": "v1", "kind": "Deployment"}]));
    assert_eq!(deployment["properties"]["spec"]["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec");
    let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
    assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
    assert_eq!(schemas["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"]["default"], "TCP");
    assert_eq!(schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                found.insert(reference.rsplit('/').next().unwrap_or_default().to_owned());
            }
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn no_document_refers_to_what_it_lacks() {
    let kinds = Kind::all_built_in();
    let groups: BTreeSet<(String, String)> = kinds.iter().map(|kind| (kind.group.clone(), kind.version.clone())).collect();
    for (group, version) in groups {
        let document = v3::document(&group, &version, &kinds, &undescribed);
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for name in found {
            assert!(document["components"]["schemas"].get(&name).is_some(), "{group}/{version}: {name}");
        }
    }
    let document = v2::document(&kinds, &undescribed);
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.iter().all(|name| document["definitions"].get(name).is_some()));
}

/// The published operations: (method, path) to (action, group/version/Kind).
fn published() -> BTreeMap<(String, String), (String, String)> {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/spec/operations-1.37.tsv");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut all = BTreeMap::new();
    for line in text.lines().skip(1) {
        let cells: Vec<&str> = line.split('\t').collect();
        let [method, path, _, action, gvk, ..] = cells[..] else { panic!("{line}") };
        let beta = path.split('/').any(|part| part.contains("alpha") || part.contains("beta"));
        if !action.is_empty() && action != "action" && !beta {
            all.insert((method.to_lowercase(), path.to_owned()), (action.to_owned(), gvk.to_owned()));
        }
    }
    all
}

#[test]
fn operations_are_exactly_the_published_ones() {
    let document = v2::document(&Kind::all_built_in(), &undescribed);
    let mut ours = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, operation)| *name != "parameters" && operation.get("x-kubernetes-action").is_some())
        {
            let gvk = &operation["x-kubernetes-group-version-kind"];
            let part = |name: &str| gvk[name].as_str().unwrap().to_owned();
            let gvk = format!("{}/{}/{}", part("group"), part("version"), part("kind"));
            let action = operation["x-kubernetes-action"].as_str().unwrap().to_owned();
            ours.insert((method.clone(), path.clone()), (action, gvk));
        }
    }
    let theirs = published();
    let missing: Vec<_> = theirs.iter().filter(|(key, value)| ours.get(*key) != Some(value)).collect();
    let extra: Vec<_> = ours.iter().filter(|(key, _)| !theirs.contains_key(*key)).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nextra: {extra:#?}");
}

#[test]
fn custom_kinds_stand_beside_built_in_ones() {
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let status = Sub {
        name: "status".into(),
        group: "stable.example.com".into(),
        version: "v1".into(),
        kind: "CronTab".into(),
        verbs: words(&["get", "patch", "update"]),
        params: vec![],
    };
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true}}}}});
    let kind = Kind {
        group: "stable.example.com".into(),
        version: "v1".into(),
        kind: "CronTab".into(),
        list_kind: "CronTabList".into(),
        plural: "crontabs".into(),
        namespaced: true,
        verbs: words(&["create", "delete", "get", "list", "patch", "update", "watch"]),
        subresources: vec![status],
        deletion_returns_object: false,
        form: Form::Custom(schema),
    };
    let document = v3::document("stable.example.com", "v1", std::slice::from_ref(&kind), &undescribed);
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["com.example.stable.v1.CronTab"]["x-kubernetes-group-version-kind"][0]["kind"], "CronTab");
    assert_eq!(
        schemas["com.example.stable.v1.CronTabList"]["properties"]["items"]["items"]["$ref"],
        "#/components/schemas/com.example.stable.v1.CronTab"
    );
    let patch = &document["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}"]["patch"];
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_none());
    let describe = |definition: &str, field: &str| Some(format!("{definition}|{field}"));
    let said = v3::document("stable.example.com", "v1", std::slice::from_ref(&kind), &describe);
    let version = &said["components"]["schemas"]["com.example.stable.v1.CronTab"]["properties"]["apiVersion"];
    assert_eq!(version["description"], "io.k8s.api.core.v1.ConfigMap|apiVersion");
    let old = v2::document(&[kind], &undescribed);
    let size = &old["definitions"]["com.example.stable.v1.CronTab"]["properties"]["spec"]["properties"]["size"];
    assert_eq!(*size, json!({"x-kubernetes-int-or-string": true}));
}

#[test]
fn descriptions_come_from_outside() {
    let describe = |definition: &str, field: &str| Some(format!("{definition}|{field}"));
    let document = v3::document("apps", "v1", &Kind::all_built_in(), &describe);
    let deployment = &document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["description"], "io.k8s.api.apps.v1.Deployment|");
    assert_eq!(deployment["properties"]["spec"]["description"], "io.k8s.api.apps.v1.Deployment|spec");
}

#[test]
fn the_index_names_each_document_with_its_hash() {
    let hash = v3::hash(b"{}");
    assert_eq!(hash.len(), 128);
    let index = v3::index(&BTreeMap::from([(v3::key("apps", "v1"), hash.clone())]));
    assert_eq!(index["paths"]["apis/apps/v1"]["serverRelativeURL"], format!("/openapi/v3/apis/apps/v1?hash={hash}"));
}
