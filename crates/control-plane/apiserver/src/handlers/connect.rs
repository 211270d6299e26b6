//! `log`, `exec`, `attach`, `portforward` of pods through their node's kubelet, and `proxy` of pods, Services and nodes.

use std::net::IpAddr;
use std::sync::Arc;

use http::{Method, Request, Response};
use meta::Status;
use serde_json::Value;

use crate::Inner;
use crate::backend::Backend;
use crate::context::Context;
use crate::object::meta;
use crate::registry::{Target, admit, catalog};
use crate::reply::{self, Body};

const KUBELET_PORT: u16 = 10_250;

/// `GET …/pods/x/log`.
pub async fn log(server: &Arc<Inner>, context: &Context, target: Target<'_>) -> Result<Response<Body>, Status> {
    check_log_options(context)?;
    let pod = server.registry.get(target).await?.value();
    let container = container(&pod, context.query.text("container"))?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        // Not on a node yet: there is nothing to read, which is no failure.
        return Ok(reply::text(http::StatusCode::OK, ""));
    }
    let backend = kubelet(server, node).await?;
    let names = ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"];
    let query = forwarded_query(context, &names);
    let path = format!("/containerLogs/{}/{}/{container}{query}", target.namespace, target.name);
    let request = Request::builder().method(Method::GET).uri(&path).body(reply::empty()).map_err(Status::internal)?;
    let response = backend.forward(request, &path).await.map_err(|error| error.internal(&backend.url(&path)))?;
    if response.status().is_success() {
        let mut response = response;
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
        return Ok(response);
    }
    Err(kubelet_failure(target, response).await)
}

fn check_log_options(context: &Context) -> Result<(), Status> {
    let query = &context.query;
    if query.text("sinceSeconds").is_some() && query.text("sinceTime").is_some() {
        let error =
            meta::field::Error::forbidden(&meta::field::Path::root(), "at most one of `sinceTime` or `sinceSeconds` may be specified");
        return Err(Status::invalid("", "PodLogOptions", "", &[error]));
    }
    for name in ["sinceSeconds", "tailLines", "limitBytes"] {
        let path = meta::field::Path::new(name);
        match query.text(name).map(str::parse::<i64>) {
            None | Some(Ok(0..)) => {}
            Some(Ok(number)) => {
                let error = meta::field::Error::invalid(&path, number, "must be greater than or equal to 0");
                return Err(Status::invalid("", "PodLogOptions", "", &[error]));
            }
            Some(Err(_)) => {
                return Err(Status::bad_request(format!(
                    "strconv.ParseInt: parsing {:?}: invalid syntax",
                    query.text(name).unwrap_or_default()
                )));
            }
        }
    }
    Ok(())
}

/// What a kubelet says becomes a Status.
async fn kubelet_failure(target: Target<'_>, response: Response<Body>) -> Status {
    use http_body_util::{BodyExt, Limited};
    let code = response.status().as_u16();
    let body = Limited::new(response.into_body(), 64 << 10).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&body).trim().to_owned();
    match code {
        400 => Status::bad_request(text),
        404 => Status::failure(404, "NotFound", if text.is_empty() { target.not_found().message } else { text }),
        _ => Status::failure(
            500,
            "InternalError",
            format!(
                "an error on the server ({text:?}) has prevented the request from succeeding (get {} {})",
                target.kind.facts.plural, target.name
            ),
        ),
    }
}

/// The container that is meant, as upstream chooses it.
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
    let chosen = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    match (containers.as_slice(), chosen) {
        ([only], _) => Ok(only),
        ([], _) => Err(Status::bad_request(format!("a container name must be specified for pod {pod_name}"))),
        (many, Some(chosen)) if many.contains(&chosen) => Ok(chosen),
        (many, _) => {
            let mut message = format!("a container name must be specified for pod {pod_name}, choose one of: [{}]", many.join(" "));
            if !init.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            if !ephemeral.is_empty() {
                message.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" ")));
            }
            Err(Status::bad_request(message))
        }
    }
}

/// `?a=b&c=d` of the named parameters, encoded; empty where there are none.
fn forwarded_query(context: &Context, names: &[&str]) -> String {
    let mut query = String::new();
    for name in names {
        for value in context.query.all(name) {
            query.push(if query.is_empty() { '?' } else { '&' });
            query.push_str(name);
            query.push('=');
            query.push_str(&percent_encode(value));
        }
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

/// `exec`, `attach` and `portforward`: an upgrade (SPDY/3.1 or WebSocket) that ends at the kubelet.
pub async fn stream(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let pod = server.registry.get(target).await?.value();
    server.registry.judge(context, target, admit::Operation::Connect, None, None, false).await?;
    let path = stream_path(context, target, &pod)?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", target.name)));
    }
    if !request.headers().contains_key(http::header::UPGRADE) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let backend = kubelet(server, node).await?;
    let response = backend
        .forward(request, &path)
        .await
        .map_err(|error| Status::failure(500, "InternalError", format!("error dialing backend: {error}")))?;
    match response.status() {
        http::StatusCode::SWITCHING_PROTOCOLS => Ok(response),
        _ => Err(kubelet_failure(target, response).await),
    }
}

/// The kubelet's path of a stream.
fn stream_path(context: &Context, target: Target<'_>, pod: &Value) -> Result<String, Status> {
    let query = &context.query;
    let Target { namespace, name, .. } = target;
    if context.info.subresource == "portforward" {
        return Ok(format!("/portForward/{namespace}/{name}{}", forwarded_query(context, &["ports"])));
    }
    let container = container(pod, query.text("container"))?;
    let flags = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
    let wanted: Vec<&str> = flags.iter().filter(|(name, _)| query.flag(name)).map(|(_, kubelet)| *kubelet).collect();
    if !wanted.iter().any(|flag| *flag != "tty") {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let commands: Vec<&str> = query.all("command").collect();
    if context.info.subresource == "exec" && commands.is_empty() {
        return Err(Status::bad_request("you must specify at least one command for the container"));
    }
    let mut parameters: Vec<String> = wanted.iter().map(|flag| format!("{flag}=1")).collect();
    parameters.extend(commands.iter().map(|word| format!("command={}", percent_encode(word))));
    Ok(format!("/{}/{namespace}/{name}/{container}?{}", context.info.subresource, parameters.join("&")))
}

/// A node's kubelet, from its status.
async fn kubelet(server: &Inner, node: &str) -> Result<Backend, Status> {
    let kind = catalog::stored("", "nodes").ok_or_else(|| Status::internal("nodes are not served"))?;
    let found = server.registry.get(Target { kind, namespace: "", name: node }).await?.value();
    let addresses = found["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Upstream's preference; names cannot be resolved here, addresses can.
    let address = ["InternalIP", "ExternalIP", "Hostname"].iter().find_map(|wanted| {
        let of_kind = addresses.iter().filter(|address| address["type"] == **wanted);
        of_kind.filter_map(|address| address["address"].as_str()?.parse::<IpAddr>().ok()).next()
    });
    let address = address
        .ok_or_else(|| Status::internal(format!("no preferred addresses found; known addresses: {}", found["status"]["addresses"])))?;
    let port = found["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().and_then(|port| u16::try_from(port).ok());
    let tls = server.kubelet_client.clone().ok_or_else(|| Status::internal("the API server has no client certificate for kubelets"))?;
    Ok(Backend { address, port: port.filter(|port| *port != 0).unwrap_or(KUBELET_PORT), tls: Some(tls) })
}

/// `…/pods/x/proxy/…`, `…/services/x/proxy/…`, `…/nodes/x/proxy/…`.
pub async fn proxy(server: &Arc<Inner>, context: &Context, target: Target<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let (scheme, name, port) = split_name(target.name);
    let named = Target { name, ..target };
    server.registry.judge(context, named, admit::Operation::Connect, None, None, false).await?;
    let backend = match target.kind.facts.plural {
        "nodes" => kubelet(server, name).await?,
        "pods" => pod_backend(&server.registry.get(named).await?.value(), port)?,
        _ => service_backend(server, named, port).await?,
    };
    if scheme == "https" && backend.tls.is_none() {
        return Err(Status::bad_request("proxying to https backends is not supported"));
    }
    let rest = match context.info.rest.as_str() {
        "" => "/",
        rest => rest,
    };
    let path: String = rest.split('/').map(percent_encode).collect::<Vec<_>>().join("/");
    let path = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    backend.forward(request, &path).await.map_err(|error| error.unavailable())
}

/// `[scheme:]name[:port]`.
fn split_name(text: &str) -> (&str, &str, &str) {
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [scheme @ ("http" | "https"), name, port] => (scheme, name, port),
        [scheme @ ("http" | "https"), name] => (scheme, name, ""),
        [name, port] => ("", name, port),
        ["", name, port] => ("", name, port),
        _ => ("", text, ""),
    }
}

fn pod_backend(pod: &Value, port: &str) -> Result<Backend, Status> {
    let name = meta(pod, "name");
    let address = pod["status"]["podIP"].as_str().and_then(|address| address.parse::<IpAddr>().ok());
    let address = address.ok_or_else(|| {
        Status::failure(503, "ServiceUnavailable", format!("no endpoints available for pod {name:?}: address not allowed"))
    })?;
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let first = containers
        .flat_map(|container| container["ports"].as_array().into_iter().flatten())
        .find_map(|port| port["containerPort"].as_u64());
    let port = match port {
        "" => first.and_then(|port| u16::try_from(port).ok()).unwrap_or(80),
        text => text.parse().map_err(|_| Status::bad_request(format!("invalid port {text:?}")))?,
    };
    Ok(Backend { address, port, tls: None })
}

/// One ready endpoint of the Service, at random.
async fn service_backend(server: &Inner, target: Target<'_>, port: &str) -> Result<Backend, Status> {
    let service = server.registry.get(target).await?.value();
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let wanted = match port {
        "" => ports.first().filter(|_| ports.len() == 1),
        text => ports
            .iter()
            .find(|port| port["name"] == text || port["port"].as_u64().map(|number| number.to_string()).as_deref() == Some(text)),
    };
    let none = || Status::failure(503, "ServiceUnavailable", format!("no endpoints available for service {:?}", target.name));
    let wanted = wanted.ok_or_else(none)?;
    let port_name = wanted["name"].as_str().unwrap_or_default();
    let kind = catalog::stored("", "endpoints").ok_or_else(none)?;
    let endpoints = server.registry.find(Target { kind, ..target }).await?.ok_or_else(none)?.value();
    let mut found = Vec::new();
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        let number = subset["ports"].as_array().into_iter().flatten().find(|port| port["name"].as_str().unwrap_or_default() == port_name);
        let Some(number) = number.and_then(|port| port["port"].as_u64()).and_then(|port| u16::try_from(port).ok()) else { continue };
        let addresses =
            subset["addresses"].as_array().into_iter().flatten().filter_map(|address| address["ip"].as_str()?.parse::<IpAddr>().ok());
        found.extend(addresses.map(|address| (address, number)));
    }
    let mut random = [0_u8; 2];
    // Without randomness the first one serves.
    let _ = getrandom::fill(&mut random);
    let at = usize::from(u16::from_le_bytes(random)) % found.len().max(1);
    let (address, port) = *found.get(at).ok_or_else(none)?;
    Ok(Backend { address, port, tls: None })
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

    #[test]
    fn proxy_names_carry_scheme_and_port() {
        let cases =
            [("a", ("", "a", "")), ("a:80", ("", "a", "80")), ("https:a:443", ("https", "a", "443")), ("http:a", ("http", "a", ""))];
        for (text, parts) in cases {
            assert_eq!(split_name(text), parts);
        }
    }
}
