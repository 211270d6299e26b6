//! Events: v1 Event and events.k8s.io/v1 Event are one stored object (in v1's form) under two names for its fields.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::Errors;
use crate::printing::{self, shown, since, wide};
use crate::value::{at, has, int, remove, text, text_or};
use crate::{Column, Rules};

/// v1 Event.
pub struct Event;

/// events.k8s.io/v1 Event.
pub struct NewEvent;

const COLUMNS: &[Column] = &[
    shown("Last Seen", "string", "Time since it happened last."),
    shown("Type", "string", "Normal or Warning."),
    shown("Reason", "string", "Short word for machines."),
    shown("Object", "string", "What it is about."),
    wide("Subobject", "string", "Which part of the object."),
    wide("Source", "string", "Component that reports it."),
    shown("Message", "string", "What happened."),
    wide("First Seen", "string", "Time since it happened first."),
    wide("Count", "string", "How often it happened."),
    Column { name: "Name", kind: "string", format: "name", description: "Name of the object.", priority: 1 },
];

/// v1's name and events.k8s.io's name of each field that differs.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Turns the events.k8s.io/v1 form into the v1 form, in which events are stored.
pub fn to_core(object: &mut Value) {
    rename(object, |(core, new)| (new, core));
    crate::value::set(object, "apiVersion", "v1");
}

/// Turns the stored v1 form into the events.k8s.io/v1 form.
pub fn from_core(object: &mut Value) {
    rename(object, |pair| pair);
    crate::value::set(object, "apiVersion", "events.k8s.io/v1");
}

fn rename(object: &mut Value, direction: fn((&'static str, &'static str)) -> (&'static str, &'static str)) {
    for (from, to) in RENAMED.map(direction) {
        if let Some(value) = remove(object, from) {
            crate::value::set(object, to, value);
        }
    }
}

const FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

const NEW_FIELDS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
];

impl Rules for Event {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "Event")
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        validate(object, "involvedObject")
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let value = |field: &str| match field {
            "source" => text_or(object, "source.component", text(object, "reportingComponent")).to_owned(),
            path => text(object, path).to_owned(),
        };
        FIELDS.iter().map(|field| (*field, value(field))).collect()
    }
    fn selectable_field_names(&self) -> &'static [&'static str] {
        FIELDS
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        cells(object, now)
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
    fn create_on_update(&self) -> bool {
        true
    }
}

impl Rules for NewEvent {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("events.k8s.io", "v1", "Event")
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let mut errors = validate(object, "regarding");
        for (field, required) in [("eventTime", "eventTime"), ("reportingController", "reportingController"), ("action", "action")] {
            // Events of the old form that are read and written back in the new one have none of these.
            if text(object, field).is_empty() && !has(object, "deprecatedFirstTimestamp") {
                errors.push(Error::required(&Path::new(required), ""));
            }
        }
        errors
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        NEW_FIELDS.iter().map(|field| (*field, text(object, field).to_owned())).collect()
    }
    fn selectable_field_names(&self) -> &'static [&'static str] {
        NEW_FIELDS
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let mut core = object.clone();
        to_core(&mut core);
        cells(&core, now)
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
    fn create_on_update(&self) -> bool {
        true
    }
}

/// An event lives in the namespace of what it is about; events about cluster-wide objects in `default`.
fn validate(object: &Value, about: &str) -> Errors {
    let (own, theirs) = (text(object, "metadata.namespace"), text(at(object, about), "namespace"));
    let path = Path::new(about).child("namespace");
    match theirs {
        "" if matches!(own, "" | "default" | "kube-system") => Errors::new(),
        theirs if own == theirs => Errors::new(),
        theirs => vec![Error::invalid(&path, theirs, "does not match event.namespace")],
    }
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let first = if text(object, "firstTimestamp").is_empty() { at(object, "eventTime") } else { at(object, "firstTimestamp") };
    let first = since(first, now);
    let mut last = match at(object, "lastTimestamp") {
        Value::Null => first.clone(),
        time => since(time, now),
    };
    let mut count = int(object, "count").unwrap_or(0).max(1);
    if has(object, "series") {
        last = since(at(object, "series.lastObservedTime"), now);
        count = int(object, "series.count").unwrap_or(0);
    }
    let kind = text(object, "involvedObject.kind").to_lowercase();
    let target = match text(object, "involvedObject.name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        last.into(),
        text(object, "type").into(),
        text(object, "reason").into(),
        target.into(),
        text(object, "involvedObject.fieldPath").into(),
        source(object).into(),
        text(object, "message").trim().into(),
        first.into(),
        count.into(),
        printing::name(object),
    ]
}

fn source(object: &Value) -> String {
    let component = text_or(object, "source.component", text(object, "reportingComponent"));
    match text_or(object, "source.host", text(object, "reportingInstance")) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_show_when_what_and_how_often() {
        let object = json!({"metadata": {"name": "p.1", "namespace": "a"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "a"},
            "type": "Normal", "reason": "Pulled", "message": "pulled \n", "count": 3, "source": {"component": "kubelet", "host": "n"},
            "firstTimestamp": "1970-01-01T00:00:00Z", "lastTimestamp": "1970-01-01T00:00:50Z"});
        let expected = [
            json!("10s"),
            json!("Normal"),
            json!("Pulled"),
            json!("pod/p"),
            json!(""),
            json!("kubelet, n"),
            json!("pulled"),
            json!("60s"),
            json!(3),
            json!("p.1"),
        ];
        assert_eq!(Event.cells(&object, 60), expected);
        assert_eq!(Event.validate(&object), []);
        let mut new = object.clone();
        from_core(&mut new);
        assert_eq!(
            (&new["note"], &new["regarding"]["name"], &new["apiVersion"]),
            (&json!("pulled \n"), &json!("p"), &json!("events.k8s.io/v1"))
        );
        assert_eq!(NewEvent.cells(&new, 60), expected);
    }

    #[test]
    fn events_live_with_what_they_are_about() {
        let object = json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}});
        let found: Vec<String> = Event.validate(&object).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"]);
        assert_eq!(Event.validate(&json!({"metadata": {"namespace": "default"}, "involvedObject": {"kind": "Node"}})), []);
    }
}
