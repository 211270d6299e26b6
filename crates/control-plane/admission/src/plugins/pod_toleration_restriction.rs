//! PodTolerationRestriction: a namespace gives its pods tolerations and bounds those they may have.

use meta::status::Status;
use rules::value::{annotation, has, list, set, text, text_or};
use serde_json::{Value, json};

use crate::{Attributes, ConfigError, Lookup, Operation, Options, Plugin, Verdict, core};

const NAME: &str = "PodTolerationRestriction";
const DEFAULTS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const ALLOWED: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";

/// What the cluster says where a namespace says nothing.
#[derive(Default)]
pub struct PodTolerationRestriction {
    default: Vec<Value>,
    allowed: Vec<Value>,
}

impl PodTolerationRestriction {
    pub fn new(options: &Options) -> Result<Self, ConfigError> {
        let Some(configuration) = options.configurations.get(NAME) else { return Ok(Self::default()) };
        Ok(Self { default: list(configuration, "default").to_vec(), allowed: list(configuration, "whitelist").to_vec() })
    }

    async fn of_namespace(
        &self,
        attributes: &Attributes,
        key: &str,
        otherwise: &[Value],
        lookup: &dyn Lookup,
    ) -> Result<Vec<Value>, Status> {
        let namespace = lookup.get(&core("namespaces"), "", &attributes.namespace).await?;
        let namespace = namespace.ok_or_else(|| Status::not_found(&core("namespaces"), &attributes.namespace))?;
        match annotation(&namespace, key) {
            None => Ok(otherwise.to_vec()),
            Some("") => Ok(Vec::new()),
            Some(given) => serde_json::from_str(given).map_err(|error| Status::bad_request(error.to_string())),
        }
    }
}

/// Whether `wide` tolerates everything that `narrow` does.
fn covers(wide: &Value, narrow: &Value) -> bool {
    let any_key = text(wide, "key").is_empty() && text(wide, "operator") == "Exists";
    let same_key = any_key || text(wide, "key") == text(narrow, "key");
    let same_effect = text(wide, "effect").is_empty() || text(wide, "effect") == text(narrow, "effect");
    let same_value = text(wide, "operator") == "Exists"
        || (text_or(narrow, "operator", "Equal") == "Equal" && text(wide, "value") == text(narrow, "value"));
    let seconds = |toleration: &Value| toleration["tolerationSeconds"].as_i64();
    let as_long = match (seconds(wide), seconds(narrow)) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => wide >= narrow,
    };
    same_key && same_effect && same_value && as_long
}

fn is_best_effort(pod: &Value) -> bool {
    let all = ["spec.initContainers", "spec.containers"].into_iter().flat_map(|kind| list(pod, kind));
    let asks = |container: &Value| {
        ["requests", "limits"].iter().any(|part| ["cpu", "memory"].iter().any(|name| has(container, &format!("resources.{part}.{name}"))))
    };
    !all.into_iter().any(asks)
}

impl Plugin for PodTolerationRestriction {
    fn name(&self) -> &'static str {
        NAME
    }
    fn on_by_default(&self) -> bool {
        false
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            if !attributes.is("", "pods") || attributes.operation != Operation::Create {
                return Ok(());
            }
            let defaults = self.of_namespace(attributes, DEFAULTS, &self.default, lookup).await?;
            let Some(pod) = attributes.object.as_mut() else { return Ok(()) };
            let mut all = list(pod, "spec.tolerations").to_vec();
            let pressure = json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"});
            let more = defaults.into_iter().chain((!is_best_effort(pod)).then_some(pressure));
            for toleration in more {
                if !all.iter().any(|present| covers(present, &toleration)) {
                    all.retain(|present| !covers(&toleration, present));
                    all.push(toleration);
                }
            }
            if !all.is_empty() {
                set(pod, "spec.tolerations", all);
            }
            Ok(())
        })
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            let Some(pod) = attributes.object.as_ref().filter(|_| attributes.is("", "pods")) else { return Ok(()) };
            let allowed = self.of_namespace(attributes, ALLOWED, &self.allowed, lookup).await?;
            let fits = |toleration: &Value| allowed.iter().any(|allowed| covers(allowed, toleration));
            if allowed.is_empty() || list(pod, "spec.tolerations").iter().all(fits) {
                return Ok(());
            }
            Err(attributes
                .forbidden("pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn a_namespace_gives_and_bounds_tolerations() {
        let toleration = |key: &str| json!({"key": key, "operator": "Exists"});
        for (own, passes) in [(json!([]), true), (json!([toleration("gpu")]), false)] {
            let annotations = json!({DEFAULTS: json!([toleration("team")]).to_string(), ALLOWED: json!([toleration("team")]).to_string()});
            let objects = Objects::default().with("namespaces", json!({"metadata": {"name": "a", "annotations": annotations}}));
            let object = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"tolerations": own}});
            let mut attributes = write(Operation::Create, "pods", "Pod", object);
            assert_eq!(run(PodTolerationRestriction::default(), objects, &mut attributes).await.is_ok(), passes);
            assert!(list(&attributes.object.expect("object"), "spec.tolerations").contains(&toleration("team")));
        }
    }
}
