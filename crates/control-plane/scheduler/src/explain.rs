//! Why a pod has no node, for people: the nodes in groups that say the same against it, and what would make it fit on one of each.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use meta::quantity::{Format, Quantity};
use reconcile::{Cached, ObjectKey};

use crate::board::Board;
use crate::class::{Class, target};
use crate::devices::Devices;
use crate::filters::{self, Objection};
use crate::plan::Planner;
use crate::profile::{Plugin, Profile};
use crate::snapshot::{Resident, Slot, Snapshot};
use crate::volumes::Volumes;

/// Nodes named of each group.
const NAMED_MAX: usize = 3;

/// What the scheduler would see.
pub struct World {
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    pub namespaces: Vec<Namespace>,
    pub volumes: Volumes,
    pub devices: Devices,
    pub profile: Profile,
}

#[derive(Debug, PartialEq)]
pub enum Explanation {
    Bound {
        node: String,
    },
    Ended {
        phase: String,
    },
    Gated {
        gates: Vec<String>,
    },
    /// Another scheduler's.
    NotOurs {
        scheduler_name: String,
    },
    NoNodes,
    /// The best nodes with their scores: it may be bound at any moment.
    Fits {
        best: Vec<(String, i64)>,
    },
    Nowhere {
        groups: Vec<Group>,
    },
}

/// Nodes that say the same.
#[derive(Debug, PartialEq)]
pub struct Group {
    pub nodes: Vec<String>,
    pub plugin: &'static str,
    pub reasons: Vec<String>,
    pub remedies: Vec<String>,
}

/// Looks at `pod` as the scheduler would.
pub fn explain(world: &mut World, pod: &Pod) -> Explanation {
    let spec = pod.spec.clone().unwrap_or_default();
    let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    if phase == "Succeeded" || phase == "Failed" {
        return Explanation::Ended { phase };
    }
    if let Some(node) = spec.node_name.filter(|node| !node.is_empty()) {
        return Explanation::Bound { node };
    }
    let gates: Vec<String> = spec.scheduling_gates.into_iter().flatten().map(|gate| gate.name).collect();
    if !gates.is_empty() {
        return Explanation::Gated { gates };
    }
    let scheduler_name = spec.scheduler_name.unwrap_or_else(|| "default-scheduler".into());
    if scheduler_name != world.profile.scheduler_name {
        return Explanation::NotOurs { scheduler_name };
    }
    let mut snapshot = snapshot(world);
    let (volumes, devices) = match (world.volumes.needs(pod), world.devices.needs(pod)) {
        (Ok(volumes), Ok(devices)) => (volumes, devices),
        (Err(refusal), _) => return refused(&snapshot, refusal.plugin, refusal.why),
        (_, Err(why)) => return refused(&snapshot, Plugin::DynamicResources, why),
    };
    if snapshot.is_empty() {
        return Explanation::NoNodes;
    }
    let class = Arc::new(Class::of(pod));
    snapshot.register(&class);
    let (mut planner, profile) = (Planner::default(), Arc::new(world.profile.clone()));
    let only = target(pod);
    let other = |slot: Slot| {
        let reason = "node(s) didn't satisfy plugin(s) [NodeAffinity]";
        let node = &snapshot.details[slot];
        only.filter(|only| snapshot.name(slot) != *only)
            .map(|_| Objection::unresolvable(Plugin::NodeAffinity, reason))
            .or_else(|| volumes.as_ref().and_then(|needs| needs.objection(node)))
            .or_else(|| devices.as_ref().and_then(|needs| needs.objection(node)))
    };
    let mut ranking = planner.ranking(&snapshot, &profile, &class, Some(&other));
    if !ranking.is_empty() {
        ranking.sort_by_key(|(slot, total)| (-total, *slot));
        let best = ranking.into_iter().take(NAMED_MAX).map(|(slot, total)| (snapshot.name(slot).to_owned(), total)).collect();
        return Explanation::Fits { best };
    }
    let board = Board::new(&snapshot, &profile, &class);
    let key = pod.key();
    let mut groups: BTreeMap<(Plugin, Vec<String>), Vec<Slot>> = BTreeMap::new();
    for slot in snapshot.slots() {
        if let Some(objection) = board.objection(&snapshot, slot, Some(&key), Some(&other)) {
            let reasons = objection.reasons.iter().map(ToString::to_string).collect();
            groups.entry((objection.plugin, reasons)).or_default().push(slot);
        }
    }
    let group = |((plugin, reasons), slots): ((Plugin, Vec<String>), Vec<Slot>)| Group {
        remedies: remedies(&snapshot, &class, plugin, &slots),
        nodes: slots.iter().map(|slot| snapshot.name(*slot).to_owned()).collect(),
        plugin: plugin.name(),
        reasons,
    };
    let mut groups: Vec<Group> = groups.into_iter().map(group).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.nodes.len()));
    Explanation::Nowhere { groups }
}

/// Nodes do not come into it.
fn refused(snapshot: &Snapshot, plugin: Plugin, why: String) -> Explanation {
    let nodes = snapshot.slots().map(|slot| snapshot.name(slot).to_owned()).collect();
    Explanation::Nowhere { groups: vec![Group { nodes, plugin: plugin.name(), reasons: vec![why], remedies: Vec::new() }] }
}

fn snapshot(world: &mut World) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for namespace in &world.namespaces {
        snapshot.set_namespace(namespace.name(), Some(namespace.metadata.labels.clone().unwrap_or_default()));
    }
    for node in &world.nodes {
        snapshot.set_node(node);
    }
    for pod in &world.pods {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty());
        if let Some(node) = node.filter(|_| phase != "Succeeded" && phase != "Failed") {
            let class = Arc::new(Class::of(pod));
            world.volumes.place(pod, node);
            snapshot.add_pod(node, Resident { key: Arc::new(pod.key()), uid: pod.uid().into(), class, started: 0 });
        }
    }
    snapshot
}

/// What would overcome the objection on one of the nodes, in the order in which it costs least.
fn remedies(snapshot: &Snapshot, class: &Class, plugin: Plugin, slots: &[Slot]) -> Vec<String> {
    match plugin {
        Plugin::NodeUnschedulable => vec!["kubectl uncordon one of them".into()],
        Plugin::TaintToleration => taints(snapshot, class, slots),
        Plugin::NodeAffinity => labels(snapshot, class, slots),
        Plugin::NodePorts => vec!["drop the hostPort, or move the pod that holds it".into()],
        Plugin::NodeResourcesFit => amounts(snapshot, class, slots),
        Plugin::PodTopologySpread => vec![
            "raise maxSkew, or use whenUnsatisfiable: ScheduleAnyway".into(),
            "make room in the domains that have the fewest of these pods".into(),
        ],
        Plugin::InterPodAffinity => vec![
            "make the required affinity a preferred one".into(),
            "run the pods that it wants to be near, or move those that it (or they it) must not be near".into(),
        ],
        Plugin::DynamicResources => vec![
            "kubectl get resourceslices, and compare with the claim's selectors and constraints".into(),
            "wait until a pod that has such devices ends, or ask for fewer".into(),
        ],
        Plugin::VolumeBinding | Plugin::VolumeZone => vec!["make a volume that one of them reaches".into()],
        _ => Vec::new(),
    }
}

fn taints(snapshot: &Snapshot, class: &Class, slots: &[Slot]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for slot in slots {
        let Some(taint) = filters::untolerated(class, &snapshot.details[*slot]) else { continue };
        let value = taint.value.as_deref().filter(|value| !value.is_empty()).map(|value| format!(", value: {value}")).unwrap_or_default();
        let remedy = format!("tolerate {{key: {}{value}, effect: {}}}", taint.key, taint.effect);
        if !found.contains(&remedy) {
            found.push(remedy);
        }
    }
    found.truncate(NAMED_MAX);
    found
}

fn labels(snapshot: &Snapshot, class: &Class, slots: &[Slot]) -> Vec<String> {
    let lacking = |slot: &Slot| {
        let node = &snapshot.details[*slot];
        let missing = class.node_selector.iter().filter(|(key, value)| node.facts.labels.get(*key) != Some(*value));
        missing.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
    };
    let closest =
        slots.iter().map(|slot| (lacking(slot), *slot)).filter(|(missing, _)| !missing.is_empty()).min_by_key(|(missing, _)| missing.len());
    match closest {
        Some((missing, slot)) => {
            vec![format!("kubectl label node {} {}", snapshot.name(slot), missing.join(" ")), "change the pod's nodeSelector".into()]
        }
        None => vec!["change the pod's required node affinity, or the nodes' labels".into()],
    }
}

/// How much is missing on the node that lacks least.
fn amounts(snapshot: &Snapshot, class: &Class, slots: &[Slot]) -> Vec<String> {
    let mut remedies = Vec::new();
    let names = ["cpu", "memory", "ephemeral-storage"].map(str::to_owned).into_iter().chain(class.requests.extended.keys().cloned());
    for name in names {
        let asked = class.requests.get(&name);
        let free = |slot: &Slot| {
            let node = &snapshot.details[*slot];
            (node.facts.allocatable.get(&name) - node.requested.get(&name), node.facts.allocatable.get(&name), *slot)
        };
        let Some((free, all, slot)) = slots.iter().map(free).max() else { continue };
        if asked <= 0 || asked <= free {
            continue;
        }
        let (asked, free, all) = (amount(&name, asked), amount(&name, free.max(0)), amount(&name, all));
        let node = snapshot.name(slot);
        remedies.push(format!("it asks for {asked} {name}; {node} has most of it free: {free} of {all}. Ask for less, or make room"));
    }
    if slots.iter().all(|slot| snapshot.rows[*slot].free_pods < 1) {
        remedies.push("they run as many pods as they may (status.allocatable.pods): add a node".into());
    }
    remedies
}

fn amount(name: &str, value: i64) -> String {
    let quantity = match name {
        "cpu" => Quantity::from_milli(value, Format::DecimalSi),
        "memory" | "ephemeral-storage" => Quantity::new(value, Format::BinarySi),
        _ => Quantity::new(value, Format::DecimalSi),
    };
    quantity.to_string()
}

/// For a terminal.
pub struct Text<'a>(pub &'a ObjectKey, pub &'a Explanation);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Text(pod, explanation) = self;
        match explanation {
            Explanation::Bound { node } => writeln!(f, "pod {pod} is on node {node}."),
            Explanation::Ended { phase } => writeln!(f, "pod {pod} has ended ({phase})."),
            Explanation::Gated { gates } => writeln!(f, "pod {pod} is held back by its scheduling gates: {}.", gates.join(", ")),
            Explanation::NotOurs { scheduler_name } => writeln!(f, "pod {pod} waits for the scheduler {scheduler_name:?}."),
            Explanation::NoNodes => writeln!(f, "pod {pod} has no node because there are no nodes."),
            Explanation::Fits { best } => {
                writeln!(f, "pod {pod} fits; the best nodes with their scores:")?;
                best.iter().try_for_each(|(node, score)| writeln!(f, "  {node}  {score}"))
            }
            Explanation::Nowhere { groups } => {
                writeln!(f, "pod {pod} fits on none of {} nodes:", groups.iter().map(|group| group.nodes.len()).sum::<usize>())?;
                groups.iter().try_for_each(|group| write!(f, "{group}"))
            }
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<&str> = self.nodes.iter().take(NAMED_MAX).map(String::as_str).collect();
        let more = if self.nodes.len() > NAMED_MAX { ", …" } else { "" };
        writeln!(f, "\n{} ({}{more})", self.nodes.len(), named.join(", "))?;
        writeln!(f, "  why not: {} [{}]", self.reasons.join(", "), self.plugin)?;
        self.remedies.iter().try_for_each(|remedy| writeln!(f, "  would help: {remedy}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, more: Value) -> Node {
        let mut node = json!({ "metadata": { "name": name }, "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "10" } } });
        node["spec"] = more;
        serde_json::from_value(node).unwrap()
    }

    fn world(nodes: Vec<Node>) -> World {
        let (volumes, devices) = (Volumes::of(Default::default()), Devices::of(Default::default()));
        World { nodes, pods: vec![], namespaces: vec![], volumes, devices, profile: Profile::default() }
    }

    #[test]
    fn claims_that_no_node_can_fulfil_are_the_reason() {
        let mut world = world(vec![node("a", json!({}))]);
        let claimed = |name: &str| -> Pod {
            let claims = json!([{ "name": "gpu", "resourceClaimName": name }]);
            let metadata = json!({ "namespace": "x", "name": "p", "uid": "p" });
            serde_json::from_value(json!({ "metadata": metadata, "spec": { "containers": [], "resourceClaims": claims } })).unwrap()
        };
        let reasons = |explained: Explanation| match explained {
            Explanation::Nowhere { groups } => groups.into_iter().flat_map(|group| group.reasons).collect::<Vec<_>>().join("; "),
            other => format!("{other:?}"),
        };
        assert_eq!(reasons(explain(&mut world, &claimed("gone"))), "resourceclaim.resource.k8s.io \"gone\" not found");
        let devices = json!({ "requests": [{ "name": "r", "exactly": { "deviceClassName": "gpu" } }] });
        let claim = json!({ "metadata": { "namespace": "x", "name": "one" }, "spec": { "devices": devices } });
        world.devices = Devices::of(crate::devices::Lists {
            claims: vec![serde_json::from_value(claim).unwrap()],
            classes: vec![serde_json::from_value(json!({ "metadata": { "name": "gpu" }, "spec": {} })).unwrap()],
            ..Default::default()
        });
        assert_eq!(reasons(explain(&mut world, &claimed("one"))), "cannot allocate all claims");
    }

    #[test]
    fn nodes_that_say_the_same_are_one_group_with_what_would_help() {
        let taint = json!({ "taints": [{ "key": "gpu", "value": "a100", "effect": "NoSchedule" }] });
        let mut world =
            world(vec![node("a", json!({})), node("b", json!({})), node("g", taint), node("c", json!({ "unschedulable": true }))]);
        world.pods = vec![
            serde_json::from_value(json!({
                "metadata": { "namespace": "x", "name": "big" },
                "spec": { "nodeName": "a", "containers": [{ "name": "c", "resources": { "requests": { "cpu": "3500m" } } }] },
            }))
            .unwrap(),
        ];
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "namespace": "x", "name": "p" },
            "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "5" } } }] },
        }))
        .unwrap();
        let text = Text(&pod.key(), &explain(&mut world, &pod)).to_string();
        let expected = "\
pod x/p fits on none of 4 nodes:

2 (a, b)
  why not: Insufficient cpu [NodeResourcesFit]
  would help: it asks for 5 cpu; b has most of it free: 4 of 4. Ask for less, or make room

1 (c)
  why not: node(s) were unschedulable [NodeUnschedulable]
  would help: kubectl uncordon one of them

1 (g)
  why not: node(s) had untolerated taint(s) [TaintToleration]
  would help: tolerate {key: gpu, value: a100, effect: NoSchedule}
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_pod_that_waits_for_something_else_than_a_node_is_told_so() {
        let mut world = world(vec![node("a", json!({}))]);
        let mut explained =
            |spec: Value| explain(&mut world, &serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).unwrap());
        let gated = json!({ "containers": [], "schedulingGates": [{ "name": "example.com/hold" }] });
        assert_eq!(explained(gated), Explanation::Gated { gates: vec!["example.com/hold".into()] });
        assert_eq!(explained(json!({ "containers": [], "schedulerName": "mine" })), Explanation::NotOurs { scheduler_name: "mine".into() });
        assert!(matches!(explained(json!({ "containers": [] })), Explanation::Fits { .. }));
    }
}
