//! storage.k8s.io/v1 StorageClass.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, immutable, one_of, sentences};
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{annotation, at, flag, set_default_text, text};
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
        errors.extend(one_of(object, &path, "reclaimPolicy", &["Delete", "Retain"]));
        errors.extend(one_of(object, &path, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]));
        errors
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
