//! `matchConditions` of webhooks and policies: CEL expressions that all must be true for the write to be concerned.
//!
//! Source: apiserver `pkg/admission/plugin/webhook/matchconditions`.

use cel::Env;
use rules::value::text;
use serde_json::Value;

use crate::expressions::{self, Compiled, Evaluator, Inputs, Scope, Variables, boolean};
use crate::matching::Invocation;
use crate::webhook::review::Objects;
use crate::{Attributes, Lookup};

#[derive(Clone, Debug, Default)]
pub struct Conditions(Vec<Compiled>);

/// Webhooks' conditions know no parameters and no variables.
pub fn of_webhooks() -> Env {
    expressions::env(Scope { authorizer: true, ..Scope::default() })
}

impl Conditions {
    /// Of a webhook.
    pub fn compile(conditions: &[Value]) -> Self {
        Self::compile_in(conditions, &of_webhooks())
    }
    /// Of a policy.
    pub fn compile_in(conditions: &[Value], env: &Env) -> Self {
        Self(conditions.iter().map(|condition| expressions::compile(env, text(condition, "expression"), boolean)).collect())
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn all(&self) -> &[Compiled] {
        &self.0
    }

    /// `false` where any is false, also when another cannot be evaluated; the failures' sentences otherwise.
    pub async fn matches(
        &self,
        attributes: &Attributes,
        invocation: &Invocation,
        objects: &Objects,
        lookup: &dyn Lookup,
    ) -> Result<bool, String> {
        let inputs = Inputs::new(attributes, invocation, objects.clone(), None, lookup);
        self.hold(&inputs, None, &Variables::default())
    }

    pub fn hold(&self, inputs: &Inputs, params: Option<&Value>, variables: &Variables) -> Result<bool, String> {
        let programs = self.0.iter().filter_map(|compiled| compiled.program.as_deref().ok());
        let mut evaluator = Evaluator::new(inputs, params, variables, programs, cel::MATCH_CONDITIONS_BUDGET);
        let mut failures = Vec::new();
        for compiled in &self.0 {
            match evaluator.run(compiled) {
                Ok(value) if value.as_bool() == Some(false) => return Ok(false),
                Ok(_) => {}
                Err(why) => failures.push(why),
            }
        }
        match failures.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }
}
