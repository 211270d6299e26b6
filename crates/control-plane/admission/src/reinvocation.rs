//! The second round of the mutating pass: when a webhook or a policy changed the object, the plugins run once more, and of the webhooks and
//! policies those that ask for it (`reinvocationPolicy: IfNeeded`) and ran before the change.
//!
//! Source: apiserver `pkg/admission/reinvocation.go`, `plugin/webhook/mutating/reinvocationcontext.go`.

use std::collections::HashSet;

use serde_json::Value;

#[derive(Clone, Debug, Default)]
pub struct Reinvocation {
    /// This is the second round.
    pub again: bool,
    /// A second round is needed.
    pub needed: bool,
    pub webhooks: Rerun,
    pub policies: Rerun,
}

/// One plugin's memory.
#[derive(Clone, Debug, Default)]
pub struct Rerun {
    last_output: Option<Value>,
    ran: HashSet<String>,
    due: HashSet<String>,
}

impl Rerun {
    /// At the beginning of the second round: what other plugins changed since concerns everybody that ran.
    pub fn begin(&mut self, again: bool, object: Option<&Value>) {
        if again && self.last_output.as_ref() != object {
            self.require();
        }
    }
    /// At the end of a round.
    pub fn end(&mut self, object: Option<&Value>) {
        self.last_output = object.cloned();
    }
    pub fn is_due(&self, id: &str) -> bool {
        self.due.contains(id)
    }
    /// Something changed: everybody that ran before is to run again.
    pub fn require(&mut self) {
        self.due.extend(std::mem::take(&mut self.ran));
    }
    /// `id` ran and wants to run again if somebody after it changes the object.
    pub fn remember(&mut self, id: &str) {
        self.ran.insert(id.to_owned());
    }
}
