//! How long a policy takes from its change to the kernel's acknowledgement.

use std::collections::BTreeMap;
use std::time::Instant;

use policy::model::{Pod, World};
use policy::{Enforcer, plan, read};
use serde_json::{Value, json};

use super::lab::{TABLE, inside, namespace};
use super::{Rows, note};
use crate::measure::{quantile, sorted};

const NAMESPACES: usize = 20;
const PODS: usize = 2_000;
const CHANGES: usize = 50;

pub fn measure(rows: &mut Rows) -> anyhow::Result<()> {
    let netns = namespace()?;
    let (first, changes, moves) = inside(&netns, || {
        let mut enforcer = Enforcer::open(TABLE)?;
        let mut world = world()?;
        let started = Instant::now();
        enforcer.apply(plan::plan(&world))?;
        let first = started.elapsed().as_secs_f64() * 1e3;
        let (mut changes, mut moves) = (Vec::new(), Vec::new());
        for change in 0..CHANGES {
            world.policies.pop();
            world.policies.extend(read::network_policy(&policy(0, &format!("app{}", change % 7))));
            let started = Instant::now();
            enforcer.apply(plan::plan(&world))?;
            changes.push(started.elapsed().as_secs_f64() * 1e3);
            if let Some(pod) = world.pods.first_mut() {
                pod.labels.insert("app".into(), format!("app{}", change % 5));
            }
            let started = Instant::now();
            enforcer.apply(plan::plan(&world))?;
            moves.push(started.elapsed().as_secs_f64() * 1e3);
        }
        Ok((first, sorted(&changes), sorted(&moves)))
    })?;
    note(rows, &format!("{} policies over {PODS} pods planned and programmed, ms", 2 * NAMESPACES + 1), first);
    note(rows, "one policy changed, p50 ms", quantile(&changes, 0.5));
    note(rows, "one pod's labels changed, p50 ms", quantile(&moves, 0.5));
    Ok(())
}

fn policy(namespace: usize, app: &str) -> Value {
    json!({"metadata": {"namespace": format!("ns{namespace}"), "name": app}, "spec": {
        "podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}}}], "ports": [{"port": 80}, {"port": 8000, "endPort": 8080}]}],
        "egress": [{"to": [{"podSelector": {}}, {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}]}})
}

fn world() -> anyhow::Result<World> {
    let labels = |pairs: &[(&str, String)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect::<BTreeMap<_, _>>();
    let namespaces = (0..NAMESPACES).map(|number| {
        let team = if number % 2 == 0 { "red" } else { "blue" };
        (format!("ns{number}"), labels(&[("team", team.to_owned())]))
    });
    let pods = (0..PODS).map(|number| {
        let [high, low] = (number as u16).to_be_bytes();
        Pod {
            namespace: format!("ns{}", number % NAMESPACES),
            labels: labels(&[("app", format!("app{}", number % 7))]),
            addresses: vec![[10, 244, high, low].into()],
            node: format!("node{}", number % 10),
            ports: Vec::new(),
        }
    });
    let mut policies: Vec<Value> = (0..NAMESPACES).flat_map(|number| [policy(number, "app1"), policy(number, "app2")]).collect();
    policies.push(policy(0, "app3"));
    Ok(World {
        node: "node1".into(),
        namespaces: namespaces.collect(),
        pods: pods.collect(),
        nodes: Vec::new(),
        policies: policies.iter().filter_map(read::network_policy).collect(),
    })
}
