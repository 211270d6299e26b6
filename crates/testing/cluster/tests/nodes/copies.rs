//! Volumes made of others lie where those do, and pods go there.

use cluster::run::ensure;
use cluster::wait_for;

use crate::lab::{further, three_nodes};

fn claim(name: &str, source: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}{source}}}\n---\n"
    )
}

fn pod(name: &str, placed: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{copies: all}}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{placed}  volumes: [{{name: d, persistentVolumeClaim: {{claimName: {name}}}}}]\n\
         \x20 containers: [{{name: main, image: sternpost.io/toolbox, volumeMounts: [{{name: d, mountPath: /d}}]}}]\n---\n"
    )
}

#[test]
fn pods_follow_snapshots_and_clones_to_the_node_that_has_them_however_early_they_come() {
    let (cluster, _) = three_nodes();
    let home = further(&cluster).remove(0);
    let placed = format!("  nodeSelector: {{kubernetes.io/hostname: {home}}}\n");
    cluster.kubectl_with(&["apply", "-f", "-"], &format!("{}{}", claim("source", ""), pod("source", &placed))).ok();
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/source", "--timeout=90s"]).ok();
    let snapshot = "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: s}\nspec: {source: {persistentVolumeClaimName: source}}\n";
    cluster.kubectl_with(&["apply", "-f", "-"], snapshot).ok();
    wait_for("the snapshot is ready", 60, || {
        let ran = cluster.kubectl(&["get", "volumesnapshot", "s", "-o", "jsonpath={.status.readyToUse}"]);
        ensure(ran.stdout == "true", ran)
    });
    let of_snapshot = ", dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: s}";
    let of_claim = ", dataSource: {kind: PersistentVolumeClaim, name: source}";
    // Pods first: the scheduler looks at them while the volumes are made.
    let names: Vec<String> = (0..8).map(|number| format!("copy-{number}")).collect();
    let source = |number: usize| if number % 2 == 0 { of_snapshot } else { of_claim };
    let claims: String = names.iter().enumerate().map(|(number, name)| claim(name, source(number))).collect();
    let pods: String = names.iter().map(|name| pod(name, "")).collect();
    cluster.kubectl_with(&["apply", "-f", "-"], &format!("{pods}{claims}")).ok();
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "-l", "copies=all", "--timeout=90s"]).ok();
    let nodes = cluster.kubectl(&["get", "pods", "-l", "copies=all", "-o", "jsonpath={.items[*].spec.nodeName}"]).ok();
    assert!(nodes.split(' ').count() == 9 && nodes.split(' ').all(|node| node == home), "{home}: {nodes}");
}
