//! The task that follows the CRDs: which names they get, what they serve, what becomes of them.
//!
//! Observe all CRDs, plan the status of each, serve what is established, then write: a client that reads `Established` is served at once.
//! Source: apiextensions-apiserver `pkg/controller/status`, `establish`, `finalizer`, `nonstructuralschema`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use meta::Status;
use serde_json::{Value, json};
use sha2::Digest;
use structural::definition;

use super::kind;
use crate::Inner;
use crate::cache::Changes;
use crate::context::Context;
use crate::object::{Object, meta, metadata_mut};
use crate::registry::catalog::{self, Kind};
use crate::registry::{Target, deletion};
use crate::selection::Selection;

const GROUP: &str = "apiextensions.k8s.io";
/// How soon a deletion that waits is looked at again.
const AGAIN: Duration = Duration::from_secs(1);
const PLURAL: &str = "customresourcedefinitions";
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// What was made of a CRD, to be kept while it does not change.
struct Made {
    /// Of what decides about the kinds.
    digest: [u8; 32],
    kinds: Vec<Arc<Kind>>,
}

/// Runs until the server stops.
pub async fn run(server: Arc<Inner>) {
    let mut backoff = stdx::Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut made: HashMap<String, Made> = HashMap::new();
    while !server.registry.caches.wait_loaded(Duration::from_secs(3_600)).await {}
    loop {
        let Some(mut changes) = Changes::of(&server.registry.caches, &[(GROUP, PLURAL)]) else { return };
        loop {
            // Objects that others hold by their finalizers are looked at again.
            let again = match step(&server, &mut made).await {
                Ok(false) => None,
                Ok(true) => Some(AGAIN),
                Err(status) => {
                    tracing::warn!(%status, "custom resource definitions");
                    Some(backoff.next_wait())
                }
            };
            let open = match again {
                Some(wait) => tokio::time::timeout(wait, changes.next()).await.unwrap_or(true),
                None => changes.next().await,
            };
            if !open {
                break;
            }
        }
        if server.drain.is_stopping() {
            return;
        }
    }
}

fn all(server: &Inner) -> Vec<Arc<Object>> {
    let Some(kind) = catalog::stored(GROUP, PLURAL) else { return Vec::new() };
    let selection = Selection::all(kind.prefix(""), kind.storage.rules.clone());
    let cache = server.registry.caches.of(kind.storage.prefix.as_bytes());
    cache.list(&selection.prefix, b"", 0, &selection, 0).objects
}

/// The names that a CRD has.
struct Names {
    uid: String,
    group: String,
    accepted: Value,
}

impl Names {
    fn of(crd: &Value) -> Self {
        let group = crd["spec"]["group"].as_str().unwrap_or_default().to_owned();
        Self { uid: meta(crd, "uid").to_owned(), group, accepted: crd["status"]["acceptedNames"].clone() }
    }
}

/// `true`: a deletion waits for others. One CRD is decoded at a time: as a tree it has many times the size of its text.
async fn step(server: &Inner, made: &mut HashMap<String, Made>) -> Result<bool, Status> {
    let crds = all(server);
    let names: Vec<Names> = crds.iter().map(|object| Names::of(&object.value())).collect();
    let (mut changed, mut served, mut going) = (Vec::new(), Vec::new(), Vec::new());
    let mut anew = false;
    for object in &crds {
        let before = object.value();
        let after = plan(&before, &names);
        if established(&after) {
            served.push(meta(&after, "uid").to_owned());
            anew |= make(server, &after, made);
        }
        let ends = after["metadata"]["deletionTimestamp"].is_string() && finalizers(&after).any(|finalizer| finalizer == FINALIZER);
        if before["status"] != after["status"] {
            changed.push(after.clone());
        }
        if ends {
            going.push(after);
        }
    }
    serve(server, anew, &served, made);
    for after in &changed {
        write(server, after).await?;
    }
    let mut waits = false;
    for after in &going {
        waits |= !clean(server, after).await?;
    }
    Ok(waits)
}

fn finalizers(crd: &Value) -> impl Iterator<Item = &str> {
    crd["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn established(crd: &Value) -> bool {
    definition::condition(crd, "Established") == Some("True")
}

/// The CRD with the status it ought to have.
fn plan(crd: &Value, all: &[Names]) -> Value {
    let mut wanted = crd.clone();
    let names = &crd["spec"]["names"];
    let taken = conflict(crd, all);
    let accepted = match &taken {
        None => names.clone(),
        Some(_) => crd["status"]["acceptedNames"].clone(),
    };
    if taken.is_none() {
        wanted["status"]["acceptedNames"] = accepted;
    }
    let (status, reason, message) = match &taken {
        None => ("True", "NoConflicts", "no conflicts found".to_owned()),
        Some((reason, message)) => ("False", *reason, message.clone()),
    };
    set(&mut wanted, "NamesAccepted", status, reason, &message);
    if taken.is_none() {
        if !established(crd) {
            set(&mut wanted, "Established", "True", "InitialNamesAccepted", "the initial names have been accepted");
        }
    } else if definition::condition(crd, "Established").is_none() {
        set(&mut wanted, "Established", "False", "NotAccepted", "not all names are accepted");
    }
    if crd["metadata"]["deletionTimestamp"].is_string() {
        let what = "CustomResource deletion is in progress";
        set(&mut wanted, "Terminating", "True", "InstanceDeletionInProgress", what);
    }
    approve(&mut wanted);
    wanted
}

/// Groups of the Kubernetes community say where they were approved (KEP-1111).
fn approve(crd: &mut Value) {
    const KIND: &str = "KubernetesAPIApprovalPolicyConformant";
    let group = crd["spec"]["group"].as_str().unwrap_or_default();
    if !definition::is_protected(group) {
        return;
    }
    let given = crd["metadata"]["annotations"][definition::APPROVED].as_str().unwrap_or_default().to_owned();
    match given.starts_with("unapproved") {
        true => set(crd, KIND, "False", "UnapprovedAnnotation", &format!("not approved: {given:?}")),
        false => set(crd, KIND, "True", "ApprovedAnnotation", &format!("approved in {given}")),
    }
}

/// What the deletion of a CRD begins with: its objects hold it.
pub fn begin_deletion(crd: &mut Value) {
    let mut list: Vec<Value> = crd["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !list.iter().any(|finalizer| finalizer == FINALIZER) {
        list.push(FINALIZER.into());
    }
    metadata_mut(crd).insert("finalizers".into(), list.into());
    let what = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    set(crd, "Terminating", "True", "InstanceDeletionPending", what);
}

/// Why the names cannot be had: an older CRD of the group, or a built-in kind, has them.
fn conflict(crd: &Value, all: &[Names]) -> Option<(&'static str, String)> {
    let group = crd["spec"]["group"].as_str().unwrap_or_default();
    let mut resources: Vec<String> = Vec::new();
    let mut kinds: Vec<String> = Vec::new();
    for other in all {
        if other.uid == meta(crd, "uid") || other.group != group {
            continue;
        }
        let accepted = &other.accepted;
        let text = |name: &str| accepted[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        resources.extend(text("plural"));
        resources.extend(text("singular"));
        resources.extend(accepted["shortNames"].as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)));
        kinds.extend(text("kind"));
        kinds.extend(text("listKind"));
    }
    for facts in schema::resources::all().iter().filter(|facts| facts.group == group && facts.served) {
        resources.extend([facts.plural.to_owned(), facts.singular.to_owned()]);
        kinds.push(facts.kind.to_owned());
    }
    let names = &crd["spec"]["names"];
    let text = |name: &str| names[name].as_str().unwrap_or_default();
    let used = |word: &str| format!("{word:?} is already in use");
    let taken = |list: &[String], word: &str| !word.is_empty() && list.iter().any(|known| known == word);
    if taken(&resources, text("plural")) {
        return Some(("PluralConflict", used(text("plural"))));
    }
    if taken(&resources, text("singular")) {
        return Some(("SingularConflict", used(text("singular"))));
    }
    let short: Vec<&str> = names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let clashes: Vec<String> = short.into_iter().filter(|name| taken(&resources, name)).map(used).collect();
    if !clashes.is_empty() {
        let list = if clashes.len() == 1 { clashes.concat() } else { format!("[{}]", clashes.join(", ")) };
        return Some(("ShortNamesConflict", list));
    }
    if taken(&kinds, text("kind")) {
        return Some(("KindConflict", used(text("kind"))));
    }
    taken(&kinds, text("listKind")).then(|| ("ListKindConflict", used(text("listKind"))))
}

/// Sets a condition; its time is that of its last change.
fn set(crd: &mut Value, kind: &str, status: &str, reason: &str, message: &str) {
    let mut conditions: Vec<Value> = crd["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter_mut().find(|condition| condition["type"] == kind);
    let wanted = |time: Value| json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": time});
    match found {
        Some(condition) => {
            if condition["status"] != status {
                *condition = wanted(meta::time::now().into());
            } else if condition["reason"] != reason || condition["message"] != message {
                *condition = wanted(condition["lastTransitionTime"].clone());
            }
        }
        None => conditions.push(wanted(meta::time::now().into())),
    }
    crd["status"]["conditions"] = conditions.into();
}

fn digest(crd: &Value) -> [u8; 32] {
    let deleted = crd["metadata"]["deletionTimestamp"].is_string();
    let mut hash = sha2::Sha256::new();
    hash.update(crd["spec"].to_string());
    hash.update(crd["status"]["acceptedNames"].to_string());
    hash.update([u8::from(deleted)]);
    hash.finalize().into()
}

/// The kinds of an established CRD; `false` where they are made already.
fn make(server: &Inner, crd: &Value, made: &mut HashMap<String, Made>) -> bool {
    let (uid, digest) = (meta(crd, "uid"), digest(crd));
    if made.get(uid).is_some_and(|made| made.digest == digest) {
        return false;
    }
    let kinds = kind::of_crd(crd, server.registry.store.revision());
    let lookup: Arc<dyn admission::Lookup> = server.registry.reader.clone();
    for kind in &kinds {
        if let Some(form) = &kind.custom {
            form.strategy.resolve_with(&lookup);
        }
    }
    made.insert(uid.to_owned(), Made { digest, kinds });
    true
}

/// Replaces what is served by what the established CRDs say. Kinds of CRDs that did not change stay the same.
fn serve(server: &Inner, anew: bool, established: &[String], made: &mut HashMap<String, Made>) {
    let before = made.len();
    made.retain(|uid, _| established.contains(uid));
    if anew || made.len() != before {
        server.registry.custom.replace(made.values().flat_map(|made| made.kinds.iter().cloned()).collect());
    }
}

/// Writes the status over the newest state.
async fn write(server: &Inner, wanted: &Value) -> Result<(), Status> {
    let Some(kind) = catalog::stored(GROUP, PLURAL) else { return Ok(()) };
    let target = Target { kind, namespace: "", name: meta(wanted, "name") };
    let outcome = server.registry.modify(target, false, |crd| {
        if meta(crd, "uid") != meta(wanted, "uid") || meta(crd, "resourceVersion") != meta(wanted, "resourceVersion") {
            // It changed meanwhile: the change wakes this task again.
            return Ok(());
        }
        crd["status"]["acceptedNames"] = wanted["status"]["acceptedNames"].clone();
        crd["status"]["conditions"] = wanted["status"]["conditions"].clone();
        Ok(())
    });
    match outcome.await {
        Err(status) if !status.is("NotFound") => Err(status),
        _ => Ok(()),
    }
}

/// A CRD in deletion: its objects go first, then its finalizer. `false` while others hold objects.
async fn clean(server: &Inner, crd: &Value) -> Result<bool, Status> {
    let plural = crd["spec"]["names"]["plural"].as_str().unwrap_or_default();
    let group = crd["spec"]["group"].as_str().unwrap_or_default();
    let mut left = 0;
    if established(crd)
        && let Some(kind) = server.registry.custom.stored(group, plural)
    {
        let user = auth::UserInfo::authenticated("system:apiserver", &["system:masters"]);
        let context = Context::new(crate::request::RequestInfo::default(), crate::request::Query::default(), http::HeaderMap::new(), user);
        let options = deletion::Options { admitted: true, ..deletion::Options::default() };
        let selection = Selection::all(kind.prefix(""), kind.storage.rules.clone());
        server.registry.caches.reach(server.registry.store.revision(), Duration::from_secs(5)).await;
        let cache = server.registry.caches.of(kind.storage.prefix.as_bytes());
        let page = cache.list(&selection.prefix, b"", 0, &selection, 0);
        for object in &page.objects {
            let target = Target { kind: &kind, namespace: object.namespace(), name: object.name() };
            match server.registry.delete(&context, target, &options).await {
                Ok(deletion::Deleted::Pending(_)) => left += 1,
                Ok(_) => {}
                Err(status) if status.is("NotFound") => {}
                Err(status) => return Err(status),
            }
        }
    }
    if left > 0 {
        return Ok(false);
    }
    let Some(kind) = catalog::stored(GROUP, PLURAL) else { return Ok(true) };
    let target = Target { kind, namespace: "", name: meta(crd, "name") };
    server.registry.release(target, FINALIZER).await.map(|()| true)
}
