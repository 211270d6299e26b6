//! flowcontrol.apiserver.k8s.io/v1 PriorityLevelConfiguration.

use meta::field::{Error, Path};
use serde_json::{Value, json};

use crate::checks::Errors;
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, has, int, name, set, set_default, sub, text};

pub const PRIORITY_LEVEL: Plain = Plain {
    status_keeps_metadata: true,
    default,
    validate,
    counts_generation: true,
    ..Plain::new(
        ("flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration"),
        &[
            NAME,
            shown("Type", "string", "Whether its requests are limited."),
            shown("NominalConcurrencyShares", "string", "Its part of the server's seats."),
            shown("Queues", "string", "Queues of waiting requests."),
            shown("HandSize", "string", "Queues that one flow may use."),
            shown("QueueLengthLimit", "string", "Requests that may wait in one queue."),
            AGE,
        ],
        |object, now| {
            let number = |path: &str| Value::from(int(object, path).map_or_else(|| "<none>".to_owned(), |number| number.to_string()));
            let queuing = |field: &str| number(&format!("spec.limited.limitResponse.queuing.{field}"));
            vec![
                text(object, "spec.type").into(),
                number("spec.limited.nominalConcurrencyShares"),
                queuing("queues"),
                queuing("handSize"),
                queuing("queueLengthLimit"),
                printing::age(object, now),
            ]
        },
    )
};

fn default(object: &mut Value) {
    let Some(spec) = sub(object, "spec") else { return };
    if text(spec, "type") == "Exempt" {
        set_default(spec, "exempt", json!({}));
        for field in ["nominalConcurrencyShares", "lendablePercent"] {
            set_default(spec, &format!("exempt.{field}"), 0);
        }
        return;
    }
    let Some(limited) = sub(spec, "limited") else { return };
    set_default(limited, "nominalConcurrencyShares", 30);
    set_default(limited, "lendablePercent", 0);
    if let Some(queuing) = sub(limited, "limitResponse.queuing") {
        for (field, number) in [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)] {
            if int(queuing, field).unwrap_or(0) == 0 {
                set(queuing, field, number);
            }
        }
    }
}

fn validate(object: &Value) -> Errors {
    let (path, spec) = (Path::new("spec"), at(object, "spec"));
    let mut errors = Errors::new();
    let kind = text(spec, "type");
    if (name(object) == "exempt") != (kind == "Exempt") {
        let sentence = "type must be 'Exempt' if and only if `name` is 'exempt'";
        errors.push(Error::invalid(&path.child("type"), kind, sentence));
    }
    let (limited, exempt) = (path.child("limited"), path.child("exempt"));
    match kind {
        "Exempt" => {
            if has(spec, "limited") {
                errors.push(Error::forbidden(&limited, "must be nil if the type is not Limited"));
            }
            errors.extend(shares(at(spec, "exempt"), &exempt));
        }
        "Limited" => {
            if has(spec, "exempt") {
                errors.push(Error::forbidden(&exempt, "must be nil if the type is Limited"));
            }
            if has(spec, "limited") {
                errors.extend(limits(at(spec, "limited"), &limited));
            } else {
                errors.push(Error::required(&limited, "must not be empty when type is Limited"));
            }
        }
        other => errors.push(Error::not_supported(&path.child("type"), other, &["Exempt", "Limited"])),
    }
    errors
}

fn shares(object: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if let Some(shares) = int(object, "nominalConcurrencyShares").filter(|shares| *shares < 0) {
        errors.push(Error::invalid(&path.child("nominalConcurrencyShares"), shares, "must be a non-negative integer"));
    }
    if let Some(percent) = int(object, "lendablePercent").filter(|percent| !(0..=100).contains(percent)) {
        errors.push(Error::invalid(&path.child("lendablePercent"), percent, "must be between 0 and 100, inclusive"));
    }
    errors
}

fn limits(limited: &Value, path: &Path) -> Errors {
    let mut errors = shares(limited, path);
    if let Some(percent) = int(limited, "borrowingLimitPercent").filter(|percent| *percent < 0) {
        errors.push(Error::invalid(&path.child("borrowingLimitPercent"), percent, "if specified, must be a non-negative integer"));
    }
    let (response, here) = (at(limited, "limitResponse"), path.child("limitResponse"));
    let queuing = here.child("queuing");
    match text(response, "type") {
        "Reject" if has(response, "queuing") => {
            errors.push(Error::forbidden(&queuing, "must be nil if limited.limitResponse.type is not Limited"));
        }
        "Reject" => {}
        "Queue" if !has(response, "queuing") => {
            errors.push(Error::required(&queuing, "must not be empty if limited.limitResponse.type is Limited"));
        }
        "Queue" => errors.extend(queues(at(response, "queuing"), &queuing)),
        other => errors.push(Error::not_supported(&here.child("type"), other, &["Queue", "Reject"])),
    }
    errors
}

fn queues(queuing: &Value, path: &Path) -> Errors {
    let number = |field: &str| int(queuing, field).unwrap_or(0);
    let (queues, hand, length) = (number("queues"), number("handSize"), number("queueLengthLimit"));
    let mut errors = Errors::new();
    if length <= 0 {
        errors.push(Error::invalid(&path.child("queueLengthLimit"), length, "must be positive"));
    }
    if queues <= 0 {
        errors.push(Error::invalid(&path.child("queues"), queues, "must be positive"));
    } else if queues > 10_000_000 {
        errors.push(Error::invalid(&path.child("queues"), queues, "must not be greater than 10000000"));
    } else if hand <= 0 {
        errors.push(Error::invalid(&path.child("handSize"), hand, "must be positive"));
    } else if hand > queues {
        let sentence = format!("should not be greater than queues ({queues})");
        errors.push(Error::invalid(&path.child("handSize"), hand, sentence));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rules;

    #[test]
    fn levels_are_filled_in_and_broken_ones_explained() {
        let level = |spec: Value| {
            let mut object = json!({"metadata": {"name": "l"}, "spec": spec});
            PRIORITY_LEVEL.default(&mut object);
            object
        };
        let object = level(json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}));
        assert_eq!(object["spec"]["limited"]["limitResponse"]["queuing"], json!({"queues": 64, "handSize": 8, "queueLengthLimit": 50}));
        assert_eq!(PRIORITY_LEVEL.validate(&object), []);
        let cases = [
            (json!({"type": "Limited"}), "spec.limited: Required value: must not be empty when type is Limited"),
            (
                json!({"type": "Limited", "limited": {"limitResponse": {"type": "Reject", "queuing": {}}}}),
                "spec.limited.limitResponse.queuing: Forbidden: must be nil if limited.limitResponse.type is not Limited",
            ),
            (
                json!({"type": "Limited", "limited": {"lendablePercent": 101, "limitResponse": {"type": "Reject"}}}),
                "spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive",
            ),
        ];
        for (spec, expected) in cases {
            let found: Vec<String> = PRIORITY_LEVEL.validate(&level(spec.clone())).iter().map(ToString::to_string).collect();
            assert_eq!(found, [expected], "{spec}");
        }
    }
}
