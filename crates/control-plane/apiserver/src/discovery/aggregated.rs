//! `APIGroupDiscoveryList`: everything in two requests, with an `ETag`.

use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use sha2::Digest;

use super::{Entry, Group, Sub};
use crate::context::Context;
use crate::negotiate::{Format, Media};
use crate::reply::{self, Body};

/// The version of `apidiscovery.k8s.io` in which the client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    V2,
    V2beta1,
}

impl Asked {
    /// `None` where the client does not ask for the aggregated document, or lists another form first.
    pub fn read(context: &Context) -> Option<Self> {
        let header = context.headers.get(http::header::ACCEPT).and_then(|value| value.to_str().ok())?;
        header.split(',').find_map(|clause| {
            let has = |parameter: &str| clause.split(';').any(|part| part.trim() == parameter);
            let wanted = clause.trim().starts_with("application/json") && has("g=apidiscovery.k8s.io") && has("as=APIGroupDiscoveryList");
            match wanted {
                true if has("v=v2") => Some(Asked::V2),
                true if has("v=v2beta1") => Some(Asked::V2beta1),
                _ => None,
            }
        })
    }

    fn version(self) -> &'static str {
        match self {
            Asked::V2 => "v2",
            Asked::V2beta1 => "v2beta1",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Asked::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Asked::V2beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }
}

pub fn respond(context: &Context, groups: &[Group], asked: Asked) -> Response<Body> {
    let document = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{}", asked.version()),
        "metadata": {},
        "items": groups.iter().map(group).collect::<Vec<_>>(),
    });
    let hash: String = sha2::Sha512::digest(document.to_string().as_bytes()).iter().map(|byte| format!("{byte:02X}")).collect();
    let etag = format!("\"{hash}\"");
    let mut response = match known(context, &etag) {
        true => {
            let mut response = Response::new(reply::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        false => reply::value(StatusCode::OK, &document, Format { media: Media::Json, ..Format::JSON }),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(asked.content_type()));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(ETAG, etag);
    }
    response
}

fn known(context: &Context, etag: &str) -> bool {
    let listed = context.headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    listed.split(',').any(|known| known.trim() == etag)
}

fn group(group: &Group) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> = version.resources.iter().map(resource).collect();
            json!({"version": version.version, "resources": resources, "freshness": if version.stale { "Stale" } else { "Current" }})
        })
        .collect();
    let mut metadata = json!({"creationTimestamp": null});
    if !group.name.is_empty() {
        metadata["name"] = group.name.as_str().into();
    }
    json!({"metadata": metadata, "versions": versions})
}

fn resource(entry: &Entry) -> Value {
    let mut resource = json!({
        "resource": entry.plural,
        "responseKind": {"group": "", "version": "", "kind": entry.kind},
        "scope": if entry.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": entry.singular,
        "verbs": entry.verbs,
    });
    if !entry.short_names.is_empty() {
        resource["shortNames"] = json!(entry.short_names);
    }
    if !entry.categories.is_empty() {
        resource["categories"] = json!(entry.categories);
    }
    if !entry.subresources.is_empty() {
        resource["subresources"] = entry.subresources.iter().map(subresource).collect();
    }
    resource
}

fn subresource(sub: &Sub) -> Value {
    let (group, version) = sub.other.as_ref().map_or(("", ""), |(group, version)| (group, version));
    json!({"subresource": sub.name, "responseKind": {"group": group, "version": version, "kind": sub.kind}, "verbs": sub.verbs})
}
