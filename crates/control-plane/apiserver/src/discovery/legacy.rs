//! `APIVersions`, `APIGroupList`, `APIGroup` and `APIResourceList`.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{Entry, Group, Sub};

pub fn api_versions(groups: &[Group], advertise: Ipv4Addr, port: u16) -> Value {
    let versions: Vec<&str> = groups.iter().flat_map(|group| &group.versions).map(|version| version.version.as_str()).collect();
    let address = json!([{"clientCIDR": "0.0.0.0/0", "serverAddress": format!("{advertise}:{port}")}]);
    json!({"kind": "APIVersions", "versions": versions, "serverAddressByClientCIDRs": address})
}

pub fn group_list(groups: &[Group]) -> Value {
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups.iter().map(untyped).collect::<Vec<_>>()})
}

pub fn group(group: &Group) -> Value {
    let mut document = untyped(group);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    document
}

fn untyped(group: &Group) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{}/{}", group.name, version.version), "version": version.version}))
        .collect();
    json!({"name": group.name, "preferredVersion": versions.first(), "versions": versions})
}

/// `None` where the group has no such version.
pub fn resource_list(group: &Group, version: &str) -> Option<Value> {
    let found = group.versions.iter().find(|served| served.version == version)?;
    let mut resources = Vec::new();
    for entry in &found.resources {
        resources.push(resource(entry));
        resources.extend(entry.subresources.iter().map(|sub| subresource(entry, sub)));
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let group_version = if group.name.is_empty() { version.to_owned() } else { format!("{}/{version}", group.name) };
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}))
}

fn resource(entry: &Entry) -> Value {
    let mut resource = json!({
        "name": entry.plural,
        "singularName": entry.singular,
        "namespaced": entry.namespaced,
        "kind": entry.kind,
        "verbs": entry.verbs,
    });
    if !entry.short_names.is_empty() {
        resource["shortNames"] = json!(entry.short_names);
    }
    if !entry.categories.is_empty() {
        resource["categories"] = json!(entry.categories);
    }
    if let Some(hash) = &entry.storage_version_hash {
        resource["storageVersionHash"] = hash.as_str().into();
    }
    resource
}

fn subresource(entry: &Entry, sub: &Sub) -> Value {
    let mut resource = json!({
        "name": format!("{}/{}", entry.plural, sub.name),
        "singularName": "",
        "namespaced": entry.namespaced,
        "kind": sub.kind,
        "verbs": sub.verbs,
    });
    if let Some((group, version)) = &sub.other {
        resource["group"] = group.as_str().into();
        resource["version"] = version.as_str().into();
    }
    resource
}
