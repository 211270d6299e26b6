//! What makes a kind itself, beyond what its table says: defaults, validation, update rules, columns, selectable fields.
//!
//! A file per kind, one [`all`] list. A kind without a file is served by the generic path with [`Rules`]'s own answers.
//! Pure functions over JSON values that were already decoded, pruned and typed by `schema`; no I/O, no tasks.
//!
//! Read in this order: [`Rules`], [`value`] (reading objects by path), [`metadata`] (what every object must fulfil), [`checks`] and
//! [`printing`] (shared by many kinds), [`resources`], [`pod_spec`] and [`template`] (shared by everything that makes pods), then [`kinds`].

pub mod checks;
mod cron;
mod devices;
mod groups;
pub mod kinds;
pub mod metadata;
pub mod plain;
pub mod pod_spec;
pub mod printing;
pub mod quota;
pub mod resources;
pub mod template;
pub mod value;
pub mod webhook;

use meta::field;
use serde_json::Value;

/// Which part of an object a write is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The object itself (a write leaves `status` alone where the kind has a status subresource).
    Main,
    Status,
    /// Any other subresource that writes the object: `resize`, `ephemeralcontainers`, `approval`, `finalize`.
    Subresource(&'static str),
}

/// A column of `kubectl get` (a `TableColumnDefinition`).
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date`, `boolean`.
    pub kind: &'static str,
    /// `name` for the first column, else empty.
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is shown always, 1 with `-o wide`.
    pub priority: i32,
}

/// The rules of one kind in one version. Every method has the generic answer as its default.
pub trait Rules: Send + Sync + 'static {
    /// (group, version, kind).
    fn gvk(&self) -> (&'static str, &'static str, &'static str);

    /// Sets defaults that depend on other fields. The table's own defaults are already in.
    fn default(&self, _object: &mut Value) {}
    /// Resets what a client may not set at creation (upstream: the strategy's PrepareForCreate).
    fn prepare_create(&self, _object: &mut Value) {}
    /// Resets what a write to `part` may not change (PrepareForUpdate). Generation is handled generically by [`Rules::counts_generation`].
    fn prepare_update(&self, _new: &mut Value, _old: &Value, _part: Part) {}
    fn validate(&self, _object: &Value) -> Vec<field::Error> {
        Vec::new()
    }
    /// What holds at creation alone, on top of `validate`.
    fn validate_create(&self, _object: &Value) -> Vec<field::Error> {
        Vec::new()
    }
    /// Only what is special about updates; `validate(new)` is called as well.
    fn validate_update(&self, _new: &Value, _old: &Value, _part: Part) -> Vec<field::Error> {
        Vec::new()
    }
    /// Sentences for `Warning:` headers.
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }
    /// Whether `metadata.generation` counts changes outside metadata and status.
    fn counts_generation(&self) -> bool {
        false
    }
    /// What a client says of the status at creation stays (upstream: PrepareForCreate leaves it alone).
    fn keeps_status_at_creation(&self) -> bool {
        false
    }
    /// A write of the status leaves labels, annotations, finalizers and owners alone (upstream: ResetObjectMetaForStatus).
    fn status_keeps_metadata(&self) -> bool {
        false
    }
    /// Fields besides `metadata.name` and `metadata.namespace` that field selectors may name, with their values.
    fn selectable_fields(&self, _object: &Value) -> Vec<(&'static str, String)> {
        Vec::new()
    }
    /// Their names alone (to refuse others).
    fn selectable_field_names(&self) -> &[&'static str] {
        &[]
    }
    fn columns(&self) -> &[Column] {
        GENERIC_COLUMNS
    }
    /// One cell per column. `now` is seconds since the epoch.
    fn cells(&self, object: &Value, now: i64) -> Vec<Value>;
    /// Names allowed for the object: the error sentences for this one.
    fn validate_name(&self, _name: &str) -> Vec<String> {
        Vec::new()
    }
    /// PUT creates an object that is absent (upstream: AllowCreateOnUpdate).
    fn create_on_update(&self) -> bool {
        false
    }
    /// A PUT may leave out `metadata.resourceVersion` (upstream: AllowUnconditionalUpdate).
    fn unconditional_update(&self) -> bool {
        true
    }
    /// The grace period of a delete that names none, in seconds (pods); `None` deletes at once even where one is named.
    fn default_grace_seconds(&self, _object: &Value) -> Option<i64> {
        None
    }
}

/// What upstream shows for a kind without a printer of its own.
pub const GENERIC_COLUMNS: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", description: "Name must be unique within a namespace.", priority: 0 },
    Column { name: "Created At", kind: "date", format: "", description: "When the object was created.", priority: 0 },
];

/// The rules of every kind that has any, in the order of their files.
pub fn all() -> &'static [&'static dyn Rules] {
    use kinds::*;
    &[
        &custom_resource_definition::CustomResourceDefinition,
        &pod::Pod,
        &deployment::Deployment,
        &replica_set::ReplicaSet,
        &service::Service,
        &node::Node,
        &namespace::Namespace,
        &component_status::COMPONENT_STATUS,
        &config_map::ConfigMap,
        &secret::Secret,
        &service_account::ServiceAccount,
        &endpoint_slice::EndpointSlice,
        &endpoints::Endpoints,
        &lease::Lease,
        &event::Event,
        &event::NewEvent,
        &rbac::Role,
        &rbac::ClusterRole,
        &rbac::RoleBinding,
        &rbac::ClusterRoleBinding,
        &daemon_set::DaemonSet,
        &stateful_set::StatefulSet,
        &controller_revision::ControllerRevision,
        &job::Job,
        &cron_job::CronJob,
        &pod_template::PodTemplate,
        &priority_class::PriorityClass,
        &storage_class::StorageClass,
        &limit_range::LimitRange,
        &persistent_volume_claim::PersistentVolumeClaim,
        &persistent_volume::PersistentVolume,
        &pod_disruption_budget::PodDisruptionBudget,
        &ingress::Ingress,
        &network_policy::NetworkPolicy,
        &horizontal_pod_autoscaler::HorizontalPodAutoscaler,
        &resource_quota::ResourceQuota,
        &replication_controller::ReplicationController,
        &ingress_class::INGRESS_CLASS,
        &service_cidr::SERVICE_CIDR,
        &ip_address::IP_ADDRESS,
        &runtime_class::RUNTIME_CLASS,
        &certificate_signing_request::CERTIFICATE_SIGNING_REQUEST,
        &cluster_trust_bundle::CLUSTER_TRUST_BUNDLE,
        &pod_certificate_request::POD_CERTIFICATE_REQUEST,
        &csi_driver::CSI_DRIVER,
        &csi_node::CSI_NODE,
        &csi_storage_capacity::CSI_STORAGE_CAPACITY,
        &volume_attachment::VOLUME_ATTACHMENT,
        &volume_attributes_class::VOLUME_ATTRIBUTES_CLASS,
        &validating_webhook_configuration::VALIDATING_WEBHOOK_CONFIGURATION,
        &mutating_webhook_configuration::MUTATING_WEBHOOK_CONFIGURATION,
        &validating_admission_policy::VALIDATING_ADMISSION_POLICY,
        &validating_admission_policy::VALIDATING_ADMISSION_POLICY_BINDING,
        &mutating_admission_policy::MUTATING_ADMISSION_POLICY,
        &mutating_admission_policy::MUTATING_ADMISSION_POLICY_BINDING,
        &flow_schema::FLOW_SCHEMA,
        &priority_level::PRIORITY_LEVEL,
        &api_service::API_SERVICE,
        &storage_version_migration::STORAGE_VERSION_MIGRATION,
        &resource_claim::RESOURCE_CLAIM,
        &resource_claim::RESOURCE_CLAIM_TEMPLATE,
        &resource_slice::RESOURCE_SLICE,
        &device_class::DEVICE_CLASS,
        &device_class::DEVICE_TAINT_RULE,
        &resource_pool_status_request::RESOURCE_POOL_STATUS_REQUEST,
        &pod_group::POD_GROUP,
        &pod_group::COMPOSITE_POD_GROUP,
        &workload::WORKLOAD,
        &lease_candidate::LEASE_CANDIDATE,
        &storage_version::STORAGE_VERSION,
        &eviction_request::EVICTION_REQUEST,
    ]
}

/// The rules of one kind, where it has any.
pub fn of(group: &str, version: &str, kind: &str) -> Option<&'static dyn Rules> {
    all().iter().copied().find(|rules| rules.gvk() == (group, version, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_file_and_a_cell_for_every_column() {
        let mut seen = std::collections::BTreeSet::new();
        for rules in all() {
            assert!(seen.insert(rules.gvk()), "{:?} twice", rules.gvk());
            assert_eq!(rules.cells(&serde_json::json!({}), 0).len(), rules.columns().len(), "{:?}", rules.gvk());
            let names: Vec<_> = rules.selectable_fields(&Value::Null).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, rules.selectable_field_names(), "{:?}", rules.gvk());
        }
    }

    #[test]
    fn odd_objects_never_panic() {
        let odd = [serde_json::json!(null), serde_json::json!([]), serde_json::json!({"metadata": 1, "spec": [], "status": "x"})];
        for rules in all() {
            for object in &odd {
                let mut copy = object.clone();
                rules.default(&mut copy);
                rules.prepare_create(&mut copy);
                rules.prepare_update(&mut copy, object, Part::Main);
                rules.validate(object);
                rules.validate_create(object);
                rules.warnings(object, None);
                for part in [Part::Status, Part::Subresource("resize"), Part::Subresource("ephemeralcontainers")] {
                    rules.prepare_update(&mut copy, object, part);
                    rules.validate_update(object, object, part);
                }
                rules.validate_update(object, object, Part::Main);
                rules.cells(object, 0);
                rules.default_grace_seconds(object);
            }
        }
    }
}
