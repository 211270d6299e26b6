//! A gang's members, placed in one go.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use reconcile::ObjectKey;

use super::Scheduler;
use super::report::Report;
use super::schedule::Decided;
use crate::gang::Together;
use crate::profile::Plugin;
use crate::snapshot::Slot;

type Placed = (ObjectKey, Arc<Pod>, Slot, Decided);

impl Scheduler {
    /// Binds the members if enough of them find a place, and none of them otherwise.
    pub(super) async fn schedule_gang(&mut self, together: Together, start: Instant) {
        let mut placed: Vec<Placed> = Vec::new();
        let mut failed: Vec<(ObjectKey, Arc<Pod>, String)> = Vec::new();
        // Those whose bindings are under way have their places: a large gang comes in several lots.
        let (under_way, waiting): (Vec<&ObjectKey>, Vec<&ObjectKey>) = together.pods.iter().partition(|key| self.placed.contains_key(*key));
        for key in waiting {
            let Some(pod) = self.world.pods.get_key(key) else { continue };
            if !self.queue.take(key) {
                continue;
            }
            let class = self.class_of(&pod);
            let Some(profile) = self.profiles.get(&class.scheduler_name).cloned() else { continue };
            let verdicts = self.ask_extenders(&pod, &class, &profile).await;
            match self.place(key, &pod, &class, &profile, verdicts.as_ref()) {
                Ok((slot, decided)) => {
                    self.assume(key, &pod, &class, slot);
                    placed.push((key.clone(), pod, slot, decided));
                }
                Err(error) => failed.push((key.clone(), pod, error.to_string())),
            }
        }
        let count = under_way.len() + placed.len();
        if count >= together.needed {
            for (key, pod, slot, decided) in placed {
                self.start_binding(&key, &pod, slot, decided, start);
            }
        } else {
            let why = failed.first().map(|(_, _, why)| why.clone()).unwrap_or_default();
            for (key, pod, ..) in placed {
                self.devices.release(&key);
                self.release(&key);
                failed.push((key, pod, why.clone()));
            }
        }
        let plugins = crate::profile::Plugins::ALL.without(Plugin::SchedulingGates);
        for (key, pod, why) in failed {
            self.queue.unschedulable(&key, plugins, Instant::now());
            let missing = format!("minCount ({}) cannot be satisfied: {count} scheduled, 0 remaining", together.needed);
            let message = if count >= together.needed { why } else { format!("pod group {:?}: {missing}. {why}", together.group.name) };
            self.report(&pod, Report::unschedulable(&pod, message));
        }
    }
}
