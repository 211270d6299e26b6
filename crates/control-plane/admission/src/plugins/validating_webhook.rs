//! ValidatingAdmissionWebhook: webhooks that judge a write, all at the same time.

use std::time::Instant;

use futures_util::future::join_all;
use meta::status::Status;

use crate::matching::is_exempt;
use crate::webhook::call;
use crate::webhook::configuration::Source;
use crate::webhook::credentials::Credentials;
use crate::webhook::transport::Transport;
use crate::{Attributes, ConfigError, Lookup, Operation, Options, Plugin, Verdict};

const NAME: &str = "ValidatingAdmissionWebhook";

pub struct ValidatingWebhook(Source, Transport);

impl ValidatingWebhook {
    pub fn new(options: &Options) -> Result<Self, ConfigError> {
        Ok(Self(Source::new("validatingwebhookconfigurations"), Transport::with(Credentials::of_plugin(NAME, options)?)))
    }
}

impl Plugin for ValidatingWebhook {
    fn name(&self) -> &'static str {
        NAME
    }
    fn handles(&self, _: Operation) -> bool {
        true
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(self.judge(attributes, lookup))
    }
}

impl ValidatingWebhook {
    async fn judge(&self, attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
        let hooks = self.0.hooks(lookup).await?;
        if hooks.1.is_empty() || is_exempt(attributes) {
            return Ok(());
        }
        let mut calls = Vec::new();
        for hook in &hooks.1 {
            let Some(invocation) = call::concerned(hook, attributes, lookup, "validating").await? else { continue };
            let objects = call::objects(attributes, &invocation.gvk, lookup).await?;
            let index = calls.len();
            calls.push(async move {
                let started = Instant::now();
                let outcome = call::call(hook, &invocation, attributes, &objects, false, (lookup, &self.1)).await;
                call::verdict(hook, outcome.err(), attributes, "validating", index, started)
            });
        }
        // Everybody is heard; of several refusals the first in order is told.
        match join_all(calls).await.into_iter().flatten().next() {
            Some(refused) => Err(refused),
            None => Ok(()),
        }
    }
}
