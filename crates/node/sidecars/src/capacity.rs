//! How much room a driver has where, as CSIStorageCapacity objects that the scheduler reads (upstream: external-provisioner with
//! `--enable-capacity`; KEP-1472).
//!
//! One object per StorageClass of the driver that waits for its first consumer and per part of the topology, in [`NAMESPACE`], owned by the
//! CSIDriver. Asked for anew every minute, and at once when classes, nodes or the driver's volumes change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::{DeleteParams, ListParams};
use csi::v1;
use k8s_openapi::api::storage::v1::{CSIDriver, CSIStorageCapacity, StorageClass};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use stdx::Drain;
use tokio::sync::Notify;

use crate::Error;
use crate::driver::{Controller, driver_of};
use crate::provision::for_driver;

const NAMESPACE: &str = "kube-system";
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Changes come in bursts.
const PAUSE: Duration = Duration::from_millis(200);
const DRIVER_LABEL: &str = "csi.storage.k8s.io/drivername";
const KEEPER_LABEL: &str = "csi.storage.k8s.io/managed-by";
const KEEPER: &str = "csi-sidecars";

type Segment = BTreeMap<String, String>;

/// Keeps the driver's objects until `drain`.
pub async fn publish(controller: Arc<Controller>, drain: Drain) {
    if !controller.can(v1::controller::GET_CAPACITY) || drain.run(controller.drivers.synced()).await.is_none() {
        return;
    }
    let changed = Arc::new(Notify::new());
    let wake = |changed: &Arc<Notify>| {
        let changed = changed.clone();
        move || changed.notify_one()
    };
    let (by_class, by_node, by_driver, by_volume) = (wake(&changed), wake(&changed), wake(&changed), wake(&changed));
    controller.classes.on_change(move |_, _| by_class());
    controller.csi_nodes.on_change(move |_, _| by_node());
    controller.drivers.on_change(move |_, _| by_driver());
    let name = controller.name.clone();
    controller.volumes.on_change(move |old, new| {
        if new.or(old).is_some_and(|volume| driver_of(volume) == Some(name.as_str())) {
            by_volume();
        }
    });
    loop {
        if let Err(error) = controller.publish_capacities().await {
            tracing::warn!(%error, driver = controller.name, "publish a CSI driver's capacity; will retry");
        }
        if drain.run(tokio::time::timeout(LOOK_EVERY, changed.notified())).await.is_none()
            || drain.run(tokio::time::sleep(PAUSE)).await.is_none()
        {
            return;
        }
    }
}

/// What there should be an object for.
fn wanted(driver: &str, classes: &[Arc<StorageClass>], segments: &BTreeSet<Segment>) -> Vec<(Arc<StorageClass>, Segment)> {
    let waits =
        |class: &&Arc<StorageClass>| class.provisioner == driver && class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    let each = |class: &Arc<StorageClass>| segments.iter().map(|segment| (class.clone(), segment.clone())).collect::<Vec<_>>();
    classes.iter().filter(waits).flat_map(each).collect()
}

/// The same name for the same question.
fn name_of(driver: &str, class: &str, segment: &Segment) -> String {
    let words = [driver, class].into_iter().chain(segment.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]));
    // The end of a word counts, so that two of them are not one longer one.
    let bytes = words.flat_map(|word| word.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("csisc-{hash:016x}")
}

fn object(driver: &CSIDriver, class: &str, segment: Segment, answer: &v1::GetCapacityResponse) -> CSIStorageCapacity {
    let name = driver.metadata.name.clone().unwrap_or_default();
    let quantity = |bytes: i64| Quantity(meta::Quantity::new(bytes, meta::quantity::Format::BinarySi).to_string());
    let owner = OwnerReference {
        api_version: "storage.k8s.io/v1".into(),
        kind: "CSIDriver".into(),
        name: name.clone(),
        uid: driver.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    };
    CSIStorageCapacity {
        metadata: ObjectMeta {
            namespace: Some(NAMESPACE.into()),
            name: Some(name_of(&name, class, &segment)),
            labels: Some([(DRIVER_LABEL.to_owned(), name), (KEEPER_LABEL.to_owned(), KEEPER.to_owned())].into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        storage_class_name: class.to_owned(),
        // No label: every node reaches it.
        node_topology: Some(LabelSelector { match_labels: Some(segment).filter(|labels| !labels.is_empty()), ..LabelSelector::default() }),
        capacity: Some(quantity(answer.available_capacity)),
        maximum_volume_size: answer.maximum_volume_size.as_ref().map(|size| quantity(size.value)),
    }
}

impl Controller {
    async fn publish_capacities(&self) -> Result<(), Error> {
        let selector = format!("{DRIVER_LABEL}={},{KEEPER_LABEL}={KEEPER}", self.name);
        let params = ListParams { namespace: Some(NAMESPACE.into()), label_selector: Some(selector), ..ListParams::default() };
        let listed = self.client.list::<CSIStorageCapacity>(&params).await?.items;
        let mut there: BTreeMap<String, CSIStorageCapacity> =
            listed.into_iter().map(|object| (object.metadata.name.clone().unwrap_or_default(), object)).collect();
        let driver = self.drivers.get("", &self.name).filter(|driver| driver.spec.storage_capacity == Some(true));
        let mut failed = None;
        if let Some(driver) = &driver {
            for (class, segment) in wanted(&self.name, &self.classes.list(), &self.parts()) {
                let class_name = class.metadata.name.clone().unwrap_or_default();
                let known = there.remove(&name_of(&self.name, &class_name, &segment));
                // What could not be asked keeps its former answer.
                match self.ask(&class, &segment).await {
                    Ok(answer) => self.keep(object(driver, &class_name, segment, &answer), known).await?,
                    Err(error) => failed = Some(error),
                }
            }
        }
        for name in there.into_keys() {
            let gone = self.client.delete::<CSIStorageCapacity>(Some(NAMESPACE), &name, &DeleteParams::default()).await;
            client::ignore_not_found(gone)?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// The parts of the topology in which nodes have the driver.
    fn parts(&self) -> BTreeSet<Segment> {
        let has =
            |name: &str| self.csi_nodes.get("", name).is_some_and(|node| node.spec.drivers.iter().any(|driver| driver.name == self.name));
        let nodes = self.nodes.list();
        nodes.iter().filter(|node| has(node.metadata.name.as_deref().unwrap_or_default())).map(|node| self.segments(node)).collect()
    }

    async fn ask(&self, class: &StorageClass, segment: &Segment) -> Result<v1::GetCapacityResponse, Error> {
        let request = v1::GetCapacityRequest {
            volume_capabilities: Vec::new(),
            parameters: for_driver(&class.parameters.clone().unwrap_or_default()),
            accessible_topology: (!segment.is_empty()).then(|| v1::Topology { segments: segment.clone() }),
        };
        Ok(self.driver.capacity(&request).await?)
    }

    async fn keep(&self, object: CSIStorageCapacity, known: Option<CSIStorageCapacity>) -> Result<(), Error> {
        let Some(known) = known else { return Ok(client::ignore_already_exists(self.client.create(&object).await)?) };
        let same = known.capacity == object.capacity && known.maximum_volume_size == object.maximum_volume_size;
        if same && known.metadata.owner_references == object.metadata.owner_references {
            return Ok(());
        }
        let metadata = ObjectMeta { owner_references: object.metadata.owner_references, ..known.metadata };
        Ok(client::ignore_not_found(self.client.replace(&CSIStorageCapacity { metadata, ..object }).await)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn there_is_an_answer_for_each_waiting_class_of_the_driver_and_each_part_of_the_topology() {
        let class = |name: &str, driver: &str, mode: &str| {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "provisioner": driver, "volumeBindingMode": mode})).unwrap())
        };
        let classes =
            [class("late", "d", "WaitForFirstConsumer"), class("now", "d", "Immediate"), class("other", "e", "WaitForFirstConsumer")];
        let zone = |name: &str| Segment::from([("zone".to_owned(), name.to_owned())]);
        let found = wanted("d", &classes, &BTreeSet::from([zone("a"), zone("b")]));
        let words: Vec<_> = found.iter().map(|(class, segment)| (class.metadata.name.clone().unwrap(), segment["zone"].clone())).collect();
        assert_eq!(words, [("late".to_owned(), "a".to_owned()), ("late".to_owned(), "b".to_owned())]);
        assert_ne!(name_of("d", "late", &zone("a")), name_of("d", "late", &zone("b")));
    }

    #[test]
    fn an_answer_is_owned_by_the_driver_and_one_without_topology_holds_for_every_node() {
        let driver: CSIDriver = serde_json::from_value(json!({"metadata": {"name": "d", "uid": "u"}, "spec": {}})).unwrap();
        let answer = v1::GetCapacityResponse { available_capacity: 1 << 30, maximum_volume_size: None, minimum_volume_size: None };
        let made = serde_json::to_value(object(&driver, "late", Segment::new(), &answer)).unwrap();
        assert_eq!((&made["capacity"], &made["nodeTopology"]), (&json!("1Gi"), &json!({})));
        assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "u");
    }
}
