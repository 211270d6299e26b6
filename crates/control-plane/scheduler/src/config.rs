//! Upstream's configuration file: `KubeSchedulerConfiguration` of `kubescheduler.config.k8s.io/v1`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;
use serde_json::Value;

use crate::profile::{FitStrategy, Plugin, Profile, built_in_spread};
use crate::run::Config;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("scheduler configuration: {0}")]
    Syntax(String),
    #[error("scheduler configuration: {path}: {why}")]
    Field { path: String, why: String },
}

fn field(path: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Field { path: path.into(), why: why.into() }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    api_version: String,
    kind: String,
    profiles: Vec<FileProfile>,
    extenders: Vec<crate::extender::Config>,
    pod_initial_backoff_seconds: Option<u64>,
    pod_max_backoff_seconds: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FileProfile {
    scheduler_name: Option<String>,
    plugins: Option<FilePlugins>,
    plugin_config: Vec<PluginConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FilePlugins {
    multi_point: Set,
    pre_filter: Set,
    filter: Set,
    post_filter: Set,
    score: Set,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Set {
    enabled: Vec<Entry>,
    disabled: Vec<Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    name: String,
    weight: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PluginConfig {
    name: String,
    args: Value,
}

/// Reads the file's YAML or JSON text.
pub fn parse(text: &str) -> Result<Config, Error> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| Error::Syntax(error.to_string()))?;
    if file.kind != "KubeSchedulerConfiguration" {
        return Err(field("kind", format!("{:?} is not KubeSchedulerConfiguration", file.kind)));
    }
    if file.api_version != "kubescheduler.config.k8s.io/v1" {
        return Err(field("apiVersion", format!("{:?} is not kubescheduler.config.k8s.io/v1", file.api_version)));
    }
    let first = Duration::from_secs(file.pod_initial_backoff_seconds.unwrap_or(1));
    let max = Duration::from_secs(file.pod_max_backoff_seconds.unwrap_or(10));
    if first.is_zero() || max < first {
        return Err(field("podMaxBackoffSeconds", "must be greater than or equal to podInitialBackoffSeconds, which must be above 0"));
    }
    let mut profiles = Vec::new();
    for (at, one) in file.profiles.into_iter().enumerate() {
        profiles.push(profile(one).map_err(|error| prefixed(&format!("profiles[{at}]"), error))?);
    }
    if profiles.is_empty() {
        profiles.push(Profile::default());
    }
    for (at, one) in profiles.iter().enumerate() {
        if profiles[..at].iter().any(|other| other.scheduler_name == one.scheduler_name) {
            return Err(field(format!("profiles[{at}].schedulerName"), format!("Duplicate value: {:?}", one.scheduler_name)));
        }
    }
    for (at, extender) in file.extenders.iter().enumerate() {
        let path = |name: &str| format!("extenders[{at}].{name}");
        if extender.enable_https || extender.url_prefix.starts_with("https") {
            return Err(field(path("enableHTTPS"), "extenders are called over plain HTTP only"));
        }
        if !extender.prioritize_verb.is_empty() && extender.weight <= 0 {
            return Err(field(path("weight"), "must have a positive weight applied to it"));
        }
    }
    ignore_managed(&mut profiles, &file.extenders);
    Ok(Config { profiles, extenders: file.extenders, backoff_first: first, backoff_max: max })
}

/// What an extender manages alone, the fit leaves to it.
fn ignore_managed(profiles: &mut [Profile], extenders: &[crate::extender::Config]) {
    let managed = extenders.iter().flat_map(|extender| &extender.managed_resources).filter(|managed| managed.ignored_by_scheduler);
    let names: Vec<String> = managed.map(|managed| managed.name.clone()).collect();
    profiles.iter_mut().for_each(|profile| profile.ignored_resources.extend(names.iter().cloned()));
}

fn prefixed(prefix: &str, error: Error) -> Error {
    match error {
        Error::Field { path, why } => Error::Field { path: format!("{prefix}.{path}"), why },
        other => other,
    }
}

fn profile(file: FileProfile) -> Result<Profile, Error> {
    let mut profile = Profile::named(file.scheduler_name.as_deref().unwrap_or("default-scheduler"));
    for PluginConfig { name, args } in file.plugin_config {
        configure(&mut profile, &name, args).map_err(|error| prefixed(&format!("pluginConfig[{name}].args"), error))?;
    }
    if let Some(plugins) = file.plugins {
        switch(&mut profile, &plugins)?;
    }
    Ok(profile)
}

/// Takes plugins off and puts them on.
fn switch(profile: &mut Profile, plugins: &FilePlugins) -> Result<(), Error> {
    let sets = [
        ("multiPoint", &plugins.multi_point, true, true, true),
        ("preFilter", &plugins.pre_filter, true, false, false),
        ("filter", &plugins.filter, true, false, false),
        ("postFilter", &plugins.post_filter, false, true, false),
        ("score", &plugins.score, false, false, true),
    ];
    for (point, set, filters, preempts, scores) in sets {
        for (on, entry) in set.disabled.iter().map(|entry| (false, entry)).chain(set.enabled.iter().map(|entry| (true, entry))) {
            let all = entry.name == "*" && !on;
            let named = Plugin::of(&entry.name);
            if named.is_none() && !all {
                let path = format!("plugins.{point}.{}", if on { "enabled" } else { "disabled" });
                return Err(field(path, format!("{:?} does not exist; there are the plugins of upstream's default registry", entry.name)));
            }
            for plugin in Plugin::ALL.into_iter().filter(|plugin| all || Some(*plugin) == named) {
                if filters && plugin != Plugin::Extender {
                    profile.filters = if on { profile.filters.with(plugin) } else { profile.filters.without(plugin) };
                }
                if preempts && plugin == Plugin::DefaultPreemption {
                    profile.preemption = on;
                }
                if scores && let Some(weight) = weight_of(profile, plugin) {
                    let default = if *weight == 0 { default_weight(plugin) } else { *weight };
                    *weight = if on { entry.weight.filter(|weight| *weight > 0).unwrap_or(default) } else { 0 };
                }
            }
        }
    }
    Ok(())
}

fn weight_of(profile: &mut Profile, plugin: Plugin) -> Option<&mut i64> {
    let weights = &mut profile.weights;
    Some(match plugin {
        Plugin::TaintToleration => &mut weights.taint_toleration,
        Plugin::NodeAffinity => &mut weights.node_affinity,
        Plugin::NodeResourcesFit => &mut weights.resources_fit,
        Plugin::PodTopologySpread => &mut weights.pod_topology_spread,
        Plugin::InterPodAffinity => &mut weights.inter_pod_affinity,
        Plugin::NodeResourcesBalancedAllocation => &mut weights.balanced_allocation,
        Plugin::ImageLocality => &mut weights.image_locality,
        Plugin::DynamicResources => &mut weights.dynamic_resources,
        _ => return None,
    })
}

fn default_weight(plugin: Plugin) -> i64 {
    weight_of(&mut Profile::default(), plugin).map_or(1, |weight| *weight)
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Args {
    ignored_resources: Vec<String>,
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<Strategy>,
    resources: Vec<Resource>,
    hard_pod_affinity_weight: Option<i64>,
    ignore_preferred_terms_of_existing_pods: bool,
    added_affinity: Option<NodeAffinity>,
    default_constraints: Vec<TopologySpreadConstraint>,
    defaulting_type: Option<String>,
    bind_timeout_seconds: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Strategy {
    r#type: String,
    resources: Vec<Resource>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Ratio {
    shape: Vec<Point>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Point {
    utilization: i64,
    score: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Resource {
    name: String,
    weight: Option<i64>,
}

fn configure(profile: &mut Profile, plugin: &str, args: Value) -> Result<(), Error> {
    if args.is_null() {
        return Ok(());
    }
    let args: Args = serde_json::from_value(args).map_err(|error| field("", error.to_string()))?;
    match plugin {
        "NodeResourcesFit" => {
            profile.ignored_resources = args.ignored_resources;
            profile.ignored_resource_groups = args.ignored_resource_groups;
            if let Some(strategy) = args.scoring_strategy {
                fit_strategy(profile, strategy)?;
            }
        }
        "NodeResourcesBalancedAllocation" if !args.resources.is_empty() => {
            profile.balanced_resources = args.resources.into_iter().map(|resource| resource.name).collect();
        }
        "InterPodAffinity" => {
            profile.hard_pod_affinity_weight = args.hard_pod_affinity_weight.unwrap_or(1);
            if !(0..=100).contains(&profile.hard_pod_affinity_weight) {
                return Err(field("hardPodAffinityWeight", "not in valid range [0, 100]"));
            }
            profile.ignore_preferred_terms_of_existing_pods = args.ignore_preferred_terms_of_existing_pods;
        }
        "NodeAffinity" => profile.added_affinity = args.added_affinity,
        "PodTopologySpread" => match args.defaulting_type.as_deref().unwrap_or("System") {
            "List" => (profile.spread_constraints, profile.spread_built_in) = (args.default_constraints, false),
            "System" if args.default_constraints.is_empty() => profile.spread_constraints = built_in_spread(),
            _ => return Err(field("defaultingType", "when .defaultConstraints are not empty, defaultingType must be List")),
        },
        "VolumeBinding" => profile.bind_timeout_seconds = args.bind_timeout_seconds.unwrap_or(600),
        "DefaultPreemption" | "DynamicResources" | "NodeResourcesBalancedAllocation" => {}
        other => return Err(field("", format!("plugin {other:?} takes no arguments"))),
    }
    Ok(())
}

fn fit_strategy(profile: &mut Profile, strategy: Strategy) -> Result<(), Error> {
    profile.fit_strategy = match strategy.r#type.as_str() {
        "" | "LeastAllocated" => FitStrategy::LeastAllocated,
        "MostAllocated" => FitStrategy::MostAllocated,
        "RequestedToCapacityRatio" => {
            let shape = strategy.requested_to_capacity_ratio.unwrap_or_default().shape;
            let rising = shape.windows(2).all(|pair| pair[0].utilization < pair[1].utilization);
            let valid = |point: &Point| (0..=100).contains(&point.utilization) && (0..=10).contains(&point.score);
            if shape.is_empty() || !rising || !shape.iter().all(valid) {
                let why = "at least one point is needed, utilizations must rise from 0 to 100, scores are 0 to 10";
                return Err(field("scoringStrategy.requestedToCapacityRatio.shape", why));
            }
            FitStrategy::RequestedToCapacityRatio(shape.into_iter().map(|point| (point.utilization, point.score * 10)).collect())
        }
        other => return Err(field("scoringStrategy.type", format!("Unsupported value: {other:?}"))),
    };
    if !strategy.resources.is_empty() {
        let weight = |resource: &Resource| resource.weight.filter(|weight| *weight > 0).unwrap_or(1);
        profile.fit_resources = strategy.resources.iter().map(|resource| (resource.name.clone(), weight(resource))).collect();
    }
    Ok(())
}

/// Go's notation for durations as far as configuration files use it: `5s`, `100ms`, `1m30s`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (mut total, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| at + digits);
        let seconds = match &rest[digits..unit] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = &rest[unit..];
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";

    #[test]
    fn upstreams_file_sets_profiles_plugins_weights_and_arguments() {
        let config = parse(&format!(
            "{HEAD}podMaxBackoffSeconds: 20
profiles:
- schedulerName: packing
  plugins:
    score:
      disabled: [{{name: ImageLocality}}]
      enabled: [{{name: NodeAffinity, weight: 7}}]
    multiPoint:
      disabled: [{{name: TaintToleration}}]
  pluginConfig:
  - name: NodeResourcesFit
    args:
      scoringStrategy:
        type: RequestedToCapacityRatio
        resources: [{{name: nvidia.com/gpu, weight: 3}}]
        requestedToCapacityRatio: {{shape: [{{utilization: 0, score: 0}}, {{utilization: 100, score: 10}}]}}
  - name: PodTopologySpread
    args: {{defaultingType: List, defaultConstraints: []}}
- schedulerName: default-scheduler
"
        ))
        .unwrap();
        let [packing, default] = &config.profiles[..] else { panic!() };
        assert_eq!((packing.weights.image_locality, packing.weights.node_affinity, packing.weights.taint_toleration), (0, 7, 0));
        assert!(!packing.filters.has(Plugin::TaintToleration) && packing.filters.has(Plugin::NodeAffinity));
        assert_eq!(packing.fit_strategy, FitStrategy::RequestedToCapacityRatio(vec![(0, 0), (100, 100)]));
        assert_eq!(packing.fit_resources, [("nvidia.com/gpu".to_owned(), 3)]);
        assert!(packing.spread_constraints.is_empty() && !packing.spread_built_in);
        assert_eq!(default.weights, Profile::default().weights);
        assert_eq!(config.backoff_max, Duration::from_secs(20));
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let cases = [
            ("kind: Deployment\napiVersion: apps/v1", "scheduler configuration: kind: \"Deployment\" is not KubeSchedulerConfiguration"),
            (
                &format!("{HEAD}profiles: [{{}}, {{}}]"),
                "scheduler configuration: profiles[1].schedulerName: Duplicate value: \"default-scheduler\"",
            ),
            (
                &format!("{HEAD}profiles: [{{plugins: {{score: {{enabled: [{{name: Mine}}]}}}}}}]"),
                "scheduler configuration: profiles[0].plugins.score.enabled: \"Mine\" does not exist; there are the plugins of upstream's default registry",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(duration("5"), None);
    }
}
