//! Several nodes on one machine, each in a network namespace of its own, with links that are cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use cluster::cluster::names;
use cluster::run::{Ran, ensure, run};
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
    // The Service has IPv4 only; nodes may have both.
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

const PRIVATE: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: private}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {role: client}}}], ports: [{port: 8080}]}]
"#;

#[test]
fn a_policy_holds_between_all_nodes_and_both_families_are_one_network() {
    let (cluster, seats) = three_nodes();
    let families = cluster.kubectl(&["get", "pod", &seats[0].pod, "-o", "jsonpath={.status.podIPs[*].ip}"]).ok();
    if families.contains(' ') {
        both_families(&cluster, &seats);
    }
    let clients = ["client", "stranger"].map(|name| {
        let node = &seats.iter().find(|seat| seat.node != seats[0].node).unwrap().node;
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{role: {name}}}}}\nspec:\n  nodeName: {node}\n  \
             terminationGracePeriodSeconds: 1\n  containers: [{{name: main, image: sternpost.io/toolbox}}]\n"
        );
        cluster.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
        cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")]).ok();
        Seat { pod: name.to_owned(), node: node.clone(), address: String::new() }
    });
    let got =
        |from: &Seat, url: &str| cluster.kubectl(&["exec", &from.pod, "--", "/toolbox", "fetch", "-t", "1", url]).stdout.trim().to_owned();
    let reached = |from: &Seat| seats.iter().filter(|to| got(from, &format!("http://{}:8080/hostname", to.address)) == to.pod).count();
    cluster.kubectl_with(&["apply", "-f", "-"], PRIVATE).ok();
    wait_for("the policy holds on every node", 20, || ensure(reached(&clients[1]) == 0, "not yet"));
    assert_eq!(reached(&clients[0]), 6);
    // The rest of the world of a closed pod goes on: names, its own way out, the Service for whom it is open.
    assert!(!got(&clients[0], "http://web.default.svc.cluster.local/hostname").is_empty());
    assert!(got(&clients[1], "http://web/hostname").is_empty());
    cluster.kubectl(&["label", "pod", "stranger", "role=client", "--overwrite"]).ok();
    wait_for("a pod with the right label is let in", 20, || ensure(reached(&clients[1]) == 6, "not yet"));
    // An agent that is started again opens nothing.
    cluster.kubectl(&["label", "pod", "stranger", "role=stranger", "--overwrite"]).ok();
    wait_for("and out again", 20, || ensure(reached(&clients[1]) == 0, "not yet"));
    cluster.kubectl(&["delete", "networkpolicy", "private"]).ok();
    wait_for("without the policy all is open", 20, || ensure(reached(&clients[1]) == 6, "not yet"));

    // A node is drained, and leaves.
    let victim = cluster.sternpost(&["node", "list"]).ok().split_whitespace().next().unwrap().to_owned();
    cluster.kubectl(&["delete", "pod", "client", "stranger", "--grace-period=1"]).ok();
    cluster
        .kubectl(&[
            "patch",
            "deployment",
            "web",
            "--type=json",
            "-p",
            r#"[{"op":"remove","path":"/spec/template/spec/topologySpreadConstraints"}]"#,
        ])
        .ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    cluster.sternpost(&["node", "remove", &victim, "--timeout", "60"]).ok();
    assert!(!cluster.kubectl(&["get", "nodes", "-o", "name"]).ok().contains(&victim));
    assert!(!cluster.sternpost(&["node", "list"]).ok().contains(&victim));
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}

#[test]
fn links_that_are_cut_one_way_or_both_or_lose_packets_lose_no_write_and_double_no_address() {
    let (cluster, seats) = three_nodes();
    let further: Vec<String> =
        cluster.sternpost(&["node", "list"]).ok().lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect();
    let mut written = Vec::new();
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

/// A printed matrix: every pod to every pod by its IPv6 address, and to a Service of both families by each.
fn both_families(cluster: &Cluster, seats: &[Seat]) {
    let expose = r#"
apiVersion: v1
kind: Service
metadata: {name: both}
spec: {ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;
    cluster.kubectl_with(&["apply", "-f", "-"], expose).ok();
    let ips = cluster.kubectl(&["get", "service", "both", "-o", "jsonpath={.spec.clusterIPs[*]}"]).ok();
    let service: Vec<&str> = ips.split(' ').collect();
    assert!(service.len() == 2 && service[1].contains(':'), "{ips}");
    let address = |seat: &Seat| cluster.kubectl(&["get", "pod", &seat.pod, "-o", "jsonpath={.status.podIPs[1].ip}"]).ok();
    let addresses: Vec<String> = seats.iter().map(address).collect();
    let names: BTreeSet<&str> = seats.iter().map(|seat| seat.pod.as_str()).collect();
    for from in seats {
        let mut line = format!("{} on {}:", from.pod, from.node);
        for (to, address) in seats.iter().zip(&addresses) {
            let got = fetch(cluster, from, &format!("http://[{address}]:8080/hostname"));
            assert_eq!(got, to.pod, "from {} on {} to {address} on {}", from.pod, from.node, to.node);
            line.push_str(" ok");
        }
        for url in [format!("http://{}/hostname", service[0]), format!("http://[{}]/hostname", service[1])] {
            wait_for("the Service answers", 20, || ensure(names.contains(fetch(cluster, from, &url).as_str()), &url));
            line.push_str(" ok");
        }
        println!("{line}");
    }
    let resolved = cluster.kubectl(&["exec", &seats[0].pod, "--", "/toolbox", "resolve", "both.default.svc.cluster.local"]).ok();
    assert_eq!(resolved.trim(), service[0], "IPv4 first");
}

/// A second machine: a network namespace with a link to this one.
struct Machine(&'static str);

impl Machine {
    fn new(name: &'static str, here: &str, there: &str) -> Self {
        let machine = Self(name);
        let link = format!("{}-m", names::LINK_PREFIX);
        for line in [
            format!("netns add {name}"),
            format!("link add {link} type veth peer name eth0 netns {name}"),
            format!("addr add {here}/30 dev {link}"),
            format!("link set {link} up"),
            format!("-n {name} addr add {there}/30 dev eth0"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default via {here}"),
        ] {
            run(Command::new("ip").args(line.split(' ')), "").ok();
        }
        machine
    }

    /// Runs a program of ours on it. Not by `ip netns exec`, which hides the control groups.
    fn run(&self, cluster: &Cluster, arguments: &[&str]) -> Ran {
        let ours = cluster.command(arguments);
        let mut there = Command::new("nsenter");
        there.arg(format!("--net=/run/netns/{}", self.0)).arg(ours.get_program()).args(arguments);
        run(&mut there, "")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", self.0]).output();
    }
}

#[test]
fn a_machine_joins_by_the_printed_line_and_gets_certificates_of_its_own() {
    let cluster = Cluster::fresh();
    cluster.up();
    let machine = Machine::new("stest-joiner", "10.221.9.1", "10.221.9.2");
    let line = cluster.sternpost(&["token", "create", "--ttl", "1h"]).ok();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..3], ["sternpost", "agent", "--server"], "{line}");
    let folder = cluster.dir().join("joiner");
    fs::create_dir(&folder).unwrap();
    let configuration = format!(
        "dataDir: {0}/data\nrunDir: {0}/run\nnodeName: joiner\nkubeletPort: {1}\ndnsPort: {2}\npodCidr: {3}\nnodeCidr: {4}\nserviceCidr: {5}\n\
         cgroupRoot: {6}-9\nnftTable: {7}\nlinkPrefix: {8}\n",
        folder.display(),
        names::KUBELET_PORT,
        names::DNS_PORT,
        names::POD_CIDR,
        names::NODE_CIDR,
        names::SERVICE_CIDR,
        names::CGROUP_ROOT,
        names::NFT_TABLE,
        names::LINK_PREFIX,
    );
    let file = folder.join("config.yaml");
    fs::write(&file, configuration).unwrap();
    let with_file = |arguments: &[&str]| {
        let all = [&["--config", file.to_str().unwrap()], arguments].concat();
        machine.run(&cluster, &all)
    };
    // Another cluster's authority, and a token that nobody made: nothing is begun.
    let mut wrong = words[1..].to_vec();
    *wrong.last_mut().unwrap() = "sha256:0000";
    assert!(with_file(&wrong).fails().contains("does not show the certificate authority sha256:0000"));
    let mut wrong = words[1..].to_vec();
    wrong[4] = "abcdef.0123456789abcdef";
    assert!(with_file(&wrong).fails().contains("Unauthorized"));

    with_file(&[&words[1..], &["--detach"]].concat()).ok();
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=30s", "node/joiner"]).ok();
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: one}\nspec:\n  nodeName: joiner\n  terminationGracePeriodSeconds: 1\n  \
                    containers: [{name: main, image: sternpost.io/toolbox}]\n";
    cluster.kubectl_with(&["apply", "-f", "-"], manifest).ok();
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/one"]).ok();
    // The API server speaks to the kubelet only by a certificate that the cluster has signed.
    wait_for("the kubelet's certificate is the cluster's", 30, || {
        let ran = cluster.kubectl(&["exec", "one", "--", "/toolbox", "cat", "/etc/hostname"]);
        ensure(ran.stdout.trim() == "one", ran)
    });
    let requests = cluster.kubectl(&["get", "csr", "--no-headers"]).ok();
    assert_eq!(requests.lines().filter(|line| line.ends_with("Approved,Issued")).count(), 2, "{requests}");
    // Its own keys are enough from now on, and they open only what is its own.
    let token = words[5].split('.').next().unwrap();
    cluster.sternpost(&["token", "delete", token]).ok();
    let server = words[3];
    with_file(&["down"]).ok();
    with_file(&["agent", "--server", server, "--detach"]).ok();
    wait_for("the pod runs again", 60, || {
        let count = cluster.kubectl(&["get", "pod", "one", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]).stdout;
        ensure(count == "1", count)
    });
    let keys = folder.join("data/pki");
    let as_node = |arguments: &[&str]| {
        let mut kubectl = Command::new("kubectl");
        kubectl.args(["--kubeconfig", "/dev/null", "--server", server]);
        kubectl.arg("--certificate-authority").arg(keys.join("ca.crt"));
        kubectl.arg("--client-certificate").arg(keys.join("kubelet-client.crt")).arg("--client-key").arg(keys.join("kubelet-client.key"));
        run(kubectl.args(arguments), "")
    };
    assert!(as_node(&["get", "node", "joiner"]).succeeded());
    assert!(as_node(&["get", "secrets", "-A"]).fails().contains("forbidden"));
    let others = cluster.node().to_owned();
    assert!(as_node(&["label", "node", &others, "a=b"]).fails().contains("not allowed to modify node"));

    with_file(&["down", "--purge"]).ok();
    cluster.sternpost(&["down", "--purge"]).ok();
    drop(machine);
    assert_eq!(cluster.traces(), Vec::<String>::new());
}
