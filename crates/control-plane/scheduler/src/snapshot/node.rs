//! One node: what it says of itself, and who is on it.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Node, Taint};
use reconcile::ObjectKey;

use super::Resident;
use crate::class::{HostPort, Resources};

/// What of a Node object placement depends on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    /// How many pods it takes.
    pub pods_max: i64,
    /// Sizes in bytes by each of an image's names.
    pub images: HashMap<String, i64>,
}

pub(super) fn facts(node: &Node) -> Facts {
    let spec = node.spec.as_ref();
    let status = node.status.as_ref();
    let allocatable = status.and_then(|status| status.allocatable.as_ref());
    let pods = allocatable.and_then(|amounts| meta::quantity::Quantity::parse(&amounts.get("pods")?.0).ok());
    let images = status.and_then(|status| status.images.as_deref()).unwrap_or_default();
    Facts {
        labels: node.metadata.labels.clone().unwrap_or_default(),
        taints: spec.and_then(|spec| spec.taints.clone()).unwrap_or_default(),
        unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
        allocatable: allocatable.map(Resources::of).unwrap_or_default(),
        pods_max: pods.map_or(0, |quantity| quantity.value()),
        images: images
            .iter()
            .flat_map(|image| image.names.iter().flatten().map(|name| (name.clone(), image.size_bytes.unwrap_or(0))))
            .collect(),
    }
}

#[derive(Clone, Debug, Default)]
pub struct Details {
    pub name: String,
    pub facts: Facts,
    pub requested: Resources,
    /// As `requested`, with scoring's assumptions.
    pub scored: Resources,
    pub ports: Vec<HostPort>,
    pub pods: Vec<Resident>,
}

impl Details {
    pub fn label(&self, key: &str) -> Option<&str> {
        self.facts.labels.get(key).map(String::as_str)
    }

    pub(super) fn occupy(&mut self, resident: Resident) {
        let class = &resident.class;
        self.requested.add(&class.requests);
        self.scored.add(&class.scored);
        self.ports.extend(class.host_ports.iter().cloned());
        self.pods.push(resident);
    }

    pub(super) fn release(&mut self, key: &ObjectKey) -> Option<Resident> {
        let at = self.pods.iter().position(|other| *other.key == *key)?;
        let gone = self.pods.swap_remove(at);
        self.requested.sub(&gone.class.requests);
        self.scored.sub(&gone.class.scored);
        for port in &gone.class.host_ports {
            if let Some(at) = self.ports.iter().position(|other| other == port) {
                self.ports.swap_remove(at);
            }
        }
        Some(gone)
    }
}
