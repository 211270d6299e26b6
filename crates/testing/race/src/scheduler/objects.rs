//! The objects of the cases.

use std::collections::BTreeMap;
use std::time::Duration;

use client::{Client, DeleteParams};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde::Deserialize;
use serde_json::{Value, json};

const NAMESPACE: &str = "race";
/// Of the same team.
const NAMESPACES: usize = 100;
const DRIVER: &str = "driver.race.test";

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
    /// A claim of one device, for each; or an extended resource that devices give.
    pub device: bool,
    /// A claim bound to a CSI volume, for each.
    pub volume: bool,
    /// They get no node, and nobody waits for it.
    pub waits: bool,
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
    fn namespace(&self, number: usize) -> String {
        if self.namespaces > 0 { format!("{NAMESPACE}-{}", number % self.namespaces) } else { NAMESPACE.to_owned() }
    }

    pub fn pod(&self, name: &str, number: usize) -> anyhow::Result<Pod> {
        let requests = self.requests.clone().map_or_else(|| json!({ "cpu": "100m", "memory": "500Mi" }), |requests| json!(requests));
        let mut spec = json!({
            "containers": [{ "name": "pause", "image": "registry.k8s.io/pause:3.10", "resources": { "requests": requests } }],
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
        if self.volume {
            spec["volumes"] = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": name } }]);
        }
        if self.secret {
            spec["volumes"] = json!([{ "name": "secret", "secret": { "secretName": "secret" } }]);
        }
        if self.device {
            spec["resourceClaims"] = json!([{ "name": "device", "resourceClaimName": name }]);
            spec["containers"][0]["resources"]["claims"] = json!([{ "name": "device" }]);
        }
        let metadata = json!({ "name": name, "namespace": self.namespace(number), "labels": self.labels });
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

pub fn node(case: &super::Case, number: usize) -> anyhow::Result<Node> {
    let name = format!("node-{number}");
    let mut labels = json!({ "kubernetes.io/hostname": name });
    if case.zones > 0 {
        labels["topology.kubernetes.io/zone"] = format!("zone-{}", number % case.zones).into();
    }
    let amounts = json!({ "cpu": case.cpu, "memory": case.memory, "pods": case.pods_max.to_string() });
    let status = json!({
        "capacity": amounts, "allocatable": amounts,
        "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": null, "lastTransitionTime": null }],
    });
    Ok(serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels }, "status": status }))?)
}

/// What pods need before they can be created.
pub async fn surroundings(admin: &Client) -> anyhow::Result<()> {
    let more = (0..NAMESPACES).map(|number| format!("{NAMESPACE}-{number}"));
    for name in more.chain([NAMESPACE.to_owned()]) {
        let namespace = json!({ "metadata": { "name": name, "labels": { "team": "race" } } });
        admin.create::<Namespace>(&serde_json::from_value(namespace)?).await?;
        let account = json!({ "metadata": { "name": "default", "namespace": name } });
        admin.create::<ServiceAccount>(&serde_json::from_value(account)?).await?;
    }
    let selector = json!({ "cel": { "expression": format!("device.driver == '{DRIVER}'") } });
    admin
        .create::<DeviceClass>(&serde_json::from_value(json!({ "metadata": { "name": "race" }, "spec": { "selectors": [selector] } }))?)
        .await?;
    let class = json!({ "metadata": { "name": "race-high" }, "value": 10 });
    admin.create::<PriorityClass>(&serde_json::from_value(class)?).await?;
    Ok(())
}

/// What the node's driver publishes.
pub fn slice(number: usize, devices: usize) -> anyhow::Result<ResourceSlice> {
    let name = format!("node-{number}");
    let devices: Vec<Value> = (0..devices).map(|number| json!({ "name": format!("device-{number}") })).collect();
    let pool = json!({ "name": name, "generation": 1, "resourceSliceCount": 1 });
    let spec = json!({ "driver": DRIVER, "nodeName": name, "pool": pool, "devices": devices });
    Ok(serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec }))?)
}

/// A claim of one device.
pub async fn claim(admin: &Client, name: &str) -> anyhow::Result<()> {
    let request = json!({ "name": "device", "exactly": { "deviceClassName": "race" } });
    let claim = json!({ "metadata": { "name": name, "namespace": NAMESPACE }, "spec": { "devices": { "requests": [request] } } });
    admin.create::<ResourceClaim>(&serde_json::from_value(claim)?).await?;
    Ok(())
}

/// A volume and the claim that it is bound to.
pub async fn volume(admin: &Client, name: &str) -> anyhow::Result<()> {
    let spec = json!({
        "accessModes": ["ReadOnlyMany"], "capacity": { "storage": "1Gi" }, "persistentVolumeReclaimPolicy": "Retain",
        "csi": { "driver": "race.test", "volumeHandle": name }, "claimRef": { "namespace": NAMESPACE, "name": name },
    });
    let volume = json!({ "metadata": { "name": name }, "spec": spec });
    admin.create::<PersistentVolume>(&serde_json::from_value(volume)?).await?;
    let claim = json!({
        "metadata": { "name": name, "namespace": NAMESPACE, "annotations": { "pv.kubernetes.io/bind-completed": "yes" } },
        "spec": { "accessModes": ["ReadOnlyMany"], "resources": { "requests": { "storage": "1Gi" } }, "volumeName": name, "storageClassName": "" },
    });
    admin.create::<PersistentVolumeClaim>(&serde_json::from_value(claim)?).await?;
    Ok(())
}

/// Nodes, Services and pods that come and go the whole time.
pub async fn churn(admin: Client, drain: stdx::Drain) {
    let mut number = 0;
    while drain.run(tokio::time::sleep(Duration::from_millis(200))).await.is_some() {
        number += 1;
        if let Err(error) = turn(&admin, number).await {
            eprintln!("churn: {error}");
        }
    }
}

async fn turn(admin: &Client, number: usize) -> anyhow::Result<()> {
    let name = format!("churn-{number}");
    let status = json!({ "allocatable": { "cpu": "0", "memory": "0", "pods": "0" } });
    admin.create::<Node>(&serde_json::from_value(json!({ "metadata": { "name": name }, "status": status }))?).await?;
    let spec = json!({ "ports": [{ "port": 80 }], "selector": { "app": name } });
    let service = json!({ "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec });
    admin.create::<Service>(&serde_json::from_value(service)?).await?;
    let template = Template { priority: 10, requests: Some([("cpu".to_owned(), "9".to_owned())].into()), ..Template::default() };
    admin.create::<Pod>(&template.pod(&name, 0)?).await?;
    if let Some(before) = number.checked_sub(1).filter(|before| *before > 0) {
        let (before, params) = (format!("churn-{before}"), DeleteParams::default());
        admin.delete::<Node>(None, &before, &params).await?;
        admin.delete::<Service>(Some(NAMESPACE), &before, &params).await?;
        admin.delete::<Pod>(Some(NAMESPACE), &before, &params).await?;
    }
    Ok(())
}
