//! Devices of device plugins: who has which, and what their containers need for them (KEP-3573).
//!
//! A plugin registers and then tells its devices at every change; their number is the node's capacity of the resource, the healthy ones
//! are allocatable. A pod that comes gets the devices of all its containers at once, or is refused. What was given is on the disk
//! before the pod starts: a kubelet that comes back knows it. Source: upstream's `pkg/kubelet/cm/devicemanager`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Container, Pod};
use plugins::device::{self, Allocated, ContainerPreferredAllocationRequest, Options, Plugin, RegisterRequest};
use plugins::resources::ContainerDevices;
use prost::Message;
use serde::{Deserialize, Serialize};
use stdx::Drain;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::amounts;
use crate::podspec::{self, Role};
use crate::worker::lock;

const FOLDER: &str = "device-plugins";
const CHECKPOINT: &str = "kubelet_internal_checkpoint";
/// So long a resource whose plugin is gone stays in the capacity, without anything to allocate.
const GONE_AFTER: Duration = Duration::from_secs(300);

/// All device plugins of the node.
#[derive(Debug)]
pub struct Devices {
    folder: PathBuf,
    checkpoint: PathBuf,
    state: Mutex<State>,
    /// One pod after the other.
    giving: tokio::sync::Mutex<()>,
    /// The node's capacity is another.
    pub changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    /// By pod and container.
    held: BTreeMap<String, BTreeMap<String, BTreeMap<String, Held>>>,
    generation: u64,
}

#[derive(Debug, Default)]
struct Resource {
    endpoint: String,
    options: Options,
    /// By id: healthy, and its NUMA nodes.
    devices: BTreeMap<String, (bool, Vec<i64>)>,
    /// Which registration this is of.
    generation: u64,
    gone_since: Option<Instant>,
}

/// The devices of one resource that a container has.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Held {
    ids: BTreeSet<String>,
    /// The plugin's answer, as it came over the wire, in base64.
    answer: String,
}

#[derive(Default, Serialize, Deserialize)]
struct Checkpoint {
    pods: BTreeMap<String, BTreeMap<String, BTreeMap<String, Held>>>,
    /// Devices that were registered, by resource.
    registered: BTreeMap<String, BTreeSet<String>>,
}

impl Devices {
    /// What is known from before. `plugins` is the folder of all plugins, `data` where what was given is kept.
    pub fn open(plugins: &Path, data: &Path) -> Self {
        let checkpoint = data.join(FOLDER).join(CHECKPOINT);
        let known: Checkpoint = std::fs::read(&checkpoint).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let resources = known.registered.into_iter().map(|(name, ids)| {
            let devices = ids.into_iter().map(|id| (id, (false, Vec::new()))).collect();
            (name, Resource { devices, gone_since: Some(Instant::now()), ..Resource::default() })
        });
        let state = State { resources: resources.collect(), held: known.pods, generation: 0 };
        Self { folder: plugins.join(FOLDER), checkpoint, state: Mutex::new(state), giving: Default::default(), changed: Notify::new() }
    }

    /// Lets plugins register until `drain`.
    pub fn serve(self: &Arc<Self>, drain: Drain) -> Result<(), remote::Error> {
        let (devices, ending) = (self.clone(), drain.clone());
        device::serve(&self.folder, Arc::new(move |request| devices.register(request, &ending)), drain)
    }

    fn register(self: &Arc<Self>, request: RegisterRequest, drain: &Drain) -> cri::Result<()> {
        if request.version != device::VERSION {
            return Err(cri::Error::invalid(format!(
                "requested API version {:?} is not supported by kubelet. Supported version is [\"v1beta1\"]",
                request.version
            )));
        }
        let named = request.resource_name.split_once('/').is_some_and(|(domain, name)| !name.is_empty() && domain.contains('.'));
        if !named || request.resource_name.starts_with("requests.") || request.resource_name.contains("kubernetes.io/") {
            return Err(cri::Error::invalid(format!("the ResourceName {:?} is invalid", request.resource_name)));
        }
        if request.endpoint.is_empty() || request.endpoint.contains('/') {
            return Err(cri::Error::invalid(format!("the endpoint {:?} is no name of a socket", request.endpoint)));
        }
        let generation = {
            let mut state = lock(&self.state);
            state.generation += 1;
            let generation = state.generation;
            let resource = state.resources.entry(request.resource_name.clone()).or_default();
            resource.endpoint = request.endpoint.clone();
            resource.options = request.options.unwrap_or_default();
            resource.generation = generation;
            generation
        };
        tracing::info!(resource = request.resource_name, "a device plugin registered");
        let (devices, drain) = (self.clone(), drain.clone());
        tokio::spawn(async move { drain.run(devices.follow(request.resource_name, request.endpoint, generation)).await });
        Ok(())
    }

    async fn follow(&self, name: String, endpoint: String, generation: u64) {
        let plugin = self.plugin(&endpoint);
        if let Ok(options) = plugin.options().await {
            self.with(&name, generation, |resource| resource.options = options);
        }
        match plugin.devices().await {
            Ok(mut told) => {
                while let Some(Ok(list)) = told.next().await {
                    let of = |device: device::Device| {
                        let nodes = device.topology.iter().flat_map(|topology| topology.nodes.iter().map(|node| node.id)).collect();
                        (device.id, (device.health == device::HEALTHY, nodes))
                    };
                    let devices = list.devices.into_iter().map(of).collect();
                    let taken = self.with(&name, generation, |resource| {
                        resource.devices = devices;
                        resource.gone_since = None;
                    });
                    if !taken {
                        return;
                    }
                    let _ = self.save();
                    self.changed.notify_one();
                }
            }
            Err(error) => tracing::warn!(resource = name, %error, "ask a device plugin for its devices"),
        }
        let ended = self.with(&name, generation, |resource| {
            resource.gone_since = Some(Instant::now());
            resource.devices.values_mut().for_each(|device| device.0 = false);
        });
        if ended {
            tracing::info!(resource = name, "a device plugin is gone");
            self.changed.notify_one();
        }
    }

    /// Changes a resource, unless another plugin registered for it since.
    fn with(&self, name: &str, generation: u64, change: impl FnOnce(&mut Resource)) -> bool {
        let mut state = lock(&self.state);
        let Some(resource) = state.resources.get_mut(name).filter(|resource| resource.generation == generation) else { return false };
        change(resource);
        true
    }

    fn plugin(&self, endpoint: &str) -> Plugin {
        Plugin::at(self.folder.join(endpoint))
    }

    /// Capacity and allocatable of every resource that a plugin ever told of.
    pub fn amounts(&self) -> BTreeMap<String, (usize, usize)> {
        let state = lock(&self.state);
        let of = |resource: &Resource| match resource.gone_since {
            Some(since) if since.elapsed() > GONE_AFTER => (0, 0),
            _ => (resource.devices.len(), resource.devices.values().filter(|(healthy, _)| *healthy).count()),
        };
        state.resources.iter().map(|(name, resource)| (name.clone(), of(resource))).collect()
    }

    /// Gives every container of `pod` the devices that it asks for. `active` are the pods that may hold any. `Err` says why not.
    pub async fn give(&self, pod: &Pod, active: &(dyn Fn() -> BTreeSet<String> + Sync)) -> Result<(), String> {
        let asked = {
            let state = lock(&self.state);
            if state.resources.is_empty() {
                return Ok(());
            }
            let known = |name: &String| state.resources.contains_key(name);
            amounts::names(pod).into_iter().filter(known).collect::<Vec<String>>()
        };
        if asked.is_empty() {
            return Ok(());
        }
        let _one = self.giving.lock().await;
        let uid = podspec::uid(pod);
        let active = active();
        lock(&self.state).held.retain(|holder, _| holder == uid || active.contains(holder));
        let mut reusable: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (role, container) in podspec::containers(pod) {
            for name in &asked {
                let free = reusable.entry(name.clone()).or_default();
                let given = self.give_one(uid, &container, name, free).await;
                let given = given.inspect_err(|_| self.release(uid))?;
                match role {
                    // What an init container had, those after it may have again.
                    Role::Init => free.extend(given),
                    _ => free.retain(|id| !given.contains(id)),
                }
            }
        }
        self.save().map_err(|error| format!("write {}: {error}", self.checkpoint.display()))
    }

    async fn give_one(
        &self,
        uid: &str,
        container: &Container,
        name: &str,
        reusable: &BTreeSet<String>,
    ) -> Result<BTreeSet<String>, String> {
        let count = amounts::limited(container.resources.as_ref(), name).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        if count == 0 {
            return Ok(BTreeSet::new());
        }
        let (endpoint, options, available, must) = {
            let state = lock(&self.state);
            let resource = state.resources.get(name).ok_or_else(|| format!("previously registered resource {name} is gone"))?;
            if let Some(held) = state.held.get(uid).and_then(|pod| pod.get(&container.name)?.get(name)) {
                return Ok(held.ids.clone());
            }
            let others = |holder: &String| holder != uid;
            let mut used: BTreeSet<&String> = BTreeSet::new();
            for (holder, pod) in &state.held {
                for held in pod.values().filter_map(|container| container.get(name)) {
                    used.extend(held.ids.iter().filter(|id| others(holder) || !reusable.contains(*id)));
                }
            }
            let healthy = resource.devices.iter().filter(|(id, (healthy, _))| *healthy && !used.contains(id));
            let available: BTreeSet<String> = healthy.map(|(id, _)| id.clone()).collect();
            let must: BTreeSet<String> = reusable.intersection(&available).take(count).cloned().collect();
            if resource.devices.values().all(|(healthy, _)| !healthy) {
                return Err(format!("no healthy devices present; cannot allocate unhealthy devices {name}"));
            }
            (resource.endpoint.clone(), resource.options, available, must)
        };
        if available.len() < count {
            return Err(format!("requested number of devices unavailable for {name}. Requested: {count}, Available: {}", available.len()));
        }
        let plugin = self.plugin(&endpoint);
        let mut chosen = must.clone();
        if chosen.len() < count && options.get_preferred_allocation_available {
            let request = ContainerPreferredAllocationRequest {
                available: available.iter().cloned().collect(),
                must_include: must.into_iter().collect(),
                size: i32::try_from(count).unwrap_or(i32::MAX),
            };
            let preferred = plugin.preferred(request).await.map_err(|error| rpc(&error))?;
            let room = count.saturating_sub(chosen.len());
            chosen.extend(preferred.into_iter().filter(|id| available.contains(id)).take(room.max(count)));
        }
        let rest: Vec<String> = available.difference(&chosen).cloned().collect();
        chosen.extend(rest.into_iter().take(count.saturating_sub(chosen.len())));
        while chosen.len() > count {
            chosen.pop_last();
        }
        let answer = plugin.allocate(chosen.iter().cloned().collect()).await.map_err(|error| rpc(&error))?;
        let answer = base64::engine::general_purpose::STANDARD.encode(answer.encode_to_vec());
        let held = Held { ids: chosen.clone(), answer };
        let mut state = lock(&self.state);
        state.held.entry(uid.into()).or_default().entry(container.name.clone()).or_default().insert(name.into(), held);
        Ok(chosen)
    }

    /// What `container` needs for the devices that it has; asks the plugins that want to know before each start.
    pub async fn prepare(&self, uid: &str, container: &str) -> Result<Allocated, String> {
        let held = lock(&self.state).held.get(uid).and_then(|pod| pod.get(container)).cloned().unwrap_or_default();
        let mut all = Allocated::default();
        for (name, held) in held {
            let bytes = base64::engine::general_purpose::STANDARD.decode(&held.answer).unwrap_or_default();
            let one = Allocated::decode(bytes.as_slice()).unwrap_or_default();
            all.envs.extend(one.envs);
            all.mounts.extend(one.mounts);
            all.devices.extend(one.devices);
            all.annotations.extend(one.annotations);
            all.cdi_devices.extend(one.cdi_devices);
            let plugin = {
                let state = lock(&self.state);
                let resource = state.resources.get(&name).filter(|resource| resource.options.pre_start_required);
                resource.map(|resource| (resource.endpoint.clone(), resource.gone_since.is_some()))
            };
            if let Some((endpoint, gone)) = plugin {
                if gone {
                    return Err(format!("endpoint not found in cache for a registered resource: {name}"));
                }
                self.plugin(&endpoint).pre_start(held.ids.into_iter().collect()).await.map_err(|error| rpc(&error))?;
            }
        }
        Ok(all)
    }

    pub fn release(&self, uid: &str) {
        if lock(&self.state).held.remove(uid).is_some() {
            let _ = self.save();
        }
    }

    /// The devices of a container, for those who may ask.
    pub fn of(&self, uid: &str, container: &str) -> Vec<ContainerDevices> {
        let state = lock(&self.state);
        let held = state.held.get(uid).and_then(|pod| pod.get(container)).into_iter().flatten();
        held.flat_map(|(name, held)| held.ids.iter().map(|id| listed(&state, name, id))).collect()
    }

    /// Every device of every plugin that is there.
    pub fn all(&self) -> Vec<ContainerDevices> {
        let state = lock(&self.state);
        let ids = state.resources.iter().flat_map(|(name, resource)| resource.devices.keys().map(move |id| (name, id)));
        ids.map(|(name, id)| listed(&state, name, id)).collect()
    }

    /// The NUMA nodes on which `count` devices of `name` are free: for the topology manager.
    pub fn free_on(&self, name: &str) -> BTreeMap<String, Vec<i64>> {
        let state = lock(&self.state);
        let used: BTreeSet<&String> = state
            .held
            .values()
            .flat_map(|pod| pod.values())
            .filter_map(|container| container.get(name))
            .flat_map(|held| &held.ids)
            .collect();
        let resource = state.resources.get(name).into_iter().flat_map(|resource| &resource.devices);
        resource.filter(|(id, (healthy, _))| *healthy && !used.contains(id)).map(|(id, (_, nodes))| (id.clone(), nodes.clone())).collect()
    }

    fn save(&self) -> std::io::Result<()> {
        let text = {
            let state = lock(&self.state);
            let registered = state.resources.iter().map(|(name, resource)| (name.clone(), resource.devices.keys().cloned().collect()));
            serde_json::to_vec(&Checkpoint { pods: state.held.clone(), registered: registered.collect() })?
        };
        if let Some(folder) = self.checkpoint.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let new = self.checkpoint.with_extension("new");
        std::fs::write(&new, text)?;
        std::fs::rename(new, &self.checkpoint)
    }
}

/// As upstream shows what a plugin said.
fn rpc(error: &cri::Error) -> String {
    format!("rpc error: code = {:?} desc = {}", error.code, error.message)
}

fn listed(state: &State, name: &str, id: &str) -> ContainerDevices {
    let nodes =
        state.resources.get(name).and_then(|resource| resource.devices.get(id)).map(|(_, nodes)| nodes.as_slice()).unwrap_or_default();
    let topology =
        (!nodes.is_empty()).then(|| device::TopologyInfo { nodes: nodes.iter().map(|id| device::NumaNode { id: *id }).collect() });
    ContainerDevices { resource_name: name.into(), device_ids: vec![id.into()], topology }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::podspec::tests::pod;

    /// A plugin of three devices, one of them ill.
    struct Double;

    impl remote::serve::Services for Double {
        fn call<'a>(
            &'a self,
            service: &'a str,
            method: &'a str,
            body: hyper::body::Incoming,
        ) -> futures_util::future::BoxFuture<'a, remote::serve::Frames> {
            use remote::serve::{many, one, unknown};
            Box::pin(async move {
                match method {
                    "GetDevicePluginOptions" => one(Ok(Options { pre_start_required: false, get_preferred_allocation_available: true })),
                    "ListAndWatch" => {
                        let device = |id: &str, health: &str| device::Device { id: id.into(), health: health.into(), topology: None };
                        let list = vec![device("a", "Healthy"), device("b", "Healthy"), device("c", "Healthy"), device("d", "Unhealthy")];
                        let first = futures_util::stream::iter([Ok(device::ListAndWatchResponse { devices: list })]);
                        many(Box::pin(first.chain(futures_util::stream::pending())))
                    }
                    "GetPreferredAllocation" => {
                        let ids = vec!["c".to_owned()];
                        let container_responses = vec![device::ContainerPreferredAllocationResponse { ids }];
                        one(Ok(device::PreferredAllocationResponse { container_responses }))
                    }
                    "Allocate" => {
                        let request: device::AllocateRequest = remote::grpc::question(body).await.unwrap();
                        let ids = request.container_requests[0].devices_ids.join("+");
                        let allocated = Allocated { envs: [("GIVEN".to_owned(), ids)].into(), ..Allocated::default() };
                        one(Ok(device::AllocateResponse { container_responses: vec![allocated] }))
                    }
                    _ => unknown(service, method),
                }
            })
        }
    }

    fn asking(uid: &str, count: u32) -> Pod {
        let wants = |count: u32| json!({"limits": {"acme.com/gpu": count.to_string()}});
        let mut pod = pod(
            json!({"initContainers": [{"name": "init", "resources": wants(1)}], "containers": [{"name": "main", "resources": wants(count)}]}),
        );
        pod.metadata.uid = Some(uid.into());
        pod
    }

    #[tokio::test]
    async fn devices_are_given_once_kept_over_a_restart_and_refused_when_there_are_none() {
        let root = tempfile::tempdir().unwrap();
        let drain = stdx::drain::drain();
        let devices = Arc::new(Devices::open(root.path(), root.path()));
        devices.serve(drain.clone()).unwrap();
        let listener = remote::serve::listen(&root.path().join(FOLDER).join("acme.sock")).unwrap();
        tokio::spawn(remote::serve::serve(Arc::new(Double), listener, drain.clone()));
        let kubelet = remote::grpc::Channel::new(root.path().join(FOLDER).join("kubelet.sock"));
        let request = RegisterRequest {
            version: "v1beta1".into(),
            endpoint: "acme.sock".into(),
            resource_name: "acme.com/gpu".into(),
            options: None,
        };
        let wrong = RegisterRequest { version: "v1".into(), ..request.clone() };
        assert!(
            kubelet.unary::<device::Empty>("v1beta1.Registration/Register", &wrong).await.unwrap_err().message.contains("not supported")
        );
        kubelet.unary::<device::Empty>("v1beta1.Registration/Register", &request).await.unwrap();
        devices.changed.notified().await;
        assert_eq!(devices.amounts(), BTreeMap::from([("acme.com/gpu".to_owned(), (4, 3))]));
        let active = || BTreeSet::from(["one".to_owned(), "two".to_owned(), "three".to_owned()]);
        // The init container's device, which the plugin prefers, is the main one's again.
        devices.give(&asking("one", 2), &active).await.unwrap();
        let given = devices.prepare("one", "main").await.unwrap();
        assert_eq!((given.envs["GIVEN"].as_str(), devices.prepare("one", "init").await.unwrap().envs["GIVEN"].as_str()), ("a+c", "c"));
        let refused = devices.give(&asking("two", 2), &active).await.unwrap_err();
        assert_eq!(refused, "requested number of devices unavailable for acme.com/gpu. Requested: 2, Available: 1");
        devices.give(&asking("three", 1), &active).await.unwrap();
        assert_eq!(devices.of("three", "main")[0].device_ids, ["b"]);
        let again = Devices::open(root.path(), root.path());
        assert_eq!(again.prepare("one", "main").await.unwrap(), given);
        assert_eq!(again.amounts(), BTreeMap::from([("acme.com/gpu".to_owned(), (4, 0))]));
        assert!(again.give(&asking("two", 1), &active).await.unwrap_err().starts_with("no healthy devices present"));
        // A pod that is no more holds nothing.
        devices.give(&asking("two", 2), &|| BTreeSet::from(["three".to_owned()])).await.unwrap();
        drain.stop();
    }
}
