//! The objects of the cases.

use std::collections::BTreeMap;

use client::Client;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use k8s_openapi::api::storage::v1::CSINode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::case::Case;

pub const NAMESPACE: &str = "race";
/// Of the same team.
const NAMESPACES: usize = 100;
const DEVICES: &str = "driver.race.test";
/// The driver that serves in-tree volumes of AWS where they are migrated.
const VOLUMES: &str = "ebs.csi.aws.com";

/// Pods of one kind.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Template {
    pub count: usize,
    labels: BTreeMap<String, String>,
    requests: Option<BTreeMap<String, String>>,
    priority: i32,
    affinity: Option<Neighbours>,
    anti_affinity: Option<Neighbours>,
    preferred_affinity: Option<Neighbours>,
    preferred_anti_affinity: Option<Neighbours>,
    spread: Option<Spread>,
    node_zones: Vec<String>,
    node: Option<String>,
    gated: bool,
    /// They are spread over so many namespaces of one team, instead of being in the one of all others.
    namespaces: usize,
    /// A Secret, mounted.
    secret: bool,
    /// One device for each.
    pub device: Option<Device>,
    /// A claim bound to a volume, for each.
    pub volume: Option<Volume>,
    host_port: Option<u16>,
    /// They come in gangs of so many.
    pub gang: usize,
    /// They stay after their deletion.
    finalizer: bool,
    /// They get no node, and nobody waits for it.
    pub waits: bool,
    /// While others are measured, so many of them a second are deleted.
    pub deleted_per_second: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Device {
    /// A claim made beforehand.
    Claim,
    /// A claim that the controller makes from a template.
    Template,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Volume {
    Csi,
    InTree,
}

#[derive(Clone, Debug, Deserialize)]
struct Neighbours {
    key: String,
    labels: BTreeMap<String, String>,
    /// In all namespaces of the team.
    #[serde(default)]
    team: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spread {
    key: String,
    max_skew: i32,
    labels: BTreeMap<String, String>,
    forbids: bool,
    #[serde(default)]
    honours_taints: bool,
}

impl Template {
    /// The namespace of the pod with that number.
    pub fn namespace(&self, number: usize) -> String {
        if self.namespaces > 0 { format!("{NAMESPACE}-{}", number % self.namespaces) } else { NAMESPACE.to_owned() }
    }

    pub fn pod(&self, name: &str, number: usize) -> anyhow::Result<Pod> {
        let requests = self.requests.clone().map_or_else(|| json!({ "cpu": "100m", "memory": "500Mi" }), |requests| json!(requests));
        // Extended resources cannot be overcommitted.
        let extended = requests.as_object().into_iter().flatten().filter(|(name, _)| name.contains('/'));
        let limits: BTreeMap<&String, &Value> = extended.collect();
        let mut spec = json!({
            "containers": [{ "name": "pause", "image": "registry.k8s.io/pause:3.10", "resources": { "requests": requests, "limits": limits } }],
            "terminationGracePeriodSeconds": 0,
        });
        if self.priority > 0 {
            spec["priorityClassName"] = "race-high".into();
        }
        spec["affinity"] = self.affinity();
        if let Some(spread) = &self.spread {
            spec["topologySpreadConstraints"] = json!([{
                "maxSkew": spread.max_skew, "topologyKey": spread.key, "labelSelector": { "matchLabels": spread.labels },
                "whenUnsatisfiable": if spread.forbids { "DoNotSchedule" } else { "ScheduleAnyway" },
                "nodeTaintsPolicy": if spread.honours_taints { "Honor" } else { "Ignore" },
            }]);
        }
        if self.gated {
            spec["schedulingGates"] = json!([{ "name": "race.test/hold" }]);
        }
        if self.volume.is_some() {
            spec["volumes"] = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": name } }]);
        }
        if self.secret {
            spec["volumes"] = json!([{ "name": "secret", "secret": { "secretName": "secret" } }]);
        }
        if let Some(device) = self.device {
            spec["resourceClaims"] = match device {
                Device::Claim => json!([{ "name": "device", "resourceClaimName": name }]),
                Device::Template => json!([{ "name": "device", "resourceClaimTemplateName": "race" }]),
            };
            spec["containers"][0]["resources"]["claims"] = json!([{ "name": "device" }]);
        }
        if let Some(port) = self.host_port {
            spec["containers"][0]["ports"] = json!([{ "containerPort": port, "hostPort": port }]);
        }
        if let Some(gang) = number.checked_div(self.gang) {
            spec["schedulingGroup"] = json!({ "podGroupName": format!("gang-{gang}") });
        }
        let mut metadata = json!({ "name": name, "namespace": self.namespace(number), "labels": self.labels });
        if self.finalizer {
            metadata["finalizers"] = json!(["race.test/stays"]);
        }
        Ok(serde_json::from_value(json!({ "metadata": metadata, "spec": spec }))?)
    }

    fn affinity(&self) -> Value {
        const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
        const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
        let term = |one: &Neighbours| {
            let mut term = json!({ "topologyKey": one.key, "labelSelector": { "matchLabels": one.labels } });
            if one.team {
                term["namespaceSelector"] = json!({ "matchLabels": { "team": "race" } });
            }
            term
        };
        let mut affinity = json!({});
        for (kind, required, preferred) in [
            ("podAffinity", &self.affinity, &self.preferred_affinity),
            ("podAntiAffinity", &self.anti_affinity, &self.preferred_anti_affinity),
        ] {
            if let Some(one) = required {
                affinity[kind][REQUIRED] = json!([term(one)]);
            }
            if let Some(one) = preferred {
                affinity[kind][PREFERRED] = json!([{ "weight": 1, "podAffinityTerm": term(one) }]);
            }
        }
        let mut node = json!({});
        if !self.node_zones.is_empty() {
            node["matchExpressions"] = json!([{ "key": "topology.kubernetes.io/zone", "operator": "In", "values": self.node_zones }]);
        }
        if let Some(name) = &self.node {
            node["matchFields"] = json!([{ "key": "metadata.name", "operator": "In", "values": [name] }]);
        }
        if node.as_object().is_some_and(|node| !node.is_empty()) {
            affinity["nodeAffinity"][REQUIRED] = json!({ "nodeSelectorTerms": [node] });
        }
        affinity
    }
}

pub fn node(case: &Case, number: usize) -> anyhow::Result<Node> {
    let name = format!("node-{number}");
    let mut labels = json!({ "kubernetes.io/hostname": name });
    if case.zones > 0 {
        labels["topology.kubernetes.io/zone"] = format!("zone-{}", number % case.zones).into();
    }
    let mut amounts = json!({ "cpu": case.cpu, "memory": case.memory, "pods": case.pods_max.to_string() });
    case.extended.iter().for_each(|(name, amount)| amounts[name] = amount.as_str().into());
    let taints = if number < case.tainted { json!([{ "key": "race.test/away", "effect": "NoSchedule" }]) } else { Value::Null };
    let status = json!({
        "capacity": amounts, "allocatable": amounts,
        "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": null, "lastTransitionTime": null }],
    });
    Ok(serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels }, "spec": { "taints": taints }, "status": status }))?)
}

/// What the node's volume driver says of itself.
pub fn csi_node(case: &Case, number: usize) -> anyhow::Result<CSINode> {
    let name = format!("node-{number}");
    let mut metadata = json!({ "name": name });
    if case.migrated {
        metadata["annotations"] = json!({ "storage.alpha.kubernetes.io/migrated-plugins": "kubernetes.io/aws-ebs" });
    }
    let driver = json!({ "name": VOLUMES, "nodeID": name, "allocatable": { "count": case.volumes_max } });
    Ok(serde_json::from_value(json!({ "metadata": metadata, "spec": { "drivers": [driver] } }))?)
}

/// What pods need before they can be created.
pub async fn surroundings(admin: &Client, case: &Case) -> anyhow::Result<()> {
    let more = (0..NAMESPACES).map(|number| format!("{NAMESPACE}-{number}"));
    for name in more.chain([NAMESPACE.to_owned()]) {
        let namespace = json!({ "metadata": { "name": name, "labels": { "team": "race" } } });
        admin.create::<Namespace>(&serde_json::from_value(namespace)?).await?;
        let account = json!({ "metadata": { "name": "default", "namespace": name } });
        match admin.create::<ServiceAccount>(&serde_json::from_value(account)?).await {
            // The controllers, where they run, make one too.
            Err(error) if !error.is_already_exists() => return Err(error.into()),
            _ => {}
        }
    }
    let selector = json!({ "cel": { "expression": format!("device.driver == '{DEVICES}'") } });
    let class = json!({ "metadata": { "name": "race" }, "spec": { "selectors": [selector] } });
    admin.create::<DeviceClass>(&serde_json::from_value(class)?).await?;
    let template = json!({ "metadata": { "name": "race", "namespace": NAMESPACE }, "spec": { "spec": wanted_device() } });
    admin.create::<ResourceClaimTemplate>(&serde_json::from_value(template)?).await?;
    let class = json!({ "metadata": { "name": "race-high" }, "value": 10 });
    admin.create::<PriorityClass>(&serde_json::from_value(class)?).await?;
    if let Some(selector) = &case.service {
        let spec = json!({ "ports": [{ "port": 80 }], "selector": selector });
        let service = json!({ "metadata": { "name": "race", "namespace": NAMESPACE }, "spec": spec });
        admin.create::<Service>(&serde_json::from_value(service)?).await?;
    }
    Ok(())
}

/// What the node's device driver publishes.
pub fn slice(number: usize, devices: usize) -> anyhow::Result<ResourceSlice> {
    let name = format!("node-{number}");
    let devices: Vec<Value> = (0..devices).map(|number| json!({ "name": format!("device-{number}") })).collect();
    let pool = json!({ "name": name, "generation": 1, "resourceSliceCount": 1 });
    let spec = json!({ "driver": DEVICES, "nodeName": name, "pool": pool, "devices": devices });
    Ok(serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec }))?)
}

fn wanted_device() -> Value {
    json!({ "devices": { "requests": [{ "name": "device", "exactly": { "deviceClassName": "race" } }] } })
}

/// A claim of one device.
pub async fn claim(admin: &Client, name: &str) -> anyhow::Result<()> {
    let claim = json!({ "metadata": { "name": name, "namespace": NAMESPACE }, "spec": wanted_device() });
    admin.create::<ResourceClaim>(&serde_json::from_value(claim)?).await?;
    Ok(())
}

/// A gang of so many.
pub async fn group(admin: &Client, number: usize, size: usize) -> anyhow::Result<()> {
    let spec = json!({ "schedulingPolicy": { "gang": { "minCount": size } } });
    let group = json!({ "metadata": { "name": format!("gang-{number}"), "namespace": NAMESPACE }, "spec": spec });
    admin.create::<PodGroup>(&serde_json::from_value(group)?).await?;
    Ok(())
}

/// A volume and the claim that it is bound to.
pub async fn volume(admin: &Client, kind: Volume, name: &str) -> anyhow::Result<()> {
    let mut spec = json!({
        "accessModes": ["ReadOnlyMany"], "capacity": { "storage": "1Gi" }, "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": { "namespace": NAMESPACE, "name": name },
    });
    match kind {
        Volume::Csi => spec["csi"] = json!({ "driver": VOLUMES, "volumeHandle": name }),
        Volume::InTree => spec["awsElasticBlockStore"] = json!({ "volumeID": name }),
    }
    let volume = json!({ "metadata": { "name": name }, "spec": spec });
    admin.create::<PersistentVolume>(&serde_json::from_value(volume)?).await?;
    let claim = json!({
        "metadata": { "name": name, "namespace": NAMESPACE, "annotations": { "pv.kubernetes.io/bind-completed": "yes" } },
        "spec": { "accessModes": ["ReadOnlyMany"], "resources": { "requests": { "storage": "1Gi" } }, "volumeName": name, "storageClassName": "" },
    });
    admin.create::<PersistentVolumeClaim>(&serde_json::from_value(claim)?).await?;
    Ok(())
}
