//! ResourceClaims of this node's pods, prepared by their drivers (KEP-4381).
//!
//! A driver registers in the folder of plugins. Before a pod starts, the drivers of its claims are asked to prepare the devices that the
//! scheduler chose; they answer with names of the Container Device Interface, which the containers get that ask for them. When no
//! pod here uses a claim any more, its drivers are told. What was prepared is on the disk. Source: upstream's `pkg/kubelet/cm/dra`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use client::Client;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use plugins::device::CdiDevice;
use plugins::dra::{self, Driver};
use plugins::registry::{PluginInfo, Taker};
use plugins::resources::{ClaimResource, DynamicResource};
use serde::{Deserialize, Serialize};

use crate::podspec;
use crate::worker::lock;

/// A claim that is prepared for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Prepared {
    /// What the pod calls it.
    pod_claim: String,
    namespace: String,
    name: String,
    uid: String,
    drivers: Vec<String>,
    devices: Vec<PreparedDevice>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PreparedDevice {
    driver: String,
    pool: String,
    device: String,
    share: Option<String>,
    /// None means all.
    requests: Vec<String>,
    cdi: Vec<String>,
}

impl PreparedDevice {
    /// Does it serve this request of the claim? A request of several choices is named `request/choice` by its driver.
    fn serves(&self, request: Option<&str>) -> bool {
        let main = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
        request.is_none_or(|wanted| self.requests.is_empty() || self.requests.iter().any(|known| known == wanted || main(known) == wanted))
    }
}

/// All drivers and claims of the node.
#[derive(Default)]
pub struct Claims {
    file: PathBuf,
    drivers: Mutex<BTreeMap<String, (String, Arc<Driver>)>>,
    /// By the pod's uid.
    prepared: Mutex<BTreeMap<String, Vec<Prepared>>>,
}

impl Taker for Claims {
    fn register<'a>(&'a self, plugin: &'a PluginInfo) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let driver = Driver::at(&plugin.endpoint, &plugin.supported_versions)?;
            lock(&self.drivers).insert(plugin.name.clone(), (plugin.endpoint.clone(), Arc::new(driver)));
            tracing::info!(driver = plugin.name, "a DRA driver registered");
            Ok(())
        })
    }

    fn gone(&self, plugin: &PluginInfo) {
        let mut drivers = lock(&self.drivers);
        // Its successor may have registered already.
        if drivers.get(&plugin.name).is_some_and(|(endpoint, _)| *endpoint == plugin.endpoint) {
            drivers.remove(&plugin.name);
        }
    }
}

impl Claims {
    /// What is known from before.
    pub fn open(data: &Path) -> Self {
        let file = data.join("dra").join("claims.json");
        let prepared = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { file, drivers: Mutex::default(), prepared: Mutex::new(prepared) }
    }

    fn driver(&self, name: &str) -> Result<Arc<Driver>, String> {
        let known = lock(&self.drivers).get(name).map(|(_, driver)| driver.clone());
        known.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    /// Prepares every claim of `pod`.
    pub async fn prepare(&self, client: &Client, pod: &Pod) -> Result<(), String> {
        let uid = podspec::uid(pod);
        for (pod_claim, name) in names(pod)? {
            if lock(&self.prepared).get(uid).is_some_and(|all| all.iter().any(|claim| claim.pod_claim == pod_claim)) {
                continue;
            }
            let namespace = podspec::namespace(pod);
            let found = client.get::<ResourceClaim>(Some(namespace), &name).await;
            let claim =
                found.map_err(|error| format!("failed to fetch ResourceClaim {name} referenced by pod {}: {error}", podspec::name(pod)))?;
            let prepared = self.prepare_one(pod, pod_claim, &claim).await?;
            // Before the drivers' answers are used: what is prepared must be undone one day.
            lock(&self.prepared).entry(uid.into()).or_default().push(prepared);
            self.save().map_err(|error| format!("write {}: {error}", self.file.display()))?;
        }
        Ok(())
    }

    async fn prepare_one(&self, pod: &Pod, pod_claim: String, claim: &ResourceClaim) -> Result<Prepared, String> {
        let (name, uid) = (claim.metadata.name.clone().unwrap_or_default(), claim.metadata.uid.clone().unwrap_or_default());
        let namespace = claim.metadata.namespace.clone().unwrap_or_default();
        let status = claim.status.clone().unwrap_or_default();
        if !status.reserved_for.iter().flatten().any(|user| user.uid == podspec::uid(pod)) {
            let shown = podspec::format_pod(pod);
            return Err(format!("pod {shown} is not allowed to use resource claim {name} ({uid})"));
        }
        let allocation = status.allocation.ok_or_else(|| format!("claim {name} is not allocated"))?;
        let results = allocation.devices.and_then(|devices| devices.results).unwrap_or_default();
        let mut drivers: Vec<String> = results.iter().map(|result| result.driver.clone()).collect();
        drivers.sort();
        drivers.dedup();
        let mut devices = Vec::new();
        for driver in &drivers {
            let asked = dra::Claim { namespace: namespace.clone(), uid: uid.clone(), name: name.clone() };
            let answer = self.driver(driver)?.prepare(vec![asked]).await;
            let mut answer = answer.map_err(|error| format!("NodePrepareResources failed for driver {driver}: {}", error.message))?;
            let of_claim = answer.remove(&uid).ok_or_else(|| format!("NodePrepareResources skipped claim {name} of driver {driver}"))?;
            devices.extend(of_claim.devices.into_iter().map(|device| PreparedDevice {
                driver: driver.clone(),
                pool: device.pool_name,
                device: device.device_name,
                share: device.share_id,
                requests: device.request_names,
                cdi: device.cdi_device_ids,
            }));
        }
        Ok(Prepared { pod_claim, namespace, name, uid, drivers, devices })
    }

    /// The names of the devices that `container` gets.
    pub fn devices(&self, uid: &str, container: &Container) -> Result<Vec<String>, String> {
        let mut names: Vec<String> = Vec::new();
        for (claim, request) in asked(container) {
            let prepared = lock(&self.prepared);
            let all = prepared.get(uid).map(Vec::as_slice).unwrap_or_default();
            let Some(found) = all.iter().find(|known| known.pod_claim == claim) else {
                return Err(format!("claim {claim} of container {} is not prepared", container.name));
            };
            let serving = found.devices.iter().filter(|device| device.serves(request.as_deref()));
            for name in serving.flat_map(|device| &device.cdi) {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
        }
        Ok(names)
    }

    /// The pod is gone: claims that no other pod here uses are given back.
    pub async fn unprepare(&self, uid: &str) -> Result<(), String> {
        let mine = lock(&self.prepared).get(uid).cloned().unwrap_or_default();
        for claim in &mine {
            let shared = lock(&self.prepared).iter().any(|(pod, all)| pod != uid && all.iter().any(|other| other.uid == claim.uid));
            if shared {
                continue;
            }
            for driver in &claim.drivers {
                let asked = dra::Claim { namespace: claim.namespace.clone(), uid: claim.uid.clone(), name: claim.name.clone() };
                let told = self.driver(driver)?.unprepare(vec![asked]).await;
                told.map_err(|error| format!("NodeUnprepareResources failed for driver {driver}: {}", error.message))?;
            }
        }
        if lock(&self.prepared).remove(uid).is_some() {
            self.save().map_err(|error| format!("write {}: {error}", self.file.display()))?;
        }
        Ok(())
    }

    /// The claims of a container, for those who may ask.
    pub fn of(&self, uid: &str, container: &Container) -> Vec<DynamicResource> {
        let prepared = lock(&self.prepared);
        let all = prepared.get(uid).map(Vec::as_slice).unwrap_or_default();
        let of = |(claim, request): (String, Option<String>)| {
            let known = all.iter().find(|known| known.pod_claim == claim)?;
            let resource = |device: &PreparedDevice| ClaimResource {
                cdi_devices: device.cdi.iter().map(|name| CdiDevice { name: name.clone() }).collect(),
                driver_name: device.driver.clone(),
                pool_name: device.pool.clone(),
                device_name: device.device.clone(),
                share_id: device.share.clone(),
            };
            let claim_resources = known.devices.iter().filter(|device| device.serves(request.as_deref())).map(resource).collect();
            Some(DynamicResource { claim_name: known.name.clone(), claim_namespace: known.namespace.clone(), claim_resources })
        };
        asked(container).filter_map(of).collect()
    }

    fn save(&self) -> std::io::Result<()> {
        let text = serde_json::to_vec(&*lock(&self.prepared))?;
        if let Some(folder) = self.file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let new = self.file.with_extension("new");
        std::fs::write(&new, text)?;
        std::fs::rename(new, &self.file)
    }
}

/// What a container asks for: the pod's name of a claim, and one of its requests.
fn asked(container: &Container) -> impl Iterator<Item = (String, Option<String>)> {
    let claims = container.resources.iter().flat_map(|resources| resources.claims.iter().flatten());
    claims.map(|claim| (claim.name.clone(), claim.request.clone().filter(|request| !request.is_empty())))
}

/// The pod's claims: what it calls them, and what they are called.
fn names(pod: &Pod) -> Result<Vec<(String, String)>, String> {
    let made = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_ref());
    let mut names = Vec::new();
    for claim in podspec::spec(pod).resource_claims.iter().flatten() {
        if let Some(name) = &claim.resource_claim_name {
            names.push((claim.name.clone(), name.clone()));
            continue;
        }
        let status = made.into_iter().flatten().find(|status| status.name == claim.name);
        match status.map(|status| status.resource_claim_name.clone()) {
            Some(Some(name)) => names.push((claim.name.clone(), name)),
            // It turned out that none is needed.
            Some(None) => {}
            None => return Err(format!("pod {:?}: pod claim {:?}: ResourceClaim not created yet", podspec::name(pod), claim.name)),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_served_by_its_devices_and_by_those_of_its_choices() {
        let device = |requests: &[&str]| PreparedDevice {
            driver: String::new(),
            pool: String::new(),
            device: String::new(),
            share: None,
            requests: requests.iter().map(|request| (*request).to_owned()).collect(),
            cdi: Vec::new(),
        };
        for (requests, wanted, serves) in [
            (&["a"][..], None, true),
            (&[], Some("a"), true),
            (&["a"], Some("a"), true),
            (&["a/first"], Some("a"), true),
            (&["ab"], Some("a"), false),
        ] {
            assert_eq!(device(requests).serves(wanted), serves, "{requests:?} {wanted:?}");
        }
    }
}
