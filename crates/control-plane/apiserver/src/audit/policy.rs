//! Which requests are told of, and how much: upstream's `audit.k8s.io/v1` Policy. The first rule that matches decides.
//!
//! Source: `apiserver/pkg/audit/policy`.

use auth::UserInfo;
use auth::authorize::Attributes;
use serde::Deserialize;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, serde::Serialize)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    #[serde(default)]
    #[allow(dead_code)]
    metadata: serde_json::Value,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What is decided for one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Choice {
    pub fn tells(&self, stage: Stage) -> bool {
        self.level > Level::None && !self.omit_stages.contains(&stage)
    }
}

/// Metadata of everything but the probes of health, told once it is answered.
const DEFAULT: &str = r#"{
    "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*"]},
        {"level": "Metadata"}
    ]
}"#;

impl Policy {
    /// The error names what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let policy: Self = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if policy.api_version != "audit.k8s.io/v1" || policy.kind != "Policy" {
            return Err(format!("expected kind Policy of audit.k8s.io/v1, found {} of {}", policy.kind, policy.api_version));
        }
        if policy.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".into());
        }
        if policy.rules.iter().any(|rule| !rule.non_resource_urls.is_empty() && !rule.resources.is_empty()) {
            return Err("rules cannot apply to both regular resources and non-resource URLs".into());
        }
        Ok(policy)
    }

    pub fn standard() -> Self {
        Self::parse(DEFAULT).unwrap_or_else(|why| unreachable!("the default audit policy: {why}"))
    }

    pub fn choose(&self, user: &UserInfo, asked: &Attributes<'_>) -> Choice {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(user, asked)) else {
            return Choice { level: Level::None, omit_stages: self.omit_stages.clone(), omit_managed_fields: self.omit_managed_fields };
        };
        Choice {
            level: if is_secret(asked) { rule.level.min(Level::Metadata) } else { rule.level },
            omit_stages: [self.omit_stages.as_slice(), rule.omit_stages.as_slice()].concat(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

/// Bodies that carry credentials are never told, whatever the policy says.
fn is_secret(asked: &Attributes<'_>) -> bool {
    match asked.resource {
        "secrets" => true,
        "serviceaccounts" => asked.subresource == "token",
        "tokenreviews" => true,
        _ => false,
    }
}

impl Rule {
    fn matches(&self, user: &UserInfo, asked: &Attributes<'_>) -> bool {
        let one_of = |list: &[String], value: &str| list.is_empty() || list.iter().any(|entry| entry == value);
        let in_groups = self.user_groups.is_empty() || user.groups.iter().any(|group| self.user_groups.contains(group));
        if !one_of(&self.users, &user.username) || !in_groups || !one_of(&self.verbs, asked.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            let chosen = self.resources.is_empty() || self.resources.iter().any(|resources| resources.matches(asked));
            return asked.is_resource && one_of(&self.namespaces, asked.namespace) && chosen;
        }
        self.non_resource_urls.is_empty() || !asked.is_resource && self.non_resource_urls.iter().any(|url| path_matches(asked.path, url))
    }
}

fn path_matches(path: &str, pattern: &str) -> bool {
    pattern == path || pattern.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

impl Resources {
    fn matches(&self, asked: &Attributes<'_>) -> bool {
        if self.group != asked.group && self.group != "*" {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let named = self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == asked.name);
        named && self.resources.iter().any(|pattern| resource_matches(pattern, asked))
    }
}

/// `pods`, `pods/log`, `*`, `*/status`, `pods/*`. A pattern without a subresource is not about subresources.
fn resource_matches(pattern: &str, asked: &Attributes<'_>) -> bool {
    match pattern.split_once('/') {
        None => pattern == "*" || asked.subresource.is_empty() && pattern == asked.resource,
        Some(("*", sub)) => sub == asked.subresource,
        Some((resource, "*")) => resource == asked.resource,
        Some((resource, sub)) => resource == asked.resource && sub == asked.subresource,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, users: ['system:kube-proxy'], verbs: [watch]}
- {level: None, nonResourceURLs: ['/healthz*']}
- {level: RequestResponse, resources: [{group: '', resources: [secrets, pods]}]}
- {level: Request, resources: [{group: apps}], namespaces: [a], omitStages: [ResponseStarted]}
- {level: Metadata, resources: [{group: '', resources: ['pods/*'], resourceNames: [p]}]}
- {level: Metadata, userGroups: [ops], omitManagedFields: true}
";

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = Policy::parse(POLICY).unwrap();
        let ask = |user: &str, verb: &str, what: &str, namespace: &str, name: &str| {
            let (group, resource) = what.split_once('/').unwrap();
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let asked = match group {
                "path" => Attributes { verb, path: name, ..Attributes::default() },
                group => Attributes { is_resource: true, verb, group, resource, subresource, namespace, name, ..Attributes::default() },
            };
            policy.choose(&UserInfo::authenticated(user, if user == "jane" { &["ops"] } else { &[] }), &asked)
        };
        let cases = [
            (ask("system:kube-proxy", "watch", "/services", "", ""), Level::None),
            (ask("joe", "get", "path/", "", "/healthz/etcd"), Level::None),
            (ask("joe", "get", "/pods", "a", "p"), Level::RequestResponse),
            (ask("joe", "get", "/secrets", "a", "s"), Level::Metadata),
            (ask("joe", "get", "/pods/log", "a", "p"), Level::Metadata),
            (ask("joe", "get", "/pods/log", "a", "q"), Level::None),
            (ask("joe", "create", "apps/deployments", "a", ""), Level::Request),
            (ask("joe", "create", "apps/deployments", "b", ""), Level::None),
            (ask("jane", "create", "apps/deployments", "b", ""), Level::Metadata),
        ];
        for (at, (choice, level)) in cases.into_iter().enumerate() {
            assert_eq!(choice.level, level, "case {at}");
        }
        assert_eq!(ask("joe", "create", "apps/deployments", "a", "").omit_stages, [Stage::RequestReceived, Stage::ResponseStarted]);
        assert!(ask("jane", "get", "path/", "", "/x").omit_managed_fields);
    }

    #[test]
    fn what_is_wrong_with_a_policy_is_named() {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        for (text, words) in [
            ("apiVersion: v1\nkind: Policy\nrules: []", "expected kind Policy"),
            (&format!("{head}rules: []"), "0 rules"),
            (&format!("{head}rules: [{{level: All}}]"), "All"),
            (&format!("{head}rules: [{{level: None, resources: [{{}}], nonResourceURLs: [x]}}]"), "both"),
        ] {
            let error = Policy::parse(text).err().unwrap();
            assert!(error.contains(words), "{error}");
        }
        assert!(
            Policy::standard().choose(&UserInfo::anonymous(), &Attributes { path: "/version", ..Attributes::default() }).level
                > Level::None
        );
    }
}
