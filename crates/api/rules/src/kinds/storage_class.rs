//! storage.k8s.io/v1 StorageClass.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, immutable, label_name, one_of, sentences, unique};
use crate::pod_spec::warnings::old_node_label;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{annotation, at, flag, list, set_default_text, text};
use crate::{Column, Part, Rules};

pub struct StorageClass;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Provisioner", "string", "Who makes the volumes."),
    shown("ReclaimPolicy", "string", "What becomes of a volume without its claim."),
    shown("VolumeBindingMode", "string", "When a claim gets its volume."),
    shown("AllowVolumeExpansion", "string", "Whether volumes may grow."),
    AGE,
];

impl Rules for StorageClass {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("storage.k8s.io", "v1", "StorageClass")
    }
    fn default(&self, object: &mut Value) {
        set_default_text(object, "reclaimPolicy", "Delete");
        set_default_text(object, "volumeBindingMode", "Immediate");
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let path = Path::root();
        let provisioner = text(object, "provisioner");
        let mut errors = match provisioner {
            "" => vec![Error::required(&path.child("provisioner"), "")],
            given => sentences(&path.child("provisioner"), given, names::qualified_name(&given.to_lowercase())),
        };
        errors.extend(parameters(at(object, "parameters"), &path.child("parameters")));
        if !text(object, "reclaimPolicy").is_empty() {
            errors.extend(one_of(object, &path, "reclaimPolicy", &["Delete", "Retain"]));
        }
        errors.extend(one_of(object, &path, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]));
        errors.extend(topologies(list(object, "allowedTopologies"), &path.child("allowedTopologies")));
        errors
    }
    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        for (index, term) in list(object, "allowedTopologies").iter().enumerate() {
            for (position, expression) in list(term, "matchLabelExpressions").iter().enumerate() {
                let key = text(expression, "key");
                if let Some(sentence) = old_node_label(key) {
                    let path = Path::new("allowedTopologies").index(index).child("matchLabelExpressions").index(position).child("key");
                    found.push(format!("{path}: {key} is {sentence}"));
                }
            }
        }
        found
    }
    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Error> {
        let mut errors = Errors::new();
        for field in ["parameters", "provisioner"] {
            if at(new, field) != at(old, field) {
                let path = Path::new(field);
                errors.push(Error::forbidden(&path, format!("updates to {field} are forbidden.")));
            }
        }
        for field in ["reclaimPolicy", "volumeBindingMode"] {
            errors.extend(immutable(&Path::new(field), at(new, field), at(old, field)));
        }
        errors
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let marked = annotation(object, "storageclass.kubernetes.io/is-default-class") == Some("true");
        let name = text(object, "metadata.name");
        vec![
            if marked { format!("{name} (default)").into() } else { name.into() },
            text(object, "provisioner").into(),
            text(object, "reclaimPolicy").into(),
            text(object, "volumeBindingMode").into(),
            flag(object, "allowVolumeExpansion").into(),
            printing::age(object, now),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

/// What a driver is told: at most 512 pairs of 256 KiB together.
pub fn parameters(parameters: &Value, path: &Path) -> Errors {
    const SIZE_MAX: usize = 256 * 1024;
    let pairs: Vec<(&String, &Value)> = parameters.as_object().into_iter().flatten().collect();
    let size: usize = pairs.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    let empty = pairs.iter().filter(|(key, _)| key.is_empty());
    let mut errors: Errors = empty.map(|(key, _)| Error::invalid(path, (*key).clone(), "field can not be empty.")).collect();
    if pairs.len() > 512 {
        errors.push(Error::too_long(path, 512));
    }
    if size > SIZE_MAX {
        errors.push(Error::too_long(path, SIZE_MAX));
    }
    errors
}

fn topologies(terms: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, term) in terms.iter().enumerate() {
        let here = path.index(index).child("matchLabelExpressions");
        let expressions = list(term, "matchLabelExpressions");
        for (position, expression) in expressions.iter().enumerate() {
            let here = here.index(position);
            let values = list(expression, "values");
            if values.is_empty() {
                errors.push(Error::required(&here.child("values"), ""));
            }
            errors.extend(unique(values.iter().filter_map(Value::as_str), &here.child("values")));
            let key = text(expression, "key");
            errors.extend(label_name(key, &here.child("key")));
            if expressions.iter().take(position).any(|before| text(before, "key") == key) {
                errors.push(Error::duplicate(&here.child("key"), key));
            }
        }
        if terms.iter().take(index).any(|before| before == term) {
            errors.push(Error::duplicate(&here, ""));
        }
    }
    errors
}
