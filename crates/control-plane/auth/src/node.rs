//! The Node authorizer: a kubelet reads what the pods bound to its node refer to, and writes what is its own.
//!
//! [`Graph`] knows which node needs which object, from the pods; [`decide`] answers for one request. What needs the object itself (a
//! PersistentVolume's claim, a VolumeAttachment's node) is asked through [`Lookup`].
//!
//! Source: `plugin/pkg/auth/authorizer/node`, KEP-4601 (list and watch by selector).

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use crate::UserInfo;
use crate::authorize::{Attributes, Decision};

/// The node behind a user: `system:node:<name>` in group `system:nodes`.
pub fn identity(user: &UserInfo) -> Option<&str> {
    let node = user.username.strip_prefix("system:node:")?;
    user.groups.iter().any(|group| group == "system:nodes").then_some(node)
}

/// What pods refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Pod,
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

/// Kind, namespace, name.
type Vertex = (Kind, String, String);

/// Which nodes need which objects.
#[derive(Debug, Default)]
pub struct Graph {
    /// By namespace and name: the node and what the pod needs.
    pods: HashMap<(String, String), (String, BTreeSet<Vertex>)>,
    /// By object: how many pods of each node need it.
    needed: HashMap<Vertex, HashMap<String, usize>>,
}

impl Graph {
    /// The pod is now so, or gone.
    pub fn set_pod(&mut self, namespace: &str, name: &str, pod: Option<&Value>) {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some((node, vertices)) = self.pods.remove(&key) {
            vertices.iter().for_each(|vertex| self.forget(vertex, &node));
        }
        let Some((pod, node)) = pod.and_then(|pod| Some((pod, pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())?))) else {
            return;
        };
        let vertices = references(pod, namespace, name);
        for vertex in &vertices {
            *self.needed.entry(vertex.clone()).or_default().entry(node.to_owned()).or_default() += 1;
        }
        self.pods.insert(key, (node.to_owned(), vertices));
    }

    fn forget(&mut self, vertex: &Vertex, node: &str) {
        let Some(nodes) = self.needed.get_mut(vertex) else { return };
        if let Some(count) = nodes.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                nodes.remove(node);
            }
        }
        if nodes.is_empty() {
            self.needed.remove(vertex);
        }
    }

    /// The node that the pod was last seen on.
    pub fn node_of(&self, namespace: &str, name: &str) -> Option<&str> {
        self.pods.get(&(namespace.to_owned(), name.to_owned())).map(|(node, _)| node.as_str())
    }

    pub fn needs(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        self.needed.get(&(kind, namespace.to_owned(), name.to_owned())).is_some_and(|nodes| nodes.contains_key(node))
    }
}

/// Everything that the pod's node must read for it.
fn references(pod: &Value, namespace: &str, name: &str) -> BTreeSet<Vertex> {
    let mut found = References { namespace, vertices: BTreeSet::new() };
    found.add(Kind::Pod, &Value::from(name));
    // A mirror pod is the node's own word: it opens nothing.
    if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        return found.vertices;
    }
    let spec = &pod["spec"];
    found.add(Kind::ServiceAccount, &spec["serviceAccountName"]);
    for secret in items(&spec["imagePullSecrets"]) {
        found.add(Kind::Secret, &secret["name"]);
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        items(&spec[list]).for_each(|container| found.container(container));
    }
    items(&spec["volumes"]).for_each(|volume| found.volume(volume, name));
    for claim in items(&spec["resourceClaims"]) {
        found.add(Kind::ResourceClaim, &claim["resourceClaimName"]);
    }
    for claim in items(&pod["status"]["resourceClaimStatuses"]) {
        found.add(Kind::ResourceClaim, &claim["resourceClaimName"]);
    }
    found.vertices
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

struct References<'a> {
    namespace: &'a str,
    vertices: BTreeSet<Vertex>,
}

impl References<'_> {
    fn add(&mut self, kind: Kind, name: &Value) {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            self.vertices.insert((kind, self.namespace.to_owned(), name.to_owned()));
        }
    }

    fn container(&mut self, container: &Value) {
        for variable in items(&container["env"]) {
            self.add(Kind::Secret, &variable["valueFrom"]["secretKeyRef"]["name"]);
            self.add(Kind::ConfigMap, &variable["valueFrom"]["configMapKeyRef"]["name"]);
        }
        for source in items(&container["envFrom"]) {
            self.add(Kind::Secret, &source["secretRef"]["name"]);
            self.add(Kind::ConfigMap, &source["configMapRef"]["name"]);
        }
    }

    fn volume(&mut self, volume: &Value, pod: &str) {
        self.add(Kind::Secret, &volume["secret"]["secretName"]);
        self.add(Kind::Secret, &volume["azureFile"]["secretName"]);
        for plugin in ["cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"] {
            self.add(Kind::Secret, &volume[plugin]["secretRef"]["name"]);
        }
        self.add(Kind::Secret, &volume["csi"]["nodePublishSecretRef"]["name"]);
        self.add(Kind::ConfigMap, &volume["configMap"]["name"]);
        self.add(Kind::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        if volume["ephemeral"].is_object() {
            self.add(Kind::Claim, &Value::from(format!("{pod}-{}", volume["name"].as_str().unwrap_or_default())));
        }
        for source in items(&volume["projected"]["sources"]) {
            self.add(Kind::Secret, &source["secret"]["name"]);
            self.add(Kind::ConfigMap, &source["configMap"]["name"]);
        }
    }
}

/// Objects that are looked at when they are asked for.
pub trait Lookup {
    fn volume(&self, name: &str) -> Option<Value>;
    fn volumes(&self) -> Vec<Value>;
    fn attachment(&self, name: &str) -> Option<Value>;
    fn slice(&self, name: &str) -> Option<Value>;
}

const READ: [&str; 3] = ["get", "list", "watch"];
const OWN: [&str; 5] = ["get", "create", "update", "patch", "delete"];
const LEASES: &str = "kube-node-lease";

/// `None` where the user is no node. What is not about single objects is left to `rules`, the static rules of all nodes.
pub fn decide(
    user: &UserInfo,
    asked: &Attributes<'_>,
    graph: &Graph,
    lookup: &dyn Lookup,
    rules: &[crate::rbac::Rule],
) -> Option<Decision> {
    let node = identity(user)?;
    if node.is_empty() {
        return Some(Decision::NoOpinion(format!("unknown node for user {:?}", user.username)));
    }
    let question = Question { node, asked, graph, lookup };
    let answer = match (asked.group, asked.resource) {
        _ if !asked.is_resource => None,
        ("", "secrets") => Some(question.read(Kind::Secret)),
        ("", "configmaps") => Some(question.read(Kind::ConfigMap)),
        ("", "persistentvolumeclaims") if asked.subresource == "status" => Some(question.claim_status()),
        ("", "persistentvolumeclaims") => Some(question.get(|| question.needs(Kind::Claim))),
        ("", "persistentvolumes") => Some(question.get(|| question.needs_volume())),
        ("resource.k8s.io", "resourceclaims") => Some(question.get(|| question.needs(Kind::ResourceClaim))),
        ("storage.k8s.io", "volumeattachments") => {
            Some(question.get(|| lookup.attachment(asked.name).is_some_and(|object| object["spec"]["nodeName"] == node)))
        }
        ("", "serviceaccounts") => Some(question.token()),
        ("coordination.k8s.io", "leases") => Some(question.lease()),
        ("storage.k8s.io", "csinodes") => Some(question.csi_node()),
        ("resource.k8s.io", "resourceslices") => Some(question.slice()),
        ("", "nodes") => Some(question.node()),
        ("", "pods") => Some(question.pod()),
        _ => None,
    };
    Some(match answer {
        Some(Ok(())) => Decision::Allow(String::new()),
        Some(Err(why)) => Decision::NoOpinion(why),
        None if rules.iter().any(|rule| rule.allows(asked)) => Decision::Allow(String::new()),
        None => Decision::NoOpinion(String::new()),
    })
}

/// Allowed, or what speaks against it.
type Answer = Result<(), String>;

struct Question<'a> {
    node: &'a str,
    asked: &'a Attributes<'a>,
    graph: &'a Graph,
    lookup: &'a dyn Lookup,
}

fn ensure(holds: bool, otherwise: impl Into<String>) -> Answer {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

impl Question<'_> {
    fn verb_in(&self, verbs: &[&str], otherwise: &str) -> Answer {
        ensure(verbs.contains(&self.asked.verb), otherwise)
    }

    fn related(&self, related: bool) -> Answer {
        ensure(!self.asked.name.is_empty(), "No Object name found")?;
        ensure(related, format!("no relationship found between node '{}' and this object", self.node))
    }

    fn needs(&self, kind: Kind) -> bool {
        self.graph.needs(self.node, kind, self.asked.namespace, self.asked.name)
    }

    fn read(&self, kind: Kind) -> Answer {
        self.verb_in(&READ, "can only read resources of this type")?;
        ensure(self.asked.subresource.is_empty(), "cannot read subresource")?;
        ensure(!self.asked.namespace.is_empty(), "can only read namespaced object of this type")?;
        self.related(self.needs(kind) || kind == Kind::Secret && self.secret_of_volume())
    }

    fn get(&self, related: impl Fn() -> bool) -> Answer {
        self.verb_in(&["get"], "can only get individual resources of this type")?;
        ensure(self.asked.subresource.is_empty(), "cannot get subresource")?;
        self.related(!self.asked.name.is_empty() && related())
    }

    fn claim_status(&self) -> Answer {
        self.verb_in(&["update", "patch"], "can only get/update/patch this type")?;
        self.related(self.needs(Kind::Claim))
    }

    fn claims(&self, volume: &Value) -> bool {
        let text = |name: &str| volume["spec"]["claimRef"][name].as_str().unwrap_or_default();
        self.graph.needs(self.node, Kind::Claim, text("namespace"), text("name"))
    }

    fn needs_volume(&self) -> bool {
        self.lookup.volume(self.asked.name).is_some_and(|volume| self.claims(&volume))
    }

    /// A secret that a volume of one of the node's claims is opened with.
    fn secret_of_volume(&self) -> bool {
        let volumes = self.lookup.volumes();
        volumes.iter().any(|volume| opens(volume, self.asked.namespace, self.asked.name) && self.claims(volume))
    }

    fn token(&self) -> Answer {
        if self.asked.subresource.is_empty() && self.asked.verb == "get" {
            return self.related(self.needs(Kind::ServiceAccount));
        }
        let single = self.asked.verb == "create" && !self.asked.name.is_empty();
        ensure(single, "can only create tokens for individual service accounts")?;
        ensure(self.asked.subresource == "token", "can only create token subresource of serviceaccount")?;
        self.related(self.needs(Kind::ServiceAccount))
    }

    /// At a create the name is not known yet: admission looks at it.
    fn own_name(&self, otherwise: &str) -> Answer {
        ensure(self.asked.verb == "create" || self.asked.name == self.node, otherwise)
    }

    fn lease(&self) -> Answer {
        self.verb_in(&OWN, "can only get, create, update, patch, or delete a node lease")?;
        ensure(self.asked.namespace == LEASES, format!("can only access leases in the {LEASES:?} system namespace"))?;
        self.own_name("can only access node lease with the same name as the requesting node")
    }

    fn csi_node(&self) -> Answer {
        self.verb_in(&OWN, "can only get, create, update, patch, or delete a CSINode")?;
        ensure(self.asked.subresource.is_empty(), "cannot authorize CSINode subresources")?;
        self.own_name("can only access CSINode with the same name as the requesting node")
    }

    fn slice(&self) -> Answer {
        ensure(self.asked.subresource.is_empty(), "cannot authorize ResourceSlice subresources")?;
        match self.asked.verb {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => {
                self.related(self.lookup.slice(self.asked.name).is_some_and(|slice| slice["spec"]["nodeName"] == self.node))
            }
            "watch" | "list" | "deletecollection" => {
                let why = "can only list/watch/deletecollection resourceslices with nodeName field selector";
                ensure(["nodeName", "spec.nodeName"].iter().any(|field| self.asked.selects_field(field, self.node)), why)
            }
            _ => Err("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, \
                      deletecollection"
                .into()),
        }
    }

    fn node(&self) -> Answer {
        let Attributes { verb, subresource, name, .. } = *self.asked;
        match (subresource, verb) {
            // Admission looks at the name and at what is changed.
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
            ("", "get" | "list" | "watch") => {
                ensure(name == self.node, format!("node '{}' cannot read '{name}', only its own Node object", self.node))
            }
            ("", _) => Err(String::new()),
            // The kubelet asks on behalf of its callers whether they may; its own calls to itself come so too.
            (_, _) if name == self.node => Ok(()),
            _ => Err(String::new()),
        }
    }

    fn pod(&self) -> Answer {
        match (self.asked.subresource, self.asked.verb) {
            ("", "get") => self.related(self.needs(Kind::Pod)),
            ("", "list" | "watch") => {
                let one = !self.asked.name.is_empty() && self.needs(Kind::Pod);
                let own = self.asked.selects_field("spec.nodeName", self.node);
                ensure(one || own, "can only list/watch pods with spec.nodeName field selector")
            }
            // Admission looks at whose pod it is.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            ("status", "get") => self.related(self.needs(Kind::Pod)),
            _ => Err(String::new()),
        }
    }
}

/// Does the volume name this secret?
fn opens(volume: &Value, namespace: &str, name: &str) -> bool {
    let (spec, claim) = (&volume["spec"], &volume["spec"]["claimRef"]["namespace"]);
    let is = |reference: &Value, name_field: &str, namespace_field: &str| {
        let within = if reference[namespace_field].is_string() { &reference[namespace_field] } else { claim };
        reference[name_field] == name && within == namespace
    };
    let csi = ["controllerPublishSecretRef", "nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"];
    let plugins = ["cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"];
    is(&spec["azureFile"], "secretName", "secretNamespace")
        || csi.iter().any(|field| is(&spec["csi"][field], "name", "namespace"))
        || plugins.iter().any(|plugin| is(&spec[plugin]["secretRef"], "name", "namespace"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Volumes;

    impl Lookup for Volumes {
        fn volume(&self, name: &str) -> Option<Value> {
            self.volumes().into_iter().find(|volume| volume["metadata"]["name"] == name)
        }
        fn volumes(&self) -> Vec<Value> {
            let csi = json!({"nodeStageSecretRef": {"namespace": "vault", "name": "key"}});
            let volume = |name: &str, claim: &str| json!({"metadata": {"name": name}, "spec": {"csi": csi, "claimRef": {"namespace": "a", "name": claim}}});
            vec![volume("pv1", "claim"), volume("pv2", "others")]
        }
        fn attachment(&self, name: &str) -> Option<Value> {
            Some(json!({"spec": {"nodeName": name}}))
        }
        fn slice(&self, name: &str) -> Option<Value> {
            Some(json!({"spec": {"nodeName": name}}))
        }
    }

    fn graph() -> Graph {
        let mut graph = Graph::default();
        let pod = json!({"spec": {
            "nodeName": "n1", "serviceAccountName": "bot", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "from"}}]}],
            "volumes": [
                {"secret": {"secretName": "files"}}, {"persistentVolumeClaim": {"claimName": "claim"}}, {"name": "tmp", "ephemeral": {}},
                {"projected": {"sources": [{"configMap": {"name": "root"}}]}},
            ],
        }});
        graph.set_pod("a", "p", Some(&pod));
        graph
    }

    fn ask(graph: &Graph, sentence: &str) -> Decision {
        let words: Vec<&str> = sentence.split(' ').collect();
        let [verb, resource, place] = words[..3] else { panic!("{sentence}") };
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (namespace, name) = place.split_once('/').unwrap_or(("", place));
        let field_selector = words.get(3).copied().unwrap_or_default();
        let asked =
            Attributes { is_resource: true, verb, group, resource, subresource, namespace, name, field_selector, ..Attributes::default() };
        let user = UserInfo::authenticated("system:node:n1", &["system:nodes"]);
        let rules: Vec<crate::rbac::Rule> =
            serde_json::from_value(json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["services"]}])).unwrap();
        decide(&user, &asked, graph, &Volumes, &rules).unwrap()
    }

    #[test]
    fn a_node_reads_what_its_pods_need_and_nothing_else() {
        let graph = graph();
        let unrelated = "no relationship found between node 'n1' and this object";
        let cases = [
            ("get secrets a/files", "yes"),
            ("watch secrets a/env", "yes"),
            ("list secrets a/pull", "yes"),
            ("get secrets vault/key", "yes"),
            ("get secrets a/other", unrelated),
            ("get secrets b/files", unrelated),
            ("list secrets a/", "No Object name found"),
            ("list secrets files", "can only read namespaced object of this type"),
            ("delete secrets a/files", "can only read resources of this type"),
            ("get configmaps a/from", "yes"),
            ("get configmaps a/root", "yes"),
            ("get persistentvolumeclaims a/claim", "yes"),
            ("get persistentvolumeclaims a/p-tmp", "yes"),
            ("list persistentvolumeclaims a/claim", "can only get individual resources of this type"),
            ("patch persistentvolumeclaims/status a/claim", "yes"),
            ("get persistentvolumes pv1", "yes"),
            ("get persistentvolumes pv2", unrelated),
            ("get volumeattachments.storage.k8s.io n1", "yes"),
            ("get volumeattachments.storage.k8s.io n2", unrelated),
            ("create serviceaccounts/token a/bot", "yes"),
            ("create serviceaccounts/token a/other", unrelated),
            ("delete serviceaccounts a/bot", "can only create tokens for individual service accounts"),
            ("update leases.coordination.k8s.io kube-node-lease/n1", "yes"),
            (
                "update leases.coordination.k8s.io kube-node-lease/n2",
                "can only access node lease with the same name as the requesting node",
            ),
            ("create leases.coordination.k8s.io a/n1", "can only access leases in the \"kube-node-lease\" system namespace"),
            ("get nodes n1", "yes"),
            ("get nodes n2", "node 'n1' cannot read 'n2', only its own Node object"),
            ("delete nodes n1", ""),
            ("get pods a/p", "yes"),
            ("get pods a/q", unrelated),
            ("list pods a/ spec.nodeName=n1", "yes"),
            ("list pods a/ spec.nodeName==n1,metadata.namespace=a", "yes"),
            ("list pods a/ spec.nodeName=n2", "can only list/watch pods with spec.nodeName field selector"),
            ("list pods a/ spec.nodeName!=n1", "can only list/watch pods with spec.nodeName field selector"),
            ("list services a/", "yes"),
            ("list endpoints a/", ""),
        ];
        for (sentence, expected) in cases {
            let found = match ask(&graph, sentence) {
                Decision::Allow(_) => "yes".to_owned(),
                other => other.reason().to_owned(),
            };
            assert_eq!(found, expected, "{sentence}");
        }
    }

    #[test]
    fn what_a_pod_opened_closes_with_it() {
        let mut graph = graph();
        let second = json!({"spec": {"nodeName": "n1", "containers": [], "volumes": [{"secret": {"secretName": "files"}}]}});
        graph.set_pod("a", "q", Some(&second));
        graph.set_pod("a", "p", None);
        assert!(ask(&graph, "get secrets a/files").is_allowed());
        assert!(!ask(&graph, "get secrets a/env").is_allowed());
        graph.set_pod("a", "q", None);
        assert!(!ask(&graph, "get secrets a/files").is_allowed());
        assert!(graph.needed.is_empty());
    }

    #[test]
    fn only_members_of_the_group_are_nodes() {
        assert_eq!(identity(&UserInfo::authenticated("system:node:n1", &["system:nodes"])), Some("n1"));
        assert_eq!(identity(&UserInfo::authenticated("system:node:n1", &[])), None);
        assert_eq!(identity(&UserInfo::authenticated("n1", &["system:nodes"])), None);
    }
}
