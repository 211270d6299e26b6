//! `matchConditions` of webhooks and policies: CEL expressions that all must be true for the write to be concerned.

use rules::value::text;
use serde_json::Value;

use crate::matching::Invocation;
use crate::webhook::review::Objects;
use crate::{Attributes, Lookup};

#[derive(Clone, Debug, Default)]
pub struct Conditions(Vec<String>);

impl Conditions {
    pub fn compile(conditions: &[Value]) -> Self {
        Self(conditions.iter().map(|condition| text(condition, "expression").to_owned()).collect())
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// `false` where any is false, also when another cannot be evaluated; the failures' sentences otherwise.
    pub async fn matches(&self, _: &Attributes, _: &Invocation, _: &Objects, _: &dyn Lookup) -> Result<bool, String> {
        Err("match conditions are not supported".into())
    }
}
