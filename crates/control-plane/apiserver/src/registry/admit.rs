//! The registry's side of admission: what plugins are shown, and how they read other objects.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock, Weak};

use admission::{Attributes, Lookup};
use cel::library::authorizer::{Authorizer, Decision, Question};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use meta::{GroupResource, GroupVersionKind, GroupVersionResource, Status};
use serde_json::{Map, Value, json};
use store::{Expect, Store};

use super::catalog::Kind;
use super::decoded::Decoded;
use super::repeat::Recorder;
use super::{Registry, Target, catalog, storage_error, versions};
use crate::cache::{Cache, Caches};
use crate::context::Context;
use crate::custom;
use crate::object;
use crate::selection::Selection;

pub use admission::Operation;

/// Lists up to this length are kept as trees.
const FEW: usize = 64;

/// Single objects come from the store itself, so that a plugin sees a namespace that was made a moment ago; lists from the cache.
pub struct Reader {
    pub store: Arc<dyn Store>,
    pub caches: Arc<Caches>,
    pub custom: Arc<custom::Kinds>,
    pub decoded: Decoded,
    /// Set once the server stands: rights are its to judge.
    pub server: OnceLock<Weak<crate::Inner>>,
}

impl Reader {
    /// The kind in the version in which it is stored.
    fn stored(&self, resource: &GroupResource) -> Option<Arc<Kind>> {
        let built_in = catalog::stored(&resource.group, &resource.resource);
        built_in.cloned().or_else(|| self.custom.stored(&resource.group, &resource.resource))
    }

    /// The key of an object that is read without a definition of its own.
    pub fn key(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Vec<u8>> {
        self.stored(resource).filter(|kind| !kind.is_custom()).map(|kind| kind.key(namespace, name))
    }

    /// Where all objects of such a resource are, and what the keys of those in the namespace begin with.
    pub fn cache(&self, resource: &GroupResource, namespace: &str) -> Option<(Arc<Cache>, Vec<u8>)> {
        let kind = self.stored(resource).filter(|kind| !kind.is_custom())?;
        Some((self.caches.of(kind.storage.prefix.as_bytes()), kind.prefix(namespace)))
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
            let Some(entry) = self.store.get(&kind.key(namespace, name)).await.map_err(storage_error)? else {
                return Ok(None);
            };
            let decode = || kind.decode(&entry.value, entry.mod_revision);
            // What a custom resource looks like depends on its definition too.
            if kind.is_custom() { decode().map(Arc::new).map(Some) } else { self.decoded.get(&entry, decode).map(Some) }
        }
        .boxed()
    }

    fn labels<'a>(
        &'a self,
        resource: &'a GroupResource,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Map<String, Value>>, Status>> {
        async move {
            let Some(kind) = self.stored(resource) else {
                return Ok(None);
            };
            let Some(entry) = self.store.get(&kind.key(namespace, name)).await.map_err(storage_error)? else {
                return Ok(None);
            };
            let labels = meta::scan::find(&entry.value, &["metadata", "labels"]);
            Ok(Some(labels.and_then(|labels| serde_json::from_slice(labels).ok()).unwrap_or_default()))
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
            // Every pod asks for all priority classes, quotas and limits: small lists that hardly change. A long one would push out the rest.
            let few = page.objects.len() <= FEW && !kind.is_custom();
            let tree = |object: &Arc<object::Object>| if few { self.decoded.value(object) } else { Arc::new(object.value()) };
            Ok(kind.present_all(page.objects)?.iter().map(tree).collect())
        }
        .boxed()
    }

    fn revision(&self, resource: &GroupResource) -> Option<u64> {
        let kind = self.stored(resource)?;
        Some(self.caches.of(kind.storage.prefix.as_bytes()).revision())
    }

    fn write_status<'a>(&'a self, resource: &'a GroupResource, object: Value) -> BoxFuture<'a, Result<bool, Status>> {
        async move {
            let kind = self.stored(resource).ok_or_else(|| Status::internal(format!("{resource} are not served")))?;
            let revision = object::meta(&object, "resourceVersion").parse().map_err(Status::internal)?;
            let key = kind.key(object::meta(&object, "namespace"), object::meta(&object, "name"));
            match self.store.put(&key, object::encode(&object), Expect::Revision(revision)).await {
                Ok(_) => Ok(true),
                Err(store::Error::Conflict { .. } | store::Error::NotFound) => Ok(false),
                Err(error) => Err(storage_error(error)),
            }
        }
        .boxed()
    }

    fn equivalents(&self, gvr: &GroupVersionResource, subresource: &str) -> Vec<(GroupVersionResource, GroupVersionKind)> {
        versions::equivalents(&self.custom, gvr, subresource)
    }

    fn resource_of(&self, kind: &GroupVersionKind) -> Option<(GroupVersionResource, bool)> {
        versions::resource_of(&self.custom, kind)
    }

    fn type_of(&self, kind: &GroupVersionKind) -> Option<cel::Type> {
        versions::type_of(&self.custom, kind)
    }

    fn convert<'a>(&'a self, object: Value, to: &'a GroupVersionKind) -> BoxFuture<'a, Result<Value, Status>> {
        std::future::ready(versions::convert(&self.custom, object, to)).boxed()
    }

    fn restore<'a>(&'a self, object: Value, from: &'a GroupVersionKind) -> BoxFuture<'a, Result<Value, Status>> {
        std::future::ready(versions::restore(&self.custom, object, from)).boxed()
    }

    fn merge<'a>(&'a self, object: Value, applied: Value, gvk: &'a GroupVersionKind) -> BoxFuture<'a, Result<Value, Status>> {
        std::future::ready(versions::merge(&self.custom, object, applied, gvk)).boxed()
    }

    fn authorizer(&self, user: &auth::UserInfo) -> Arc<dyn Authorizer> {
        Arc::new(Rights { server: self.server.get().cloned().unwrap_or_default(), caches: self.caches.clone(), user: user.clone() })
    }

    fn resolve_host<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Vec<IpAddr>> {
        let server = self.server.get().and_then(Weak::upgrade);
        match server.and_then(|server| server.resolver.clone()) {
            Some(resolver) => resolver(host.to_owned()),
            None => std::future::ready(Vec::new()).boxed(),
        }
    }

    fn allows<'a>(&'a self, user: &'a auth::UserInfo, asked: auth::authorize::Attributes<'a>) -> BoxFuture<'a, bool> {
        let server = self.server.get().and_then(Weak::upgrade);
        std::future::ready(server.is_some_and(|server| server.access.allows(&self.caches, user, &asked))).boxed()
    }
}

/// Answers `authorizer` in expressions.
struct Rights {
    server: Weak<crate::Inner>,
    caches: Arc<Caches>,
    user: auth::UserInfo,
}

impl Authorizer for Rights {
    fn decide(&self, asked: &Question) -> Decision {
        let Some(server) = self.server.upgrade() else { return Decision::default() };
        let account = asked.service_account.as_ref().map(|(namespace, name)| {
            let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            auth::UserInfo::authenticated(&format!("system:serviceaccount:{namespace}:{name}"), &groups)
        });
        let attributes = auth::authorize::Attributes {
            is_resource: asked.path.is_none(),
            verb: &asked.verb,
            group: &asked.group,
            version: "*",
            resource: &asked.resource,
            subresource: &asked.subresource,
            namespace: &asked.namespace,
            name: &asked.name,
            path: asked.path.as_deref().unwrap_or_default(),
            field_selector: asked.field_selector.as_deref().unwrap_or_default(),
            label_selector: asked.label_selector.as_deref().unwrap_or_default(),
        };
        let allowed = server.access.allows(&self.caches, account.as_ref().unwrap_or(&self.user), &attributes);
        Decision { allowed, ..Decision::default() }
    }
}

/// A write on its way through admission: holds the objects, so that nothing is copied between the two phases.
pub struct Admission {
    attributes: Attributes,
    /// A subresource of which plugins see another object (a Scale), made of the stored one.
    lens: Option<Lens>,
    /// Asks in the plugins' stead.
    pub recorder: Option<Arc<Recorder>>,
}

/// Another object's view on the stored one.
#[derive(Clone, Copy)]
pub struct Lens {
    pub of: fn(&Value) -> Value,
    /// Writes the view's state into the stored object.
    pub into: fn(&mut Value, &Value),
}

impl Admission {
    pub fn new(
        context: &Context,
        target: Target<'_>,
        operation: Operation,
        object: Option<Value>,
        old: Option<Value>,
        dry_run: bool,
    ) -> Self {
        let lens = (context.info.subresource == "scale" && !target.kind.is_custom()).then_some(crate::handlers::SCALE);
        Self { attributes: attributes(context, target, operation, object, old, dry_run), lens, recorder: None }
    }

    /// Lets the plugins change the object.
    pub async fn mutate(&mut self, registry: &Registry, context: &Context) -> Result<(), Status> {
        let outcome = match self.lens.filter(|_| self.attributes.object.is_some()) {
            None => registry.admission.mutate_by(&mut self.attributes, lookup(&self.recorder, registry)).await,
            Some(lens) => self.mutate_through(lens, registry).await,
        };
        self.say(context);
        outcome
    }

    async fn mutate_through(&mut self, lens: Lens, registry: &Registry) -> Result<(), Status> {
        let mut seen = self.through(lens);
        registry.admission.mutate(&mut seen).await?;
        if let (Some(object), Some(view)) = (&mut self.attributes.object, &seen.object) {
            (lens.into)(object, view);
        }
        Ok(())
    }

    fn through(&self, lens: Lens) -> Attributes {
        let see = |object: &Option<Value>| object.as_ref().map(lens.of);
        let Attributes { object, old, .. } = &self.attributes;
        let (object, old) = (see(object), see(old));
        let Attributes { gvr, gvk, namespace, name, subresource, operation, user, dry_run, options, notes, reinvocation, .. } =
            &self.attributes;
        Attributes {
            gvr: gvr.clone(),
            gvk: gvk.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            subresource: subresource.clone(),
            operation: *operation,
            user: user.clone(),
            object,
            old,
            dry_run: *dry_run,
            options: options.clone(),
            notes: notes.clone(),
            reinvocation: reinvocation.clone(),
        }
    }

    /// Lets the plugins judge the final object.
    pub async fn judge(&mut self, registry: &Registry, context: &Context) -> Result<(), Status> {
        let outcome = match self.lens {
            None => registry.admission.validate_by(&self.attributes, lookup(&self.recorder, registry)).await,
            Some(lens) => registry.admission.validate(&self.through(lens)).await,
        };
        self.say(context);
        outcome
    }

    /// Hands on what the plugins said.
    fn say(&self, context: &Context) {
        self.attributes.notes.take_warnings().into_iter().for_each(|warning| context.warn(warning));
        self.attributes.notes.take_annotations().into_iter().for_each(|(key, value)| context.annotate(key, value));
    }

    /// The new object beside the old one, to be worked on.
    pub fn parts(&mut self) -> (&mut Value, &Value) {
        static NONE: Value = Value::Null;
        (self.attributes.object.get_or_insert_default(), self.attributes.old.as_ref().unwrap_or(&NONE))
    }

    /// The name is known by now.
    pub fn rename(&mut self, name: &str) {
        name.clone_into(&mut self.attributes.name);
    }
}

/// Who answers the plugins' questions.
fn lookup<'a>(recorder: &'a Option<Arc<Recorder>>, registry: &'a Registry) -> &'a dyn Lookup {
    match recorder {
        Some(recorder) => &**recorder,
        None => &*registry.reader,
    }
}

impl Registry {
    /// Lets the plugins change and judge an object that is not stored itself (a Binding).
    pub async fn admit(
        &self,
        context: &Context,
        target: Target<'_>,
        operation: Operation,
        object: Value,
        dry_run: bool,
    ) -> Result<Value, Status> {
        let mut admission = Admission::new(context, target, operation, Some(object), None, dry_run);
        admission.mutate(self, context).await?;
        admission.judge(self, context).await?;
        Ok(admission.attributes.object.take().unwrap_or_default())
    }

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

    /// The same where there is an old state only, which comes back.
    pub async fn judge_old(
        &self,
        context: &Context,
        target: Target<'_>,
        operation: Operation,
        old: Value,
        dry_run: bool,
    ) -> Result<Value, Status> {
        let mut admission = Admission::new(context, target, operation, None, Some(old), dry_run);
        admission.mutate(self, context).await?;
        admission.judge(self, context).await?;
        Ok(admission.attributes.old.take().unwrap_or_default())
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
    let namespace = match target.kind.facts.plural {
        "namespaces" if target.name.is_empty() => object.as_ref().map(|object| object::meta(object, "name")).unwrap_or_default().to_owned(),
        "namespaces" => target.name.to_owned(),
        _ => target.namespace.to_owned(),
    };
    let name = match target.name {
        "" => object.as_ref().map(|object| object::meta(object, "name")).unwrap_or_default().to_owned(),
        name => name.to_owned(),
    };
    let (gvr, gvk) = asked(context, target, object.as_ref());
    let object = if operation == Operation::Connect { Some(connect_options(context, &gvk)) } else { object };
    Attributes {
        gvr,
        gvk,
        namespace,
        name,
        subresource: context.info.subresource.clone(),
        operation,
        user: auth::UserInfo::clone(&context.user),
        object,
        old,
        dry_run,
        options: options(context, operation, dry_run),
        notes: Arc::default(),
        reinvocation: admission::Reinvocation::default(),
    }
}

/// What the client asked about, in its version. A subresource has a kind of its own.
fn asked(context: &Context, target: Target<'_>, object: Option<&Value>) -> (GroupVersionResource, GroupVersionKind) {
    let facts = target.kind.facts;
    let is_binding = object.is_some_and(|object| object["kind"] == "Binding");
    if is_binding && context.info.subresource.is_empty() {
        return (GroupVersionResource::new("", "v1", "bindings"), GroupVersionKind::new("", "v1", "Binding"));
    }
    let gvr = GroupVersionResource::new(facts.group, facts.version, facts.plural);
    let gvk = match target.kind.subresource(&context.info.subresource) {
        Some(sub) => GroupVersionKind::new(sub.group, sub.version, sub.kind),
        None => GroupVersionKind::new(facts.group, facts.version, facts.kind),
    };
    (gvr, gvk)
}

/// What a connection is opened with; its query as the object that upstream makes of it.
fn connect_options(context: &Context, gvk: &GroupVersionKind) -> Value {
    let query = &context.query;
    let mut options = json!({"kind": gvk.kind, "apiVersion": gvk.group_version().to_string()});
    match context.info.subresource.as_str() {
        "exec" | "attach" => {
            for flag in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|flag| query.flag(flag)) {
                options[flag] = true.into();
            }
            if let Some(container) = query.text("container") {
                options["container"] = container.into();
            }
            let command: Vec<&str> = query.all("command").collect();
            if !command.is_empty() {
                options["command"] = json!(command);
            }
        }
        "portforward" => {
            let ports: Vec<i64> = query.all("ports").flat_map(|text| text.split(',')).filter_map(|text| text.parse().ok()).collect();
            if !ports.is_empty() {
                options["ports"] = json!(ports);
            }
        }
        _ if !context.info.rest.is_empty() => options["path"] = context.info.rest.trim_start_matches('/').into(),
        _ => {}
    }
    options
}

/// The request's options as plugins and webhooks see them.
fn options(context: &Context, operation: Operation, dry_run: bool) -> Value {
    let kind = match operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if dry_run {
        options["dryRun"] = json!(["All"]);
    }
    let told: &[&str] = if operation == Operation::Delete { &["propagationPolicy"] } else { &["fieldManager", "fieldValidation"] };
    for name in told {
        if let Some(value) = context.query.text(name) {
            options[name] = value.into();
        }
    }
    options
}
