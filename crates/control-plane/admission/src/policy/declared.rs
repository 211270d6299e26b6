//! The expressions of webhooks and policies are compiled when they are written: what does not compile is refused there.
//!
//! Source: upstream's `pkg/apis/admissionregistration/validation`.

use meta::field::{Error, Path};
use meta::status::Status;
use rules::value::{at, list, text};
use serde_json::Value;

use super::source::{Mutation, Policy};
use crate::Attributes;
use crate::conditions::{Conditions, of_webhooks};
use crate::expressions::Compiled;

/// Judges a configuration, policy or anything else (which has no expressions).
pub fn judge(attributes: &Attributes) -> Result<(), Status> {
    let Some(object) = attributes.object.as_ref().filter(|_| attributes.subresource.is_empty()) else { return Ok(()) };
    let unchanged = |field: &str| attributes.old.as_ref().is_some_and(|old| at(old, field) == at(object, field));
    let kind = attributes.gvk.kind.as_str();
    let errors = match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" if !unchanged("webhooks") => webhooks(object),
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" if !unchanged("spec") => policy(object),
        _ => Vec::new(),
    };
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid(&attributes.gvk.group, kind, &attributes.name, &errors)),
    }
}

fn complaint(path: Path, compiled: &Compiled) -> Option<Error> {
    let why = compiled.program.as_ref().err()?;
    Some(match compiled.source.is_empty() {
        true => Error::required(&path, ""),
        false => Error::invalid(&path, compiled.source.clone(), why.clone()),
    })
}

fn conditions(path: &Path, conditions: &Conditions) -> Vec<Error> {
    let all = conditions.all().iter().enumerate();
    all.filter_map(|(index, compiled)| complaint(path.child("matchConditions").index(index).child("expression"), compiled)).collect()
}

fn webhooks(object: &Value) -> Vec<Error> {
    let hooks = list(object, "webhooks").iter().enumerate();
    let of = |(index, hook): (usize, &Value)| {
        let compiled = Conditions::compile_in(list(hook, "matchConditions"), &of_webhooks());
        conditions(&Path::new("webhooks").index(index), &compiled)
    };
    hooks.flat_map(of).collect()
}

fn policy(object: &Value) -> Vec<Error> {
    let policy = Policy::read(object);
    let spec = Path::new("spec");
    let mut errors: Vec<Error> = Vec::new();
    for (index, (_, compiled)) in policy.variables.all().iter().enumerate() {
        errors.extend(complaint(spec.child("variables").index(index).child("expression"), compiled));
    }
    errors.extend(conditions(&spec, &policy.conditions));
    for (index, validation) in policy.validations.iter().enumerate() {
        let path = spec.child("validations").index(index);
        errors.extend(complaint(path.child("expression"), &validation.expression));
        errors.extend(validation.message_expression.as_ref().and_then(|compiled| complaint(path.child("messageExpression"), compiled)));
    }
    for (index, (_, compiled)) in policy.audit_annotations.iter().enumerate() {
        errors.extend(complaint(spec.child("auditAnnotations").index(index).child("valueExpression"), compiled));
    }
    for (index, mutation) in policy.mutations.iter().enumerate() {
        let path = spec.child("mutations").index(index);
        errors.extend(match mutation {
            Mutation::Apply(compiled) => complaint(path.child("applyConfiguration").child("expression"), compiled),
            Mutation::JsonPatch(compiled) => complaint(path.child("jsonPatch").child("expression"), compiled),
        });
    }
    let nothing =
        policy.validations.is_empty() && policy.audit_annotations.is_empty() && text(object, "kind") == "ValidatingAdmissionPolicy";
    if nothing {
        errors.push(Error::required(&spec.child("validations"), "validations or auditAnnotations must be non-empty"));
    }
    errors
}
