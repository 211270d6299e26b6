//! The four kinds of patch, on objects in their served version.

use http::HeaderMap;
use meta::Status;
use serde_json::Value;

use crate::negotiate;
use crate::registry::catalog::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    StrategicMerge,
    Apply,
}

pub const JSON_PATCH: &str = "application/json-patch+json";
pub const MERGE_PATCH: &str = "application/merge-patch+json";
pub const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";
pub const APPLY_PATCH: &str = "application/apply-patch+yaml";
/// Operations that one JSON patch may have, as upstream.
const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

impl PatchType {
    pub fn of(headers: &HeaderMap) -> Result<Self, Status> {
        match negotiate::content_type(headers).as_str() {
            JSON_PATCH => Ok(PatchType::Json),
            MERGE_PATCH => Ok(PatchType::Merge),
            STRATEGIC_MERGE_PATCH => Ok(PatchType::StrategicMerge),
            APPLY_PATCH => Ok(PatchType::Apply),
            other => Err(Status::unsupported_media_type(other, &[JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, APPLY_PATCH])),
        }
    }
}

/// A patch that was read.
pub enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    StrategicMerge(Value),
}

impl Patch {
    pub fn parse(kind: PatchType, bytes: &[u8]) -> Result<Self, Status> {
        let unreadable = |error: serde_json::Error| Status::bad_request(format!("error decoding patch: {error}"));
        if kind == PatchType::Json {
            let patch: json_patch::Patch = serde_json::from_slice(bytes).map_err(unreadable)?;
            if patch.0.len() > JSON_PATCH_OPERATIONS_MAX {
                let message =
                    format!("The allowed maximum operations in a JSON patch is {JSON_PATCH_OPERATIONS_MAX}, got {}", patch.0.len());
                return Err(Status::request_entity_too_large(message));
            }
            return Ok(Patch::Json(patch));
        }
        let patch: Value = serde_json::from_slice(bytes).map_err(unreadable)?;
        if !patch.is_object() {
            return Err(Status::bad_request("error decoding patch: the patch is not an object"));
        }
        Ok(if kind == PatchType::Merge { Patch::Merge(patch) } else { Patch::StrategicMerge(patch) })
    }

    pub fn apply(&self, _kind: &Kind, mut object: Value) -> Result<Value, Status> {
        match self {
            Patch::Json(patch) => json_patch::patch(&mut object, patch)
                .map_err(|error| Status::failure(422, "Invalid", format!("the server rejected our request due to an error in our request: {error}")))?,
            Patch::Merge(patch) | Patch::StrategicMerge(patch) => json_patch::merge(&mut object, patch),
        }
        Ok(object)
    }
}
