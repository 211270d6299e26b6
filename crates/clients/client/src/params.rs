//! What the verbs take and give.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
use serde_json::Value;

use crate::api::push_query_value;

/// Which objects a list shall hold. The default is everything, at the newest revision.
#[derive(Clone, Debug, Default)]
pub struct ListParams {
    /// `None` is all namespaces.
    pub namespace: Option<String>,
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    /// Objects per page; `None` is all of them in one answer.
    pub limit: Option<u32>,
    pub continue_: Option<String>,
    /// `Some("0")` accepts whatever the server has in memory.
    pub resource_version: Option<String>,
    /// `Exact` or `NotOlderThan`.
    pub resource_version_match: Option<&'static str>,
}

impl ListParams {
    pub fn in_namespace(namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..Self::default() }
    }
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.label_selector = Some(selector.into());
        self
    }
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.field_selector = Some(selector.into());
        self
    }
    pub(crate) fn query(&self) -> String {
        let mut query = Query::default();
        query.text("labelSelector", self.label_selector.as_deref());
        query.text("fieldSelector", self.field_selector.as_deref());
        query.text("limit", self.limit.map(|limit| limit.to_string()).as_deref());
        query.text("continue", self.continue_.as_deref());
        query.text("resourceVersion", self.resource_version.as_deref());
        query.text("resourceVersionMatch", self.resource_version_match);
        query.0
    }
}

/// Which changes a watch shall report.
#[derive(Clone, Debug, Default)]
pub struct WatchParams {
    pub namespace: Option<String>,
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    /// Changes after this revision; `None` starts with the present state as Added events.
    pub resource_version: Option<String>,
    pub bookmarks: bool,
    /// First every object as Added, then a bookmark annotated `k8s.io/initial-events-end`, then changes (KEP-3157).
    pub send_initial_events: bool,
    /// The server ends the watch after so long.
    pub timeout_seconds: Option<u32>,
}

impl WatchParams {
    pub(crate) fn query(&self) -> String {
        let mut query = Query::default();
        query.text("watch", Some("true"));
        query.text("labelSelector", self.label_selector.as_deref());
        query.text("fieldSelector", self.field_selector.as_deref());
        query.text("resourceVersion", self.resource_version.as_deref());
        query.text("allowWatchBookmarks", (self.bookmarks || self.send_initial_events).then_some("true"));
        if self.send_initial_events {
            query.text("sendInitialEvents", Some("true"));
            query.text("resourceVersionMatch", Some("NotOlderThan"));
        }
        query.text("timeoutSeconds", self.timeout_seconds.map(|seconds| seconds.to_string()).as_deref());
        query.0
    }
}

/// `?a=b&c=d`, or nothing.
#[derive(Default)]
pub(crate) struct Query(pub String);

impl Query {
    pub(crate) fn text(&mut self, name: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        push_query_value(&mut self.0, value);
    }
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct List<K> {
    pub items: Vec<K>,
    /// The revision of the snapshot: a watch from here misses nothing.
    pub resource_version: String,
    /// Not empty: there is a next page.
    pub continue_: String,
    pub remaining_item_count: Option<i64>,
}

/// A change to an object, in one of the four languages of the API.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Strategic merge patch: lists merge by their keys.
    Strategic(Value),
    /// Server-side apply; `body` is the whole intent with `apiVersion` and `kind`.
    Apply { manager: String, force: bool, body: Value },
}

impl Patch {
    pub(crate) fn content_type(&self) -> &'static str {
        match self {
            Patch::Json(_) => "application/json-patch+json",
            Patch::Merge(_) => "application/merge-patch+json",
            Patch::Strategic(_) => "application/strategic-merge-patch+json",
            // JSON is YAML; this name is the one that every server version knows.
            Patch::Apply { .. } => "application/apply-patch+yaml",
        }
    }
    pub(crate) fn body(&self) -> &Value {
        match self {
            Patch::Json(body) | Patch::Merge(body) | Patch::Strategic(body) | Patch::Apply { body, .. } => body,
        }
    }
    pub(crate) fn query(&self) -> String {
        let mut query = Query::default();
        if let Patch::Apply { manager, force, .. } = self {
            query.text("fieldManager", Some(manager));
            query.text("force", force.then_some("true"));
        }
        query.0
    }
}

/// What becomes of an object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// How to delete. The default leaves everything to the kind.
#[derive(Clone, Debug, Default)]
pub struct DeleteParams {
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    /// Refuse with a conflict unless the object has this uid.
    pub uid: Option<String>,
    /// Refuse with a conflict unless the object is at this revision.
    pub resource_version: Option<String>,
}

impl DeleteParams {
    pub fn of_uid(uid: &str) -> Self {
        Self { uid: Some(uid.to_owned()), ..Self::default() }
    }
    pub fn background() -> Self {
        Self { propagation: Some(Propagation::Background), ..Self::default() }
    }
    pub(crate) fn options(&self) -> DeleteOptions {
        let guarded = self.uid.is_some() || self.resource_version.is_some();
        let preconditions = guarded.then(|| Preconditions { uid: self.uid.clone(), resource_version: self.resource_version.clone() });
        DeleteOptions {
            api_version: Some("v1".into()),
            kind: Some("DeleteOptions".into()),
            grace_period_seconds: self.grace_period_seconds,
            propagation_policy: self.propagation.map(|propagation| format!("{propagation:?}")),
            preconditions,
            ..DeleteOptions::default()
        }
    }
}
