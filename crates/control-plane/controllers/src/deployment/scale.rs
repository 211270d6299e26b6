//! Sizes: how far a rollout may go beyond and below the wanted number, and how a new size is shared among ReplicaSets.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::annotations;
use super::rollout::is_recreate;
use crate::intstr::{Round, scaled};

pub(super) fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// Pods over the wanted number that a rolling update may have.
pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) { 0 } else { fence_posts(deployment).0 }
}

/// Pods under the wanted number that a rolling update may lack.
pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    let wanted = wanted(deployment);
    if is_recreate(deployment) || wanted == 0 { 0 } else { fence_posts(deployment).1.min(wanted) }
}

/// Surge rounds up and unavailable down; where both come to zero, one may be unavailable, or nothing could ever move.
fn fence_posts(deployment: &Deployment) -> (i32, i32) {
    let rolling = deployment.spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.clone());
    let RollingUpdateDeployment { max_surge, max_unavailable } = rolling.unwrap_or_default();
    let quarter = || IntOrString::String("25%".into());
    let wanted = wanted(deployment);
    let surge = scaled(&max_surge.unwrap_or_else(quarter), wanted, Round::Up);
    let unavailable = scaled(&max_unavailable.unwrap_or_else(quarter), wanted, Round::Down);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// How large the new ReplicaSet may be now: all that is wanted, as far as the surge allows beside the others.
pub(super) fn new_set_size(deployment: &Deployment, total: i32, current: i32) -> i32 {
    let wanted = wanted(deployment);
    if is_recreate(deployment) {
        return wanted;
    }
    let room = (wanted + max_surge(deployment) - total).max(0);
    current + room.min(wanted - current).max(0)
}

/// Sizes for `sets` (active ones, the new one included) after the Deployment was resized in the middle of a rollout: each keeps its
/// share (upstream: `GetReplicaSetProportion`). The order of the answer is that of `sets`.
pub(super) fn proportional(deployment: &Deployment, sets: &[&ReplicaSet]) -> Vec<i32> {
    let wanted = wanted(deployment);
    let allowed = if wanted > 0 { wanted + max_surge(deployment) } else { 0 };
    let total: i32 = sets.iter().map(|set| replicas(set)).sum();
    let to_add = allowed - total;
    let mut order: Vec<usize> = (0..sets.len()).collect();
    // Larger sets first; among equals the newest takes what is added and the oldest gives what is removed.
    order.sort_by(|a, b| {
        let (a, b) = (sets[*a], sets[*b]);
        let born = |set: &ReplicaSet| super::template::created(set);
        let by_age = if to_add > 0 { born(b).cmp(&born(a)) } else { born(a).cmp(&born(b)) };
        replicas(b).cmp(&replicas(a)).then(by_age)
    });
    let mut sizes: Vec<i32> = sets.iter().map(|set| replicas(set)).collect();
    let mut added = 0;
    for index in &order {
        let share = fraction(deployment, sets[*index], to_add, added);
        sizes[*index] += share;
        added += share;
    }
    if let Some(first) = order.first() {
        sizes[*first] = (sizes[*first] + to_add - added).max(0);
    }
    sizes
}

fn fraction(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    let size = replicas(set);
    if size == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let share = match wanted(deployment) {
        0 => -size,
        wanted => {
            let before = annotations::max_replicas(set).filter(|max| *max > 0);
            let before =
                before.or_else(|| deployment.status.as_ref().and_then(|status| status.replicas)).filter(|max| *max > 0).unwrap_or(size);
            let next = f64::from(size) * f64::from(wanted + max_surge(deployment)) / f64::from(before);
            next.round() as i32 - size
        }
    };
    if to_add > 0 { share.min(to_add - added) } else { share.max(to_add - added) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(replicas: i32, surge: serde_json::Value, unavailable: serde_json::Value) -> Deployment {
        let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        let spec =
            json!({"replicas": replicas, "selector": {}, "template": {}, "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}});
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    }

    #[test]
    fn surge_rounds_up_unavailable_down_and_never_both_are_zero() {
        let cases = [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (3, json!(0), json!("25%"), (0, 1)),
            (5, json!(2), json!(1), (2, 1)),
        ];
        for (replicas, surge, unavailable, expected) in cases {
            let deployment = deployment(replicas, surge, unavailable);
            assert_eq!((max_surge(&deployment), max_unavailable(&deployment)), expected, "{replicas}");
        }
    }

    #[test]
    fn a_resize_in_the_middle_of_a_rollout_is_shared_in_proportion() {
        let set = |name: &str, replicas: i32, max: i32| -> ReplicaSet {
            let annotations = json!({"deployment.kubernetes.io/max-replicas": max.to_string()});
            serde_json::from_value(
                json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"replicas": replicas, "selector": {}}}),
            )
            .unwrap()
        };
        // Upstream's documented example: 10 + 3 surge, 8 old and 5 new; scaled to 15 the sets become 11 and 7.
        let (old, new) = (set("old", 8, 13), set("new", 5, 13));
        assert_eq!(proportional(&deployment(15, json!(3), json!(2)), &[&old, &new]), [11, 7]);
        assert_eq!(proportional(&deployment(5, json!(3), json!(2)), &[&old, &new]), [5, 3]);
        assert_eq!(proportional(&deployment(0, json!(3), json!(2)), &[&old, &new]), [0, 0]);
    }
}
