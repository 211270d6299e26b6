//! Which nodes are feasible, asked of all pods and nodes each time.

use serde_json::Value;

use super::world::World;

pub fn amount(value: &Value, name: &str) -> i64 {
    let Some(text) = value[name].as_str() else { return 0 };
    let quantity = meta::quantity::Quantity::parse(text).unwrap();
    if name == "cpu" { quantity.milli_value() } else { quantity.value() }
}

pub fn label<'a>(node: &'a Value, key: &str) -> Option<&'a str> {
    node["metadata"]["labels"][key].as_str()
}

pub fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub fn tolerated(pod: &Value, taint: &Value) -> bool {
    array(&pod["spec"]["tolerations"]).any(|toleration| toleration["key"] == taint["key"])
}

fn expression(node: &Value, expression: &Value) -> bool {
    let own = label(node, expression["key"].as_str().unwrap());
    let first = expression["values"][0].as_str().unwrap_or("");
    let number = |text: &str| text.parse::<i64>().unwrap();
    match expression["operator"].as_str().unwrap() {
        "In" => own == Some(first),
        "NotIn" => own != Some(first),
        "Exists" => own.is_some(),
        "DoesNotExist" => own.is_none(),
        "Gt" => own.is_some_and(|own| number(own) > number(first)),
        "Lt" => own.is_some_and(|own| number(own) < number(first)),
        other => panic!("{other}"),
    }
}

pub fn term_matches_node(node: &Value, term: &Value) -> bool {
    array(&term["matchExpressions"]).all(|one| expression(node, one))
}

pub fn selected(pod: &Value, node: &Value) -> bool {
    let selector = pod["spec"]["nodeSelector"].as_object().into_iter().flatten();
    let required = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    selector.into_iter().all(|(key, value)| label(node, key) == value.as_str())
        && (required.is_null() || array(required).any(|term| term_matches_node(node, term)))
}

pub fn hard_taints_tolerated(pod: &Value, node: &Value) -> bool {
    array(&node["spec"]["taints"]).filter(|taint| taint["effect"] != "PreferNoSchedule").all(|taint| tolerated(pod, taint))
}

/// Whether `selector`, with `keys` of the asking pod's own labels, selects the other pod.
pub fn selects(selector: &Value, keys: &Value, asking: &Value, other: &Value) -> bool {
    let labels = |pod: &Value, key: &str| pod["metadata"]["labels"][key].clone();
    selector["matchLabels"].as_object().into_iter().flatten().all(|(key, value)| labels(other, key) == *value)
        && array(keys).all(|key| labels(other, key.as_str().unwrap()) == labels(asking, key.as_str().unwrap()))
}

impl World {
    pub fn on(&self, node: &str) -> impl Iterator<Item = &Value> {
        self.pods.values().filter(move |pod| pod["spec"]["nodeName"] == node)
    }

    /// Whether the term of `asking` speaks of `other`.
    pub fn term_matches(&self, term: &Value, asking: &Value, other: &Value) -> bool {
        let space = other["metadata"]["namespace"].as_str().unwrap();
        let own = term["namespaces"].is_null() && term["namespaceSelector"].is_null() && asking["metadata"]["namespace"] == space;
        let named = array(&term["namespaces"]).any(|name| name == space);
        let chosen = term["namespaceSelector"].as_object().is_some_and(|selector| {
            let labels = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
            labels.into_iter().all(|(key, value)| self.namespaces[space].get(key).map(String::as_str) == value.as_str())
        });
        let differs = array(&term["mismatchLabelKeys"]).all(|key| {
            let key = key.as_str().unwrap();
            other["metadata"]["labels"][key] != asking["metadata"]["labels"][key]
        });
        (own || named || chosen) && differs && selects(&term["labelSelector"], &term["matchLabelKeys"], asking, other)
    }

    pub fn feasible(&self, pod: &Value) -> Vec<String> {
        self.nodes.keys().filter(|name| self.objection(pod, name).is_none()).cloned().collect()
    }

    pub fn objection(&self, pod: &Value, name: &str) -> Option<&'static str> {
        let node = &self.nodes[name];
        if node["spec"]["unschedulable"] == true {
            return Some("cordoned");
        }
        if !hard_taints_tolerated(pod, node) {
            return Some("tainted");
        }
        if !selected(pod, node) {
            return Some("not selected");
        }
        let port = |pod: &Value| pod["spec"]["containers"][0]["ports"][0]["hostPort"].as_i64();
        if port(pod).is_some() && self.on(name).any(|other| port(other) == port(pod)) {
            return Some("port taken");
        }
        if self.on(name).count() as i64 >= amount(&node["status"]["allocatable"], "pods") {
            return Some("full");
        }
        for resource in ["cpu", "memory", "example.com/gpu"] {
            let asks = |pod: &Value| amount(&pod["spec"]["containers"][0]["resources"]["requests"], resource);
            let used: i64 = self.on(name).map(asks).sum();
            if asks(pod) > 0 && asks(pod) + used > amount(&node["status"]["allocatable"], resource) {
                return Some("lacks an amount");
            }
        }
        self.spread_objection(pod, node).or_else(|| self.affinity_objection(pod, node))
    }

    fn hard_constraints<'a>(&self, pod: &'a Value) -> Vec<&'a Value> {
        array(&pod["spec"]["topologySpreadConstraints"]).filter(|one| one["whenUnsatisfiable"] == "DoNotSchedule").collect()
    }

    /// Whether the constraint counts pods on the node, as its policies say.
    pub fn counts_node(&self, pod: &Value, constraint: &Value, node: &Value) -> bool {
        (constraint["nodeAffinityPolicy"] == "Ignore" || selected(pod, node))
            && (constraint["nodeTaintsPolicy"] != "Honor" || hard_taints_tolerated(pod, node))
    }

    pub fn matching_on(&self, pod: &Value, constraint: &Value, node: &str) -> i64 {
        let same = |other: &&Value| other["metadata"]["namespace"] == pod["metadata"]["namespace"];
        let selected = |other: &&Value| selects(&constraint["labelSelector"], &constraint["matchLabelKeys"], pod, other);
        self.on(node).filter(same).filter(selected).count() as i64
    }

    fn spread_objection(&self, pod: &Value, node: &Value) -> Option<&'static str> {
        let constraints = self.hard_constraints(pod);
        for constraint in &constraints {
            let key = constraint["topologyKey"].as_str().unwrap();
            let Some(value) = label(node, key) else { return Some("lacks a label") };
            let mut domains = std::collections::BTreeMap::<&str, i64>::new();
            for (name, other) in &self.nodes {
                let complete = constraints.iter().all(|one| label(other, one["topologyKey"].as_str().unwrap()).is_some());
                if complete && self.counts_node(pod, constraint, other) {
                    *domains.entry(label(other, key).unwrap()).or_default() += self.matching_on(pod, constraint, name);
                }
            }
            let least = domains.values().min().copied().unwrap_or(0);
            let least = if (domains.len() as i64) < constraint["minDomains"].as_i64().unwrap_or(1) { 0 } else { least };
            if domains.get(value).copied().unwrap_or(0) + 1 - least > constraint["maxSkew"].as_i64().unwrap() {
                return Some("skewed");
            }
        }
        None
    }

    fn affinity_objection(&self, pod: &Value, node: &Value) -> Option<&'static str> {
        const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
        let with = |pod: &Value, kind: &str| pod["spec"]["affinity"][kind][REQUIRED].clone();
        let here = |other: &Value, term: &Value| {
            let key = term["topologyKey"].as_str().unwrap();
            let theirs = self.nodes.get(other["spec"]["nodeName"].as_str().unwrap()).and_then(|node| label(node, key));
            theirs.is_some() && theirs == label(node, key)
        };
        let wanted = with(pod, "podAffinity");
        let terms: Vec<&Value> = array(&wanted).collect();
        if terms.iter().any(|term| label(node, term["topologyKey"].as_str().unwrap()).is_none()) {
            return Some("no domain for affinity");
        }
        let friends: Vec<&Value> =
            self.pods.values().filter(|other| terms.iter().all(|term| self.term_matches(term, pod, other))).collect();
        let satisfied = terms.iter().all(|term| friends.iter().any(|other| here(other, term)));
        let anywhere = friends.iter().any(|other| {
            let theirs = self.nodes.get(other["spec"]["nodeName"].as_str().unwrap());
            terms.iter().any(|term| theirs.is_some_and(|node| label(node, term["topologyKey"].as_str().unwrap()).is_some()))
        });
        let first = !anywhere && terms.iter().all(|term| self.term_matches(term, pod, pod));
        if !satisfied && !first {
            return Some("no friend here");
        }
        let unwanted = with(pod, "podAntiAffinity");
        if array(&unwanted).any(|term| self.pods.values().any(|other| self.term_matches(term, pod, other) && here(other, term))) {
            return Some("a foe here");
        }
        let refused = self.pods.values().any(|other| {
            let theirs = with(other, "podAntiAffinity");
            array(&theirs).any(|term| self.term_matches(term, other, pod) && here(other, term))
        });
        refused.then_some("refused by one here")
    }
}
