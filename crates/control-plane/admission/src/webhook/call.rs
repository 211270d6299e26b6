//! One webhook is asked about one write.
//!
//! Source: apiserver `pkg/admission/plugin/webhook/{mutating,validating}/dispatcher.go`, `pkg/util/webhook/error.go`.

use std::time::Instant;

use bytes::Bytes;
use meta::gvk::{GroupVersion, GroupVersionKind};
use meta::status::Status;
use rules::value::text;
use serde_json::Value;

use super::configuration::Hook;
use super::review::{self, Answer, Objects};
use super::transport::Transport;
use crate::matching::Invocation;
use crate::metrics::Call;
use crate::{Attributes, Lookup};

/// How asking ended when it did not end with an answer that allows.
#[derive(Debug)]
pub enum Failure {
    /// The webhook could not be asked; its `failurePolicy` says what that means. Code for the metrics.
    Calling { why: String, code: u16 },
    /// It said no.
    Denied(Status),
    /// The API server cannot go on, whatever the policy says.
    Fatal(Status),
}

/// Whether the webhook is concerned: rules, selectors, then its match conditions.
pub async fn concerned(
    hook: &Hook,
    attributes: &Attributes,
    lookup: &dyn Lookup,
    kind: &'static str,
) -> Result<Option<Invocation>, Status> {
    let Some(invocation) = hook.criteria.matches(attributes, lookup).await? else { return Ok(None) };
    if hook.conditions.is_empty() {
        return Ok(Some(invocation));
    }
    let objects = objects(attributes, &invocation.gvk, lookup).await?;
    match hook.conditions.matches(attributes, &invocation, &objects, lookup).await {
        Ok(true) => Ok(Some(invocation)),
        Ok(false) => {
            Call { name: &hook.name, kind, operation: attributes.operation.word() }.excluded();
            Ok(None)
        }
        Err(_) if hook.ignores_failure => Ok(None),
        Err(why) => Err(attributes.forbidden(why)),
    }
}

/// The write's objects in the version that the webhook wants.
pub async fn objects(attributes: &Attributes, gvk: &GroupVersionKind, lookup: &dyn Lookup) -> Result<Objects, Status> {
    Ok(Objects { new: versioned(&attributes.object, gvk, lookup).await?, old: versioned(&attributes.old, gvk, lookup).await? })
}

async fn versioned(object: &Option<Value>, gvk: &GroupVersionKind, lookup: &dyn Lookup) -> Result<Option<Value>, Status> {
    let Some(object) = object else { return Ok(None) };
    let version = gvk.group_version().to_string();
    let same = text(object, "apiVersion") == version && text(object, "kind") == gvk.kind;
    Ok(Some(if same { object.clone() } else { lookup.convert(object.clone(), gvk).await? }))
}

/// What a webhook or policy made of the object in the version `gvk`, in the version in which the write is worked on.
pub async fn restored(attributes: &Attributes, object: Value, gvk: &GroupVersionKind, lookup: &dyn Lookup) -> Result<Value, Status> {
    let restored = lookup.restore(object, gvk).await?;
    let version = attributes.object.as_ref().map(|object| text(object, "apiVersion")).unwrap_or_default();
    match GroupVersion::parse(version) {
        Some(own) if version != text(&restored, "apiVersion") => {
            lookup.convert(restored, &GroupVersionKind::new(&own.group, &own.version, &gvk.kind)).await
        }
        _ => Ok(restored),
    }
}

/// Asks; an answer that comes back allows the write.
pub async fn call(
    hook: &Hook,
    invocation: &Invocation,
    attributes: &Attributes,
    objects: &Objects,
    mutating: bool,
    (lookup, transport): (&dyn Lookup, &Transport),
) -> Result<Answer, Failure> {
    if attributes.dry_run && !hook.dry_runs {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Failure::Fatal(Status::bad_request(why)));
    }
    let calling = |why: String, code: u16| Failure::Calling { why, code };
    let question = review::ask(attributes, invocation, objects, &hook.review_versions)
        .map_err(|why| calling(format!("could not create admission objects: {why}"), 400))?;
    let destination = hook.destination.as_ref().map_err(|why| calling(format!("could not get REST client: {why}"), 500))?;
    let body = Bytes::from(std::mem::take(&mut { question.body.clone() }));
    let bytes = transport.post(destination, body, hook.timeout, lookup).await;
    let bytes = bytes.map_err(|failure| calling(format!("failed to call webhook: {}", failure.why()), failure.code()))?;
    let answer = question.read(&bytes, mutating).map_err(|malformed| calling(malformed.to_string(), 503))?;
    for (key, value) in &answer.annotations {
        attributes.notes.annotate(format!("{}/{key}", hook.name), value);
    }
    for warning in &answer.warnings {
        attributes.notes.warn(warning);
    }
    if answer.allowed { Ok(answer) } else { Err(Failure::Denied(review::denial(&hook.name, answer.result))) }
}

/// Counts how a call ended and says what that means for the write: `None`, it goes on.
pub fn verdict(
    hook: &Hook,
    failure: Option<Failure>,
    attributes: &Attributes,
    kind: &'static str,
    index: usize,
    started: Instant,
) -> Option<Status> {
    let counted = Call { name: &hook.name, kind, operation: attributes.operation.word() };
    let took = started.elapsed();
    match failure {
        None => {
            counted.done(took, false, 200);
            None
        }
        Some(Failure::Calling { why, code }) if hook.ignores_failure => {
            counted.done(took, false, code);
            counted.failed_open();
            tracing::warn!(webhook = hook.name, configuration = hook.configuration, why, "failed calling webhook, failing open");
            let round = u8::from(attributes.reinvocation.again);
            let phase = if kind == "admit" { "mutation" } else { "validating" };
            attributes.notes.annotate(format!("failed-open.{phase}.webhook.admission.k8s.io/round_{round}_index_{index}"), &hook.name);
            None
        }
        Some(Failure::Calling { why, code }) => {
            counted.done(took, true, code);
            counted.rejected("calling_webhook_error", code);
            tracing::warn!(webhook = hook.name, configuration = hook.configuration, why, "failed calling webhook, failing closed");
            Some(Status::internal(format!("failed calling webhook {:?}: {why}", hook.name)))
        }
        Some(Failure::Denied(status)) => {
            counted.done(took, true, status.code);
            counted.rejected("no_error", status.code);
            Some(status)
        }
        Some(Failure::Fatal(status)) => {
            counted.done(took, true, 0);
            counted.rejected("apiserver_internal_error", 0);
            Some(status)
        }
    }
}
