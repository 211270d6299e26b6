//! OwnerReferencesPermissionEnforcement: an owner means deletion, so who names one must be allowed to delete; who blocks an owner's
//! deletion must be allowed to hold it.

use auth::authorize;
use meta::gvk::{GroupVersion, GroupVersionKind};
use meta::status::Status;
use rules::value::{flag, list, text};
use serde_json::Value;

use crate::{Attributes, Lookup, Plugin, Verdict};

pub struct OwnerReferencesPermissionEnforcement;

impl Plugin for OwnerReferencesPermissionEnforcement {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }
    fn on_by_default(&self) -> bool {
        false
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(judge(attributes, lookup))
    }
}

async fn judge(attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
    let owners =
        |object: &Option<Value>| object.as_ref().map(|object| list(object, "metadata.ownerReferences").to_vec()).unwrap_or_default();
    let (new, old) = (owners(&attributes.object), owners(&attributes.old));
    if new == old {
        return Ok(());
    }
    let gvr = &attributes.gvr;
    let asked = authorize::Attributes {
        is_resource: true,
        verb: "delete",
        group: &gvr.group,
        resource: &gvr.resource,
        namespace: &attributes.namespace,
        name: &attributes.name,
        ..Default::default()
    };
    if !lookup.allows(&attributes.user, asked).await {
        return Err(attributes.forbidden("cannot set an ownerRef on a resource you can't delete: , <nil>"));
    }
    let known = |owner: &Value| old.iter().any(|other| text(other, "uid") == text(owner, "uid") && flag(other, "blockOwnerDeletion"));
    for owner in new.iter().filter(|owner| flag(owner, "blockOwnerDeletion") && !known(owner)) {
        may_hold(attributes, owner, lookup).await?;
    }
    Ok(())
}

async fn may_hold(attributes: &Attributes, owner: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
    let refuse = |why: &str| {
        Err(attributes.forbidden(format!(
            "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {why}"
        )))
    };
    let version = GroupVersion::parse(text(owner, "apiVersion"));
    let kind = version.map(|version| GroupVersionKind::new(&version.group, &version.version, text(owner, "kind")));
    let Some((gvr, namespaced)) = kind.and_then(|kind| lookup.resource_of(&kind)) else {
        return Err(attributes.forbidden(format!(
            "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {} Kind {}",
            text(owner, "apiVersion"),
            text(owner, "kind")
        )));
    };
    let asked = authorize::Attributes {
        is_resource: true,
        verb: "update",
        group: &gvr.group,
        resource: &gvr.resource,
        subresource: "finalizers",
        namespace: if namespaced { &attributes.namespace } else { "" },
        name: text(owner, "name"),
        ..Default::default()
    };
    if lookup.allows(&attributes.user, asked).await { Ok(()) } else { refuse(", <nil>") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Operation;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn an_owner_is_set_by_who_may_delete() {
        for (rights, passes) in [(vec![], false), (vec!["delete pods p"], true)] {
            let owners = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "u"}]);
            let object = json!({"metadata": {"name": "p", "namespace": "a", "ownerReferences": owners}});
            let mut attributes = write(Operation::Create, "pods", "Pod", object);
            let objects = Objects::default().allowing(&rights);
            assert_eq!(run(OwnerReferencesPermissionEnforcement, objects, &mut attributes).await.is_ok(), passes, "{rights:?}");
        }
    }
}
