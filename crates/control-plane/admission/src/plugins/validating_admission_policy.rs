//! ValidatingAdmissionPolicy: CEL expressions that a write must satisfy; and what policies and webhooks declare must compile.
//!
//! Source: apiserver `pkg/admission/plugin/policy/validating`.

use std::collections::BTreeMap;

use meta::status::{Cause, Status};
use serde_json::{Value, json};

use crate::expressions::{Evaluator, Inputs};
use crate::matching::is_exempt;
use crate::metrics;
use crate::policy::source::{Binding, Policy, Source, Validation};
use crate::policy::{declared, namespace, params};
use crate::webhook::call;
use crate::{Attributes, Lookup, Operation, Plugin, Verdict};

/// Longer messages of expressions are not told (upstream: `MaxEvaluatedMessageExpressionSizeBytes`).
const MESSAGE_BYTES_MAX: usize = 5 << 10;
const ANNOTATION_BYTES_MAX: usize = 10 << 10;
/// Failures that the audit trail lists at most.
const FAILURES_MAX: usize = 50;

pub struct ValidatingAdmissionPolicy(Source);

impl Default for ValidatingAdmissionPolicy {
    fn default() -> Self {
        Self(Source::new("validating"))
    }
}

impl Plugin for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }
    fn handles(&self, _: Operation) -> bool {
        true
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            if is_exempt(attributes) {
                return declared::judge(attributes);
            }
            let policies = self.0.policies(lookup).await?;
            if policies.1.is_empty() {
                return Ok(());
            }
            judge(&policies.1, attributes, lookup).await
        })
    }
}

/// What policies have against the write.
#[derive(Default)]
struct Findings {
    denied: Vec<Denial>,
    failures: Vec<Value>,
}

struct Denial {
    policy: String,
    binding: Option<String>,
    message: String,
    reason: String,
}

impl Findings {
    /// A policy that cannot be evaluated: its failure policy says what that means.
    fn broken(&mut self, policy: &Policy, binding: Option<&Binding>, why: String) {
        if !policy.ignores_failure {
            let part = if binding.is_some() { "binding" } else { "policy" };
            let (name, binding) = (policy.name.clone(), binding.map(|binding| binding.name.clone()));
            self.denied.push(Denial {
                policy: name,
                binding,
                message: format!("failed to configure {part}: {why}"),
                reason: String::new(),
            });
        }
    }
}

async fn judge(policies: &[Policy], attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
    let mut findings = Findings::default();
    for policy in policies {
        let invocation = match policy.criteria.matches(attributes, lookup).await {
            Ok(Some(invocation)) => invocation,
            Ok(None) => continue,
            Err(status) => {
                findings.broken(policy, None, status.message);
                continue;
            }
        };
        let mut annotations: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut inputs = None;
        for binding in &policy.bindings {
            match bound(binding, attributes, lookup).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(why) => {
                    findings.broken(policy, Some(binding), why);
                    continue;
                }
            }
            let params = match params::collect(policy.params.as_ref(), binding.params.as_ref(), attributes, lookup).await {
                Ok(params) => params,
                Err(why) => {
                    findings.broken(policy, Some(binding), why);
                    continue;
                }
            };
            if inputs.is_none() && !params.is_empty() {
                let namespace = namespace(attributes, lookup).await?;
                let objects = call::objects(attributes, &invocation.gvk, lookup).await?;
                inputs = Some(Inputs::new(attributes, &invocation, objects, namespace.as_deref(), lookup));
            }
            let Some(inputs) = &inputs else { continue };
            for params in params {
                evaluate(policy, binding, inputs, params.as_deref(), attributes, &mut findings, &mut annotations);
            }
        }
        for (key, values) in annotations {
            attributes.notes.annotate(format!("{}/{key}", policy.name), values.join(", "));
        }
    }
    if !findings.failures.is_empty() {
        findings.failures.truncate(FAILURES_MAX);
        let said = Value::from(findings.failures).to_string();
        attributes.notes.annotate("validation.policy.admission.k8s.io/validation_failure", said);
    }
    match findings.denied.into_iter().next() {
        Some(denial) => Err(refusal(attributes, denial)),
        None => Ok(()),
    }
}

/// Whether the binding's own selectors choose the write.
pub(super) async fn bound(binding: &Binding, attributes: &Attributes, lookup: &dyn Lookup) -> Result<bool, String> {
    match &binding.criteria {
        None => Ok(true),
        Some(criteria) => criteria.matches(attributes, lookup).await.map(|found| found.is_some()).map_err(|status| status.message),
    }
}

fn refusal(attributes: &Attributes, denial: Denial) -> Status {
    let Denial { policy, binding, message, reason } = denial;
    let with = binding.map(|binding| format!(" with binding '{binding}'")).unwrap_or_default();
    let message = format!("ValidatingAdmissionPolicy '{policy}'{with} denied request: {message}");
    let mut status = attributes.forbidden(&message);
    status.reason = if reason.is_empty() { "Invalid".into() } else { reason };
    status.code = match status.reason.as_str() {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    status.details.get_or_insert_default().causes.push(Cause { message, ..Cause::default() });
    status
}

/// One policy with one binding and one set of parameters.
fn evaluate(
    policy: &Policy,
    binding: &Binding,
    inputs: &Inputs,
    params: Option<&Value>,
    attributes: &Attributes,
    findings: &mut Findings,
    annotations: &mut BTreeMap<String, Vec<String>>,
) {
    match policy.conditions.hold(inputs, params, &policy.variables) {
        Ok(true) => {}
        Ok(false) => return,
        Err(why) => {
            if !policy.ignores_failure {
                report(policy, binding, 0, why, String::new(), attributes, findings);
            }
            return;
        }
    }
    let expressions =
        policy.validations.iter().flat_map(|validation| std::iter::once(&validation.expression).chain(&validation.message_expression));
    let all = expressions.chain(policy.audit_annotations.iter().map(|(_, value)| value));
    let programs = all.filter_map(|compiled| compiled.program.as_deref().ok());
    let mut evaluator = Evaluator::new(inputs, params, &policy.variables, programs, cel::REQUEST_BUDGET);
    for (index, validation) in policy.validations.iter().enumerate() {
        match evaluator.run(&validation.expression) {
            Ok(value) if value.as_bool() == Some(true) => metrics::policy(&policy.name, &binding.name, "allow", "no_error"),
            Ok(_) => {
                let message = message(validation, &mut evaluator);
                report(policy, binding, index, message, validation.reason.clone(), attributes, findings);
            }
            Err(_) if policy.ignores_failure => {}
            Err(why) => report(policy, binding, index, why, String::new(), attributes, findings),
        }
    }
    for (key, value) in &policy.audit_annotations {
        let said = match evaluator.run(value) {
            Ok(value) => value.as_str().map(|text| text.trim().to_owned()).unwrap_or_default(),
            Err(_) if policy.ignores_failure => continue,
            Err(why) => {
                let (name, binding) = (policy.name.clone(), Some(binding.name.clone()));
                findings.denied.push(Denial { policy: name, binding, message: why, reason: String::new() });
                continue;
            }
        };
        let said: String = cut(&said, ANNOTATION_BYTES_MAX).to_owned();
        let values = annotations.entry(key.clone()).or_default();
        if !said.is_empty() && !values.contains(&said) {
            values.push(said);
        }
    }
    annotations.retain(|_, values| !values.is_empty());
}

fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A validation's own sentence, or its expression.
fn message<'a>(validation: &'a Validation, evaluator: &mut Evaluator<'a>) -> String {
    let made = validation.message_expression.as_ref().and_then(|compiled| evaluator.run(compiled).ok());
    let made = made.and_then(|value| value.as_str().map(|text| text.trim().to_owned()));
    let made = made.filter(|text| !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n'));
    made.unwrap_or_else(|| match validation.message.as_str() {
        "" => format!("failed expression: {}", validation.expression.source),
        message => message.to_owned(),
    })
}

/// A failed validation has the consequences that the binding names.
fn report(
    policy: &Policy,
    binding: &Binding,
    index: usize,
    message: String,
    reason: String,
    attributes: &Attributes,
    findings: &mut Findings,
) {
    let error = if reason.is_empty() { "invalid_error" } else { "no_error" };
    for action in &binding.actions {
        match action.as_str() {
            "Deny" => {
                metrics::policy(&policy.name, &binding.name, "deny", error);
                let (policy, binding) = (policy.name.clone(), Some(binding.name.clone()));
                findings.denied.push(Denial { policy, binding, message: message.clone(), reason: reason.clone() });
            }
            "Warn" => {
                metrics::policy(&policy.name, &binding.name, "warn", error);
                let (policy, binding) = (&policy.name, &binding.name);
                attributes
                    .notes
                    .warn(format!("Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {message}"));
            }
            "Audit" => {
                metrics::policy(&policy.name, &binding.name, "audit", error);
                findings.failures.push(json!({
                    "message": message,
                    "policy": policy.name,
                    "binding": binding.name,
                    "expressionIndex": index,
                    "validationActions": binding.actions,
                }));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
