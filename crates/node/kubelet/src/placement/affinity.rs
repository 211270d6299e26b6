//! What suits processors, memory and devices alike: sets of NUMA nodes, and the best of them. Pure.

use std::collections::BTreeSet;

/// A set of NUMA nodes; upstream knows at most eight, this one 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nodes(u64);

/// Sets of more nodes than this are not tried one by one.
const TRIED_MAX: usize = 8;

impl Nodes {
    pub fn of(nodes: &BTreeSet<u32>) -> Self {
        Self(nodes.iter().filter(|node| **node < 64).fold(0, |set, node| set | 1 << node))
    }
    pub fn has(self, node: u32) -> bool {
        node < 64 && self.0 & (1 << node) != 0
    }
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }
    pub fn within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }
    /// Every set of some of `nodes`, the smallest first.
    pub fn all_of(nodes: &BTreeSet<u32>) -> Vec<Self> {
        let tried: Vec<u32> = nodes.iter().copied().take(TRIED_MAX).collect();
        let set =
            |bits: usize| Self::of(&tried.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0).map(|(_, node)| *node).collect());
        let mut all: Vec<Self> = (1..1_usize << tried.len()).map(set).collect();
        all.sort_by_key(|set| (set.count(), set.0));
        all
    }
}

/// Nodes where something can be had; preferred where fewer would not do even on an empty machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    pub nodes: Nodes,
    pub preferred: bool,
}

/// `could`: would these nodes do if nobody had anything? `can`: do they now?
pub fn hints(nodes: &BTreeSet<u32>, could: impl Fn(Nodes) -> bool, can: impl Fn(Nodes) -> bool) -> Vec<Hint> {
    let all = Nodes::all_of(nodes);
    let least = all.iter().filter(|set| could(**set)).map(|set| set.count()).min().unwrap_or(0);
    all.into_iter().filter(|set| can(*set)).map(|nodes| Hint { nodes, preferred: nodes.count() == least }).collect()
}

/// The best nodes for all of `wishes`, and whether everybody prefers them. A wish without any hint cannot be met anywhere. With `single`,
/// only hints of one node count.
pub fn merge(nodes: &BTreeSet<u32>, wishes: &[Vec<Hint>], single: bool) -> (Nodes, bool) {
    let everywhere = Nodes::of(nodes);
    let mut merged = vec![Hint { nodes: everywhere, preferred: true }];
    for wish in wishes {
        let usable: Vec<Hint> = wish.iter().copied().filter(|hint| !single || (hint.nodes.count() == 1 && hint.preferred)).collect();
        let usable = if usable.is_empty() { vec![Hint { nodes: everywhere, preferred: false }] } else { usable };
        let pairs = merged.iter().flat_map(|one| usable.iter().map(move |two| (one, two)));
        let both = pairs.map(|(one, two)| Hint { nodes: Nodes(one.nodes.0 & two.nodes.0), preferred: one.preferred && two.preferred });
        let mut next: Vec<Hint> = both.filter(|hint| hint.nodes.0 != 0).collect();
        next.sort_by_key(|hint| (!hint.preferred, hint.nodes.count(), hint.nodes.0));
        next.dedup();
        merged = next;
    }
    // Of the preferred ones the narrowest, of the others as well.
    let best = merged.into_iter().min_by_key(|hint| (!hint.preferred, hint.nodes.count(), hint.nodes.0));
    best.map_or((everywhere, false), |hint| (hint.nodes, hint.preferred))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_nodes_are_those_that_everybody_prefers() {
        let nodes = BTreeSet::from([0, 1]);
        let hint = |set: &[u32], preferred: bool| Hint { nodes: Nodes::of(&set.iter().copied().collect()), preferred };
        let both = [hint(&[0], true), hint(&[1], true), hint(&[0, 1], false)];
        for (name, wishes, single, expected) in [
            ("nobody minds", vec![], false, (vec![0, 1], true)),
            ("one wish", vec![both.to_vec()], false, (vec![0], true)),
            ("a device on the second", vec![both.to_vec(), vec![hint(&[1], true), hint(&[0, 1], false)]], false, (vec![1], true)),
            ("nowhere together", vec![vec![hint(&[0], true)], vec![hint(&[1], true)]], false, (vec![0, 1], false)),
            ("too wide", vec![vec![hint(&[0, 1], true)]], false, (vec![0, 1], true)),
            ("too wide for one", vec![vec![hint(&[0, 1], true)]], true, (vec![0, 1], false)),
            ("impossible", vec![vec![]], false, (vec![0, 1], false)),
        ] {
            let (best, preferred) = merge(&nodes, &wishes, single);
            assert_eq!((best, preferred), (Nodes::of(&expected.0.into_iter().collect()), expected.1), "{name}");
        }
    }
}
