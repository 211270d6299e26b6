//! What of a pod other pods' placement may depend on: its labels, and its own wishes about neighbours.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;
use meta::selector::{LabelSelector, Operator, Requirement};

/// Labels of every namespace, by name.
pub type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// A pod as its neighbours see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Neighbour {
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
    /// Required affinity and anti-affinity to pods.
    pub affinity: Vec<Term>,
    pub anti_affinity: Vec<Term>,
    /// Spread constraints that forbid (`DoNotSchedule`).
    pub spread: Vec<Spread>,
}

/// One term of required pod affinity or anti-affinity.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    pub topology_key: String,
    selector: LabelSelector,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
}

/// A topology spread constraint with `whenUnsatisfiable: DoNotSchedule`.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    pub topology_key: String,
    pub max_skew: i64,
    pub min_domains: usize,
    /// Nodes that the pod's selector and affinity exclude do not count.
    pub honours_node_affinity: bool,
    selector: LabelSelector,
}

impl Neighbour {
    pub fn of(pod: &Pod) -> Self {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let spec = pod.spec.as_ref();
        let affinity = spec.and_then(|spec| spec.affinity.as_ref());
        let wanted = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let unwanted = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let terms =
            |terms: Option<&Vec<PodAffinityTerm>>| terms.into_iter().flatten().map(|term| Term::of(term, &namespace, &labels)).collect();
        let constraints = spec.into_iter().flat_map(|spec| spec.topology_spread_constraints.iter().flatten());
        let forbidding = constraints.filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule");
        Self {
            affinity: terms(wanted.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())),
            anti_affinity: terms(unwanted.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())),
            spread: forbidding
                .map(|constraint| Spread {
                    topology_key: constraint.topology_key.clone(),
                    max_skew: constraint.max_skew.into(),
                    min_domains: constraint.min_domains.and_then(|domains| domains.try_into().ok()).unwrap_or(1),
                    honours_node_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
                    selector: with_keys(constraint.label_selector.as_ref(), constraint.match_label_keys.as_deref(), Operator::In, &labels),
                })
                .collect(),
            namespace,
            labels,
        }
    }
}

impl Term {
    fn of(term: &PodAffinityTerm, namespace: &str, labels: &BTreeMap<String, String>) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        let mut selector = with_keys(term.label_selector.as_ref(), term.match_label_keys.as_deref(), Operator::In, labels);
        selector =
            selector.and(with_keys(Some(&metav1::LabelSelector::default()), term.mismatch_label_keys.as_deref(), Operator::NotIn, labels));
        Self {
            topology_key: term.topology_key.clone(),
            selector,
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|selector| parse(Some(selector))),
        }
    }

    /// Whether the term speaks of this pod.
    pub fn matches(&self, pod: &Neighbour, namespaces: &Namespaces) -> bool {
        let none = BTreeMap::new();
        let labels = namespaces.get(&pod.namespace).unwrap_or(&none);
        let selected = self.namespace_selector.as_ref().is_some_and(|selector| selector.matches_map(labels));
        (self.namespaces.contains(&pod.namespace) || selected) && self.selector.matches_map(&pod.labels)
    }
}

impl Spread {
    /// Whether the constraint counts this pod, for a pod of `namespace`.
    pub fn counts(&self, pod: &Neighbour, namespace: &str) -> bool {
        pod.namespace == namespace && self.selector.matches_map(&pod.labels)
    }
}

fn parse(selector: Option<&metav1::LabelSelector>) -> LabelSelector {
    let value = selector.map(serde_json::to_value).and_then(Result::ok).unwrap_or_default();
    // The API validated it; what cannot be read selects nothing.
    LabelSelector::from_object(&value).unwrap_or_else(|_| LabelSelector::nothing())
}

/// The selector, narrowed by the pod's own values of `keys` (`matchLabelKeys`, KEP-3243 and KEP-3633).
fn with_keys(
    selector: Option<&metav1::LabelSelector>,
    keys: Option<&[String]>,
    operator: Operator,
    labels: &BTreeMap<String, String>,
) -> LabelSelector {
    let own = keys.unwrap_or_default().iter().filter_map(|key| Some((key, labels.get(key)?)));
    let requirements = own.filter_map(|(key, value)| Requirement::new(key, operator, BTreeSet::from([value.clone()])).ok());
    requirements.fold(parse(selector), LabelSelector::with)
}
