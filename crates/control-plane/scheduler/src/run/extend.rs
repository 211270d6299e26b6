//! What the configured extenders say about a pod.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::Scheduler;
use crate::class::Class;
use crate::extender::Verdicts;
use crate::profile::Profile;

impl Scheduler {
    /// `None` where nobody is to be asked. An extender that fails filters every node out.
    pub(super) async fn ask_extenders(&mut self, pod: &Arc<Pod>, class: &Arc<Class>, profile: &Arc<Profile>) -> Option<Verdicts> {
        let interested: Vec<_> = self.extenders.iter().filter(|extender| extender.is_interested(pod)).cloned().collect();
        if interested.is_empty() {
            return None;
        }
        let fitting = self.planner.ranking(&self.snapshot, profile, class, None);
        let node = |(slot, _): &(usize, i64)| self.world.nodes.get("", self.snapshot.name(*slot));
        let nodes: Vec<_> = fitting.iter().filter_map(node).collect();
        let mut verdicts = Verdicts::default();
        for extender in interested {
            if let Err(error) = extender.judge(pod, &nodes, &mut verdicts).await {
                verdicts.fail(&error.to_string(), &nodes);
                break;
            }
        }
        Some(verdicts)
    }
}
