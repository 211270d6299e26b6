//! `authorizer`: an expression asks whether somebody may do something.

use std::fmt;
use std::sync::Arc;

use super::{Called, Opaque};
use crate::value::Value;

/// What is asked. Empty texts do not apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// A service account instead of the request's user: (namespace, name).
    pub service_account: Option<(String, String)>,
    /// Of a non-resource request.
    pub path: Option<String>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: Option<String>,
    pub label_selector: Option<String>,
    pub verb: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

/// Who answers. Called on the evaluating thread: it must not wait for long.
pub trait Authorizer: Send + Sync {
    fn decide(&self, question: &Question) -> Decision;
}

/// A value on the way from `authorizer` to a decision.
#[derive(Clone)]
pub enum Check {
    Authorizer(Arc<dyn Authorizer>, Arc<Question>),
    Path(Arc<dyn Authorizer>, Arc<Question>),
    Group(Arc<dyn Authorizer>, Arc<Question>),
    Resource(Arc<dyn Authorizer>, Arc<Question>),
    Decision(Arc<Decision>),
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.type_name())
    }
}

impl Check {
    pub fn type_name(&self) -> &'static str {
        match self {
            Check::Authorizer(..) => "kubernetes.authorization.Authorizer",
            Check::Path(..) => "kubernetes.authorization.PathCheck",
            Check::Group(..) => "kubernetes.authorization.GroupCheck",
            Check::Resource(..) => "kubernetes.authorization.ResourceCheck",
            Check::Decision(_) => "kubernetes.authorization.Decision",
        }
    }
}

/// The variable `authorizer`.
pub fn authorizer<'a>(by: Arc<dyn Authorizer>) -> Value<'a> {
    Value::Opaque(Opaque::Authorizer(Check::Authorizer(by, Arc::default())))
}

/// The variable `authorizer.requestResource`.
pub fn request_resource<'a>(by: Arc<dyn Authorizer>, question: Question) -> Value<'a> {
    Value::Opaque(Opaque::Authorizer(Check::Resource(by, Arc::new(question))))
}

/// The types of those two variables.
pub const TYPE: crate::Type = crate::Type::Opaque("kubernetes.authorization.Authorizer");
pub const RESOURCE_TYPE: crate::Type = crate::Type::Opaque("kubernetes.authorization.ResourceCheck");

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Called<'a>> {
    let (Value::Opaque(Opaque::Authorizer(check)), rest) = args.split_first()? else { return None };
    let texts: Vec<&str> = rest.iter().map(Value::as_str).collect::<Option<_>>()?;
    let with = |question: &Arc<Question>, change: &dyn Fn(&mut Question)| {
        let mut question = (**question).clone();
        change(&mut question);
        Arc::new(question)
    };
    let next = match (check, function, texts.as_slice()) {
        (Check::Authorizer(by, question), "serviceAccount", [namespace, name]) => Check::Authorizer(
            by.clone(),
            with(question, &|question| question.service_account = Some(((*namespace).into(), (*name).into()))),
        ),
        (Check::Authorizer(by, question), "path", [path]) => {
            Check::Path(by.clone(), with(question, &|question| question.path = Some((*path).into())))
        }
        (Check::Authorizer(by, question), "group", [group]) => {
            Check::Group(by.clone(), with(question, &|question| question.group = (*group).into()))
        }
        (Check::Group(by, question), "resource", [resource]) => {
            Check::Resource(by.clone(), with(question, &|question| question.resource = (*resource).into()))
        }
        (Check::Resource(by, question), setter, [text]) if setter != "check" => {
            let text = (*text).to_owned();
            let known = matches!(setter, "subresource" | "namespace" | "name" | "fieldSelector" | "labelSelector");
            if !known {
                return None;
            }
            Check::Resource(
                by.clone(),
                with(question, &|question| {
                    let text = text.clone();
                    match setter {
                        "subresource" => question.subresource = text,
                        "namespace" => question.namespace = text,
                        "name" => question.name = text,
                        "fieldSelector" => question.field_selector = Some(text),
                        _ => question.label_selector = Some(text),
                    }
                }),
            )
        }
        (Check::Resource(by, question) | Check::Path(by, question), "check", [verb]) => {
            let question = with(question, &|question| question.verb = (*verb).into());
            Check::Decision(Arc::new(by.decide(&question)))
        }
        (Check::Decision(decision), "allowed", []) => return Some(Ok(Value::Bool(decision.allowed))),
        (Check::Decision(decision), "reason", []) => return Some(Ok(Value::string(decision.reason.as_str()))),
        (Check::Decision(decision), "errored", []) => return Some(Ok(Value::Bool(decision.error.is_some()))),
        (Check::Decision(decision), "error", []) => return Some(Ok(Value::string(decision.error.clone().unwrap_or_default()))),
        _ => return None,
    };
    Some(Ok(Value::Opaque(Opaque::Authorizer(next))))
}
