//! NodeRestriction: a kubelet writes its own Node, its own pods' status and its own lease, nothing else.
//!
//! Applies to users `system:node:<name>` in group `system:nodes`. Authorization decides on resources, this on objects.

use meta::gvk::GroupResource;
use meta::status::Status;
use rules::value::{annotation, at, entries, has, list, name, same, text};
use serde_json::Value;

use crate::{Attributes, Lookup, Operation, Plugin, Verdict, core};

const MIRROR: &str = "kubernetes.io/config.mirror";
const LEASE_NAMESPACE: &str = "kube-node-lease";

pub struct NodeRestriction;

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            let Some(node) = node_of(attributes) else { return Ok(()) };
            let checked = match (attributes.gvr.group.as_str(), attributes.gvr.resource.as_str()) {
                ("", "pods") => pods(attributes, node, lookup).await?,
                ("", "nodes") => nodes(attributes, node),
                ("", "serviceaccounts") if attributes.subresource == "token" => token(attributes, node, lookup).await?,
                ("certificates.k8s.io", "podcertificaterequests") if attributes.subresource.is_empty() => {
                    pod_certificate(attributes, node, lookup).await?
                }
                ("coordination.k8s.io", "leases") => leases(attributes, node),
                ("storage.k8s.io", "csinodes") if attributes.name != node => {
                    Err("can only access CSINode with the same name as the requesting node".into())
                }
                _ => Ok(()),
            };
            checked.map_err(|why| attributes.forbidden(why))
        })
    }
}

/// What is wrong, as the rest of `pods "x" is forbidden: …`.
type Checked = Result<(), String>;

fn node_of(attributes: &Attributes) -> Option<&str> {
    let node = attributes.user.username.strip_prefix("system:node:")?;
    attributes.user.groups.iter().any(|group| group == "system:nodes").then_some(node)
}

async fn pods(attributes: &Attributes, node: &str, lookup: &dyn Lookup) -> Result<Checked, Status> {
    let subresource = attributes.subresource.as_str();
    Ok(match (attributes.operation, subresource) {
        (Operation::Create, "") => attributes.object.as_ref().map_or(Ok(()), |pod| mirror_pod(pod, node)),
        (Operation::Delete, "") => {
            let stored = match &attributes.old {
                Some(pod) => Some(std::sync::Arc::new(pod.clone())),
                None => lookup.get(&core("pods"), &attributes.namespace, &attributes.name).await?,
            };
            own(stored.as_deref(), node, || format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        (Operation::Update, "status") => own(attributes.old.as_ref(), node, || {
            format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")
        })
        .and_then(|()| labels_kept(attributes, node)),
        (Operation::Create, "eviction") => {
            let stored = lookup.get(&core("pods"), &attributes.namespace, &attributes.name).await?;
            own(stored.as_deref(), node, || format!("node {node:?} can only evict pods with spec.nodeName set to itself"))
        }
        (operation, "") => Err(format!("unexpected operation {:?}", format!("{operation:?}").to_uppercase())),
        (_, other) => Err(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed")),
    })
}

/// A kubelet asks for certificates of pods that run here and now, and says of them what is so (KEP-4317).
async fn pod_certificate(attributes: &Attributes, node: &str, lookup: &dyn Lookup) -> Result<Checked, Status> {
    let Some(request) = attributes.object.as_ref().filter(|_| attributes.operation == Operation::Create) else {
        return Ok(Err(format!("unexpected operation {:?}", format!("{:?}", attributes.operation).to_uppercase())));
    };
    let said = |field: &str| text(request, &format!("spec.{field}")).to_owned();
    if said("nodeName") != node {
        return Ok(Err(format!("PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {node:?}", said("nodeName"))));
    }
    let here = lookup.get(&core("nodes"), "", node).await?;
    let pod = lookup.get(&core("pods"), &attributes.namespace, &said("podName")).await?;
    let Some(pod) = pod else { return Ok(Err(format!("pod {:?} named in the PodCertificateRequest not found", said("podName")))) };
    let account = lookup.get(&core("serviceaccounts"), &attributes.namespace, &said("serviceAccountName")).await?;
    let uid = |object: Option<&Value>| object.map(|object| text(object, "metadata.uid").to_owned()).unwrap_or_default();
    let facts = [
        ("node UID", said("nodeUID"), uid(here.as_deref())),
        ("pod UID", said("podUID"), uid(Some(&pod))),
        ("node of the pod", node.to_owned(), text(&pod, "spec.nodeName").to_owned()),
        ("service account name", said("serviceAccountName"), text(&pod, "spec.serviceAccountName").to_owned()),
        ("service account UID", said("serviceAccountUID"), uid(account.as_deref())),
    ];
    if annotation(&pod, MIRROR).is_some() {
        return Ok(Err(format!("pod {:?} is a mirror pod", said("podName"))));
    }
    let wrong = facts.into_iter().find(|(_, said, is)| said != is);
    Ok(wrong.map_or(Ok(()), |(what, said, is)| {
        Err(format!("PodCertificateRequest for pod {:?}: {what} is {is:?}, not {said:?}", text(request, "spec.podName")))
    }))
}

/// An absent pod is nobody's: the handler will answer 404.
fn own(pod: Option<&Value>, node: &str, why: impl Fn() -> String) -> Checked {
    if pod.is_none_or(|pod| text(pod, "spec.nodeName") == node) { Ok(()) } else { Err(why()) }
}

fn labels_kept(attributes: &Attributes, node: &str) -> Checked {
    let labels = |object: &Option<Value>| object.as_ref().map(|object| at(object, "metadata.labels").clone()).unwrap_or_default();
    if same(&labels(&attributes.object), &labels(&attributes.old)) {
        Ok(())
    } else {
        Err(format!("node {node:?} cannot update labels through pod status"))
    }
}

fn mirror_pod(pod: &Value, node: &str) -> Checked {
    if annotation(pod, MIRROR).is_none() {
        return Err(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    if text(pod, "spec.nodeName") != node {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    if !text(pod, "spec.serviceAccountName").is_empty() {
        return Err(format!("node {node:?} can not create pods that reference a service account"));
    }
    let kinds = [("secret", "secrets"), ("configMap", "configmaps"), ("persistentVolumeClaim", "persistentvolumeclaims")];
    let volumes = list(pod, "spec.volumes");
    let used = kinds.iter().find(|(field, _)| volumes.iter().any(|volume| has(volume, field)));
    used.map_or(Ok(()), |(_, kind)| Err(format!("node {node:?} can not create pods that reference {kind}")))
}

fn nodes(attributes: &Attributes, node: &str) -> Checked {
    let given = attributes.object.as_ref().map(name).filter(|_| attributes.name.is_empty()).unwrap_or(&attributes.name);
    if given != node {
        return Err(format!("node {node:?} is not allowed to modify node {given:?}"));
    }
    let empty = Value::Null;
    let new = attributes.object.as_ref().unwrap_or(&empty);
    match attributes.operation {
        Operation::Create => {
            let forbidden = forbidden_labels(entries(new, "metadata.labels").map(|(key, _)| key.as_str()));
            if !forbidden.is_empty() {
                return Err(format!("node {node:?} is not allowed to set the following labels: {}", forbidden.join(", ")));
            }
        }
        Operation::Update => {
            let old = attributes.old.as_ref().unwrap_or(&empty);
            if !same(at(new, "spec.taints"), at(old, "spec.taints")) {
                return Err(format!("node {node:?} is not allowed to modify taints"));
            }
            let (after, before) = (at(new, "metadata.labels"), at(old, "metadata.labels"));
            let keys = entries(new, "metadata.labels").chain(entries(old, "metadata.labels")).map(|(key, _)| key.as_str());
            let forbidden = forbidden_labels(keys.filter(|key| after.get(key) != before.get(key)));
            if !forbidden.is_empty() {
                return Err(format!("is not allowed to modify labels: {}", forbidden.join(", ")));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Labels of the kubernetes.io domains that a kubelet may set on itself.
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "node.kubernetes.io/instance-type",
    "node.kubernetes.io/windows-build",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

fn forbidden_labels<'a>(keys: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let within = |prefix: &str, domain: &str| prefix == domain || prefix.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    let forbidden = |key: &&str| {
        let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
        let reserved = within(prefix, "kubernetes.io") || within(prefix, "k8s.io");
        let offered = OWN_LABELS.contains(key) || within(prefix, "kubelet.kubernetes.io") || within(prefix, "node.kubernetes.io");
        reserved && !offered
    };
    let mut found: Vec<&str> = keys.filter(forbidden).collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn leases(attributes: &Attributes, node: &str) -> Checked {
    if attributes.namespace != LEASE_NAMESPACE {
        return Err(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"));
    }
    let given = attributes.object.as_ref().map(name).filter(|_| attributes.name.is_empty()).unwrap_or(&attributes.name);
    if given == node { Ok(()) } else { Err("can only access node lease with the same name as the requesting node".into()) }
}

/// A kubelet asks for tokens of the accounts of its own pods, bound to the pod.
async fn token(attributes: &Attributes, node: &str, lookup: &dyn Lookup) -> Result<Checked, Status> {
    let Some(request) = &attributes.object else { return Ok(Ok(())) };
    let bound = at(request, "spec.boundObjectRef");
    if (text(bound, "apiVersion"), text(bound, "kind")) != ("v1", "Pod") || text(bound, "name").is_empty() {
        return Ok(Err("node requested token not bound to a pod".into()));
    }
    if text(bound, "uid").is_empty() {
        return Ok(Err("node requested token with a pod binding without a uid".into()));
    }
    let pods = GroupResource { group: String::new(), resource: "pods".into() };
    let Some(pod) = lookup.get(&pods, &attributes.namespace, text(bound, "name")).await? else {
        return Ok(Err(format!("pod {:?} not found", text(bound, "name"))));
    };
    if text(&pod, "metadata.uid") != text(bound, "uid") {
        let why = format!("the UID in the bound object reference ({}) does not match the UID in record", text(bound, "uid"));
        return Ok(Err(why));
    }
    Ok(own(Some(&pod), node, || "node requested token bound to a pod scheduled on a different node".into()))
}

#[cfg(test)]
mod tests {
    use auth::UserInfo;
    use serde_json::json;

    use super::*;
    use crate::fixture::{Objects, run, write};

    async fn as_node(mut attributes: Attributes) -> Result<(), String> {
        attributes.user = UserInfo::authenticated("system:node:n1", &["system:nodes"]);
        let objects =
            Objects::default().with("pods", json!({"metadata": {"name": "p", "namespace": "a", "uid": "u"}, "spec": {"nodeName": "n2"}}));
        run(NodeRestriction, objects, &mut attributes).await
    }

    fn pod(operation: Operation, subresource: &str, node: &str) -> Attributes {
        let object = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"nodeName": node}});
        Attributes { subresource: subresource.into(), ..write(operation, "pods", "Pod", object) }
    }

    #[tokio::test]
    async fn a_kubelet_writes_only_its_own_pods() {
        use Operation::{Create, Delete, Update};
        let cases = [
            (pod(Update, "status", "n1"), ""),
            (pod(Update, "status", "n2"), "node \"n1\" can only update pod status for pods with spec.nodeName set to itself"),
            (pod(Delete, "", "n1"), ""),
            (pod(Delete, "", "n2"), "node \"n1\" can only delete pods with spec.nodeName set to itself"),
            (
                pod(Create, "", "n1"),
                "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"n1\" can only create mirror pods",
            ),
            (pod(Create, "eviction", "n1"), "node \"n1\" can only evict pods with spec.nodeName set to itself"),
        ];
        for (attributes, expected) in cases {
            let found = as_node(attributes).await.err().unwrap_or_default();
            assert_eq!(found.strip_prefix("pods \"p\" is forbidden: ").unwrap_or(&found), expected);
        }
        let mut other = pod(Update, "status", "n2");
        assert_eq!(run(NodeRestriction, Objects::default(), &mut other).await, Ok(()), "others are not kubelets");
    }

    #[tokio::test]
    async fn a_kubelet_writes_only_its_own_node_and_lease() {
        let node =
            |name: &str, labels: Value| write(Operation::Create, "nodes", "Node", json!({"metadata": {"name": name, "labels": labels}}));
        assert_eq!(as_node(node("n1", json!({"kubernetes.io/hostname": "n1", "my.org/x": ""}))).await, Ok(()));
        let found = as_node(node("n2", json!({}))).await;
        assert_eq!(found, Err("nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\"".into()));
        let found = as_node(node("n1", json!({"node-role.kubernetes.io/control-plane": ""}))).await;
        let expected =
            "nodes \"n1\" is forbidden: node \"n1\" is not allowed to set the following labels: node-role.kubernetes.io/control-plane";
        assert_eq!(found, Err(expected.into()));
        let mut taints = node("n1", json!({}));
        taints.operation = Operation::Update;
        taints.old = Some(json!({"spec": {"taints": [{"key": "a"}]}}));
        assert!(as_node(taints).await.is_err());
        for (namespace, name, allowed) in [(LEASE_NAMESPACE, "n1", true), (LEASE_NAMESPACE, "n2", false), ("a", "n1", false)] {
            let mut lease = write(Operation::Update, "leases", "Lease", json!({"metadata": {"name": name, "namespace": namespace}}));
            lease.gvr.group = "coordination.k8s.io".into();
            assert_eq!(as_node(lease).await.is_ok(), allowed, "{namespace}/{name}");
        }
    }

    #[tokio::test]
    async fn tokens_are_bound_to_the_kubelets_own_pods() {
        let request = |spec: Value| {
            let mut attributes =
                write(Operation::Create, "serviceaccounts", "TokenRequest", json!({"metadata": {"name": "default"}, "spec": spec}));
            attributes.subresource = "token".into();
            attributes.namespace = "a".into();
            attributes
        };
        let prefix = "serviceaccounts \"default\" is forbidden: ";
        let cases = [
            (json!({}), "node requested token not bound to a pod"),
            (
                json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}}),
                "node requested token bound to a pod scheduled on a different node",
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(as_node(request(spec)).await, Err(format!("{prefix}{expected}")));
        }
    }
}
