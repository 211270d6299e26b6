//! What the server serves: the legacy documents and the aggregated ones (KEP-3352), both made from one list of [`Group`]s.

mod aggregated;
mod groups;
mod legacy;

use http::{Response, StatusCode};
use meta::Status;

use crate::Inner;
use crate::context::Context;
use crate::negotiate::{self, Offer};
use crate::reply::{self, Body};

pub use groups::{Entry, Group, Sub, all, own};

/// `/`: every path that is no object's.
pub fn index(server: &Inner) -> Response<Body> {
    let mut paths = crate::health::paths();
    paths.extend(["/api", "/apis", "/openapi/v2", "/openapi/v3"].map(str::to_owned));
    for group in all(server) {
        let root = if group.name.is_empty() { "/api".to_owned() } else { format!("/apis/{}", group.name) };
        paths.extend(group.versions.iter().map(|version| format!("{root}/{}", version.version)));
        paths.extend((!group.name.is_empty()).then_some(root));
    }
    paths.sort_unstable();
    let text = serde_json::to_string_pretty(&serde_json::json!({ "paths": paths })).unwrap_or_default();
    reply::bytes(StatusCode::OK, "application/json", text.into_bytes())
}

/// `/api` and `/apis`.
pub fn root(server: &Inner, context: &Context) -> Result<Response<Body>, Status> {
    let core = context.info.path.starts_with("/api") && !context.info.path.starts_with("/apis");
    let groups: Vec<Group> = all(server).into_iter().filter(|group| group.name.is_empty() == core).collect();
    if let Some(asked) = aggregated::Asked::read(context) {
        return Ok(aggregated::respond(context, &groups, asked));
    }
    let format = negotiate::accept(&context.headers, &context.query, OFFER)?;
    let document = match core {
        true => legacy::api_versions(&groups, server.advertise, server.port),
        false => legacy::group_list(&groups),
    };
    Ok(reply::value(StatusCode::OK, &document, format))
}

/// `/api/v1`, `/apis/<group>` and `/apis/<group>/<version>`.
pub fn group(server: &Inner, context: &Context) -> Result<Response<Body>, Status> {
    let parts: Vec<&str> = context.info.path.split('/').filter(|part| !part.is_empty()).collect();
    let groups = all(server);
    let find = |name: &str| groups.iter().find(|group| group.name == name);
    let document = match parts.as_slice() {
        ["api", version] => find("").and_then(|group| legacy::resource_list(group, version)),
        ["apis", name] => find(name).map(legacy::group),
        ["apis", name, version] => find(name).and_then(|group| legacy::resource_list(group, version)),
        _ => None,
    };
    let Some(document) = document else {
        return Ok(crate::pipeline::page_not_found());
    };
    let format = negotiate::accept(&context.headers, &context.query, OFFER)?;
    Ok(reply::value(StatusCode::OK, &document, format))
}

const OFFER: Offer = Offer { yaml: true, protobuf: true, views: false };
