//! One path for all kinds: create, update, delete with upstream's life cycle, over bytes in the store.
//!
//! What is special about a kind comes from its table entry and its [`rules`]; what touches other state (Service addresses,
//! Namespaces, Bindings) has a file here and a named step below.

pub mod catalog;
pub mod deletion;
pub mod lifecycle;

use std::sync::Arc;

use bytes::Bytes;
use meta::Status;
use rules::Part;
use serde_json::Value;
use store::{Expect, Store};

use crate::cache::Caches;
use crate::context::{Context, WriteOptions};
use crate::object::{self, Object, meta};
use catalog::Kind;

/// Names tried for `generateName` before giving up, as upstream.
const GENERATED_NAMES_TRIED: usize = 8;

pub struct Registry {
    pub store: Arc<dyn Store>,
    pub caches: Arc<Caches>,
}

/// An object's place.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub kind: &'static Kind,
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

/// What a write made of the object.
pub struct Written {
    pub object: Arc<Object>,
    pub created: bool,
}

/// The store's failures as clients see them.
pub fn storage_error(error: store::Error) -> Status {
    match error {
        store::Error::Compacted { .. } => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
        ),
        store::Error::TooLarge { size, limit } => {
            Status::request_entity_too_large(format!("Request entity too large: limit is {limit}, the object has {size} bytes"))
        }
        store::Error::NoSpace => Status::internal("etcdserver: mvcc: database space exceeded"),
        other => Status::internal(other),
    }
}

impl Registry {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, caches: Arc::default() }
    }

    /// The newest state of an object, straight from the store.
    pub async fn get(&self, target: Target<'_>) -> Result<Arc<Object>, Status> {
        self.find(target).await?.ok_or_else(|| target.not_found())
    }

    pub async fn find(&self, target: Target<'_>) -> Result<Option<Arc<Object>>, Status> {
        let entry = self.store.get(&target.key()).await.map_err(storage_error)?;
        Ok(entry.and_then(|entry| Object::new(entry.key, entry.value, entry.mod_revision)).map(Arc::new))
    }

    /// Creates. `object` is decoded and in the stored version.
    pub async fn create(
        &self,
        context: &Context,
        target: Target<'_>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Object>, Status> {
        let generated = meta(&object, "name").is_empty() && !meta(&object, "generateName").is_empty();
        let tries = if generated { GENERATED_NAMES_TRIED } else { 1 };
        let mut refused = None;
        for _ in 0..tries {
            match self.create_once(context, target, object.clone(), options).await {
                Err(status) if generated && status.is("AlreadyExists") => refused = Some(status),
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
    ) -> Result<Arc<Object>, Status> {
        let kind = target.kind;
        lifecycle::begin_create(kind, target.namespace, &mut object)?;
        kind.storage.rules.prepare_create(&mut object);
        lifecycle::finish_create(kind, &mut object, options)?;
        let name = meta(&object, "name").to_owned();
        let target = Target { name: &name, ..target };
        lifecycle::validate_create(kind, &object)?;
        for warning in kind.storage.rules.warnings(&object, None) {
            context.warn(warning);
        }
        let (key, bytes) = (Bytes::from(target.key()), object::encode(&object));
        if options.dry_run {
            return match self.find(target).await? {
                Some(existing) => Err(already_exists(target, &existing)),
                None => stored(key, bytes, 0),
            };
        }
        match self.store.put(&key, bytes.clone(), Expect::Absent).await {
            Ok(revision) => stored(key, bytes, revision),
            Err(store::Error::Conflict { current }) => {
                let existing = current.and_then(|entry| Object::new(entry.key, entry.value, entry.mod_revision));
                Err(existing.map_or_else(
                    || Status::already_exists(&kind.group_resource(), target.name),
                    |existing| already_exists(target, &existing),
                ))
            }
            Err(error) => Err(storage_error(error)),
        }
    }

    /// Updates, again and again until nobody else wrote in between. `make` gives the wanted object from the current one; an object
    /// that carries a resourceVersion is only written over that very version.
    pub async fn update(
        &self,
        context: &Context,
        target: Target<'_>,
        part: Part,
        options: &WriteOptions,
        mut make: impl FnMut(&Value) -> Result<Value, Status> + Send,
    ) -> Result<Written, Status> {
        let key = Bytes::from(target.key());
        loop {
            let entry = self.store.get(&key).await.map_err(storage_error)?.ok_or_else(|| target.not_found())?;
            let old = object::decode(&entry.value, entry.mod_revision);
            let mut new = make(&old)?;
            let unconditional = lifecycle::check_preconditions(target, &new, &old)?;
            lifecycle::begin_update(target.kind, &mut new, &old, part);
            target.kind.storage.rules.prepare_update(&mut new, &old, part);
            lifecycle::finish_update(target.kind, &mut new, &old, part, options);
            lifecycle::validate_update(target, &new, &old, part)?;
            for warning in target.kind.storage.rules.warnings(&new, Some(&old)) {
                context.warn(warning);
            }
            let bytes = object::encode(&new);
            if bytes == entry.value {
                return Ok(Written { object: stored(key, entry.value, entry.mod_revision)?, created: false });
            }
            if options.dry_run {
                return Ok(Written { object: stored(key, bytes, entry.mod_revision)?, created: false });
            }
            if deletion::completes(&new) {
                match self.store.delete(&key, Expect::Revision(entry.mod_revision)).await {
                    Ok((revision, _)) => return Ok(Written { object: stored(key, bytes, revision)?, created: false }),
                    Err(store::Error::Conflict { .. } | store::Error::NotFound) if unconditional => continue,
                    Err(store::Error::Conflict { .. } | store::Error::NotFound) => return Err(target.stale()),
                    Err(error) => return Err(storage_error(error)),
                }
            }
            match self.store.put(&key, bytes.clone(), Expect::Revision(entry.mod_revision)).await {
                Ok(revision) => return Ok(Written { object: stored(key, bytes, revision)?, created: false }),
                Err(store::Error::Conflict { .. }) if unconditional => {}
                Err(store::Error::Conflict { .. }) => return Err(target.stale()),
                Err(error) => return Err(storage_error(error)),
            }
        }
    }
}

fn stored(key: Bytes, bytes: Bytes, revision: u64) -> Result<Arc<Object>, Status> {
    Object::new(key, bytes, revision).map(Arc::new).ok_or_else(|| Status::internal("the object has no stored form"))
}

fn already_exists(target: Target<'_>, existing: &Object) -> Status {
    let resource = target.kind.group_resource();
    let mut status = Status::already_exists(&resource, target.name);
    if object::meta(&existing.value(), "deletionTimestamp") != "" {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}
