//! `…/pods/x/proxy/…`, `…/services/x/proxy/…`, `…/nodes/x/proxy/…`: plain HTTP and upgrades to what the name says.
//!
//! Redirects and links in HTML are rewritten, so that the client stays below the proxy's path.
//! Source: upstream's `ResourceLocation` of each kind, apimachinery `pkg/util/proxy`.

use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, LOCATION};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use meta::Status;
use serde_json::Value;

use super::kubelet;
use crate::Inner;
use crate::backend::{self, Backend};
use crate::context::Context;
use crate::registry::{Target, admit, catalog};
use crate::reply::{self, Body};
use crate::selection::Selection;
use crate::serve::Arrived;

static FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

pub async fn proxy(
    server: &Arc<Inner>,
    context: &Context,
    target: Target<'_>,
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let Some(place) = Place::parse(target.name) else {
        return Err(Status::bad_request(format!("invalid {} request {:?}", target.kind.facts.singular, target.name)));
    };
    let named = Target { name: place.name, ..target };
    server.registry.judge(context, named, admit::Operation::Connect, None, None, false).await?;
    let backend = match target.kind.facts.plural {
        "nodes" => node_backend(server, &place).await?,
        "pods" => pod_backend(&server.registry.get(named).await?.value(), &place)?,
        _ => service_backend(server, named, &place).await?,
    };
    let (own, rest) = split_path(request.uri().path(), target.kind.facts.namespaced);
    let (own, rest) = (own.to_owned(), rest.to_owned());
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if rest.is_empty() && reads && !backend::is_upgrade(request.headers()) {
        // Links relative to the root must lead below the proxy.
        return moved(&format!("{own}/{query}"));
    }
    let host = authority(&request);
    forwarded(&mut request, &own, &rest, &host);
    let path = if rest.is_empty() { "/" } else { &rest };
    let mut response = backend.forward(request, &format!("{path}{query}")).await.map_err(|error| error.unavailable())?;
    rewrite_location(response.headers_mut(), &own, &host, &backend);
    if reads && is_page(response.headers()) {
        return page(response, |url| below(url, &own, &host, &backend)).await;
    }
    Ok(response)
}

/// What a name in the path says: `[https:]name[:port]`, `https:name:`.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    https: bool,
    name: &'a str,
    /// Empty where none is given.
    port: &'a str,
}

impl<'a> Place<'a> {
    /// Upstream: `SplitSchemeNamePort`.
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, name, port) = match text.split(':').collect::<Vec<_>>().as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        (matches!(scheme, "" | "http" | "https") && !name.is_empty()).then_some(Self { https: scheme == "https", name, port })
    }

    fn at(&self, address: IpAddr, port: u16) -> Result<Backend, Status> {
        let tls = match self.https {
            true => Some(auth::pki::unverified_client_config().map_err(Status::internal)?),
            false => None,
        };
        Ok(Backend { address, port, tls })
    }

    fn number(&self) -> Result<Option<u16>, Status> {
        match self.port {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| Status::bad_request(format!("invalid port {text:?}"))),
        }
    }
}

/// The kubelet itself, or another port of the node.
async fn node_backend(server: &Inner, place: &Place<'_>) -> Result<Backend, Status> {
    let own = kubelet(server, place.name).await?;
    match place.number()? {
        Some(port) if port != own.port => place.at(proxyable(own.address)?, port),
        _ => Ok(own),
    }
}

fn pod_backend(pod: &Value, place: &Place<'_>) -> Result<Backend, Status> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let first = ports.find_map(|port| port["containerPort"].as_u64()).and_then(|port| u16::try_from(port).ok());
    let address = pod["status"]["podIP"].as_str().and_then(|address| address.parse().ok()).ok_or_else(not_allowed)?;
    let default = first.unwrap_or(if place.https { 443 } else { 80 });
    place.at(proxyable(address)?, place.number()?.unwrap_or(default))
}

fn not_allowed() -> Status {
    Status::bad_request("address not allowed")
}

/// Whoever writes a pod's address must not reach the API server's own host through it (upstream: `IsProxyableIP`).
fn proxyable(address: IpAddr) -> Result<IpAddr, Status> {
    let local = match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if local || address.to_canonical().is_loopback() || address.is_unspecified() || address.is_multicast() {
        Err(not_allowed())
    } else {
        Ok(address)
    }
}

/// One ready endpoint of the Service, at random; only pods that really have the address count.
async fn service_backend(server: &Inner, target: Target<'_>, place: &Place<'_>) -> Result<Backend, Status> {
    let unavailable = |message: String| Status::failure(503, "ServiceUnavailable", message);
    let service = server.registry.get(target).await?.value();
    let port_name = match place.port.parse::<u64>() {
        Ok(number) => {
            let ports = service["spec"]["ports"].as_array().into_iter().flatten();
            let found = ports.into_iter().find(|port| port["port"].as_u64() == Some(number));
            let missing = || unavailable(format!("no service port {number} found for service {:?}", target.name));
            found.ok_or_else(missing)?["name"].as_str().unwrap_or_default().to_owned()
        }
        Err(_) => place.port.to_owned(),
    };
    let mut endpoints = endpoints(server, target, &port_name);
    while !endpoints.is_empty() {
        let (pod, address, port) = endpoints.swap_remove(random(endpoints.len()));
        let kind = catalog::stored("", "pods").ok_or_else(|| Status::internal("pods are not served"))?;
        let pod = server.registry.find(Target { kind, namespace: target.namespace, name: &pod }).await?;
        if pod.is_some_and(|pod| has_address(&pod.value(), address)) {
            return place.at(address, port);
        }
    }
    Err(unavailable(format!("no endpoints available for service {:?}", target.name)))
}

fn random(below: usize) -> usize {
    let mut bytes = [0_u8; 4];
    // Without randomness the first one serves.
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes) as usize % below.max(1)
}

fn has_address(pod: &Value, address: IpAddr) -> bool {
    let listed = pod["status"]["podIPs"].as_array().into_iter().flatten().map(|entry| &entry["ip"]);
    let mut all = std::iter::once(&pod["status"]["podIP"]).chain(listed);
    all.any(|text| text.as_str().and_then(|text| text.parse().ok()) == Some(address))
}

/// Pod, address and port of every ready endpoint behind the named port.
fn endpoints(server: &Inner, target: Target<'_>, port_name: &str) -> Vec<(String, IpAddr, u16)> {
    let Some(kind) = catalog::stored("discovery.k8s.io", "endpointslices") else { return Vec::new() };
    let mut selection = Selection::all(kind.prefix(target.namespace), kind.storage.rules.clone());
    if let Ok(labels) = meta::selector::LabelSelector::parse(&format!("kubernetes.io/service-name={}", target.name)) {
        selection.labels = labels;
    }
    let cache = server.registry.caches.of(kind.storage.prefix.as_bytes());
    let slices = cache.list(&selection.prefix, b"", 0, &selection, 0).objects;
    slices.iter().flat_map(|slice| of_slice(&slice.value(), port_name)).collect()
}

fn of_slice(slice: &Value, port_name: &str) -> Vec<(String, IpAddr, u16)> {
    let mut ports = slice["ports"].as_array().into_iter().flatten();
    let port = ports.find(|port| port["name"].as_str().unwrap_or_default() == port_name);
    let Some(port) = port.and_then(|port| port["port"].as_u64()).and_then(|port| u16::try_from(port).ok()) else {
        return Vec::new();
    };
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap_or(true));
    let read = |endpoint: &Value| {
        let pod = &endpoint["targetRef"];
        let address = endpoint["addresses"][0].as_str()?.parse().ok()?;
        Some((pod["name"].as_str().filter(|_| pod["kind"] == "Pod")?.to_owned(), address, port))
    };
    ready.filter_map(read).collect()
}

/// The path up to and with `proxy`, and what follows, both as the client wrote them.
fn split_path(path: &str, namespaced: bool) -> (&str, &str) {
    // /api/v1/namespaces/n/pods/p/proxy or /api/v1/nodes/n/proxy
    let words = if namespaced { 7 } else { 5 };
    let mut slashes = path.match_indices('/').map(|(at, _)| at).skip(words);
    slashes.next().map_or((path, ""), |at| path.split_at(at))
}

fn moved(to: &str) -> Result<Response<Body>, Status> {
    let mut response = Response::new(reply::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, HeaderValue::from_str(to).map_err(Status::internal)?);
    Ok(response)
}

/// The host that the client speaks to: a header in HTTP/1.1, part of the URI in HTTP/2.
fn authority(request: &Request<Body>) -> String {
    let header = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    header.or_else(|| request.uri().authority().map(|authority| authority.as_str())).unwrap_or_default().to_owned()
}

fn forwarded(request: &mut Request<Body>, own: &str, rest: &str, host: &str) {
    let peer = request.extensions().get::<Arrived>().map(|arrived| arrived.0.peer.to_string());
    let headers = request.headers_mut();
    let earlier = headers.get(&FORWARDED_FOR).and_then(|value| value.to_str().ok()).map(|earlier| format!("{earlier}, "));
    let mut set = |name: &HeaderName, text: String| {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(name.clone(), value);
        }
    };
    set(&FORWARDED_URI, format!("{own}{rest}"));
    set(&FORWARDED_PROTO, "https".into());
    if !host.is_empty() {
        set(&FORWARDED_HOST, host.to_owned());
        set(&HOST, host.to_owned());
    }
    if let Some(peer) = peer {
        set(&FORWARDED_FOR, format!("{}{peer}", earlier.unwrap_or_default()));
    }
}

/// A redirect to the backend's own paths leads back below the proxy; one to elsewhere stays.
fn rewrite_location(headers: &mut HeaderMap, own: &str, host: &str, backend: &Backend) {
    let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
    let new = location.and_then(|location| below(location, own, host, backend));
    if let Some(value) = new.and_then(|new| HeaderValue::from_str(&new).ok()) {
        headers.insert(LOCATION, value);
    }
}

/// The path below the proxy for a URL of the backend; none where the URL stays as it is.
fn below(url: &str, own: &str, host: &str, backend: &Backend) -> Option<String> {
    if url.starts_with("//") {
        return None;
    }
    let (url, fragment) = url.find('#').map_or((url, ""), |at| url.split_at(at));
    let parsed = url.parse::<Uri>().ok()?;
    let elsewhere =
        parsed.authority().is_some_and(|to| to.as_str() != host && to.as_str() != format!("{}:{}", backend.address, backend.port));
    let path = parsed.path_and_query().map_or("/", |path| path.as_str());
    (!elsewhere && path.starts_with('/') && !path.starts_with(own)).then(|| format!("{own}{path}{fragment}"))
}

/// Pages larger than this are refused: they are held whole while their links are rewritten.
const PAGE_BYTES_MAX: usize = 16 << 20;

/// HTML in a coding that can be read.
fn is_page(headers: &HeaderMap) -> bool {
    let word = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let media = word(CONTENT_TYPE);
    media.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/html") && matches!(&*word(CONTENT_ENCODING), "" | "gzip")
}

/// The page with other links.
async fn page(response: Response<Body>, to: impl Fn(&str) -> Option<String>) -> Result<Response<Body>, Status> {
    let unavailable =
        |why: &dyn std::fmt::Display| Status::failure(503, "ServiceUnavailable", format!("error trying to reach service: {why}"));
    let (mut parts, body) = response.into_parts();
    let content = Limited::new(body, PAGE_BYTES_MAX).collect().await.map_err(|error| unavailable(&error))?.to_bytes();
    let packed = parts.headers.contains_key(CONTENT_ENCODING);
    let mut plain = Vec::new();
    if packed {
        let mut reader = flate2::read::MultiGzDecoder::new(&content[..]).take(PAGE_BYTES_MAX as u64);
        reader.read_to_end(&mut plain).map_err(|error| unavailable(&error))?;
    } else {
        plain = content.into();
    }
    // Another charset than upstream assumes: the page stays as it is.
    let plain = match String::from_utf8(plain) {
        Ok(text) => super::html::rewrite(&text, to).into_bytes(),
        Err(error) => error.into_bytes(),
    };
    let content = if packed { reply::gzip(&plain).ok_or_else(|| Status::internal("compress a page"))? } else { plain };
    parts.headers.remove(CONTENT_LENGTH);
    Ok(Response::from_parts(parts, Full::new(content.into()).map_err(|never| match never {}).boxed()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_carry_scheme_and_port() {
        let cases = [
            ("a", Some((false, "a", ""))),
            ("a:80", Some((false, "a", "80"))),
            ("https:a:443", Some((true, "a", "443"))),
            ("https:a:", Some((true, "a", ""))),
            ("http:a", Some((false, "http", "a"))),
            ("ftp:a:1", None),
            (":1", None),
            ("a:b:c:d", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(Place::parse(text).map(|place| (place.https, place.name, place.port)), wanted, "{text}");
        }
    }

    #[test]
    fn the_rest_of_the_path_stays_as_it_was_written() {
        let cases = [
            ("/api/v1/namespaces/n/pods/p/proxy", true, "/api/v1/namespaces/n/pods/p/proxy", ""),
            ("/api/v1/namespaces/n/services/s:80/proxy/a%2Fb//c/", true, "/api/v1/namespaces/n/services/s:80/proxy", "/a%2Fb//c/"),
            ("/api/v1/nodes/n/proxy/", false, "/api/v1/nodes/n/proxy", "/"),
        ];
        for (path, namespaced, own, rest) in cases {
            assert_eq!(split_path(path, namespaced), (own, rest));
        }
    }

    #[test]
    fn pods_with_addresses_of_the_host_are_not_reached() {
        let pod = |address: &str| json!({"status": {"podIP": address}, "spec": {"containers": [{}, {"ports": [{"containerPort": 8080}]}]}});
        let place = Place::parse("p").unwrap();
        let backend = pod_backend(&pod("10.244.0.5"), &place).unwrap();
        assert_eq!(backend.url("/x"), "http://10.244.0.5:8080/x");
        for address in ["127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "fe80::1", "::ffff:127.0.0.1", "224.0.0.1", ""] {
            assert_eq!(pod_backend(&pod(address), &place).unwrap_err().message, "address not allowed", "{address}");
        }
    }

    #[test]
    fn endpoints_are_the_ready_pods_behind_the_named_port() {
        let endpoint = |address: &str, ready: Value, kind: &str| json!({"addresses": [address], "conditions": {"ready": ready}, "targetRef": {"kind": kind, "name": address}});
        let slice = json!({
            "ports": [{"name": "web", "port": 8080}, {"port": 53}],
            "endpoints": [
                endpoint("10.0.0.1", true.into(), "Pod"),
                endpoint("10.0.0.2", false.into(), "Pod"),
                endpoint("10.0.0.3", Value::Null, "Pod"),
                endpoint("10.0.0.4", true.into(), "Node"),
            ],
        });
        let found = |name: &str| of_slice(&slice, name).into_iter().map(|(pod, _, port)| format!("{pod}:{port}")).collect::<Vec<_>>();
        assert_eq!(found("web"), ["10.0.0.1:8080", "10.0.0.3:8080"]);
        assert_eq!(found(""), ["10.0.0.1:53", "10.0.0.3:53"], "a port without a name");
        assert!(found("other").is_empty());
        let pod = json!({"status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}});
        assert!(has_address(&pod, "fd00::1".parse().unwrap()) && !has_address(&pod, "10.0.0.2".parse().unwrap()));
    }

    #[test]
    fn redirects_stay_below_the_proxy() {
        let backend = Backend { address: IpAddr::from([10, 0, 0, 1]), port: 80, tls: None };
        let cases = [
            ("/login?a=b", "/own/login?a=b"),
            ("http://10.0.0.1:80/x", "/own/x"),
            ("https://api:6443/x", "/own/x"),
            ("/own/x", "/own/x"),
            ("https://example.com/x", "https://example.com/x"),
            ("relative", "relative"),
        ];
        for (from, to) in cases {
            let mut headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_static(from))]);
            rewrite_location(&mut headers, "/own", "api:6443", &backend);
            assert_eq!(headers[LOCATION], to);
        }
    }
}
