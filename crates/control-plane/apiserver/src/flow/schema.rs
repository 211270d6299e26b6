//! FlowSchemas and PriorityLevelConfigurations as they are asked: which flow a request belongs to.
//!
//! Source: `apiserver/pkg/util/flowcontrol/rule.go`, `pkg/apis/flowcontrol/bootstrap` (the objects of [`standard`]).

use auth::UserInfo;
use auth::authorize::Attributes;
use meta::field::{Error, Path};
use serde_json::{Value, json};

use crate::object::meta;
use crate::registry::catalog::Kind;

/// A FlowSchema.
#[derive(Clone, Debug)]
pub struct Schema {
    pub name: String,
    pub uid: String,
    pub level: String,
    precedence: i64,
    /// `ByUser`, `ByNamespace` or empty.
    distinguisher: String,
    rules: Vec<Rule>,
}

/// Requests of these users for these things. In lists `*` is everything.
#[derive(Clone, Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

#[derive(Clone, Debug)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

#[derive(Clone, Debug)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    /// `pods`, `pods/status`.
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster_scope: bool,
}

#[derive(Clone, Debug)]
struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == wanted)
}

impl Schema {
    pub fn parse(object: &Value) -> Self {
        let (meta, spec) = (&object["metadata"], &object["spec"]);
        Self {
            name: text(&meta["name"]),
            uid: text(&meta["uid"]),
            level: text(&spec["priorityLevelConfiguration"]["name"]),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1_000),
            distinguisher: text(&spec["distinguisherMethod"]["type"]),
            rules: spec["rules"].as_array().into_iter().flatten().map(Rule::parse).collect(),
        }
    }

    /// By precedence, then by name.
    pub fn order(&self) -> (i64, &str) {
        (self.precedence, &self.name)
    }

    pub fn matches(&self, user: &UserInfo, asked: &Attributes<'_>) -> bool {
        let covers = |rule: &Rule| match asked.is_resource {
            true => rule.resources.iter().any(|rule| rule.covers(asked)),
            false => rule.paths.iter().any(|rule| rule.covers(asked)),
        };
        self.rules.iter().any(|rule| rule.subjects.iter().any(|subject| subject.is(user)) && covers(rule))
    }

    /// What tells the flows of this schema apart.
    pub fn flow<'a>(&self, user: &'a UserInfo, asked: &Attributes<'a>) -> &'a str {
        match self.distinguisher.as_str() {
            "ByUser" => &user.username,
            "ByNamespace" => asked.namespace,
            _ => "",
        }
    }
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        let list = |name: &str| rule[name].as_array().into_iter().flatten();
        Self {
            subjects: list("subjects").filter_map(Subject::parse).collect(),
            resources: list("resourceRules").map(ResourceRule::parse).collect(),
            paths: list("nonResourceRules").map(PathRule::parse).collect(),
        }
    }
}

impl Subject {
    fn parse(subject: &Value) -> Option<Self> {
        let account = &subject["serviceAccount"];
        match subject["kind"].as_str()? {
            "User" => Some(Subject::User(text(&subject["user"]["name"]))),
            "Group" => Some(Subject::Group(text(&subject["group"]["name"]))),
            "ServiceAccount" => Some(Subject::ServiceAccount { namespace: text(&account["namespace"]), name: text(&account["name"]) }),
            _ => None,
        }
    }

    fn is(&self, user: &UserInfo) -> bool {
        let is = |given: &str, value: &str| given == "*" || given == value;
        match self {
            Subject::User(name) => is(name, &user.username),
            Subject::Group(name) => name == "*" || user.groups.contains(name),
            Subject::ServiceAccount { namespace, name } => {
                auth::tokens::account(&user.username).is_some_and(|(of, account)| namespace == of && is(name, account))
            }
        }
    }
}

impl ResourceRule {
    fn parse(rule: &Value) -> Self {
        Self {
            verbs: texts(&rule["verbs"]),
            groups: texts(&rule["apiGroups"]),
            resources: texts(&rule["resources"]),
            namespaces: texts(&rule["namespaces"]),
            cluster_scope: rule["clusterScope"] == true,
        }
    }

    fn covers(&self, asked: &Attributes<'_>) -> bool {
        let place = if asked.namespace.is_empty() { self.cluster_scope } else { has(&self.namespaces, asked.namespace) };
        let named = |entry: &String| match asked.subresource {
            "" => entry == asked.resource,
            sub => entry.split_once('/') == Some((asked.resource, sub)),
        };
        place
            && has(&self.verbs, asked.verb)
            && has(&self.groups, asked.group)
            && self.resources.iter().any(|entry| entry == "*" || named(entry))
    }
}

impl PathRule {
    fn parse(rule: &Value) -> Self {
        Self { verbs: texts(&rule["verbs"]), paths: texts(&rule["nonResourceURLs"]) }
    }

    fn covers(&self, asked: &Attributes<'_>) -> bool {
        let covers = |pattern: &String| {
            pattern == "*"
                || pattern == asked.path
                || pattern.strip_suffix("/*").is_some_and(|dir| asked.path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')))
        };
        has(&self.verbs, asked.verb) && self.paths.iter().any(covers)
    }
}

const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// The mandatory and the suggested objects: levels, then schemas.
pub fn standard() -> (Vec<Value>, Vec<Value>) {
    let named = |name: &str, spec: Value| json!({"metadata": {"name": name, "annotations": {(AUTOUPDATE): "true"}}, "spec": spec});
    let queued = |name: &str, shares: i64, lendable: i64, queues: i64, hand: i64| {
        let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 50});
        named(
            name,
            json!({"type": "Limited", "limited": {"nominalConcurrencyShares": shares, "lendablePercent": lendable,
            "limitResponse": {"type": "Queue", "queuing": queuing}}}),
        )
    };
    let levels = vec![
        named("exempt", json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}})),
        named(
            "catch-all",
            json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}}}),
        ),
        queued("system", 30, 33, 64, 6),
        queued("node-high", 40, 25, 64, 6),
        queued("leader-election", 10, 0, 16, 4),
        queued("workload-high", 40, 50, 128, 6),
        queued("workload-low", 100, 90, 128, 6),
        queued("global-default", 20, 50, 128, 6),
    ];
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let user = |name: &str| json!({"kind": "User", "user": {"name": name}});
    let accounts = json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": "*"}});
    let resources = |verbs: &[&str], group: &str, resources: &[&str], cluster: bool| {
        let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
        if cluster {
            rule["clusterScope"] = true.into();
        }
        rule
    };
    let all = |subjects: Vec<Value>| {
        json!({"subjects": subjects, "resourceRules": [resources(&["*"], "*", &["*"], true)],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]})
    };
    let schema = |name: &str, level: &str, precedence: i64, by: &str, rule: Value| {
        let mut spec = json!({"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rule]});
        if !by.is_empty() {
            spec["distinguisherMethod"] = json!({"type": by});
        }
        named(name, spec)
    };
    let everybody = || vec![group("system:unauthenticated"), group("system:authenticated")];
    let (users, namespaces) = ("ByUser", "ByNamespace");
    let electors = vec![user("system:kube-controller-manager"), user("system:kube-scheduler"), accounts.clone()];
    let leases = |verbs: &[&str]| resources(verbs, "coordination.k8s.io", &["leases"], false);
    let schemas = vec![
        schema("exempt", "exempt", 1, "", all(vec![group("system:masters")])),
        schema(
            "probes",
            "exempt",
            2,
            "",
            json!({"subjects": everybody(), "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]}),
        ),
        schema(
            "system-leader-election",
            "leader-election",
            100,
            users,
            json!({"subjects": electors, "resourceRules": [leases(&["get", "create", "update"])]}),
        ),
        schema(
            "system-node-high",
            "node-high",
            400,
            users,
            json!({"subjects": [group("system:nodes")],
            "resourceRules": [resources(&["*"], "", &["nodes", "nodes/status"], true), leases(&["*"])]}),
        ),
        schema("system-nodes", "system", 500, users, all(vec![group("system:nodes")])),
        schema("kube-controller-manager", "workload-high", 800, namespaces, all(vec![user("system:kube-controller-manager")])),
        schema("kube-scheduler", "workload-high", 800, namespaces, all(vec![user("system:kube-scheduler")])),
        schema("kube-system-service-accounts", "workload-high", 900, namespaces, all(vec![accounts])),
        schema("service-accounts", "workload-low", 9_000, users, all(vec![group("system:serviceaccounts")])),
        schema("global-default", "global-default", 9_900, users, all(everybody())),
        schema("catch-all", "catch-all", 10_000, users, all(everybody())),
    ];
    (levels, schemas)
}

/// Nobody gives the last resort another form. Source: `pkg/apis/flowcontrol/validation` (`MandatoryFlowSchemas`).
pub fn fixed(kind: &Kind, object: &Value) -> Option<Error> {
    let name = meta(object, "name");
    let schema = match kind.facts.plural {
        "flowschemas" => true,
        "prioritylevelconfigurations" => false,
        _ => return None,
    };
    // The shares of the exempt level are its administrator's.
    if kind.facts.group != super::GROUP || !(name == "catch-all" || name == "exempt" && schema) {
        return None;
    }
    let (levels, schemas) = standard();
    let mut wanted = if schema { schemas } else { levels }.into_iter().find(|object| meta(object, "name") == name)?;
    wanted["kind"] = kind.facts.kind.into();
    wanted["apiVersion"] = kind.api_version().into();
    crate::codec::default(kind, &mut wanted);
    let same = rules::value::same(&wanted["spec"], &object["spec"]);
    (!same).then(|| Error::invalid(&Path::new("spec"), object["spec"].clone(), format!("spec of '{name}' must equal the fixed value")))
}

/// The specs of the mandatory ones are kept; those of suggested ones too, as long as their annotation says so.
pub fn repair(old: &mut Value, wanted: &Value) {
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    let mandatory = matches!(name, "exempt" | "catch-all");
    // The shares of the exempt level are its administrator's.
    let adjustable = name == "exempt" && old["spec"]["exempt"].is_object();
    if !adjustable && (mandatory || old["metadata"]["annotations"][AUTOUPDATE] == "true") {
        old["spec"] = wanted["spec"].clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_has_its_flow() {
        let mut schemas: Vec<Schema> = standard().1.iter().map(Schema::parse).collect();
        schemas.sort_by(|a, b| a.order().cmp(&b.order()));
        let who = |name: &str, groups: &[&str]| UserInfo::authenticated(name, groups);
        let account = who("system:serviceaccount:kube-system:job-controller", &["system:serviceaccounts"]);
        let cases = [
            (who("admin", &["system:masters"]), "get", "/pods", "a", "exempt", ""),
            (
                who("system:node:n", &["system:nodes"]),
                "update",
                "coordination.k8s.io/leases",
                "kube-node-lease",
                "system-node-high",
                "system:node:n",
            ),
            (who("system:node:n", &["system:nodes"]), "patch", "/nodes/status", "", "system-node-high", "system:node:n"),
            (who("system:node:n", &["system:nodes"]), "patch", "/pods/status", "a", "system-nodes", "system:node:n"),
            (account.clone(), "create", "/pods", "a", "kube-system-service-accounts", "a"),
            (
                account,
                "update",
                "coordination.k8s.io/leases",
                "kube-system",
                "system-leader-election",
                "system:serviceaccount:kube-system:job-controller",
            ),
            (
                who("system:serviceaccount:a:b", &["system:serviceaccounts"]),
                "list",
                "/pods",
                "a",
                "service-accounts",
                "system:serviceaccount:a:b",
            ),
            (who("system:kube-scheduler", &[]), "create", "/pods/binding", "a", "kube-scheduler", "a"),
            (who("jane", &[]), "list", "/pods", "", "global-default", "jane"),
            (UserInfo::anonymous(), "get", "path", "/healthz", "probes", ""),
            (UserInfo::anonymous(), "get", "path", "/version", "global-default", "system:anonymous"),
        ];
        for (user, verb, what, place, schema, flow) in cases {
            let (group, resource) = what.split_once('/').unwrap_or(("", what));
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let asked = match what {
                "path" => Attributes { verb, path: place, ..Attributes::default() },
                _ => Attributes { is_resource: true, verb, group, resource, subresource, namespace: place, ..Attributes::default() },
            };
            let found = schemas.iter().find(|schema| schema.matches(&user, &asked)).unwrap();
            assert_eq!((found.name.as_str(), found.flow(&user, &asked)), (schema, flow), "{} {verb} {what}", user.username);
        }
    }
}
