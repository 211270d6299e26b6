//! What a Deployment does next.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};

use super::observe::World;
use super::rollout::{Sets, is_recreate};
use super::scale::{max_surge, new_set_size, replicas, wanted};
use super::{annotations, status, template};
use crate::selector::{self, Claim};

#[derive(Default)]
pub(super) struct Plan {
    pub adopt: Vec<Arc<ReplicaSet>>,
    pub release: Vec<Arc<ReplicaSet>>,
    /// Made first: what shrinks afterwards relies on it.
    pub create: Option<ReplicaSet>,
    /// Pairs of what is and what shall be.
    pub update: Vec<(Arc<ReplicaSet>, ReplicaSet)>,
    /// Beyond the history limit.
    pub delete: Vec<Arc<ReplicaSet>>,
    /// For the Deployment's own annotation.
    pub revision: Option<String>,
    /// `None` leaves it alone.
    pub status: Option<DeploymentStatus>,
    /// A selector that selects everything is refused, with an event.
    pub selects_all: bool,
    /// When the progress deadline passes.
    pub look_again: Option<Duration>,
}

pub(super) fn plan(world: &World) -> Plan {
    let deployment = &*world.deployment;
    let wanted_labels = selector::parse(Some(&deployment.spec.selector));
    if wanted_labels.is_everything() {
        let observed =
            DeploymentStatus { observed_generation: deployment.metadata.generation, ..deployment.status.clone().unwrap_or_default() };
        return Plan { selects_all: true, status: Some(observed), ..Plan::default() };
    }
    let mut plan = Plan::default();
    let mut owned = Vec::new();
    for set in &world.sets {
        match selector::claim(&deployment.metadata, &wanted_labels, &set.metadata) {
            Claim::Keep => owned.push(set.clone()),
            Claim::Adopt => plan.adopt.push(set.clone()),
            Claim::Release => plan.release.push(set.clone()),
            Claim::Leave => {}
        }
    }
    if !plan.adopt.is_empty() || !plan.release.is_empty() {
        // One thing at a time: with the new family in the cache, we are woken again.
        return plan;
    }
    owned.sort_by_key(|set| (template::created(set), set.metadata.name.clone()));
    roll_out(world, &owned, &mut plan);
    plan
}

fn roll_out(world: &World, owned: &[Arc<ReplicaSet>], plan: &mut Plan) {
    let deployment = &*world.deployment;
    let paused = deployment.spec.paused == Some(true);
    let new = template::find_new(deployment, owned);
    let is_new = |set: &Arc<ReplicaSet>| new.is_some_and(|new| new.metadata.uid == set.metadata.uid);
    let old: Vec<Arc<ReplicaSet>> = owned.iter().filter(|set| !is_new(set)).cloned().collect();
    let mut sets = Sets { old: old.iter().map(|set| ReplicaSet::clone(set)).collect(), new: new.map(|set| ReplicaSet::clone(set)) };
    if deployment.metadata.deletion_timestamp.is_some() {
        plan.status = Some(status::counted(deployment, &sets.all(), sets.new.as_ref(), world.now));
        return;
    }
    let mut facts = Facts { revision: 0, found: false, created: None };
    let resized = sets.was_resized(deployment);
    let steady = paused || resized;
    mark_new(deployment, &mut sets, &mut facts);
    if steady {
        sets.resize_all(deployment);
    } else if is_recreate(deployment) {
        recreate(world, &mut sets, &mut facts);
    } else {
        make_new(deployment, &mut sets, &mut facts);
        sets.roll(deployment);
    }
    plan.status = Some(judge(world, owned, new, &facts, paused, steady));
    plan.revision = sets.new.as_ref().and_then(|new| annotations::revision_text(&new.metadata));
    differences(&old, new, sets, plan);
    let complete = plan.status.as_ref().is_some_and(|status| status::is_complete(deployment, status));
    if (complete && !steady) || paused {
        plan.delete = beyond_history(deployment, &old);
    }
    plan.look_again = plan.status.as_ref().filter(|_| !paused).and_then(|status| status::deadline_check(deployment, status, world.now));
}

/// What the Progressing condition tells of the new ReplicaSet.
struct Facts {
    /// The revision of the new template.
    revision: i64,
    found: bool,
    created: Option<String>,
}

/// Gives an existing new set the newest revision.
fn mark_new(deployment: &Deployment, sets: &mut Sets, facts: &mut Facts) {
    facts.revision = sets.old.iter().map(annotations::revision).max().unwrap_or(0) + 1;
    let min_ready_seconds = deployment.spec.min_ready_seconds;
    if let Some(new) = &mut sets.new {
        facts.found = true;
        annotations::set_revision(deployment, new, facts.revision);
        if new.spec.min_ready_seconds.unwrap_or(0) != min_ready_seconds.unwrap_or(0) {
            new.spec.min_ready_seconds = min_ready_seconds;
        }
    }
}

/// Makes the new set, at the size that it may have at once.
fn make_new(deployment: &Deployment, sets: &mut Sets, facts: &mut Facts) {
    if sets.new.is_some() {
        return;
    }
    let mut new = template::new_set(deployment);
    let size = new_set_size(deployment, sets.total(), 0);
    new.spec.replicas = Some(size);
    annotations::set_revision(deployment, &mut new, facts.revision);
    annotations::set_sizes(&mut new, wanted(deployment), wanted(deployment) + max_surge(deployment));
    facts.created = new.metadata.name.clone();
    sets.new = Some(new);
}

/// Recreate: nothing new before everything old has ended.
fn recreate(world: &World, sets: &mut Sets, facts: &mut Facts) {
    let deployment = &*world.deployment;
    if sets.empty_old(deployment) {
        return;
    }
    let still_there = |set: &ReplicaSet| {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        set.status.as_ref().is_some_and(|status| status.replicas > 0) || world.sets_with_running_pods.iter().any(|running| running == uid)
    };
    if sets.old.iter().any(still_there) {
        return;
    }
    make_new(deployment, sets, facts);
    sets.fit_new(deployment);
}

/// The status follows from what is, not from what is about to be written.
fn judge(
    world: &World,
    owned: &[Arc<ReplicaSet>],
    new: Option<&Arc<ReplicaSet>>,
    facts: &Facts,
    paused: bool,
    steady: bool,
) -> DeploymentStatus {
    let deployment = &*world.deployment;
    let sets: Vec<&ReplicaSet> = owned.iter().map(|set| &**set).collect();
    let new = new.map(|set| &**set);
    let mut next = status::counted(deployment, &sets, new, world.now);
    if status::deadline(deployment).is_some() {
        if let Some(name) = &facts.created {
            let message = format!("Created new replica set {name:?}");
            status::set_condition(
                &mut next,
                status::new_condition(status::PROGRESSING, "True", "NewReplicaSetCreated", message, world.now),
            );
        } else if let Some(new) = new.filter(|_| facts.found && status::condition(&next, status::PROGRESSING).is_none()) {
            let message = format!("Found new replica set {:?}", new.metadata.name.as_deref().unwrap_or_default());
            status::set_condition(&mut next, status::new_condition(status::PROGRESSING, "True", "FoundNewReplicaSet", message, world.now));
        }
    }
    status::note_pause(deployment, &mut next, paused, world.now);
    if !steady && facts.created.is_none() {
        status::judge(deployment, &mut next, &sets, new, world.now);
    }
    next
}

/// Turns copies that differ from what is into writes.
fn differences(old: &[Arc<ReplicaSet>], new: Option<&Arc<ReplicaSet>>, sets: Sets, plan: &mut Plan) {
    let changed = |is: &Arc<ReplicaSet>, shall: ReplicaSet| {
        let same = is.metadata.annotations == shall.metadata.annotations && is.spec == shall.spec;
        (!same).then(|| (is.clone(), shall))
    };
    match (new, sets.new) {
        (Some(is), Some(shall)) => plan.update.extend(changed(is, shall)),
        (None, shall) => plan.create = shall,
        (Some(_), None) => {}
    }
    plan.update.extend(old.iter().zip(sets.old).filter_map(|(is, shall)| changed(is, shall)));
    // What grows goes before what shrinks.
    plan.update.sort_by_key(|(is, shall)| replicas(is) > replicas(shall));
}

/// The oldest revisions over the limit, of those that are empty and settled.
fn beyond_history(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    let limit = deployment.spec.revision_history_limit.unwrap_or(i32::MAX);
    if limit == i32::MAX {
        return Vec::new();
    }
    let mut alive: Vec<&Arc<ReplicaSet>> = old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
    alive.sort_by_key(|set| annotations::revision(set));
    let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    let settled = |set: &&&Arc<ReplicaSet>| {
        let status = set.status.clone().unwrap_or_default();
        replicas(set) == 0 && status.replicas == 0 && set.metadata.generation <= status.observed_generation
    };
    alive.iter().take(surplus).filter(settled).map(|set| (*set).clone()).collect()
}

#[cfg(test)]
mod tests;
