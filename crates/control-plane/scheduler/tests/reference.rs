//! The chosen node against a slow reference: on random clusters it is feasible and of maximal score, and where none is chosen none is feasible.
//!
//! The reference shares nothing with the scheduler but the JSON of nodes and pods: it goes over all nodes and all pods for each question, in the
//! words of upstream's documentation of each plugin.

mod reference {
    pub mod filters;
    pub mod random;
    pub mod scores;
    pub mod world;
}

use std::sync::Arc;

use reconcile::ObjectKey;
use reference::random::Random;
use reference::world::World;
use scheduler::class::Class;
use scheduler::classes::Classes;
use scheduler::neighbours::DefaultSpread;
use scheduler::plan::{Planner, Request};
use scheduler::profile::{Profile, built_in_spread};
use scheduler::snapshot::{Resident, Snapshot};
use serde_json::Value;

const CLUSTERS: u64 = 200;
const PODS: usize = 60;

/// The scheduler's side: it lives through the whole cluster, so that everything it keeps computed is put to the test.
struct Ours {
    snapshot: Snapshot,
    classes: Classes,
    planner: Planner,
    profile: Arc<Profile>,
}

impl Ours {
    fn class(&mut self, pod: &Value) -> Arc<Class> {
        let typed = serde_json::from_value(pod.clone()).unwrap();
        let selector = pod["metadata"]["labels"]["app"].as_str().filter(|_| pod["metadata"]["annotations"]["owned"] == "yes");
        let selector = selector.map(|app| meta::selector::LabelSelector::parse(&format!("app={app}")).unwrap());
        let spread = || DefaultSpread { constraints: built_in_spread(), built_in: true, selector: selector.clone() };
        let (class, _) = self.classes.of(&typed, u64::from(selector.is_some()), spread);
        self.snapshot.register(&class);
        class
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

#[test]
fn the_chosen_node_has_the_best_score_of_all_feasible_nodes_on_two_hundred_random_clusters() {
    let (mut placed, mut refused) = (0, 0);
    for seed in 0..CLUSTERS {
        let mut random = Random::new(seed);
        let mut world = World::random(&mut random);
        let mut ours = Ours {
            snapshot: Snapshot::default(),
            classes: Classes::default(),
            planner: Planner::default(),
            profile: Arc::new(Profile::default()),
        };
        for (namespace, labels) in &world.namespaces {
            ours.snapshot.set_namespace(namespace, Some(labels.clone()));
        }
        for node in world.nodes.values() {
            ours.snapshot.set_node(&serde_json::from_value(node.clone()).unwrap());
        }
        let templates: Vec<Value> = (0..6).map(|number| world.template(&mut random, number)).collect();
        for number in 0..PODS {
            match random.below(10) {
                0 => change_a_node(&mut random, &mut world, &mut ours),
                1 => remove_a_pod(&mut random, &mut world, &mut ours),
                _ => {}
            }
            let mut pod = random.of(&templates).clone();
            pod["metadata"]["name"] = format!("p{number}").into();
            let class = ours.class(&pod);
            let chosen = ours.planner.place(&ours.snapshot, &ours.profile, &class, &Request::default());
            let feasible = world.feasible(&pod);
            let context = || format!("seed {seed}, pod {number}: {pod}\nnodes {:#?}", world.nodes.keys());
            match chosen {
                Err(error) => {
                    assert!(feasible.is_empty(), "{error}, but {feasible:?} are feasible; {}", context());
                    refused += 1;
                }
                Ok(slot) => {
                    let node = ours.snapshot.name(slot).to_owned();
                    assert!(feasible.contains(&node), "{node} is not feasible: {:?}; {}", world.objection(&pod, &node), context());
                    let totals = world.totals(&pod, &feasible);
                    let best = totals.values().max().unwrap();
                    assert_eq!(totals[&node], *best, "{node} of {totals:?}; {}", context());
                    let key = Arc::new(ObjectKey::new(pod["metadata"]["namespace"].as_str().unwrap(), name(&pod)));
                    ours.snapshot.add_pod(&node, Resident { key, uid: "u".into(), class, started: 0 });
                    pod["spec"]["nodeName"] = node.into();
                    world.pods.insert(name(&pod).to_owned(), pod);
                    placed += 1;
                }
            }
        }
    }
    assert!(placed > 5_000 && refused > 500, "the clusters are of all kinds: {placed} placed, {refused} refused");
}

fn change_a_node(random: &mut Random, world: &mut World, ours: &mut Ours) {
    let names: Vec<String> = world.nodes.keys().cloned().collect();
    let name = random.of(&names).clone();
    if random.below(4) == 0 && names.len() > 2 {
        world.nodes.remove(&name);
        ours.snapshot.remove_node(&name);
        return;
    }
    let node = world.node(random, &name);
    ours.snapshot.set_node(&serde_json::from_value(node.clone()).unwrap());
    world.nodes.insert(name, node);
}

fn remove_a_pod(random: &mut Random, world: &mut World, ours: &mut Ours) {
    let names: Vec<String> = world.pods.keys().cloned().collect();
    if names.is_empty() {
        return;
    }
    let Some(pod) = world.pods.remove(random.of(&names)) else { return };
    let key = ObjectKey::new(pod["metadata"]["namespace"].as_str().unwrap(), name(&pod));
    ours.snapshot.remove_pod(pod["spec"]["nodeName"].as_str().unwrap(), &key);
}
