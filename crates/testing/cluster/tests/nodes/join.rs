//! Another machine becomes a node.

use std::fs;
use std::process::Command;

use cluster::cluster::names;
use cluster::run::{ensure, run};
use cluster::{Cluster, wait_for};

use crate::lab::Machine;

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
