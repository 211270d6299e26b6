//! The built-in resources: what discovery says of them, which versions are served, where they are stored.

pub use crate::table::resource_list::RESOURCES;
pub use served::Served;

pub mod served;

/// One resource in one version.
#[derive(Debug)]
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    /// Empty where the resource has no list.
    pub list_kind: &'static str,
    pub subresources: &'static [Subresource],
    /// The version is GA.
    pub stable: bool,
    /// A server without `runtime-config` serves it: GA versions only.
    pub served: bool,
    /// The place of the group in `/apis`; 0 is the core group.
    pub group_order: usize,
    pub storage_version: &'static str,
    /// Releases such as `1.9`; empty where unknown.
    pub introduced: &'static str,
    pub deprecated: &'static str,
    pub removed: &'static str,
    /// `group/version/Kind`, or empty.
    pub replacement: &'static str,
}

/// A subresource, with the kind it takes and gives.
#[derive(Debug)]
pub struct Subresource {
    pub name: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
    /// Query parameters of its own (`container`, `follow`, …).
    pub params: &'static [&'static str],
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }
    /// A deletion answers with the object it deleted instead of a Status (upstream: `ReturnDeletedObject`).
    pub fn deletion_returns_object(&self) -> bool {
        match self.group {
            "" => RETURNED.contains(&self.plural),
            "resource.k8s.io" => true,
            "storage.k8s.io" => self.plural != "csistoragecapacities",
            _ => false,
        }
    }
    /// Discovery's hash of the storage version, as upstream: base64 of the first eight bytes of SHA-256.
    pub fn storage_version_hash(&self) -> String {
        storage_version_hash(self.storage_group(), self.storage_version, self.kind)
    }
    /// The group in which the object is stored: events are one resource in two groups.
    pub fn storage_group(&self) -> &'static str {
        if self.group == "events.k8s.io" { "" } else { self.group }
    }
    /// What stands between `/registry/` and the namespace or name (source: the default storage factory's special prefixes).
    pub fn storage_prefix(&self) -> String {
        match (self.group, self.plural) {
            ("", "replicationcontrollers") => "controllers".into(),
            ("", "endpoints") => "services/endpoints".into(),
            ("", "services") => "services/specs".into(),
            ("", "nodes") => "minions".into(),
            ("networking.k8s.io", "ingresses") => "ingress".into(),
            ("apiextensions.k8s.io" | "apiregistration.k8s.io", plural) => format!("{}/{plural}", self.group),
            (_, plural) => plural.into(),
        }
    }
}

/// The core group's resources whose deletion answers with the object.
const RETURNED: [&str; 7] =
    ["persistentvolumeclaims", "persistentvolumes", "pods", "podtemplates", "resourcequotas", "serviceaccounts", "services"];

/// base64(first eight bytes of sha256("group/version/Kind")).
pub fn storage_version_hash(group: &str, version: &str, kind: &str) -> String {
    use base64::Engine;
    use sha2::Digest;
    let digest = sha2::Sha256::digest(format!("{group}/{version}/{kind}"));
    base64::engine::general_purpose::STANDARD.encode(digest.get(..8).unwrap_or_default())
}

/// Every resource, by group order, then preferred version, then name.
pub fn all() -> &'static [Resource] {
    &RESOURCES
}

pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    all().iter().find(|resource| (resource.group, resource.version, resource.plural) == (group, version, plural))
}

pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    all().iter().find(|resource| (resource.group, resource.version, resource.kind) == (group, version, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_version_hashes_are_those_of_upstream() {
        assert_eq!(find("", "v1", "pods").unwrap().storage_version_hash(), "xPOwRZ+Yhw8=");
        assert_eq!(find("", "v1", "configmaps").unwrap().storage_version_hash(), "qFsyl6wFWjQ=");
        let younger = [
            ("certificates.k8s.io", "v1", "podcertificaterequests", "wYA9yXQH8fg="),
            ("storagemigration.k8s.io", "v1", "storageversionmigrations", "pCjmmKOkLy4="),
            ("scheduling.k8s.io", "v1alpha3", "podgroups", "QjOl2H5qPs0="),
            ("scheduling.k8s.io", "v1beta1", "workloads", "Fgcxusx6IUo="),
        ];
        for (group, version, plural, hash) in younger {
            assert_eq!(find(group, version, plural).unwrap().storage_version_hash(), hash, "{plural}");
        }
    }

    #[test]
    fn only_ga_versions_are_served_and_preferred_versions_are_stored() {
        assert!(all().iter().all(|resource| !resource.served || !resource.version.contains("beta")));
        assert_eq!(find("autoscaling", "v1", "horizontalpodautoscalers").unwrap().storage_version, "v2");
        assert!(!find("resource.k8s.io", "v1beta1", "resourceclaims").unwrap().served);
        assert_eq!(all().first().map(|resource| resource.group), Some(""));
    }

    #[test]
    fn every_kind_and_list_kind_has_a_type() {
        for resource in all() {
            assert!(crate::table::by_gvk(resource.group, resource.version, resource.kind).is_some(), "{}", resource.kind);
            let list = resource.list_kind;
            assert!(list.is_empty() || crate::table::by_gvk(resource.group, resource.version, list).is_some(), "{list}");
        }
    }
}
