//! coordination.k8s.io/v1beta1 LeaseCandidate: who would hold a Lease (KEP-4355).

use cel::library::semver::Semver;
use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, immutable, required, sentences};
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, text};

const OLDEST: &str = "OldestEmulationVersion";

pub const LEASE_CANDIDATE: Plain = Plain {
    name: names::config_map_key,
    validate: |object| validate(at(object, "spec"), &Path::new("spec")),
    validate_update: |new, old, _| immutable(&Path::new("spec").child("leaseName"), at(new, "spec.leaseName"), at(old, "spec.leaseName")),
    create_on_update: true,
    unconditional_update: false,
    ..Plain::new(
        ("coordination.k8s.io", "v1beta1", "LeaseCandidate"),
        &[
            NAME,
            shown("LeaseName", "string", "Lease that it would hold."),
            shown("BinaryVersion", "string", "Version of its binary."),
            shown("EmulationVersion", "string", "Version that it behaves as."),
            AGE,
        ],
        |object, now| {
            let words = ["spec.leaseName", "spec.binaryVersion", "spec.emulationVersion"];
            let mut cells: Vec<Value> = words.iter().map(|field| text(object, field).into()).collect();
            cells.push(printing::age(object, now));
            cells
        },
    )
};

fn validate(spec: &Value, path: &Path) -> Errors {
    let mut errors = required(spec, path, "leaseName");
    let (emulated, wrong) = version(spec, path, "emulationVersion");
    errors.extend(wrong);
    errors.extend(required(spec, path, "binaryVersion"));
    let (binary, wrong) = version(spec, path, "binaryVersion");
    errors.extend(wrong);
    if let (Some(binary), Some(emulated)) = (&binary, &emulated)
        && binary.compare(emulated).is_lt()
    {
        let here = path.child("binaryVersion");
        errors.push(Error::invalid(&here, text(spec, "binaryVersion"), "must be greater than or equal to `emulationVersion`"));
    }
    let here = path.child("strategy");
    match text(spec, "strategy") {
        "" => errors.push(Error::required(&here, "")),
        strategy => {
            if strategy == OLDEST && emulated.is_none() {
                let sentence = "must be specified when `strategy` is 'OldestEmulationVersion'";
                errors.push(Error::required(&path.child("emulationVersion"), sentence));
            }
            errors.extend(known_strategy(strategy, &here));
        }
    }
    errors
}

fn version(spec: &Value, path: &Path, field: &str) -> (Option<Semver>, Errors) {
    match text(spec, field) {
        "" => (None, Errors::new()),
        given => match Semver::parse(given, false) {
            None => (None, vec![Error::invalid(&path.child(field), given, "must be a valid semantic version")]),
            version => (version, Errors::new()),
        },
    }
}

/// Upstream's own, or one in somebody's domain. Of a Lease too.
pub fn known_strategy(strategy: &str, path: &Path) -> Errors {
    // Upstream names the field twice.
    let path = path.child("strategy");
    match strategy.contains('/') {
        false if strategy != OLDEST => vec![Error::not_supported(&path, strategy, &[OLDEST])],
        false => Errors::new(),
        true => sentences(&path, strategy, names::qualified_name(strategy)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rules;
    use serde_json::json;

    #[test]
    fn versions_and_strategies_have_their_form() {
        for (spec, expected) in [
            (json!({"leaseName": "l", "binaryVersion": "1.37.0", "emulationVersion": "1.36.0", "strategy": OLDEST}), vec![]),
            (json!({}), vec!["spec.leaseName: Required value", "spec.binaryVersion: Required value", "spec.strategy: Required value"]),
            (
                json!({"leaseName": "l", "binaryVersion": "1.35.0", "emulationVersion": "1.36.0", "strategy": OLDEST}),
                vec!["spec.binaryVersion: Invalid value: \"1.35.0\": must be greater than or equal to `emulationVersion`"],
            ),
            (
                json!({"leaseName": "l", "binaryVersion": "one", "strategy": OLDEST}),
                vec![
                    "spec.binaryVersion: Invalid value: \"one\": must be a valid semantic version",
                    "spec.emulationVersion: Required value: must be specified when `strategy` is 'OldestEmulationVersion'",
                ],
            ),
            (
                json!({"leaseName": "l", "binaryVersion": "1.37.0", "strategy": "Newest"}),
                vec!["spec.strategy.strategy: Unsupported value: \"Newest\": supported values: \"OldestEmulationVersion\""],
            ),
            (json!({"leaseName": "l", "binaryVersion": "1.37.0", "strategy": "example.com/newest"}), vec![]),
        ] {
            let errors: Vec<_> = LEASE_CANDIDATE.validate(&json!({"spec": spec})).iter().map(ToString::to_string).collect();
            assert_eq!(errors, expected, "{spec}");
        }
    }
}
