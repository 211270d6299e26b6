//! The `scale` subresource: an `autoscaling/v1` Scale over the replicas of another object.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use meta::selector::LabelSelector;
use meta::{Status, field};
use rules::Part;
use serde_json::{Value, json};

use super::read_body;
use crate::Inner;
use crate::codec;
use crate::context::Context;
use crate::negotiate::{self, Format};
use crate::object::{meta, metadata_mut};
use crate::patching::{Patch, PatchType};
use crate::registry::admit::Lens;
use crate::registry::{Owners, Target};
use crate::reply::{self, Body};

const API_VERSION: &str = "autoscaling/v1";

/// Admission judges the Scale, not the object that it scales.
pub const LENS: Lens = Lens { of, into: |object, scale| object["spec"]["replicas"] = scale["spec"]["replicas"].clone() };

/// The Scale of an object.
fn of(object: &Value) -> Value {
    let selector = match object["spec"]["selector"].as_object() {
        // ReplicationControllers have a plain map.
        Some(map) if !map.contains_key("matchLabels") && !map.contains_key("matchExpressions") => {
            LabelSelector::from_set(&object["spec"]["selector"])
        }
        _ => LabelSelector::from_object(&object["spec"]["selector"]),
    };
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    if let Some(selector) = selector.ok().map(|selector| selector.to_string()).filter(|text| !text.is_empty()) {
        status["selector"] = selector.into();
    }
    let mut metadata = json!({});
    for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        metadata[name] = object["metadata"][name].clone();
    }
    json!({
        "kind": "Scale",
        "apiVersion": API_VERSION,
        "metadata": metadata,
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": status,
    })
}

fn scale_type() -> Result<&'static schema::model::Type, Status> {
    schema::table::by_gvk("autoscaling", "v1", "Scale").ok_or_else(|| Status::internal("Scale is not in the table"))
}

pub async fn get(server: &Arc<Inner>, context: &Context, target: Target<'_>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    Ok(respond(&server.registry.get(target).await?.value(), format))
}

fn respond(object: &Value, format: Format) -> Response<Body> {
    reply::value(StatusCode::OK, &of(object), format)
}

pub async fn update(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let media = negotiate::body_media(&context.headers, true)?;
    let scale = codec::other(context, scale_type()?, API_VERSION, "Scale", &read_body(request).await?, media)?;
    if !meta(&scale, "name").is_empty() && meta(&scale, "name") != target.name {
        let message = format!("the name of the object ({}) does not match the name on the URL ({})", meta(&scale, "name"), target.name);
        return Err(Status::bad_request(message));
    }
    write(server, context, target, |_| Ok(scale.clone())).await
}

pub async fn patch(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let kind = PatchType::of(&context.headers, true)?;
    let bytes = read_body(request).await?;
    // Applying a Scale sets the one field that it has.
    let bytes = match kind {
        PatchType::Apply => codec::parse(&bytes, negotiate::Media::Yaml, "Scale")?.value.to_string().into(),
        _ => bytes,
    };
    let kind = if kind == PatchType::Apply { PatchType::Merge } else { kind };
    let patch = Patch::parse(kind, bytes)?;
    let schema = scale_type()?;
    write(server, context, target, |object| {
        let current = of(object);
        let mut scale = patch.apply_as(schema, current.clone())?;
        if meta(&scale, "resourceVersion") == meta(&current, "resourceVersion") {
            metadata_mut(&mut scale).remove("resourceVersion");
        }
        Ok(scale)
    })
    .await
}

async fn write(
    server: &Arc<Inner>,
    context: &Context,
    target: Target<'_>,
    mut make: impl FnMut(&Value) -> Result<Value, Status> + Send,
) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let options = context.write_options()?;
    let set = |old: &Value| {
        let scale = make(old)?;
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let error = field::Error::invalid(&field::Path::new("spec").child("replicas"), replicas, "must be greater than or equal to 0");
            return Err(Status::invalid("autoscaling", "Scale", target.name, &[error]));
        }
        let mut new = old.clone();
        new["spec"]["replicas"] = replicas.into();
        for name in ["uid", "resourceVersion"] {
            let given = meta(&scale, name).to_owned();
            metadata_mut(&mut new).insert(name.into(), given.into());
        }
        Ok(new)
    };
    let object = server.registry.update(context, target, Part::Subresource("scale"), &options, Owners::Update, set).await?;
    Ok(respond(&object.value(), format))
}
