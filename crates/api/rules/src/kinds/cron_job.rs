//! batch/v1 CronJob.

use meta::field::{Error, Path};
use serde_json::{Value, json};

use super::job;
use crate::checks::{nonnegative, one_of};
use crate::printing::{self, AGE, CONTAINERS, IMAGES, NAME, SELECTOR, shown, since};
use crate::value::{at, flag, has, keep, list, set, set_default, set_default_text, sub, text};
use crate::{Column, Part, Rules};

pub struct CronJob;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Schedule", "string", "When it runs."),
    shown("Timezone", "string", "Zone of the schedule."),
    shown("Suspend", "boolean", "Whether it is paused."),
    shown("Active", "integer", "Jobs that run."),
    shown("Last Schedule", "string", "Time since the last job was made."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

impl Rules for CronJob {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("batch", "v1", "CronJob")
    }
    fn default(&self, object: &mut Value) {
        let Some(spec) = sub(object, "spec") else { return };
        set_default_text(spec, "concurrencyPolicy", "Allow");
        set_default(spec, "suspend", false);
        set_default(spec, "successfulJobsHistoryLimit", 3);
        set_default(spec, "failedJobsHistoryLimit", 1);
        if let Some(template) = sub(spec, "jobTemplate.spec") {
            job::spec_defaults(template);
        }
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        keep(new, old, if part == Part::Status { "spec" } else { "status" });
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = Vec::new();
        let schedule = text(spec, "schedule");
        match schedule {
            "" => errors.push(Error::required(&path.child("schedule"), "")),
            given if !is_schedule(given) => {
                errors.push(Error::invalid(
                    &path.child("schedule"),
                    given,
                    format!("expected exactly 5 fields, found {}: [{given}]", given.split_whitespace().count()),
                ));
            }
            _ => {}
        }
        errors.extend(one_of(spec, &path, "concurrencyPolicy", &["Allow", "Forbid", "Replace"]));
        for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            errors.extend(nonnegative(spec, &path, field));
        }
        errors.extend(job::validate_spec(at(spec, "jobTemplate.spec"), &path.child("jobTemplate").child("spec")));
        errors
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let [containers, images] = printing::containers_and_images(at(object, "spec.jobTemplate.spec.template"));
        let last = if has(object, "status.lastScheduleTime") { since(at(object, "status.lastScheduleTime"), now) } else { "<none>".into() };
        vec![
            printing::name(object),
            text(object, "spec.schedule").into(),
            printing::or_none(object, "spec.timeZone"),
            if flag(object, "spec.suspend") { "True" } else { "False" }.into(),
            list(object, "status.active").len().into(),
            last.into(),
            printing::age(object, now),
            containers,
            images,
            printing::selector(at(object, "spec.jobTemplate.spec.selector")),
        ]
    }
    /// The controller appends eleven characters to name its jobs.
    fn validate_name(&self, name: &str) -> Vec<String> {
        let mut complaints = meta::names::dns1123_subdomain(name);
        if name.len() > 52 {
            complaints.push("must be no more than 52 characters".into());
        }
        complaints
    }
}

/// Five fields of cron's characters, or one of its words.
fn is_schedule(text: &str) -> bool {
    let words = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    let fields: Vec<&str> = text.split_whitespace().collect();
    words.contains(&text)
        || text.strip_prefix("@every ").is_some_and(|every| meta::time::parse_duration(every).is_some())
        || fields.len() == 5 && fields.iter().all(|field| field.chars().all(|c| c.is_ascii_alphanumeric() || "*/,-?".contains(c)))
}
