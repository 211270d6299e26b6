//! The webhooks of all configurations, in the order in which they are asked: by the configuration's name, then as listed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use meta::gvk::GroupResource;
use meta::status::Status;
use rules::value::{self, at, int, list, text, text_or};
use serde_json::Value;

use super::transport::Destination;
use crate::Lookup;
use crate::conditions::Conditions;
use crate::matching::Criteria;

const TIMEOUT_SECONDS_DEFAULT: i64 = 10;

/// One webhook, ready to be asked.
pub struct Hook {
    pub configuration: String,
    pub name: String,
    /// Tells webhooks of the same name apart.
    pub id: String,
    /// Where it is; what is wrong with its configuration otherwise.
    pub destination: Result<Destination, String>,
    pub criteria: Criteria,
    pub conditions: Conditions,
    /// A webhook that cannot be asked lets the write pass.
    pub ignores_failure: bool,
    pub timeout: Duration,
    /// Whether a dry run may ask it.
    pub dry_runs: bool,
    pub review_versions: Vec<String>,
    /// It is asked again when a later one changed the object.
    pub reinvoked: bool,
}

impl Hook {
    fn read(configuration: &str, hook: &Value, seen: usize) -> Self {
        let name = text(hook, "name").to_owned();
        let seconds = int(hook, "timeoutSeconds").unwrap_or(TIMEOUT_SECONDS_DEFAULT).clamp(1, 30);
        Self {
            configuration: configuration.to_owned(),
            id: format!("{configuration}/{name}/{seen}"),
            destination: Destination::read(at(hook, "clientConfig")),
            criteria: Criteria::read(hook, "rules"),
            conditions: Conditions::compile(list(hook, "matchConditions")),
            ignores_failure: text_or(hook, "failurePolicy", "Fail") == "Ignore",
            timeout: Duration::from_secs(seconds.unsigned_abs()),
            dry_runs: matches!(text(hook, "sideEffects"), "None" | "NoneOnDryRun"),
            review_versions: list(hook, "admissionReviewVersions").iter().filter_map(|word| word.as_str().map(str::to_owned)).collect(),
            reinvoked: text(hook, "reinvocationPolicy") == "IfNeeded",
            name,
        }
    }
}

/// The webhooks of one resource of configurations.
pub struct Source {
    resource: GroupResource,
    compiled: ArcSwapOption<(u64, Vec<Hook>)>,
}

impl Source {
    /// `mutatingwebhookconfigurations` or `validatingwebhookconfigurations`.
    pub fn new(resource: &str) -> Self {
        let resource = GroupResource { group: "admissionregistration.k8s.io".into(), resource: resource.into() };
        Self { resource, compiled: ArcSwapOption::empty() }
    }

    /// Those of the configurations that exist now.
    pub async fn hooks(&self, lookup: &dyn Lookup) -> Result<Arc<(u64, Vec<Hook>)>, Status> {
        let revision = lookup.revision(&self.resource);
        if let Some(known) = self.compiled.load_full().filter(|known| Some(known.0) == revision) {
            return Ok(known);
        }
        let objects = lookup.list(&self.resource, "").await?;
        let fresh = Arc::new((revision.unwrap_or(0), compile(&objects)));
        self.compiled.store(revision.map(|_| fresh.clone()));
        Ok(fresh)
    }
}

fn compile(configurations: &[Arc<Value>]) -> Vec<Hook> {
    let mut sorted: Vec<&Arc<Value>> = configurations.iter().collect();
    sorted.sort_by_key(|configuration| value::name(configuration).to_owned());
    let mut hooks = Vec::new();
    for configuration in sorted {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for hook in list(configuration, "webhooks") {
            let count = seen.entry(text(hook, "name")).or_default();
            hooks.push(Hook::read(value::name(configuration), hook, *count));
            *count += 1;
        }
    }
    hooks
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn webhooks_are_asked_by_configuration_name_and_then_as_listed() {
        let configuration = |name: &str, hooks: &[&str]| {
            let hooks: Vec<Value> = hooks.iter().map(|name| json!({"name": name})).collect();
            Arc::new(json!({"metadata": {"name": name}, "webhooks": hooks}))
        };
        let hooks = compile(&[configuration("b", &["z", "a", "a"]), configuration("a", &["m"])]);
        let ids: Vec<&str> = hooks.iter().map(|hook| hook.id.as_str()).collect();
        assert_eq!(ids, ["a/m/0", "b/z/0", "b/a/0", "b/a/1"]);
    }
}
