//! ValidatingAdmissionPolicies and MutatingAdmissionPolicies with their bindings (KEP-3488, KEP-3962).
//!
//! [`source`] holds the compiled policies with their bindings, made again when their objects change; [`params`] finds what a binding's
//! `paramRef` names; [`declared`] judges the expressions of a policy or webhook when it is written; [`type_check`] holds them against the
//! [`types`] that they will meet. The two plugins,
//! `plugins::validating_admission_policy` and `plugins::mutating_admission_policy`, evaluate.

pub mod declared;
pub mod params;
pub mod source;
pub mod type_check;
pub mod types;

use meta::status::Status;
use serde_json::Value;
use std::sync::Arc;

use crate::{Attributes, Lookup, core};

/// The write's namespace for `namespaceObject`; none for cluster-wide objects and for namespaces themselves.
pub async fn namespace(attributes: &Attributes, lookup: &dyn Lookup) -> Result<Option<Arc<Value>>, Status> {
    if attributes.namespace.is_empty() || (attributes.gvk.group.is_empty() && attributes.gvk.kind == "Namespace") {
        return Ok(None);
    }
    let found = lookup.get(&core("namespaces"), "", &attributes.namespace).await?;
    found.map(Some).ok_or_else(|| Status::not_found(&core("namespaces"), &attributes.namespace))
}
