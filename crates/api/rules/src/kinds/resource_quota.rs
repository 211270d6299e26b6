//! core/v1 ResourceQuota.

use meta::field::{Error, Path};
use meta::{Quantity, names};
use serde_json::{Value, json};

use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, entries, keep, list, set, text};
use crate::{Column, Part, Rules};

pub struct ResourceQuota;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Request", "string", "Used and allowed, of what is requested and counted."),
    shown("Limit", "string", "Used and allowed, of limits."),
    AGE,
];

const SCOPES: [&str; 7] =
    ["BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "PriorityClass", "Terminating", "VolumeAttributesClass"];

impl Rules for ResourceQuota {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "ResourceQuota")
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        keep(new, old, if part == Part::Status { "spec" } else { "status" });
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let path = Path::new("spec");
        let mut errors = Vec::new();
        for (name, amount) in entries(object, "spec.hard") {
            let here = path.child("hard").key(name);
            errors.extend(crate::checks::sentences(&here, name.clone(), names::qualified_name(name)));
            if amount.as_str().and_then(|text| Quantity::parse(text).ok()).is_some_and(|amount| amount.is_negative()) {
                errors.push(Error::invalid(&here, amount.clone(), "must be greater than or equal to 0"));
            }
        }
        for (index, scope) in list(object, "spec.scopes").iter().enumerate() {
            if !scope.as_str().is_some_and(|scope| SCOPES.contains(&scope)) {
                errors.push(Error::invalid(&path.child("scopes").index(index), scope.clone(), "unsupported scope"));
            }
        }
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        let same = part != Part::Main || at(new, "spec.scopes") == at(old, "spec.scopes");
        let path = Path::new("spec").child("scopes");
        if same { Vec::new() } else { vec![Error::invalid(&path, at(new, "spec.scopes").clone(), "field is immutable")] }
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let used = at(object, "status.used");
        let of = |limits: bool| {
            let names = entries(object, "status.hard").filter(|(name, _)| name.starts_with("limits") == limits);
            let used = |name: &str| used.get(name).and_then(Value::as_str).unwrap_or("0");
            let pairs = names.map(|(name, hard)| format!("{name}: {}/{}", used(name), hard.as_str().unwrap_or_default()));
            Value::from(pairs.collect::<Vec<_>>().join(", "))
        };
        vec![text(object, "metadata.name").into(), of(false), of(true), printing::age(object, now)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_tell_requests_from_limits_and_bad_bounds_are_named() {
        let object = json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "10", "limits.cpu": "2"}, "used": {"pods": "3"}}});
        assert_eq!(ResourceQuota.cells(&object, 0)[1..3], [json!("pods: 3/10"), json!("limits.cpu: 0/2")]);
        let object = json!({"spec": {"hard": {"pods": "-1"}, "scopes": ["Best"]}});
        let found: Vec<String> = ResourceQuota.validate(&object).iter().map(ToString::to_string).collect();
        let expected = [
            "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0",
            "spec.scopes[0]: Invalid value: \"Best\": unsupported scope",
        ];
        assert_eq!(found, expected);
    }
}
