//! For this crate's tests: objects in memory behind [`Lookup`], and attributes with little typing.

use std::sync::{Arc, Mutex};

use auth::UserInfo;
use cel::library::authorizer::{Authorizer, Decision, Question};
use futures_util::future::BoxFuture;
use meta::gvk::{GroupResource, GroupVersionKind, GroupVersionResource};
use meta::status::Status;
use rules::value;
use serde_json::Value;

use crate::{Attributes, Chain, Lookup, Operation, Plugin};

/// Objects by resource name (`namespaces`).
#[derive(Default)]
pub struct Objects {
    objects: Mutex<Vec<(&'static str, Arc<Value>)>>,
    rights: Vec<String>,
}

impl Objects {
    pub fn with(self, resource: &'static str, object: Value) -> Self {
        self.objects.lock().expect("objects").push((resource, Arc::new(object)));
        self
    }
    /// Everybody may do this: `verb resource name`.
    pub fn allowing(mut self, rights: &[&str]) -> Self {
        self.rights.extend(rights.iter().map(|right| (*right).to_owned()));
        self
    }
    fn of(&self, resource: &GroupResource, namespace: &str) -> Vec<Arc<Value>> {
        let wanted = |object: &Value| namespace.is_empty() || value::text(object, "metadata.namespace") == namespace;
        let objects = self.objects.lock().expect("objects");
        let found = objects.iter().filter(|(name, object)| *name == resource.resource && wanted(object));
        found.map(|(_, object)| object.clone()).collect()
    }
}

struct Rights(Vec<String>);

impl Authorizer for Rights {
    fn decide(&self, asked: &Question) -> Decision {
        let right = format!("{} {} {}", asked.verb, asked.resource, asked.name);
        Decision { allowed: self.0.contains(&right), ..Decision::default() }
    }
}

impl Lookup for Objects {
    fn get<'a>(
        &'a self,
        resource: &'a GroupResource,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Value>>, Status>> {
        let found = self.of(resource, namespace).into_iter().find(|object| value::name(object) == name);
        Box::pin(std::future::ready(Ok(found)))
    }
    fn list<'a>(&'a self, resource: &'a GroupResource, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Arc<Value>>, Status>> {
        Box::pin(std::future::ready(Ok(self.of(resource, namespace))))
    }
    fn write_status<'a>(&'a self, resource: &'a GroupResource, object: Value) -> BoxFuture<'a, Result<bool, Status>> {
        let mut objects = self.objects.lock().expect("objects");
        let slot = objects.iter_mut().find(|(name, old)| *name == resource.resource && value::name(old) == value::name(&object));
        if let Some(slot) = slot {
            slot.1 = Arc::new(object);
        }
        Box::pin(std::future::ready(Ok(true)))
    }
    fn resource_of(&self, kind: &GroupVersionKind) -> Option<(GroupVersionResource, bool)> {
        let plural = format!("{}s", kind.kind.to_lowercase());
        Some((GroupVersionResource::new(&kind.group, &kind.version, &plural), true))
    }
    fn authorizer(&self, _: &UserInfo) -> Arc<dyn Authorizer> {
        Arc::new(Rights(self.rights.clone()))
    }
    fn allows<'a>(&'a self, _: &'a UserInfo, asked: auth::authorize::Attributes<'a>) -> BoxFuture<'a, bool> {
        let right = format!("{} {} {}", asked.verb, asked.resource, asked.name);
        Box::pin(std::future::ready(self.rights.contains(&right)))
    }
}

/// A write of `object` (its metadata gives name and namespace) by an administrator.
pub fn write(operation: Operation, resource: &str, kind: &str, object: Value) -> Attributes {
    let namespace = value::text(&object, "metadata.namespace").to_owned();
    let name = value::name(&object).to_owned();
    let deleted = operation == Operation::Delete;
    Attributes {
        gvr: GroupVersionResource::new("", "v1", resource),
        gvk: GroupVersionKind::new("", "v1", kind),
        namespace,
        name,
        subresource: String::new(),
        operation,
        user: UserInfo::authenticated("admin", &["system:masters"]),
        old: (operation != Operation::Create).then(|| object.clone()),
        object: (!deleted).then_some(object),
        dry_run: false,
        options: Value::Null,
        notes: Arc::default(),
        reinvocation: crate::Reinvocation::default(),
    }
}

/// Runs one plugin; its failure's sentence, or nothing.
pub async fn run(plugin: impl Plugin, objects: Objects, attributes: &mut Attributes) -> Result<(), String> {
    let chain = Chain::of(vec![Box::new(plugin)], Arc::new(objects));
    chain.mutate(attributes).await.map_err(|status| status.message)?;
    chain.validate(attributes).await.map_err(|status| status.message)
}
