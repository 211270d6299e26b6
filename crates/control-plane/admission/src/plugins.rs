//! The admission plugins, a file each; [`all`] lists them in upstream's order (`pkg/kubeapiserver/options/plugins.go`).

pub mod always;
pub mod always_pull_images;
pub mod certificates;
pub mod default_ingress_class;
pub mod default_storage_class;
pub mod default_toleration_seconds;
pub mod deny_service_external_ips;
pub mod event_rate_limit;
pub mod extended_resource_toleration;
pub mod image_policy_webhook;
pub mod limit_pod_hard_anti_affinity_topology;
pub mod limit_ranger;
pub mod mutating_admission_policy;
pub mod mutating_webhook;
pub mod namespace_exists;
pub mod namespace_lifecycle;
pub mod node_restriction;
pub mod owner_references_permission_enforcement;
pub mod persistent_volume_claim_resize;
pub mod pod_node_selector;
pub mod pod_security;
pub mod pod_toleration_restriction;
pub mod pod_topology_labels;
pub mod priority;
pub mod resource_quota;
pub mod runtime_class;
pub mod service_account;
pub mod storage_object_in_use_protection;
pub mod taint_nodes_by_condition;
pub mod validating_admission_policy;
pub mod validating_webhook;

use crate::{ConfigError, Options, Plugin};

/// Every plugin there is, in upstream's order, with the options' configurations.
pub fn all(options: &Options) -> Result<Vec<Box<dyn Plugin>>, ConfigError> {
    Ok(vec![
        Box::new(always::AlwaysAdmit),
        Box::new(namespace_lifecycle::NamespaceLifecycle),
        Box::new(namespace_exists::NamespaceExists),
        Box::new(limit_pod_hard_anti_affinity_topology::LimitPodHardAntiAffinityTopology),
        Box::new(limit_ranger::LimitRanger),
        Box::new(service_account::ServiceAccount),
        Box::new(node_restriction::NodeRestriction),
        Box::new(taint_nodes_by_condition::TaintNodesByCondition),
        Box::new(always_pull_images::AlwaysPullImages),
        Box::new(image_policy_webhook::ImagePolicyWebhook::new(options)?),
        Box::new(pod_security::PodSecurity::new(options)?),
        Box::new(pod_node_selector::PodNodeSelector::new(options)),
        Box::new(priority::Priority),
        Box::new(default_toleration_seconds::DefaultTolerationSeconds),
        Box::new(pod_toleration_restriction::PodTolerationRestriction::new(options)?),
        Box::new(event_rate_limit::EventRateLimit::new(options)?),
        Box::new(extended_resource_toleration::ExtendedResourceToleration),
        Box::new(default_storage_class::DefaultStorageClass),
        Box::new(storage_object_in_use_protection::StorageObjectInUseProtection),
        Box::new(owner_references_permission_enforcement::OwnerReferencesPermissionEnforcement),
        Box::new(persistent_volume_claim_resize::PersistentVolumeClaimResize),
        Box::new(runtime_class::RuntimeClass),
        Box::new(certificates::CertificateApproval),
        Box::new(certificates::CertificateSigning),
        Box::new(certificates::ClusterTrustBundleAttest),
        Box::new(certificates::CertificateSubjectRestriction),
        Box::new(default_ingress_class::DefaultIngressClass),
        Box::new(deny_service_external_ips::DenyServiceExternalIps),
        Box::new(pod_topology_labels::PodTopologyLabels),
        Box::new(mutating_admission_policy::MutatingAdmissionPolicy::default()),
        Box::new(mutating_webhook::MutatingWebhook::new(options)?),
        Box::new(validating_admission_policy::ValidatingAdmissionPolicy::default()),
        Box::new(validating_webhook::ValidatingWebhook::new(options)?),
        Box::new(resource_quota::ResourceQuota::new(options)),
        Box::new(always::AlwaysDeny),
    ])
}
