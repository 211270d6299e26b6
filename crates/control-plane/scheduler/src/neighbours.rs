//! What of a pod other pods' placement may depend on: its labels, and its own wishes about neighbours.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, TopologySpreadConstraint, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;
use meta::selector::{LabelSelector, Operator, Requirement};

pub const HOSTNAME: &str = "kubernetes.io/hostname";
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// Labels of every namespace, by name.
pub type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// A pod as its neighbours see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Neighbour {
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
    /// It is being deleted: spread constraints do not count it any more.
    pub terminating: bool,
    /// Required affinity and anti-affinity to pods.
    pub affinity: Vec<Term>,
    pub anti_affinity: Vec<Term>,
    /// Preferred terms with their weights, below zero for anti-affinity.
    pub preferred: Vec<(i64, Term)>,
    /// Spread constraints that forbid (`DoNotSchedule`).
    pub spread: Vec<Spread>,
    /// Spread constraints that only score (`ScheduleAnyway`).
    pub soft_spread: Vec<Spread>,
    /// Nodes that lack one of the soft constraints' labels are not scored (not so for the built-in defaults).
    pub soft_needs_all_keys: bool,
}

/// One term of pod affinity or anti-affinity.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    pub topology_key: String,
    selector: LabelSelector,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
}

/// A topology spread constraint.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    pub topology_key: String,
    pub max_skew: i64,
    pub min_domains: usize,
    /// Nodes that the pod's selector and affinity exclude do not count.
    pub honours_node_affinity: bool,
    /// Nodes with taints that the pod does not tolerate do not count.
    pub honours_node_taints: bool,
    selector: LabelSelector,
}

/// What holds for pods without constraints of their own (`PodTopologySpreadArgs.defaultConstraints`).
#[derive(Clone, Debug, Default)]
pub struct DefaultSpread {
    /// Without selectors: that is the pod's Services' and owner's.
    pub constraints: Vec<TopologySpreadConstraint>,
    /// The built-in ones rather than configured ones.
    pub built_in: bool,
    /// `None`: the pod belongs to nothing that has a selector, so nothing holds.
    pub selector: Option<LabelSelector>,
}

impl Neighbour {
    pub fn of(pod: &Pod, default: &DefaultSpread) -> Self {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
        let wanted = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let unwanted = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let terms = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<Term> {
            terms.into_iter().flatten().map(|term| Term::of(term, &namespace, &labels)).collect()
        };
        let weighted = |terms: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| -> Vec<(i64, Term)> {
            let term =
                |one: &WeightedPodAffinityTerm| (sign * i64::from(one.weight), Term::of(&one.pod_affinity_term, &namespace, &labels));
            terms.into_iter().flatten().map(term).collect()
        };
        let mut preferred = weighted(wanted.and_then(|terms| terms.preferred_during_scheduling_ignored_during_execution.as_ref()), 1);
        preferred.extend(weighted(unwanted.and_then(|terms| terms.preferred_during_scheduling_ignored_during_execution.as_ref()), -1));
        let [hard, soft] = spreads(pod, default, &labels);
        Self {
            affinity: terms(wanted.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())),
            anti_affinity: terms(unwanted.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())),
            preferred,
            spread: hard,
            soft_spread: soft,
            soft_needs_all_keys: has_own_spread(pod) || !default.built_in,
            terminating: pod.metadata.deletion_timestamp.is_some(),
            namespace,
            labels,
        }
    }

    /// Its placement depends on nobody, and nobody's on it but by labels.
    pub fn has_terms(&self) -> bool {
        !(self.affinity.is_empty() && self.anti_affinity.is_empty() && self.preferred.is_empty())
    }
    pub fn has_spread(&self) -> bool {
        !(self.spread.is_empty() && self.soft_spread.is_empty())
    }
}

fn has_own_spread(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_ref()).is_some_and(|constraints| !constraints.is_empty())
}

/// The constraints that forbid and those that score.
fn spreads(pod: &Pod, default: &DefaultSpread, labels: &BTreeMap<String, String>) -> [Vec<Spread>; 2] {
    let own = pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_deref()).unwrap_or_default();
    let all: Vec<(bool, Spread)> = if own.is_empty() {
        let Some(selector) = &default.selector else { return [Vec::new(), Vec::new()] };
        let of = |constraint| Spread::of(constraint, selector.clone());
        default.constraints.iter().map(|constraint| (forbids(constraint), of(constraint))).collect()
    } else {
        let selector = |constraint: &TopologySpreadConstraint| {
            with_keys(constraint.label_selector.as_ref(), constraint.match_label_keys.as_deref(), Operator::In, labels)
        };
        own.iter().map(|constraint| (forbids(constraint), Spread::of(constraint, selector(constraint)))).collect()
    };
    let (hard, soft): (Vec<_>, Vec<_>) = all.into_iter().partition(|(forbids, _)| *forbids);
    [hard, soft].map(|constraints| constraints.into_iter().map(|(_, constraint)| constraint).collect())
}

fn forbids(constraint: &TopologySpreadConstraint) -> bool {
    constraint.when_unsatisfiable == "DoNotSchedule"
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
        let selected = || {
            let none = BTreeMap::new();
            let labels = namespaces.get(&pod.namespace).unwrap_or(&none);
            self.namespace_selector.as_ref().is_some_and(|selector| selector.matches_map(labels))
        };
        self.selector.matches_map(&pod.labels) && (self.namespaces.contains(&pod.namespace) || selected())
    }
}

impl Spread {
    fn of(constraint: &TopologySpreadConstraint, selector: LabelSelector) -> Self {
        Self {
            topology_key: constraint.topology_key.clone(),
            max_skew: constraint.max_skew.into(),
            min_domains: constraint.min_domains.and_then(|domains| domains.try_into().ok()).unwrap_or(1),
            honours_node_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honours_node_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            selector,
        }
    }

    /// Whether the constraint counts this pod, for a pod of `namespace`. An empty selector counts nobody (as upstream).
    pub fn counts(&self, pod: &Neighbour, namespace: &str) -> bool {
        !pod.terminating && pod.namespace == namespace && !self.selector.is_everything() && self.selector.matches_map(&pod.labels)
    }

    /// Whether the pod that has the constraint is itself one of those it speaks of.
    pub fn selects_itself(&self, pod: &Neighbour) -> bool {
        self.selector.matches_map(&pod.labels)
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
