//! Whether they may: the question, the answer, the refusal. [`configuration`] says who answers.

pub mod conditions;
pub mod configuration;

use meta::{GroupResource, Status};

use crate::UserInfo;

/// What is asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    pub is_resource: bool,
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// Of non-resource requests.
    pub path: &'a str,
    /// Of `list`, `watch` and `deletecollection`: the selector as the request writes it (KEP-4601).
    pub field_selector: &'a str,
    pub label_selector: &'a str,
    pub version: &'a str,
}

impl Attributes<'_> {
    /// Does the field selector demand exactly this value?
    pub fn selects_field(&self, field: &str, value: &str) -> bool {
        self.field_selector.split(',').any(|term| {
            let wanted = term.split_once("!=").is_none().then(|| term.split_once('=')).flatten();
            wanted.is_some_and(|(name, text)| name.trim() == field && text.strip_prefix('=').unwrap_or(text).trim() == value)
        })
    }
}

/// What an authorizer says. Who has no opinion leaves it to the next one; the last word is no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// With the reason.
    Allow(String),
    /// Nobody else is asked.
    Deny(String),
    /// With what speaks against it, if there is anything to say.
    NoOpinion(String),
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allow(_))
    }
    pub fn reason(&self) -> &str {
        match self {
            Decision::Allow(why) | Decision::Deny(why) | Decision::NoOpinion(why) => why,
        }
    }
}

/// The refusal in upstream's words; `reason` (may be empty) is what an authorizer had to say.
pub fn forbidden(user: &UserInfo, attributes: &Attributes<'_>, reason: &str) -> Status {
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let Attributes { verb, group, namespace, name, path, .. } = *attributes;
    let username = &user.username;
    if !attributes.is_resource {
        return Status::forbidden(
            &GroupResource { group: String::new(), resource: String::new() },
            "",
            &format!("User {username:?} cannot {verb} path {path:?}{reason}"),
        );
    }
    let resource = match attributes.subresource {
        "" => attributes.resource.to_owned(),
        sub => format!("{}/{sub}", attributes.resource),
    };
    let place = match namespace {
        "" => " at the cluster scope".to_owned(),
        namespace => format!(" in the namespace {namespace:?}"),
    };
    let why = format!("User {username:?} cannot {verb} resource {resource:?} in API group {group:?}{place}{reason}");
    Status::forbidden(&GroupResource { group: group.into(), resource: attributes.resource.into() }, name, &why)
}
