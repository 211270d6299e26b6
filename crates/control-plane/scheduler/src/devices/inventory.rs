//! What drivers publish: devices, in pools, by the nodes that reach them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1::{Device as Published, DeviceTaint, DeviceTaintRule, ResourceSlice};
use meta::Quantity;

use crate::filters::matches_term;
use crate::snapshot::Details;

/// A device among all of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    pub driver: String,
    pub pool: String,
    pub device: String,
}

/// Devices by their position in [`Inventory::devices`].
#[derive(Default)]
pub(crate) struct Inventory {
    /// Another number for each inventory.
    pub generation: u64,
    pub devices: Vec<Device>,
    pub pools: Vec<Pool>,
    index: HashMap<DeviceId, usize>,
    /// Devices of one node each.
    local: HashMap<String, Vec<usize>>,
    /// Devices that several nodes may reach.
    shared: Vec<usize>,
}

pub(crate) struct Device {
    pub id: DeviceId,
    pub pool: usize,
    pub slice: Arc<ResourceSlice>,
    /// Its position in the slice.
    at: usize,
    /// The driver's own and those of rules.
    pub taints: Vec<DeviceTaint>,
}

/// The newest generation of a driver's pool.
pub(crate) struct Pool {
    /// `driver/pool`.
    pub name: String,
    /// All its slices are here.
    pub complete: bool,
    /// No two devices have the same name.
    pub valid: bool,
    /// What partitions of larger devices share, by set and counter.
    pub counters: HashMap<(String, String), Quantity>,
    pub devices: Vec<usize>,
}

/// Which nodes reach a device.
pub(crate) enum Reach<'a> {
    Node(&'a str),
    All,
    Selected(&'a NodeSelector),
    /// Nothing that is known was said.
    Nowhere,
}

impl Device {
    pub fn published(&self) -> &Published {
        &self.slice.spec.devices.as_deref().unwrap_or_default()[self.at]
    }

    pub fn reach(&self) -> Reach<'_> {
        let (slice, device) = (&self.slice.spec, self.published());
        match slice.per_device_node_selection.unwrap_or(false) {
            true => reach(device.node_name.as_deref(), device.all_nodes, device.node_selector.as_ref()),
            false => reach(slice.node_name.as_deref(), slice.all_nodes, slice.node_selector.as_ref()),
        }
    }

    fn is_reached_from(&self, node: &Details) -> bool {
        match self.reach() {
            Reach::Node(name) => name == node.name,
            Reach::All => true,
            Reach::Selected(selector) => selects(selector, node),
            Reach::Nowhere => false,
        }
    }

    /// Such devices come last: their pods wait longer for them.
    fn needs_preparation(&self) -> bool {
        self.published().binding_conditions.as_ref().is_some_and(|conditions| !conditions.is_empty())
    }
}

fn reach<'a>(name: Option<&'a str>, all: Option<bool>, selector: Option<&'a NodeSelector>) -> Reach<'a> {
    match (name.filter(|name| !name.is_empty()), all, selector) {
        (Some(name), ..) => Reach::Node(name),
        (_, Some(true), _) => Reach::All,
        (_, _, Some(selector)) => Reach::Selected(selector),
        _ => Reach::Nowhere,
    }
}

pub(crate) fn selects(selector: &NodeSelector, node: &Details) -> bool {
    selector.node_selector_terms.iter().any(|term| matches_term(term, &node.facts.labels, &node.name))
}

impl Inventory {
    pub fn new(generation: u64, mut slices: Vec<Arc<ResourceSlice>>, rules: &[Arc<DeviceTaintRule>]) -> Self {
        slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let mut pools: BTreeMap<(String, String), Vec<Arc<ResourceSlice>>> = BTreeMap::new();
        for slice in slices {
            pools.entry((slice.spec.driver.clone(), slice.spec.pool.name.clone())).or_default().push(slice);
        }
        let mut inventory = Self { generation, ..Self::default() };
        for ((driver, pool), slices) in pools {
            inventory.add_pool(&driver, &pool, slices, rules);
        }
        inventory.order();
        inventory
    }

    fn add_pool(&mut self, driver: &str, name: &str, mut slices: Vec<Arc<ResourceSlice>>, rules: &[Arc<DeviceTaintRule>]) {
        let newest = slices.iter().map(|slice| slice.spec.pool.generation).max().unwrap_or(0);
        slices.retain(|slice| slice.spec.pool.generation == newest);
        let complete = slices.first().is_some_and(|slice| slice.spec.pool.resource_slice_count == slices.len() as i64);
        let mut pool = Pool { name: format!("{driver}/{name}"), complete, valid: true, counters: HashMap::new(), devices: Vec::new() };
        let mut names = HashSet::new();
        for slice in slices {
            pool.counters.extend(counters(&slice));
            for (at, device) in slice.spec.devices.iter().flatten().enumerate() {
                pool.valid &= names.insert(device.name.clone());
                let id = DeviceId { driver: driver.to_owned(), pool: name.to_owned(), device: device.name.clone() };
                let mut taints = device.taints.clone().unwrap_or_default();
                taints.extend(rules.iter().filter(|rule| concerns(rule, &id)).map(|rule| rule.spec.taint.clone()));
                pool.devices.push(self.devices.len());
                self.index.insert(id.clone(), self.devices.len());
                self.devices.push(Device { id, pool: self.pools.len(), slice: slice.clone(), at, taints });
            }
        }
        self.pools.push(pool);
    }

    /// Sorts the devices by who reaches them, each part in the order of drivers, pools, slices.
    fn order(&mut self) {
        let last = |devices: &[Device], all: &mut Vec<usize>| all.sort_by_key(|at| devices[*at].needs_preparation());
        for (at, device) in self.devices.iter().enumerate() {
            match device.reach() {
                Reach::Node(name) => match self.local.get_mut(name) {
                    Some(devices) => devices.push(at),
                    None => drop(self.local.insert(name.to_owned(), vec![at])),
                },
                Reach::All | Reach::Selected(_) => self.shared.push(at),
                Reach::Nowhere => {}
            }
        }
        self.local.values_mut().for_each(|all| last(&self.devices, all));
        last(&self.devices, &mut self.shared);
    }

    pub fn find(&self, id: &DeviceId) -> Option<usize> {
        self.index.get(id).copied()
    }

    /// The devices that the node reaches, in the order in which they are tried.
    pub fn reached_from(&self, node: &Details) -> impl Iterator<Item = usize> {
        let local = self.local.get(&node.name).into_iter().flatten().copied();
        local.chain(self.shared.iter().copied().filter(|at| self.devices[*at].is_reached_from(node)))
    }
}

fn counters(slice: &ResourceSlice) -> impl Iterator<Item = ((String, String), Quantity)> + '_ {
    slice.spec.shared_counters.iter().flatten().flat_map(|set| {
        let counters = set.counters.iter().filter_map(|(name, counter)| Some((name, Quantity::parse(&counter.value.0).ok()?)));
        counters.map(|(name, amount)| ((set.name.clone(), name.clone()), amount))
    })
}

/// The rule taints the device.
fn concerns(rule: &DeviceTaintRule, id: &DeviceId) -> bool {
    let Some(selector) = &rule.spec.device_selector else { return false };
    let wanted = [(&selector.driver, &id.driver), (&selector.pool, &id.pool), (&selector.device, &id.device)];
    wanted.into_iter().all(|(wanted, is)| wanted.as_ref().is_none_or(|wanted| wanted == is))
}
