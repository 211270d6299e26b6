//! The status of ValidatingAdmissionPolicies: which generation has been looked at.
//!
//! Expressions are compiled, and refused, when a policy is written; there is nothing here to warn of beyond that.

use client::Client;
use k8s_openapi::api::admissionregistration::v1::{TypeChecking, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyStatus};
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use crate::act;
use crate::context::Context;

pub(crate) const NAME: &str = "validatingadmissionpolicy-status-controller";

pub(crate) async fn run(context: Context) {
    let policies: Cache<ValidatingAdmissionPolicy> = context.caches.of();
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    policies.on_change(move |_, new| new.into_iter().for_each(|policy| wake.add(key_of(&policy.metadata))));
    policies.synced().await;
    let client: Client = context.client.clone();
    reconcile::run(NAME, queue, 2, context.drain, move |key| {
        let (client, policy) = (client.clone(), policies.get_key(&key));
        async move {
            match policy.and_then(|policy| plan(&policy)) {
                Some(next) => act::write_status(&client, &next).await.into(),
                None => Outcome::Done,
            }
        }
    })
    .await;
}

fn plan(policy: &ValidatingAdmissionPolicy) -> Option<ValidatingAdmissionPolicy> {
    let observed = policy.status.as_ref().and_then(|status| status.observed_generation);
    if observed == policy.metadata.generation || policy.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = ValidatingAdmissionPolicyStatus {
        observed_generation: policy.metadata.generation,
        type_checking: Some(TypeChecking::default()),
        ..policy.status.clone().unwrap_or_default()
    };
    Some(ValidatingAdmissionPolicy { status: Some(status), ..policy.clone() })
}
