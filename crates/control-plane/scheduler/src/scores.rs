//! How good a fitting node is: upstream's default score plugins with their default weights, a file each.

mod balanced_allocation;
mod image_locality;
mod least_allocated;
mod node_affinity;
mod taint_toleration;

use crate::class::Class;
use crate::snapshot::Details;

/// The best score of one plugin before its weight.
pub const MAX: i64 = 100;

/// How raw scores over the feasible nodes become 0..=100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalize {
    /// Already 0..=100.
    No,
    /// Largest raw score is 100.
    ToMax,
    /// Largest raw score is 0, zero is 100.
    ToMaxReversed,
}

pub struct Score {
    pub name: &'static str,
    pub weight: i64,
    pub normalize: Normalize,
    pub of: fn(&Class, &Details, &Context) -> i64,
}

/// What a score may know of the cluster as a whole.
pub struct Context {
    pub nodes: usize,
    /// On how many nodes each of the class's images is, in the class's order.
    pub image_nodes: Vec<usize>,
}

pub fn all() -> &'static [Score] {
    &[
        Score { name: "TaintToleration", weight: 3, normalize: Normalize::ToMaxReversed, of: taint_toleration::score },
        Score { name: "NodeAffinity", weight: 2, normalize: Normalize::ToMax, of: node_affinity::score },
        Score { name: "NodeResourcesFit", weight: 1, normalize: Normalize::No, of: least_allocated::score },
        Score { name: "NodeResourcesBalancedAllocation", weight: 1, normalize: Normalize::No, of: balanced_allocation::score },
        Score { name: "ImageLocality", weight: 1, normalize: Normalize::No, of: image_locality::score },
    ]
}

/// Upstream's DefaultNormalizeScore over the feasible nodes.
pub fn normalize(scores: &mut [i64], how: Normalize) {
    let max = scores.iter().copied().max().unwrap_or(0);
    if how == Normalize::No {
        return;
    }
    for score in scores {
        let scaled = if max == 0 { 0 } else { MAX * *score / max };
        *score = if how == Normalize::ToMaxReversed { MAX - scaled } else { scaled };
    }
}
