//! `POST …/serviceaccounts/x/token`: TokenRequest (KEP-1205).

use std::sync::Arc;

use auth::tokens::{Bound, Reference};
use http::{Request, Response};
use meta::{GroupResource, Status, field, time};
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
/// What admission asks for in a pod's volume. A client too old to read its token again may go on with it for longer: such a token lasts a
/// year, and says after which time somebody should be warned.
const EXTENDED_SECONDS: i64 = 3_607;
const EXTENSION_SECONDS: i64 = 365 * 24 * 60 * 60;

pub async fn request(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let format = super::format(context, target.kind)?;
    let options = context.write_options()?;
    let media = negotiate::body_media(&context.headers, true)?;
    let bytes = read_body(request).await?;
    let found = schema::table::by_gvk("authentication.k8s.io", "v1", "TokenRequest")
        .ok_or_else(|| Status::internal("TokenRequest is not in the table"))?;
    let mut token = codec::other(context, found, "authentication.k8s.io/v1", "TokenRequest", &bytes, media)?;
    check_name(target, &token)?;
    let account = server.registry.get(target).await?.value();
    check_uid(target, &account, &token)?;
    token = server.registry.admit(context, target, admit::Operation::Create, token, options.dry_run).await?;
    let seconds = token["spec"]["expirationSeconds"].as_i64().unwrap_or(SECONDS_DEFAULT);
    check_seconds(seconds)?;
    let mut bound = bound(server, target, &account, &token["spec"]["boundObjectRef"]).await?;
    let issuer = server.access.issuer.as_ref().ok_or_else(|| Status::not_found(&target.kind.group_resource(), target.name))?;
    let audiences: Vec<String> =
        token["spec"]["audiences"].as_array().into_iter().flatten().filter_map(|audience| audience.as_str().map(str::to_owned)).collect();
    let now = time::epoch(&time::now()).unwrap_or(0);
    let ours = audiences.iter().all(|audience| issuer.audiences().contains(audience));
    let extended = seconds == EXTENDED_SECONDS && bound.pod.is_some() && ours;
    bound.warnafter = extended.then_some(now + seconds);
    let lifetime = if extended { EXTENSION_SECONDS } else { seconds };
    let text = issuer.issue(bound, &audiences, lifetime, now).map_err(Status::internal)?;
    token["spec"]["audiences"] = if audiences.is_empty() { json!(issuer.audiences()) } else { json!(audiences) };
    token["spec"]["expirationSeconds"] = seconds.into();
    let metadata = [("name", target.name), ("namespace", target.namespace), ("uid", meta(&account, "uid"))];
    metadata.into_iter().for_each(|(name, value)| token["metadata"][name] = value.into());
    token["metadata"]["creationTimestamp"] = time::now().into();
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

/// Where the body says whose token it is, it says so rightly.
fn check_name(target: Target<'_>, token: &Value) -> Result<(), Status> {
    let given = meta(token, "name");
    if given.is_empty() || given == target.name {
        return Ok(());
    }
    let path = field::Path::new("metadata").child("name");
    let error = field::Error::invalid(&path, given, "must match the service account name if specified");
    Err(Status::invalid("authentication.k8s.io", "TokenRequest", target.name, &[error]))
}

fn check_uid(target: Target<'_>, account: &Value, token: &Value) -> Result<(), Status> {
    let (given, uid) = (meta(token, "uid"), meta(account, "uid"));
    if given.is_empty() || given == uid {
        return Ok(());
    }
    let resource = GroupResource { group: "authentication.k8s.io".into(), resource: "TokenRequest".into() };
    let why = format!("the UID in the token request ({given}) does not match the UID of the service account ({uid})");
    Err(Status::conflict(&resource, target.name, &why))
}

async fn bound(server: &Inner, target: Target<'_>, account: &Value, wanted: &Value) -> Result<Bound, Status> {
    let account = Reference { name: target.name.into(), uid: meta(account, "uid").into() };
    let mut bound = Bound { namespace: target.namespace.into(), serviceaccount: account, ..Bound::default() };
    if !wanted.is_object() {
        return Ok(bound);
    }
    let text = |name: &str| wanted[name].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (plural, namespace) = match kind {
        "Pod" if !api_version.contains('/') => ("pods", target.namespace),
        "Secret" if !api_version.contains('/') => ("secrets", target.namespace),
        "Node" if !api_version.contains('/') => ("nodes", ""),
        _ => {
            let group_version = if api_version.contains('/') { api_version.to_owned() } else { format!("/{api_version}") };
            return Err(Status::bad_request(format!("cannot bind token to object of type {group_version}, Kind={kind}")));
        }
    };
    let object = find(server, plural, namespace, text("name")).await?;
    let (uid, wanted_uid) = (meta(&object, "uid"), text("uid"));
    if !wanted_uid.is_empty() && wanted_uid != uid {
        let why = format!(
            "the UID in the bound object reference ({wanted_uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        let resource = GroupResource { group: String::new(), resource: kind.into() };
        return Err(Status::conflict(&resource, text("name"), &why));
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
