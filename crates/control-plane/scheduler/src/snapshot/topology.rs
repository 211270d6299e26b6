//! One topology key as a column: each node's value as a small number.

use std::collections::HashMap;

use super::Slot;

/// The node lacks the label.
pub const NO_VALUE: u32 = u32::MAX;

#[derive(Debug)]
pub struct Topology {
    pub key: String,
    /// By slot.
    pub of: Vec<u32>,
    values: HashMap<String, u32>,
}

impl Topology {
    pub(super) fn new(key: &str) -> Self {
        Self { key: key.to_owned(), of: Vec::new(), values: HashMap::new() }
    }

    /// Distinct values seen so far; each node's value is below.
    pub fn len(&self) -> usize {
        self.values.len()
    }
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The node's value, [`NO_VALUE`] without one.
    pub fn at(&self, slot: Slot) -> u32 {
        self.of.get(slot).copied().unwrap_or(NO_VALUE)
    }

    /// Whether that was another value than before.
    pub(super) fn set(&mut self, slot: Slot, value: Option<&str>) -> bool {
        let number = match value {
            None => NO_VALUE,
            Some(value) => match self.values.get(value) {
                Some(known) => *known,
                None => {
                    let next = self.values.len() as u32;
                    self.values.insert(value.to_owned(), next);
                    next
                }
            },
        };
        if self.of.len() <= slot {
            self.of.resize(slot + 1, NO_VALUE);
        }
        std::mem::replace(&mut self.of[slot], number) != number
    }
}
