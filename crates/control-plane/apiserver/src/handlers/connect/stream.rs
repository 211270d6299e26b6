//! `exec`, `attach` and `portforward`: an upgrade (SPDY/3.1 or WebSocket) that ends at the kubelet.
//! That the GET of a WebSocket needs the right to create is authorization's part.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use meta::Status;
use serde_json::Value;

use super::{container, kubelet, query_string};
use crate::Inner;
use crate::backend;
use crate::context::Context;
use crate::registry::{Target, admit};
use crate::reply::Body;
use crate::request::Query;

pub async fn stream(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let pod = server.registry.get(target).await?.value();
    server.registry.judge(context, target, admit::Operation::Connect, None, None, false).await?;
    let path = kubelet_path(&context.info.subresource, &context.query, target, &pod)?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", target.name)));
    }
    if !backend::is_upgrade(request.headers()) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let backend = kubelet(server, node).await?;
    let response = backend.forward(request, &path).await.map_err(|error| error.unreachable("error dialing backend"))?;
    match response.status() {
        // Clients print a kubelet's refusal of an upgrade as they find it: `unable to upgrade connection: container not found ("c")`.
        StatusCode::SWITCHING_PROTOCOLS => Ok(response),
        code if code.is_client_error() || code.is_server_error() => Ok(response),
        code => Err(Status::internal(format!("unable to upgrade connection: the kubelet answered {code}"))),
    }
}

/// The kubelet's path and query of a stream.
fn kubelet_path(subresource: &str, query: &Query, target: Target<'_>, pod: &Value) -> Result<String, Status> {
    let Target { namespace, name, .. } = target;
    if subresource == "portforward" {
        return Ok(format!("/portForward/{namespace}/{name}{}", query_string(ports(query)?.iter().map(|ports| ("port", ports.as_str())))));
    }
    let container = container(pod, query.text("container"))?;
    let flags = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
    let wanted = flags.into_iter().filter(|(name, _)| query.flag(name)).map(|(_, kubelet)| (kubelet, "1"));
    let commands = query.all("command").filter(|_| subresource == "exec").map(|word| ("command", word));
    Ok(format!("/{subresource}/{namespace}/{name}/{container}{}", query_string(wanted.chain(commands))))
}

/// The ports that a client of the older WebSocket protocol names in the URL.
fn ports(query: &Query) -> Result<Option<String>, Status> {
    let ports: Vec<&str> = query.all("ports").flat_map(|text| text.split(',')).filter(|text| !text.is_empty()).collect();
    if let Some(wrong) = ports.iter().find(|port| port.parse::<u16>().is_err()) {
        return Err(Status::bad_request(format!("strconv.ParseInt: parsing {wrong:?}: invalid syntax")));
    }
    Ok((!ports.is_empty()).then(|| ports.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::catalog;
    use serde_json::json;

    #[test]
    fn the_kubelets_path_says_what_is_wanted() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        let target = Target { kind: catalog::stored("", "pods").unwrap(), namespace: "n", name: "p" };
        let cases = [
            (
                "exec",
                "command=sh&command=-c&command=a%20%26&stdin=true&stdout=true&tty=true",
                "/exec/n/p/c?input=1&output=1&tty=1&command=sh&command=-c&command=a%20%26",
            ),
            ("attach", "stderr=true&stdin=false&command=x", "/attach/n/p/c?error=1"),
            ("portforward", "", "/portForward/n/p"),
            ("portforward", "ports=80&ports=443", "/portForward/n/p?port=80%2C443"),
        ];
        for (subresource, query, path) in cases {
            assert_eq!(kubelet_path(subresource, &Query::parse(Some(query)), target, &pod).unwrap(), path);
        }
        assert!(kubelet_path("portforward", &Query::parse(Some("ports=http")), target, &pod).is_err());
    }
}
