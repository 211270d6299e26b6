//! Where a resource lives: `/api/v1/namespaces/<ns>/pods/<name>` and its relatives.

use std::any::TypeId;
use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, Metadata, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Every `k8s-openapi` type that is an object of the API: it has a path, metadata and a JSON form.
pub trait Object:
    Resource<Scope: 'static> + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
}
impl<K> Object for K where
    K: Resource<Scope: 'static> + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
}

/// A resource of the API: enough to build its paths.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ApiResource {
    /// Empty for the core group.
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    /// The plural in the path: `pods`.
    pub plural: Cow<'static, str>,
    pub kind: Cow<'static, str>,
    pub namespaced: bool,
}

impl ApiResource {
    pub fn of<K: Object>() -> Self {
        Self {
            group: K::GROUP.into(),
            version: K::VERSION.into(),
            plural: K::URL_PATH_SEGMENT.into(),
            kind: K::KIND.into(),
            namespaced: TypeId::of::<K::Scope>() != TypeId::of::<ClusterResourceScope>(),
        }
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The path of the collection. A namespace given for a cluster-scoped resource is left out; none for a namespaced one is all
    /// namespaces.
    pub fn collection(&self, namespace: Option<&str>) -> String {
        let mut path = match self.group.is_empty() {
            true => format!("/api/{}", self.version),
            false => format!("/apis/{}/{}", self.group, self.version),
        };
        if let Some(namespace) = namespace.filter(|namespace| self.namespaced && !namespace.is_empty()) {
            path.push_str("/namespaces/");
            push_segment(&mut path, namespace);
        }
        path.push('/');
        path.push_str(&self.plural);
        path
    }

    /// The path of one object, with `/<subresource>` where that is not empty.
    pub fn object(&self, namespace: Option<&str>, name: &str, subresource: &str) -> String {
        let mut path = self.collection(namespace);
        path.push('/');
        push_segment(&mut path, name);
        if !subresource.is_empty() {
            path.push('/');
            path.push_str(subresource);
        }
        path
    }
}

/// Appends one path segment, percent-encoded (RFC 3986 unreserved characters and `:` stay).
fn push_segment(path: &mut String, segment: &str) {
    encode(path, segment, b"-._~:");
}

/// Appends `text` percent-encoded for a query value.
pub(crate) fn push_query_value(query: &mut String, text: &str) {
    encode(query, text, b"-._~:/,");
}

fn encode(out: &mut String, text: &str, kept: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{apps::v1::Deployment, core::v1::Node, core::v1::Pod, rbac::v1::ClusterRole};

    use super::*;

    #[test]
    fn paths_follow_group_scope_and_subresource() {
        let pods = ApiResource::of::<Pod>();
        assert_eq!(pods.collection(None), "/api/v1/pods");
        assert_eq!(pods.object(Some("a"), "b", "binding"), "/api/v1/namespaces/a/pods/b/binding");
        assert_eq!(ApiResource::of::<Deployment>().object(Some("a"), "b", ""), "/apis/apps/v1/namespaces/a/deployments/b");
        assert_eq!(ApiResource::of::<Node>().object(Some("ignored"), "n", "status"), "/api/v1/nodes/n/status");
        let roles = ApiResource::of::<ClusterRole>();
        let path = roles.object(None, "system:node/é", "");
        assert_eq!(path, "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node%2F%C3%A9");
    }
}
