//! The write of one budget's status; a stale one is refused by its revision and planned again.

use client::Error;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use reconcile::{Outcome, reference_to};

use super::Controller;
use super::observe::World;
use super::plan::Plan;

impl Controller {
    pub(super) async fn act(&self, world: &World, plan: Plan) -> Result<Outcome, Error> {
        if let Some((kind, reason, message)) = plan.event {
            self.recorder.event(&reference_to(&*world.budget), kind, reason, message);
        }
        if let Some(status) = plan.status {
            let next = PodDisruptionBudget { status: Some(status), ..PodDisruptionBudget::clone(&world.budget) };
            client::ignore_not_found(self.client.replace_status(&next).await)?;
        }
        Ok(plan.look_again.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}
