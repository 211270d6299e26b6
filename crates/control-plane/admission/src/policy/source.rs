//! The policies of one kind with their bindings.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use meta::gvk::GroupResource;
use meta::status::Status;
use rules::value::{self, at, has, list, text, text_or};
use serde_json::Value;

use super::params::{ParamKind, ParamRef};
use crate::Lookup;
use crate::conditions::Conditions;
use crate::expressions::{self, Compiled, Scope, Variables, apply_configuration, boolean, json_patch, string, string_or_null};
use crate::matching::Criteria;

/// A policy, compiled.
pub struct Policy {
    pub name: String,
    pub criteria: Criteria,
    /// A policy that cannot be evaluated lets the write pass.
    pub ignores_failure: bool,
    pub params: Option<ParamKind>,
    pub variables: Variables,
    pub conditions: Conditions,
    pub validations: Vec<Validation>,
    pub audit_annotations: Vec<(String, Compiled)>,
    pub mutations: Vec<Mutation>,
    /// It is evaluated again when a later one changed the object.
    pub reinvoked: bool,
    pub bindings: Vec<Binding>,
}

pub struct Validation {
    pub expression: Compiled,
    pub message: String,
    pub message_expression: Option<Compiled>,
    /// `Invalid`, `Forbidden`, …
    pub reason: String,
}

pub enum Mutation {
    Apply(Compiled),
    JsonPatch(Compiled),
}

pub struct Binding {
    pub name: String,
    pub criteria: Option<Criteria>,
    pub params: Option<ParamRef>,
    /// `Deny`, `Warn`, `Audit`.
    pub actions: Vec<String>,
}

impl Policy {
    pub fn read(policy: &Value) -> Self {
        let params = has(policy, "spec.paramKind").then(|| ParamKind::read(at(policy, "spec.paramKind")));
        let scope = Scope { params: params.is_some(), authorizer: true, patches: false, namespace: true };
        let (variables, env) = Variables::compile(list(policy, "spec.variables"), expressions::env(scope));
        let patching = Variables::compile(list(policy, "spec.variables"), expressions::env(Scope { patches: true, ..scope })).1;
        let quiet = Variables::compile(list(policy, "spec.variables"), expressions::env(Scope { authorizer: false, ..scope })).1;
        let validation = |validation: &Value| Validation {
            expression: expressions::compile(&env, text(validation, "expression"), boolean),
            message: text(validation, "message").trim().to_owned(),
            message_expression: Some(text(validation, "messageExpression"))
                .filter(|source| !source.trim().is_empty())
                .map(|source| expressions::compile(&quiet, source, string)),
            reason: text_or(validation, "reason", "Invalid").to_owned(),
        };
        let annotation = |annotation: &Value| {
            let value = expressions::compile(&env, text(annotation, "valueExpression"), string_or_null);
            (text(annotation, "key").to_owned(), value)
        };
        let mutation = |mutation: &Value| match text(mutation, "patchType") {
            "JSONPatch" => Mutation::JsonPatch(expressions::compile(&patching, text(mutation, "jsonPatch.expression"), json_patch)),
            _ => Mutation::Apply(expressions::compile(&patching, text(mutation, "applyConfiguration.expression"), apply_configuration)),
        };
        Self {
            name: value::name(policy).to_owned(),
            criteria: Criteria::read(at(policy, "spec.matchConstraints"), "resourceRules"),
            ignores_failure: text_or(policy, "spec.failurePolicy", "Fail") == "Ignore",
            conditions: Conditions::compile_in(list(policy, "spec.matchConditions"), &env),
            validations: list(policy, "spec.validations").iter().map(validation).collect(),
            audit_annotations: list(policy, "spec.auditAnnotations").iter().map(annotation).collect(),
            mutations: list(policy, "spec.mutations").iter().map(mutation).collect(),
            reinvoked: text(policy, "spec.reinvocationPolicy") == "IfNeeded",
            params,
            variables,
            bindings: Vec::new(),
        }
    }
}

impl Binding {
    fn read(binding: &Value) -> Self {
        Self {
            name: value::name(binding).to_owned(),
            criteria: has(binding, "spec.matchResources").then(|| Criteria::read(at(binding, "spec.matchResources"), "resourceRules")),
            params: has(binding, "spec.paramRef").then(|| ParamRef::read(at(binding, "spec.paramRef"))),
            actions: list(binding, "spec.validationActions").iter().filter_map(|action| action.as_str().map(str::to_owned)).collect(),
        }
    }
}

type Revisions = (u64, u64);

/// The policies and bindings of one kind.
pub struct Source {
    policies: GroupResource,
    bindings: GroupResource,
    compiled: ArcSwapOption<(Revisions, Vec<Policy>)>,
}

impl Source {
    /// `validating` or `mutating`.
    pub fn new(kind: &str) -> Self {
        let resource = |plural: String| GroupResource { group: "admissionregistration.k8s.io".into(), resource: plural };
        let policies = resource(format!("{kind}admissionpolicies"));
        Self { policies, bindings: resource(format!("{kind}admissionpolicybindings")), compiled: ArcSwapOption::empty() }
    }

    /// Those that are bound, by name.
    pub async fn policies(&self, lookup: &dyn Lookup) -> Result<Arc<(Revisions, Vec<Policy>)>, Status> {
        let revisions = lookup.revision(&self.policies).zip(lookup.revision(&self.bindings));
        if let Some(known) = self.compiled.load_full().filter(|known| Some(known.0) == revisions) {
            return Ok(known);
        }
        let bindings = lookup.list(&self.bindings, "").await?;
        let policies = if bindings.is_empty() { Vec::new() } else { lookup.list(&self.policies, "").await? };
        let fresh = Arc::new((revisions.unwrap_or_default(), compile(&policies, &bindings)));
        self.compiled.store(revisions.map(|_| fresh.clone()));
        Ok(fresh)
    }
}

fn compile(policies: &[Arc<Value>], bindings: &[Arc<Value>]) -> Vec<Policy> {
    let mut by_policy: BTreeMap<&str, Vec<&Arc<Value>>> = BTreeMap::new();
    for binding in bindings {
        by_policy.entry(text(binding, "spec.policyName")).or_default().push(binding);
    }
    let mut bound: Vec<Policy> = Vec::new();
    for policy in policies {
        let Some(bindings) = by_policy.get_mut(value::name(policy)) else { continue };
        bindings.sort_by_key(|binding| value::name(binding));
        bound.push(Policy { bindings: bindings.iter().map(|binding| Binding::read(binding)).collect(), ..Policy::read(policy) });
    }
    bound.sort_by(|a, b| a.name.cmp(&b.name));
    bound
}
