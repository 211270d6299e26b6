//! A cluster as plain JSON, and random ones.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::random::Random;

pub struct World {
    pub nodes: BTreeMap<String, Value>,
    pub pods: BTreeMap<String, Value>,
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

const APPS: [&str; 3] = ["web", "db", "cache"];
const KEYS: [&str; 3] = ["topology.kubernetes.io/zone", "kubernetes.io/hostname", "rack"];

impl World {
    pub fn random(random: &mut Random) -> Self {
        let mut world = Self { nodes: BTreeMap::new(), pods: BTreeMap::new(), namespaces: BTreeMap::new() };
        for (name, team) in [("a", "red"), ("b", "blue")] {
            world.namespaces.insert(name.into(), BTreeMap::from([("team".to_owned(), team.to_owned())]));
        }
        for number in 0..3 + random.below(10) {
            let name = format!("n{number}");
            let node = world.node(random, &name);
            world.nodes.insert(name, node);
        }
        world
    }

    pub fn node(&self, random: &mut Random, name: &str) -> Value {
        let mut labels = json!({ "kubernetes.io/hostname": name, "size": format!("{}", random.below(4)) });
        if !random.one_in(6) {
            labels["topology.kubernetes.io/zone"] = format!("z{}", random.below(3)).into();
        }
        if !random.one_in(3) {
            labels["rack"] = format!("r{}", random.below(4)).into();
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "PreferNoSchedule", "NoExecute"];
        let taints: Vec<Value> = (0..if random.one_in(3) { 1 + random.below(2) } else { 0 })
            .map(|_| json!({ "key": random.of(&["gpu", "old"]), "value": "yes", "effect": random.of(&effects) }))
            .collect();
        let images: Vec<Value> = APPS
            .iter()
            .filter(|_| random.below(2) == 0)
            .map(|app| json!({ "names": [format!("{app}:latest")], "sizeBytes": 400_000_000 }))
            .collect();
        json!({
            "metadata": { "name": name, "labels": labels },
            "spec": { "taints": taints, "unschedulable": random.one_in(12) },
            "status": {
                "allocatable": {
                    "cpu": format!("{}", 2 + random.below(6)), "memory": format!("{}Gi", 4 + random.below(12)), "pods": format!("{}", 4 + random.below(20)),
                    "example.com/gpu": format!("{}", random.below(3)),
                },
                "images": images,
            },
        })
    }

    /// A pod without a name.
    pub fn template(&self, random: &mut Random, number: usize) -> Value {
        let app = *random.of(&APPS);
        let mut pod = json!({
            "metadata": { "namespace": random.of(&["a", "b"]), "labels": { "app": app, "template": format!("{number}") }, "annotations": {} },
            "spec": { "containers": [{ "name": "c", "image": app, "resources": { "requests": {} } }] },
        });
        if random.below(2) == 0 {
            pod["metadata"]["annotations"]["owned"] = "yes".into();
        }
        let requests = &mut pod["spec"]["containers"][0]["resources"]["requests"];
        if !random.one_in(4) {
            requests["cpu"] = format!("{}m", 50 * random.below(12)).into();
        }
        if !random.one_in(4) {
            requests["memory"] = format!("{}Mi", 64 * random.below(24)).into();
        }
        if random.one_in(8) {
            requests["example.com/gpu"] = "1".into();
        }
        if random.one_in(8) {
            pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 80, "hostPort": 8000 + random.below(2), "protocol": "TCP" }]);
        }
        if random.one_in(6) {
            pod["spec"]["nodeSelector"] = json!({ "size": format!("{}", random.below(4)) });
        }
        if random.below(2) == 0 {
            pod["spec"]["tolerations"] = json!([{ "key": random.of(&["gpu", "old"]), "operator": "Exists" }]);
        }
        pod["spec"]["affinity"] = affinity(random, app);
        if random.one_in(3) {
            pod["spec"]["topologySpreadConstraints"] = (0..1 + random.below(2)).map(|_| spread(random, app)).collect();
        }
        pod
    }
}

fn affinity(random: &mut Random, app: &str) -> Value {
    let mut affinity = json!({});
    if random.one_in(3) {
        let preference = |random: &mut Random| {
            let operator = *random.of(&["Gt", "Lt", "In", "NotIn"]);
            json!({ "weight": 1 + random.below(100), "preference": { "matchExpressions": [{ "key": "size", "operator": operator, "values": [format!("{}", random.below(4))] }] } })
        };
        affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([preference(random), preference(random)]);
    }
    if random.one_in(6) {
        let expression = json!({ "key": "rack", "operator": random.of(&["Exists", "DoesNotExist"]) });
        affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({ "nodeSelectorTerms": [{ "matchExpressions": [expression] }] });
    }
    for (kind, often) in [("podAffinity", 4), ("podAntiAffinity", 4)] {
        if random.one_in(often) {
            affinity[kind]["preferredDuringSchedulingIgnoredDuringExecution"] =
                json!([{ "weight": 1 + random.below(100), "podAffinityTerm": term(random, app) }]);
        }
        if random.one_in(2 * often) {
            affinity[kind]["requiredDuringSchedulingIgnoredDuringExecution"] = json!([term(random, app)]);
        }
    }
    affinity
}

fn term(random: &mut Random, app: &str) -> Value {
    let about = if random.below(2) == 0 { app } else { *random.of(&APPS) };
    let mut term = json!({ "topologyKey": random.of(&KEYS), "labelSelector": { "matchLabels": { "app": about } } });
    match random.below(4) {
        0 => term["namespaceSelector"] = json!({ "matchLabels": { "team": random.of(&["red", "blue"]) } }),
        1 => term["namespaces"] = json!(["b"]),
        2 => term["namespaceSelector"] = json!({}),
        _ => {}
    }
    match random.below(4) {
        0 => term["matchLabelKeys"] = json!(["template"]),
        1 => term["mismatchLabelKeys"] = json!(["template"]),
        _ => {}
    }
    term
}

fn spread(random: &mut Random, app: &str) -> Value {
    let mut constraint = json!({
        "maxSkew": 1 + random.below(3), "topologyKey": random.of(&KEYS), "whenUnsatisfiable": random.of(&["DoNotSchedule", "ScheduleAnyway"]),
        "labelSelector": { "matchLabels": { "app": app } },
    });
    if constraint["whenUnsatisfiable"] == "DoNotSchedule" && random.one_in(3) {
        constraint["minDomains"] = json!(1 + random.below(4));
    }
    if random.one_in(3) {
        constraint["nodeAffinityPolicy"] = "Ignore".into();
    }
    if random.one_in(3) {
        constraint["nodeTaintsPolicy"] = "Honor".into();
    }
    if random.one_in(4) {
        constraint["matchLabelKeys"] = json!(["template"]);
    }
    constraint
}
