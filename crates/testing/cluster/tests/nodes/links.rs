//! Links that are cut, nodes that die, and what the others notice of it.

use std::collections::BTreeSet;

use cluster::run::ensure;
use cluster::{http, wait_for};

use crate::lab::{Seat, fetch, further, inside, pod_netns, seats_of, three_nodes};
use crate::restarts::Load;

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
    let addresses: Vec<&str> = addresses.split(' ').filter(|address| !address.contains(':')).collect();
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    for address in addresses {
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

const LOCAL: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {internalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

#[test]
fn links_that_are_cut_one_way_or_both_or_lose_packets_lose_no_write_and_double_no_address() {
    let (cluster, seats) = three_nodes();
    let further = further(&cluster);
    let mut written = Vec::new();
    // Whoever keeps to its own node never notices anything.
    cluster.kubectl_with(&["apply", "-f", "-"], LOCAL).ok();
    let local = cluster.kubectl(&["get", "service", "local", "-o", "jsonpath={.spec.clusterIP}"]).ok();
    let mut load = Load::new();
    for node in further.iter().map(String::as_str).chain([cluster.node()]) {
        let from = seats.iter().find(|seat| seat.node == node).unwrap();
        let reaches = || http::get(&format!("{local}:80"), "/hostname");
        let netns = pod_netns(&from.address);
        wait_for("the local Service answers", 20, || inside(&netns, reaches));
        let address = format!("{local}:80");
        load.add(format!("{node} → Service of its own pods"), &netns, move || http::get(&address, "/hostname").map(drop));
    }
    for victim in &further {
        let safe: Vec<&Seat> = seats.iter().filter(|seat| seat.node != *victim).collect();
        for damage in [&["--loss", "100"][..], &["--loss", "30"], &[]] {
            cluster.sternpost(&[&["node", "cut", victim], damage].concat()).ok();
            for number in 0..3 {
                let name = format!("w{}-{number}", written.len());
                cluster.kubectl(&["create", "configmap", &name, "--from-literal=a=b"]).ok();
                written.push(name);
                // Healthy endpoints go on for healthy clients.
                for to in &safe {
                    assert_eq!(fetch(&cluster, safe[0], &format!("http://{}:8080/hostname", to.address)), to.pod, "{victim} {damage:?}");
                }
            }
            cluster.sternpost(&["node", "heal", victim]).ok();
            let lost = seats.iter().find(|seat| seat.node == *victim).unwrap();
            wait_for("the healed link carries", 30, || {
                ensure(fetch(&cluster, safe[0], &format!("http://{}:8080/hostname", lost.address)) == lost.pod, "not yet")
            });
        }
    }
    let failures = load.end();
    assert!(failures.is_empty(), "{failures:#?}");
    wait_for("all nodes are ready", 90, || {
        let nodes = cluster.kubectl(&["get", "nodes", "--no-headers"]).stdout;
        ensure(nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count() == 3, nodes)
    });
    let there = cluster.kubectl(&["get", "configmaps", "-o", "name"]).ok();
    assert!(written.iter().all(|name| there.lines().any(|line| line == format!("configmap/{name}"))), "{there}");
    let addresses = cluster.kubectl(&["get", "pods", "-A", "-o", "jsonpath={range .items[*]}{.status.podIP}{\"\\n\"}{end}"]).ok();
    let unique: BTreeSet<&str> = addresses.lines().collect();
    assert_eq!(unique.len(), addresses.lines().count(), "{addresses}");
    assert_eq!(seats_of(&cluster).len(), 6, "nothing was doubled");
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}
