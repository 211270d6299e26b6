use super::MAX;
use crate::class::Class;
use crate::snapshot::{Details, Snapshot};

const MIN_BYTES: i64 = 23 << 20;
const MAX_BYTES_PER_IMAGE: i64 = 1_000 << 20;

/// On how many nodes each of the class's images is, in the class's order.
pub(crate) fn image_counts(snapshot: &Snapshot, class: &Class) -> Vec<usize> {
    let has = |slot: usize, name: &String| snapshot.details[slot].facts.images.contains_key(name);
    class.images.iter().map(|name| snapshot.slots().filter(|slot| has(*slot, name)).count()).collect()
}

/// How much of the pod's images is already there, scaled by how widespread each is; `nodes` is how many there are.
pub(crate) fn image_locality(class: &Class, node: &Details, counts: &[usize], nodes: usize) -> i64 {
    if node.facts.images.is_empty() {
        return 0;
    }
    let scaled = |(name, count): (&String, &usize)| {
        let size = node.facts.images.get(name).copied().unwrap_or(0);
        (size as f64 * (*count as f64 / nodes.max(1) as f64)) as i64
    };
    let sum: i64 = class.images.iter().zip(counts).map(scaled).sum();
    let max = MAX_BYTES_PER_IMAGE * class.images.len().max(1) as i64;
    MAX * (sum.clamp(MIN_BYTES, max) - MIN_BYTES) / (max - MIN_BYTES)
}
