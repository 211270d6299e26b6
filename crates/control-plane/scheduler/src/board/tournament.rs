//! One value for each slot, with the largest at the root: a change costs the logarithm of their number.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::snapshot::Slot;

pub(crate) struct Tournament<T> {
    /// A complete binary tree; the leaves are the second half.
    nodes: Vec<T>,
    leaves: usize,
    /// Of a slot that does not take part; nothing is less.
    unfit: T,
}

impl<T: Copy + Ord> Tournament<T> {
    pub fn new(slots: usize, unfit: T) -> Self {
        let leaves = slots.next_power_of_two().max(1);
        Self { nodes: vec![unfit; 2 * leaves], leaves, unfit }
    }

    pub fn fill(&mut self, totals: &[T]) {
        self.nodes[self.leaves..self.leaves + totals.len()].copy_from_slice(totals);
        for at in (1..self.leaves).rev() {
            self.nodes[at] = self.nodes[2 * at].max(self.nodes[2 * at + 1]);
        }
    }

    pub fn set(&mut self, slot: Slot, total: T) {
        let mut at = self.leaves + slot;
        self.nodes[at] = total;
        while at > 1 {
            at /= 2;
            let best = self.nodes[2 * at].max(self.nodes[2 * at + 1]);
            if self.nodes[at] == best {
                break;
            }
            self.nodes[at] = best;
        }
    }

    /// By slot, and beyond the last one those of nobody.
    pub fn values(&self) -> &[T] {
        self.nodes.get(self.leaves..).unwrap_or_default()
    }

    /// The first of the best; `None`: nobody fits.
    pub fn best(&self) -> Option<Slot> {
        let best = *self.nodes.get(1)?;
        if best == self.unfit {
            return None;
        }
        let mut at = 1;
        while at < self.leaves {
            at = if self.nodes[2 * at] == best { 2 * at } else { 2 * at + 1 };
        }
        Some(at - self.leaves)
    }

    /// All that fit, the best first and among equals the first, as far as they are asked for.
    pub fn in_order(&self) -> impl Iterator<Item = Slot> + '_ {
        let mut ahead = BinaryHeap::new();
        ahead.extend(self.nodes.get(1).filter(|best| **best != self.unfit).map(|best| (*best, Reverse(1))));
        std::iter::from_fn(move || {
            loop {
                let (_, Reverse(at)) = ahead.pop()?;
                if at >= self.leaves {
                    return Some(at - self.leaves);
                }
                let children = [2 * at, 2 * at + 1].map(|child| (self.nodes[child], Reverse(child)));
                ahead.extend(children.into_iter().filter(|(total, _)| *total != self.unfit));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNFIT: i64 = i64::MIN;

    #[test]
    fn the_best_is_found_whatever_changes() {
        let mut tournament = Tournament::new(5, UNFIT);
        assert_eq!(tournament.best(), None);
        tournament.fill(&[3, 9, UNFIT, 9, 1]);
        assert_eq!(tournament.best(), Some(1));
        tournament.set(1, 2);
        assert_eq!(tournament.best(), Some(3));
        tournament.set(4, 10);
        tournament.set(3, UNFIT);
        assert_eq!(tournament.best(), Some(4));
        assert_eq!(tournament.in_order().collect::<Vec<_>>(), [4, 0, 1]);
        (0..5).for_each(|slot| tournament.set(slot, UNFIT));
        assert_eq!(tournament.best(), None);
    }
}
