//! A CSI driver with its controller beside the built-in sidecars: everything between a claim and a container, and back.

use std::collections::BTreeMap;

use cluster::run::ensure;
use cluster::{Namespace, wait_for};

use crate::images::busybox;

mod driver;

use driver::{Driver, NAME};

fn objects(image: &str) -> String {
    format!(
        "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {{name: {NAME}}}\nspec: {{attachRequired: true, podInfoOnMount: true, fsGroupPolicy: File, volumeLifecycleModes: [Persistent, Ephemeral], tokenRequests: [{{audience: stest}}]}}\n---\n\
         apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: stest-csi}}\nprovisioner: {NAME}\nallowVolumeExpansion: true\nvolumeBindingMode: WaitForFirstConsumer\nparameters: {{colour: red}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: data}}\nspec: {{storageClassName: stest-csi, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}\n---\n{}",
        pod("one", image)
    )
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  securityContext: {{fsGroup: 4711}}\n  volumes:\n  - {{name: d, persistentVolumeClaim: {{claimName: data}}}}\n\
         \x20 - {{name: inline, csi: {{driver: {NAME}, volumeAttributes: {{shape: round}}}}}}\n\
         \x20 containers: [{{name: main, image: \"{image}\", command: [sleep, '100000'], volumeMounts: [{{name: d, mountPath: /data}}, {{name: inline, mountPath: /inline}}]}}]\n"
    )
}

/// The driver's names are the cluster's: one at a time.
static DRIVER: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn started(ns: &Namespace) -> Driver {
    let data = ns.cluster.data_dir();
    let driver = Driver::start(&data.join("kubelet"), &data.join("csi-controllers"), &ns.cluster.dir().join("csi-backing"));
    let node = ns.cluster.node().to_owned();
    wait_for("the driver is in the CSINode", 60, || {
        let ran =
            ns.cluster.kubectl(&["get", "csinode", &node, "-o", "jsonpath={.spec.drivers[*].name}={.spec.drivers[*].allocatable.count}"]);
        ensure(ran.stdout == format!("{NAME}=7"), ran)
    });
    driver
}

#[test]
fn a_driver_without_sidecars_has_its_snapshots_taken_its_volumes_cloned_and_its_room_told_to_the_scheduler() {
    let _one = DRIVER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let ns = Namespace::new("csi-more");
    let driver = started(&ns);
    let capacities = || {
        ns.cluster.kubectl(&["get", "csistoragecapacities", "-n", "kube-system", "-o", "jsonpath={.items[*].capacity}|{.items[*].storageClassName}|{.items[*].nodeTopology.matchLabels}|{.items[*].metadata.ownerReferences[*].kind}"])
    };
    driver.has_room_for(512 << 10);
    let claim = |name: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{storageClassName: stest-more, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}{more}}}\n---\n"
        )
    };
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  volumes: [{{name: d, persistentVolumeClaim: {{claimName: {name}}}}}]\n  containers: [{{name: main, image: \"{}\", command: [sleep, '100000'], volumeMounts: [{{name: d, mountPath: /data}}]}}]\n---\n",
            busybox(1)
        )
    };
    ns.apply(&format!(
        "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {{name: {NAME}}}\nspec: {{attachRequired: true, storageCapacity: true, volumeLifecycleModes: [Persistent]}}\n---\n\
         apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: stest-more}}\nprovisioner: {NAME}\nvolumeBindingMode: WaitForFirstConsumer\nparameters: {{colour: red}}\n---\n\
         apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {{name: stest-more}}\ndriver: {NAME}\ndeletionPolicy: Delete\nparameters: {{shape: square}}\n"
    ));
    let topology = format!("{{\"topology.{NAME}/node\":\"stest-1\"}}");
    wait_for("the driver's room is published", 60, || {
        let ran = capacities();
        ensure(ran.stdout == format!("512Ki|stest-more|{topology}|CSIDriver"), ran)
    });
    ns.apply(&format!("{}{}", claim("data", ""), pod("data")));
    ns.wait_for_event("data", "FailedScheduling", "node(s) did not have enough free storage");
    driver.has_room_for(1 << 30);
    // What changes has the driver asked again; otherwise it is every minute.
    ns.cluster.kubectl(&["annotate", "storageclass", "stest-more", "look=again"]).ok();
    ns.wait("condition=Ready", &["pod/data"]);
    ns.exec("data", &["sh", "-c", "echo before > /data/file"]).ok();

    ns.apply("apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: s}\nspec: {volumeSnapshotClassName: stest-more, source: {persistentVolumeClaimName: data}}\n");
    ns.wait_for_value(
        "volumesnapshot/s",
        "{.status.readyToUse} {.status.restoreSize} {.status.creationTime}",
        "true 1Mi 2001-09-09T01:46:40Z",
    );
    assert_eq!(driver.context("CreateSnapshot", "s-").get("shape").map(String::as_str), Some("square"));
    ns.exec("data", &["sh", "-c", "echo after > /data/file"]).ok();
    let of_snapshot = ", dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: s}";
    let of_claim = ", dataSource: {kind: PersistentVolumeClaim, name: data}";
    ns.apply(&format!("{}{}{}{}", claim("restored", of_snapshot), pod("restored"), claim("cloned", of_claim), pod("cloned")));
    ns.wait("condition=Ready", &["pod/restored", "pod/cloned"]);
    assert_eq!(ns.exec("restored", &["cat", "/data/file"]).ok(), "before\n");
    assert_eq!(ns.exec("cloned", &["cat", "/data/file"]).ok(), "after\n");
    ns.kubectl(&["delete", "volumesnapshot", "s", "--timeout=60s"]).ok();
    assert!(driver.calls().iter().any(|call| call == "DeleteSnapshot"));
    ns.kubectl(&["delete", "pod", "data", "restored", "cloned", "--timeout=60s"]).ok();
    ns.kubectl(&["delete", "pvc", "data", "restored", "cloned", "--timeout=60s"]).ok();
    wait_for("the driver has nothing left", 60, || ensure(driver.is_empty(), "volumes or snapshots are left"));
    ns.cluster.kubectl(&["delete", "storageclass/stest-more", "volumesnapshotclass/stest-more", &format!("csidriver/{NAME}")]).ok();
    wait_for("nobody speaks of its room", 60, || {
        let ran = capacities();
        ensure(ran.stdout == "|||", ran)
    });
}

#[test]
fn a_drivers_volume_is_made_attached_staged_published_enlarged_and_all_of_it_undone() {
    let _one = DRIVER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let ns = Namespace::new("csi");
    let driver = started(&ns);
    let node = ns.cluster.node().to_owned();
    ns.apply(&objects(&busybox(1)));
    ns.wait("condition=Ready", &["pod/one"]);
    ns.exec("one", &["sh", "-c", "echo kept > /data/file"]).ok();
    assert_eq!(ns.exec("one", &["stat", "-c", "%g", "/data"]).ok(), "4711\n", "fsGroup reaches a driver's volume");
    let volume = ns.value("pvc/data", "{.spec.volumeName}");
    let attached = ns.cluster.kubectl(&["get", "volumeattachments", "-o", "jsonpath={.items[*].status.attached}"]).ok();
    assert_eq!(attached, "true");
    let context: BTreeMap<String, String> = driver.context("NodePublishVolume", "csi-");
    assert_eq!(context.get("csi.storage.k8s.io/pod.name").map(String::as_str), Some("one"), "{context:?}");
    assert_eq!(context.get("csi.storage.k8s.io/ephemeral").map(String::as_str), Some("true"));
    assert!(context.get("csi.storage.k8s.io/serviceAccount.tokens").is_some_and(|text| text.contains("\"stest\"")), "{context:?}");

    ns.kubectl(&["patch", "pvc", "data", "-p", r#"{"spec":{"resources":{"requests":{"storage":"2Mi"}}}}"#]).ok();
    wait_for("the claim has grown on a node that uses it", 120, || {
        let ran = ns.kubectl(&["get", "pvc", "data", "-o", "jsonpath={.status.capacity.storage}"]);
        ensure(ran.stdout == "2Mi", ran)
    });
    let metrics = ns.cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics")]).ok();
    let sample = format!("kubelet_volume_stats_capacity_bytes{{namespace=\"{}\",persistentvolumeclaim=\"data\"}} 12345", ns.name);
    assert!(metrics.contains(&sample), "{sample} is missing");

    ns.kubectl(&["delete", "pod", "one", "--timeout=60s"]).ok();
    ns.apply(&pod("two", &busybox(1)));
    ns.wait("condition=Ready", &["pod/two"]);
    assert_eq!(ns.exec("two", &["cat", "/data/file"]).ok(), "kept\n", "data outlives the pod");
    ns.kubectl(&["delete", "pod", "two", "--timeout=60s"]).ok();
    ns.kubectl(&["delete", "pvc", "data", "--timeout=60s"]).ok();
    wait_for("volume and attachment are gone", 60, || {
        let ran = ns.cluster.kubectl(&["get", "pv,volumeattachments", "-o", "name"]);
        ensure(!ran.stdout.contains(&volume) && !ran.stdout.contains("volumeattachment"), ran)
    });
    let calls = driver.calls();
    let order = |first: &str, then: &str| {
        let at = |name: &str| calls.iter().position(|call| call == name).unwrap_or_else(|| panic!("{name} is missing in {calls:?}"));
        assert!(at(first) < at(then), "{first} before {then}: {calls:?}");
    };
    let steps =
        ["CreateVolume", "ControllerPublishVolume", "NodeStageVolume", "NodeUnstageVolume", "ControllerUnpublishVolume", "DeleteVolume"];
    steps.windows(2).for_each(|pair| order(pair[0], pair[1]));
    for call in ["NodePublishVolume", "NodeExpandVolume", "ControllerExpandVolume", "NodeGetVolumeStats"] {
        assert!(calls.iter().any(|known| known == call), "{call} is missing in {calls:?}");
    }
    assert!(driver.is_empty(), "the driver has volumes left");
    for kind in ["csidriver", "storageclass"] {
        let name = if kind == "csidriver" { NAME } else { "stest-csi" };
        ns.cluster.kubectl(&["delete", kind, name]).ok();
    }
}
