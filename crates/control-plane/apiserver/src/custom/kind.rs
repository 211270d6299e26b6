//! A version of a CRD as a kind of the API.

use std::sync::Arc;

use schema::resources::{Resource, Subresource};
use serde_json::Value;
use structural::{Node, expressions, model};

use super::form::{Form, Scale, Strategy};
use super::names;
use super::rules::CustomRules;
use crate::registry::catalog::{Kind, RulesRef, Storage};

const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
/// Of a CRD that is being deleted: nothing new is made.
const VERBS_TERMINATING: [&str; 7] = ["delete", "deletecollection", "get", "list", "patch", "update", "watch"];

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The served versions of a CRD. `since` is the store's revision from which on objects are written as this CRD says.
pub fn of_crd(crd: &Value, since: u64) -> Vec<Arc<Kind>> {
    let strategy = Arc::new(Strategy::read(crd));
    let versions = crd["spec"]["versions"].as_array().into_iter().flatten();
    versions
        .filter(|version| version["served"] == true)
        .map(|version| Arc::new(of_version(crd, version, since, strategy.clone())))
        .collect()
}

fn of_version(crd: &Value, version: &Value, since: u64, strategy: Arc<Strategy>) -> Kind {
    let facts = facts(crd, version);
    let versions = crd["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let schema = version.pointer("/schema/openAPIV3Schema").cloned().unwrap_or_default();
    let node = Node::read(&schema);
    let preserve = crd["spec"]["preserveUnknownFields"] == true;
    let name = format!("{}.{}.{}", reversed(facts.group), facts.version, facts.kind);
    let found = model::root(&node, &name, preserve);
    let compiled = expressions::compile(&node);
    let rules = RulesRef::Owned(Arc::new(CustomRules::new(facts, version, versions, node, compiled)));
    let storage = Storage {
        prefix: format!("/registry/{}/{}/", facts.group, facts.plural),
        group: facts.group,
        version: facts.version,
        rules: rules.clone(),
        schema: found.clone(),
    };
    let form = Form {
        stored_as: format!("{}/{}", facts.group, facts.storage_version),
        served_as: facts.api_version(),
        since,
        schema: found.clone(),
        strategy,
        scale: Scale::read(version),
        openapi: schema.to_string().into_bytes().into(),
        deprecation: deprecation(facts, version),
    };
    Kind { facts, schema: found, rules, storage, custom: Some(Arc::new(form)) }
}

fn reversed(group: &str) -> String {
    group.split('.').rev().collect::<Vec<_>>().join(".")
}

fn deprecation(facts: &Resource, version: &Value) -> Option<String> {
    if version["deprecated"] != true {
        return None;
    }
    let given = version["deprecationWarning"].as_str().map(str::to_owned);
    Some(given.unwrap_or_else(|| format!("{} {} is deprecated", facts.api_version(), facts.kind)))
}

fn facts(crd: &Value, version: &Value) -> &'static Resource {
    let names_of = if crd.pointer("/status/acceptedNames/plural").and_then(Value::as_str).is_some_and(|plural| !plural.is_empty()) {
        &crd["status"]["acceptedNames"]
    } else {
        &crd["spec"]["names"]
    };
    let list = |field: &str| names::texts(names_of[field].as_array().into_iter().flatten().filter_map(Value::as_str));
    let (group, version_name) = (names::text(text(crd, "/spec/group")), names::text(text(version, "/name")));
    let kind = names::text(text(names_of, "/kind"));
    let terminating = crd["metadata"]["deletionTimestamp"].is_string();
    let verbs: &[&str] = if terminating { &VERBS_TERMINATING } else { &VERBS };
    let list_kind = match text(names_of, "/listKind") {
        "" => format!("{kind}List"),
        given => given.to_owned(),
    };
    let order = schema::resources::all().iter().find(|facts| facts.group == group).map_or(usize::MAX, |facts| facts.group_order);
    names::resource(Resource {
        group,
        version: version_name,
        kind,
        plural: names::text(text(names_of, "/plural")),
        singular: names::text(text(names_of, "/singular")),
        short_names: list("shortNames"),
        categories: list("categories"),
        namespaced: text(crd, "/spec/scope") == "Namespaced",
        verbs: names::texts(verbs.iter().copied()),
        list_kind: names::text(&list_kind),
        subresources: subresources(version, group, version_name, kind),
        stable: true,
        served: true,
        group_order: order,
        storage_version: names::text(structural::definition::storage_version(crd).unwrap_or_default()),
        introduced: "",
        deprecated: "",
        removed: "",
        replacement: "",
    })
}

fn subresources(version: &Value, group: &'static str, version_name: &'static str, kind: &'static str) -> &'static [Subresource] {
    let verbs: &'static [&'static str] = &["get", "patch", "update"];
    let mut list = Vec::new();
    if version.pointer("/subresources/status").is_some_and(Value::is_object) {
        list.push(Subresource { name: "status", group, version: version_name, kind, verbs, params: &[] });
    }
    if version.pointer("/subresources/scale").is_some_and(Value::is_object) {
        list.push(Subresource { name: "scale", group: "autoscaling", version: "v1", kind: "Scale", verbs, params: &[] });
    }
    names::subresources(list)
}
