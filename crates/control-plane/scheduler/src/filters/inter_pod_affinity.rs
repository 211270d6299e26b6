//! Required affinity and anti-affinity to other pods, both ways.

use std::collections::HashMap;

use crate::class::Class;
use crate::neighbours::Term;
use crate::snapshot::{Details, Snapshot};

/// How many pods of interest each topology domain holds: (label key, value) → pods.
type Domains = HashMap<(String, String), usize>;

/// What the whole cluster says about one pod.
#[derive(Default)]
pub struct Prepared {
    /// Pods that match all of the pod's affinity terms.
    wanted: Domains,
    /// The pod matches its own affinity terms: the first of a group may go anywhere.
    wants_itself: bool,
    /// Pods that match an anti-affinity term of the pod.
    unwanted: Domains,
    /// Domains that pods already placed keep free of this one.
    refusing: Domains,
}

pub fn prepare(snapshot: &Snapshot, class: &Class) -> Prepared {
    let own = &class.neighbour;
    let mut prepared = Prepared::default();
    if own.affinity.is_empty() && own.anti_affinity.is_empty() && !snapshot.has_anti_affinity() {
        return prepared;
    }
    let spaces = &snapshot.namespaces;
    prepared.wants_itself = own.affinity.iter().all(|term| term.matches(own, spaces));
    for slot in snapshot.slots() {
        let node = &snapshot.details[slot];
        for other in node.pods.iter().map(|pod| &pod.neighbour) {
            if !own.affinity.is_empty() && own.affinity.iter().all(|term| term.matches(other, spaces)) {
                own.affinity.iter().for_each(|term| count(&mut prepared.wanted, term, node));
            }
            own.anti_affinity.iter().filter(|term| term.matches(other, spaces)).for_each(|term| count(&mut prepared.unwanted, term, node));
            other.anti_affinity.iter().filter(|term| term.matches(own, spaces)).for_each(|term| count(&mut prepared.refusing, term, node));
        }
    }
    prepared
}

fn count(domains: &mut Domains, term: &Term, node: &Details) {
    if let Some(value) = node.label(&term.topology_key) {
        *domains.entry((term.topology_key.clone(), value.to_owned())).or_default() += 1;
    }
}

pub fn why_not(prepared: &Prepared, class: &Class, node: &Details) -> Vec<String> {
    let holds =
        |domains: &Domains, key: &str| node.label(key).is_some_and(|value| domains.contains_key(&(key.to_owned(), value.to_owned())));
    let own = &class.neighbour;
    let has_keys = own.affinity.iter().all(|term| node.label(&term.topology_key).is_some());
    let first_of_group = prepared.wanted.is_empty() && prepared.wants_itself;
    if !has_keys || !(first_of_group || own.affinity.iter().all(|term| holds(&prepared.wanted, &term.topology_key))) {
        return super::because("node(s) didn't match pod affinity rules");
    }
    if own.anti_affinity.iter().any(|term| holds(&prepared.unwanted, &term.topology_key)) {
        return super::because("node(s) didn't match pod anti-affinity rules");
    }
    if prepared.refusing.keys().any(|(key, value)| node.label(key) == Some(value)) {
        return super::because("node(s) didn't satisfy existing pods anti-affinity rules");
    }
    Vec::new()
}
