//! What can be done at which path: one list for both renderings.

use serde_json::Value;

use super::{Kind, Sub, gvk};
use crate::table;

/// A path with the parameters in it and its operations.
pub struct Path {
    pub path: String,
    /// `name`, `namespace`, `path`: in the path; `pretty`: in the query of all.
    pub parameters: Vec<&'static str>,
    pub operations: Vec<Operation>,
}

pub struct Operation {
    /// Lower case, as both documents key operations.
    pub method: &'static str,
    /// `x-kubernetes-action`; empty for discovery.
    pub action: &'static str,
    pub gvk: Value,
    pub id: String,
    pub summary: String,
    pub query: Vec<String>,
    pub body: Body,
    /// The definition of the answer; empty for streams.
    pub response: String,
    pub watchable: bool,
}

impl Operation {
    /// What the answer can be encoded in.
    pub fn produces(&self) -> Vec<&'static str> {
        let log: &[&str] = if self.id.ends_with("NamespacedPodLog") { &["text/plain"] } else { &[] };
        match self.response.is_empty() {
            true if log.is_empty() => vec!["*/*"],
            _ if self.watchable => [&PRODUCES[..], &PRODUCES_WATCH[..]].concat(),
            _ => [log, &PRODUCES[..]].concat(),
        }
    }
    /// The codes of success.
    pub fn codes(&self) -> &'static [&'static str] {
        match self.action {
            "post" => &["200", "201", "202"],
            "put" | "patch" => &["200", "201"],
            "delete" => &["200", "202"],
            _ => &["200"],
        }
    }
}

pub enum Body {
    None,
    /// The definition of the object sent.
    Object(String),
    /// Patches; whether strategic merge patches are among them.
    Patch {
        strategic: bool,
    },
    /// `DeleteOptions`, which may be left out.
    Options,
}

const WRITE: [&str; 3] = ["dryRun", "fieldManager", "fieldValidation"];
const LIST: [&str; 11] = [
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "shardSelector",
    "timeoutSeconds",
    "watch",
];
const DELETE: [&str; 5] =
    ["dryRun", "gracePeriodSeconds", "ignoreStoreReadErrorWithClusterBreakingPotential", "orphanDependents", "propagationPolicy"];
/// What an answer to anything but a list watch can be encoded in.
pub const PRODUCES: [&str; 4] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", crate::cbor::MEDIA_TYPE];
pub const PRODUCES_WATCH: [&str; 3] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch", crate::cbor::MEDIA_TYPE_SEQUENCE];
pub const PATCHES: [&str; 4] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml", "application/apply-patch+cbor"];
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// `("rbac.authorization.k8s.io", "v1")` is tagged `rbacAuthorization_v1`.
pub fn tag(group: &str, version: &str) -> String {
    let name = friendly(group);
    let mut letters = name.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    format!("{}{}_{version}", first.map(String::from).unwrap_or_default(), letters.as_str())
}

fn friendly(group: &str) -> String {
    if group.is_empty() {
        return "Core".into();
    }
    group.strip_suffix(".k8s.io").unwrap_or(group).split(['.', '-']).map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    format!("{}{}", first.map(String::from).unwrap_or_default(), letters.as_str())
}

/// The paths of one resource.
pub fn paths(kind: &Kind) -> Vec<Path> {
    let mut all = Vec::new();
    let base = kind.prefix();
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{scope}/{}", kind.plural);
    let item = format!("{collection}/{{name}}");
    let namespace: &[&'static str] = if kind.namespaced { &["namespace"] } else { &[] };
    all.push(Path { path: collection, parameters: [namespace, &["pretty"]].concat(), operations: on_collection(kind) });
    if kind.namespaced && has(&kind.verbs, "list") {
        let operation = list(kind, format!("{}ForAllNamespaces", kind.kind));
        all.push(Path { path: format!("{base}/{}", kind.plural), parameters: vec!["pretty"], operations: vec![operation] });
    }
    let parameters = [&["name"], namespace, &["pretty"]].concat();
    all.push(Path { path: item.clone(), parameters: parameters.clone(), operations: on_item(kind) });
    for sub in &kind.subresources {
        let path = format!("{item}/{}", sub.name);
        if connects(sub) {
            let parameters = [&["name"], namespace].concat();
            all.push(Path { path: path.clone(), parameters: parameters.clone(), operations: connections(kind, sub, "") });
            if sub.name == "proxy" {
                let operations = connections(kind, sub, "WithPath");
                all.push(Path { path: format!("{path}/{{path}}"), parameters: [&parameters[..], &["path"]].concat(), operations });
            }
        } else {
            all.push(Path { path, parameters: parameters.clone(), operations: on_subresource(kind, sub) });
        }
    }
    all.retain(|path| !path.operations.is_empty());
    all
}

fn has(verbs: &[String], verb: &str) -> bool {
    verbs.iter().any(|known| known == verb)
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// A path that tells what there is: path, operation id, tag, definition of the answer (empty: text) and its media types.
pub struct Discovery {
    pub path: String,
    pub id: String,
    pub tag: String,
    pub summary: &'static str,
    pub response: String,
    pub produces: Vec<&'static str>,
}

/// `/api/`, `/apis/`, the groups and versions of `kinds`, `/version/` and what tells about service account tokens.
pub fn discovery(kinds: &[Kind]) -> Vec<Discovery> {
    let plain = &PRODUCES[..3];
    let make = |path: String, id: String, tag: String, summary, response: &str, produces: &[&'static str]| Discovery {
        path,
        id,
        tag,
        summary,
        response: response.to_owned(),
        produces: produces.to_vec(),
    };
    let meta = |kind: &str| format!("{META}.{kind}");
    let mut all = vec![
        make("/api/".into(), "getCoreAPIVersions".into(), "core".into(), "get available versions", &meta("APIVersions"), plain),
        make("/apis/".into(), "getAPIVersions".into(), "apis".into(), "get available groups", &meta("APIGroupList"), plain),
        make("/version/".into(), "getCodeVersion".into(), "version".into(), "get the version of the server", VERSION_INFO, &plain[..1]),
        make(
            "/.well-known/openid-configuration/".into(),
            "getServiceAccountIssuerOpenIDConfiguration".into(),
            "WellKnown".into(),
            "get the configuration of the issuer of service account tokens",
            "",
            &plain[..1],
        ),
        make(
            "/openid/v1/jwks/".into(),
            "getServiceAccountIssuerOpenIDKeyset".into(),
            "openid".into(),
            "get the keys that service account tokens are checked with",
            "",
            &["application/jwk-set+json"],
        ),
    ];
    let versions: std::collections::BTreeSet<(&str, &str)> =
        kinds.iter().map(|kind| (kind.group.as_str(), kind.version.as_str())).collect();
    for (group, version) in &versions {
        let path = if group.is_empty() { format!("/api/{version}/") } else { format!("/apis/{group}/{version}/") };
        let id = format!("get{}{}APIResources", friendly(group), capital(version));
        all.push(make(path, id, tag(group, version), "get available resources", &meta("APIResourceList"), &PRODUCES));
    }
    let groups: std::collections::BTreeSet<&str> = versions.into_iter().map(|(group, _)| group).filter(|group| !group.is_empty()).collect();
    for group in groups {
        let (id, tag) = (format!("get{}APIGroup", friendly(group)), tag(group, "").trim_end_matches('_').to_owned());
        all.push(make(format!("/apis/{group}/"), id, tag, "get a group", &meta("APIGroup"), plain));
    }
    all
}

const VERSION_INFO: &str = "io.k8s.apimachinery.pkg.version.Info";

/// `createAppsV1NamespacedDeployment`.
fn id(kind: &Kind, verb: &str, middle: &str, rest: &str) -> String {
    format!("{verb}{}{}{middle}{rest}", friendly(&kind.group), capital(&kind.version))
}

fn scoped(kind: &Kind) -> String {
    format!("{}{}", if kind.namespaced { "Namespaced" } else { "" }, kind.kind)
}

fn list(kind: &Kind, rest: String) -> Operation {
    Operation {
        method: "get",
        action: "list",
        gvk: kind.gvk(),
        id: id(kind, "list", "", &rest),
        summary: format!("list or watch objects of kind {}", kind.kind),
        query: words(&LIST),
        body: Body::None,
        response: kind.list_definition().unwrap_or_default(),
        watchable: true,
    }
}

fn operation(kind: &Kind, method: &'static str, action: &'static str, verb: &str) -> Operation {
    Operation {
        method,
        action,
        gvk: kind.gvk(),
        id: id(kind, verb, "", &scoped(kind)),
        summary: String::new(),
        query: Vec::new(),
        body: Body::None,
        response: kind.definition(),
        watchable: false,
    }
}

fn on_collection(kind: &Kind) -> Vec<Operation> {
    let mut all = Vec::new();
    if has(&kind.verbs, "list") {
        all.push(list(kind, scoped(kind)));
    }
    if has(&kind.verbs, "create") {
        let summary = format!("create a {}", kind.kind);
        all.push(Operation {
            summary,
            query: words(&WRITE),
            body: Body::Object(kind.definition()),
            ..operation(kind, "post", "post", "create")
        });
    }
    if has(&kind.verbs, "deletecollection") {
        let unwatched = LIST.iter().filter(|name| !matches!(**name, "allowWatchBookmarks" | "watch"));
        all.push(Operation {
            id: id(kind, "delete", "Collection", &scoped(kind)),
            summary: format!("delete a collection of {}", kind.kind),
            query: unwatched.chain(&DELETE).map(|name| (*name).to_owned()).collect(),
            body: Body::Options,
            response: format!("{META}.Status"),
            ..operation(kind, "delete", "deletecollection", "")
        });
    }
    all
}

fn on_item(kind: &Kind) -> Vec<Operation> {
    let mut all = Vec::new();
    let name = &kind.kind;
    if has(&kind.verbs, "get") {
        all.push(Operation { summary: format!("read a {name}"), ..operation(kind, "get", "get", "read") });
    }
    if has(&kind.verbs, "update") {
        let summary = format!("replace a {name}");
        all.push(Operation {
            summary,
            query: words(&WRITE),
            body: Body::Object(kind.definition()),
            ..operation(kind, "put", "put", "replace")
        });
    }
    if has(&kind.verbs, "patch") {
        let (summary, body) = (format!("change parts of a {name}"), Body::Patch { strategic: kind.built_in_form() });
        all.push(Operation {
            summary,
            query: [words(&WRITE), words(&["force"])].concat(),
            body,
            ..operation(kind, "patch", "patch", "patch")
        });
    }
    if has(&kind.verbs, "delete") {
        all.push(Operation {
            summary: format!("delete a {name}"),
            query: words(&DELETE),
            body: Body::Options,
            response: if kind.deletion_returns_object { kind.definition() } else { format!("{META}.Status") },
            ..operation(kind, "delete", "delete", "delete")
        });
    }
    all
}

fn sub_definition(kind: &Kind, sub: &Sub) -> String {
    match table::by_gvk(&sub.group, &sub.version, &sub.kind) {
        Some(found) if sub.kind != kind.kind || kind.built_in_form() => found.name.to_string(),
        _ => kind.definition(),
    }
}

fn on_subresource(kind: &Kind, sub: &Sub) -> Vec<Operation> {
    let definition = sub_definition(kind, sub);
    let part = capital(&sub.name);
    let make = |method, action, verb: &str, query: Vec<String>, body| Operation {
        method,
        action,
        gvk: gvk(&sub.group, &sub.version, &sub.kind),
        id: id(kind, verb, "", &format!("{}{part}", scoped(kind))),
        summary: format!("{verb} {} of a {}", sub.name, kind.kind),
        query,
        body,
        // A log is text.
        response: if sub.name == "log" { String::new() } else { definition.clone() },
        watchable: false,
    };
    let object = || Body::Object(definition.clone());
    let mut all = Vec::new();
    for verb in &sub.verbs {
        all.extend(match verb.as_str() {
            "get" => Some(make("get", "get", "read", sub.params.clone(), Body::None)),
            "create" => Some(make("post", "post", "create", words(&WRITE), object())),
            "update" => Some(make("put", "put", "replace", words(&WRITE), object())),
            "patch" => {
                let body = Body::Patch { strategic: kind.built_in_form() };
                Some(make("patch", "patch", "patch", [words(&WRITE), words(&["force"])].concat(), body))
            }
            "delete" => Some(make("delete", "delete", "delete", words(&DELETE), Body::Options)),
            _ => None,
        });
    }
    all
}

/// Streams and proxies: any method goes to a node or a pod.
fn connects(sub: &Sub) -> bool {
    matches!(sub.name.as_str(), "exec" | "attach" | "portforward" | "proxy")
}

fn connections(kind: &Kind, sub: &Sub, suffix: &str) -> Vec<Operation> {
    let methods: &[(&'static str, &str)] = if sub.name == "proxy" {
        &[
            ("get", "Get"),
            ("put", "Put"),
            ("post", "Post"),
            ("delete", "Delete"),
            ("options", "Options"),
            ("head", "Head"),
            ("patch", "Patch"),
        ]
    } else {
        &[("get", "Get"), ("post", "Post")]
    };
    let make = |(method, name): &(&'static str, &str)| Operation {
        method,
        action: "connect",
        gvk: gvk(&sub.group, &sub.version, &sub.kind),
        id: id(kind, "connect", name, &format!("{}{}{suffix}", scoped(kind), capital(&sub.name))),
        summary: format!("connect {} requests to {} of {}", name.to_uppercase(), sub.name, kind.kind),
        query: sub.params.clone(),
        body: Body::None,
        response: String::new(),
        watchable: false,
    };
    methods.iter().map(make).collect()
}

/// A parameter's type, and what it does.
pub fn parameter(name: &str) -> (&'static str, &'static str) {
    match name {
        "name" => ("string", "name of the object"),
        "namespace" => ("string", "namespace of the object"),
        "path" => ("string", "path of the proxied request"),
        "pretty" => ("string", "'true' indents the answer"),
        "dryRun" => ("string", "'All' runs every stage of the request and stores nothing"),
        "fieldManager" => ("string", "name under which the fields written are owned"),
        "fieldValidation" => ("string", "what to do with unknown and repeated fields: Ignore, Warn or Strict"),
        "force" => ("boolean", "take fields over from other managers when applying"),
        "gracePeriodSeconds" => ("integer", "seconds before the object is deleted; 0 is at once"),
        "orphanDependents" => ("boolean", "deprecated: use propagationPolicy"),
        "propagationPolicy" => ("string", "what becomes of dependents: Orphan, Background or Foreground"),
        "ignoreStoreReadErrorWithClusterBreakingPotential" => ("boolean", "delete an object that cannot be read from the store"),
        "allowWatchBookmarks" => ("boolean", "send bookmark events in a watch"),
        "continue" => ("string", "token of the next part of a list"),
        "fieldSelector" => ("string", "restricts the list by fields"),
        "labelSelector" => ("string", "restricts the list by labels"),
        "limit" => ("integer", "greatest number of items in one answer"),
        "resourceVersion" => ("string", "state that the answer must show"),
        "resourceVersionMatch" => ("string", "how resourceVersion is meant: Exact or NotOlderThan"),
        "sendInitialEvents" => ("boolean", "start a watch with what exists"),
        "shardSelector" => ("string", "restricts the list to a shard"),
        "timeoutSeconds" => ("integer", "seconds after which the answer ends"),
        "watch" => ("boolean", "stream changes instead of a list"),
        "follow" | "insecureSkipTLSVerifyBackend" | "previous" | "stderr" | "stdin" | "stdout" | "timestamps" | "tty" => ("boolean", ""),
        "limitBytes" | "sinceSeconds" | "tailLines" | "ports" => ("integer", ""),
        _ => ("string", ""),
    }
}
