//! Events: one resource in two groups, stored as the core group's.

use serde_json::Value;

/// Core name, `events.k8s.io` name.
const FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

pub fn to_core(object: &mut Value) {
    rename(object, FIELDS.iter().map(|(core, new)| (*new, *core)));
    if let Some(series) = object.get_mut("series").and_then(Value::as_object_mut) {
        series.retain(|name, _| name != "state");
    }
}

pub fn from_core(object: &mut Value) {
    rename(object, FIELDS.iter().copied());
}

fn rename(object: &mut Value, pairs: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(members) = object.as_object_mut() else { return };
    for (from, to) in pairs {
        if let Some(value) = members.remove(from) {
            members.insert(to.into(), value);
        }
    }
}
