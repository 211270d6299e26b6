//! batch/v1 Job. The policies of its spec are checked in [`policies`].

mod policies;

use meta::LabelSelector;
use meta::field::{Error, Path};
use meta::{names, time};
use serde_json::{Value, json};

use crate::checks::{Errors, any, immutable, label_selector, nonnegative, sentences, supported};
use crate::pod_spec::{self, defaults};
use crate::printing::{self, AGE, NAME, SELECTOR, shown};
use crate::template::{self, POD_COLUMNS};
use crate::value::{self, at, flag, has, int, items_mut, keep, list, set, set_default, set_default_text, sub, text};
use crate::{Column, Part, Rules};

pub struct Job;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Status", "string", "Whether it runs, is done or has failed."),
    shown("Completions", "string", "Pods that succeeded of those wanted."),
    shown("Duration", "string", "How long it ran."),
    AGE,
    POD_COLUMNS[0],
    POD_COLUMNS[1],
    SELECTOR,
];

/// The labels of a job's pods: with the domain, and as they were before.
const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

/// The bound for an indexed job's parallelism, and above which its other counts are bounded.
const INDEXED_MAX: i64 = 100_000;
const HIGH_COMPLETIONS_MAX: i64 = 10_000;

impl Rules for Job {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("batch", "v1", "Job")
    }
    fn default(&self, object: &mut Value) {
        label_as_pods(object);
        let Some(spec) = sub(object, "spec") else { return };
        if !has(spec, "completions") && !has(spec, "parallelism") {
            set(spec, "completions", 1);
        }
        set_default(spec, "parallelism", 1);
        set_default(spec, "backoffLimit", if has(spec, "backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 });
        set_default_text(spec, "completionMode", "NonIndexed");
        set_default(spec, "suspend", false);
        set_default(spec, "manualSelector", false);
        let policy = if has(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        set_default_text(spec, "podReplacementPolicy", policy);
        default_template(spec);
    }
    /// The pods of a job are told from others by the job's uid, unless the client brings a selector of its own.
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
        if flag(object, "spec.manualSelector") {
            return;
        }
        let (name, uid) = (value::name(object).to_owned(), text(object, "metadata.uid").to_owned());
        if let Some(labels) = value::object_at(object, "spec.template.metadata.labels") {
            let wanted = UID_LABELS.map(|label| (label, &uid)).into_iter().chain(NAME_LABELS.map(|label| (label, &name)));
            for (label, value) in wanted {
                labels.entry(label).or_insert_with(|| value.clone().into());
            }
        }
        if let Some(selector) = value::object_at(object, "spec.selector.matchLabels") {
            selector.entry(UID_LABELS[0]).or_insert_with(|| uid.into());
        }
        label_as_pods(object);
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = generated_selector(object);
        errors.extend(validate_spec(spec, &path));
        let selector = at(spec, "selector");
        if selector.is_null() {
            errors.push(Error::required(&path.child("selector"), ""));
        } else {
            errors.extend(label_selector(selector, &path.child("selector")));
        }
        let labels = at(spec, "template.metadata.labels");
        if LabelSelector::from_object(selector).is_ok_and(|selector| !selector.matches_object(labels)) {
            errors.push(template::does_not_match(labels, &path.child("template")));
        }
        errors.extend(pod_host_name(object));
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        match part {
            Part::Main => update(new, old),
            Part::Status => policies::status(new, old),
            Part::Subresource(_) => Vec::new(),
        }
    }
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        if old.is_none() {
            let complaints = names::dns1123_label(value::name(object));
            if !complaints.is_empty() {
                let sentence =
                    "this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended";
                found.push(format!("metadata.name: {sentence}: [{}]", complaints.join(" ")));
            }
        }
        let (completions, parallel) = (int(object, "spec.completions").unwrap_or(0), int(object, "spec.parallelism").unwrap_or(0));
        let indexed = text(object, "spec.completionMode") == "Indexed";
        if indexed && completions > INDEXED_MAX && parallel > HIGH_COMPLETIONS_MAX {
            let sentence = "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes \
                            might not be able to track completedIndexes when a big number of indexes fail";
            found.push(format!("spec.completions: {sentence}"));
        }
        found.extend(template::warnings(object, old));
        found
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
        let [containers, images] = template::cells(at(object, "spec.template"));
        vec![
            printing::name(object),
            status(object).into(),
            completions(object).into(),
            duration(object, now).into(),
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

/// A job without labels has those of its pods.
fn label_as_pods(object: &mut Value) {
    let labels = at(object, "spec.template.metadata.labels");
    if any(labels) && !any(at(object, "metadata.labels")) {
        let labels = labels.clone();
        set(object, "metadata.labels", labels);
    }
}

/// Defaults of the pods, alone in a CronJob's template: the counts are filled in when the job is made.
pub fn default_template(spec: &mut Value) {
    template::default(spec);
    for rule in items_mut(spec, "podFailurePolicy.rules") {
        for pattern in items_mut(rule, "onPodConditions") {
            set_default_text(pattern, "status", "True");
        }
    }
    if let Some(found) = sub(spec, "template") {
        defaults::template(found);
    }
}

/// A job's spec, alone or in a CronJob: everything but its selector.
pub fn validate_spec(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let counts = ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished", "backoffLimitPerIndex"];
    for field in counts.into_iter().chain(["maxFailedIndexes"]) {
        errors.extend(nonnegative(spec, path, field));
    }
    if has(spec, "maxFailedIndexes") && !has(spec, "backoffLimitPerIndex") {
        errors.push(Error::required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"));
    }
    if let Some(manager) = at(spec, "managedBy").as_str() {
        let here = path.child("managedBy");
        match manager {
            "" => errors.push(Error::required(&here, "")),
            _ => errors.extend(sentences(&here, manager, names::domain_prefixed_path(manager))),
        }
        if manager.len() > 63 {
            errors.push(Error::too_long(&here, 63));
        }
    }
    errors.extend(supported(spec, path, "completionMode", &["NonIndexed", "Indexed"]));
    errors.extend(indexes(spec, path));
    errors.extend(policies::failure(spec, &path.child("podFailurePolicy")));
    errors.extend(policies::success(spec, &path.child("successPolicy")));
    errors.extend(policies::replacement(spec, &path.child("podReplacementPolicy")));
    errors.extend(pod_spec::validate_template(at(spec, "template"), &path.child("template")));
    errors.extend(restart_policy(spec, &path.dotted("template.spec.restartPolicy")));
    errors
}

fn restart_policy(spec: &Value, path: &Path) -> Errors {
    let restart = text(spec, "template.spec.restartPolicy");
    let mut errors = match restart {
        "" | "Always" => vec![Error::required(path, "valid values: \"OnFailure\", \"Never\"")],
        "OnFailure" | "Never" => Errors::new(),
        other => vec![Error::not_supported(path, other, &["OnFailure", "Never"])],
    };
    if has(spec, "podFailurePolicy") && restart != "Never" {
        errors.push(Error::invalid(path, restart, "only \"Never\" is supported when podFailurePolicy is specified"));
    }
    errors
}

/// Counts of indexed jobs, and what only these may have.
fn indexes(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let (completions, failed) = (int(spec, "completions"), int(spec, "maxFailedIndexes"));
    let (parallel, per_index) = (int(spec, "parallelism").unwrap_or(0), int(spec, "backoffLimitPerIndex"));
    let mut invalid = |field: &str, number: i64, sentence: String| errors.push(Error::invalid(&path.child(field), number, sentence));
    if text(spec, "completionMode") != "Indexed" {
        for (field, number) in [("backoffLimitPerIndex", per_index), ("maxFailedIndexes", failed)] {
            if let Some(number) = number {
                invalid(field, number, "requires indexed completion mode".into());
            }
        }
        return errors;
    }
    if parallel > INDEXED_MAX {
        invalid("parallelism", parallel, format!("must be less than or equal to {INDEXED_MAX} when completion mode is Indexed"));
    }
    if let Some(failed) = failed {
        if completions.is_some_and(|completions| failed > completions) {
            invalid("maxFailedIndexes", failed, "must be less than or equal to completions".into());
        }
        if failed > INDEXED_MAX {
            invalid("maxFailedIndexes", failed, format!("must be less than or equal to {INDEXED_MAX}"));
        }
    }
    let high = completions.is_some_and(|completions| completions > INDEXED_MAX) && per_index.is_some();
    let sentence = format!(
        "must be less than or equal to {HIGH_COMPLETIONS_MAX} when completions are above {INDEXED_MAX} and used with backoff limit per index"
    );
    for (field, number) in [("parallelism", Some(parallel)), ("maxFailedIndexes", failed)] {
        if let Some(number) = number.filter(|number| high && *number > HIGH_COMPLETIONS_MAX) {
            invalid(field, number, sentence.clone());
        }
    }
    if completions.is_none() {
        errors.push(Error::required(&path.child("completions"), "when completion mode is Indexed"));
    }
    if high && failed.is_none() {
        let sentence = format!("must be specified when completions is above {INDEXED_MAX}");
        errors.push(Error::required(&path.child("maxFailedIndexes"), sentence));
    }
    errors
}

/// What the server generates must not have been contradicted by the client.
fn generated_selector(object: &Value) -> Errors {
    if flag(object, "spec.manualSelector") || !has(object, "spec.selector") {
        return Errors::new();
    }
    let (name, uid) = (value::name(object), text(object, "metadata.uid"));
    let mut errors = Errors::new();
    if uid.is_empty() {
        errors.push(Error::required(&Path::new("metadata").child("uid"), ""));
    }
    let labels = at(object, "spec.template.metadata.labels");
    let path = Path::new("spec").dotted("template.metadata.labels");
    let wanted: Vec<(&str, &str)> =
        UID_LABELS.map(|label| (label, uid)).into_iter().chain(NAME_LABELS.map(|label| (label, name))).collect();
    for (label, value) in &wanted {
        match labels.get(*label).and_then(Value::as_str) {
            None => errors.push(Error::required(&path.key(label), format!("must be '{value}'"))),
            Some(found) if found != *value => {
                errors.push(Error::invalid(&path.key(label), labels.clone(), format!("must be '{value}'")));
            }
            Some(_) => {}
        }
    }
    let expected: Value = wanted.into_iter().map(|(label, value)| (label.to_owned(), Value::from(value))).collect();
    let selector = at(object, "spec.selector");
    if LabelSelector::from_object(selector).is_ok_and(|selector| !selector.matches_object(&expected)) {
        errors.push(Error::invalid(&Path::new("spec").child("selector"), selector.clone(), "`selector` not auto-generated"));
    }
    errors
}

/// The index is appended to the job's name to name the pods' hosts.
fn pod_host_name(object: &Value) -> Option<Error> {
    let completions = int(object, "spec.completions").filter(|completions| *completions > 0)?;
    if text(object, "spec.completionMode") != "Indexed" {
        return None;
    }
    let name = value::name(object);
    let longest = format!("{name}-{}", completions - 1);
    let sentence = format!("will not able to create pod with invalid DNS label: {longest}");
    let path = Path::new("metadata").child("name");
    (!names::dns1123_label(&longest).is_empty()).then(|| Error::invalid(&path, name, sentence))
}

fn update(new: &Value, old: &Value) -> Errors {
    let path = Path::new("spec");
    let (after, before) = (at(new, "spec"), at(old, "spec"));
    let same = |field: &str| immutable(&path.child(field), at(after, field), at(before, field));
    let mut errors = Errors::new();
    if text(after, "completionMode") != "Indexed" {
        errors.extend(same("completions"));
    } else if at(after, "completions") != at(before, "completions") && at(after, "completions") != at(after, "parallelism") {
        let sentence = "can only be modified in tandem with spec.parallelism";
        errors.push(Error::invalid(&path.child("completions"), at(after, "completions").clone(), sentence));
    }
    errors.extend(same("selector"));
    errors.extend(template_unchanged(new, old, &path.child("template")));
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        errors.extend(same(field));
    }
    errors
}

/// A suspended job that has no pods may still be told where its pods go (KEP-2926) and what they get.
fn template_unchanged(new: &Value, old: &Value, path: &Path) -> Errors {
    let before = at(old, "spec.template");
    let mut munged = at(new, "spec.template").clone();
    let suspended = flag(old, "spec.suspend") && (!has(old, "status.startTime") || condition(old, "Suspended"));
    if suspended && int(old, "status.active").unwrap_or(0) == 0 {
        for field in ["metadata.annotations", "metadata.labels", "spec.nodeSelector", "spec.tolerations", "spec.schedulingGates"] {
            keep(&mut munged, before, field);
        }
        if has(&munged, "spec.affinity") || has(before, "spec.affinity.nodeAffinity") {
            keep(&mut munged, before, "spec.affinity.nodeAffinity");
        }
        for kind in ["containers", "initContainers"] {
            let old = list(at(before, "spec"), kind);
            items_mut(&mut munged, &format!("spec.{kind}")).zip(old).for_each(|(container, old)| keep(container, old, "resources"));
        }
    }
    if value::same(&munged, before) { Errors::new() } else { immutable(path, at(new, "spec.template"), before) }
}

fn condition(object: &Value, kind: &str) -> bool {
    list(object, "status.conditions").iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
}

fn status(object: &Value) -> &'static str {
    match () {
        () if condition(object, "Complete") => "Complete",
        () if condition(object, "Failed") => "Failed",
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
mod tests;
