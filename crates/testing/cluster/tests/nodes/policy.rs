//! A policy on every node, and a node that leaves.

use cluster::run::ensure;
use cluster::wait_for;

use crate::lab::{Seat, three_nodes};

const PRIVATE: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: private}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {role: client}}}], ports: [{port: 8080}]}]
"#;

#[test]
fn a_policy_holds_between_all_nodes_and_a_node_leaves_in_peace() {
    let (cluster, seats) = three_nodes();
    let clients = ["client", "stranger"].map(|name| {
        let node = &seats.iter().find(|seat| seat.node != seats[0].node).unwrap().node;
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{role: {name}}}}}\nspec:\n  nodeName: {node}\n  \
             terminationGracePeriodSeconds: 1\n  containers: [{{name: main, image: sternpost.io/toolbox}}]\n"
        );
        cluster.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
        cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")]).ok();
        Seat { pod: name.to_owned(), node: node.clone(), address: String::new(), address_v6: String::new() }
    });
    let got =
        |from: &Seat, url: &str| cluster.kubectl(&["exec", &from.pod, "--", "/toolbox", "fetch", "-t", "1", url]).stdout.trim().to_owned();
    let reached = |from: &Seat| {
        let reaches = |to: &&Seat| to.hosts().all(|host| got(from, &format!("http://{host}:8080/hostname")) == to.pod);
        seats.iter().filter(reaches).count()
    };
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
