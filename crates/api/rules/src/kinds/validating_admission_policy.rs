//! admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy and its binding.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, required_formed, supported};
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, has, list, set_default_text, text};
use crate::webhook;

pub const VALIDATING_ADMISSION_POLICY: Plain = Plain {
    default: |object| {
        set_default_text(object, "spec.failurePolicy", "Fail");
        webhook::default_match(object, "spec.matchConstraints");
    },
    validate,
    counts_generation: true,
    unconditional_update: false,
    ..Plain::new(
        ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy"),
        &[
            NAME,
            shown("Validations", "integer", "Validations of the policy."),
            shown("ParamKind", "string", "Kind of its parameters."),
            AGE,
        ],
        |object, now| vec![list(object, "spec.validations").len().into(), webhook::kind_cell(object), printing::age(object, now)],
    )
};

pub const VALIDATING_ADMISSION_POLICY_BINDING: Plain = Plain {
    default: |object| {
        webhook::default_match(object, "spec.matchResources");
        if has(object, "spec.paramRef") {
            set_default_text(object, "spec.paramRef.parameterNotFoundAction", "Deny");
        }
    },
    validate: |object| {
        let mut errors = binding(object);
        errors.extend(actions(list(object, "spec.validationActions"), &Path::new("spec").child("validationActions")));
        errors
    },
    counts_generation: true,
    unconditional_update: false,
    ..Plain::new(("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicyBinding"), BINDING_COLUMNS, |object, now| {
        vec![text(object, "spec.policyName").into(), webhook::reference_cell(object), printing::age(object, now)]
    })
};

pub const BINDING_COLUMNS: &[crate::Column] =
    &[NAME, shown("PolicyName", "string", "Policy that is bound."), shown("ParamRef", "string", "Its parameters."), AGE];

fn validate(object: &Value) -> Errors {
    const ONE: &str = "validations or auditAnnotations must contain at least one item";
    let (path, spec) = (Path::new("spec"), at(object, "spec"));
    let mut errors = webhook::policy_head(spec, &path);
    let (validations, annotations) = (list(spec, "validations"), list(spec, "auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        errors.push(Error::required(&path.child("validations"), ONE));
        errors.push(Error::required(&path.child("auditAnnotations"), ONE));
    }
    for (index, validation) in validations.iter().enumerate() {
        errors.extend(validation_errors(validation, &path.child("validations").index(index)));
    }
    let here = path.child("auditAnnotations");
    if annotations.len() > 20 {
        errors.push(Error::invalid(&here, at(spec, "auditAnnotations").clone(), "must not have more than 20 auditAnnotations"));
    }
    let mut keys = BTreeSet::new();
    for (index, annotation) in annotations.iter().enumerate() {
        let key = text(annotation, "key");
        errors.extend(required_formed(annotation, &here.index(index), "key", names::qualified_name));
        if text(annotation, "valueExpression").trim().is_empty() {
            errors.push(Error::required(&here.index(index).child("valueExpression"), "valueExpression is not specified"));
        }
        if !keys.insert(key) {
            errors.push(Error::duplicate(&here.index(index).child("key"), key));
        }
    }
    errors
}

fn validation_errors(validation: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if text(validation, "expression").trim().is_empty() {
        errors.push(Error::required(&path.child("expression"), "expression is not specified"));
    }
    let (message, expression) = (text(validation, "message"), text(validation, "messageExpression"));
    if !expression.is_empty() && expression.trim().is_empty() {
        errors.push(Error::invalid(&path.child("messageExpression"), expression, "must be non-empty if specified"));
    }
    if !message.is_empty() && message.trim().is_empty() {
        errors.push(Error::invalid(&path.child("message"), message, "message must be non-empty if specified"));
    } else if message.trim().contains(['\n', '\r']) {
        errors.push(Error::invalid(&path.child("message"), message, "message must not contain line breaks"));
    }
    let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
    errors.extend(supported(validation, path, "reason", &reasons));
    errors
}

/// A binding: also of mutating policies.
pub fn binding(object: &Value) -> Errors {
    let (path, spec) = (Path::new("spec"), at(object, "spec"));
    let mut errors = required_formed(spec, &path, "policyName", names::dns1123_subdomain);
    errors.extend(webhook::parameter_reference(at(spec, "paramRef"), &path.child("paramRef")));
    if has(spec, "matchResources") {
        // Upstream's own spelling.
        errors.extend(webhook::matching(at(spec, "matchResources"), &path.child("matchResouces")));
    }
    errors
}

fn actions(actions: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, action) in actions.iter().filter_map(Value::as_str).enumerate() {
        if !matches!(action, "Audit" | "Deny" | "Warn") {
            errors.push(Error::not_supported(&path.index(index), action, &["Audit", "Deny", "Warn"]));
        }
        if !seen.insert(action) {
            errors.push(Error::duplicate(&path.index(index), action));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let sentence = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and \
                        headers serves no purpose)";
        errors.push(Error::invalid(path, actions.to_vec(), sentence));
    }
    if actions.is_empty() {
        errors.push(Error::required(path, "at least one validation action is required"));
    }
    errors
}
