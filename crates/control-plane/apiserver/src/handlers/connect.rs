//! Requests that go on to somebody else: `log`, `exec`, `attach` and `portforward` of pods to their node's kubelet, `proxy` of pods,
//! Services and nodes to what they name.

mod html;
mod log;
mod proxy;
mod stream;

use std::net::IpAddr;

use meta::status::{Cause, Details};
use meta::{GroupResource, Status};
use serde_json::Value;

pub use log::log;
pub use proxy::proxy;
pub use stream::stream;

use crate::Inner;
use crate::backend::Backend;
use crate::context::Context;
use crate::object::meta;
use crate::registry::{Target, catalog};
use crate::reply::Body;

const KUBELET_PORT: u16 = 10_250;
/// As much of a refusal is read.
const REFUSAL_BYTES_MAX: usize = 50_000;

/// A node's kubelet, from its status.
async fn kubelet(server: &Inner, node: &str) -> Result<Backend, Status> {
    let kind = catalog::stored("", "nodes").ok_or_else(|| Status::internal("nodes are not served"))?;
    let found = server.registry.get(Target { kind, namespace: "", name: node }).await?.value();
    let addresses = found["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Upstream's preference; names cannot be resolved here, addresses can.
    let address = ["Hostname", "InternalIP", "ExternalIP"].iter().find_map(|wanted| {
        let of_kind = addresses.iter().filter(|address| address["type"] == **wanted);
        of_kind.filter_map(|address| address["address"].as_str()?.parse::<IpAddr>().ok()).next()
    });
    let unknown = || Status::failure(500, "", format!("no preferred addresses found; known addresses: {}", found["status"]["addresses"]));
    let port = found["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().and_then(|port| u16::try_from(port).ok());
    let tls = server.kubelet_client.clone().ok_or_else(|| Status::internal("the API server has no client certificate for kubelets"))?;
    Ok(Backend { address: address.ok_or_else(unknown)?, port: port.filter(|port| *port != 0).unwrap_or(KUBELET_PORT), tls: Some(tls) })
}

/// The container that is meant. Upstream leaves the annotation `kubectl.kubernetes.io/default-container` to clients.
fn container<'a>(pod: &'a Value, wanted: Option<&'a str>) -> Result<&'a str, Status> {
    let pod_name = meta(pod, "name");
    let names = |list: &str| {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.filter_map(|container| container["name"].as_str()).collect::<Vec<_>>()
    };
    let (containers, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if let Some(wanted) = wanted {
        let known = [&containers, &init, &ephemeral].iter().any(|list| list.contains(&wanted));
        return if known { Ok(wanted) } else { Err(Status::bad_request(format!("container {wanted} is not valid for pod {pod_name}"))) };
    }
    let mut message = format!("a container name must be specified for pod {pod_name}");
    match containers.as_slice() {
        [only] => return Ok(only),
        [] => {}
        many => {
            message.push_str(&format!(", choose one of: [{}]", many.join(" ")));
            if !init.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
        }
    }
    Err(Status::bad_request(message))
}

/// What a kubelet says becomes a Status (upstream: `GenericHttpResponseChecker`).
async fn refusal(context: &Context, target: Target<'_>, response: http::Response<Body>) -> Status {
    use http_body_util::{BodyExt, Limited};
    let code = response.status().as_u16();
    let body = Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&body).into_owned();
    let (reason, message) = match code {
        400 => return Status::bad_request(text),
        500 => return Status::internal(text),
        401 => ("Unauthorized", "the server has asked for the client to provide credentials".to_owned()),
        403 => ("Forbidden", text.clone()),
        404 => ("NotFound", "the server could not find the requested resource".to_owned()),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request".to_owned()),
        504 => {
            ("Timeout", "the server was unable to return a response in the time allotted, but may still be processing the request".into())
        }
        501.. => ("InternalError", format!("an error on the server ({text:?}) has prevented the request from succeeding")),
        _ => ("", format!("the server responded with the status code {code} but did not return more information")),
    };
    let resource = GroupResource { group: String::new(), resource: format!("{}/{}", target.kind.facts.plural, context.info.subresource) };
    let mut status = Status::failure(code, reason, format!("{message} ( {resource} {})", target.name));
    let cause = Cause { reason: "UnexpectedServerResponse".into(), message: text, ..Cause::default() };
    status.details = Some(Details { name: target.name.into(), kind: resource.resource, causes: vec![cause], ..Details::default() });
    status
}

/// `?a=b&c=d`, encoded; empty where there are none.
fn query_string<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut query = String::new();
    for (name, value) in pairs {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(name);
        query.push('=');
        query.push_str(&percent_encode(value));
    }
    query
}

fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_is_chosen_as_upstream_does() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        let two =
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&one, None).unwrap(), "a");
        assert_eq!(container(&two, Some("i")).unwrap(), "i");
        let message = container(&two, None).unwrap_err().message;
        assert_eq!(message, "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]");
        assert_eq!(container(&one, Some("x")).unwrap_err().message, "container x is not valid for pod p");
    }
}
