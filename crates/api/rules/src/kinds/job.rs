//! batch/v1 Job.

use meta::field::{Error, Path};
use meta::{names, time};
use serde_json::{Value, json};

use crate::checks::{immutable, nonnegative};
use crate::printing::{self, AGE, CONTAINERS, IMAGES, NAME, SELECTOR, shown};
use crate::value::{self, at, flag, has, int, keep, list, set, set_default, set_default_text, sub, text};
use crate::{Column, Part, Rules, pod_spec};

pub struct Job;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Status", "string", "Whether it runs, is done or has failed."),
    shown("Completions", "string", "Pods that succeeded of those wanted."),
    shown("Duration", "string", "How long it ran."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

impl Rules for Job {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("batch", "v1", "Job")
    }
    fn default(&self, object: &mut Value) {
        if let Some(spec) = sub(object, "spec") {
            spec_defaults(spec);
        }
    }
    /// The pods of a job are told from others by the job's uid, unless the client brings a selector of its own.
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
        if flag(object, "spec.manualSelector") || has(object, "spec.selector") {
            return;
        }
        let (name, uid) = (value::name(object).to_owned(), text(object, "metadata.uid").to_owned());
        if let Some(labels) = value::object_at(object, "spec.template.metadata.labels") {
            for prefix in ["", "batch.kubernetes.io/"] {
                labels.insert(format!("{prefix}controller-uid"), uid.clone().into());
                labels.insert(format!("{prefix}job-name"), name.clone().into());
            }
        }
        set(object, "spec.selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        keep(new, old, if part == Part::Status { "spec" } else { "status" });
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        if !has(object, "spec.selector") {
            errors.push(Error::required(&Path::new("spec").child("selector"), ""));
        }
        errors.extend(validate_spec(at(object, "spec"), &Path::new("spec")));
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        if part != Part::Main {
            return Vec::new();
        }
        let path = Path::new("spec");
        let mut errors = Vec::new();
        for field in ["selector", "template", "completionMode"] {
            let dotted = format!("spec.{field}");
            errors.extend(immutable(&path.child(field), at(new, &dotted), at(old, &dotted)));
        }
        if text(new, "spec.completionMode") != "Indexed" {
            errors.extend(immutable(&path.child("completions"), at(new, "spec.completions"), at(old, "spec.completions")));
        }
        errors
    }
    /// The job controller does not act on these: said at once, not found out later.
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        unsupported(at(object, "spec"))
            .filter(|field| old.is_none_or(|old| at(old, "spec").get(field) != at(object, "spec").get(field)))
            .map(|field| format!("spec.{field}: this cluster runs the Job without it"))
            .collect()
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.successful", int(object, "status.succeeded").unwrap_or(0).to_string())]
    }
    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.successful"]
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let [containers, images] = printing::containers_and_images(at(object, "spec.template"));
        vec![
            printing::name(object),
            status(object).into(),
            completions(object).into(),
            duration(object, now).into(),
            printing::age(object, now),
            containers,
            images,
            printing::selector(at(object, "spec.selector")),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

/// The fields of a job's spec that are stored but not acted on.
fn unsupported(spec: &Value) -> impl Iterator<Item = &'static str> {
    ["podFailurePolicy", "successPolicy", "backoffLimitPerIndex", "maxFailedIndexes"].into_iter().filter(|field| has(spec, field))
}

/// Defaults of a job's spec, alone or in a CronJob.
pub fn spec_defaults(spec: &mut Value) {
    if !has(spec, "completions") && !has(spec, "parallelism") {
        set(spec, "completions", 1);
    }
    set_default(spec, "parallelism", 1);
    set_default(spec, "backoffLimit", if has(spec, "backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 });
    set_default_text(spec, "completionMode", "NonIndexed");
    set_default(spec, "suspend", false);
    set_default(spec, "manualSelector", false);
    if !flag(spec, "manualSelector") {
        drop(value::remove(spec, "manualSelector"));
    }
    let policy = if has(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    set_default_text(spec, "podReplacementPolicy", policy);
    if let Some(template) = sub(spec, "template") {
        pod_spec::defaults::template(template);
    }
}

pub fn validate_spec(spec: &Value, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    for field in ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"] {
        errors.extend(nonnegative(spec, path, field));
    }
    let template = path.child("template");
    errors.extend(pod_spec::validate_template(at(spec, "template"), &template));
    let restart = text(spec, "template.spec.restartPolicy");
    if restart == "Always" {
        let here = template.child("spec").child("restartPolicy");
        errors.push(Error::not_supported(&here, restart, &["OnFailure", "Never"]));
    }
    errors
}

fn condition(object: &Value, kind: &str) -> bool {
    list(object, "status.conditions").iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
}

fn status(object: &Value) -> &'static str {
    let cases = [("Complete", "Complete"), ("Failed", "Failed")];
    if let Some((_, word)) = cases.into_iter().find(|(kind, _)| condition(object, kind)) {
        return word;
    }
    match () {
        () if has(object, "metadata.deletionTimestamp") => "Terminating",
        () if condition(object, "Suspended") => "Suspended",
        () if condition(object, "FailureTarget") => "FailureTarget",
        () if condition(object, "SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn completions(object: &Value) -> String {
    let succeeded = int(object, "status.succeeded").unwrap_or(0);
    match (int(object, "spec.completions"), int(object, "spec.parallelism").unwrap_or(0)) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallel) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
        _ => format!("{succeeded}/1"),
    }
}

fn duration(object: &Value, now: i64) -> String {
    let Some(start) = time::epoch(text(object, "status.startTime")) else { return String::new() };
    let end = time::epoch(text(object, "status.completionTime")).unwrap_or(now);
    time::human(end - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_finds_its_pods_by_its_uid_and_never_restarts_forever() {
        let mut object = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i"}]}}}});
        Job.default(&mut object);
        Job.prepare_create(&mut object);
        assert_eq!(Job.validate(&object), []);
        assert_eq!(object["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
        assert_eq!(object["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        assert_eq!((&object["spec"]["completions"], &object["spec"]["backoffLimit"]), (&json!(1), &json!(6)));
        assert_eq!(Job.cells(&object, 0)[1..4], ["Running", "0/1", ""].map(Value::from));
        object["spec"]["template"]["spec"]["restartPolicy"] = "Always".into();
        let found: Vec<String> = Job.validate(&object).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["spec.template.spec.restartPolicy: Unsupported value: \"Always\": supported values: \"OnFailure\", \"Never\""]);
    }
}
