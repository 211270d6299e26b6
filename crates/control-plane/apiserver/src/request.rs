//! What a request is about: upstream's `RequestInfo`, read from method, path and query.
//!
//! Authorization, audit, metrics and routing all read this one value, so a path is parsed once.
//! Source: apiserver `pkg/endpoints/request/requestinfo.go`.

use http::Method;
use meta::Status;

/// The subject of a request. Text fields are empty where they do not apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// A request about API objects; everything else (`/healthz`, `/version`, discovery) is a non-resource request.
    pub is_resource: bool,
    /// Percent-decoded.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for non-resource requests the
    /// lower-case HTTP method.
    pub verb: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    /// The path goes on below a namespace: what has none is not found there, and a role of the namespace never decides about it.
    pub below_namespace: bool,
    /// The path begins with `watch/`, upstream's old way to ask for one: a name in it selects.
    pub below_watch: bool,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// What follows the subresource: the path below `proxy/`.
    pub rest: String,
}

/// Subresources whose requests last as long as the client likes.
const LONG_RUNNING: [&str; 5] = ["log", "exec", "attach", "portforward", "proxy"];
/// Subresources of namespaces that do not look like a resource inside the namespace.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// Reads a request line. Never fails: what is not a resource path is a non-resource request.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let path = percent_decode(path, false);
        let mut info = Self::default();
        info.read(method, &path, query);
        info.path = path;
        info
    }

    fn read(&mut self, method: &Method, path: &str, query: &Query) {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let rest = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                self.version = (*version).into();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                self.group = (*group).into();
                self.version = (*version).into();
                rest
            }
            _ => {
                self.verb = method.as_str().to_ascii_lowercase();
                return;
            }
        };
        self.is_resource = true;
        self.verb = verb_of(method).into();
        let rest = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => {
                self.verb = "watch".into();
                self.below_watch = true;
                rest
            }
            rest => rest,
        };
        self.take_object(rest, path);
        self.refine_verb(query);
    }

    /// Watches and streams: no deadline, no place among the requests in flight.
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch" || LONG_RUNNING.contains(&self.subresource.as_str())
    }

    fn take_object(&mut self, rest: &[&str], path: &str) {
        let object = match rest {
            ["namespaces", namespace, subresource, ..] if NAMESPACE_SUBRESOURCES.contains(subresource) => {
                self.namespace = (*namespace).into();
                rest
            }
            ["namespaces", namespace, inner @ ..] if !inner.is_empty() => {
                self.namespace = (*namespace).into();
                self.below_namespace = true;
                inner
            }
            ["namespaces", namespace] => {
                self.namespace = (*namespace).into();
                rest
            }
            rest => rest,
        };
        let mut words = object.iter().map(|word| (*word).to_owned());
        self.resource = words.next().unwrap_or_default();
        self.name = words.next().unwrap_or_default();
        self.subresource = words.next().unwrap_or_default();
        if object.len() > 3 {
            self.rest = format!("/{}", object[3..].join("/"));
        }
        if !self.subresource.is_empty() && path.ends_with('/') {
            self.rest.push('/');
        }
    }

    fn refine_verb(&mut self, query: &Query) {
        if !self.name.is_empty() {
            return;
        }
        match self.verb.as_str() {
            "get" if query.flag("watch") => self.verb = "watch".into(),
            "get" => self.verb = "list".into(),
            "delete" => self.verb = "deletecollection".into(),
            _ => {}
        }
        // Authorization of a list by metadata.name is that of the one object.
        if matches!(self.verb.as_str(), "list" | "watch" | "deletecollection")
            && let Some(selector) = query.get("fieldSelector")
            && let Some(name) = exact_name(selector)
        {
            self.name = name.into();
        }
    }
}

fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::GET | Method::HEAD => "get",
        // No verb of the API: the router refuses it.
        _ => "",
    }
}

fn exact_name(selector: &str) -> Option<&str> {
    selector.split(',').find_map(|term| {
        let name = term.strip_prefix("metadata.name=")?;
        let name = name.strip_prefix('=').unwrap_or(name);
        (!name.is_empty()).then_some(name)
    })
}

/// A parsed query string. Keys may repeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: Option<&str>) -> Self {
        let pairs = text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let decode = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key, true), percent_decode(value, true))
        };
        Self(pairs.map(decode).collect())
    }
    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }
    /// Go's query-to-bool conversion: absent, `0` and `false` are false, all else is true.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "0" | "false"))
    }
    /// Present, with whatever value.
    pub fn flag_present(&self, key: &str) -> bool {
        self.get(key).is_some()
    }
    /// A number; Go's sentence where the value is none.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, Status> {
        let Some(text) = self.text(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
    }
    /// The value where it is not empty.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }
}

/// `plus_is_space` is true in query strings only.
pub fn percent_decode(text: &str, plus_is_space: bool) -> String {
    if !text.bytes().any(|byte| byte == b'%' || byte == b'+') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex =
            bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok()).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match (byte, hex) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                at += 3;
                continue;
            }
            (b'+', _) if plus_is_space => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, target: &str) -> RequestInfo {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        RequestInfo::parse(&method.parse().unwrap(), path, &Query::parse(Some(query)))
    }

    #[test]
    fn every_form_of_path_names_its_verb_and_object() {
        // method, target, verb, group, namespace, resource, subresource, name
        let cases = [
            ("GET", "/api/v1/pods", "list", "", "", "pods", "", ""),
            ("GET", "/api/v1/pods?watch=1", "watch", "", "", "pods", "", ""),
            ("GET", "/api/v1/pods?watch=false", "list", "", "", "pods", "", ""),
            ("GET", "/api/v1/watch/namespaces/a/pods", "watch", "", "a", "pods", "", ""),
            ("GET", "/api/v1/watch/namespaces/a/pods/b?fieldSelector=metadata.name%3Dc", "watch", "", "a", "pods", "", "b"),
            ("POST", "/api/v1/namespaces/a/pods", "create", "", "a", "pods", "", ""),
            ("GET", "/api/v1/namespaces/a", "get", "", "a", "namespaces", "", "a"),
            ("PUT", "/api/v1/namespaces/a/finalize", "update", "", "a", "namespaces", "finalize", "a"),
            ("GET", "/api/v1/namespaces/a/pods/b/log", "get", "", "a", "pods", "log", "b"),
            ("DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection", "apps", "a", "deployments", "", ""),
            ("PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", "patch", "apps", "a", "deployments", "scale", "d"),
            ("GET", "/api/v1/nodes?fieldSelector=metadata.name%3Dn1", "list", "", "", "nodes", "", "n1"),
        ];
        for (method, target, verb, group, namespace, resource, subresource, name) in cases {
            let info = parse(method, target);
            assert!(info.is_resource, "{target}");
            let got = [&info.verb, &info.group, &info.namespace, &info.resource, &info.subresource, &info.name].map(String::as_str);
            assert_eq!(got, [verb, group, namespace, resource, subresource, name], "{method} {target}");
        }
    }

    #[test]
    fn paths_outside_the_api_are_non_resource_requests() {
        for target in ["/", "/healthz", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/openapi/v3"] {
            let info = parse("GET", target);
            assert!(!info.is_resource, "{target}");
            assert_eq!(info.verb, "get");
        }
    }

    #[test]
    fn the_path_below_a_proxy_is_kept() {
        assert_eq!(parse("GET", "/api/v1/namespaces/a/services/s:80/proxy/x/y/").rest, "/x/y/");
        assert_eq!(parse("GET", "/api/v1/namespaces/a/services/s:80/proxy/").rest, "/");
    }

    #[test]
    fn malformed_escapes_stay_as_they_are() {
        assert_eq!(percent_decode("%zz%4", false), "%zz%4");
        assert_eq!(percent_decode("a+b%20c", true), "a b c");
    }
}
