//! Several nodes on one machine, each in a network namespace of its own, with links that are cut.

use std::collections::{BTreeMap, BTreeSet};

use cluster::run::ensure;
use cluster::{Cluster, http, wait_for};

/// Where a pod runs and how it is reached.
#[derive(Clone)]
struct Seat {
    pod: String,
    node: String,
    address: String,
}

fn seats_of(cluster: &Cluster) -> Vec<Seat> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIP}{\"\\n\"}{end}";
    let listed = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", path]).ok();
    let seat = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        Seat { pod: words.next().unwrap(), node: words.next().unwrap(), address: words.next().unwrap() }
    };
    listed.lines().map(seat).collect()
}

/// Three nodes with two pods on each behind the Service `web`.
fn three_nodes() -> (Cluster, Vec<Seat>) {
    let cluster = Cluster::fresh();
    let said = cluster.up_with(&["--nodes", "3"]);
    assert!(said.contains("on this machine"), "{said}");
    let nodes = cluster.kubectl(&["get", "nodes", "--no-headers"]).ok();
    assert_eq!(nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count(), 3, "{nodes}");
    let manifest = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers: [{name: web, image: sternpost.io/toolbox, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;
    cluster.kubectl_with(&["apply", "-f", "-"], manifest).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    let seats = seats_of(&cluster);
    let mut by_node: BTreeMap<&str, usize> = BTreeMap::new();
    seats.iter().for_each(|seat| *by_node.entry(&seat.node).or_default() += 1);
    assert_eq!(by_node.values().copied().collect::<Vec<_>>(), [2, 2, 2], "{by_node:?}");
    (cluster, seats)
}

/// What `from` gets of `url`; the error's text where it gets nothing.
fn fetch(cluster: &Cluster, from: &Seat, url: &str) -> String {
    cluster.kubectl(&["exec", &from.pod, "--", "/toolbox", "fetch", url]).stdout.trim().to_owned()
}

#[test]
fn nodes_are_one_network_and_a_cut_link_or_a_dead_node_takes_only_its_own_pods_away() {
    let (cluster, seats) = three_nodes();
    // Every pod to every pod by address, by the Service's name, and from the machine to every node's port.
    for from in &seats {
        for to in &seats {
            let got = fetch(&cluster, from, &format!("http://{}:8080/hostname", to.address));
            assert_eq!(got, to.pod, "from {} on {} to {} on {}", from.pod, from.node, to.pod, to.node);
        }
    }
    let names: BTreeSet<&str> = seats.iter().map(|seat| seat.pod.as_str()).collect();
    for from in &seats {
        let got = fetch(&cluster, from, "http://web.default.svc.cluster.local/hostname");
        assert!(names.contains(got.as_str()), "from {} on {}: {got}", from.pod, from.node);
    }
    let port = cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"]).ok();
    let addresses = "jsonpath={.items[*].status.addresses[?(@.type==\"InternalIP\")].address}";
    let addresses = cluster.kubectl(&["get", "nodes", "-o", addresses]).ok();
    assert_eq!(addresses.split(' ').count(), 3, "{addresses}");
    for address in addresses.split(' ') {
        let got = http::get(&format!("{address}:{port}"), "/hostname").unwrap_or_default();
        assert!(names.contains(got.trim()), "{address}: {got}");
    }
    // The address that a pod is seen with on another node is its own.
    let (here, there) = (&seats[0], seats.iter().find(|seat| seat.node != seats[0].node).unwrap());
    let seen = fetch(&cluster, here, &format!("http://{}:8080/clientip", there.address));
    assert!(seen.starts_with(&here.address), "{seen}");

    let further = cluster.sternpost(&["node", "list"]).ok();
    let victim = further.split_whitespace().next().unwrap().to_owned();
    let on_victim = |seat: &&Seat| seat.node == victim;
    let (lost, safe) = (seats.iter().find(on_victim).unwrap(), seats.iter().find(|seat| !on_victim(seat)).unwrap());
    let other = seats.iter().find(|seat| seat.node != victim && seat.node != safe.node).unwrap();
    let reaches = |to: &Seat| fetch(&cluster, safe, &format!("http://{}:8080/hostname", to.address)) == to.pod;
    cluster.sternpost(&["node", "cut", &victim]).ok();
    assert!(!reaches(lost) && reaches(other), "a cut link");
    cluster.sternpost(&["node", "heal", &victim]).ok();
    wait_for("the healed link carries", 30, || ensure(reaches(lost), "not yet"));

    // An agent that is killed leaves its pods alone, and finds them again.
    let started = |seat: &Seat| {
        let path = "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";
        cluster.kubectl(&["get", "pod", &seat.pod, "-o", path]).ok()
    };
    let before = started(lost);
    let agent = cluster.sternpost(&["node", "list"]).ok();
    let line = agent.lines().find(|line| line.starts_with(&victim)).unwrap().to_owned();
    let pid: i32 = line.rsplit(' ').next().unwrap().parse().unwrap();
    cluster::process::Process::of(pid).unwrap().kill();
    assert!(reaches(lost), "pods do not depend on their agent");
    cluster.sternpost(&["node", "start", &victim]).ok();
    wait_for("the agent answers for its pod", 30, || ensure(cluster.kubectl(&["logs", &lost.pod]).succeeded(), "not yet"));
    assert_eq!(started(lost), before, "found again, not made anew");

    cluster.sternpost(&["node", "stop", &victim]).ok();
    assert!(!reaches(lost) && reaches(other), "a dead node");
    cluster.sternpost(&["node", "start", &victim]).ok();
    wait_for("its pods run again", 60, || {
        let ready = cluster.kubectl(&["get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}"]).stdout;
        let pod = cluster.kubectl(&["get", "pod", &lost.pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]).stdout;
        // A new sandbox has a new address.
        let found = seats_of(&cluster).into_iter().find(|seat| seat.pod == lost.pod);
        ensure(ready == "6" && pod == "1" && found.is_some_and(|seat| reaches(&seat)), format!("{ready} ready, {pod} restarts"))
    });
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}
