//! apps/v1 StatefulSet.

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::{Errors, at_most_hundred_percent, int_or_percent, nonnegative};
use crate::printing::{self, AGE, NAME, shown};
use crate::template::{self, POD_COLUMNS, STATEFUL_SET};
use crate::value::{self, at, has, int, is_zero, items_mut, keep, list, set, set_default, set_default_text, sub, text};
use crate::{Column, Part, Rules};

pub struct StatefulSet;

const COLUMNS: &[Column] = &[NAME, shown("Ready", "string", "Ready pods of those wanted."), AGE, POD_COLUMNS[0], POD_COLUMNS[1]];

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
        template::default(spec);
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
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = policies(spec, &path);
        errors.extend(nonnegative(spec, &path, "replicas"));
        errors.extend(nonnegative(spec, &path, "minReadySeconds"));
        errors.extend(nonnegative(at(spec, "ordinals"), &path.child("ordinals"), "start"));
        if let Some(selector) = template::selector(spec, &STATEFUL_SET, &mut errors) {
            errors.extend(template::validate(&with_claims(spec), &selector, &STATEFUL_SET));
        }
        errors.extend(nonnegative(spec, &path, "revisionHistoryLimit"));
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        if part != Part::Main {
            return status(new, old);
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
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut found = template::warnings(object, old);
        for (index, claim) in list(object, "spec.volumeClaimTemplates").iter().enumerate() {
            let path = Path::new("spec").child("volumeClaimTemplates").index(index).child("spec");
            found.extend(super::persistent_volume_claim::spec_warnings(at(claim, "spec"), &path));
        }
        if int(object, "spec.revisionHistoryLimit").is_some_and(|limit| limit < 0) {
            found.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".into());
        }
        found
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let [containers, images] = template::cells(at(object, "spec.template"));
        vec![printing::name(object), template::ready_cell(object), printing::age(object, now), containers, images]
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

/// The spec with a volume for each claim template: the pods will have them, and their containers mount them.
fn with_claims(spec: &Value) -> Value {
    let claims = list(spec, "volumeClaimTemplates");
    let mut copy = json!({"template": at(spec, "template")});
    if claims.is_empty() {
        return copy;
    }
    let claim_names: Vec<&str> = claims.iter().map(value::name).collect();
    // A claim takes the place of a volume of the same name.
    let mut volumes: Vec<Value> =
        list(spec, "template.spec.volumes").iter().filter(|volume| !claim_names.contains(&text(volume, "name"))).cloned().collect();
    volumes.extend(claim_names.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})));
    set(&mut copy, "template.spec.volumes", volumes);
    copy
}

fn policies(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let here = path.child("podManagementPolicy");
    match text(spec, "podManagementPolicy") {
        "" => errors.push(Error::required(&here, "")),
        "OrderedReady" | "Parallel" => {}
        other => errors.push(Error::invalid(&here, other, "must be 'OrderedReady' or 'Parallel'")),
    }
    let (strategy, here) = (at(spec, "updateStrategy"), path.child("updateStrategy"));
    let (rolling, inner) = (at(strategy, "rollingUpdate"), here.child("rollingUpdate"));
    match text(strategy, "type") {
        "" => errors.push(Error::required(&here, "")),
        "OnDelete" if !rolling.is_null() => {
            errors.push(Error::invalid(&inner, rolling.clone(), "only allowed for updateStrategy 'RollingUpdate'"));
        }
        "OnDelete" => {}
        "RollingUpdate" => errors.extend(rolling_update(rolling, &inner)),
        _ => errors.push(Error::invalid(&here, strategy.clone(), "must be 'RollingUpdate' or 'OnDelete'")),
    }
    let retention = at(spec, "persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"].into_iter().filter(|_| !retention.is_null()) {
        let given = text(retention, field);
        if !matches!(given, "Retain" | "Delete") {
            let here = path.child("persistentVolumeClaimRetentionPolicy").child(field);
            errors.push(Error::not_supported(&here, given, &["Retain", "Delete"]));
        }
    }
    errors
}

fn rolling_update(rolling: &Value, path: &Path) -> Errors {
    let mut errors = nonnegative(rolling, path, "partition");
    if has(rolling, "maxUnavailable") {
        errors.extend(int_or_percent(rolling, path, "maxUnavailable"));
        if is_zero(at(rolling, "maxUnavailable")) {
            errors.push(Error::invalid(&path.child("maxUnavailable"), at(rolling, "maxUnavailable").clone(), "cannot be 0"));
        }
        errors.extend(at_most_hundred_percent(rolling, path, "maxUnavailable"));
    }
    errors
}

fn status(new: &Value, old: &Value) -> Errors {
    let counts = ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
    let mut errors = template::status_counts(new, &counts, "replicas");
    let count = |field: &str| int(at(new, "status"), field).unwrap_or(0);
    if count("availableReplicas") > count("readyReplicas") {
        let here = Path::new("status").child("availableReplicas");
        errors.push(Error::invalid(&here, count("availableReplicas"), "cannot be greater than status.readyReplicas"));
    }
    errors.extend(template::collisions_counted(new, old));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stateful_set(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "s"}, "spec": {"serviceName": "a", "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}}]}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            set(&mut object, &format!("spec.{key}"), value.clone());
        }
        StatefulSet.default(&mut object);
        object
    }

    #[test]
    fn containers_mount_what_the_claim_templates_make() {
        assert_eq!(StatefulSet.validate(&stateful_set(json!({}))), []);
        assert_eq!(StatefulSet.validate(&stateful_set(json!({"volumeClaimTemplates": []}))).len(), 1);
    }

    #[test]
    fn only_some_fields_of_a_stateful_set_may_change() {
        let old = stateful_set(json!({}));
        let mut new = old.clone();
        new["spec"]["replicas"] = 3.into();
        assert_eq!(StatefulSet.validate_update(&new, &old, Part::Main), []);
        new["spec"]["serviceName"] = "b".into();
        assert_eq!(StatefulSet.validate_update(&new, &old, Part::Main).len(), 1);
        assert_eq!(StatefulSet.cells(&new, 0)[1], "0/3");
    }

    #[test]
    fn broken_stateful_sets_are_explained() {
        let cases = [
            (
                json!({"podManagementPolicy": "Sometimes"}),
                "spec.podManagementPolicy: Invalid value: \"Sometimes\": must be 'OrderedReady' or 'Parallel'",
            ),
            (
                json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": {}}}),
                "spec.updateStrategy.rollingUpdate: Invalid value: {}: only allowed for updateStrategy 'RollingUpdate'",
            ),
            (
                json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}}),
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0",
            ),
            (
                json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Keep"}}),
                "spec.persistentVolumeClaimRetentionPolicy.whenDeleted: Unsupported value: \"Keep\": supported values: \"Retain\", \"Delete\"",
            ),
            (json!({"ordinals": {"start": -1}}), "spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0"),
        ];
        for (spec, expected) in cases {
            let found: Vec<String> = StatefulSet.validate(&stateful_set(spec.clone())).iter().map(ToString::to_string).collect();
            assert_eq!(found, [expected], "{spec}");
        }
    }
}
