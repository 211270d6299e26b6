//! Amounts of CPU, memory and everything else.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts that a pod asks for or a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Everything else by name, in its own units (milli for none).
    pub extended: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a `requests`, `limits`, `capacity` or `allocatable` map.
    pub fn of(quantities: &BTreeMap<String, Quantity>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in quantities {
            let Ok(amount) = meta::quantity::Quantity::parse(&quantity.0) else { continue };
            match name.as_str() {
                "cpu" => resources.milli_cpu = amount.milli_value(),
                "memory" => resources.memory = amount.value(),
                "ephemeral-storage" => resources.ephemeral_storage = amount.value(),
                "pods" => {}
                other => drop(resources.extended.insert(other.to_owned(), amount.value())),
            }
        }
        resources
    }

    /// The amount of a resource by its name in the API.
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.milli_cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            other => self.extended.get(other).copied().unwrap_or(0),
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| *mine += theirs);
    }
    pub fn sub(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| *mine -= theirs);
    }
    pub fn max(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| *mine = (*mine).max(theirs));
    }

    fn combine(&mut self, other: &Self, with: impl Fn(&mut i64, i64)) {
        with(&mut self.milli_cpu, other.milli_cpu);
        with(&mut self.memory, other.memory);
        with(&mut self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.extended {
            match self.extended.get_mut(name) {
                Some(mine) => with(mine, *amount),
                None => with(self.extended.entry(name.clone()).or_default(), *amount),
            }
        }
    }
}
