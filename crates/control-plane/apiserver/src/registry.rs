//! One path for all kinds: create, update, delete with upstream's life cycle, over bytes in the store.
//!
//! What is special about a kind comes from its table entry and its `rules`; what touches other state (Service addresses, Bindings, tokens)
//! has a file here and a named step below.

pub mod admit;
pub mod catalog;
mod decoded;
pub mod deletion;
pub mod lifecycle;
pub mod repeat;
pub mod service;
pub mod versions;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use meta::{Status, time};
use rules::Part;
use schema::apply::{self, Manager};
use serde_json::Value;
use store::{Expect, Store};

use crate::cache::Caches;
use crate::context::{Context, WriteOptions};
use crate::custom;
use crate::object::{self, Object, meta};
use admit::{Admission, Operation};
use catalog::Kind;

/// Names tried for `generateName` before giving up, as upstream.
const GENERATED_NAMES_TRIED: usize = 8;

pub struct Registry {
    pub store: Arc<dyn Store>,
    pub caches: Arc<Caches>,
    pub admission: admission::Chain,
    pub services: service::Allocators,
    pub custom: Arc<custom::Kinds>,
    /// How admission sees the server.
    pub reader: Arc<admit::Reader>,
    pub repeats: repeat::Repeats,
}

/// An object's place.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub kind: &'a Arc<Kind>,
    pub namespace: &'a str,
    pub name: &'a str,
}

impl Target<'_> {
    pub fn key(&self) -> Vec<u8> {
        self.kind.key(self.namespace, self.name)
    }
    pub fn not_found(&self) -> Status {
        self.kind.not_found(self.name)
    }
    /// 409 in upstream's words.
    pub fn stale(&self) -> Status {
        Status::stale(&self.kind.group_resource(), self.name)
    }
}

/// Who comes to own the fields that a write changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// The writer, with operation Update.
    Update,
    /// Server-side apply has already said so.
    Applied,
}

/// The store's failures as clients see them.
pub fn storage_error(error: store::Error) -> Status {
    match error {
        store::Error::Compacted { .. } => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
        ),
        store::Error::TooLarge { size, limit } => {
            Status::request_entity_too_large(format!("Request entity too large: limit is {limit}, the object has {size} bytes"))
        }
        store::Error::NoSpace => {
            Status::internal("etcdserver: mvcc: database space exceeded (the disk or the quota of the store is full; deletions still work)")
        }
        other => Status::internal(other),
    }
}

impl Registry {
    pub fn new(
        store: Arc<dyn Store>,
        caches: Caches,
        services: service::Allocators,
        options: &admission::Options,
    ) -> Result<Self, admission::ConfigError> {
        let caches = Arc::new(caches);
        let custom: Arc<custom::Kinds> = Arc::default();
        let server = OnceLock::new();
        let reader = Arc::new(admit::Reader {
            store: store.clone(),
            caches: caches.clone(),
            custom: custom.clone(),
            decoded: Default::default(),
            server,
        });
        let admission = admission::Chain::new(options, reader.clone())?;
        Ok(Self { store, caches, admission, services, custom, reader, repeats: Default::default() })
    }

    /// The newest state of an object, straight from the store.
    pub async fn get(&self, target: Target<'_>) -> Result<Arc<Object>, Status> {
        self.find(target).await?.ok_or_else(|| target.not_found())
    }

    pub async fn find(&self, target: Target<'_>) -> Result<Option<Arc<Object>>, Status> {
        let entry = self.store.get(&target.key()).await.map_err(storage_error)?;
        let object = entry.and_then(|entry| Object::new(entry.key, entry.value, entry.mod_revision)).map(Arc::new);
        object.map(|object| target.kind.present(object)).transpose()
    }

    /// Creates. `object` is decoded and in the stored version.
    pub async fn create(
        &self,
        context: &Context,
        target: Target<'_>,
        object: Value,
        options: &WriteOptions,
        owners: Owners,
    ) -> Result<Arc<Object>, Status> {
        self.create_by(context, target, object, options, owners, None).await
    }

    /// The same; `recorder` asks in the place of admission's plugins.
    async fn create_by(
        &self,
        context: &Context,
        target: Target<'_>,
        object: Value,
        options: &WriteOptions,
        owners: Owners,
        recorder: Option<&Arc<repeat::Recorder>>,
    ) -> Result<Arc<Object>, Status> {
        if !(meta(&object, "name").is_empty() && !meta(&object, "generateName").is_empty()) {
            return self.create_once(context, target, object, options, owners, recorder).await;
        }
        let mut refused = None;
        for _ in 0..GENERATED_NAMES_TRIED {
            match self.create_once(context, target, object.clone(), options, owners, recorder).await {
                Err(status) if status.is("AlreadyExists") => refused = Some(status),
                other => return other,
            }
        }
        let status = refused.unwrap_or_else(|| Status::internal("no name was tried"));
        let why = "the server was not able to generate a unique name for the object";
        Err(Status { message: format!("{}, {why}", status.message), ..status })
    }

    async fn create_once(
        &self,
        context: &Context,
        target: Target<'_>,
        mut object: Value,
        options: &WriteOptions,
        owners: Owners,
        recorder: Option<&Arc<repeat::Recorder>>,
    ) -> Result<Arc<Object>, Status> {
        let kind = target.kind;
        lifecycle::begin_create(kind, target.namespace, &mut object)?;
        let mut admission = Admission::new(context, target, Operation::Create, Some(object), None, options.dry_run);
        admission.recorder = recorder.cloned();
        admission.mutate(self, context).await?;
        let (object, _) = admission.parts();
        // Identity first: a Job's selector is made of its uid.
        lifecycle::finish_create(kind, object)?;
        lifecycle::drop_status(kind, object);
        kind.storage.rules.prepare_create(object);
        lifecycle::complete_status(kind, object);
        let name = meta(object, "name").to_owned();
        let target = Target { name: &name, ..target };
        lifecycle::validate_create(kind, object)?;
        for warning in kind.storage.rules.warnings(object, None) {
            context.warn(warning);
        }
        admission.rename(&name);
        admission.judge(self, context).await?;
        let (object, _) = admission.parts();
        lifecycle::check_unversioned(object)?;
        let reserved = self.services.reserve(kind, object, None, &self.caches).map_err(|errors| kind.invalid(target.name, &errors))?;
        own(target, object, None, Part::Main, options, owners);
        let (key, bytes) = (Bytes::from(target.key()), kind.encode(object)?);
        let shown = if kind.is_custom() { object::encode(object) } else { bytes.clone() };
        if options.dry_run {
            return match self.find(target).await? {
                Some(existing) => Err(already_exists(target, &existing)),
                None => stored(key, shown, 0),
            };
        }
        match self.store.put(&key, bytes, Expect::Absent).await {
            Ok(revision) => {
                reserved.keep();
                stored(key, shown, revision)
            }
            Err(store::Error::Conflict { current }) => {
                let existing = current.and_then(|entry| Object::new(entry.key, entry.value, entry.mod_revision));
                let plain = || Status::already_exists(&kind.group_resource(), target.name);
                Err(existing.map_or_else(plain, |existing| already_exists(target, &existing)))
            }
            Err(error) => Err(storage_error(error)),
        }
    }

    /// Updates, again and again until nobody else wrote in between. `make` gives the wanted object from the current one; an object
    /// that carries a resourceVersion is only written over that very version. What changes nothing is not written.
    pub async fn update(
        &self,
        context: &Context,
        target: Target<'_>,
        part: Part,
        options: &WriteOptions,
        owners: Owners,
        mut make: impl FnMut(&Value) -> Result<Value, Status> + Send,
    ) -> Result<Arc<Object>, Status> {
        let key = Bytes::from(target.key());
        loop {
            let entry = self.store.get(&key).await.map_err(storage_error)?.ok_or_else(|| target.not_found())?;
            let old = target.kind.decode(&entry.value, entry.mod_revision)?;
            let new = make(&old)?;
            let unconditional = lifecycle::check_preconditions(target, &new, &old)?;
            let mut admission = Admission::new(context, target, Operation::Update, Some(new), Some(old), options.dry_run);
            let reserved = self.updated(context, target, part, options, owners, &mut admission).await?;
            let (new, old) = admission.parts();
            let bytes = target.kind.encode(new)?;
            let shown = if target.kind.is_custom() { object::encode(new) } else { bytes.clone() };
            if bytes == entry.value || options.dry_run {
                return stored(key, shown, entry.mod_revision);
            }
            let expect = Expect::Revision(entry.mod_revision);
            let outcome = match deletion::completes(new) {
                true => self.store.delete(&key, expect).await.map(|(revision, _)| revision),
                false => self.store.put(&key, bytes, expect).await,
            };
            match outcome {
                Ok(revision) => {
                    reserved.keep();
                    self.services.release_unused(target.kind, old, (!deletion::completes(new)).then_some(&*new));
                    return stored(key, shown, revision);
                }
                Err(store::Error::Conflict { .. } | store::Error::NotFound) if unconditional => {}
                Err(store::Error::Conflict { .. } | store::Error::NotFound) => return Err(target.stale()),
                Err(error) => return Err(storage_error(error)),
            }
        }
    }

    /// A change of the server's own (a binding, a spent disruption): no admission, no validation, no owners. `change` runs again on the newer
    /// object when somebody else wrote in between.
    pub async fn modify(
        &self,
        target: Target<'_>,
        dry_run: bool,
        mut change: impl FnMut(&mut Value) -> Result<(), Status> + Send,
    ) -> Result<Arc<Object>, Status> {
        self.rewrite(target, dry_run, |old| object::edited(old, &mut change)).await
    }

    /// The same from stored form to stored form.
    pub async fn rewrite(
        &self,
        target: Target<'_>,
        dry_run: bool,
        mut change: impl FnMut(&Object) -> Result<Bytes, Status> + Send,
    ) -> Result<Arc<Object>, Status> {
        let key = Bytes::from(target.key());
        loop {
            let entry = self.store.get(&key).await.map_err(storage_error)?.ok_or_else(|| target.not_found())?;
            let old = stored(key.clone(), entry.value, entry.mod_revision)?;
            let bytes = change(&old)?;
            if dry_run || bytes == old.bytes {
                return stored(key, bytes, old.revision);
            }
            match self.store.put(&key, bytes.clone(), Expect::Revision(old.revision)).await {
                Ok(revision) => return stored(key, bytes, revision),
                Err(store::Error::Conflict { .. }) => {}
                Err(error) => return Err(storage_error(error)),
            }
        }
    }

    /// Makes the object what will be stored.
    async fn updated(
        &self,
        context: &Context,
        target: Target<'_>,
        part: Part,
        options: &WriteOptions,
        owners: Owners,
        admission: &mut Admission,
    ) -> Result<service::Reservation<'_>, Status> {
        let rules = target.kind.storage.rules.clone();
        let (new, old) = admission.parts();
        lifecycle::begin_update(target.kind, new, old, part);
        admission.mutate(self, context).await?;
        let (new, old) = admission.parts();
        rules.prepare_update(new, old, part);
        lifecycle::finish_update(target.kind, new, old, part);
        lifecycle::validate_update(target, new, old, part)?;
        if part == Part::Main {
            rules.warnings(new, Some(old)).into_iter().for_each(|warning| context.warn(warning));
        }
        admission.judge(self, context).await?;
        let (new, old) = admission.parts();
        let reserved =
            self.services.reserve(target.kind, new, Some(old), &self.caches).map_err(|errors| target.kind.invalid(target.name, &errors))?;
        own(target, new, Some(old), part, options, owners);
        Ok(reserved)
    }
}

/// Records who owns what (`metadata.managedFields`).
fn own(target: Target<'_>, new: &mut Value, old: Option<&Value>, part: Part, options: &WriteOptions, owners: Owners) {
    let now = time::now();
    if owners == Owners::Update {
        let (kind, api_version) = (target.kind, target.kind.api_version());
        let manager = manager(kind, &options.manager, part, &api_version, &now);
        if kind.converts() {
            // Fields are owned by their paths in the version that was written.
            let old = old.map(|old| crate::convert::from_storage(kind, old.clone()));
            let mut written = crate::convert::from_storage(kind, new.clone());
            apply::update(old.as_ref(), &mut written, &manager, &kind.schema);
            let owners = written["metadata"]["managedFields"].take();
            object::metadata_mut(new).insert("managedFields".into(), owners);
        } else {
            apply::update(old, new, &manager, &kind.schema);
        }
    }
    if let Some(old) = old {
        apply::keep_times(old, new);
    }
}

pub fn manager<'a>(kind: &Kind, name: &'a str, part: Part, api_version: &'a str, time: &'a str) -> Manager<'a> {
    let (subresource, reset): (&str, &[&str]) = match part {
        Part::Main if kind.has_status() => ("", &["status"]),
        Part::Main => ("", &[]),
        Part::Status => ("status", &["spec"]),
        Part::Subresource(name) => (name, &[]),
    };
    Manager { name, subresource, api_version, time, reset }
}

fn stored(key: Bytes, bytes: Bytes, revision: u64) -> Result<Arc<Object>, Status> {
    Object::new(key, bytes, revision).map(Arc::new).ok_or_else(|| Status::internal("the object has no stored form"))
}

fn already_exists(target: Target<'_>, existing: &Object) -> Status {
    let resource = target.kind.group_resource();
    let mut status = Status::already_exists(&resource, target.name);
    if !meta(&existing.value(), "deletionTimestamp").is_empty() {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}
