//! Label selectors of typed objects, and whose an object is.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

/// What `selector` means; a malformed or absent one selects nothing.
pub(crate) fn parse(selector: Option<&LabelSelector>) -> meta::LabelSelector {
    let parsed = selector.and_then(|selector| serde_json::to_value(selector).ok());
    parsed.and_then(|value| meta::LabelSelector::from_object(&value).ok()).unwrap_or_else(meta::LabelSelector::nothing)
}

pub(crate) fn selects(selector: &meta::LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    selector.matches_map(labels.unwrap_or(&NONE))
}

/// What an owner does about an object that may be its dependent (upstream: `ControllerRefManager`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Ours and wanted.
    Keep,
    /// Nobody's and wanted.
    Adopt,
    /// Ours and no longer selected.
    Release,
    /// Not for us.
    Leave,
}

pub(crate) fn claim(owner: &ObjectMeta, selector: &meta::LabelSelector, object: &ObjectMeta) -> Claim {
    let matches = selects(selector, object.labels.as_ref());
    let owner_leaves = owner.deletion_timestamp.is_some();
    match reconcile::object::controller_of(object) {
        Some(controller) if Some(&controller.uid) != owner.uid.as_ref() => Claim::Leave,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner_leaves => Claim::Leave,
        Some(_) => Claim::Release,
        None if matches && !owner_leaves && object.deletion_timestamp.is_none() => Claim::Adopt,
        None => Claim::Leave,
    }
}

/// Pods by what their owner does about them.
#[derive(Default)]
pub(crate) struct Family {
    pub kept: Vec<Arc<Pod>>,
    /// To be adopted.
    pub orphans: Vec<Arc<Pod>>,
    /// To be released.
    pub strays: Vec<Arc<Pod>>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_owner_keeps_adopts_releases_or_leaves() {
        let selector = meta::LabelSelector::parse("app=a").unwrap();
        let meta = |value| serde_json::from_value::<ObjectMeta>(value).unwrap();
        let (owner, leaving) = (meta(json!({"uid": "1"})), meta(json!({"uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"})));
        let owned = |uid: &str, app: &str| {
            let owners = json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": true}]);
            meta(json!({"labels": {"app": app}, "ownerReferences": owners}))
        };
        let orphan = |app: &str| meta(json!({"labels": {"app": app}}));
        let cases = [
            (&owner, owned("1", "a"), Claim::Keep),
            (&owner, owned("1", "b"), Claim::Release),
            (&owner, owned("2", "a"), Claim::Leave),
            (&owner, orphan("a"), Claim::Adopt),
            (&owner, orphan("b"), Claim::Leave),
            (&leaving, orphan("a"), Claim::Leave),
            (&leaving, owned("1", "b"), Claim::Leave),
            (&leaving, owned("1", "a"), Claim::Keep),
        ];
        for (owner, object, expected) in cases {
            assert_eq!(claim(owner, &selector, &object), expected, "{object:?}");
        }
    }
}
