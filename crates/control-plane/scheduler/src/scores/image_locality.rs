use super::{Context, MAX};
use crate::class::Class;
use crate::snapshot::Details;

const MIN_BYTES: i64 = 23 << 20;
const MAX_BYTES_PER_CONTAINER: i64 = 1_000 << 20;

/// How much of the pod's images is already there, scaled by how widespread each is.
pub(super) fn score(class: &Class, node: &Details, context: &Context) -> i64 {
    let images = node.node.status.as_ref().and_then(|status| status.images.as_deref()).unwrap_or_default();
    let size = |name: &String| {
        let named = |image: &&k8s_openapi::api::core::v1::ContainerImage| image.names.iter().flatten().any(|other| other == name);
        images.iter().find(named).and_then(|image| image.size_bytes).unwrap_or(0)
    };
    let spread = |at: usize| context.image_nodes.get(at).copied().unwrap_or(0) as f64 / context.nodes.max(1) as f64;
    let sum: i64 = class.images.iter().enumerate().map(|(at, name)| (size(name) as f64 * spread(at)) as i64).sum();
    let max = MAX_BYTES_PER_CONTAINER * class.images.len().max(1) as i64;
    MAX * (sum.clamp(MIN_BYTES, max) - MIN_BYTES) / (max - MIN_BYTES)
}
