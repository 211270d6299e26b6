//! The built-in types: generated facts, and how to find a type among them.

use crate::model::Type;

mod extra;
mod make;
#[rustfmt::skip]
pub(crate) mod resource_list;
#[rustfmt::skip]
mod types;

/// The type of an OpenAPI definition, such as `io.k8s.api.core.v1.Pod`.
pub fn find(definition: &str) -> Option<&'static Type> {
    let at = types::TYPES.binary_search_by(|(name, _)| (*name).cmp(definition)).ok();
    match at.and_then(|at| types::TYPES.get(at)) {
        Some((_, found)) => Some(found),
        None => extra::TYPES.iter().find(|found| &*found.name == definition).copied(),
    }
}

/// The type of a kind. `DeleteOptions`, `WatchEvent` and the like are found in every group and version.
pub fn by_gvk(group: &str, version: &str, kind: &str) -> Option<&'static Type> {
    let wanted = (group, version, kind);
    let at = types::KINDS.binary_search_by(|(gvk, _)| gvk.cmp(&wanted)).ok();
    match at.and_then(|at| types::KINDS.get(at)) {
        Some((_, found)) => Some(found),
        None => extra::of_kind(group, version, kind),
    }
}

/// Every definition with its name, in order of the names.
pub fn all() -> impl Iterator<Item = &'static Type> {
    types::TYPES.iter().map(|(_, found)| *found)
}

/// Every built-in kind: (group, version, kind) and its type.
pub fn kinds() -> impl Iterator<Item = ((&'static str, &'static str, &'static str), &'static Type)> {
    types::KINDS.iter().map(|(gvk, found)| (*gvk, *found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Schema, Topology};

    fn field<'a>(definition: &str, name: &str) -> &'a crate::model::Field {
        find(definition).and_then(|found| found.field(name)).unwrap()
    }

    #[test]
    fn every_type_is_found_by_its_name_and_every_kind_by_its_group() {
        for found in all() {
            assert!(std::ptr::eq(find(&found.name).unwrap(), found), "{}", &*found.name);
        }
        for ((group, version, kind), found) in kinds() {
            assert!(std::ptr::eq(by_gvk(group, version, kind).unwrap(), found), "{group}/{version}/{kind}");
        }
        assert_eq!(&*by_gvk("apps", "v1", "Deployment").unwrap().name, "io.k8s.api.apps.v1.Deployment");
        assert!(by_gvk("apps", "v2", "Deployment").is_none());
        assert!(by_gvk("stable.example.com", "v1", "DeleteOptions").is_some());
    }

    #[test]
    fn fields_carry_what_only_go_knows() {
        let replicas = field("io.k8s.api.apps.v1.DeploymentSpec", "replicas");
        assert!(replicas.pointer && replicas.omit_empty && replicas.pb == 1 && &*replicas.go == "int32");
        let status = field("io.k8s.api.core.v1.Pod", "status");
        assert!(!status.omit_empty, "Go writes status: {{}}");
        let created = field("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "creationTimestamp");
        assert!(created.omit_empty && !created.pointer);
        let scope = field("io.k8s.api.admissionregistration.v1.NamedRuleWithOperations", "scope");
        assert_eq!((scope.pb_inline, scope.pb_inline_inner, scope.pb), (2, 2, 4));
    }

    #[test]
    fn lists_carry_their_topology_and_patch_rules() {
        let ports = field("io.k8s.api.core.v1.Container", "ports");
        let Schema::List(list) = &ports.schema else { panic!() };
        let Topology::Map(keys) = &list.topology else { panic!() };
        assert_eq!(keys.iter().map(|key| key.to_string()).collect::<Vec<_>>(), ["containerPort", "protocol"]);
        assert!(ports.patch.merge && ports.patch.merge_key.as_deref() == Some("containerPort"));
        let volumes = field("io.k8s.api.core.v1.PodSpec", "volumes");
        assert!(volumes.patch.merge && volumes.patch.retain_keys);
        let Schema::Object(claim) = &field("io.k8s.api.core.v1.PersistentVolumeSpec", "claimRef").schema else { panic!() };
        assert!(!claim.atomic, "claimRef is granular though ObjectReference is atomic");
    }
}
