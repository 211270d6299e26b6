//! The status of a Deployment: counts, Available, Progressing, ReplicaFailure, in upstream's reasons and sentences.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::scale;

pub(super) const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
pub(super) const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
pub(super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// The deadline in seconds; the largest number means none.
pub(super) fn deadline(deployment: &Deployment) -> Option<i64> {
    let seconds = deployment.spec.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| i64::from(seconds))
}

pub(super) fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_.as_deref() == Some(kind))
}

pub(super) fn new_condition(kind: &str, status: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(kind.into()),
        status: Some(status.into()),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Puts `condition` in the place of its type; one of the same status and reason is left as it is, so that nothing is written.
pub(super) fn set_condition(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    let conditions = status.conditions.get_or_insert_default();
    if let Some(current) = conditions.iter().find(|current| current.type_ == condition.type_) {
        if current.status == condition.status && current.reason == condition.reason {
            return;
        }
        if current.status == condition.status {
            condition.last_transition_time = current.last_transition_time.clone();
        }
    }
    conditions.retain(|current| current.type_ != condition.type_);
    conditions.push(condition);
}

fn remove_condition(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_.as_deref() != Some(kind));
    }
}

/// Counts and the Available condition; the other conditions as they were.
pub(super) fn counted(deployment: &Deployment, sets: &[&ReplicaSet], new: Option<&ReplicaSet>, now: Timestamp) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| sets.iter().map(|set| of(set)).sum::<i32>();
    let actual = |set: &ReplicaSet| set.status.as_ref().map_or(0, |status| status.replicas);
    let ready = |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let terminating = |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or(0);
    let available = sum(&scale::available);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(&actual)),
        updated_replicas: Some(new.map_or(0, actual)),
        ready_replicas: Some(sum(&ready)),
        available_replicas: Some(available),
        unavailable_replicas: Some((sum(&scale::replicas) - available).max(0)),
        terminating_replicas: Some(sum(&terminating)),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let enough = available >= scale::wanted(deployment) - scale::max_unavailable(deployment);
    let condition = match enough {
        true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
        false => ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
    };
    set_condition(&mut status, new_condition(AVAILABLE, condition.0, condition.1, condition.2.into(), now));
    status
}

pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(scale::wanted(deployment));
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

/// Says in `status` how the rollout goes.
pub(super) fn judge(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    sets: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) {
    let current = condition(status, PROGRESSING).cloned();
    let at_rest = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|condition| condition.reason.as_deref() == Some(NEW_AVAILABLE));
    match deadline(deployment) {
        None => remove_condition(status, PROGRESSING),
        Some(_) if at_rest => {}
        Some(deadline) => judge_progress(deployment, status, new, current, deadline, now),
    }
    let failures = sets.iter().filter_map(|set| set.status.as_ref()?.conditions.as_ref());
    let failure = failures.flatten().find(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE));
    match failure {
        Some(failure) => set_condition(
            status,
            DeploymentCondition {
                last_transition_time: failure.last_transition_time.clone(),
                ..new_condition(
                    REPLICA_FAILURE,
                    failure.status.as_deref().unwrap_or_default(),
                    failure.reason.as_deref().unwrap_or_default(),
                    failure.message.clone().unwrap_or_default(),
                    now,
                )
            },
        ),
        None => remove_condition(status, REPLICA_FAILURE),
    }
}

fn judge_progress(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    new: Option<&ReplicaSet>,
    current: Option<DeploymentCondition>,
    deadline: i64,
    now: Timestamp,
) {
    let subject = match new.and_then(|set| set.metadata.name.as_deref()) {
        Some(set) => format!("ReplicaSet {set:?}"),
        None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set_condition(status, new_condition(PROGRESSING, "True", NEW_AVAILABLE, message, now));
    } else if has_progressed(deployment.status.as_ref(), status) {
        let mut condition = new_condition(PROGRESSING, "True", "ReplicaSetUpdated", format!("{subject} is progressing."), now);
        // Replaced even where nothing else changes: its lastUpdateTime is what the deadline counts from.
        if let Some(current) = current.filter(|current| current.status.as_deref() == Some("True")) {
            condition.last_transition_time = current.last_transition_time;
        }
        remove_condition(status, PROGRESSING);
        set_condition(status, condition);
    } else if current.is_some_and(|current| has_timed_out(&current, deadline, now)) {
        let message = format!("{subject} has timed out progressing.");
        set_condition(status, new_condition(PROGRESSING, "False", TIMED_OUT, message, now));
    }
}

fn has_progressed(old: Option<&DeploymentStatus>, new: &DeploymentStatus) -> bool {
    let none = DeploymentStatus::default();
    let old = old.unwrap_or(&none);
    let outdated = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    new.updated_replicas.unwrap_or(0) > old.updated_replicas.unwrap_or(0)
        || outdated(new) < outdated(old)
        || new.ready_replicas.unwrap_or(0) > old.ready_replicas.unwrap_or(0)
        || new.available_replicas.unwrap_or(0) > old.available_replicas.unwrap_or(0)
}

fn has_timed_out(current: &DeploymentCondition, deadline: i64, now: Timestamp) -> bool {
    match current.reason.as_deref() {
        Some(NEW_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => current.last_update_time.as_ref().is_some_and(|time| now.as_second() > time.0.as_second() + deadline),
    }
}

/// When a rollout without further events would miss its deadline.
pub(super) fn deadline_check(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let deadline = deadline(deployment)?;
    let current = condition(status, PROGRESSING)?;
    if is_complete(deployment, status) || matches!(current.reason.as_deref(), Some(TIMED_OUT | NEW_AVAILABLE | PAUSED)) {
        return None;
    }
    let left = current.last_update_time.as_ref()?.0.as_second() + deadline - now.as_second();
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0) + 1))
}

/// Notes in the Progressing condition that the clock stands still while paused.
pub(super) fn note_pause(deployment: &Deployment, status: &mut DeploymentStatus, paused: bool, now: Timestamp) {
    let reason = condition(status, PROGRESSING).and_then(|condition| condition.reason.clone());
    if deadline(deployment).is_none() || reason.as_deref() == Some(TIMED_OUT) {
        return;
    }
    let noted = reason.as_deref() == Some(PAUSED);
    let (reason, message) = match (paused, noted) {
        (true, false) => (PAUSED, "Deployment is paused"),
        (false, true) => ("DeploymentResumed", "Deployment is resumed"),
        _ => return,
    };
    set_condition(status, new_condition(PROGRESSING, "Unknown", reason, message.into(), now));
}

/// Equal for a reader: an absent count is zero, and the order of conditions says nothing.
pub(super) fn same(a: &DeploymentStatus, b: &DeploymentStatus) -> bool {
    let counts = |status: &DeploymentStatus| {
        let optional = [
            status.replicas,
            status.updated_replicas,
            status.ready_replicas,
            status.available_replicas,
            status.unavailable_replicas,
            status.terminating_replicas,
        ];
        (optional.map(Option::unwrap_or_default), status.observed_generation, status.collision_count)
    };
    let conditions = |status: &DeploymentStatus| {
        let mut conditions = status.conditions.clone().unwrap_or_default();
        conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        conditions
    };
    let at_seconds = |mut conditions: Vec<DeploymentCondition>| {
        for condition in &mut conditions {
            for time in [&mut condition.last_update_time, &mut condition.last_transition_time].into_iter().flatten() {
                *time = Time(Timestamp::from_second(time.0.as_second()).unwrap_or_default());
            }
        }
        conditions
    };
    counts(a) == counts(b) && at_seconds(conditions(a)) == at_seconds(conditions(b))
}
