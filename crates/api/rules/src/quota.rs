//! What objects cost a ResourceQuota, and which quotas they fall under. Admission charges by it, the quota controller counts by it.
//!
//! Source: upstream's `pkg/quota/v1/evaluator/core`, apiserver `pkg/quota/v1`.

mod pods;
mod scopes;

use std::collections::BTreeMap;

use meta::{Quantity, quantity};
use serde_json::Value;

use crate::value::{annotation, at, entries, int, list, text};

pub use scopes::Scope;

/// Amounts by the name that a quota has for them.
pub type Amounts = BTreeMap<String, Quantity>;

/// What a quota asks of the object before it is charged: a plain sentence where that is missing.
pub type Missing = String;

/// Kinds that a quota may count without `count/` before them.
const PLAIN: [&str; 6] = ["configmaps", "persistentvolumeclaims", "replicationcontrollers", "resourcequotas", "secrets", "services"];
const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
/// Devices that a request for all of them may get (upstream: `AllocationResultsMaxSize`).
const ALL_DEVICES: i64 = 32;

/// One resource as quotas see it.
#[derive(Clone, Copy, Debug)]
pub struct Resource<'a> {
    pub group: &'a str,
    pub plural: &'a str,
}

pub fn one() -> Quantity {
    Quantity::new(1, quantity::Format::DecimalSi)
}

/// The amounts of a list of resources (`requests`, `status.used`).
pub fn amounts(object: &Value, path: &str) -> Amounts {
    entries(object, path).filter_map(|(name, amount)| Some((name.clone(), quantity::from_json(amount)?))).collect()
}

impl Resource<'_> {
    fn is(&self, plural: &str) -> bool {
        self.group.is_empty() && self.plural == plural
    }
    fn is_device_claim(&self) -> bool {
        self.group == "resource.k8s.io" && self.plural == "resourceclaims"
    }
    fn count_name(&self) -> String {
        if self.group.is_empty() { format!("count/{}", self.plural) } else { format!("count/{}.{}", self.plural, self.group) }
    }

    /// Whether a quota's name is about this resource.
    pub fn counts(&self, name: &str) -> bool {
        if name == self.count_name() || (self.group.is_empty() && PLAIN.contains(&self.plural) && name == self.plural) {
            return true;
        }
        match self.plural {
            "pods" if self.is("pods") => pods::counts(name),
            "services" if self.is("services") => matches!(name, "services.nodeports" | "services.loadbalancers"),
            "persistentvolumeclaims" if self.is("persistentvolumeclaims") => name == "requests.storage" || name.contains(STORAGE_CLASS),
            "resourceclaims" if self.is_device_claim() => name.ends_with(DEVICES),
            _ => false,
        }
    }

    /// Whether updates can change what an object costs. Of pods only a resize does.
    pub fn charges_updates(&self, subresource: &str) -> bool {
        match subresource {
            "" => self.is("services") || self.is("persistentvolumeclaims") || self.is_device_claim(),
            "resize" => self.is("pods"),
            _ => false,
        }
    }

    /// What one object costs at `now` (seconds since the epoch).
    pub fn usage(&self, object: &Value, now: i64) -> Amounts {
        let mut usage = Amounts::from([(self.count_name(), one())]);
        if self.group.is_empty() && PLAIN.contains(&self.plural) {
            usage.insert(self.plural.to_owned(), one());
        }
        match self.plural {
            "pods" if self.is("pods") => pods::usage(object, now, &mut usage),
            "services" if self.is("services") => service(object, &mut usage),
            "persistentvolumeclaims" if self.is("persistentvolumeclaims") => claim(object, &mut usage),
            "resourceclaims" if self.is_device_claim() => devices(object, &mut usage),
            _ => {}
        }
        usage
    }

    /// What the object must say itself because a quota bounds it.
    pub fn missing<'a>(&self, object: &Value, bounded: impl Iterator<Item = &'a String>) -> Option<Missing> {
        if self.is("pods") { pods::missing(object, bounded) } else { None }
    }

    /// Whether the quota is about the object: it bounds something of it, and all its scopes hold.
    pub fn matches(&self, quota: &Value, object: &Value) -> bool {
        let bounds = entries(quota, "status.hard").any(|(name, _)| self.counts(name));
        bounds && scopes::of(quota).iter().all(|scope| self.in_scope(scope, object))
    }

    /// Whether the quota's scopes hold, whatever it bounds.
    pub fn in_scope(&self, scope: &Scope, object: &Value) -> bool {
        match self.plural {
            "pods" if self.is("pods") => scope.holds_of_pod(object),
            "persistentvolumeclaims" if self.is("persistentvolumeclaims") => scope.holds_of_claim(object),
            // Nothing else has scopes.
            _ => false,
        }
    }
}

/// The scopes of a quota.
pub fn scopes_of(quota: &Value) -> Vec<Scope> {
    scopes::of(quota)
}

/// The scopes that a configuration names by expressions.
pub fn scopes_in(expressions: &[Value]) -> Vec<Scope> {
    expressions.iter().map(Scope::read).collect()
}

fn service(object: &Value, usage: &mut Amounts) {
    let ports = list(object, "spec.ports");
    let count = |count: usize| Quantity::new(i64::try_from(count).unwrap_or(i64::MAX), quantity::Format::DecimalSi);
    let (mut node_ports, mut load_balancers) = (0, 0);
    match text(object, "spec.type") {
        "NodePort" => node_ports = ports.len(),
        "LoadBalancer" => {
            load_balancers = 1;
            let all = at(object, "spec.allocateLoadBalancerNodePorts").as_bool() != Some(false);
            node_ports = ports.iter().filter(|port| all || int(port, "nodePort").unwrap_or(0) != 0).count();
        }
        _ => {}
    }
    usage.insert("services.nodeports".into(), count(node_ports));
    usage.insert("services.loadbalancers".into(), count(load_balancers));
}

fn claim(object: &Value, usage: &mut Amounts) {
    let size = quantity::from_json(at(object, "spec.resources.requests.storage"));
    // What was allocated counts until a smaller size is reached.
    let allocated = quantity::from_json(at(object, "status.allocatedResources.storage"));
    let size = size.max(allocated);
    let class = annotation(object, "volume.beta.kubernetes.io/storage-class").unwrap_or_else(|| text(object, "spec.storageClassName"));
    if !class.is_empty() {
        usage.insert(format!("{class}{STORAGE_CLASS}persistentvolumeclaims"), one());
    }
    if let Some(size) = size {
        usage.insert("requests.storage".into(), size);
        if !class.is_empty() {
            usage.insert(format!("{class}{STORAGE_CLASS}requests.storage"), size);
        }
    }
}

/// The devices of each class: of alternatives the most that any takes.
fn devices(object: &Value, usage: &mut Amounts) {
    let wanted = |request: &Value| match text(request, "allocationMode") {
        "All" => ALL_DEVICES,
        _ => int(request, "count").unwrap_or(1),
    };
    for request in list(object, "spec.devices.requests") {
        let mut most: BTreeMap<&str, i64> = BTreeMap::new();
        let exactly = request.get("exactly").into_iter();
        for choice in exactly.chain(list(request, "firstAvailable")) {
            let count = most.entry(text(choice, "deviceClassName")).or_default();
            *count = (*count).max(wanted(choice));
        }
        let most = most.into_iter().map(|(class, count)| (format!("{class}{DEVICES}"), Quantity::new(count, quantity::Format::DecimalSi)));
        add(usage, &most.collect());
    }
}

/// Adds `more` to `sum`, name by name.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        sum.entry(name.clone()).and_modify(|present| *present = *present + *amount).or_insert(*amount);
    }
}

/// `a=1,b=2`.
pub fn shown<'a>(amounts: impl Iterator<Item = (&'a String, &'a Quantity)>) -> String {
    amounts.map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
