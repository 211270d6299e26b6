//! What an autoscaler does, and what it says about it.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reconcile::EventKind;

use super::behavior::{self, Memory};
use super::{Failure, Proposal, World};

pub(super) struct Plan {
    pub status: HorizontalPodAutoscalerStatus,
    pub resize: Option<Resize>,
    pub memory: Memory,
    pub events: Vec<(EventKind, &'static str, String)>,
}

pub(super) struct Resize {
    pub from: i32,
    pub to: i32,
    pub reason: String,
}

pub(super) fn current(scale: &Scale) -> i32 {
    scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0)
}

fn bounds(autoscaler: &HorizontalPodAutoscaler) -> (i32, i32) {
    (autoscaler.spec.min_replicas.unwrap_or(1), autoscaler.spec.max_replicas)
}

/// Outside of its bounds the size is set without a look at metrics.
pub(super) fn asks_metrics(autoscaler: &HorizontalPodAutoscaler, scale: &Scale) -> bool {
    let (least, most) = bounds(autoscaler);
    let current = current(scale);
    (least..=most).contains(&current) && !(current == 0 && least != 0)
}

fn set(status: &mut HorizontalPodAutoscalerStatus, kind: &str, on: bool, reason: &str, message: &str, now: Timestamp) {
    let word = if on { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().position(|condition| condition.type_ == kind);
    let since =
        known.map(|index| &conditions[index]).filter(|known| known.status == word).and_then(|known| known.last_transition_time.clone());
    let next = HorizontalPodAutoscalerCondition {
        type_: kind.into(),
        status: word.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: since.or(Some(Time(now))),
        observed_generation: None,
    };
    match known {
        Some(index) => conditions[index] = next,
        None => conditions.push(next),
    }
}

pub(super) fn note_rescaled(status: &mut HorizontalPodAutoscalerStatus, to: i32, now: Timestamp) {
    let message = format!("the HPA controller was able to update the target scale to {to}");
    set(status, "AbleToScale", true, "SucceededRescale", &message, now);
    status.last_scale_time = Some(Time(now));
}

pub(super) fn note_not_rescaled(status: &mut HorizontalPodAutoscalerStatus, current: i32, error: &str, now: Timestamp) {
    let message = format!("the HPA controller was unable to update the target scale: {error}");
    set(status, "AbleToScale", false, "FailedUpdateScale", &message, now);
    status.desired_replicas = current;
}

pub(super) fn plan(world: &World) -> Plan {
    let autoscaler = &*world.autoscaler;
    let now = world.now;
    let mut status = autoscaler.status.clone().unwrap_or_default();
    status.observed_generation = autoscaler.metadata.generation;
    let mut plan = Plan { status, resize: None, memory: world.memory.clone(), events: Vec::new() };
    let scale = match &world.scale {
        Ok(scale) => scale,
        Err(error) => {
            let message = format!("the HPA controller was unable to get the target's current scale: {error}");
            set(&mut plan.status, "AbleToScale", false, "FailedGetScale", &message, now);
            plan.events.push((EventKind::Warning, "FailedGetScale", error.clone()));
            return plan;
        }
    };
    set(&mut plan.status, "AbleToScale", true, "SucceededGetScale", "the HPA controller was able to get the target's current scale", now);
    let (current, (least, most)) = (current(scale), bounds(autoscaler));
    plan.status.current_replicas = Some(scale.status.as_ref().map_or(0, |status| status.replicas));
    if plan.memory.is_empty() {
        plan.memory.recommended(current, now);
    }
    let resize = |to: i32, reason: &str| (to != current).then(|| Resize { from: current, to, reason: reason.into() });
    if current == 0 && least != 0 {
        let message = "scaling is disabled since the replica count of the target is zero";
        set(&mut plan.status, "ScalingActive", false, "ScalingDisabled", message, now);
        plan.status.desired_replicas = 0;
    } else if current > most {
        plan.resize = resize(most, "Current number of replicas above Spec.MaxReplicas");
        plan.status.desired_replicas = most;
    } else if current < least {
        plan.resize = resize(least, "Current number of replicas below Spec.MinReplicas");
        plan.status.desired_replicas = least;
    } else {
        follow_metrics(world, current, &mut plan);
    }
    plan
}

fn follow_metrics(world: &World, current: i32, plan: &mut Plan) {
    let now = world.now;
    let failures: Vec<&Failure> = world.proposals.iter().filter_map(|proposal| proposal.as_ref().err()).collect();
    let proposals: Vec<&Proposal> = world.proposals.iter().filter_map(|proposal| proposal.as_ref().ok()).collect();
    for failure in &failures {
        plan.events.push((EventKind::Warning, failure.reason, failure.message.clone()));
    }
    plan.status.current_metrics = Some(proposals.iter().map(|proposal| proposal.status.clone()).collect());
    let best = proposals.iter().max_by_key(|proposal| proposal.replicas);
    // A metric that is not known could ask for more than the others: then nothing shrinks.
    let Some(best) = best.filter(|best| failures.is_empty() || best.replicas >= current) else {
        let (reason, first) =
            failures.first().map_or(("FailedGetResourceMetric", ""), |failure| (failure.reason, failure.message.as_str()));
        let message = format!("the HPA was unable to compute the replica count: {first}");
        set(&mut plan.status, "ScalingActive", false, reason, &message, now);
        let total = format!("invalid metrics ({} invalid out of {}), first error is: {first}", failures.len(), world.proposals.len());
        plan.events.push((EventKind::Warning, "FailedComputeMetricsReplicas", total));
        plan.status.desired_replicas = current;
        return;
    };
    let message = format!("the HPA was able to successfully calculate a replica count from {}", best.name);
    set(&mut plan.status, "ScalingActive", true, "ValidMetricFound", &message, now);
    let held = behavior::hold(&world.autoscaler, &plan.memory, current, best.replicas, now);
    plan.memory.recommended(best.replicas, now);
    set(&mut plan.status, "AbleToScale", true, held.able.0, held.able.1, now);
    set(&mut plan.status, "ScalingLimited", held.limited.0, held.limited.1, held.limited.2, now);
    let reason = if held.replicas > current { format!("{} above target", best.name) } else { "All metrics below target".to_owned() };
    plan.resize = (held.replicas != current).then_some(Resize { from: current, to: held.replicas, reason });
    plan.status.desired_replicas = held.replicas;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn world(current: i32, proposals: Vec<Result<i32, &str>>) -> World {
        let spec = json!({"scaleTargetRef": {"kind": "Deployment", "name": "x"}, "minReplicas": 2, "maxReplicas": 10});
        let proposal = |found: Result<i32, &str>| match found {
            Ok(replicas) => Ok(Proposal { replicas, name: "cpu resource".into(), status: Default::default() }),
            Err(message) => Err(Failure { reason: "FailedGetResourceMetric", message: message.into() }),
        };
        World {
            autoscaler: Arc::new(serde_json::from_value(json!({"metadata": {"generation": 4}, "spec": spec})).unwrap()),
            scale: Ok(serde_json::from_value(json!({"spec": {"replicas": current}, "status": {"replicas": current}})).unwrap()),
            proposals: proposals.into_iter().map(proposal).collect(),
            memory: Memory::default(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    fn words(world: &World) -> String {
        let plan = plan(world);
        let resize = plan.resize.map(|resize| format!("→{} {}", resize.to, resize.reason));
        let conditions = plan.status.conditions.unwrap();
        let said = conditions.iter().map(|it| format!("{}={} {}", it.type_, it.status, it.reason.as_deref().unwrap()));
        resize.into_iter().chain(said).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_largest_proposal_wins_and_a_missing_metric_keeps_the_size_from_shrinking() {
        let cases = [
            (
                3,
                vec![Ok(4), Ok(2)],
                "→4 cpu resource above target, AbleToScale=True ReadyForNewScale, ScalingActive=True ValidMetricFound, ScalingLimited=False DesiredWithinRange",
            ),
            (3, vec![Ok(2), Err("no data")], "AbleToScale=True SucceededGetScale, ScalingActive=False FailedGetResourceMetric"),
            (
                3,
                vec![Ok(5), Err("no data")],
                "→5 cpu resource above target, AbleToScale=True ReadyForNewScale, ScalingActive=True ValidMetricFound, ScalingLimited=False DesiredWithinRange",
            ),
            (
                3,
                vec![Ok(2)],
                "AbleToScale=True ScaleDownStabilized, ScalingActive=True ValidMetricFound, ScalingLimited=False DesiredWithinRange",
            ),
            (1, vec![], "→2 Current number of replicas below Spec.MinReplicas, AbleToScale=True SucceededGetScale"),
            (12, vec![], "→10 Current number of replicas above Spec.MaxReplicas, AbleToScale=True SucceededGetScale"),
            (0, vec![], "AbleToScale=True SucceededGetScale, ScalingActive=False ScalingDisabled"),
        ];
        for (current, proposals, expected) in cases {
            assert_eq!(words(&world(current, proposals)), expected);
        }
    }
}
