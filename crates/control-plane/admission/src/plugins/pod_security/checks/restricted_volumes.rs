//! Only volumes that hold the cluster's own objects or claimed storage.

use std::collections::BTreeSet;

use rules::value::{has, list, text};
use serde_json::Value;

use super::super::policy::Level;
use super::{Check, Finding, Pod, finding, host_path_volumes, plural, quoted};

pub static CHECK: Check = Check { level: Level::Restricted, versions: &[(0, run)], replaces: Some(&host_path_volumes::CHECK) };

const ALLOWED: [&str; 9] =
    ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"];
const KNOWN: [&str; 21] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

fn run(pod: &Pod<'_>) -> Option<Finding> {
    let bad = list(pod.spec, "volumes").iter().filter(|volume| !ALLOWED.iter().any(|kind| has(volume, kind)));
    let bad: Vec<&Value> = bad.collect();
    if bad.is_empty() {
        return None;
    }
    let kind = |volume: &&Value| KNOWN.into_iter().find(|kind| has(volume, kind)).unwrap_or("unknown");
    let kinds: BTreeSet<&str> = bad.iter().map(kind).collect();
    let names: Vec<&str> = bad.iter().map(|volume| text(volume, "name")).collect();
    let (volumes, uses) = (plural(names.len(), "volume", "volumes"), plural(names.len(), "uses", "use"));
    let noun = plural(kinds.len(), "restricted volume type", "restricted volume types");
    finding("restricted volume types", format!("{volumes} {} {uses} {noun} {}", quoted(&names), quoted(&kinds)))
}
