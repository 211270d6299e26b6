//! Snapshots and clones of the built-in provisioner's volumes, seen from inside of containers.

use std::path::PathBuf;

use cluster::run::ensure;
use cluster::{Namespace, wait_for};

use crate::images::busybox;

fn claim(name: &str, more: &str, size: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: {size}}}}}{more}}}\n---\n"
    )
}

fn of_snapshot(name: &str) -> String {
    format!(", dataSource: {{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: {name}}}")
}

fn snapshot(name: &str, source: &str) -> String {
    format!(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {{name: {name}}}\nspec: {{source: {{{source}}}}}\n---\n"
    )
}

fn pod(name: &str, claim: &str, way: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  volumes: [{{name: d, persistentVolumeClaim: {{claimName: {claim}}}}}]\n\
         \x20 containers: [{{name: main, image: \"{}\", command: [sleep, '100000'], {way}}}]\n---\n",
        busybox(1)
    )
}

const MOUNT: &str = "volumeMounts: [{name: d, mountPath: /data}]";

/// Where the snapshot's copy is.
fn place(ns: &Namespace, snapshot: &str) -> PathBuf {
    let content = ns.value(&format!("volumesnapshot/{snapshot}"), "{.status.boundVolumeSnapshotContentName}");
    ns.cluster.data_dir().join("local-path/.snapshots").join(content)
}

#[test]
fn a_snapshot_keeps_a_moment_that_new_claims_begin_with_and_a_clone_begins_with_now() {
    let ns = Namespace::new("snapshots");
    ns.apply(&format!("{}{}", claim("data", "", "8Mi"), pod("one", "data", MOUNT)));
    ns.wait("condition=Ready", &["pod/one"]);
    let made = "cd /data && echo before > file && chown 1234:5678 file && chmod 4750 file && ln file other && ln -s file link && mkfifo pipe \
                && mkdir -m 1777 -p deep/er && dd if=/dev/zero of=holes bs=1 count=1 seek=4000000 2>/dev/null && touch -d '2001-02-03 04:05:06' deep";
    ns.exec("one", &["sh", "-c", made]).ok();
    ns.apply(&snapshot("s", "persistentVolumeClaimName: data"));
    ns.wait_for_value(
        "volumesnapshot/s",
        "{.status.readyToUse} {.status.restoreSize} {.spec.volumeSnapshotClassName}",
        "true 8Mi local-path",
    );
    ns.wait_for_event("s", "SnapshotReady", "is ready to use.");
    assert!(ns.kubectl(&["get", "vs"]).ok().contains("READYTOUSE   SOURCEPVC"));
    wait_for("the claim is let go", 20, || {
        let ran = ns.kubectl(&["get", "pvc", "data", "-o", "jsonpath={.metadata.finalizers}"]);
        ensure(!ran.stdout.contains("snapshot.storage"), ran)
    });
    ns.exec("one", &["sh", "-c", "echo after > /data/file && rm /data/link"]).ok();

    let source = ", dataSource: {kind: PersistentVolumeClaim, name: data}";
    ns.apply(&format!("{}{}", claim("restored", &of_snapshot("s"), "16Mi"), claim("cloned", source, "8Mi")));
    ns.apply(&format!("{}{}", pod("two", "restored", MOUNT), pod("three", "cloned", MOUNT)));
    ns.wait("condition=Ready", &["pod/two", "pod/three"]);
    let seen = "cd /data && cat file && stat -c '%u:%g %a %h' file && readlink link && stat -c %F pipe && stat -c '%a %y' deep deep/er | cut -d. -f1 && stat -c %s holes && [ $(stat -c %b holes) -lt 100 ] && echo sparse";
    let deep = ns.exec("one", &["sh", "-c", "stat -c '%a %y' /data/deep/er | cut -d. -f1"]).ok();
    let expected = format!("before\n1234:5678 4750 2\nfile\nfifo\n755 2001-02-03 04:05:06\n{deep}4000001\nsparse\n");
    assert_eq!(ns.exec("two", &["sh", "-c", seen]).ok(), expected);
    assert_eq!(ns.exec("three", &["sh", "-c", "cat /data/file; ls /data/link"]).stdout, "after\n");
    // They are volumes of their own.
    ns.exec("two", &["sh", "-c", "echo mine > /data/file"]).ok();
    assert_eq!(ns.exec("one", &["cat", "/data/file"]).ok(), "after\n");

    let path = place(&ns, "s");
    assert!(path.join("data/file").exists(), "{}", path.display());
    ns.kubectl(&["delete", "volumesnapshot", "s", "--timeout=60s"]).ok();
    wait_for("the copy is gone with its snapshot", 30, || {
        let ran = ns.cluster.kubectl(&["get", "volumesnapshotcontents", "-o", "name"]);
        let content = path.file_name().unwrap().to_string_lossy().into_owned();
        ensure(!path.exists() && !ran.stdout.contains(&content), ran)
    });
    assert_eq!(ns.exec("two", &["cat", "/data/file"]).ok(), "mine\n", "what was made of it stays");
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason_and_what_was_missing_is_taken_when_it_comes() {
    let ns = Namespace::new("misfits");
    ns.apply(&format!("{}{}", claim("data", "", "8Mi"), claim("early", &of_snapshot("s"), "8Mi")));
    let missing = "error getting handle for DataSource Type VolumeSnapshot by Name s: error getting snapshot s from api server: volumesnapshots.snapshot.storage.k8s.io \"s\" not found";
    ns.wait_for_event("early", "ProvisioningFailed", missing);
    ns.apply(&snapshot("s", "persistentVolumeClaimName: data"));
    ns.wait_for_event("s", "SetDefaultSnapshotClassFailed", "the PVC data is not yet bound to a PV, will not attempt to take a snapshot");
    ns.apply(&pod("one", "data", MOUNT));
    ns.wait_for_value("volumesnapshot/s", "{.status.readyToUse} {.status.error}", "true ");
    ns.wait_for_value("pvc/early", "{.status.phase}", "Bound");
    ns.apply(&format!(
        "{}{}",
        claim("small", &of_snapshot("s"), "4Mi"),
        claim("raw", &format!("{}, volumeMode: Block", of_snapshot("s")), "8Mi")
    ));
    ns.wait_for_event(
        "small",
        "ProvisioningFailed",
        "requested volume size 4194304 is less than the size 8388608 for the source snapshot s",
    );
    ns.wait_for_event("raw", "ProvisioningFailed", "modifies the mode of the source volume but does not have permission to do so");
    let other = ", dataSource: {kind: PersistentVolumeClaim, name: elsewhere}";
    ns.apply(&claim("lost", other, "8Mi"));
    ns.wait_for_event("lost", "ProvisioningFailed", "error getting PVC elsewhere");
    ns.apply(&claim("book", ", dataSourceRef: {apiGroup: books.example.com, kind: Book, name: b}", "8Mi"));
    ns.wait_for_event("book", "Provisioning", "Assuming an external populator will provision the volume");
    ns.apply("apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: none}\nspec: {volumeSnapshotClassName: none, source: {persistentVolumeClaimName: data}}\n");
    ns.wait_for_event("none", "GetSnapshotClassFailed", "volumesnapshotclass.snapshot.storage.k8s.io \"none\" not found");
    // A snapshot stays while a claim waits for it.
    ns.kubectl(&["delete", "volumesnapshot", "s", "--wait=false"]).ok();
    ns.wait_for_event("s", "SnapshotDeletePending", "Snapshot is being used to restore a PVC");
    ns.kubectl(&["delete", "pvc", "small", "raw", "--timeout=60s"]).ok();
    ns.kubectl(&["wait", "--for=delete", "volumesnapshot/s", "--timeout=60s"]).ok();
}

#[test]
fn a_kept_snapshot_is_found_again_and_one_of_a_block_volume_is_a_device_with_its_bytes() {
    let ns = Namespace::new("kept");
    ns.apply(&format!(
        "{}{}",
        claim("raw", ", volumeMode: Block", "4Mi"),
        pod("one", "raw", "volumeDevices: [{name: d, devicePath: /dev/raw}]")
    ));
    ns.wait("condition=Ready", &["pod/one"]);
    ns.exec("one", &["sh", "-c", "echo block > /dev/raw"]).ok();
    let class = format!("{}-kept", ns.name);
    ns.apply(&format!(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {{name: {class}}}\ndriver: sternpost.io/local-path\ndeletionPolicy: Retain\n---\n\
         apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {{name: s}}\nspec: {{volumeSnapshotClassName: {class}, source: {{persistentVolumeClaimName: raw}}}}\n"
    ));
    ns.wait_for_value("volumesnapshot/s", "{.status.readyToUse}", "true");
    let path = place(&ns, "s");
    let content = path.file_name().unwrap().to_string_lossy().into_owned();
    let handle = ns.cluster.kubectl(&["get", "volumesnapshotcontent", &content, "-o", "jsonpath={.status.snapshotHandle}"]).ok();
    ns.kubectl(&["delete", "volumesnapshot", "s", "--timeout=60s"]).ok();
    ns.cluster.kubectl(&["delete", "volumesnapshotcontent", &content, "--timeout=60s"]).ok();
    assert!(path.exists(), "Retain keeps the copy");

    let old = format!("{}-old", ns.name);
    ns.apply(&format!(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotContent\nmetadata: {{name: {old}}}\nspec: {{deletionPolicy: Delete, driver: sternpost.io/local-path, sourceVolumeMode: Block, source: {{snapshotHandle: \"{handle}\"}}, volumeSnapshotRef: {{name: again, namespace: {}}}}}\n---\n{}{}{}",
        ns.name,
        snapshot("again", &format!("volumeSnapshotContentName: {old}")),
        claim("restored", &format!("{}, volumeMode: Block", of_snapshot("again")), "4Mi"),
        pod("two", "restored", "volumeDevices: [{name: d, devicePath: /dev/raw}]"),
    ));
    ns.wait("condition=Ready", &["pod/two"]);
    assert_eq!(ns.exec("two", &["head", "-c", "6", "/dev/raw"]).ok(), "block\n");
    ns.kubectl(&["delete", "volumesnapshot", "again", "--timeout=60s"]).ok();
    wait_for("Delete removes the copy that was found", 30, || ensure(!path.exists(), path.display().to_string()));
    ns.cluster.kubectl(&["delete", "volumesnapshotclass", &class]).ok();
}
