//! Server-side apply and the ownership of fields (`metadata.managedFields`), table-driven.
//!
//! Way in: [`apply`] for a PATCH of type apply, [`update`] after every other create, update and patch. Read in this
//! order: `element` and `set` (paths as sorted tries), `fields_v1` (their JSON form), `node` (the schema in apply's
//! terms), `validate`, `fields`, `typed_merge`, `compare`, `remove` (walks beside the schema), `managers` (who owns what),
//! `prune`, `conflict`, `last_applied`. Pure: the time comes in as text.
//!
//! Source of the behaviour: structured-merge-diff v6 and apimachinery `managedfields` (KEP-555). Differences: values of
//! the live object that do not fit the schema are taken as whole values instead of refused, and owners at another version
//! of the API are compared at the version of the request (upstream converts the object for each).

mod compare;
mod conflict;
mod element;
mod fields;
mod fields_v1;
mod last_applied;
mod managers;
mod node;
mod prune;
mod remove;
mod set;
mod typed_merge;
mod validate;
mod zero;

use std::sync::LazyLock;

use meta::Status;
use serde_json::{Map, Value};

pub use self::conflict::{Conflict, Conflicts};
pub use self::element::Element;
pub use self::fields_v1::{Unreadable, decode, encode};
pub use self::set::{Entry, Set, path_text};

use self::compare::compare;
use self::element::equal;
use self::managers::{Identity, Managers, Operation, Owned};
use self::node::Node;
use crate::model::Type;

/// Who writes, and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manager<'a> {
    /// The `fieldManager` of the request, or the first part of its user agent; empty becomes `unknown`.
    pub name: &'a str,
    /// `status`, `scale`, …; empty for the main resource.
    pub subresource: &'a str,
    /// The version of the request: `apps/v1`.
    pub api_version: &'a str,
    /// Now, as `2006-01-02T15:04:05Z`.
    pub time: &'a str,
    /// Fields that this endpoint never changes and that therefore nobody comes to own through it: `["status"]` on the main
    /// resource, `["spec"]` and `["metadata"]` on `status`. Whoever stores the object resets their values (see [`strip`]).
    pub reset: &'a [&'a str],
}

/// Why an apply is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// 409.
    #[error("{0}")]
    Conflicts(Conflicts),
    /// 400.
    #[error("{0}")]
    BadRequest(String),
    /// The live object's managedFields are broken: 500.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// The API's reply.
    pub fn status(&self) -> Status {
        match self {
            Error::Conflicts(conflicts) => conflicts.status(),
            Error::BadRequest(message) => Status::bad_request(message.clone()),
            Error::Failed(message) => Status::failure(500, "", message.clone()),
        }
    }
}

const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Fields that have no owner.
static OWNERLESS: LazyLock<Set<'static>> = LazyLock::new(|| {
    Set::of_fields(&[
        "apiVersion",
        "kind",
        "metadata",
        "metadata.name",
        "metadata.namespace",
        "metadata.creationTimestamp",
        "metadata.selfLink",
        "metadata.uid",
        "metadata.clusterName",
        "metadata.generation",
        "metadata.managedFields",
        "metadata.resourceVersion",
    ])
});

/// Applies the configuration `applied` to `live` (`None`: the object does not exist) and returns the new object with its
/// `metadata.managedFields`.
///
/// Nulls of the configuration stay in the result, and a container whose parts are all taken away becomes null: decoding
/// drops both. Where nothing changes the result is `live` (managedFields may gain a co-owner). Without `force` a change of
/// a field that somebody else owns is refused with [`Error::Conflicts`].
pub fn apply(live: Option<&Value>, applied: &Value, manager: &Manager<'_>, force: bool, schema: &Type) -> Result<Value, Error> {
    let node = Node::root(schema);
    check_configuration(applied, manager, node)?;
    let nothing = Value::Object(Map::new());
    let old = live.unwrap_or(&nothing);
    let mut managers =
        Managers::decode(managed_fields(old)).map_err(|why| Error::Failed(format!("failed to decode managed fields: {why}")))?;
    let zero = zero::of(schema, old);
    let unowned = managers.is_empty() && live.is_some();
    if unowned {
        let before = Manager { name: BEFORE_FIRST_APPLY, ..*manager };
        record_update(&mut managers, &zero, old, &before, node);
        managers.cap();
    }
    let reconciled = managers.reconcile(node);

    let reset = Set::of_fields(manager.reset);
    let identity = Identity::new(manager.name, Operation::Apply, manager.api_version, manager.subresource);
    let last = managers.take(&identity);
    let own = fields::of(applied, node).recursive_difference(&reset);
    let merged = match live {
        Some(live) => typed_merge::merge(live, applied, node),
        None => applied.clone(),
    };
    let merged = match &last {
        Some(last) => prune::prune(merged, &managers, &own, &last.set, node),
        None => merged,
    };

    let unchanged = equal(old, &merged);
    if !unchanged {
        let changes = compare(old, &merged, node).excluding(&reset);
        let changed = changes.modified.union(changes.added);
        if !force {
            check_conflicts(&managers, &changed, old, manager, node)?;
        }
        managers.lose(&changed, &changes.removed);
    }
    let set = own.difference(&OWNERLESS);
    let same_owner = |last: &Owned<'_>| last.set == set && last.api_version == manager.api_version;
    // The common case, a repeated apply: `merged` holds the live managedFields already.
    let same_owners = unchanged && !unowned && !reconciled && last.as_ref().is_some_and(same_owner);
    let mut object = merged;
    if !same_owners {
        let time = if unchanged { last.and_then(|last| last.time) } else { Some(manager.time.into()) };
        managers.put(identity, Owned { set, api_version: manager.api_version.into(), time });
        set_managed_fields(&mut object, managers.encode());
    }
    if manager.name == last_applied::KUBECTL {
        last_applied::refresh(&mut object, applied);
    }
    Ok(object)
}

fn check_configuration(applied: &Value, manager: &Manager<'_>, node: Node<'_>) -> Result<(), Error> {
    let text = |name: &str| applied.get(name).and_then(Value::as_str).unwrap_or_default();
    let version = text("apiVersion");
    if version != manager.api_version {
        return Err(Error::BadRequest(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {}",
            manager.api_version
        )));
    }
    if managed_fields(applied).is_some_and(|entries| !entries.is_null()) {
        return Err(Error::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    validate::validate(applied, node).map_err(|why| {
        let metadata = |name: &str| applied.pointer(&format!("/metadata/{name}")).and_then(Value::as_str).unwrap_or_default();
        let group_version = if version.contains('/') { version.to_owned() } else { format!("/{version}") };
        // Upstream answers 500 here, which blames the server for what the client wrote.
        Error::BadRequest(format!(
            "failed to create typed patch object ({}/{}; {group_version}, Kind={}): {why}",
            metadata("namespace"),
            metadata("name"),
            text("kind")
        ))
    })
}

fn check_conflicts(managers: &Managers<'_>, changed: &Set<'_>, live: &Value, manager: &Manager<'_>, node: Node<'_>) -> Result<(), Error> {
    if changed.is_empty() {
        return Ok(());
    }
    // kubectl takes over from itself: what its client-side apply set and nobody touched since is no conflict.
    let last = (manager.name == last_applied::KUBECTL).then(|| last_applied::configuration(live, manager.api_version)).flatten();
    let allowed = last.as_ref().map(|last| last_applied::untouched(last, live, node)).unwrap_or_default();
    let mut conflicts = Vec::new();
    for (identity, owned) in managers.iter() {
        owned.set.intersection(changed).for_each_path(&mut |path| {
            if !allowed.has(path) {
                conflicts.push(Conflict { manager: identity.words(), path: path_text(path) });
            }
        });
    }
    if conflicts.is_empty() { Ok(()) } else { Err(Error::Conflicts(Conflicts(conflicts))) }
}

/// Recomputes `new`'s managedFields after a create (`old` is `None`), update or patch: whatever changed now belongs to
/// `manager` with operation Update.
///
/// Call it on the object as it will be stored, after mutating admission and with reset fields already put back.
/// managedFields in the request replace the live ones, except through a subresource or where they are empty or
/// unreadable; `[]` and `[{}]` forget all owners. Objects that exist without owners stay without.
pub fn update(old: Option<&Value>, new: &mut Value, manager: &Manager<'_>, schema: &Type) {
    let supplied = take_managed_fields(new);
    if new.get("metadata").is_none_or(|metadata| !metadata.is_object()) {
        return;
    }
    let entries = updated_entries(old, new, supplied.as_ref(), manager, schema);
    set_managed_fields(new, entries);
}

fn updated_entries(old: Option<&Value>, new: &Value, supplied: Option<&Value>, manager: &Manager<'_>, schema: &Type) -> Option<Value> {
    let live = || Managers::decode(old.and_then(managed_fields)).unwrap_or_default();
    let mut managers = match supplied {
        Some(entries) if manager.subresource.is_empty() && managers::is_reset(entries) => Managers::default(),
        Some(entries) if manager.subresource.is_empty() => {
            Managers::decode(Some(entries)).ok().filter(|managers| !managers.is_empty()).unwrap_or_else(live)
        }
        _ => live(),
    };
    let exists = old.and_then(|old| old.pointer("/metadata/uid")).and_then(Value::as_str).is_some_and(|uid| !uid.is_empty());
    if managers.is_empty() && exists {
        return None;
    }
    let node = Node::root(schema);
    let zero = if old.is_none() { zero::of(schema, new) } else { Value::Null };
    managers.reconcile(node);
    record_update(&mut managers, old.unwrap_or(&zero), new, manager, node);
    managers.cap();
    managers.encode()
}

/// Moves what changed from `old` to `new` to the updater `manager`.
fn record_update<'a>(managers: &mut Managers<'a>, old: &'a Value, new: &'a Value, manager: &Manager<'a>, node: Node<'a>) {
    let changes = compare(old, new, node).excluding(&Set::of_fields(manager.reset));
    let changed = changes.modified.union(changes.added);
    managers.lose(&changed, &changes.removed);
    let gained = changed.difference(&OWNERLESS);
    if gained.is_empty() {
        return;
    }
    let identity = Identity::new(manager.name, Operation::Update, manager.api_version, manager.subresource);
    let kept = managers.take(&identity).map(|owned| owned.set).unwrap_or_default();
    let api_version = manager.api_version.into();
    managers.put(identity, Owned { set: gained.union(kept), api_version, time: Some(manager.time.into()) });
}

fn managed_fields(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get("managedFields")
}

fn take_managed_fields(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

fn set_managed_fields(object: &mut Value, entries: Option<Value>) {
    let Some(fields) = object.as_object_mut() else { return };
    match (entries, fields.get_mut("metadata").and_then(Value::as_object_mut)) {
        (Some(entries), Some(metadata)) => drop(metadata.insert("managedFields".to_owned(), entries)),
        (Some(entries), None) => drop(fields.insert("metadata".to_owned(), serde_json::json!({"managedFields": entries}))),
        (None, Some(metadata)) => drop(metadata.remove("managedFields")),
        (None, None) => {}
    }
}

/// Removes fields given as dotted paths, such as `status` or `metadata.labels`.
pub fn strip(object: &mut Value, paths: &[&str]) {
    for path in paths {
        let (parents, last) = path.rsplit_once('.').unwrap_or(("", path));
        let parents = parents.split('.').filter(|name| !name.is_empty());
        let container = parents.into_iter().try_fold(&mut *object, |value, name| value.get_mut(name));
        if let Some(fields) = container.and_then(Value::as_object_mut) {
            fields.remove(last);
        }
    }
}

/// Puts back the times of `new`'s managedFields if nothing but they differ from `old`, so that the write is a no-op.
pub fn keep_times(old: &Value, new: &mut Value) {
    let (Some(Value::Array(before)), Some(Value::Array(after))) = (managed_fields(old), managed_fields(new)) else { return };
    let timeless = |entry: &Value| {
        let fields = entry.as_object().into_iter().flatten();
        fields.filter(|(name, _)| *name != "time").map(|(name, value)| (name.clone(), value.clone())).collect::<Vec<_>>()
    };
    if before == after || before.len() != after.len() || !before.iter().map(timeless).eq(after.iter().map(timeless)) {
        return;
    }
    let before = Value::Array(before.clone());
    let after = take_managed_fields(new);
    set_managed_fields(new, Some(before));
    if old != new {
        set_managed_fields(new, after);
    }
}

#[cfg(test)]
mod tests;
