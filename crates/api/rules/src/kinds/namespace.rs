//! v1 Namespace.

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::sentences;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{has, keep, list, name, set, text};
use crate::{Column, Part, Rules, metadata, value};

pub struct Namespace;

const COLUMNS: &[Column] = &[NAME, shown("Status", "string", "Active or Terminating."), AGE];

/// The finalizer that the namespace controller takes away when the namespace is empty.
const FINALIZER: &str = "kubernetes";

impl Rules for Namespace {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "Namespace")
    }
    fn default(&self, object: &mut Value) {
        label_with_name(object);
    }
    /// A generated name is known only here.
    fn prepare_create(&self, object: &mut Value) {
        label_with_name(object);
        set(object, "status", json!({"phase": "Active"}));
        let finalizers = list(object, "spec.finalizers");
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            let all: Vec<Value> = finalizers.iter().cloned().chain([FINALIZER.into()]).collect();
            set(object, "spec.finalizers", all);
        }
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        match part {
            Part::Main => {
                keep(new, old, "spec.finalizers");
                keep(new, old, "status");
            }
            Part::Status => keep(new, old, "spec"),
            // `finalize` writes spec.finalizers only.
            Part::Subresource(_) => keep(new, old, "status"),
        }
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let path = Path::new("spec").child("finalizers");
        let words = list(object, "spec.finalizers").iter().filter_map(Value::as_str);
        words
            .flat_map(|word| {
                let mut errors = sentences(&path, word, names::qualified_name(word));
                errors.extend(metadata::standard_finalizer(word, &path));
                errors
            })
            .collect()
    }
    fn validate_update(&self, new: &Value, _old: &Value, part: Part) -> Vec<Error> {
        let wanted = if has(new, "metadata.deletionTimestamp") { "Terminating" } else { "Active" };
        let phase = text(new, "status.phase");
        if part != Part::Status || phase == wanted {
            return Vec::new();
        }
        let when = if wanted == "Active" { "empty" } else { "not empty" };
        let sentence = format!("may only be '{wanted}' if `deletionTimestamp` is {when}");
        vec![Error::invalid(&Path::new("status").child("Phase"), phase, sentence)]
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.phase", text(object, "status.phase").to_owned())]
    }
    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.phase"]
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        vec![printing::name(object), text(object, "status.phase").into(), printing::age(object, now)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_label(name)
    }
}

/// Every namespace can be selected by its name.
fn label_with_name(object: &mut Value) {
    let name = name(object).to_owned();
    if name.is_empty() {
        return;
    }
    if let Some(labels) = value::object_at(object, "metadata.labels") {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
    }
}

/// What a delete leaves behind while the namespace is emptied: phase `Terminating`.
pub fn begin_termination(object: &mut Value) {
    set(object, "status.phase", "Terminating");
}

/// Whether the namespace may go: it is being deleted and no finalizer is left.
pub fn is_finished(object: &Value) -> bool {
    has(object, "metadata.deletionTimestamp") && list(object, "spec.finalizers").is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_is_active_labelled_and_has_its_finalizer() {
        let mut object = json!({"metadata": {"name": "a"}});
        Namespace.default(&mut object);
        Namespace.prepare_create(&mut object);
        assert_eq!(
            object,
            json!({"metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}}, "spec": {"finalizers": ["kubernetes"]},
                "status": {"phase": "Active"}})
        );
        let mut update = json!({"metadata": {"name": "a"}, "spec": {}, "status": {"phase": "Terminating"}});
        Namespace.prepare_update(&mut update, &object, Part::Main);
        assert_eq!((&update["spec"], &update["status"]), (&object["spec"], &object["status"]));
        let mut finalized = json!({"spec": {"finalizers": []}, "status": {"phase": "Active"}, "metadata": {"deletionTimestamp": "x"}});
        Namespace.prepare_update(&mut finalized, &object, Part::Subresource("finalize"));
        assert!(is_finished(&finalized) && !is_finished(&object));
    }
}
