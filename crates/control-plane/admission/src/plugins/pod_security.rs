//! PodSecurity: pods keep to the standard of their namespace's labels (KEP-2579).
//!
//! `enforce` refuses pods; `warn` and `audit` speak of pods and of the templates of workloads. Source: pod-security-admission
//! `admission/admission.go`.

mod checks;
mod policy;

use std::collections::{BTreeMap, HashSet};

use checks::{Finding, Pod, details, evaluate, reasons};
use meta::status::Status;
use policy::{Level, PREFIX, Policy, Standard};
use rules::value::{at, flag, list, name, text};
use serde_json::Value;

use crate::{Attributes, ConfigError, Lookup, Operation, Options, Plugin, Verdict, core};

/// Pods that a namespace's stricter policy is tried on at most.
const NAMESPACE_PODS_MAX: usize = 3_000;
/// Subresources of pods that do not change what runs.
const IGNORED_SUBRESOURCES: [&str; 8] = ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];
const NAME: &str = "PodSecurity";

#[derive(Default)]
pub struct PodSecurity {
    defaults: Policy,
    exempt_users: Vec<String>,
    exempt_namespaces: Vec<String>,
    exempt_runtime_classes: Vec<String>,
}

impl PodSecurity {
    pub fn new(options: &Options) -> Result<Self, ConfigError> {
        let Some(configuration) = options.configurations.get(NAME) else { return Ok(Self::default()) };
        let fail = |why: String| ConfigError::Plugin { name: NAME, why };
        let exempt = |field: &str| {
            let words = list(configuration, &format!("exemptions.{field}"));
            words.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect()
        };
        Ok(Self {
            defaults: Policy::read(at(configuration, "defaults")).map_err(fail)?,
            exempt_users: exempt("usernames"),
            exempt_namespaces: exempt("namespaces"),
            exempt_runtime_classes: exempt("runtimeClasses"),
        })
    }
}

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        NAME
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            let resource = attributes.gvr.resource.as_str();
            match (attributes.gvr.group.as_str(), resource, attributes.subresource.as_str()) {
                ("", "namespaces", "") => self.namespace(attributes, lookup).await,
                ("", "pods", subresource) if !IGNORED_SUBRESOURCES.contains(&subresource) => self.pod(attributes, lookup).await,
                (group, resource, "") => match template(group, resource) {
                    Some(path) => self.workload(attributes, path, lookup).await,
                    None => Ok(()),
                },
                _ => Ok(()),
            }
        })
    }
}

/// Where a workload has its pod template.
fn template(group: &str, resource: &str) -> Option<&'static str> {
    match (group, resource) {
        ("", "podtemplates") => Some("template"),
        ("", "replicationcontrollers") | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets") | ("batch", "jobs") => {
            Some("spec.template")
        }
        ("batch", "cronjobs") => Some("spec.jobTemplate.spec.template"),
        _ => None,
    }
}

impl PodSecurity {
    /// Exempt requests are recorded, not judged.
    fn is_exempt(&self, attributes: &Attributes) -> bool {
        let why = match () {
            () if self.exempt_namespaces.contains(&attributes.namespace) => "namespace",
            () if self.exempt_users.contains(&attributes.user.username) => "user",
            () => return false,
        };
        attributes.notes.annotate(format!("{PREFIX}exempt"), why);
        true
    }

    async fn policy(&self, attributes: &Attributes, lookup: &dyn Lookup) -> Result<Policy, Status> {
        let namespace = lookup.get(&core("namespaces"), "", &attributes.namespace).await?;
        let missing = || Status::internal(format!("failed to lookup namespace {:?}", attributes.namespace));
        let (policy, errors) = Policy::of(&*namespace.ok_or_else(missing)?, self.defaults);
        if !errors.is_empty() {
            let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
            attributes.notes.annotate(format!("{PREFIX}error"), format!("Failed to parse policy: {}", said.join(", ")));
        }
        Ok(policy)
    }

    async fn pod(&self, attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
        if self.is_exempt(attributes) {
            return Ok(());
        }
        let policy = self.policy(attributes, lookup).await?;
        let Some(pod) = attributes.object.as_ref().filter(|_| !policy.is_privileged()) else { return Ok(()) };
        if attributes.old.as_ref().is_some_and(|old| attributes.operation == Operation::Update && !is_significant(pod, old)) {
            return Ok(());
        }
        self.judge(attributes, policy, pod, true)
    }

    async fn workload(&self, attributes: &Attributes, template: &str, lookup: &dyn Lookup) -> Result<(), Status> {
        if self.is_exempt(attributes) {
            return Ok(());
        }
        // Workloads are never refused, so neither is one whose namespace cannot be read.
        let Ok(policy) = self.policy(attributes, lookup).await else { return Ok(()) };
        let quiet = policy.warn.level == Level::Privileged && policy.audit.level == Level::Privileged;
        match attributes.object.as_ref().map(|object| at(object, template)) {
            Some(template) if template.is_object() && !quiet => self.judge(attributes, policy, template, false),
            _ => Ok(()),
        }
    }

    fn judge(&self, attributes: &Attributes, policy: Policy, pod: &Value, enforce: bool) -> Result<(), Status> {
        if self.exempt_runtime_classes.iter().any(|class| class == text(pod, "spec.runtimeClassName")) {
            attributes.notes.annotate(format!("{PREFIX}exempt"), "runtimeClass");
            return Ok(());
        }
        let against = |standard: Standard| findings(standard, pod);
        let refused = match enforce {
            true => {
                attributes.notes.annotate(format!("{PREFIX}enforce-policy"), policy.enforce.to_string());
                against(policy.enforce)
            }
            false => Vec::new(),
        };
        let audited = against(policy.audit);
        if !audited.is_empty() {
            let said = format!("would violate PodSecurity \"{}\": {}", policy.audit, details(&audited));
            attributes.notes.annotate(format!("{PREFIX}audit-violations"), said);
        }
        if !refused.is_empty() {
            return Err(attributes.forbidden(format!("violates PodSecurity \"{}\": {}", policy.enforce, details(&refused))));
        }
        let warned = against(policy.warn);
        if !warned.is_empty() {
            attributes.notes.warn(format!("would violate PodSecurity \"{}\": {}", policy.warn, details(&warned)));
        }
        Ok(())
    }

    /// Labels must be in order; what a stricter policy would refuse of the pods that are there is told.
    async fn namespace(&self, attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
        let Some(namespace) = &attributes.object else { return Ok(()) };
        let (policy, errors) = Policy::of(namespace, self.defaults);
        let (before, old_errors) = match &attributes.old {
            Some(old) => Policy::of(old, self.defaults),
            None => (policy, Vec::new()),
        };
        if !errors.is_empty() && (old_errors.is_empty() || errors != old_errors) {
            return Err(Status::invalid("", "Namespace", &attributes.name, &errors));
        }
        let (new, old) = (policy.enforce, before.enforce);
        let relaxed = new.version == old.version && new.level <= old.level;
        if new == old || new.level == Level::Privileged || relaxed || self.exempt_namespaces.contains(&attributes.name) {
            return Ok(());
        }
        let pods = lookup.list(&core("pods"), &attributes.name).await?;
        let pods: Vec<&Value> = pods.iter().map(|pod| &**pod).collect();
        self.existing(attributes, new, &pods);
        Ok(())
    }

    fn existing(&self, attributes: &Attributes, standard: Standard, pods: &[&Value]) {
        let exempt = |pod: &&&Value| self.exempt_runtime_classes.iter().any(|class| class == text(pod, "spec.runtimeClassName"));
        let pods: Vec<&Value> = one_of_each_owner(pods.iter().filter(|pod| !exempt(pod)).copied());
        // By complaint: the first pod's name and how many.
        let mut complaints: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for pod in pods.iter().take(NAMESPACE_PODS_MAX) {
            let found = findings(standard, pod);
            if !found.is_empty() {
                let entry = complaints.entry(reasons(&found)).or_insert_with(|| (name(pod).to_owned(), 0));
                entry.1 += 1;
                if name(pod) < entry.0.as_str() {
                    entry.0 = name(pod).to_owned();
                }
            }
        }
        if pods.len() > NAMESPACE_PODS_MAX {
            let checked = format!("the first {NAMESPACE_PODS_MAX} of {} existing pods", pods.len());
            attributes.notes.warn(format!("new PodSecurity enforce level only checked against {checked}"));
        }
        if !complaints.is_empty() {
            let namespace = &attributes.name;
            let head = format!("existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{standard}\"");
            attributes.notes.warn(head);
        }
        let mut lines: Vec<String> = complaints.into_iter().map(|(why, (pod, count))| line(&pod, count, &why)).collect();
        lines.sort();
        lines.into_iter().for_each(|line| attributes.notes.warn(line));
    }
}

fn line(pod: &str, count: usize, why: &str) -> String {
    match count {
        1 => format!("{pod}: {why}"),
        2 => format!("{pod} (and 1 other pod): {why}"),
        many => format!("{pod} (and {} other pods): {why}", many - 1),
    }
}

/// Pods of one controller are alike: the first of each comes first.
fn one_of_each_owner<'a>(pods: impl Iterator<Item = &'a Value>) -> Vec<&'a Value> {
    let (mut first, mut others, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for pod in pods {
        let owner = list(pod, "metadata.ownerReferences").iter().find(|owner| flag(owner, "controller"));
        match owner.map(|owner| text(owner, "uid")) {
            Some(uid) if !seen.insert(uid) => others.push(pod),
            _ => first.push(pod),
        }
    }
    first.extend(others);
    first
}

fn findings(standard: Standard, pod: &Value) -> Vec<Finding> {
    evaluate(standard, &Pod { annotations: at(pod, "metadata.annotations"), spec: at(pod, "spec") })
}

/// Whether an update changes what the controls look at: only images and ephemeral containers can change.
fn is_significant(pod: &Value, old: &Value) -> bool {
    let images = |pod: &Value, kind: &str| -> Vec<(String, String)> {
        list(pod, kind).iter().map(|container| (text(container, "name").to_owned(), text(container, "image").to_owned())).collect()
    };
    ["spec.containers", "spec.initContainers", "spec.ephemeralContainers"].iter().any(|kind| images(pod, kind) != images(old, kind))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{Objects, run, write};

    fn namespace(modes: Value) -> Value {
        let labels: serde_json::Map<String, Value> =
            modes.as_object().expect("object").iter().map(|(mode, word)| (format!("{PREFIX}{mode}"), word.clone())).collect();
        json!({"metadata": {"name": "a", "labels": labels}})
    }

    fn pod() -> Value {
        json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"hostPID": true, "containers": [{"name": "c"}]}})
    }

    #[tokio::test]
    async fn modes_refuse_warn_and_note() {
        let why = "violate PodSecurity \"baseline:latest\": host namespaces (hostPID=true)";
        let refused = "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostPID=true)";
        let cases = [
            (json!({}), Ok(()), false, false),
            (json!({"enforce": "baseline"}), Err(refused.to_owned()), false, false),
            (json!({"warn": "baseline"}), Ok(()), true, false),
            (json!({"audit": "baseline"}), Ok(()), false, true),
        ];
        for (modes, verdict, warned, noted) in cases {
            let objects = Objects::default().with("namespaces", namespace(modes.clone()));
            let mut attributes = write(Operation::Create, "pods", "Pod", pod());
            assert_eq!(run(PodSecurity::default(), objects, &mut attributes).await, verdict, "{modes}");
            let expected: Vec<String> = if warned { vec![format!("would {why}")] } else { Vec::new() };
            assert_eq!(attributes.notes.take_warnings(), expected, "{modes}");
            let notes = attributes.notes.take_annotations();
            assert_eq!(notes.iter().any(|(key, _)| key == "pod-security.kubernetes.io/audit-violations"), noted, "{modes}");
        }
    }

    #[tokio::test]
    async fn workloads_are_warned_about_never_refused() {
        let objects = Objects::default().with("namespaces", namespace(json!({"enforce": "baseline"})));
        let object = json!({"metadata": {"name": "d", "namespace": "a"}, "spec": {"template": {"spec": pod()["spec"]}}});
        let mut attributes = write(Operation::Create, "deployments", "Deployment", object);
        attributes.gvr.group = "apps".into();
        assert_eq!(run(PodSecurity::default(), objects, &mut attributes).await, Ok(()));
        let expected = ["would violate PodSecurity \"baseline:latest\": host namespaces (hostPID=true)".to_owned()];
        assert_eq!(attributes.notes.take_warnings(), expected);
    }

    #[tokio::test]
    async fn exempt_users_namespaces_and_runtime_classes_are_not_judged() {
        let configuration = |exemptions: Value| {
            let configuration = json!({"defaults": {"enforce": "baseline"}, "exemptions": exemptions});
            PodSecurity::new(&Options { configurations: [(NAME.to_owned(), configuration)].into(), ..Options::default() }).expect("plugin")
        };
        let cases = [
            (json!({}), false),
            (json!({"usernames": ["admin"]}), true),
            (json!({"namespaces": ["a"]}), true),
            (json!({"runtimeClasses": ["vm"]}), true),
        ];
        for (exemptions, passes) in cases {
            let objects = Objects::default().with("namespaces", namespace(json!({})));
            let mut object = pod();
            object["spec"]["runtimeClassName"] = "vm".into();
            let mut attributes = write(Operation::Create, "pods", "Pod", object);
            let found = run(configuration(exemptions.clone()), objects, &mut attributes).await;
            assert_eq!(found.is_ok(), passes, "{exemptions}");
        }
    }

    #[tokio::test]
    async fn a_namespaces_labels_are_checked_and_tried_on_its_pods() {
        let mut attributes = write(Operation::Create, "namespaces", "Namespace", namespace(json!({"enforce": "strict"})));
        let refused = run(PodSecurity::default(), Objects::default(), &mut attributes).await.expect_err("refused");
        let expected = "Namespace \"a\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted";
        assert_eq!(refused, expected);
        let owned = |name: &str| {
            let mut pod = pod();
            pod["metadata"]["name"] = name.into();
            pod
        };
        let objects = Objects::default().with("pods", owned("p2")).with("pods", owned("p1"));
        let mut attributes = write(Operation::Update, "namespaces", "Namespace", namespace(json!({"enforce": "baseline"})));
        attributes.old = Some(namespace(json!({})));
        assert_eq!(run(PodSecurity::default(), objects, &mut attributes).await, Ok(()));
        let expected = [
            "existing pods in namespace \"a\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "p1 (and 1 other pod): host namespaces",
        ];
        assert_eq!(attributes.notes.take_warnings(), expected);
    }
}
