//! The condition `Dangling` of FlowSchemas: whether the level that one names exists.

use std::collections::BTreeSet;

use meta::time;
use serde_json::{Value, json};

use super::{GROUP, PLURALS};
use crate::Inner;
use crate::access::grants::objects;
use crate::object::meta;
use crate::registry::{Target, catalog};

/// Writes the condition where it says something else. `false` where a write failed: it is tried again.
pub async fn tell(server: &Inner) -> bool {
    let [schemas, levels] = PLURALS.map(|plural| objects(&server.registry.caches, GROUP, plural));
    let levels: BTreeSet<&str> = levels.iter().map(|level| meta(level, "name")).collect();
    let Some(kind) = catalog::stored(GROUP, PLURALS[0]) else { return true };
    let writes = schemas.iter().filter_map(|schema| {
        let condition = outdated(schema, &levels)?;
        Some(async move {
            let target = Target { kind, namespace: "", name: meta(schema, "name") };
            let written = server.registry.modify(target, false, |object| {
                set(object, &condition);
                Ok(())
            });
            match written.await {
                Err(status) if !status.is("NotFound") => {
                    tracing::warn!(schema = target.name, %status, "the status of a FlowSchema cannot be written");
                    false
                }
                _ => true,
            }
        })
    });
    futures_util::future::join_all(writes).await.into_iter().all(|done| done)
}

/// The condition as it should be, where it is not.
fn outdated(schema: &Value, levels: &BTreeSet<&str>) -> Option<Value> {
    let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
    let (status, reason, how) = match levels.contains(level) {
        true => ("False", "Found", "and it exists"),
        false => ("True", "NotFound", "but there is no such object"),
    };
    let message = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {how}");
    let mut present = schema["status"]["conditions"].as_array().into_iter().flatten();
    let same =
        present.any(|old| old["type"] == "Dangling" && old["status"] == status && old["reason"] == reason && old["message"] == message);
    (!same).then(|| json!({"type": "Dangling", "status": status, "reason": reason, "message": message, "lastTransitionTime": time::now()}))
}

fn set(object: &mut Value, condition: &Value) {
    let old = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mut conditions: Vec<Value> = old.into_iter().filter(|old| old["type"] != "Dangling").collect();
    conditions.push(condition.clone());
    object["status"]["conditions"] = conditions.into();
}
