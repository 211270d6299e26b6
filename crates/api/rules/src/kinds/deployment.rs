//! apps/v1 Deployment.

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::{Errors, at_most_hundred_percent, int_or_percent, nonnegative};
use crate::printing::{self, AGE, CONTAINERS, IMAGES, NAME, SELECTOR, shown};
use crate::value::{at, has, int, is_zero, keep, set, set_default, set_default_text, sub, text};
use crate::{Column, Part, Rules, template};

pub struct Deployment;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Ready", "string", "Ready pods of those wanted."),
    shown("Up-to-date", "string", "Pods of the newest template."),
    shown("Available", "string", "Pods that have been ready long enough."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

impl Rules for Deployment {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("apps", "v1", "Deployment")
    }
    fn default(&self, object: &mut Value) {
        let Some(spec) = sub(object, "spec") else { return };
        set_default(spec, "replicas", 1);
        set_default(spec, "revisionHistoryLimit", 10);
        set_default(spec, "progressDeadlineSeconds", 600);
        set_default_text(spec, "strategy.type", "RollingUpdate");
        if text(spec, "strategy.type") == "RollingUpdate" {
            set_default(spec, "strategy.rollingUpdate.maxUnavailable", "25%");
            set_default(spec, "strategy.rollingUpdate.maxSurge", "25%");
        }
        template::default(spec);
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        keep(new, old, if part == Part::Status { "spec" } else { "status" });
        if part == Part::Status {
            keep(new, old, "metadata.labels");
        }
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = template::validate_spec(object, &template::DEPLOYMENT);
        errors.extend(strategy(at(spec, "strategy"), &path.child("strategy")));
        for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
            errors.extend(nonnegative(spec, &path, field));
        }
        let (deadline, ready) = (int(spec, "progressDeadlineSeconds"), int(spec, "minReadySeconds").unwrap_or(0));
        if let Some(deadline) = deadline.filter(|deadline| *deadline <= ready) {
            errors.push(Error::invalid(&path.child("progressDeadlineSeconds"), deadline, "must be greater than minReadySeconds"));
        }
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        if part == Part::Main {
            return template::selector_unchanged(new, old);
        }
        let mut errors = template::status_counts(new, &["updatedReplicas", "readyReplicas", "availableReplicas"], "replicas");
        errors.extend(template::available_are_ready(new));
        errors.extend(template::collisions_counted(new, old));
        errors
    }
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        template::warnings(object, old)
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let [containers, images] = template::cells(at(object, "spec.template"));
        vec![
            printing::name(object),
            template::ready_cell(object),
            printing::number(object, "status.updatedReplicas"),
            printing::number(object, "status.availableReplicas"),
            printing::age(object, now),
            containers,
            images,
            template::selector_cell(object),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

fn strategy(strategy: &Value, path: &Path) -> Errors {
    let rolling = path.child("rollingUpdate");
    match text(strategy, "type") {
        "Recreate" if has(strategy, "rollingUpdate") => {
            vec![Error::forbidden(&rolling, "may not be specified when strategy `type` is 'Recreate'")]
        }
        "Recreate" => Errors::new(),
        "RollingUpdate" if !has(strategy, "rollingUpdate") => {
            vec![Error::required(&rolling, "this should be defaulted and never be nil")]
        }
        "RollingUpdate" => rolling_update(at(strategy, "rollingUpdate"), &rolling),
        "" => vec![Error::required(&path.child("type"), "")],
        other => vec![Error::not_supported(&path.child("type"), other, &["Recreate", "RollingUpdate"])],
    }
}

fn rolling_update(rolling: &Value, path: &Path) -> Errors {
    let mut errors = int_or_percent(rolling, path, "maxUnavailable");
    errors.extend(int_or_percent(rolling, path, "maxSurge"));
    if is_zero(at(rolling, "maxUnavailable")) && is_zero(at(rolling, "maxSurge")) {
        let sentence = "may not be 0 when `maxSurge` is 0";
        errors.push(Error::invalid(&path.child("maxUnavailable"), at(rolling, "maxUnavailable").clone(), sentence));
    }
    errors.extend(at_most_hundred_percent(rolling, path, "maxUnavailable"));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            set(&mut object, &format!("spec.{key}"), value.clone());
        }
        Deployment.default(&mut object);
        object
    }

    #[test]
    fn a_bare_deployment_is_filled_in_and_valid() {
        let object = deployment(json!({}));
        assert_eq!(
            object["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!((&object["spec"]["replicas"], &object["spec"]["revisionHistoryLimit"]), (&json!(1), &json!(10)));
        assert_eq!(object["spec"]["template"]["spec"]["restartPolicy"], "Always");
        assert_eq!(Deployment.validate(&object), []);
    }

    #[test]
    fn broken_deployments_are_explained() {
        let cases = [
            (json!({"replicas": -1}), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
            (
                json!({"selector": {"matchLabels": {"app": "db"}}}),
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
            ),
            (
                json!({"selector": null}),
                "spec.selector: Required value; spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match \
                 template `labels`",
            ),
            (json!({"selector": {}}), "spec.selector: Invalid value: {}: empty selector is invalid for deployment"),
            (
                json!({"strategy": {"type": "Recreate", "rollingUpdate": {}}}),
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
            (
                json!({"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}}}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ),
        ];
        for (spec, expected) in cases {
            let found: Vec<String> = Deployment.validate(&deployment(spec.clone())).iter().map(ToString::to_string).collect();
            assert_eq!(found.join("; "), expected, "{spec}");
        }
    }

    #[test]
    fn the_selector_never_changes() {
        let (old, mut new) = (deployment(json!({})), deployment(json!({})));
        new["spec"]["selector"]["matchLabels"]["x"] = "y".into();
        let found: Vec<String> = Deployment.validate_update(&new, &old, Part::Main).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"web\",\"x\":\"y\"}}: field is immutable"]);
    }

    #[test]
    fn rows_count_ready_updated_and_available_pods() {
        let mut object = deployment(json!({"replicas": 3}));
        object["status"] = json!({"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1});
        let cells = Deployment.cells(&object, 0);
        assert_eq!(cells[..4], [json!("web"), json!("2/3"), json!(3), json!(1)]);
        assert_eq!(cells[5..], [json!("c"), json!("i"), json!("app=web")]);
    }
}
