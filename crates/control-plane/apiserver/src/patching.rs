//! The four kinds of patch; three of them are applied here, on objects in their served version.

use bytes::Bytes;
use http::HeaderMap;
use meta::Status;
use schema::merge;
use serde_json::Value;

use crate::negotiate::{self, Media};
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
pub const APPLY_PATCH_CBOR: &str = "application/apply-patch+cbor";

impl PatchType {
    /// `strategic`: the kind has merge keys (custom resources do not).
    pub fn of(headers: &HeaderMap, strategic: bool) -> Result<Self, Status> {
        match negotiate::content_type(headers).as_str() {
            JSON_PATCH => Ok(PatchType::Json),
            MERGE_PATCH => Ok(PatchType::Merge),
            STRATEGIC_MERGE_PATCH if strategic => Ok(PatchType::StrategicMerge),
            APPLY_PATCH | APPLY_PATCH_CBOR => Ok(PatchType::Apply),
            other => {
                let mut accepted = vec![JSON_PATCH, MERGE_PATCH, APPLY_PATCH];
                if strategic {
                    accepted.insert(2, STRATEGIC_MERGE_PATCH);
                }
                Err(Status::unsupported_media_type(other, &accepted))
            }
        }
    }
}

/// The form of an applied configuration; YAML is the rule, and JSON is YAML.
pub fn apply_media(headers: &HeaderMap) -> Media {
    if negotiate::content_type(headers) == APPLY_PATCH_CBOR { Media::Cbor } else { Media::Yaml }
}

/// A patch that was read.
pub enum Patch {
    Json(Bytes),
    Merge(Value),
    StrategicMerge(Value),
}

impl Patch {
    pub fn parse(kind: PatchType, bytes: Bytes) -> Result<Self, Status> {
        if kind == PatchType::Json {
            return Ok(Patch::Json(bytes));
        }
        let refuse = |why: &str| Status::bad_request(format!("error decoding patch: {why}"));
        let patch = schema::decode::parse_json(&bytes).map_err(|error| refuse(&error.to_string()))?.value;
        if !patch.is_object() {
            let word = merge::json_type(&patch);
            return Err(refuse(&format!("json: cannot unmarshal {word} into Go value of type map[string]interface {{}}")));
        }
        Ok(if kind == PatchType::Merge { Patch::Merge(patch) } else { Patch::StrategicMerge(patch) })
    }

    /// Upstream decodes the outcome of a strategic merge patch field by field and blames the patch; of the others, the object.
    pub fn blame(&self, status: Status) -> Status {
        let Patch::StrategicMerge(patch) = self else { return status };
        let why = status.message.split_once(": ").filter(|(head, _)| status.code == 400 && head.contains("cannot be handled as a"));
        let Some((_, why)) = why else { return status };
        let error = meta::field::Error::invalid(&meta::field::Path::new("patch"), merge::go_text(patch), why);
        Status::invalid("", "", "", &[error])
    }

    pub fn apply(&self, kind: &Kind, object: Value) -> Result<Value, Status> {
        self.apply_as(&kind.schema, object)
    }

    pub fn apply_as(&self, schema: &schema::model::Type, mut object: Value) -> Result<Value, Status> {
        match self {
            Patch::Json(patch) => merge::json_patch(&mut object, patch).map_err(|error| error.status())?,
            Patch::Merge(patch) => merge::json_merge_patch(&mut object, patch),
            Patch::StrategicMerge(patch) => merge::strategic_merge_patch(&mut object, patch, schema).map_err(|error| error.status())?,
        }
        Ok(object)
    }
}
