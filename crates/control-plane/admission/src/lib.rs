//! What a write must still pass after decoding and defaulting: plugins that change it, then plugins that judge it.
//!
//! The way in is [`Chain`]: the API server builds one over its [`Lookup`] and calls [`Chain::mutate`] before validation and
//! [`Chain::validate`] after it, for every create, update, delete and connect. The plugins stand in [`plugins`], a file each, in
//! upstream's order. No tasks; a plugin may wait a moment for an object that is about to appear (a namespace's service account).

pub mod plugins;

use std::sync::Arc;

use auth::UserInfo;
use futures_util::future::BoxFuture;
use meta::gvk::{GroupResource, GroupVersionKind, GroupVersionResource};
use meta::status::{Cause, Status};
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// One write as the plugins see it.
#[derive(Clone, Debug)]
pub struct Attributes {
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
    /// Sentences for `Warning:` headers, added by plugins.
    pub warnings: Vec<String>,
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

/// How plugins read other objects: the API server's own cache, or its store where the cache may lag.
pub trait Lookup: Send + Sync + 'static {
    /// `namespace` is empty for cluster-wide resources.
    fn get<'a>(
        &'a self,
        resource: &'a GroupResource,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Value>>, Status>>;

    /// All objects of a resource in a namespace, or everywhere where `namespace` is empty.
    fn list<'a>(&'a self, resource: &'a GroupResource, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Arc<Value>>, Status>>;
}

/// The answer of a plugin: go on, or the failure that the client gets.
pub type Verdict<'a> = BoxFuture<'a, Result<(), Status>>;

pub trait Plugin: Send + Sync + 'static {
    /// Upstream's name, as `--enable-admission-plugins` takes it.
    fn name(&self) -> &'static str;
    fn handles(&self, operation: Operation) -> bool;
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

/// The plugins in their order.
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
    lookup: Arc<dyn Lookup>,
}

impl Chain {
    /// The plugins that are on by default.
    pub fn standard(lookup: Arc<dyn Lookup>) -> Self {
        Self { plugins: plugins::all(), lookup }
    }
    pub fn of(plugins: Vec<Box<dyn Plugin>>, lookup: Arc<dyn Lookup>) -> Self {
        Self { plugins, lookup }
    }

    /// Lets every plugin change the object; stops at the first refusal.
    pub async fn mutate(&self, attributes: &mut Attributes) -> Result<(), Status> {
        let operation = attributes.operation;
        for plugin in self.plugins.iter().filter(|plugin| plugin.handles(operation)) {
            plugin.mutate(attributes, &*self.lookup).await?;
        }
        Ok(())
    }

    /// Lets every plugin judge the final object; stops at the first refusal.
    pub async fn validate(&self, attributes: &Attributes) -> Result<(), Status> {
        for plugin in self.plugins.iter().filter(|plugin| plugin.handles(attributes.operation)) {
            plugin.validate(attributes, &*self.lookup).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod fixture;
