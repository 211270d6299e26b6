//! The total score of each feasible node, by upstream's formulas.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::filters::{amount, array, label, term_matches_node, tolerated};
use super::world::World;

type Scores = BTreeMap<String, i64>;

impl World {
    pub fn totals(&self, pod: &Value, feasible: &[String]) -> Scores {
        let each = |score: &dyn Fn(&str) -> i64| -> Scores { feasible.iter().map(|name| (name.clone(), score(name))).collect() };
        let parts = [
            (3, reversed(normalized(each(&|name| self.untolerated(pod, name))))),
            (2, normalized(each(&|name| self.preferred(pod, name)))),
            (1, each(&|name| self.least_allocated(pod, name))),
            (1, each(&|name| self.balanced(pod, name))),
            (1, each(&|name| self.images(pod, name))),
            (2, self.spread(pod, feasible)),
            (2, self.neighbours(pod, feasible)),
        ];
        feasible.iter().map(|name| (name.clone(), parts.iter().map(|(weight, scores)| weight * scores[name]).sum())).collect()
    }

    fn untolerated(&self, pod: &Value, name: &str) -> i64 {
        array(&self.nodes[name]["spec"]["taints"]).filter(|taint| taint["effect"] == "PreferNoSchedule" && !tolerated(pod, taint)).count()
            as i64
    }

    fn preferred(&self, pod: &Value, name: &str) -> i64 {
        array(&pod["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"])
            .filter(|term| term_matches_node(&self.nodes[name], &term["preference"]))
            .map(|term| term["weight"].as_i64().unwrap())
            .sum()
    }

    /// What is used of a resource with the pod, `assumed` standing for a request that is not there.
    fn used(&self, pod: &Value, name: &str, resource: &str, assumed: i64, with_pod: bool) -> i64 {
        let asks = |pod: &Value| {
            let requests = &pod["spec"]["containers"][0]["resources"]["requests"];
            if requests[resource].is_null() { assumed } else { amount(requests, resource) }
        };
        self.on(name).map(asks).sum::<i64>() + if with_pod { asks(pod) } else { 0 }
    }

    fn least_allocated(&self, pod: &Value, name: &str) -> i64 {
        let share = |resource: &str, assumed: i64| {
            let capacity = amount(&self.nodes[name]["status"]["allocatable"], resource);
            let used = self.used(pod, name, resource, assumed, true);
            if used > capacity { 0 } else { (capacity - used) * 100 / capacity }
        };
        (share("cpu", 100) + share("memory", 200 << 20)) / 2
    }

    fn balanced(&self, pod: &Value, name: &str) -> i64 {
        let requests = &pod["spec"]["containers"][0]["resources"]["requests"];
        if amount(requests, "cpu") == 0 && amount(requests, "memory") == 0 {
            return 0;
        }
        let balance = |with_pod: bool| {
            let share = |resource: &str| {
                let capacity = amount(&self.nodes[name]["status"]["allocatable"], resource);
                (self.used(pod, name, resource, 0, with_pod) as f64 / capacity as f64).min(1.0)
            };
            ((1.0 - ((share("cpu") - share("memory")) / 2.0).abs()) * 100.0) as i64
        };
        50 + (50 + balance(true) - balance(false)) / 2
    }

    fn images(&self, pod: &Value, name: &str) -> i64 {
        let wanted = format!("{}:latest", pod["spec"]["containers"][0]["image"].as_str().unwrap());
        let size = |node: &Value| {
            array(&node["status"]["images"])
                .find(|image| image["names"][0] == *wanted)
                .map_or(0, |image| image["sizeBytes"].as_i64().unwrap())
        };
        let have = self.nodes.values().filter(|node| size(node) > 0).count();
        let scaled = (size(&self.nodes[name]) as f64 * (have as f64 / self.nodes.len() as f64)) as i64;
        let (least, most) = (23 << 20, 1000 << 20);
        100 * (scaled.clamp(least, most) - least) / (most - least)
    }

    fn spread(&self, pod: &Value, feasible: &[String]) -> Scores {
        let own: Vec<Value> = array(&pod["spec"]["topologySpreadConstraints"]).cloned().collect();
        let owned = pod["metadata"]["annotations"]["owned"] == "yes";
        let default = |key: &str, skew: i64| json!({ "maxSkew": skew, "topologyKey": key, "labelSelector": { "matchLabels": { "app": pod["metadata"]["labels"]["app"] } } });
        let (constraints, needs_all): (Vec<Value>, bool) = match own.is_empty() {
            true if owned => (vec![default("kubernetes.io/hostname", 3), default("topology.kubernetes.io/zone", 5)], false),
            true => (vec![], false),
            false => (own.into_iter().filter(|one| one["whenUnsatisfiable"] == "ScheduleAnyway").collect(), true),
        };
        if constraints.is_empty() {
            return feasible.iter().map(|name| (name.clone(), 0)).collect();
        }
        let key = |constraint: &Value| constraint["topologyKey"].as_str().unwrap().to_owned();
        let complete = |node: &Value| !needs_all || constraints.iter().all(|one| label(node, &key(one)).is_some());
        let scored: Vec<&String> = feasible.iter().filter(|name| complete(&self.nodes[*name])).collect();
        let mut raw = BTreeMap::<&String, f64>::new();
        for constraint in &constraints {
            let key = key(constraint);
            let values: BTreeSet<Option<&str>> = scored.iter().map(|name| label(&self.nodes[*name], &key)).collect();
            let size = if key == "kubernetes.io/hostname" { scored.len() } else { values.len() };
            let weight = ((size + 2) as f64).ln();
            for name in &scored {
                let Some(value) = label(&self.nodes[*name], &key) else { continue };
                let pods: i64 = match key == "kubernetes.io/hostname" {
                    true => self.matching_on(pod, constraint, name),
                    false => {
                        let domain = self.nodes.iter().filter(|(_, node)| label(node, &key) == Some(value) && complete(node));
                        domain
                            .filter(|(_, node)| self.counts_node(pod, constraint, node))
                            .map(|(name, _)| self.matching_on(pod, constraint, name))
                            .sum()
                    }
                };
                *raw.entry(name).or_default() += pods as f64 * weight + (constraint["maxSkew"].as_i64().unwrap() - 1) as f64;
            }
        }
        let raw: BTreeMap<&String, i64> =
            scored.iter().map(|name| (*name, raw.get(*name).copied().unwrap_or(0.0).round() as i64)).collect();
        let (least, most) = (raw.values().min().copied().unwrap_or(0), raw.values().max().copied().unwrap_or(0));
        let score = |name: &String| match raw.get(name) {
            None => 0,
            Some(_) if most == 0 => 100,
            Some(raw) => 100 * (most + least - raw) / most,
        };
        feasible.iter().map(|name| (name.clone(), score(name))).collect()
    }

    fn neighbours(&self, pod: &Value, feasible: &[String]) -> Scores {
        let mut raw: Scores = feasible.iter().map(|name| (name.clone(), 0)).collect();
        let terms = |pod: &Value, kind: &str, how: &str| pod["spec"]["affinity"][kind][how].clone();
        for other in self.pods.values() {
            let Some(theirs) = self.nodes.get(other["spec"]["nodeName"].as_str().unwrap()) else { continue };
            let mut add = |term: &Value, weight: i64| {
                let key = term["topologyKey"].as_str().unwrap();
                for (name, score) in &mut raw {
                    let here = label(&self.nodes[name], key);
                    if here.is_some() && here == label(theirs, key) {
                        *score += weight;
                    }
                }
            };
            for (kind, sign) in [("podAffinity", 1), ("podAntiAffinity", -1)] {
                let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
                for (asking, about) in [(pod, other), (other, pod)] {
                    for one in array(&terms(asking, kind, preferred)) {
                        if self.term_matches(&one["podAffinityTerm"], asking, about) {
                            add(&one["podAffinityTerm"], sign * one["weight"].as_i64().unwrap());
                        }
                    }
                }
            }
            for term in array(&terms(other, "podAffinity", "requiredDuringSchedulingIgnoredDuringExecution")) {
                if self.term_matches(term, other, pod) {
                    add(term, 1);
                }
            }
        }
        let (least, most) = (*raw.values().min().unwrap(), *raw.values().max().unwrap());
        let scaled = |raw: i64| if most == least { 0 } else { (100.0 * ((raw - least) as f64 / (most - least) as f64)) as i64 };
        raw.into_iter().map(|(name, raw)| (name, scaled(raw))).collect()
    }
}

fn normalized(raw: Scores) -> Scores {
    let most = raw.values().max().copied().unwrap_or(0);
    raw.into_iter().map(|(name, one)| (name, if most == 0 { 0 } else { 100 * one / most })).collect()
}

fn reversed(scores: Scores) -> Scores {
    scores.into_iter().map(|(name, one)| (name, 100 - one)).collect()
}
