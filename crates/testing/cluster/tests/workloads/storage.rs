//! Claims and the built-in provisioner, seen from inside of containers.

use std::path::Path;

use cluster::run::ensure;
use cluster::{Namespace, wait_for};

use crate::images::busybox;

fn claim(name: &str, more: &str, size: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: {size}}}}}{more}}}\n---\n"
    )
}

fn pod(name: &str, volumes: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  securityContext: {{fsGroup: 4711}}\n  volumes: [{volumes}]\n\
         \x20 containers: [{{name: main, image: \"{}\", command: [sleep, '100000'], {container}}}]\n---\n",
        busybox(1)
    )
}

#[test]
fn a_claim_waits_for_its_pod_keeps_its_data_over_pods_grows_and_goes_with_its_volume() {
    let ns = Namespace::new("claims");
    ns.apply(&claim("data", "", "4Mi"));
    ns.wait_for_event("data", "WaitForFirstConsumer", "waiting for first consumer to be created before binding");
    assert_eq!(ns.value("pvc/data", "{.spec.storageClassName} {.status.phase}"), "local-path Pending");
    let volume = "{name: d, persistentVolumeClaim: {claimName: data}}";
    let mount = "volumeMounts: [{name: d, mountPath: /data}]";
    ns.apply(&pod("one", volume, mount));
    ns.wait("condition=Ready", &["pod/one"]);
    ns.wait_for_event("data", "ProvisioningSucceeded", "Successfully provisioned volume pvc-");
    ns.exec("one", &["sh", "-c", "echo kept > /data/file"]).ok();
    assert_eq!(ns.exec("one", &["stat", "-c", "%g %a", "/data"]).ok(), "4711 2777\n");
    let described = ns.kubectl(&["describe", "pvc", "data"]).ok();
    assert!(described.contains("Used By:       one"), "{described}");
    // In use, it is only marked.
    ns.kubectl(&["patch", "pvc", "data", "-p", r#"{"spec":{"resources":{"requests":{"storage":"8Mi"}}}}"#]).ok();
    ns.wait_for_value("pvc/data", "{.status.capacity.storage}", "8Mi");
    ns.kubectl(&["delete", "pod", "one", "--timeout=60s"]).ok();
    ns.apply(&pod("two", volume, mount));
    ns.wait("condition=Ready", &["pod/two"]);
    assert_eq!(ns.exec("two", &["cat", "/data/file"]).ok(), "kept\n");
    ns.kubectl(&["delete", "pvc", "data", "--wait=false"]).ok();
    assert_ne!(ns.value("pvc/data", "{.metadata.deletionTimestamp}"), "", "a claim in use stays until its pod is gone");
    let name = ns.value("pvc/data", "{.spec.volumeName}");
    let path = ns.cluster.kubectl(&["get", "pv", &name, "-o", "jsonpath={.spec.local.path}"]).ok();
    assert!(Path::new(&path).join("file").exists(), "{path}");
    ns.kubectl(&["delete", "pod", "two", "--timeout=60s"]).ok();
    wait_for("volume and data are gone", 60, || {
        let ran = ns.cluster.kubectl(&["get", "pv", "-o", "name"]);
        ensure(!ran.stdout.contains(&name) && !Path::new(&path).exists(), ran)
    });
}

#[test]
fn a_block_claim_is_a_device_that_a_file_system_does_not_know() {
    let ns = Namespace::new("block");
    ns.apply(&claim("raw", ", volumeMode: Block", "4Mi"));
    let volume = "{name: r, persistentVolumeClaim: {claimName: raw}}";
    let device = "volumeDevices: [{name: r, devicePath: /dev/raw}]";
    ns.apply(&pod("one", volume, device));
    ns.wait("condition=Ready", &["pod/one"]);
    ns.exec("one", &["sh", "-c", "test -b /dev/raw && echo block > /dev/raw"]).ok();
    ns.kubectl(&["delete", "pod", "one", "--timeout=60s"]).ok();
    ns.apply(&pod("two", volume, device));
    ns.wait("condition=Ready", &["pod/two"]);
    assert_eq!(ns.exec("two", &["head", "-c", "6", "/dev/raw"]).ok(), "block\n");
    ns.apply(&pod("three", volume, "volumeMounts: [{name: r, mountPath: /raw}]"));
    ns.wait_for_event("three", "FailedMount", "volume r has volumeMode Block, but is specified in volumeMounts");
    ns.kubectl(&["delete", "pod", "two", "three", "--timeout=60s"]).ok();
    let image = ns.cluster.data_dir().join("local-path").display().to_string();
    wait_for("the loop device is given back", 30, || {
        let loops = cluster::run::run(std::process::Command::new("losetup").arg("-a"), "");
        ensure(!loops.stdout.contains(&image), loops)
    });
}

#[test]
fn every_replica_of_a_stateful_set_has_a_claim_of_its_own_and_an_ephemeral_one_goes_with_its_pod() {
    let ns = Namespace::new("stateful");
    ns.apply(&format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db}}\nspec:\n  serviceName: db\n  replicas: 2\n  selector: {{matchLabels: {{app: db}}}}\n  volumeClaimTemplates: [{{metadata: {{name: data}}, spec: {{accessModes: [ReadWriteOncePod], resources: {{requests: {{storage: 1Mi}}}}}}}}]\n\
         \x20 template:\n    metadata: {{labels: {{app: db}}}}\n    spec:\n      terminationGracePeriodSeconds: 0\n      volumes: [{{name: scratch, ephemeral: {{volumeClaimTemplate: {{spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}}}}}}}]\n\
         \x20     containers: [{{name: main, image: \"{}\", command: [sh, -c, 'hostname >> /data/who; sleep 100000'], volumeMounts: [{{name: data, mountPath: /data}}, {{name: scratch, mountPath: /scratch}}]}}]\n",
        busybox(1)
    ));
    ns.wait_for_value("statefulset/db", "{.status.readyReplicas}", "2");
    ns.kubectl(&["delete", "pod", "db-0", "--timeout=60s"]).ok();
    wait_for("the replica is back with its data", 60, || {
        let ran = ns.exec("db-0", &["cat", "/data/who"]);
        ensure(ran.stdout == "db-0\ndb-0\n", ran)
    });
    assert_eq!(ns.exec("db-1", &["cat", "/data/who"]).ok(), "db-1\n");
    ns.kubectl(&["delete", "statefulset", "db", "--timeout=60s"]).ok();
    wait_for("scratch claims go with their pods, the others stay", 60, || {
        let ran = ns.kubectl(&["get", "pvc", "-o", "name"]);
        ensure(ran.stdout == "persistentvolumeclaim/data-db-0\npersistentvolumeclaim/data-db-1\n", ran)
    });
}

#[test]
fn a_volume_that_the_node_cannot_mount_says_why() {
    let ns = Namespace::new("nomount");
    ns.apply(&pod("lost", "{name: d, persistentVolumeClaim: {claimName: none}}", "volumeMounts: [{name: d, mountPath: /d}]"));
    ns.wait_for_event("lost", "FailedScheduling", "persistentvolumeclaim \"none\" not found");
    ns.apply(&pod("driver", "{name: d, csi: {driver: none.example.com}}", "volumeMounts: [{name: d, mountPath: /d}]"));
    ns.wait_for_event("driver", "FailedMount", "driver name none.example.com not found in the list of registered CSI drivers");
}

#[test]
fn a_certificate_and_a_trust_bundle_are_files_of_a_pod() {
    let ns = Namespace::new("podcert");
    let sources = "{podCertificate: {signerName: kubernetes.io/kube-apiserver-client-pod, keyType: ED25519, credentialBundlePath: bundle.pem}}, {clusterTrustBundle: {path: trust.pem, signerName: kubernetes.io/kube-apiserver-serving, labelSelector: {}}}";
    ns.apply(&pod("one", &format!("{{name: c, projected: {{sources: [{sources}]}}}}"), "volumeMounts: [{name: c, mountPath: /c}]"));
    ns.wait("condition=Ready", &["pod/one"]);
    let bundle = ns.exec("one", &["cat", "/c/bundle.pem"]).ok();
    assert!(bundle.contains("PRIVATE KEY") && bundle.contains("BEGIN CERTIFICATE"), "{}", bundle.len());
    assert!(ns.exec("one", &["cat", "/c/trust.pem"]).ok().contains("BEGIN CERTIFICATE"));
}
