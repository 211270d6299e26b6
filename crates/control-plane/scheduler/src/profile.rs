//! What a `schedulerName` stands for: which plugins judge, how much each score weighs, and their arguments.

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};

use crate::neighbours::{HOSTNAME, ZONE};

/// The plugins that filter or score, in the order in which upstream asks the filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Plugin {
    SchedulingGates,
    NodeUnschedulable,
    NodeName,
    TaintToleration,
    NodeAffinity,
    NodePorts,
    NodeResourcesFit,
    VolumeRestrictions,
    NodeVolumeLimits,
    VolumeBinding,
    VolumeZone,
    PodTopologySpread,
    InterPodAffinity,
    DynamicResources,
    GangScheduling,
    DefaultPreemption,
    NodeResourcesBalancedAllocation,
    ImageLocality,
    PrioritySort,
    DefaultBinder,
    /// An extender of the configuration.
    Extender,
}

impl Plugin {
    pub const ALL: [Plugin; 21] = [
        Plugin::SchedulingGates,
        Plugin::NodeUnschedulable,
        Plugin::NodeName,
        Plugin::TaintToleration,
        Plugin::NodeAffinity,
        Plugin::NodePorts,
        Plugin::NodeResourcesFit,
        Plugin::VolumeRestrictions,
        Plugin::NodeVolumeLimits,
        Plugin::VolumeBinding,
        Plugin::VolumeZone,
        Plugin::PodTopologySpread,
        Plugin::InterPodAffinity,
        Plugin::DynamicResources,
        Plugin::GangScheduling,
        Plugin::DefaultPreemption,
        Plugin::NodeResourcesBalancedAllocation,
        Plugin::ImageLocality,
        Plugin::PrioritySort,
        Plugin::DefaultBinder,
        Plugin::Extender,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Plugin::SchedulingGates => "SchedulingGates",
            Plugin::NodeUnschedulable => "NodeUnschedulable",
            Plugin::NodeName => "NodeName",
            Plugin::TaintToleration => "TaintToleration",
            Plugin::NodeAffinity => "NodeAffinity",
            Plugin::NodePorts => "NodePorts",
            Plugin::NodeResourcesFit => "NodeResourcesFit",
            Plugin::VolumeRestrictions => "VolumeRestrictions",
            Plugin::NodeVolumeLimits => "NodeVolumeLimits",
            Plugin::VolumeBinding => "VolumeBinding",
            Plugin::VolumeZone => "VolumeZone",
            Plugin::PodTopologySpread => "PodTopologySpread",
            Plugin::InterPodAffinity => "InterPodAffinity",
            Plugin::DynamicResources => "DynamicResources",
            Plugin::GangScheduling => "GangScheduling",
            Plugin::DefaultPreemption => "DefaultPreemption",
            Plugin::NodeResourcesBalancedAllocation => "NodeResourcesBalancedAllocation",
            Plugin::ImageLocality => "ImageLocality",
            Plugin::PrioritySort => "PrioritySort",
            Plugin::DefaultBinder => "DefaultBinder",
            Plugin::Extender => "Extender",
        }
    }

    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plugin| plugin.name() == name && *plugin != Plugin::Extender)
    }

    /// As a member of a [`Plugins`] set.
    pub fn bit(self) -> Plugins {
        Plugins(1 << self as u32)
    }
}

/// A set of plugins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Plugins(u32);

impl Plugins {
    pub const ALL: Plugins = Plugins(u32::MAX);
    pub fn of(plugins: &[Plugin]) -> Self {
        plugins.iter().fold(Self::default(), |set, plugin| set.with(*plugin))
    }
    pub fn with(self, plugin: Plugin) -> Self {
        Self(self.0 | plugin.bit().0)
    }
    pub fn without(self, plugin: Plugin) -> Self {
        Self(self.0 & !plugin.bit().0)
    }
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    pub fn has(self, plugin: Plugin) -> bool {
        self.0 & plugin.bit().0 != 0
    }
    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn iter(self) -> impl Iterator<Item = Plugin> {
        Plugin::ALL.into_iter().filter(move |plugin| self.has(*plugin))
    }
}

/// How much each score counts; 0: not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    pub taint_toleration: i64,
    pub node_affinity: i64,
    pub resources_fit: i64,
    pub pod_topology_spread: i64,
    pub inter_pod_affinity: i64,
    pub balanced_allocation: i64,
    pub image_locality: i64,
    /// Of the alternatives that claims give.
    pub dynamic_resources: i64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            taint_toleration: 3,
            node_affinity: 2,
            resources_fit: 1,
            pod_topology_spread: 2,
            inter_pod_affinity: 2,
            balanced_allocation: 1,
            image_locality: 1,
            dynamic_resources: 2,
        }
    }
}

/// `NodeResourcesFitArgs.scoringStrategy.type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FitStrategy {
    LeastAllocated,
    MostAllocated,
    /// Points of (utilisation in percent, score of 0 to 100), by utilisation.
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

#[derive(Clone, Debug)]
pub struct Profile {
    pub scheduler_name: String,
    /// Those that filter.
    pub filters: Plugins,
    pub weights: Weights,
    pub fit_strategy: FitStrategy,
    /// Resource names with their weights.
    pub fit_resources: Vec<(String, i64)>,
    pub balanced_resources: Vec<String>,
    /// Extended resources that the fit does not look at, by name or by the group before the slash.
    pub ignored_resources: Vec<String>,
    pub ignored_resource_groups: Vec<String>,
    pub hard_pod_affinity_weight: i64,
    pub ignore_preferred_terms_of_existing_pods: bool,
    pub added_affinity: Option<NodeAffinity>,
    pub spread_constraints: Vec<TopologySpreadConstraint>,
    /// `spread_constraints` are the built-in ones.
    pub spread_built_in: bool,
    pub preemption: bool,
    pub bind_timeout_seconds: u64,
}

impl Profile {
    pub fn named(scheduler_name: &str) -> Self {
        Self { scheduler_name: scheduler_name.to_owned(), ..Self::default() }
    }

    /// The fit of CPU and memory alone, evenly: what almost everybody uses.
    pub fn scores_cpu_and_memory_evenly(&self) -> bool {
        matches!(&self.fit_resources[..], [(cpu, 1), (memory, 1)] if cpu == "cpu" && memory == "memory")
    }

    pub fn ignores(&self, resource: &str) -> bool {
        self.ignored_resources.iter().any(|name| name == resource)
            || resource.split_once('/').is_some_and(|(group, _)| self.ignored_resource_groups.iter().any(|name| name == group))
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
            filters: Plugins::ALL,
            weights: Weights::default(),
            fit_strategy: FitStrategy::LeastAllocated,
            fit_resources: vec![("cpu".into(), 1), ("memory".into(), 1)],
            balanced_resources: vec!["cpu".into(), "memory".into()],
            ignored_resources: Vec::new(),
            ignored_resource_groups: Vec::new(),
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms_of_existing_pods: false,
            added_affinity: None,
            spread_constraints: built_in_spread(),
            spread_built_in: true,
            preemption: true,
            bind_timeout_seconds: 600,
        }
    }
}

/// Upstream's `defaultingType: System`.
pub fn built_in_spread() -> Vec<TopologySpreadConstraint> {
    let constraint = |key: &str, max_skew| TopologySpreadConstraint {
        max_skew,
        topology_key: key.into(),
        when_unsatisfiable: "ScheduleAnyway".into(),
        ..TopologySpreadConstraint::default()
    };
    vec![constraint(HOSTNAME, 3), constraint(ZONE, 5)]
}
