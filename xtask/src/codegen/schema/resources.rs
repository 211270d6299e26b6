//! Writing the resources.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use super::HEAD;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    group_order: Vec<String>,
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resource {
    group: String,
    version: String,
    kind: String,
    plural: String,
    singular: Option<String>,
    namespaced: bool,
    verbs: Vec<String>,
    list_kind: Option<String>,
    #[serde(default)]
    short_names: Vec<String>,
    #[serde(default)]
    categories: Vec<String>,
    #[serde(default)]
    subresources: Vec<Subresource>,
    #[serde(default)]
    lifecycle: Lifecycle,
}

#[derive(Deserialize, Default)]
struct Lifecycle {
    introduced: Option<String>,
    deprecated: Option<String>,
    removed: Option<String>,
    replacement: Option<String>,
}

#[derive(Deserialize)]
struct Subresource {
    name: String,
    group: String,
    version: String,
    kind: String,
    verbs: Vec<String>,
    #[serde(default)]
    params: std::collections::BTreeMap<String, serde_json::Value>,
}

pub fn write(spec: &Path, folder: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(spec.join("resources-1.37.json")).context("resources-1.37.json")?;
    let mut file: File = serde_json::from_str(&text).context("resources-1.37.json")?;
    let order = |resource: &Resource| match resource.group.as_str() {
        "" => 0,
        group => 1 + file.group_order.iter().position(|name| name == group).unwrap_or(file.group_order.len()),
    };
    let orders: Vec<usize> = file.resources.iter().map(order).collect();
    let mut numbered: Vec<(usize, Resource)> = orders.into_iter().zip(file.resources.drain(..)).collect();
    numbered.sort_by(|(a, x), (b, y)| (a, preference(&x.version), &x.plural).cmp(&(b, preference(&y.version), &y.plural)));
    let mut out = format!("{HEAD}\nuse crate::resources::{{Resource, Subresource}};\n\n");
    let _ = writeln!(out, "pub static RESOURCES: [Resource; {}] = [", numbered.len());
    for (order, resource) in &numbered {
        let storage = storage_version(resource, &numbered);
        out.push_str(&entry(*order, resource, storage));
    }
    out.push_str("];\n");
    std::fs::write(folder.join("resource_list.rs"), out)?;
    Ok(())
}

/// Order of versions as upstream prefers them: GA, beta, alpha; the greater number first.
fn preference(version: &str) -> (u8, i64, i64) {
    let numbers: Vec<i64> = version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect();
    let major = -numbers.first().copied().unwrap_or(0);
    let minor = -numbers.get(1).copied().unwrap_or(0);
    let class = if version.contains("alpha") { 2 } else { u8::from(version.contains("beta")) };
    (class, major, minor)
}

/// The release before: a server of it must be able to read what this one stored.
const RELEASE_BEFORE: u32 = 36;

/// The version in which a resource is stored: the most preferred one that the release before served as well (upstream:
/// `DefaultResourceEncodingConfig`), else the most preferred. `events.k8s.io` keeps the core group's.
fn storage_version<'a>(resource: &Resource, all: &'a [(usize, Resource)]) -> &'a str {
    let same = |other: &&(usize, Resource)| other.1.group == resource.group && other.1.plural == resource.plural;
    let known_before = |other: &&(usize, Resource)| {
        let minor = other.1.lifecycle.introduced.as_deref().and_then(|release| release.strip_prefix("1.")?.parse::<u32>().ok());
        minor.is_some_and(|minor| minor <= RELEASE_BEFORE)
    };
    let preferred = |versions: &mut dyn Iterator<Item = &'a (usize, Resource)>| {
        versions.map(|(_, other)| other.version.as_str()).min_by_key(|version| preference(version))
    };
    let old = preferred(&mut all.iter().filter(same).filter(known_before));
    old.or_else(|| preferred(&mut all.iter().filter(same))).unwrap_or("v1")
}

fn entry(order: usize, resource: &Resource, storage: &str) -> String {
    let stable = !resource.version.contains("alpha") && !resource.version.contains("beta");
    let singular = resource.singular.clone().unwrap_or_else(|| resource.kind.to_lowercase());
    let mut out = String::from("    Resource {\n");
    let Resource { group, version, kind, plural, .. } = resource;
    let _ = writeln!(out, "        group: {group:?}, version: {version:?}, kind: {kind:?}, plural: {plural:?}, singular: {singular:?},");
    let _ = writeln!(
        out,
        "        short_names: &{:?}, categories: &{:?}, namespaced: {},",
        resource.short_names, resource.categories, resource.namespaced
    );
    let _ = writeln!(out, "        verbs: &{:?}, list_kind: {:?},", resource.verbs, resource.list_kind.as_deref().unwrap_or(""));
    let _ = writeln!(out, "        stable: {stable}, served: {stable}, group_order: {order}, storage_version: {storage:?},");
    let life = &resource.lifecycle;
    let text = |value: &Option<String>| format!("{:?}", value.as_deref().unwrap_or(""));
    let (introduced, deprecated) = (text(&life.introduced), text(&life.deprecated));
    let (removed, replacement) = (text(&life.removed), text(&life.replacement));
    let _ = writeln!(out, "        introduced: {introduced}, deprecated: {deprecated}, removed: {removed}, replacement: {replacement},");
    out.push_str("        subresources: &[\n");
    for Subresource { name, group, version, kind, verbs, params } in &resource.subresources {
        let params: Vec<&String> = params.keys().collect();
        let _ = writeln!(
            out,
            "            Subresource {{ name: {name:?}, group: {group:?}, version: {version:?}, kind: {kind:?}, verbs: &{verbs:?}, params: &{params:?} }},"
        );
    }
    out.push_str("        ],\n    },\n");
    out
}
