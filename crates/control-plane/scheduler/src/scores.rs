//! How good a fitting node is: upstream's default score plugins, a file each.
//!
//! These look at one node; the scores that depend on other pods' places are computed in [`crate::board`].

mod balanced_allocation;
mod image_locality;
mod node_affinity;
mod resources_fit;

pub(crate) use image_locality::{image_counts, image_locality};
pub(crate) use node_affinity::node_affinity;

use crate::class::Class;
use crate::profile::Profile;
use crate::snapshot::Details;

/// The best score of one plugin before its weight.
pub const MAX: i64 = 100;

/// The weighted scores of the amounts that the node has and the pod takes.
pub(crate) fn amounts(profile: &Profile, class: &Class, node: &Details) -> i64 {
    let weights = &profile.weights;
    let mut total = 0;
    if weights.resources_fit != 0 {
        total += weights.resources_fit * resources_fit::score(profile, class, node);
    }
    if weights.balanced_allocation != 0 {
        total += weights.balanced_allocation * balanced_allocation::score(profile, class, node);
    }
    total
}

/// Upstream's DefaultNormalizeScore: the largest raw score becomes 100, and with `reversed` 0.
pub(crate) fn normalized(raw: i64, max: i64, reversed: bool) -> i64 {
    let scaled = if max == 0 { 0 } else { MAX * raw / max };
    if reversed { MAX - scaled } else { scaled }
}
