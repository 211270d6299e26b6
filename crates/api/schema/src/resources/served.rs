//! Which of the built-in resources a server serves: GA versions, and what `--runtime-config` changes about that.
//!
//! Source: apiserver `pkg/server/resourceconfig`, `pkg/server/options/api_enablement.go`.

use std::collections::{BTreeMap, HashMap};

use super::{Resource, all};

/// A choice of resources. The default is every GA version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// What differs from [`Resource::served`], by group, version and plural.
    changed: HashMap<(&'static str, &'static str, &'static str), bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("runtime-config invalid key {0}")]
    Key(String),
    #[error("invalid value {key}={value}")]
    Value { key: String, value: String },
    #[error("unknown api groups {0}")]
    Group(String),
    #[error("group version {0} that has not been registered")]
    Version(String),
    #[error("invalid key {0}: group/version/resource and resource is always lowercase plural")]
    Resource(String),
    #[error("invalid runtime-config with only api/all=false")]
    Nothing,
}

/// The words that name stages instead of groups, in the order in which they count.
const STAGES: [&str; 4] = ["api/all", "api/ga", "api/beta", "api/alpha"];

impl Served {
    /// Reads `api/all=true,flowcontrol.apiserver.k8s.io/v1=false,…`; an empty value means true. Stages count first, then versions, then
    /// single resources. `v1` is the core group's.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
        let mut settings: BTreeMap<&str, &str> = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "true"))).collect();
        if settings.len() == 1 && settings.get("api/all") == Some(&"false") {
            return Err(Error::Nothing);
        }
        let mut served = Self::default();
        for stage in STAGES {
            if let Some(value) = settings.remove(stage) {
                served.set(boolean(stage, value)?, |resource| matches_stage(stage, resource.version));
            }
        }
        let (versions, resources): (Vec<_>, Vec<_>) = settings.into_iter().partition(|(key, _)| key.split('/').count() < 3);
        for (key, value) in versions.into_iter().chain(resources) {
            served.apply(key, boolean(key, value)?)?;
        }
        Ok(served)
    }

    /// One version of a group, or one resource of it.
    fn apply(&mut self, key: &str, enabled: bool) -> Result<(), Error> {
        let (group, version, plural) = match key.split('/').collect::<Vec<_>>().as_slice() {
            ["v1"] => ("", "v1", None),
            ["v1", plural] if !plural.is_empty() => ("", "v1", Some(*plural)),
            [group, version] => (*group, *version, None),
            [group, version, plural] => (*group, *version, Some(*plural)),
            _ => return Err(Error::Key(key.into())),
        };
        if !all().iter().any(|resource| resource.group == group) {
            return Err(Error::Group(format!("{group}/{version}")));
        }
        if !all().iter().any(|resource| (resource.group, resource.version) == (group, version)) {
            return Err(Error::Version(format!("{group}/{version}")));
        }
        if plural.is_some_and(|plural| plural.to_lowercase() != plural) {
            return Err(Error::Resource(key.into()));
        }
        self.set(enabled, |resource| {
            (resource.group, resource.version) == (group, version) && plural.is_none_or(|plural| resource.plural == plural)
        });
        Ok(())
    }

    fn set(&mut self, enabled: bool, wanted: impl Fn(&Resource) -> bool) {
        for resource in all().iter().filter(|resource| wanted(resource)) {
            let key = (resource.group, resource.version, resource.plural);
            match enabled == resource.served {
                true => self.changed.remove(&key),
                false => self.changed.insert(key, enabled),
            };
        }
    }

    pub fn contains(&self, resource: &Resource) -> bool {
        // Nearly every server serves the default: no look into the map.
        if self.changed.is_empty() {
            return resource.served;
        }
        self.changed.get(&(resource.group, resource.version, resource.plural)).copied().unwrap_or(resource.served)
    }

    /// The served ones in the table's order.
    pub fn resources(&self) -> impl Iterator<Item = &'static Resource> {
        all().iter().filter(|resource| self.contains(resource))
    }
}

fn boolean(key: &str, value: &str) -> Result<bool, Error> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Error::Value { key: key.into(), value: value.into() }),
    }
}

fn matches_stage(stage: &str, version: &str) -> bool {
    match stage {
        "api/all" => true,
        "api/beta" => version.contains("beta"),
        "api/alpha" => version.contains("alpha"),
        _ => !version.contains("beta") && !version.contains("alpha"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::find;
    use super::*;

    fn serves(config: &str, group: &str, version: &str, plural: &str) -> bool {
        Served::parse(config).unwrap().contains(find(group, version, plural).unwrap())
    }

    #[test]
    fn stages_count_before_versions_and_versions_before_resources() {
        let dra = "resource.k8s.io";
        let cases = [
            ("", dra, "v1", "resourceclaims", true),
            ("", dra, "v1beta1", "resourceclaims", false),
            ("api/all=true", dra, "v1beta1", "resourceclaims", true),
            ("api/all=true", "coordination.k8s.io", "v1alpha2", "leasecandidates", true),
            ("api/beta=true", dra, "v1beta1", "resourceclaims", true),
            ("api/beta=true", "coordination.k8s.io", "v1alpha2", "leasecandidates", false),
            ("api/beta,api/all=false", "apps", "v1", "deployments", false),
            ("resource.k8s.io/v1beta1=true", dra, "v1beta1", "resourceslices", true),
            ("resource.k8s.io/v1beta1=true", dra, "v1beta2", "resourceslices", false),
            ("resource.k8s.io/v1beta1=true,resource.k8s.io/v1beta1/resourceslices=false", dra, "v1beta1", "resourceslices", false),
            ("resource.k8s.io/v1beta1/resourceslices=true", dra, "v1beta1", "resourceclaims", false),
            ("autoscaling/v1=false", "autoscaling", "v1", "horizontalpodautoscalers", false),
            ("v1=false", "", "v1", "pods", false),
        ];
        for (config, group, version, plural, wanted) in cases {
            assert_eq!(serves(config, group, version, plural), wanted, "{config:?}: {group}/{version}/{plural}");
        }
        assert_eq!(Served::parse("api/ga=true").unwrap(), Served::default());
    }

    #[test]
    fn settings_that_name_nothing_are_refused_by_name() {
        let cases = [
            ("api/all=false", "invalid runtime-config with only api/all=false"),
            ("api/all=maybe", "invalid value api/all=maybe"),
            ("x=true", "runtime-config invalid key x"),
            ("a/b/c/d", "runtime-config invalid key a/b/c/d"),
            ("none.example.com/v1=true", "unknown api groups none.example.com/v1"),
            ("apps/v7=true", "group version apps/v7 that has not been registered"),
            ("apps/v1/Deployments=true", "invalid key apps/v1/Deployments: group/version/resource and resource is always lowercase plural"),
        ];
        for (config, sentence) in cases {
            assert_eq!(Served::parse(config).unwrap_err().to_string(), sentence, "{config}");
        }
    }
}
