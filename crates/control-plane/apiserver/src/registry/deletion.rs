//! Deletion: preconditions, grace, finalizers, propagation.
//!
//! Source: apiserver `pkg/registry/rest/delete.go`, `pkg/registry/generic/registry/store.go`.

use bytes::Bytes;
use meta::field::{self, Path};
use meta::{GroupResource, Status, time};
use serde_json::{Value, json};
use std::sync::Arc;
use store::Expect;

use super::admit::Operation;
use super::{Registry, Target, lifecycle, storage_error, stored};
use crate::context::{Context, dry_run};
use crate::object::{self, Object, meta, metadata_mut};

pub const ORPHAN: &str = "orphan";
pub const FOREGROUND: &str = "foregroundDeletion";
/// `DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub grace_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub dry_run: bool,
    /// Admission has been asked already, about what leads to the deletion (an eviction).
    pub admitted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

impl Options {
    /// From a body (`null` where there is none) and the query, which speaks where the body is silent.
    pub fn parse(body: &Value, context: &Context) -> Result<Self, Status> {
        let query = &context.query;
        let text = |name: &str| body[name].as_str().or_else(|| query.text(name));
        let grace_seconds = match body["gracePeriodSeconds"].as_i64() {
            Some(seconds) => Some(seconds),
            None => query.integer("gracePeriodSeconds")?,
        };
        let orphan = body["orphanDependents"].as_bool().or_else(|| query.get("orphanDependents").map(|_| query.flag("orphanDependents")));
        let root = Path::root();
        let refuse = |error: field::Error| Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &[error]));
        if grace_seconds.is_some_and(|seconds| seconds < 0) && grace_seconds != Some(-1) {
            let error = field::Error::invalid(&root.child("gracePeriodSeconds"), grace_seconds, "must be greater than or equal to 0");
            return refuse(error);
        }
        let propagation = match (text("propagationPolicy"), orphan) {
            (Some(_), Some(_)) => {
                let detail = "orphanDependents and deletionPropagation cannot be both set";
                return refuse(field::Error::invalid(&root.child("propagationPolicy"), text("propagationPolicy"), detail));
            }
            (Some("Background"), _) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some(other), _) => {
                let supported = ["Foreground", "Background", "Orphan", "nil"];
                return refuse(field::Error::not_supported(&root.child("propagationPolicy"), other, &supported));
            }
            (None, Some(false)) => Some(Propagation::Background),
            (None, None) => None,
        };
        let from_body = body["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let precondition = |name: &str| body["preconditions"][name].as_str().map(str::to_owned);
        Ok(Self {
            grace_seconds,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            propagation,
            dry_run: dry_run("DeleteOptions", from_body.chain(query.all("dryRun")))?,
            admitted: false,
        })
    }
}

/// How a deletion ended.
pub enum Deleted {
    /// The object is gone; its last state.
    Gone(Arc<Object>),
    /// It stays until its grace period is over and its finalizers are removed.
    Pending(Arc<Object>),
}

/// An object that was marked for deletion and that nothing holds any more.
pub fn completes(object: &Value) -> bool {
    !meta(object, "deletionTimestamp").is_empty()
        && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && lifecycle::finalizers(object).next().is_none()
        && !is_held_namespace(object)
}

/// A namespace is held by the finalizers of its spec.
fn is_held_namespace(object: &Value) -> bool {
    object["kind"] == "Namespace"
        && object["apiVersion"] == "v1"
        && object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
}

impl Registry {
    pub async fn delete(&self, context: &Context, target: Target<'_>, options: &Options) -> Result<Deleted, Status> {
        let key = Bytes::from(target.key());
        loop {
            let entry = self.store.get(&key).await.map_err(storage_error)?.ok_or_else(|| target.not_found())?;
            let mut old = object::decode(&entry.value, entry.mod_revision);
            let shown = |object: Arc<Object>| target.kind.present(object);
            check(target, &old, options)?;
            if let Some(refused) = namespace_in_deletion(target, &old) {
                return Err(refused);
            }
            if !options.admitted {
                old = self.judge_old(context, target, Operation::Delete, old, options.dry_run).await?;
            }
            let marked = mark(target, &old, options);
            let expect = Expect::Revision(entry.mod_revision);
            let Some(marked) = marked else {
                let last = stored(key.clone(), entry.value.clone(), entry.mod_revision)?;
                if options.dry_run {
                    return Ok(Deleted::Gone(shown(last)?));
                }
                match self.store.delete(&key, expect).await {
                    Ok((revision, _)) => {
                        self.services.release_unused(target.kind, &old, None);
                        return Ok(Deleted::Gone(shown(Arc::new(last.at(revision)))?));
                    }
                    Err(store::Error::Conflict { .. } | store::Error::NotFound) => continue,
                    Err(error) => return Err(storage_error(error)),
                }
            };
            let bytes = object::encode(&marked);
            if bytes == entry.value || options.dry_run {
                return Ok(Deleted::Pending(shown(stored(key, bytes, entry.mod_revision)?)?));
            }
            match self.store.put(&key, bytes.clone(), expect).await {
                Ok(revision) => return Ok(Deleted::Pending(shown(stored(key, bytes, revision)?)?)),
                Err(store::Error::Conflict { .. }) => {}
                Err(error) => return Err(storage_error(error)),
            }
        }
    }
}

impl Registry {
    /// Takes a finalizer of the server's own from an object; the last one to go takes the object with it.
    pub async fn release(&self, target: Target<'_>, finalizer: &str) -> Result<(), Status> {
        let key = Bytes::from(target.key());
        loop {
            let Some(entry) = self.store.get(&key).await.map_err(storage_error)? else { return Ok(()) };
            let mut object = object::decode(&entry.value, entry.mod_revision);
            let left: Vec<String> = lifecycle::finalizers(&object).filter(|name| *name != finalizer).map(str::to_owned).collect();
            let metadata = metadata_mut(&mut object);
            match left.is_empty() {
                true => metadata.remove("finalizers"),
                false => metadata.insert("finalizers".into(), json!(left)),
            };
            let expect = Expect::Revision(entry.mod_revision);
            let outcome = match completes(&object) {
                true => self.store.delete(&key, expect).await.map(drop),
                false => self.store.put(&key, object::encode(&object), expect).await.map(drop),
            };
            match outcome {
                Err(store::Error::Conflict { .. } | store::Error::NotFound) => {}
                other => return other.map_err(storage_error),
            }
        }
    }
}

/// The preconditions of a deletion, in upstream's words.
pub fn check(target: Target<'_>, old: &Value, options: &Options) -> Result<(), Status> {
    let facts = &target.kind.facts;
    // These two look before anybody else does.
    if matches!(facts.plural, "namespaces" | "customresourcedefinitions") && !target.kind.is_custom() {
        return check_stored(target, old, options.uid.as_deref(), options.resource_version.as_deref());
    }
    let resource = GroupResource { group: facts.group.into(), resource: facts.kind.into() };
    let other = |name: &str, wanted: &Option<String>, found: &str, since: &str| match wanted.as_deref() {
        Some(wanted) if wanted != found => {
            let why = format!(
                "the {name} in the precondition ({wanted}) does not match the {name} in record ({found}). The object might have been {since}"
            );
            Err(Status::conflict(&resource, target.name, &why))
        }
        _ => Ok(()),
    };
    other("UID", &options.uid, meta(old, "uid"), "deleted and then recreated")?;
    other("ResourceVersion", &options.resource_version, meta(old, "resourceVersion"), "modified")
}

/// The preconditions that a write itself has, in the words of upstream's storage.
pub fn check_stored(target: Target<'_>, old: &Value, uid: Option<&str>, version: Option<&str>) -> Result<(), Status> {
    for (name, wanted, found) in [("UID", uid, meta(old, "uid")), ("ResourceVersion", version, meta(old, "resourceVersion"))] {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            let why = format!("Precondition failed: {name} in precondition: {wanted}, {name} in object meta: {found}");
            return Err(Status::conflict(&target.kind.group_resource(), target.name, &why));
        }
    }
    Ok(())
}

/// A second delete of a namespace that still has content is refused.
fn namespace_in_deletion(target: Target<'_>, old: &Value) -> Option<Status> {
    if !is_held_namespace(old) || meta(old, "deletionTimestamp").is_empty() {
        return None;
    }
    let why = "The system is ensuring all content is removed from this namespace.  Upon completion, this namespace will automatically be purged by the system.";
    Some(Status::conflict(&target.kind.group_resource(), target.name, why))
}

/// The object as it has to stay; `None` where nothing holds it.
fn mark(target: Target<'_>, old: &Value, options: &Options) -> Option<Value> {
    let grace = grace_seconds(target, old, options);
    let is_definition = old["kind"] == "CustomResourceDefinition" && !target.kind.is_custom();
    // Most go at once: no copy of them is needed.
    if grace == 0 && !is_definition && !is_held_namespace(old) && finalizers_for(old, options.propagation).is_empty() {
        return None;
    }
    let mut object = old.clone();
    if is_definition && meta(old, "deletionTimestamp").is_empty() {
        crate::custom::begin_deletion(&mut object);
    }
    let finalizers = finalizers_for(&object, options.propagation);
    if grace == 0 && finalizers.is_empty() && !is_held_namespace(old) {
        return None;
    }
    let metadata = metadata_mut(&mut object);
    match finalizers.is_empty() {
        true => metadata.remove("finalizers"),
        false => metadata.insert("finalizers".into(), json!(finalizers)),
    };
    let marked_before = !meta(old, "deletionTimestamp").is_empty();
    let grace_before = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if !marked_before || grace < grace_before {
        let asked_at = match time::epoch(meta(old, "deletionTimestamp")) {
            Some(until) if marked_before => until - grace_before,
            _ => time::epoch(&time::now()).unwrap_or(0),
        };
        metadata.insert("deletionTimestamp".into(), time::from_epoch(asked_at + grace).into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        if !marked_before && let Some(generation) = old["metadata"]["generation"].as_i64().filter(|generation| *generation > 0) {
            metadata.insert("generation".into(), (generation + 1).into());
        }
    }
    if is_held_namespace(old) {
        object["status"]["phase"] = "Terminating".into();
    }
    Some(object)
}

/// Kinds without graceful deletion have none, whatever the options say.
fn grace_seconds(target: Target<'_>, old: &Value, options: &Options) -> i64 {
    match target.kind.storage.rules.default_grace_seconds(old) {
        None => 0,
        Some(default) => match options.grace_seconds.unwrap_or(default) {
            negative if negative < 0 => 1,
            seconds => seconds,
        },
    }
}

/// The garbage collector's finalizers follow the propagation policy; without one, those already there stay.
fn finalizers_for(old: &Value, propagation: Option<Propagation>) -> Vec<String> {
    let mut finalizers: Vec<String> = lifecycle::finalizers(old).map(str::to_owned).collect();
    let Some(propagation) = propagation else {
        return finalizers;
    };
    finalizers.retain(|finalizer| finalizer != ORPHAN && finalizer != FOREGROUND);
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(FOREGROUND.into()),
        Propagation::Orphan => finalizers.push(ORPHAN.into()),
    }
    finalizers
}
