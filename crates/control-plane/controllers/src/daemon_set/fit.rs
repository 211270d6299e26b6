//! Whether a daemon belongs on a node, and the pod that asks for that node.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use crate::{act, history, pods};

/// Taints that every daemon tolerates (upstream: `AddOrUpdateDaemonPodTolerations`).
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";

/// (a pod shall be made, a pod that is there may stay)
pub(super) fn fits(set: &DaemonSet, node: &Node) -> (bool, bool) {
    let spec = set.spec.template.spec.clone().unwrap_or_default();
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let named = spec.node_name.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == name);
    if !named || !selects(&spec, node) {
        return (false, false);
    }
    let tolerations = tolerations(&spec);
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let hindered_by = |effect: &str| {
        let relevant = taints.iter().filter(|taint| taint.effect == effect);
        relevant.into_iter().any(|taint| !tolerations.iter().any(|toleration| crate::taint_eviction::tolerates(toleration, taint)))
    };
    let may_stay = !hindered_by("NoExecute");
    (may_stay && !hindered_by("NoSchedule"), may_stay)
}

fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let network = (spec.host_network == Some(true)).then_some((NETWORK_UNAVAILABLE, "NoSchedule"));
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let known = |toleration: &Toleration| toleration.key.as_deref() == Some(key) && toleration.effect.as_deref() == Some(effect);
        all.retain(|toleration| !known(toleration));
        all.push(Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        });
    }
    all
}

fn selects(spec: &PodSpec, node: &Node) -> bool {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let by_labels = spec.node_selector.iter().flatten().all(|(key, value)| label(key) == Some(value));
    let required = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = required.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    by_labels && required.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_selects(term, node)))
}

fn term_selects(term: &NodeSelectorTerm, node: &Node) -> bool {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let field = |key: &str| node.metadata.name.as_deref().filter(|_| key == "metadata.name");
    let (expressions, fields) = (term.match_expressions.as_deref().unwrap_or_default(), term.match_fields.as_deref().unwrap_or_default());
    let empty = expressions.is_empty() && fields.is_empty();
    !empty
        && expressions.iter().all(|wanted| meets(wanted, label(&wanted.key)))
        && fields.iter().all(|wanted| meets(wanted, field(&wanted.key)))
}

fn meets(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let is_in = || value.is_some_and(|value| values.iter().any(|wanted| wanted == value));
    let compare = |test: fn(i64, i64) -> bool| {
        let numbers = value.and_then(|value| value.parse().ok()).zip(values.first().and_then(|wanted| wanted.parse().ok()));
        numbers.is_some_and(|(value, wanted)| test(value, wanted))
    };
    match wanted.operator.as_str() {
        "In" => is_in(),
        "NotIn" => !is_in(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, wanted| value > wanted),
        "Lt" => compare(|value, wanted| value < wanted),
        _ => false,
    }
}

/// The pod for `node`, of the revision `hash`.
pub(super) fn pod(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let mut pod = act::pod_from(set.spec.template.clone(), set.metadata.namespace.clone(), name, act::controller_ref(set));
    pod.metadata.labels.get_or_insert_default().insert(history::HASH_LABEL.into(), hash.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    // The scheduler binds it, but only there; what the template required of nodes was asked already.
    let here = NodeSelectorRequirement { key: "metadata.name".into(), operator: "In".into(), values: Some(vec![node.to_owned()]) };
    let term = NodeSelectorTerm { match_fields: Some(vec![here]), match_expressions: None };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector { node_selector_terms: vec![term] });
    pod
}

/// The node that a daemon runs on or waits for.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    if let Some(node) = pods::node_name(pod) {
        return Some(node);
    }
    let required =
        pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let named = fields.into_iter().find(|field| field.key == "metadata.name")?;
    named.values.as_ref()?.first().map(String::as_str)
}
