//! MutatingAdmissionWebhook: webhooks that change a write, one after the other.

use std::time::Instant;

use meta::gvk::GroupVersionKind;
use meta::status::Status;
use serde_json::{Value, json};

use crate::matching::is_exempt;
use crate::webhook::call::{self, Failure};
use crate::webhook::configuration::{Hook, Source};
use crate::webhook::credentials::Credentials;
use crate::webhook::review::{Answer, Objects};
use crate::webhook::transport::Transport;
use crate::{Attributes, ConfigError, Lookup, Operation, Options, Plugin, Verdict};

const NAME: &str = "MutatingAdmissionWebhook";

pub struct MutatingWebhook(Source, Transport);

impl MutatingWebhook {
    pub fn new(options: &Options) -> Result<Self, ConfigError> {
        Ok(Self(Source::new("mutatingwebhookconfigurations"), Transport::with(Credentials::of_plugin(NAME, options)?)))
    }
}

impl Plugin for MutatingWebhook {
    fn name(&self) -> &'static str {
        NAME
    }
    fn handles(&self, _: Operation) -> bool {
        true
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            let hooks = self.0.hooks(lookup).await?;
            if hooks.1.is_empty() || is_exempt(attributes) {
                return Ok(());
            }
            let again = attributes.reinvocation.again;
            attributes.reinvocation.webhooks.begin(again, attributes.object.as_ref());
            for (index, hook) in hooks.1.iter().enumerate() {
                ask(hook, index, attributes, (lookup, &self.1)).await?;
            }
            if !again {
                attributes.reinvocation.webhooks.end(attributes.object.as_ref());
            }
            Ok(())
        })
    }
}

/// One webhook's turn.
async fn ask(hook: &Hook, index: usize, attributes: &mut Attributes, (lookup, transport): (&dyn Lookup, &Transport)) -> Result<(), Status> {
    let again = attributes.reinvocation.again;
    if again && !attributes.reinvocation.webhooks.is_due(&hook.id) {
        return Ok(());
    }
    let Some(invocation) = call::concerned(hook, attributes, lookup, "admit").await? else { return Ok(()) };
    let objects = call::objects(attributes, &invocation.gvk, lookup).await?;
    let started = Instant::now();
    let outcome = match call::call(hook, &invocation, attributes, &objects, true, (lookup, transport)).await {
        Ok(answer) => change(hook, index, &answer, objects, &invocation.gvk, attributes, lookup).await,
        Err(failure) => Err(failure),
    };
    let (changed, failure) = match outcome {
        Ok(changed) => (changed, None),
        Err(failure) => (false, Some(failure)),
    };
    annotate(attributes, "mutation", index, json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": changed}));
    if changed {
        attributes.reinvocation.webhooks.require();
        attributes.reinvocation.needed = true;
    }
    if hook.reinvoked {
        attributes.reinvocation.webhooks.remember(&hook.id);
    }
    call::verdict(hook, failure, attributes, "admit", index, started).map_or(Ok(()), Err)
}

/// Applies the answer's patch. Whether the object is another one now.
async fn change(
    hook: &Hook,
    index: usize,
    answer: &Answer,
    objects: Objects,
    gvk: &GroupVersionKind,
    attributes: &mut Attributes,
    lookup: &dyn Lookup,
) -> Result<bool, Failure> {
    if answer.patch.is_empty() {
        return Ok(false);
    }
    let undecodable = |why: String| Failure::Calling { why: format!("received undecodable patch in webhook response: {why}"), code: 503 };
    let document: Value = serde_json::from_slice(&answer.patch).map_err(|error| undecodable(error.to_string()))?;
    if document.as_array().is_some_and(Vec::is_empty) {
        return Ok(false);
    }
    let Some(before) = objects.new else {
        let why = format!("admission webhook {:?} attempted to modify the object, which is not supported for this operation", hook.name);
        return Err(Failure::Fatal(Status::internal(why)));
    };
    let mut patched = before;
    schema::merge::json_patch(&mut patched, &answer.patch).map_err(|error| match error {
        schema::merge::Error::Malformed(why) => undecodable(why),
        other => Failure::Fatal(Status::internal(other)),
    })?;
    let restored =
        call::restored(attributes, patched, gvk, lookup).await.map_err(|status| Failure::Fatal(Status::internal(status.message)))?;
    let changed = attributes.object.as_ref().is_none_or(|object| !rules::value::same(object, &restored));
    attributes.object = Some(restored);
    let note = json!({"configuration": hook.configuration, "webhook": hook.name, "patch": document, "patchType": "JSONPatch"});
    annotate(attributes, "patch", index, note);
    Ok(changed)
}

fn annotate(attributes: &Attributes, what: &str, index: usize, note: Value) {
    let round = u8::from(attributes.reinvocation.again);
    attributes.notes.annotate(format!("{what}.webhook.admission.k8s.io/round_{round}_index_{index}"), note.to_string());
}
