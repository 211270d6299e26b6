//! One step of a rollout on copies of the ReplicaSets: who grows, who shrinks.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::scale::{self, available, replicas, wanted};
use super::{annotations, template};

pub(super) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.strategy.as_ref();
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// The ReplicaSets of a Deployment as they shall become; `plan` compares them with what is.
pub(super) struct Sets {
    /// Oldest first.
    pub old: Vec<ReplicaSet>,
    pub new: Option<ReplicaSet>,
}

impl Sets {
    pub fn all(&self) -> Vec<&ReplicaSet> {
        self.old.iter().chain(&self.new).collect()
    }

    pub fn total(&self) -> i32 {
        self.all().into_iter().map(replicas).sum()
    }

    /// Gives the set a size and notes what it was sized for.
    fn resize(deployment: &Deployment, set: &mut ReplicaSet, size: i32) {
        set.spec.replicas = Some(size);
        annotations::set_sizes(set, wanted(deployment), wanted(deployment) + scale::max_surge(deployment));
    }

    /// RollingUpdate: first the new set grows as far as it may; only when it cannot, the old ones shrink as far as they may.
    pub fn roll(&mut self, deployment: &Deployment) {
        if !self.fit_new(deployment) {
            self.shrink_old(deployment);
        }
    }

    /// True where the new set changes its size.
    pub fn fit_new(&mut self, deployment: &Deployment) -> bool {
        let total = self.total();
        let Some(new) = &mut self.new else { return false };
        let current = replicas(new);
        let size = match current > wanted(deployment) {
            true => wanted(deployment),
            false => scale::new_set_size(deployment, total, current),
        };
        if size != current {
            Self::resize(deployment, new, size);
        }
        size != current
    }

    fn shrink_old(&mut self, deployment: &Deployment) {
        let min_available = wanted(deployment) - scale::max_unavailable(deployment);
        let new_unavailable = self.new.as_ref().map_or(0, |new| (replicas(new) - available(new)).max(0));
        let mut spare = self.total() - min_available - new_unavailable;
        if spare <= 0 {
            return;
        }
        // Pods that serve nobody go first: they cost no availability.
        for set in &mut self.old {
            let cut = (replicas(set) - available(set)).clamp(0, spare.max(0));
            if cut > 0 {
                let size = replicas(set) - cut;
                Self::resize(deployment, set, size);
                spare -= cut;
            }
        }
        // A status may be older than the size that we gave the set: what is on its way out serves nobody any more.
        let stays = |set: &ReplicaSet| available(set).min(replicas(set));
        let mut spare = self.all().into_iter().map(stays).sum::<i32>() - min_available;
        for set in &mut self.old {
            let cut = replicas(set).min(spare).max(0);
            if cut > 0 {
                let size = replicas(set) - cut;
                Self::resize(deployment, set, size);
                spare -= cut;
            }
        }
    }

    /// Recreate's first half. True where an old set changes its size.
    pub fn empty_old(&mut self, deployment: &Deployment) -> bool {
        let mut changed = false;
        for set in self.old.iter_mut().filter(|set| replicas(set) > 0) {
            Self::resize(deployment, set, 0);
            changed = true;
        }
        changed
    }

    /// The Deployment itself was resized since the active sets were last sized.
    pub fn was_resized(&self, deployment: &Deployment) -> bool {
        let active = self.all().into_iter().filter(|set| replicas(set) > 0);
        active.filter_map(annotations::desired_replicas).any(|desired| desired != wanted(deployment))
    }

    /// Brings the sets to a new size of the Deployment without moving the rollout on.
    pub fn resize_all(&mut self, deployment: &Deployment) {
        if let Some(only) = self.active_or_latest() {
            if replicas(only) != wanted(deployment) || annotations::desired_replicas(only) != Some(wanted(deployment)) {
                Self::resize(deployment, only, wanted(deployment));
            }
            return;
        }
        if self.new.as_ref().is_some_and(|new| is_saturated(deployment, new)) {
            self.empty_old(deployment);
            return;
        }
        if is_recreate(deployment) {
            return;
        }
        let active: Vec<&ReplicaSet> = self.all().into_iter().filter(|set| replicas(set) > 0).collect();
        let sizes = scale::proportional(deployment, &active);
        let targets = self.old.iter_mut().chain(&mut self.new).filter(|set| replicas(set) > 0);
        targets.zip(sizes).for_each(|(set, size)| Self::resize(deployment, set, size));
    }

    /// The only active set; where none is, the new one or else the newest. `None` where several are active.
    fn active_or_latest(&mut self) -> Option<&mut ReplicaSet> {
        match self.all().into_iter().filter(|set| replicas(set) > 0).count() {
            0 => match &mut self.new {
                Some(new) => Some(new),
                None => self.old.iter_mut().max_by_key(|set| template::created(set)),
            },
            1 => self.old.iter_mut().chain(&mut self.new).find(|set| replicas(set) > 0),
            _ => None,
        }
    }
}

/// The new set has everything that the Deployment wants.
fn is_saturated(deployment: &Deployment, new: &ReplicaSet) -> bool {
    let wanted = wanted(deployment);
    annotations::desired_replicas(new) == Some(wanted) && replicas(new) == wanted && available(new) == wanted
}
