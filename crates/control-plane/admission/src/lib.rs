//! What a write must still pass after decoding and defaulting: plugins that change it, then plugins that judge it.
//!
//! The way in is [`Chain`]: the API server builds one over its [`Lookup`] and calls [`Chain::mutate`] before validation and
//! [`Chain::validate`] after it, for every create, update, delete and connect. The plugins stand in [`plugins`], a file each, in
//! upstream's order; [`Options`] says which of them run. Webhooks are called from [`webhook`]; what the plugins say beside their verdict
//! (warnings, audit annotations) is collected in [`Notes`]. No tasks but the connections to webhooks; a plugin may wait a moment for an
//! object that is about to appear (a namespace's service account).

mod chain;
mod conditions;
mod expressions;
mod matching;
mod metrics;
mod notes;
pub mod plugins;
pub mod policy;
mod reinvocation;
pub mod webhook;

use std::sync::Arc;

use auth::UserInfo;
use futures_util::future::BoxFuture;
use meta::gvk::{GroupResource, GroupVersionKind, GroupVersionResource};
use meta::status::{Cause, Status};
use serde_json::Value;

pub use chain::{Chain, ConfigError, Options};
pub use metrics::repeated;
pub use notes::Notes;
pub use reinvocation::Reinvocation;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As webhooks, policies and metrics name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// One write as the plugins see it.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// As the client asked for it. The objects below are in the version that is stored.
    pub gvr: GroupVersionResource,
    pub gvk: GroupVersionKind,
    /// Empty for cluster-wide resources. For a Namespace it is the namespace's own name.
    pub namespace: String,
    /// Empty at a create with `generateName`.
    pub name: String,
    /// `status`, `token`, … or empty.
    pub subresource: String,
    pub operation: Operation,
    pub user: UserInfo,
    /// The new object; `None` at a delete.
    pub object: Option<Value>,
    /// The stored object; `None` at a create.
    pub old: Option<Value>,
    pub dry_run: bool,
    /// The request's CreateOptions, UpdateOptions or DeleteOptions.
    pub options: Value,
    /// What is to be said beside the verdict.
    pub notes: Arc<Notes>,
    /// What the mutating pass remembers for its second round.
    pub reinvocation: Reinvocation,
}

impl Attributes {
    /// Whether the write is about this resource itself (not a subresource).
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.is_part(group, resource, "")
    }
    pub fn is_part(&self, group: &str, resource: &str, subresource: &str) -> bool {
        self.gvr.group == group && self.gvr.resource == resource && self.subresource == subresource
    }
    /// The 403 of a plugin that refuses this write: `pods "x" is forbidden: why`.
    pub fn forbidden(&self, why: impl AsRef<str>) -> Status {
        let named = self.object.as_ref().map(rules::value::name).filter(|_| self.name.is_empty());
        Status::forbidden(&self.gvr.group_resource(), named.unwrap_or(&self.name), why.as_ref())
    }
}

/// The API server as plugins see it: other objects (from its cache, or its store where the cache may lag), versions, rights.
pub trait Lookup: Send + Sync + 'static {
    /// `namespace` is empty for cluster-wide resources.
    fn get<'a>(
        &'a self,
        resource: &'a GroupResource,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Value>>, Status>>;

    /// The labels alone; `None` where there is no such object.
    fn labels<'a>(
        &'a self,
        resource: &'a GroupResource,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<serde_json::Map<String, Value>>, Status>> {
        Box::pin(async move {
            let found = self.get(resource, namespace, name).await?;
            Ok(found.map(|found| found["metadata"]["labels"].as_object().cloned().unwrap_or_default()))
        })
    }

    /// All objects of a resource in a namespace, or everywhere where `namespace` is empty.
    fn list<'a>(&'a self, resource: &'a GroupResource, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Arc<Value>>, Status>>;

    /// Said by a plugin whose verdict depends on more than the write's text, its user and what is asked here: on somebody outside, on the
    /// name, on how often.
    fn depends_on_more(&self) {}

    /// Changes whenever an object of the resource does; `None` where that is not known.
    fn revision(&self, _resource: &GroupResource) -> Option<u64> {
        None
    }

    /// Writes an object's status part over the very version that it carries: `false` when somebody else wrote in between.
    fn write_status<'a>(&'a self, _resource: &'a GroupResource, _object: Value) -> BoxFuture<'a, Result<bool, Status>> {
        Box::pin(std::future::ready(Err(Status::internal("objects cannot be written here"))))
    }

    /// The versions in which the same objects are served (the asked one among them), with their kinds.
    fn equivalents(&self, _gvr: &GroupVersionResource, _subresource: &str) -> Vec<(GroupVersionResource, GroupVersionKind)> {
        Vec::new()
    }

    /// The resource in the version and group in which it is preferred, by kind: what a policy's `paramKind` names.
    fn resource_of(&self, _kind: &GroupVersionKind) -> Option<(GroupVersionResource, bool)> {
        None
    }

    /// What objects of a kind look like to expressions; `None` where that is not known.
    fn type_of(&self, _kind: &GroupVersionKind) -> Option<cel::Type> {
        None
    }

    /// A stored object in the version `to`.
    fn convert<'a>(&'a self, object: Value, _to: &'a GroupVersionKind) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(std::future::ready(Ok(object)))
    }

    /// An object that came from outside in the version it says, typed, pruned, defaulted, in the stored version.
    fn restore<'a>(&'a self, object: Value, _from: &'a GroupVersionKind) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(std::future::ready(Ok(object)))
    }

    /// Server-side apply of `applied` to `object`, both in the version `gvk`, without owners.
    fn merge<'a>(&'a self, object: Value, applied: Value, _gvk: &'a GroupVersionKind) -> BoxFuture<'a, Result<Value, Status>> {
        let mut merged = object;
        schema::merge::json_merge_patch(&mut merged, &applied);
        Box::pin(std::future::ready(Ok(merged)))
    }

    /// Who answers `authorizer` in expressions about a write of this user's.
    fn authorizer(&self, _user: &UserInfo) -> Arc<dyn cel::library::authorizer::Authorizer> {
        Arc::new(Nobody)
    }

    /// The addresses of a host outside the cluster; none where nobody can tell.
    fn resolve_host<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Vec<std::net::IpAddr>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    /// Whether `user` may do what is asked.
    fn allows<'a>(&'a self, _user: &'a UserInfo, _asked: auth::authorize::Attributes<'a>) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }
}

/// Allows nothing.
struct Nobody;

impl cel::library::authorizer::Authorizer for Nobody {
    fn decide(&self, _: &cel::library::authorizer::Question) -> cel::library::authorizer::Decision {
        cel::library::authorizer::Decision::default()
    }
}

/// The answer of a plugin: go on, or the failure that the client gets.
pub type Verdict<'a> = BoxFuture<'a, Result<(), Status>>;

pub trait Plugin: Send + Sync + 'static {
    /// Upstream's name, as `--enable-admission-plugins` takes it.
    fn name(&self) -> &'static str;
    /// Whether it is asked about such writes: for most that is what puts an object into the store.
    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }
    /// Runs unless the administrator disables it.
    fn on_by_default(&self) -> bool {
        true
    }
    /// May change the object.
    fn mutate<'a>(&'a self, _attributes: &'a mut Attributes, _lookup: &'a dyn Lookup) -> Verdict<'a> {
        accept()
    }
    /// Judges the final object.
    fn validate<'a>(&'a self, _attributes: &'a Attributes, _lookup: &'a dyn Lookup) -> Verdict<'a> {
        accept()
    }
}

pub(crate) fn accept<'a>() -> Verdict<'a> {
    Box::pin(std::future::ready(Ok(())))
}

/// A core resource's name.
pub(crate) fn core(resource: &str) -> GroupResource {
    GroupResource { group: String::new(), resource: resource.to_owned() }
}

/// Adds a cause to a failure.
pub(crate) fn because(mut status: Status, reason: &str, message: String, field: &str) -> Status {
    let details = status.details.get_or_insert_default();
    details.causes.push(Cause { reason: reason.into(), message, field: field.into() });
    status
}

#[cfg(test)]
mod fixture;
