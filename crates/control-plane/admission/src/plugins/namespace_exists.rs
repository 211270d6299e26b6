//! NamespaceExists: objects are written only into namespaces that exist. NamespaceLifecycle says the same and more.

use meta::status::Status;

use crate::{Attributes, Lookup, Operation, Plugin, Verdict, core};

pub struct NamespaceExists;

impl Plugin for NamespaceExists {
    fn name(&self) -> &'static str {
        "NamespaceExists"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }
    fn on_by_default(&self) -> bool {
        false
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            if attributes.namespace.is_empty() || attributes.gvr.resource == "namespaces" {
                return Ok(());
            }
            match lookup.get(&core("namespaces"), "", &attributes.namespace).await? {
                Some(_) => Ok(()),
                None => Err(Status::not_found(&core("namespaces"), &attributes.namespace)),
            }
        })
    }
}
