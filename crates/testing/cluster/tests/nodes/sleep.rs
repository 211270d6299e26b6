//! A node that sleeps: its processes stand still and its link is dead, and then it goes on as if nothing had been.

use std::collections::{BTreeMap, BTreeSet};

use cluster::cluster::names;
use cluster::run::ensure;
use cluster::{Cluster, process, wait_for};

use crate::lab::{further, three_nodes_of};

const DATABASE: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 3
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: db}}}
      containers: [{name: db, image: sternpost.io/toolbox}]
"#;

/// Everything that runs on a further node: its agent, the keeper of its sockets, its pods.
fn processes_of(cluster: &Cluster, node: &str) -> Vec<i32> {
    let group = node.replacen(cluster.node(), names::CGROUP_ROOT, 1);
    let folder = format!("/nodes/{node}/");
    let of_node = |process: &process::Process| {
        process.command_line().contains(&folder) || process.cgroups().iter().any(|(_, path)| path.starts_with(&format!("/{group}/")))
    };
    process::all().iter().filter(|process| of_node(process)).map(|process| process.id).collect()
}

fn signal(processes: &[i32], signal: i32) {
    for id in processes {
        // SAFETY: kill takes plain numbers.
        unsafe { libc::kill(*id, signal) };
    }
}

/// Pods of that label by name: where they are, and which object it is.
fn pods(cluster: &Cluster, label: &str) -> BTreeMap<String, (String, String)> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.metadata.uid}{\"\\n\"}{end}";
    let listed = cluster.kubectl(&["get", "pods", "-l", label, "-o", path]).ok();
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    listed.lines().map(words).map(|words| (words[0].clone(), (words[1].clone(), words[2].clone()))).collect()
}

#[test]
fn a_node_that_sleeps_is_replaced_but_for_its_stateful_pod_and_wakes_to_the_truth() {
    let (cluster, _) = three_nodes_of(Cluster::fresh(), &["--fast-failover"]);
    cluster.kubectl_with(&["apply", "-f", "-"], DATABASE).ok();
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=60s"]).ok();
    let unconstrained = r#"[{"op":"remove","path":"/spec/template/spec/topologySpreadConstraints"}]"#;
    cluster.kubectl(&["patch", "deployment", "web", "--type=json", "-p", unconstrained]).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    let victim = further(&cluster).pop().unwrap();
    let before = pods(&cluster, "app=db");
    let (asleep, (_, uid)) = before.iter().find(|(_, (node, _))| *node == victim).unwrap();

    let stopped = processes_of(&cluster, &victim);
    assert!(stopped.len() > 3, "an agent and pods: {stopped:?}");
    cluster.sternpost(&["node", "cut", &victim]).ok();
    signal(&stopped, libc::SIGSTOP);
    wait_for("the others take its pods over", 60, || {
        let ready = cluster.kubectl(&["get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}"]).stdout;
        let safe = pods(&cluster, "app=web").values().filter(|(node, _)| *node != victim).count();
        ensure(ready == "6" && safe >= 6, format!("{ready} ready, {safe} on others"))
    });
    // Nobody can know that the pod does not run: it stays the only one of its name.
    assert_eq!(pods(&cluster, "app=db").get(asleep), Some(&(victim.clone(), uid.clone())));

    cluster.sternpost(&["node", "heal", &victim]).ok();
    signal(&stopped, libc::SIGCONT);
    wait_for("all is as it was", 90, || {
        let ready = |what: &str| cluster.kubectl(&["get", what, "-o", "jsonpath={.status.readyReplicas}"]).stdout;
        let nodes = cluster.kubectl(&["get", "nodes", "--no-headers"]).stdout;
        let nodes = nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count();
        let (web, db) = (pods(&cluster, "app=web"), pods(&cluster, "app=db"));
        let settled = (nodes, web.len(), db.len()) == (3, 6, 3) && ready("deployment/web") == "6" && ready("statefulset/db") == "3";
        ensure(settled, format!("{nodes} nodes, {} web, {} db", web.len(), db.len()))
    });
    let addresses = cluster.kubectl(&["get", "pods", "-A", "-o", "jsonpath={range .items[*]}{.status.podIP}{\"\\n\"}{end}"]).ok();
    let unique: BTreeSet<&str> = addresses.lines().collect();
    assert_eq!(unique.len(), addresses.lines().count(), "{addresses}");
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}
