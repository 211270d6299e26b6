//! What the server serves: the legacy documents and the aggregated ones (KEP-3352).

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::{ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderValue, Response, StatusCode};
use meta::Status;
use schema::resources::{Resource, Subresource};
use serde_json::{Value, json};
use sha2::Digest;

use crate::Inner;
use crate::context::Context;
use crate::negotiate::{self, Format, Media, Offer};
use crate::registry::catalog::Kind;
use crate::reply::{self, Body};

/// A group with its served versions, the preferred one first.
struct Group {
    name: &'static str,
    versions: Vec<&'static str>,
}

fn groups(kinds: &[Arc<Kind>]) -> Vec<Group> {
    let mut by_order: BTreeMap<(usize, &str), Group> = BTreeMap::new();
    for kind in kinds {
        let facts = kind.facts;
        let group = by_order.entry((facts.group_order, facts.group)).or_insert_with(|| Group { name: facts.group, versions: Vec::new() });
        if !group.versions.contains(&facts.version) {
            group.versions.push(facts.version);
        }
    }
    for group in by_order.values_mut() {
        group.versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
    }
    by_order.into_values().collect()
}

/// GA before beta before alpha, then the higher number; other names last, in their order (upstream's kube-aware version order).
fn priority(version: &str) -> (u8, u64, u64, std::cmp::Reverse<&str>) {
    let parsed = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (major, rest) = rest.split_at(digits);
        let major = major.parse().ok()?;
        let (stage, minor) = match (rest.strip_prefix("alpha"), rest.strip_prefix("beta")) {
            _ if rest.is_empty() => return Some((3, major, 0)),
            (Some(minor), _) => (1, minor),
            (_, Some(minor)) => (2, minor),
            _ => return None,
        };
        Some((stage, major, minor.parse().ok()?))
    };
    let (stage, major, minor) = parsed().unwrap_or((0, 0, 0));
    (stage, major, minor, std::cmp::Reverse(version))
}

/// `/api` and `/apis`.
pub fn root(server: &Inner, context: &Context) -> Result<Response<Body>, Status> {
    let kinds = server.registry.kinds();
    let legacy = context.info.path.starts_with("/api") && !context.info.path.starts_with("/apis");
    if let Some(version) = aggregated_version(context) {
        return Ok(aggregated(&kinds, context, legacy, version));
    }
    let format = negotiate::accept(&context.headers, &context.query, Offer { yaml: true, protobuf: true, views: false })?;
    let document = if legacy {
        let address = json!([{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}]);
        json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": address})
    } else {
        let groups: Vec<Value> =
            groups(&kinds).iter().filter(|group| !group.name.is_empty()).map(|group| api_group(group, false)).collect();
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    };
    Ok(reply::value(StatusCode::OK, &document, format))
}

fn api_group(group: &Group, with_type: bool) -> Value {
    let version = |version: &&str| json!({"groupVersion": format!("{}/{version}", group.name), "version": version});
    let mut document = json!({
        "name": group.name,
        "versions": group.versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": group.versions.first().map(version),
    });
    if with_type {
        document["kind"] = "APIGroup".into();
        document["apiVersion"] = "v1".into();
    }
    document
}

/// `/api/v1`, `/apis/<group>` and `/apis/<group>/<version>`.
pub fn group(server: &Inner, context: &Context) -> Result<Response<Body>, Status> {
    let kinds = server.registry.kinds();
    let parts: Vec<&str> = context.info.path.split('/').filter(|part| !part.is_empty()).collect();
    let document = match parts.as_slice() {
        ["api", version] => resource_list(&kinds, "", version),
        ["apis", name] => groups(&kinds).iter().find(|group| group.name == *name && !name.is_empty()).map(|group| api_group(group, true)),
        ["apis", group, version] => resource_list(&kinds, group, version),
        _ => None,
    };
    let Some(document) = document else {
        return Ok(crate::pipeline::page_not_found());
    };
    let format = negotiate::accept(&context.headers, &context.query, Offer { yaml: true, protobuf: true, views: false })?;
    Ok(reply::value(StatusCode::OK, &document, format))
}

fn resource_list(kinds: &[Arc<Kind>], group: &str, version: &str) -> Option<Value> {
    let kinds = kinds.iter().map(|kind| kind.facts).filter(|facts| facts.group == group && facts.version == version);
    let mut resources = Vec::new();
    for facts in kinds {
        resources.push(legacy_resource(facts));
        resources.extend(facts.subresources.iter().map(|sub| legacy_subresource(facts, sub)));
    }
    if resources.is_empty() {
        return None;
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}))
}

fn legacy_resource(facts: &Resource) -> Value {
    let mut resource = json!({
        "name": facts.plural,
        "singularName": facts.singular,
        "namespaced": facts.namespaced,
        "kind": facts.kind,
        "verbs": facts.verbs,
    });
    if !facts.short_names.is_empty() {
        resource["shortNames"] = json!(facts.short_names);
    }
    if !facts.categories.is_empty() {
        resource["categories"] = json!(facts.categories);
    }
    if facts.verbs.contains(&"list") {
        resource["storageVersionHash"] = facts.storage_version_hash().into();
    }
    resource
}

fn legacy_subresource(facts: &Resource, sub: &Subresource) -> Value {
    let mut resource = json!({
        "name": format!("{}/{}", facts.plural, sub.name),
        "singularName": "",
        "namespaced": facts.namespaced,
        "kind": sub.kind,
        "verbs": sub.verbs,
    });
    if (sub.group, sub.version) != (facts.group, facts.version) {
        resource["group"] = sub.group.into();
        resource["version"] = sub.version.into();
    }
    resource
}

/// The version of `apidiscovery.k8s.io` that the client asks for, if it does.
fn aggregated_version(context: &Context) -> Option<&'static str> {
    let header = context.headers.get(http::header::ACCEPT).and_then(|value| value.to_str().ok())?;
    header.split(',').find_map(|clause| {
        let has = |parameter: &str| clause.split(';').any(|part| part.trim() == parameter);
        let wanted = clause.trim().starts_with("application/json") && has("g=apidiscovery.k8s.io") && has("as=APIGroupDiscoveryList");
        match wanted {
            true if has("v=v2") => Some("v2"),
            true if has("v=v2beta1") => Some("v2beta1"),
            _ => None,
        }
    })
}

fn aggregated(kinds: &[Arc<Kind>], context: &Context, legacy: bool, version: &'static str) -> Response<Body> {
    let items: Vec<Value> =
        groups(kinds).iter().filter(|group| group.name.is_empty() == legacy).map(|group| aggregated_group(kinds, group)).collect();
    let document = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let text = document.to_string();
    let hash: String = sha2::Sha512::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02X}")).collect();
    let etag = format!("\"{hash}\"");
    let known = context.headers.get(IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == etag.as_bytes());
    let mut response = match known {
        true => {
            let mut response = Response::new(reply::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        false => reply::value(StatusCode::OK, &document, Format { media: Media::Json, ..Format::JSON }),
    };
    let content_type = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("public"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(ETAG, etag);
    }
    response
}

fn aggregated_group(kinds: &[Arc<Kind>], group: &Group) -> Value {
    let versions: Vec<Value> = group.versions.iter().map(|version| aggregated_group_version(kinds, group.name, version)).collect();
    let mut metadata = json!({"creationTimestamp": null});
    if !group.name.is_empty() {
        metadata["name"] = group.name.into();
    }
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_group_version(kinds: &[Arc<Kind>], group: &str, version: &str) -> Value {
    let mut facts: Vec<&Resource> =
        kinds.iter().map(|kind| kind.facts).filter(|facts| facts.group == group && facts.version == version).collect();
    facts.sort_by_key(|facts| facts.plural);
    let resources: Vec<Value> = facts.into_iter().map(aggregated_resource).collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated_resource(facts: &Resource) -> Value {
    let mut resource = json!({
        "resource": facts.plural,
        "responseKind": {"group": "", "version": "", "kind": facts.kind},
        "scope": if facts.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": facts.singular,
        "verbs": facts.verbs,
    });
    if !facts.short_names.is_empty() {
        resource["shortNames"] = json!(facts.short_names);
    }
    if !facts.categories.is_empty() {
        resource["categories"] = json!(facts.categories);
    }
    if !facts.subresources.is_empty() {
        let subresources: Vec<Value> = facts.subresources.iter().map(|sub| aggregated_subresource(facts, sub)).collect();
        resource["subresources"] = subresources.into();
    }
    resource
}

fn aggregated_subresource(facts: &Resource, sub: &Subresource) -> Value {
    let own = (sub.group, sub.version) == (facts.group, facts.version);
    let (group, version) = if own { ("", "") } else { (sub.group, sub.version) };
    json!({"subresource": sub.name, "responseKind": {"group": group, "version": version, "kind": sub.kind}, "verbs": sub.verbs})
}
