//! Whether they may.

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
}

/// The refusal in upstream's words.
pub fn forbidden(user: &UserInfo, attributes: &Attributes<'_>) -> Status {
    let Attributes { verb, group, namespace, name, path, .. } = *attributes;
    let username = &user.username;
    if !attributes.is_resource {
        return Status::forbidden(
            &GroupResource { group: String::new(), resource: String::new() },
            "",
            &format!("User {username:?} cannot {verb} path {path:?}"),
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
    let why = format!("User {username:?} cannot {verb} resource {resource:?} in API group {group:?}{place}");
    Status::forbidden(&GroupResource { group: group.into(), resource: attributes.resource.into() }, name, &why)
}
