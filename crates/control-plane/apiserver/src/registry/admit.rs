//! The registry's side of admission: what plugins are shown, and how they read other objects.

use std::sync::Arc;

use admission::{Attributes, Lookup};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use meta::{GroupResource, GroupVersionKind, GroupVersionResource, Status};
use serde_json::{Value, json};
use store::Store;

use super::catalog::Kind;
use super::{Registry, Target, catalog, storage_error};
use crate::cache::Caches;
use crate::context::Context;
use crate::custom;
use crate::object;
use crate::selection::Selection;

pub use admission::Operation;

/// Single objects come from the store itself, so that a plugin sees a namespace that was made a moment ago; lists from the cache.
pub struct Reader {
    pub store: Arc<dyn Store>,
    pub caches: Arc<Caches>,
    pub custom: Arc<custom::Kinds>,
}

impl Reader {
    /// The kind in the version in which it is stored.
    fn stored(&self, resource: &GroupResource) -> Option<Arc<Kind>> {
        let built_in = catalog::stored(&resource.group, &resource.resource);
        built_in.cloned().or_else(|| self.custom.stored(&resource.group, &resource.resource))
    }
}

impl Lookup for Reader {
    fn get<'a>(
        &'a self,
        resource: &'a GroupResource,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Value>>, Status>> {
        async move {
            let Some(kind) = self.stored(resource) else {
                return Ok(None);
            };
            let entry = self.store.get(&kind.key(namespace, name)).await.map_err(storage_error)?;
            Ok(entry.map(|entry| Arc::new(object::decode(&entry.value, entry.mod_revision))))
        }
        .boxed()
    }

    fn list<'a>(&'a self, resource: &'a GroupResource, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Arc<Value>>, Status>> {
        async move {
            let Some(kind) = self.stored(resource) else {
                return Ok(Vec::new());
            };
            let selection = Selection::all(kind.prefix(namespace), kind.storage.rules.clone());
            let page = self.caches.of(kind.storage.prefix.as_bytes()).list(&selection.prefix, b"", 0, &selection, 0);
            Ok(page.objects.iter().map(|object| Arc::new(object.value())).collect())
        }
        .boxed()
    }
}

/// A write on its way through admission: holds the objects, so that nothing is copied between the two phases.
pub struct Admission(Attributes);

impl Admission {
    pub fn new(
        context: &Context,
        target: Target<'_>,
        operation: Operation,
        object: Option<Value>,
        old: Option<Value>,
        dry_run: bool,
    ) -> Self {
        Self(attributes(context, target, operation, object, old, dry_run))
    }

    /// Lets the plugins change the object.
    pub async fn mutate(&mut self, registry: &Registry, context: &Context) -> Result<(), Status> {
        let outcome = registry.admission.mutate(&mut self.0).await;
        self.0.warnings.drain(..).for_each(|warning| context.warn(warning));
        outcome
    }

    /// Lets the plugins judge the final object.
    pub async fn judge(&mut self, registry: &Registry, context: &Context) -> Result<(), Status> {
        let outcome = registry.admission.validate(&self.0).await;
        self.0.warnings.drain(..).for_each(|warning| context.warn(warning));
        outcome
    }

    /// The new object beside the old one, to be worked on.
    pub fn parts(&mut self) -> (&mut Value, &Value) {
        static NONE: Value = Value::Null;
        (self.0.object.get_or_insert_default(), self.0.old.as_ref().unwrap_or(&NONE))
    }

    /// The name is known by now.
    pub fn rename(&mut self, name: &str) {
        name.clone_into(&mut self.0.name);
    }
}

impl Registry {
    /// Judges a request that is not about a new state of the object: a deletion, a connection, a binding. Plugins that judge early
    /// (a protected namespace) are asked too.
    pub async fn judge(
        &self,
        context: &Context,
        target: Target<'_>,
        operation: Operation,
        object: Option<&Value>,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<(), Status> {
        let mut admission = Admission::new(context, target, operation, object.cloned(), old.cloned(), dry_run);
        admission.mutate(self, context).await?;
        admission.judge(self, context).await
    }
}

fn attributes(
    context: &Context,
    target: Target<'_>,
    operation: Operation,
    object: Option<Value>,
    old: Option<Value>,
    dry_run: bool,
) -> Attributes {
    let storage = &target.kind.storage;
    let namespace = match target.kind.facts.plural {
        "namespaces" if target.name.is_empty() => object.as_ref().map(|object| object::meta(object, "name")).unwrap_or_default().to_owned(),
        "namespaces" => target.name.to_owned(),
        _ => target.namespace.to_owned(),
    };
    let name = match target.name {
        "" => object.as_ref().map(|object| object::meta(object, "name")).unwrap_or_default().to_owned(),
        name => name.to_owned(),
    };
    Attributes {
        gvr: GroupVersionResource::new(storage.group, storage.version, target.kind.facts.plural),
        gvk: GroupVersionKind::new(storage.group, storage.version, target.kind.facts.kind),
        namespace,
        name,
        subresource: context.info.subresource.clone(),
        operation,
        user: context.user.clone(),
        object,
        old,
        dry_run,
        options: json!({}),
        warnings: Vec::new(),
    }
}
