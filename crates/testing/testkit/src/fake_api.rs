//! An API server in memory: revisions, conflicts, watches, finalizers, merge patches; no validation, defaults or admission.
//!
//! It is as small as the loops of controllers allow: a JSON patch is refused, a strategic merge patch is merged as RFC 7386, and of
//! selectors only `key=value` terms are understood.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use client::{Body, Client, Transport};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

/// The server. Objects are addressed by `(collection, namespace, name)`, where a collection is a path such as `/api/v1/pods`.
pub struct FakeApi {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, Value>,
    log: Vec<Change>,
    resources: Vec<Resource>,
    /// Requests that changed or tried to change something: `POST /api/v1/namespaces/a/pods`.
    writes: Vec<String>,
}

type Key = (String, String, String);

#[derive(Clone)]
struct Change {
    revision: u64,
    collection: String,
    namespace: String,
    kind: &'static str,
    object: Value,
}

#[derive(Clone)]
struct Resource {
    group_version: String,
    plural: String,
    kind: String,
    namespaced: bool,
}

/// What a path addresses.
struct Target {
    collection: String,
    namespace: String,
    name: String,
    subresource: String,
}

type Answer = (u16, Value);

impl FakeApi {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), revision: watch::Sender::new(0) })
    }

    pub fn client(self: &Arc<Self>) -> Client {
        Client::new(Arc::new(Shared(self.clone())))
    }

    /// Adds a resource to discovery; others work too, but are not listed there.
    pub fn serve(&self, group_version: &str, plural: &str, kind: &str, namespaced: bool) {
        let resource = Resource { group_version: group_version.into(), plural: plural.into(), kind: kind.into(), namespaced };
        self.lock().resources.push(resource);
    }

    /// Every object of a collection such as `/apis/apps/v1/replicasets`.
    pub fn all(&self, collection: &str) -> Vec<Value> {
        self.lock().objects.iter().filter(|(key, _)| key.0 == collection).map(|(_, object)| object.clone()).collect()
    }

    pub fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&(collection.into(), namespace.into(), name.into())).cloned()
    }

    /// Writes (and attempts) so far, oldest first.
    pub fn writes(&self) -> Vec<String> {
        self.lock().writes.clone()
    }

    /// Changes an object behind everybody's back, as another client would.
    pub fn edit(&self, collection: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut state = self.lock();
        let key = (collection.to_owned(), namespace.to_owned(), name.to_owned());
        if let Some(mut object) = state.objects.get(&key).cloned() {
            change(&mut object);
            state.store(key, object, "MODIFIED");
        }
        self.revision.send_replace(state.revision);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the fake's lock")
    }

    fn answer(&self, method: &Method, uri: &http::Uri, content_type: &str, body: &[u8]) -> Answer {
        let mut state = self.lock();
        if *method != Method::GET {
            state.writes.push(format!("{method} {}", uri.path()));
        }
        let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let answer = match state.discovery(uri.path()) {
            Some(found) => (200, found),
            None => state.handle(method, &target_of(uri.path()), uri, content_type, body),
        };
        self.revision.send_replace(state.revision);
        answer
    }
}

impl State {
    fn handle(&mut self, method: &Method, target: &Target, uri: &http::Uri, content_type: &str, body: Value) -> Answer {
        let key = (target.collection.clone(), target.namespace.clone(), target.name.clone());
        match (method.as_str(), target.name.is_empty()) {
            ("GET", true) => self.list(target, uri),
            ("GET", false) => self.objects.get(&key).map_or_else(|| not_found(&key), |object| (200, object.clone())),
            ("POST", true) => self.create(key, body),
            ("PUT", false) if target.subresource == "finalize" => self.finalize(key, body),
            ("PUT", false) => self.replace(key, &target.subresource, body),
            ("PATCH", false) => self.patch(key, &target.subresource, content_type, body),
            ("DELETE", false) => self.delete(key, &body),
            ("DELETE", true) => {
                let within = |key: &&Key| key.0 == target.collection && key.1 == target.namespace;
                let keys: Vec<Key> = self.objects.keys().filter(within).cloned().collect();
                keys.into_iter().for_each(|key| drop(self.delete(key, &body)));
                (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            _ => failure(405, "MethodNotAllowed", "not in the fake"),
        }
    }

    fn store(&mut self, key: Key, mut object: Value, kind: &'static str) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let (collection, namespace) = (key.0.clone(), key.1.clone());
        self.log.push(Change { revision: self.revision, collection, namespace, kind, object: object.clone() });
        match kind {
            "DELETED" => drop(self.objects.remove(&key)),
            _ => drop(self.objects.insert(key, object.clone())),
        }
        object
    }

    fn list(&self, target: &Target, uri: &http::Uri) -> Answer {
        let selector = query(uri, "labelSelector").unwrap_or_default();
        let within = |key: &Key| key.0 == target.collection && (target.namespace.is_empty() || key.1 == target.namespace);
        let items: Vec<&Value> =
            self.objects.iter().filter(|(key, object)| within(key) && selects(&selector, object)).map(|(_, object)| object).collect();
        (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": self.revision.to_string()}, "items": items}))
    }

    fn create(&mut self, mut key: Key, mut object: Value) -> Answer {
        let serial = self.revision + 1;
        if let (None, Some(prefix)) = (object["metadata"]["name"].as_str(), object["metadata"]["generateName"].as_str()) {
            object["metadata"]["name"] = json!(format!("{prefix}{serial:05}"));
        }
        key.2 = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if self.objects.contains_key(&key) {
            return failure(409, "AlreadyExists", &format!("{key:?} already exists"));
        }
        if !key.1.is_empty() {
            object["metadata"]["namespace"] = json!(key.1);
        }
        object["metadata"]["uid"] = json!(format!("uid-{serial}"));
        object["metadata"]["generation"] = json!(1);
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        (201, self.store(key, object, "ADDED"))
    }

    fn replace(&mut self, key: Key, subresource: &str, new: Value) -> Answer {
        let Some(old) = self.objects.get(&key).cloned() else { return not_found(&key) };
        let claimed = new["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !claimed.is_empty() && old["metadata"]["resourceVersion"] != claimed {
            return failure(409, "Conflict", "the object has been modified");
        }
        self.update(key, old, new, subresource)
    }

    fn patch(&mut self, key: Key, subresource: &str, content_type: &str, patch: Value) -> Answer {
        let Some(old) = self.objects.get(&key).cloned() else { return not_found(&key) };
        if content_type.contains("json-patch") {
            return failure(415, "UnsupportedMediaType", "no JSON patch in the fake");
        }
        if let Some(uid) = patch["metadata"]["uid"].as_str().filter(|uid| old["metadata"]["uid"] != *uid) {
            return failure(409, "Conflict", &format!("uid {uid} is not that of the object"));
        }
        if let Some(claimed) =
            patch["metadata"]["resourceVersion"].as_str().filter(|claimed| old["metadata"]["resourceVersion"] != *claimed)
        {
            return failure(409, "Conflict", &format!("{claimed} is not the object's revision"));
        }
        let mut new = old.clone();
        merge(&mut new, &patch);
        self.update(key, old, new, subresource)
    }

    /// What every update does: keeps what a client cannot change, raises the generation, ends a deletion without finalizers.
    fn update(&mut self, key: Key, old: Value, mut new: Value, subresource: &str) -> Answer {
        if subresource == "status" {
            let status = new["status"].take();
            new = old.clone();
            new["status"] = status;
        } else if let Some(object) = new.as_object_mut() {
            old.get("status").map(|status| object.insert("status".into(), status.clone()));
        }
        for field in ["uid", "creationTimestamp", "deletionTimestamp", "resourceVersion", "generation"] {
            if let (Some(value), Some(meta)) = (old["metadata"].get(field), new["metadata"].as_object_mut()) {
                meta.insert(field.into(), value.clone());
            }
        }
        if new == old {
            return (200, old);
        }
        if new["spec"] != old["spec"] {
            new["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
        let ends =
            new["metadata"].get("deletionTimestamp").is_some() && finalizers(&new).is_empty() && new["spec"].get("finalizers").is_none();
        (200, self.store(key, new, if ends { "DELETED" } else { "MODIFIED" }))
    }

    /// A namespace's `finalize`: with no finalizer left it is gone.
    fn finalize(&mut self, key: Key, new: Value) -> Answer {
        let Some(mut old) = self.objects.get(&key).cloned() else { return not_found(&key) };
        old["spec"]["finalizers"] = new["spec"].get("finalizers").cloned().unwrap_or(json!([]));
        let ends = old["metadata"].get("deletionTimestamp").is_some() && old["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        (200, self.store(key, old, if ends { "DELETED" } else { "MODIFIED" }))
    }

    fn delete(&mut self, key: Key, options: &Value) -> Answer {
        let Some(mut object) = self.objects.get(&key).cloned() else { return not_found(&key) };
        for field in ["uid", "resourceVersion"] {
            let wanted = options["preconditions"][field].as_str();
            if wanted.is_some_and(|wanted| object["metadata"][field] != wanted) {
                return failure(409, "Conflict", &format!("Precondition failed: {field}"));
            }
        }
        let extra = match options["propagationPolicy"].as_str() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        let mut names = finalizers(&object);
        names.extend(extra.filter(|name| !names.iter().any(|known| known == name)).map(str::to_owned));
        let held = !names.is_empty() || object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        if !held {
            return (200, self.store(key, object, "DELETED"));
        }
        if !names.is_empty() {
            object["metadata"]["finalizers"] = json!(names);
        }
        if object["metadata"].get("deletionTimestamp").is_none() {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:01Z");
        }
        if object["kind"] == "Namespace" {
            object["status"]["phase"] = json!("Terminating");
        }
        (200, self.store(key, object, "MODIFIED"))
    }

    fn discovery(&self, path: &str) -> Option<Value> {
        match path {
            "/api" => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
            "/apis" => {
                let mut groups: BTreeMap<&str, &str> = BTreeMap::new();
                let named = self.resources.iter().filter_map(|resource| resource.group_version.split_once('/'));
                named.for_each(|(group, version)| {
                    groups.insert(group, version);
                });
                let version = |group, version| json!({"groupVersion": format!("{group}/{version}"), "version": version});
                let groups: Vec<Value> = groups
                    .into_iter()
                    .map(|(group, v)| json!({"name": group, "versions": [version(group, v)], "preferredVersion": version(group, v)}))
                    .collect();
                Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
            }
            _ => {
                let group_version = path
                    .strip_prefix("/api/")
                    .filter(|rest| *rest == "v1")
                    .or_else(|| path.strip_prefix("/apis/").filter(|rest| rest.matches('/').count() == 1))?;
                let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
                let of = |resource: &&Resource| resource.group_version == group_version;
                let resources: Vec<Value> = self
                    .resources
                    .iter()
                    .filter(of)
                    .map(|r| json!({"name": r.plural, "singularName": "", "namespaced": r.namespaced, "kind": r.kind, "verbs": verbs}))
                    .collect();
                Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}))
            }
        }
    }
}

/// Splits `/apis/apps/v1/namespaces/a/deployments/b/status`.
fn target_of(path: &str) -> Target {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (prefix, rest) = parts.split_at(if parts[0] == "api" { 2 } else { 3 }.min(parts.len()));
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && !["status", "finalize"].contains(&rest[0]) => (*namespace, rest),
        rest => ("", rest),
    };
    let part = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
    Target {
        collection: format!("/{}/{}", prefix.join("/"), part(0)),
        namespace: namespace.to_owned(),
        name: part(1).replace("%2F", "/"),
        subresource: part(2),
    }
}

fn query(uri: &http::Uri, name: &str) -> Option<String> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.replace("%3D", "=").replace("%2C", ","))
}

fn selects(selector: &str, object: &Value) -> bool {
    selector.split(',').filter_map(|term| term.split_once('=')).all(|(key, value)| object["metadata"]["labels"][key] == value)
}

fn finalizers(object: &Value) -> Vec<String> {
    let list = object["metadata"]["finalizers"].as_array();
    list.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn failure(code: u16, reason: &str, message: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message});
    (code, status)
}

fn not_found(key: &Key) -> Answer {
    failure(404, "NotFound", &format!("{key:?} not found"))
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.remove(key)),
            value => merge(target.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

struct Shared(Arc<FakeApi>);

impl Transport for Shared {
    fn send(&self, request: Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<Response<Body>>> + Send + '_>> {
        Box::pin(async move {
            // As a server: never in the caller's own poll.
            tokio::task::yield_now().await;
            if query(request.uri(), "watch").is_some() {
                return Ok(Response::new(self.watch(request.uri())));
            }
            let content_type = request.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
            let (code, value) = self.0.answer(request.method(), request.uri(), content_type, request.body());
            let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed();
            Response::builder().status(code).body(body).map_err(std::io::Error::other)
        })
    }
}

impl Shared {
    fn watch(&self, uri: &http::Uri) -> Body {
        let target = target_of(uri.path());
        let initial = query(uri, "sendInitialEvents").is_some();
        let from = query(uri, "resourceVersion").and_then(|revision| revision.parse().ok()).unwrap_or(0);
        let selector = query(uri, "labelSelector").unwrap_or_default();
        let (mut first, from) = match initial {
            true => self.initial(&target, &selector),
            false => (Vec::new(), from),
        };
        first.reverse();
        let state = (self.0.clone(), self.0.revision.subscribe(), target, first, from, selector);
        let frames = futures_util::stream::unfold(state, |(api, mut revision, target, mut first, mut from, selector)| async move {
            loop {
                if let Some(frame) = first.pop() {
                    return Some((Ok(Frame::data(frame)), (api, revision, target, first, from, selector)));
                }
                let next = {
                    let state = api.lock();
                    let start = state.log.partition_point(|change| change.revision <= from);
                    from = state.revision;
                    state.log[start..].to_vec()
                };
                let within = |change: &&Change| {
                    change.collection == target.collection
                        && (target.namespace.is_empty() || change.namespace == target.namespace)
                        && selects(&selector, &change.object)
                };
                first = next.iter().filter(within).map(|change| frame(change.kind, &change.object)).rev().collect();
                if first.is_empty() && revision.changed().await.is_err() {
                    return None;
                }
            }
        });
        StreamBody::new(SyncStream(Mutex::new(Box::pin(frames)))).boxed()
    }

    fn initial(&self, target: &Target, selector: &str) -> (Vec<Bytes>, u64) {
        let state = self.0.lock();
        let within = |key: &Key| key.0 == target.collection && (target.namespace.is_empty() || key.1 == target.namespace);
        let objects = state.objects.iter().filter(|(key, object)| within(key) && selects(selector, object));
        let mut frames: Vec<Bytes> = objects.map(|(_, object)| frame("ADDED", object)).collect();
        let annotations = json!({"k8s.io/initial-events-end": "true"});
        let metadata = json!({"resourceVersion": state.revision.to_string(), "annotations": annotations});
        frames.push(frame("BOOKMARK", &json!({ "metadata": metadata })));
        (frames, state.revision)
    }
}

fn frame(kind: &str, object: &Value) -> Bytes {
    Bytes::from(json!({"type": kind, "object": object}).to_string() + "\n")
}

/// A body must be `Sync`; the stream inside is polled by one task only.
type BoxFrames = Pin<Box<dyn futures_util::Stream<Item = std::io::Result<Frame<Bytes>>> + Send>>;
struct SyncStream(Mutex<BoxFrames>);

impl futures_util::Stream for SyncStream {
    type Item = std::io::Result<Frame<Bytes>>;
    fn poll_next(self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        self.get_mut().0.get_mut().expect("not poisoned").as_mut().poll_next(context)
    }
}
