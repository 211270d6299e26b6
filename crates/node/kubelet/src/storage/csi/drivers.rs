//! Drivers that registered: what they can, and the node's CSINode, which says so.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use client::Patch;
use csi::{Driver, v1};
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use plugins::registry::{PluginInfo, Taker};
use serde_json::{Map, Value, json};

use super::Csi;
use crate::worker::lock;

pub const KIND: &str = "CSIPlugin";
/// On nodes, for older attachers.
const NODE_ID: &str = "csi.volume.kubernetes.io/nodeid";
const ATTEMPTS: usize = 5;

/// A driver that registered.
pub struct Known {
    pub driver: Driver,
    pub capabilities: v1::NodeGetCapabilitiesResponse,
}

impl Taker for Csi {
    fn register<'a>(&'a self, plugin: &'a PluginInfo) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            if !plugin.supported_versions.iter().any(|version| version.trim_start_matches('v').starts_with("1.")) {
                return Err(format!("CSI driver {} supports none of our versions: {:?}", plugin.name, plugin.supported_versions));
            }
            let endpoint = self.config.from_driver(Path::new(&plugin.endpoint));
            let driver = Driver::new(&endpoint);
            let failed = |step: &str, error: cri::Error| format!("error during CSI {step}() call: {error}");
            let info = driver.node_info(&v1::NodeGetInfoRequest {}).await.map_err(|error| failed("NodeGetInfo", error))?;
            let capabilities = driver.node_capabilities(&v1::NodeGetCapabilitiesRequest {}).await;
            let capabilities = capabilities.map_err(|error| failed("NodeGetCapabilities", error))?;
            self.tell(&plugin.name, Some(&info)).await?;
            lock(&self.drivers).insert(plugin.name.clone(), Arc::new(Known { driver, capabilities }));
            tracing::info!(driver = plugin.name, socket = %endpoint.display(), "a CSI driver registered");
            Ok(())
        })
    }

    fn gone(&self, plugin: &PluginInfo) {
        // Its pod may only be restarting: volumes that it published are there, and it takes them back when it returns. The CSINode
        // keeps its entry, so that pods are scheduled here meanwhile.
        tracing::info!(driver = plugin.name, "a CSI driver's registration socket is gone");
    }
}

impl Csi {
    /// The node's CSINode, whether or not any driver comes.
    pub async fn ensure_node(&self) -> Result<(), String> {
        let _turn = self.node.lock().await;
        let node = self.read_node().await?;
        self.csi_node(&node).await.map(drop)
    }

    async fn read_node(&self) -> Result<Node, String> {
        self.client.get::<Node>(None, &self.config.node_name).await.map_err(|error| format!("get the node: {error}"))
    }

    /// Writes what a driver says of the node into the CSINode and the Node.
    async fn tell(&self, name: &str, info: Option<&v1::NodeGetInfoResponse>) -> Result<(), String> {
        let _turn = self.node.lock().await;
        let node = self.read_node().await?;
        if let Some(info) = info {
            self.label(&node, name, info).await?;
        }
        let mut error = String::new();
        for _ in 0..ATTEMPTS {
            let mut csi_node = self.csi_node(&node).await?;
            let mut drivers = std::mem::take(&mut csi_node.spec.drivers);
            drivers.retain(|driver| driver.name != name);
            drivers.extend(info.map(|info| entry(name, info)));
            let before = self.csi_node(&node).await?;
            if before.spec.drivers == drivers {
                return Ok(());
            }
            csi_node.spec.drivers = drivers;
            match self.client.replace(&csi_node).await {
                Ok(_) => return Ok(()),
                Err(failed) => error = failed.to_string(),
            }
        }
        Err(format!("error updating CSINode: {error}"))
    }

    async fn csi_node(&self, node: &Node) -> Result<CSINode, String> {
        let name = &self.config.node_name;
        match self.client.get::<CSINode>(None, name).await {
            Ok(found) => return Ok(found),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(format!("error getting CSINode: {error}")),
        }
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.clone(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta { name: Some(name.clone()), owner_references: Some(vec![owner]), ..ObjectMeta::default() };
        let empty = CSINode { metadata, spec: CSINodeSpec { drivers: Vec::new() }, ..CSINode::default() };
        match self.client.create(&empty).await {
            Err(error) if !error.is_already_exists() => Err(format!("error creating CSINode: {error}")),
            _ => self.client.get::<CSINode>(None, name).await.map_err(|error| format!("error getting CSINode: {error}")),
        }
    }

    /// Topology is labels, and the driver's name for the node an annotation.
    async fn label(&self, node: &Node, name: &str, info: &v1::NodeGetInfoResponse) -> Result<(), String> {
        let known = node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(NODE_ID));
        let mut ids: Map<String, Value> = known.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        ids.insert(name.to_owned(), info.node_id.clone().into());
        let ids = Value::Object(ids).to_string();
        let segments = info.accessible_topology.clone().unwrap_or_default().segments;
        let labels = node.metadata.labels.clone().unwrap_or_default();
        if let Some((key, value)) = segments.iter().find(|(key, value)| labels.get(*key).is_some_and(|own| own != *value)) {
            return Err(format!(
                "detected topology value collision: driver reported {key:?}:{value:?} but existing label is {:?}",
                labels.get(key)
            ));
        }
        let labelled = segments.iter().all(|(key, _)| labels.contains_key(key));
        if labelled && known == Some(&ids) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"metadata": {"annotations": {NODE_ID: ids}, "labels": segments}}));
        let patched = self.client.patch::<Node>(None, &self.config.node_name, &patch, "").await;
        patched.map(drop).map_err(|error| format!("error updating node: {error}"))
    }
}

fn entry(name: &str, info: &v1::NodeGetInfoResponse) -> CSINodeDriver {
    let segments: BTreeMap<String, String> = info.accessible_topology.clone().unwrap_or_default().segments;
    let count = i32::try_from(info.max_volumes_per_node).unwrap_or(i32::MAX);
    CSINodeDriver {
        name: name.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: (!segments.is_empty()).then(|| segments.into_keys().collect()),
        allocatable: (count > 0).then_some(VolumeNodeResources { count: Some(count) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_says_its_name_for_the_node_its_topology_and_its_limit() {
        let segments = BTreeMap::from([("topology.d/zone".to_owned(), "a".to_owned())]);
        let info = v1::NodeGetInfoResponse {
            node_id: "n-1".into(),
            max_volumes_per_node: 3,
            accessible_topology: Some(v1::Topology { segments }),
        };
        let said = entry("d", &info);
        assert_eq!((said.node_id.as_str(), said.allocatable.unwrap().count), ("n-1", Some(3)));
        assert_eq!(said.topology_keys, Some(vec!["topology.d/zone".to_owned()]));
        assert_eq!(entry("d", &v1::NodeGetInfoResponse::default()).allocatable, None);
    }
}
