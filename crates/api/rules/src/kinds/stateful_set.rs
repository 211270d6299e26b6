//! apps/v1 StatefulSet.

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::{nonnegative, one_of};
use crate::printing::{self, AGE, CONTAINERS, IMAGES, NAME, shown};
use crate::value::{self, at, int, items_mut, keep, set, set_default, set_default_text, sub, text};
use crate::{Column, Part, Rules, pod_spec, template};

pub struct StatefulSet;

const COLUMNS: &[Column] = &[NAME, shown("Ready", "string", "Ready pods of those wanted."), AGE, CONTAINERS, IMAGES];

impl Rules for StatefulSet {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("apps", "v1", "StatefulSet")
    }
    fn default(&self, object: &mut Value) {
        let Some(spec) = sub(object, "spec") else { return };
        set_default(spec, "replicas", 1);
        set_default(spec, "revisionHistoryLimit", 10);
        set_default_text(spec, "podManagementPolicy", "OrderedReady");
        set_default_text(spec, "updateStrategy.type", "RollingUpdate");
        if text(spec, "updateStrategy.type") == "RollingUpdate" {
            set_default(spec, "updateStrategy.rollingUpdate.partition", 0);
        }
        for field in ["whenDeleted", "whenScaled"] {
            set_default_text(spec, &format!("persistentVolumeClaimRetentionPolicy.{field}"), "Retain");
        }
        if let Some(template) = sub(spec, "template") {
            pod_spec::defaults::template(template);
        }
        for claim in items_mut(spec, "volumeClaimTemplates") {
            set(claim, "apiVersion", "v1");
            set(claim, "kind", "PersistentVolumeClaim");
            set_default_text(claim, "spec.volumeMode", "Filesystem");
            set_default_text(claim, "status.phase", "Pending");
        }
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"replicas": 0, "availableReplicas": 0}));
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        keep(new, old, if part == Part::Status { "spec" } else { "status" });
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = template::validate(object, "statefulset");
        for field in ["minReadySeconds", "revisionHistoryLimit"] {
            errors.extend(nonnegative(spec, &path, field));
        }
        errors.extend(one_of(spec, &path, "podManagementPolicy", &["OrderedReady", "Parallel"]));
        errors.extend(one_of(at(spec, "updateStrategy"), &path.child("updateStrategy"), "type", &["RollingUpdate", "OnDelete"]));
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        if part != Part::Main {
            return Vec::new();
        }
        let mut munged = at(new, "spec").clone();
        for field in CHANGEABLE {
            keep(&mut munged, at(old, "spec"), field);
        }
        if value::same(&munged, at(old, "spec")) {
            return Vec::new();
        }
        let sentence = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
                        'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        vec![Error::forbidden(&Path::new("spec"), sentence)]
    }
    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        pod_spec::warnings(at(object, "spec.template.spec"), &template::spec_path())
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let count = |path: &str| int(object, path).unwrap_or(0);
        let [containers, images] = printing::containers_and_images(at(object, "spec.template"));
        vec![
            printing::name(object),
            format!("{}/{}", count("status.readyReplicas"), count("spec.replicas")).into(),
            printing::age(object, now),
            containers,
            images,
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

const CHANGEABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_fields_of_a_stateful_set_may_change() {
        let mut old = json!({"spec": {"serviceName": "a", "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        StatefulSet.default(&mut old);
        assert_eq!(StatefulSet.validate(&old), []);
        let mut new = old.clone();
        new["spec"]["replicas"] = 3.into();
        assert_eq!(StatefulSet.validate_update(&new, &old, Part::Main), []);
        new["spec"]["serviceName"] = "b".into();
        assert_eq!(StatefulSet.validate_update(&new, &old, Part::Main).len(), 1);
        assert_eq!(StatefulSet.cells(&new, 0)[1], "0/3");
    }
}
