//! Selectors, compiled once, and what they said of each device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cel::device::{self, Attribute, Properties};
use meta::Quantity;

use super::inventory::{Device, Inventory};

/// Selectors kept compiled at most.
const SELECTORS_MAX: usize = 1024;

#[derive(Default)]
pub(crate) struct Selectors(Mutex<HashMap<String, Arc<Selector>>>);

pub(crate) struct Selector {
    program: Result<cel::Program, String>,
    /// What it said of the devices of the inventory with that generation.
    verdicts: Mutex<(u64, Vec<Option<bool>>)>,
}

impl Selectors {
    pub fn of(&self, expression: &str) -> Arc<Selector> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(selector) = known.get(expression) {
            return selector.clone();
        }
        if known.len() >= SELECTORS_MAX {
            known.clear();
        }
        let program = device::compile(expression).map_err(|error| format!("CEL compile error: {error}"));
        let selector = Arc::new(Selector { program, verdicts: Mutex::default() });
        known.insert(expression.to_owned(), selector.clone());
        selector
    }
}

impl Selector {
    /// Whether it selects the device; or what went wrong, in upstream's words.
    pub fn selects(&self, inventory: &Inventory, at: usize) -> Result<bool, String> {
        let program = self.program.as_ref().map_err(Clone::clone)?;
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        if verdicts.0 != inventory.generation {
            *verdicts = (inventory.generation, vec![None; inventory.devices.len()]);
        }
        if let Some(verdict) = verdicts.1.get(at).copied().flatten() {
            return Ok(verdict);
        }
        let device = value(&inventory.devices[at])?;
        let verdict = device::selects(program, &device).map_err(|error| format!("CEL runtime error: {error}"))?;
        if let Some(slot) = verdicts.1.get_mut(at) {
            *slot = Some(verdict);
        }
        Ok(verdict)
    }
}

/// The device as selectors see it.
fn value(device: &Device) -> Result<cel::Value<'static>, String> {
    let (published, driver) = (device.published(), &device.id.driver);
    let (mut attributes, mut capacity) = (Properties::default(), Properties::default());
    for (name, attribute) in published.attributes.iter().flatten() {
        let value = match (&attribute.bool, &attribute.int, &attribute.string, &attribute.version) {
            (Some(truth), ..) => Attribute::Bool(*truth),
            (_, Some(number), ..) => Attribute::Int(*number),
            (_, _, Some(text), _) => Attribute::String(text),
            (.., Some(version)) => Attribute::Version(version),
            _ => return Err(format!("attribute {name}: unsupported attribute value")),
        };
        if !attributes.attribute(driver, name, &value) {
            return Err(format!("attribute {name}: parse semantic version"));
        }
    }
    for (name, amount) in published.capacity.iter().flatten() {
        capacity.quantity(driver, name, Quantity::parse(&amount.value.0).unwrap_or_default());
    }
    Ok(device::value(driver, attributes, capacity, published.allow_multiple_allocations.unwrap_or(false)))
}
