//! The admission plugins, a file each; [`all`] lists them in upstream's order (`pkg/kubeapiserver/options/plugins.go`).

pub mod default_storage_class;
pub mod default_toleration_seconds;
pub mod limit_ranger;
pub mod mutating_webhook;
pub mod namespace_lifecycle;
pub mod node_restriction;
pub mod pod_security;
pub mod priority;
pub mod service_account;
pub mod storage_object_in_use_protection;
pub mod taint_nodes_by_condition;
pub mod validating_webhook;

use crate::{ConfigError, Options, Plugin};

/// Every plugin there is, in upstream's order, with the options' configurations.
pub fn all(options: &Options) -> Result<Vec<Box<dyn Plugin>>, ConfigError> {
    Ok(vec![
        Box::new(namespace_lifecycle::NamespaceLifecycle),
        Box::new(limit_ranger::LimitRanger),
        Box::new(service_account::ServiceAccount),
        Box::new(node_restriction::NodeRestriction),
        Box::new(taint_nodes_by_condition::TaintNodesByCondition),
        Box::new(pod_security::PodSecurity::new(options)?),
        Box::new(priority::Priority),
        Box::new(default_toleration_seconds::DefaultTolerationSeconds),
        Box::new(default_storage_class::DefaultStorageClass),
        Box::new(storage_object_in_use_protection::StorageObjectInUseProtection),
        Box::new(mutating_webhook::MutatingWebhook::default()),
        Box::new(validating_webhook::ValidatingWebhook::default()),
    ])
}
