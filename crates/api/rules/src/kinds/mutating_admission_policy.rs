//! admissionregistration.k8s.io/v1 MutatingAdmissionPolicy and its binding.

use meta::field::{Error, Path};
use serde_json::Value;

use super::validating_admission_policy::{BINDING_COLUMNS, binding};
use crate::checks::{Errors, one_of};
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, has, list, set_default_text, text};
use crate::webhook;

pub const MUTATING_ADMISSION_POLICY: Plain = Plain {
    default: |object| {
        set_default_text(object, "spec.failurePolicy", "Fail");
        set_default_text(object, "spec.reinvocationPolicy", "Never");
        webhook::default_match(object, "spec.matchConstraints");
    },
    validate,
    counts_generation: true,
    unconditional_update: false,
    ..Plain::new(
        ("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicy"),
        &[NAME, shown("Mutations", "integer", "Mutations of the policy."), shown("ParamKind", "string", "Kind of its parameters."), AGE],
        |object, now| vec![list(object, "spec.mutations").len().into(), webhook::kind_cell(object), printing::age(object, now)],
    )
};

pub const MUTATING_ADMISSION_POLICY_BINDING: Plain = Plain {
    default: |object| {
        webhook::default_match(object, "spec.matchResources");
        if has(object, "spec.paramRef") {
            set_default_text(object, "spec.paramRef.parameterNotFoundAction", "Deny");
        }
    },
    validate: binding,
    counts_generation: true,
    unconditional_update: false,
    ..Plain::new(("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicyBinding"), BINDING_COLUMNS, |object, now| {
        vec![text(object, "spec.policyName").into(), webhook::reference_cell(object), printing::age(object, now)]
    })
};

fn validate(object: &Value) -> Errors {
    let (path, spec) = (Path::new("spec"), at(object, "spec"));
    let mut errors = webhook::policy_head(spec, &path);
    let mutations = list(spec, "mutations");
    if mutations.is_empty() {
        errors.push(Error::required(&path.child("mutations"), "mutations must contain at least one item"));
    }
    for (index, mutation) in mutations.iter().enumerate() {
        errors.extend(mutation_errors(mutation, &path.child("mutations").index(index)));
    }
    errors.extend(one_of(spec, &path, "reinvocationPolicy", &["IfNeeded", "Never"]));
    errors
}

fn mutation_errors(mutation: &Value, path: &Path) -> Errors {
    let mut errors = one_of(mutation, path, "patchType", &["ApplyConfiguration", "JSONPatch"]);
    let fields = [("ApplyConfiguration", "applyConfiguration"), ("JSONPatch", "jsonPatch")];
    for (kind, field) in fields {
        let here = path.child(field);
        match (text(mutation, "patchType") == kind, has(mutation, field)) {
            (true, false) => errors.push(Error::required(&here, format!("must be specified when patchType is {kind}"))),
            (true, true) if text(at(mutation, field), "expression").trim().is_empty() => {
                errors.push(Error::required(&here.child("expression"), "expression is not specified"));
            }
            (false, true) if fields.iter().any(|(kind, _)| text(mutation, "patchType") == *kind) => {
                errors.push(Error::invalid(&here, "", format!("must not be specified when patchType is not {kind}")));
            }
            _ => {}
        }
    }
    errors
}
