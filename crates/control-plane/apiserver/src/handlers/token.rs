//! `POST …/serviceaccounts/x/token`: TokenRequest (KEP-1205).

use std::sync::Arc;

use auth::tokens::{Bound, Reference};
use http::{Request, Response};
use meta::{Status, field, time};
use serde_json::{Value, json};

use super::pod::created;
use super::read_body;
use crate::Inner;
use crate::context::Context;
use crate::object::meta;
use crate::registry::{Target, admit, catalog};
use crate::reply::Body;
use crate::{codec, negotiate};

const SECONDS_DEFAULT: i64 = 3_600;
const SECONDS_MIN: i64 = 600;
const SECONDS_MAX: i64 = 1 << 32;

pub async fn request(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let options = context.write_options()?;
    let media = negotiate::body_media(&context.headers, true)?;
    let bytes = read_body(request).await?;
    let found = schema::table::by_gvk("authentication.k8s.io", "v1", "TokenRequest")
        .ok_or_else(|| Status::internal("TokenRequest is not in the table"))?;
    let mut token = codec::other(context, found, "authentication.k8s.io/v1", "TokenRequest", &bytes, media)?;
    let account = server.registry.get(target).await?.value();
    token = server.registry.admit(context, target, admit::Operation::Create, token, options.dry_run).await?;
    let seconds = token["spec"]["expirationSeconds"].as_i64().unwrap_or(SECONDS_DEFAULT);
    check_seconds(seconds)?;
    let bound = bound(server, target, &account, &token["spec"]["boundObjectRef"]).await?;
    let issuer = server.access.issuer.as_ref().ok_or_else(|| Status::not_found(&target.kind.group_resource(), target.name))?;
    let audiences: Vec<String> =
        token["spec"]["audiences"].as_array().into_iter().flatten().filter_map(|audience| audience.as_str().map(str::to_owned)).collect();
    let now = time::epoch(&time::now()).unwrap_or(0);
    let text = issuer.issue(bound, &audiences, seconds, now).map_err(Status::internal)?;
    token["spec"]["audiences"] = if audiences.is_empty() { json!(issuer.audiences()) } else { json!(audiences) };
    token["spec"]["expirationSeconds"] = seconds.into();
    token["metadata"] = json!({"name": target.name, "namespace": target.namespace, "creationTimestamp": time::now()});
    token["status"] = json!({"token": text, "expirationTimestamp": time::from_epoch(now + seconds)});
    Ok(created(&token, format))
}

fn check_seconds(seconds: i64) -> Result<(), Status> {
    let path = field::Path::new("spec").child("expirationSeconds");
    let error = match seconds {
        _ if seconds < SECONDS_MIN => field::Error::invalid(&path, seconds, "may not specify a duration less than 10 minutes"),
        _ if seconds > SECONDS_MAX => field::Error::invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds"),
        _ => return Ok(()),
    };
    Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &[error]))
}

async fn bound(server: &Inner, target: Target<'_>, account: &Value, wanted: &Value) -> Result<Bound, Status> {
    let account = Reference { name: target.name.into(), uid: meta(account, "uid").into() };
    let mut bound = Bound { namespace: target.namespace.into(), serviceaccount: account, ..Bound::default() };
    if !wanted.is_object() {
        return Ok(bound);
    }
    let text = |name: &str| wanted[name].as_str().unwrap_or_default();
    let (plural, namespace) = match (text("apiVersion"), text("kind")) {
        ("v1" | "", "Pod") => ("pods", target.namespace),
        ("v1" | "", "Secret") => ("secrets", target.namespace),
        ("v1" | "", "Node") => ("nodes", ""),
        (version, kind) => return Err(Status::bad_request(format!("cannot bind token to object of type {version}, Kind={kind}"))),
    };
    let object = find(server, plural, namespace, text("name")).await?;
    let (uid, wanted_uid) = (meta(&object, "uid"), text("uid"));
    if !wanted_uid.is_empty() && wanted_uid != uid {
        let why = format!(
            "the UID in the bound object reference ({wanted_uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(&target.kind.group_resource(), text("name"), &why));
    }
    let reference = Reference { name: text("name").into(), uid: uid.into() };
    match plural {
        "secrets" => bound.secret = Some(reference),
        "nodes" => bound.node = Some(reference),
        _ => {
            let used = object["spec"]["serviceAccountName"].as_str().unwrap_or_default();
            if used != target.name {
                let why =
                    format!("cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.", target.name);
                return Err(Status::bad_request(why));
            }
            bound.pod = Some(reference);
            if let Some(node) = object["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
                let uid = find(server, "nodes", "", node).await.map(|node| meta(&node, "uid").to_owned()).unwrap_or_default();
                bound.node = Some(Reference { name: node.into(), uid });
            }
        }
    }
    Ok(bound)
}

async fn find(server: &Inner, plural: &str, namespace: &str, name: &str) -> Result<Value, Status> {
    let kind = catalog::stored("", plural).ok_or_else(|| Status::internal(format!("{plural} are not served")))?;
    Ok(server.registry.get(Target { kind, namespace, name }).await?.value())
}
