//! The status of ValidatingAdmissionPolicies: which generation was looked at, and what its expressions have against the types that they meet.
//!
//! It stands here and not among the controllers, because the types of all kinds do, those of CRDs among them.
//! Source: upstream's `pkg/controller/validatingadmissionpolicystatus`.

use std::sync::Arc;

use admission::policy::type_check;
use serde_json::{Value, json};

use crate::Inner;
use crate::access::grants::objects;
use crate::cache::Changes;
use crate::object::meta;
use crate::registry::{Target, catalog};

const GROUP: &str = "admissionregistration.k8s.io";
const PLURAL: &str = "validatingadmissionpolicies";

/// Runs until the server stops.
pub async fn run(server: Arc<Inner>) {
    while let Some(mut changes) = Changes::of(&server.registry.caches, &[(GROUP, PLURAL)]) {
        loop {
            look(&server).await;
            if !changes.next().await {
                break;
            }
        }
        if server.drain.is_stopping() {
            return;
        }
    }
}

/// Every policy whose status is about an older generation.
async fn look(server: &Inner) {
    let Some(kind) = catalog::stored(GROUP, PLURAL) else { return };
    for policy in objects(&server.registry.caches, GROUP, PLURAL).iter().filter(|policy| is_due(policy)) {
        let warnings = type_check::warnings(policy, &*server.registry.reader);
        let checked = if warnings.is_empty() { json!({}) } else { json!({"expressionWarnings": warnings}) };
        let generation = policy["metadata"]["generation"].clone();
        let target = Target { kind, namespace: "", name: meta(policy, "name") };
        let written = server.registry.modify(target, false, |object| {
            // Of a policy that changed meanwhile nothing is known yet.
            if object["metadata"]["generation"] == generation {
                object["status"]["observedGeneration"] = generation.clone();
                object["status"]["typeChecking"] = checked.clone();
            }
            Ok(())
        });
        if let Err(status) = written.await
            && !status.is("NotFound")
        {
            tracing::warn!(policy = target.name, %status, "the status of a ValidatingAdmissionPolicy cannot be written");
        }
    }
}

fn is_due(policy: &Value) -> bool {
    policy["metadata"]["deletionTimestamp"].is_null() && policy["status"]["observedGeneration"] != policy["metadata"]["generation"]
}
