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
use crate::registry::catalog::Kind;
use crate::registry::{Owners, Target};
use crate::reply::{self, Body};

const API_VERSION: &str = "autoscaling/v1";

/// Admission judges the Scale, not the object that it scales.
pub const LENS: Lens = Lens { of, into: |object, scale| object["spec"]["replicas"] = scale["spec"]["replicas"].clone() };

/// What stands at a path of names.
fn follow<'v>(object: &'v Value, path: &[String]) -> &'v Value {
    path.iter().fold(object, |value, name| &value[name.as_str()])
}

/// The Scale of an object of this kind.
fn scale_of(kind: &Kind, object: &Value) -> Result<Value, Status> {
    let Some(scale) = kind.custom.as_ref().and_then(|form| form.scale.as_ref()) else { return Ok(of(object)) };
    let dotted = |path: &[String]| format!(".{}", path.join("."));
    let count = |path: &[String], required: bool| match follow(object, path) {
        Value::Null if required => Err(Status::internal(format!("the spec replicas field {:?} does not exist", dotted(path)))),
        value => Ok(value.as_i64().unwrap_or(0)),
    };
    let mut found = of(&json!({"metadata": object["metadata"], "spec": {}, "status": {}}));
    found["spec"]["replicas"] = count(&scale.spec, true)?.into();
    found["status"]["replicas"] = count(&scale.status, false)?.into();
    if let Some(selector) = scale.selector.as_ref().and_then(|path| follow(object, path).as_str()).filter(|text| !text.is_empty()) {
        found["status"]["selector"] = selector.into();
    }
    Ok(found)
}

/// Writes the wanted replicas where the kind has them.
fn set_replicas(kind: &Kind, object: &mut Value, replicas: i64) {
    match kind.custom.as_ref().and_then(|form| form.scale.as_ref()) {
        None => object["spec"]["replicas"] = replicas.into(),
        Some(scale) => {
            let mut place = object;
            for name in &scale.spec {
                if !place.is_object() && !place.is_null() {
                    return;
                }
                place = &mut place[name.as_str()];
            }
            *place = replicas.into();
        }
    }
}

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
    Ok(respond(&scale_of(target.kind, &server.registry.get(target).await?.value())?, format))
}

fn respond(scale: &Value, format: Format) -> Response<Body> {
    reply::value(StatusCode::OK, scale, format)
}

pub async fn update(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let media = negotiate::body_media(&context.headers, true)?;
    let scale = codec::other(context, scale_type()?, API_VERSION, "Scale", &read_body(request).await?, media)?;
    check_name(target, &scale)?;
    write(server, context, target, |_| Ok(scale.clone())).await
}

/// Stands for replicas that nobody has set, while a patch is applied.
const UNSET: i64 = i32::MIN as i64;

pub async fn patch(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let kind = PatchType::of(&context.headers, true)?;
    let bytes = read_body(request).await?;
    if kind == PatchType::Apply {
        return apply(server, context, target, &bytes).await;
    }
    let patch = Patch::parse(kind, bytes)?;
    let schema = scale_type()?;
    write(server, context, target, |object| {
        let current = match replicas(target.kind, object) {
            Value::Null => scale_of(target.kind, &with_replicas(target.kind, object, UNSET))?,
            _ => scale_of(target.kind, object)?,
        };
        let scale = patch.apply_as(schema, current.clone())?;
        let mut scale = codec::patched(context, schema, API_VERSION, "Scale", scale).map_err(|status| patch.blame(status))?;
        if meta(&scale, "resourceVersion") == meta(&current, "resourceVersion") {
            metadata_mut(&mut scale).remove("resourceVersion");
        }
        if scale["spec"]["replicas"] == UNSET {
            let path = target.kind.custom.as_ref().and_then(|form| form.scale.as_ref()).map(|scale| scale.spec.join("."));
            let path = format!(".{}", path.unwrap_or_else(|| "spec.replicas".into()));
            return Err(Status::bad_request(format!("the spec replicas field {path:?} cannot be empty")));
        }
        Ok(scale)
    })
    .await
}

/// The replicas that an object says, wherever its kind has them.
fn replicas<'v>(kind: &Kind, object: &'v Value) -> &'v Value {
    match kind.custom.as_ref().and_then(|form| form.scale.as_ref()) {
        None => &object["spec"]["replicas"],
        Some(scale) => follow(object, &scale.spec),
    }
}

fn with_replicas(kind: &Kind, object: &Value, replicas: i64) -> Value {
    let mut object = object.clone();
    set_replicas(kind, &mut object, replicas);
    object
}

/// Applying a Scale is applying the one field that it has to the object itself: it is owned there.
async fn apply(server: &Arc<Inner>, context: &Context, target: Target<'_>, bytes: &[u8]) -> Result<Response<Body>, Status> {
    super::write::has_manager(context)?;
    let format = super::format(context, target.kind)?;
    let options = context.write_options()?;
    let media = crate::patching::apply_media(&context.headers);
    let given = codec::parse(bytes, media, "Scale")?.value;
    // Whether it is a Scale at all, and what of it is none.
    codec::other(context, scale_type()?, API_VERSION, "Scale", bytes, media)?;
    check_name(target, &given)?;
    let mut applied = json!({"apiVersion": target.kind.api_version(), "kind": target.kind.facts.kind, "metadata": {"name": target.name}});
    if !meta(&given, "resourceVersion").is_empty() {
        applied["metadata"]["resourceVersion"] = meta(&given, "resourceVersion").into();
    }
    if let Some(replicas) = given["spec"]["replicas"].as_i64() {
        check_replicas(target, replicas)?;
        set_replicas(target.kind, &mut applied, replicas);
    }
    let part = Part::Subresource("scale");
    let (_, object) = super::write::applied_to(server, context, target, part, &applied, &options).await?;
    Ok(respond(&scale_of(target.kind, &object.value())?, format))
}

fn check_name(target: Target<'_>, scale: &Value) -> Result<(), Status> {
    let name = meta(scale, "name");
    if name.is_empty() || name == target.name {
        return Ok(());
    }
    Err(Status::bad_request(format!("the name of the object ({name}) does not match the name on the URL ({})", target.name)))
}

fn check_replicas(target: Target<'_>, replicas: i64) -> Result<(), Status> {
    if replicas >= 0 {
        return Ok(());
    }
    let error = field::Error::invalid(&field::Path::new("spec").child("replicas"), replicas, "must be greater than or equal to 0");
    Err(Status::invalid("autoscaling", "Scale", target.name, &[error]))
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
        check_replicas(target, replicas)?;
        let mut new = with_replicas(target.kind, old, replicas);
        for name in ["uid", "resourceVersion"] {
            let given = meta(&scale, name).to_owned();
            metadata_mut(&mut new).insert(name.into(), given.into());
        }
        Ok(new)
    };
    let object = server.registry.update(context, target, Part::Subresource("scale"), &options, Owners::Update, set).await?;
    Ok(respond(&scale_of(target.kind, &object.value())?, format))
}
