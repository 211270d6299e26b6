//! Which writes a webhook or a policy is about: rules, selectors, match policy.
//!
//! Source: apiserver `pkg/admission/plugin/webhook/predicates`, `plugin/policy/matching`.

use meta::gvk::{GroupVersionKind, GroupVersionResource};
use meta::selector::LabelSelector;
use meta::status::Status;
use rules::value::{at, list, text, text_or};
use serde_json::Value;

use crate::{Attributes, Lookup, Operation, core};

/// One entry of `rules` or `resourceRules`.
#[derive(Clone, Debug, Default)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    /// Empty: every name.
    names: Vec<String>,
    scope: Scope,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scope {
    #[default]
    All,
    Cluster,
    Namespaced,
}

impl Rule {
    fn read(rule: &Value) -> Self {
        let words = |field: &str| list(rule, field).iter().filter_map(|word| word.as_str().map(str::to_owned)).collect();
        let scope = match text(rule, "scope") {
            "Cluster" => Scope::Cluster,
            "Namespaced" => Scope::Namespaced,
            _ => Scope::All,
        };
        let (groups, versions, resources) = (words("apiGroups"), words("apiVersions"), words("resources"));
        Self { operations: words("operations"), groups, versions, resources, names: words("resourceNames"), scope }
    }

    fn matches(&self, attributes: &Attributes, gvr: &GroupVersionResource) -> bool {
        // A Namespace has its own name as namespace, but is cluster-wide.
        let cluster = attributes.namespace.is_empty() || (gvr.group.is_empty() && gvr.resource == "namespaces");
        let in_scope = match self.scope {
            Scope::All => true,
            Scope::Cluster => cluster,
            Scope::Namespaced => !cluster,
        };
        let named = self.names.is_empty() || self.names.contains(&attributes.name);
        in_scope
            && named
            && has(&self.operations, attributes.operation.word())
            && has(&self.groups, &gvr.group)
            && has(&self.versions, &gvr.version)
            && self.resources.iter().any(|resource| covers(resource, &gvr.resource, &attributes.subresource))
    }
}

fn has(words: &[String], wanted: &str) -> bool {
    words.iter().any(|word| word == "*" || word == wanted)
}

/// `pods`, `pods/*`, `*/scale`, `*`, `*/*`.
fn covers(pattern: &str, resource: &str, subresource: &str) -> bool {
    let (wanted, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
    (wanted == "*" || wanted == resource) && (sub == "*" || sub == subresource)
}

/// What a write must be like.
#[derive(Clone, Debug)]
pub struct Criteria {
    rules: Vec<Rule>,
    exclude: Vec<Rule>,
    namespaces: LabelSelector,
    objects: LabelSelector,
    equivalent: bool,
}

/// The form in which a webhook or policy sees the write: as asked, or in an equivalent version that its rules name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Invocation {
    pub gvr: GroupVersionResource,
    pub gvk: GroupVersionKind,
}

impl Criteria {
    /// From a webhook (`rules` is the name of its list of rules) or a policy's `matchConstraints` (`resourceRules`).
    pub fn read(holder: &Value, rules: &str) -> Self {
        let selector = |field: &str| match at(holder, field) {
            // Absent selects everything.
            Value::Null => LabelSelector::everything(),
            given => LabelSelector::from_object(given).unwrap_or_else(|_| LabelSelector::nothing()),
        };
        Self {
            rules: list(holder, rules).iter().map(Rule::read).collect(),
            exclude: list(holder, "excludeResourceRules").iter().map(Rule::read).collect(),
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
            equivalent: text_or(holder, "matchPolicy", "Equivalent") == "Equivalent",
        }
    }

    /// Without rules (a binding's `matchResources`), only the selectors decide.
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// How the write is to be shown; `None` where it is not concerned.
    pub async fn matches(&self, attributes: &Attributes, lookup: &dyn Lookup) -> Result<Option<Invocation>, Status> {
        // The cheap and selective question first; a namespace that cannot be read fails only writes that are concerned.
        let Some(invocation) = self.invocation(attributes, lookup) else { return Ok(None) };
        if !self.selects_object(attributes) || !self.selects_namespace(attributes, lookup).await? {
            return Ok(None);
        }
        lookup.depends_on_more();
        Ok(Some(invocation))
    }

    fn invocation(&self, attributes: &Attributes, lookup: &dyn Lookup) -> Option<Invocation> {
        if self.excluded(attributes, lookup) {
            return None;
        }
        let as_asked = || Invocation { gvr: attributes.gvr.clone(), gvk: attributes.gvk.clone() };
        if self.rules.is_empty() || self.rules.iter().any(|rule| rule.matches(attributes, &attributes.gvr)) {
            return Some(as_asked());
        }
        if !self.equivalent {
            return None;
        }
        let equivalents = lookup.equivalents(&attributes.gvr, &attributes.subresource);
        self.rules.iter().find_map(|rule| {
            let (gvr, gvk) = equivalents.iter().find(|(gvr, _)| *gvr != attributes.gvr && rule.matches(attributes, gvr))?;
            Some(Invocation { gvr: gvr.clone(), gvk: gvk.clone() })
        })
    }

    fn excluded(&self, attributes: &Attributes, lookup: &dyn Lookup) -> bool {
        if self.exclude.is_empty() {
            return false;
        }
        let any = |gvr: &GroupVersionResource| self.exclude.iter().any(|rule| rule.matches(attributes, gvr));
        any(&attributes.gvr)
            || self.equivalent && lookup.equivalents(&attributes.gvr, &attributes.subresource).iter().any(|(gvr, _)| any(gvr))
    }

    fn selects_object(&self, attributes: &Attributes) -> bool {
        let selected =
            |object: &Option<Value>| object.as_ref().is_some_and(|object| self.objects.matches_object(at(object, "metadata.labels")));
        self.objects.is_everything() || selected(&attributes.object) || selected(&attributes.old)
    }

    async fn selects_namespace(&self, attributes: &Attributes, lookup: &dyn Lookup) -> Result<bool, Status> {
        if self.namespaces.is_everything() || attributes.namespace.is_empty() {
            return Ok(true);
        }
        let writes_itself = matches!(attributes.operation, Operation::Create | Operation::Update);
        if attributes.is("", "namespaces") && writes_itself {
            let own = attributes.object.as_ref().map(|object| at(object, "metadata.labels")).unwrap_or(&Value::Null);
            return Ok(self.namespaces.matches_object(own));
        }
        let namespace = lookup.get(&core("namespaces"), "", &attributes.namespace).await?;
        let namespace = namespace.ok_or_else(|| Status::not_found(&core("namespaces"), &attributes.namespace))?;
        Ok(self.namespaces.matches_object(at(&namespace, "metadata.labels")))
    }
}

/// Webhooks and policies never judge the objects that declare them: a broken one could not be removed.
pub fn is_exempt(attributes: &Attributes) -> bool {
    const KINDS: [&str; 6] = [
        "ValidatingWebhookConfiguration",
        "MutatingWebhookConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
    ];
    attributes.gvk.group == "admissionregistration.k8s.io" && KINDS.contains(&attributes.gvk.kind.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{Objects, write};

    fn rule(more: Value) -> Value {
        let mut rule = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]});
        rule.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        rule
    }

    #[tokio::test]
    async fn rules_and_selectors_choose_the_writes() {
        let cases = [
            (rule(json!({})), json!({}), true),
            (rule(json!({"operations": ["UPDATE", "DELETE"]})), json!({}), false),
            (rule(json!({"operations": ["*"]})), json!({}), true),
            (rule(json!({"apiGroups": ["apps"]})), json!({}), false),
            (rule(json!({"apiVersions": ["*"], "apiGroups": ["*"], "resources": ["*"]})), json!({}), true),
            (rule(json!({"resources": ["*/*"]})), json!({}), true),
            (rule(json!({"resources": ["pods/exec"]})), json!({}), false),
            (rule(json!({"scope": "Cluster"})), json!({}), false),
            (rule(json!({"scope": "Namespaced"})), json!({}), true),
            (rule(json!({"resourceNames": ["q"]})), json!({}), false),
            (rule(json!({})), json!({"objectSelector": {"matchLabels": {"app": "x"}}}), true),
            (rule(json!({})), json!({"objectSelector": {"matchLabels": {"app": "y"}}}), false),
            (rule(json!({})), json!({"namespaceSelector": {"matchLabels": {"team": "t"}}}), true),
            (rule(json!({})), json!({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}}), false),
            (rule(json!({})), json!({"excludeResourceRules": [rule(json!({"resourceNames": ["p"]}))]}), false),
        ];
        for (rule, mut holder, expected) in cases {
            let objects = Objects::default().with("namespaces", json!({"metadata": {"name": "a", "labels": {"team": "t"}}}));
            holder["rules"] = json!([rule]);
            let object = json!({"metadata": {"name": "p", "namespace": "a", "labels": {"app": "x"}}});
            let attributes = write(Operation::Create, "pods", "Pod", object);
            let found = Criteria::read(&holder, "rules").matches(&attributes, &objects).await.expect("no failure");
            assert_eq!(found.is_some(), expected, "{holder}");
        }
    }

    #[tokio::test]
    async fn a_namespace_that_is_not_there_fails_only_the_writes_it_concerns() {
        let holder =
            |resource: &str| json!({"rules": [rule(json!({"resources": [resource]}))], "namespaceSelector": {"matchLabels": {"a": "b"}}});
        let attributes = write(Operation::Create, "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "gone"}}));
        let objects = Objects::default();
        assert!(Criteria::read(&holder("secrets"), "rules").matches(&attributes, &objects).await.is_ok());
        let refused = Criteria::read(&holder("pods"), "rules").matches(&attributes, &objects).await.expect_err("refused");
        assert_eq!(refused.message, "namespaces \"gone\" not found");
    }
}
