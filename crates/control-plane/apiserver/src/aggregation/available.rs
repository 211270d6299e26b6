//! Whether a remote server answers; what it serves.
//!
//! Source: kube-aggregator `pkg/controllers/status/remote`.

use std::sync::Arc;
use std::time::Duration;

use auth::UserInfo;
use http::header::{ACCEPT, HOST};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Limited};
use meta::time;
use serde_json::{Value, json};

use super::Known;
use super::proxy::set_identity;
use super::services::{GROUP, PLURAL, Remote};
use crate::Inner;
use crate::discovery::{Entry, Sub};
use crate::registry::{Target, catalog};
use crate::reply;
use crate::selection::Selection;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Endpoints are chosen at random: one dead one of several is no verdict.
const ATTEMPTS: usize = 5;
const DOCUMENT_BYTES_MAX: usize = 4 << 20;

/// Asks, and writes what came of it into the APIService's status.
pub async fn check(server: &Arc<Inner>, remote: &Remote) {
    let (status, reason, message) = match look(server, remote).await {
        Ok(known) => {
            server.aggregator.remember(remote.place(), Some(known));
            ("True", "Passed", "all checks passed".to_owned())
        }
        Err((reason, message)) => {
            server.aggregator.remember(remote.place(), None);
            ("False", reason, message)
        }
    };
    write(server, &remote.name, json!({"type": "Available", "status": status, "reason": reason, "message": message})).await;
}

/// Sets the condition; writes nothing where it says so already.
pub async fn write(server: &Inner, name: &str, condition: Value) {
    let Some(kind) = catalog::stored(GROUP, PLURAL) else { return };
    let target = Target { kind, namespace: "", name };
    let outcome = server.registry.modify(target, false, |object| {
        set_condition(object, &condition);
        Ok(())
    });
    match outcome.await {
        Err(status) if !status.is("NotFound") => tracing::warn!(name, %status, "the status of an APIService cannot be written"),
        _ => {}
    }
}

fn set_condition(object: &mut Value, condition: &Value) {
    let mut condition = condition.clone();
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = object["status"]["conditions"].as_array_mut() else { return };
    let old = conditions.iter().position(|old| old["type"] == condition["type"]);
    let since =
        old.map(|at| &conditions[at]).filter(|old| old["status"] == condition["status"]).map(|old| old["lastTransitionTime"].clone());
    condition["lastTransitionTime"] = since.unwrap_or_else(|| time::now().into());
    match old {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

type Failure = (&'static str, String);

async fn look(server: &Arc<Inner>, remote: &Remote) -> Result<Known, Failure> {
    service(server, remote).await?;
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match ask(server, remote).await {
            Ok(known) => return Ok(known),
            Err(why) => last = why,
        }
    }
    Err(("FailedDiscoveryCheck", last))
}

/// The Service and its endpoints are there.
async fn service(server: &Inner, remote: &Remote) -> Result<(), Failure> {
    let Remote { namespace, service: name, port, .. } = remote;
    let kind = catalog::stored("", "services").ok_or(("ServiceAccessError", "Services are not served".to_owned()))?;
    let failed = |status: meta::Status| {
        ("ServiceAccessError", format!("service/{name} in {namespace:?} cannot be checked due to: {}", status.message))
    };
    let found = server.registry.find(Target { kind, namespace, name }).await.map_err(failed)?;
    let Some(service) = found else {
        return Err(("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    };
    let service = service.value();
    if service["spec"]["type"] != "ClusterIP" {
        return Ok(());
    }
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let Some(found) = ports.find(|found| found["port"].as_u64() == Some(u64::from(*port))) else {
        return Err(("ServicePortError", format!("service/{name} in {namespace:?} is not listening on port {port}")));
    };
    let port_name = found["name"].as_str().unwrap_or_default();
    let slices = slices(server, namespace, name);
    if slices.is_empty() {
        return Err(("EndpointsNotFound", format!("cannot find endpointslices for service/{name} in {namespace:?}")));
    }
    if !slices.iter().any(|slice| is_active(slice, port_name)) {
        let why = format!("endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}");
        return Err(("MissingEndpoints", why));
    }
    Ok(())
}

fn slices(server: &Inner, namespace: &str, service: &str) -> Vec<Value> {
    let Some(kind) = catalog::stored("discovery.k8s.io", "endpointslices") else { return Vec::new() };
    let selection = Selection::all(kind.prefix(namespace), kind.storage.rules.clone());
    let page = server.registry.caches.of(kind.storage.prefix.as_bytes()).list(&selection.prefix, b"", 0, &selection, 0);
    let all = page.objects.iter().map(|object| object.value());
    all.filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == *service).collect()
}

fn is_active(slice: &Value, port_name: &str) -> bool {
    let items = |field: &str| slice[field].as_array().into_iter().flatten();
    items("endpoints").any(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap_or(true))
        && items("ports").any(|port| port["name"].as_str().unwrap_or_default() == port_name && port["port"].is_u64())
}

/// Its own discovery document, which every server must serve; and where its OpenAPI document is, which not every one has.
async fn ask(server: &Arc<Inner>, remote: &Remote) -> Result<Known, String> {
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let list = get(server, remote, &path).await?;
    let index = get(server, remote, "/openapi/v3").await.unwrap_or_default();
    let openapi = index["paths"][path.trim_start_matches('/')]["serverRelativeURL"].as_str().map(str::to_owned);
    let openapi_v2 = match server.aggregator.document(&remote.place(), openapi.as_deref()) {
        Some(known) => Some(known),
        // Not every server has one.
        None => get(server, remote, "/openapi/v2").await.ok().map(|document| Arc::new(schema::openapi::merge::part(&document, &path))),
    };
    Ok(Known { resources: entries(&list), openapi, openapi_v2, stale: false })
}

async fn get(server: &Arc<Inner>, remote: &Remote, path: &str) -> Result<Value, String> {
    let backend = remote.backend(server).await?;
    let url = backend.url(path);
    let fail = |why: String| format!("failing or missing response from {url}: {why}");
    let mut request = Request::get(path).body(reply::empty()).map_err(|error| error.to_string())?;
    // This identity may read everything everywhere.
    set_identity(
        request.headers_mut(),
        &UserInfo { username: "system:kube-aggregator".into(), groups: vec!["system:masters".into()], ..UserInfo::default() },
    );
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
    if let Ok(host) = HeaderValue::from_str(&remote.host()) {
        request.headers_mut().insert(HOST, host);
    }
    let name = remote.server_name()?;
    let exchange = async {
        let response = backend.forward_named(name, request, path).await.map_err(|error| format!("Get {url:?}: {error}"))?;
        let code = response.status();
        let body = Limited::new(response.into_body(), DOCUMENT_BYTES_MAX).collect().await.map_err(|error| error.to_string())?.to_bytes();
        match code.as_u16() {
            200..=299 => Ok(serde_json::from_slice(&body).unwrap_or_default()),
            code => Err(format!("bad status from {url}: {code}")),
        }
    };
    let timed = tokio::time::timeout(TIMEOUT, exchange).await;
    timed.unwrap_or_else(|_| Err(format!("Get {url:?}: context deadline exceeded"))).map_err(fail)
}

/// An `APIResourceList` as discovery keeps it.
fn entries(list: &Value) -> Vec<Entry> {
    let words =
        |value: &Value| value.as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect::<Vec<_>>();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = list["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (subs, mains): (Vec<&Value>, Vec<&Value>) = all.iter().partition(|resource| text(&resource["name"]).contains('/'));
    let sub = |resource: &Value| Sub {
        name: text(&resource["name"]).split_once('/').map(|(_, sub)| sub.to_owned()).unwrap_or_default(),
        kind: text(&resource["kind"]),
        other: resource["version"].as_str().map(|version| (text(&resource["group"]), version.to_owned())),
        verbs: words(&resource["verbs"]),
    };
    let entry = |resource: &Value| {
        let plural = text(&resource["name"]);
        let own = |sub: &&&Value| text(&sub["name"]).split_once('/').is_some_and(|(main, _)| main == plural);
        Entry {
            singular: text(&resource["singularName"]),
            kind: text(&resource["kind"]),
            namespaced: resource["namespaced"].as_bool().unwrap_or(false),
            verbs: words(&resource["verbs"]),
            short_names: words(&resource["shortNames"]),
            categories: words(&resource["categories"]),
            storage_version_hash: resource["storageVersionHash"].as_str().map(str::to_owned),
            subresources: subs.iter().filter(own).map(|resource| sub(resource)).collect(),
            plural,
        }
    };
    mains.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_while_it_stays() {
        let mut object =
            json!({"status": {"conditions": [{"type": "Available", "status": "True", "lastTransitionTime": "t", "reason": "Passed"}]}});
        let before = object.clone();
        set_condition(&mut object, &json!({"type": "Available", "status": "True", "reason": "Passed"}));
        assert_eq!(object, before);
        set_condition(&mut object, &json!({"type": "Available", "status": "False", "reason": "ServiceNotFound"}));
        assert_ne!(object["status"]["conditions"][0]["lastTransitionTime"], "t");
    }

    #[test]
    fn a_servers_own_list_becomes_entries() {
        let list = json!({"resources": [
            {"name": "flunders", "kind": "Flunder", "namespaced": true, "verbs": ["get", "list"], "shortNames": ["fl"]},
            {"name": "flunders/status", "kind": "Flunder", "verbs": ["get"]},
        ]});
        let found = entries(&list);
        assert_eq!((found.len(), found[0].plural.as_str(), found[0].subresources[0].name.as_str()), (1, "flunders", "status"));
    }
}
