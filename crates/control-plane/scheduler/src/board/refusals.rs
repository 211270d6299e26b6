//! Who objects to a class, node by node, and how many say the same: kept up to date by the nodes that changed.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::filters::Objection;
use crate::plan::FitError;
use crate::profile::Plugin;
use crate::snapshot::Slot;

#[derive(Default)]
pub(super) struct Refusals {
    by_slot: Vec<Option<Objection>>,
    /// Nodes that changed since they were asked.
    stale: Vec<Slot>,
    reasons: BTreeMap<Cow<'static, str>, usize>,
    plugins: BTreeMap<Plugin, usize>,
    resolvable: usize,
}

impl Refusals {
    /// Nobody was asked yet.
    pub fn new(slots: usize) -> Self {
        Self { by_slot: vec![None; slots], stale: (0..slots).collect(), ..Self::default() }
    }

    /// The node changed. `false`: so much did that asking everybody is cheaper.
    pub fn forget(&mut self, slot: Slot) -> bool {
        self.stale.push(slot);
        self.stale.len() <= 2 * self.by_slot.len() + 64
    }

    /// Asks those that changed.
    pub fn refresh(&mut self, ask: impl Fn(Slot) -> Option<Objection>) {
        let mut stale = std::mem::take(&mut self.stale);
        stale.sort_unstable();
        stale.dedup();
        for slot in stale {
            let now = ask(slot);
            if let Some(before) = std::mem::replace(&mut self.by_slot[slot], now.clone()) {
                self.count(before, false);
            }
            if let Some(now) = now {
                self.count(now, true);
            }
        }
    }

    fn count(&mut self, objection: Objection, more: bool) {
        self.resolvable = if objection.unresolvable { self.resolvable } else { step(self.resolvable, more) };
        change(&mut self.plugins, objection.plugin, more);
        objection.reasons.into_iter().for_each(|reason| change(&mut self.reasons, reason, more));
    }

    pub fn error(&self, nodes: usize) -> FitError {
        FitError {
            nodes,
            reasons: self.reasons.iter().map(|(reason, count)| (reason.to_string(), *count)).collect(),
            plugins: self.plugins.keys().fold(Default::default(), |plugins: crate::profile::Plugins, plugin| plugins.with(*plugin)),
            resolvable: self.resolvable > 0,
            ..FitError::default()
        }
    }
}

fn step(count: usize, more: bool) -> usize {
    if more { count + 1 } else { count.saturating_sub(1) }
}

fn change<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K, more: bool) {
    match counts.get_mut(&key) {
        Some(count) => {
            *count = step(*count, more);
            if *count == 0 {
                counts.remove(&key);
            }
        }
        None if more => drop(counts.insert(key, 1)),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_says_the_same_as_asking_everybody() {
        let says = |slot: Slot, turn: usize| match (slot * 7 + turn * 3) % 4 {
            0 => None,
            1 => Some(Objection::resolvable(Plugin::NodePorts, "no port")),
            2 => Some(Objection::unresolvable(Plugin::NodeAffinity, "elsewhere")),
            _ => {
                Some(Objection { reasons: vec!["no port".into(), "no room".into()], ..Objection::resolvable(Plugin::NodeResourcesFit, "") })
            }
        };
        let mut turns = [0; 10];
        let mut refusals = Refusals::new(turns.len());
        for turn in 0..20 {
            refusals.refresh(|slot| says(slot, turns[slot]));
            let expected = FitError::of(turns.len(), turns.iter().enumerate().filter_map(|(slot, turn)| says(slot, *turn)));
            assert_eq!(refusals.error(turns.len()), expected, "turn {turn}");
            for slot in [turn % 10, (turn * 3) % 10] {
                turns[slot] += 1;
                assert!(refusals.forget(slot));
            }
        }
    }
}
