//! Upstream's `AuthorizationConfiguration`: who decides, in which order; read, checked in upstream's words, compiled.
//!
//! Source: `apiserver/pkg/apis/apiserver/v1/types.go`, `…/validation/validation.go`, `pkg/authorization/cel`; KEP-3221.

use std::collections::HashSet;
use std::path::{Path as File, PathBuf};
use std::time::Duration;

use meta::field::{Error, Path};
use meta::names;
use serde::Deserialize;
use serde_json::Value;

use super::conditions::Conditions;

const GROUP: &str = "apiserver.config.k8s.io";
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
const KNOWN: [&str; 5] = ["AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];
const TIMEOUT_MAX: Duration = Duration::from_secs(30);
const AUTHORIZED: Duration = Duration::from_secs(300);
const UNAUTHORIZED: Duration = Duration::from_secs(30);

/// One who is asked.
#[derive(Debug)]
pub enum Step {
    AlwaysAllow,
    AlwaysDeny,
    Node,
    Rbac,
    Webhook(Webhook),
}

/// Somebody outside who decides.
#[derive(Debug)]
pub struct Webhook {
    pub name: String,
    /// How long answers hold; absent: every request is asked about.
    pub authorized: Option<Duration>,
    pub unauthorized: Option<Duration>,
    pub timeout: Duration,
    /// `v1` or `v1beta1`.
    pub review_version: String,
    /// Silence refuses; otherwise the next one is asked.
    pub failure_denies: bool,
    pub kubeconfig: PathBuf,
    /// All must hold for it to be asked.
    pub conditions: Conditions,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: String,
    kind: String,
    #[serde(default)]
    authorizers: Vec<Authorizer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Authorizer {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    name: String,
    webhook: Option<Settings>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
struct Settings {
    #[serde(rename = "authorizedTTL")]
    authorized_ttl: String,
    cache_authorized_requests: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized_ttl: String,
    cache_unauthorized_requests: Option<bool>,
    timeout: String,
    subject_access_review_version: String,
    match_condition_subject_access_review_version: String,
    failure_policy: String,
    connection_info: Connection,
    match_conditions: Vec<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Connection {
    #[serde(rename = "type")]
    kind: String,
    kube_config_file: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    #[serde(default)]
    expression: String,
}

/// What stands without a file.
pub fn standard() -> Vec<Step> {
    vec![Step::Node, Step::Rbac]
}

/// The steps of a configuration in their order.
pub fn parse(file: &Value) -> Result<Vec<Step>, String> {
    let document: Document = serde_json::from_value(file.clone()).map_err(|error| error.to_string())?;
    let version = document.api_version.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix('/'));
    if !version.is_some_and(|version| VERSIONS.contains(&version)) || document.kind != "AuthorizationConfiguration" {
        return Err(format!("expected kind AuthorizationConfiguration of {GROUP}/v1, found {} of {}", document.kind, document.api_version));
    }
    let mut check = Check::default();
    let steps = check.steps(document.authorizers);
    let sentences: Vec<String> = check.errors.iter().map(ToString::to_string).collect();
    match sentences.as_slice() {
        [] => Ok(steps),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

/// What is wrong so far.
#[derive(Default)]
struct Check {
    errors: Vec<Error>,
}

impl Check {
    fn steps(&mut self, authorizers: Vec<Authorizer>) -> Vec<Step> {
        let root = Path::new("authorizers");
        if authorizers.is_empty() {
            self.errors.push(Error::required(&root, "at least one authorization mode must be defined"));
        }
        let (mut steps, mut kinds, mut seen) = (Vec::new(), HashSet::new(), HashSet::new());
        for (index, authorizer) in authorizers.into_iter().enumerate() {
            let path = root.index(index);
            let kind = authorizer.kind.as_str();
            let at = path.child("type");
            if kind.is_empty() {
                self.errors.push(Error::required(&at, ""));
                continue;
            }
            if !KNOWN.contains(&kind) {
                self.errors.push(Error::not_supported(&at, kind, &KNOWN));
                continue;
            }
            if !kinds.insert(kind.to_owned()) && kind != "Webhook" {
                self.errors.push(Error::duplicate(&at, kind));
                continue;
            }
            self.name(&path.child("name"), &authorizer.name, &mut seen);
            steps.extend(self.step(&path, authorizer));
        }
        steps
    }

    fn name(&mut self, path: &Path, name: &str, seen: &mut HashSet<String>) {
        let wrong = names::dns1123_subdomain(name);
        if name.is_empty() {
            self.errors.push(Error::required(path, ""));
        } else if !seen.insert(name.to_owned()) {
            self.errors.push(Error::duplicate(path, name));
        } else if !wrong.is_empty() {
            self.errors.push(Error::invalid(path, name, format!("authorizer name is invalid: {}", wrong.join(", "))));
        }
    }

    fn step(&mut self, path: &Path, authorizer: Authorizer) -> Option<Step> {
        let at = path.child("webhook");
        match (authorizer.kind.as_str(), authorizer.webhook) {
            ("Webhook", Some(settings)) => return self.webhook(path, authorizer.name, settings).map(Step::Webhook),
            ("Webhook", None) => {
                self.errors.push(Error::required(&at, "required when type=Webhook"));
                return None;
            }
            (_, Some(_)) => self.errors.push(Error::invalid(&at, "non-null", "may only be specified when type=Webhook")),
            _ => {}
        }
        Some(match authorizer.kind.as_str() {
            "AlwaysAllow" => Step::AlwaysAllow,
            "AlwaysDeny" => Step::AlwaysDeny,
            "Node" => Step::Node,
            _ => Step::Rbac,
        })
    }

    /// Upstream's paths leave the word `webhook` out.
    fn webhook(&mut self, path: &Path, name: String, settings: Settings) -> Option<Webhook> {
        let timeout = self.duration(&path.child("timeout"), &settings.timeout, None, TIMEOUT_MAX, "must be > 0s and <= 30s");
        let ever = Duration::MAX;
        let authorized = self.duration(&path.child("authorizedTTL"), &settings.authorized_ttl, Some(AUTHORIZED), ever, "must be > 0s");
        let unauthorized =
            self.duration(&path.child("unauthorizedTTL"), &settings.unauthorized_ttl, Some(UNAUTHORIZED), ever, "must be > 0s");
        self.one_of(&path.child("subjectAccessReviewVersion"), &settings.subject_access_review_version, &["v1", "v1beta1"]);
        let at = path.child("matchConditionSubjectAccessReviewVersion");
        match settings.match_condition_subject_access_review_version.as_str() {
            "" if settings.match_conditions.is_empty() => {}
            "" => self.errors.push(Error::required(&at, "required if match conditions are specified")),
            version => self.one_of(&at, version, &["v1"]),
        }
        self.one_of(&path.child("failurePolicy"), &settings.failure_policy, &["NoOpinion", "Deny"]);
        let kubeconfig = self.connection(&path.child("connectionInfo"), &settings.connection_info);
        let sources: Vec<String> = settings.match_conditions.into_iter().map(|condition| condition.expression).collect();
        let conditions = Conditions::compile(&path.child("matchConditions"), &sources);
        let conditions = conditions.map_err(|errors| self.errors.extend(errors)).ok();
        Some(Webhook {
            name,
            authorized: authorized.filter(|_| settings.cache_authorized_requests != Some(false)),
            unauthorized: unauthorized.filter(|_| settings.cache_unauthorized_requests != Some(false)),
            timeout: timeout?,
            review_version: settings.subject_access_review_version,
            failure_denies: settings.failure_policy == "Deny",
            kubeconfig: kubeconfig?,
            conditions: conditions?,
        })
    }

    fn one_of(&mut self, path: &Path, value: &str, known: &[&str]) {
        if value.is_empty() {
            self.errors.push(Error::required(path, ""));
        } else if !known.contains(&value) {
            self.errors.push(Error::not_supported(path, value, known));
        }
    }

    fn duration(&mut self, path: &Path, text: &str, default: Option<Duration>, longest: Duration, rule: &str) -> Option<Duration> {
        let nanoseconds = if text.is_empty() { Some(0) } else { meta::time::parse_duration(text) };
        match nanoseconds {
            None => self.errors.push(Error::invalid(path, text, "it is no duration such as 3s or 5m0s")),
            Some(0) if default.is_some() => return default,
            Some(0) => self.errors.push(Error::required(path, "")),
            Some(nanoseconds) => match u64::try_from(nanoseconds).map(Duration::from_nanos) {
                Ok(duration) if duration <= longest => return Some(duration),
                _ => self.errors.push(Error::invalid(path, text, rule)),
            },
        }
        None
    }

    fn connection(&mut self, path: &Path, connection: &Connection) -> Option<PathBuf> {
        match connection.kind.as_str() {
            "KubeConfigFile" => {}
            "InClusterConfig" => {
                self.errors.push(Error::invalid(&path.child("type"), "InClusterConfig", "is not allowed for the API server itself"));
                return None;
            }
            kind => {
                self.one_of(&path.child("type"), kind, &["InClusterConfig", "KubeConfigFile"]);
                return None;
            }
        }
        let at = path.child("kubeConfigFile");
        let wrong = |file: &str, why: &str| Some(Error::invalid(&at, file, why));
        let file = connection.kube_config_file.as_deref().unwrap_or_default();
        let error = match (file, std::fs::metadata(file)) {
            ("", _) => Some(Error::required(&at, "")),
            _ if !File::new(file).is_absolute() => wrong(file, "must be an absolute path"),
            (_, Err(error)) => wrong(file, &format!("error loading file: {error}")),
            (_, Ok(found)) if !found.is_file() => wrong(file, "must be a regular file"),
            _ => None,
        };
        self.errors.extend(error.clone());
        error.is_none().then(|| PathBuf::from(file))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file(authorizers: Value) -> Value {
        json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": authorizers})
    }

    #[test]
    fn the_order_and_the_webhooks_are_the_files() {
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        let webhook = |more: Value| {
            let mut settings = json!({"timeout": "3s", "subjectAccessReviewVersion": "v1", "failurePolicy": "Deny",
                "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": kubeconfig.path()}});
            more.as_object().unwrap().iter().for_each(|(key, value)| settings[key] = value.clone());
            json!([{"type": "Node", "name": "node"}, {"type": "Webhook", "name": "a", "webhook": settings}, {"type": "RBAC", "name": "rbac"}])
        };
        let steps = parse(&file(webhook(json!({"authorizedTTL": "1m", "cacheUnauthorizedRequests": false})))).unwrap();
        let [Step::Node, Step::Webhook(found), Step::Rbac] = steps.as_slice() else { panic!("{steps:?}") };
        assert_eq!((found.authorized, found.unauthorized), (Some(Duration::from_secs(60)), None));
        assert!(found.failure_denies);
        let wrong = [
            (json!([]), "authorizers: Required value: at least one authorization mode must be defined"),
            (json!([{"type": "ABAC", "name": "a"}]), "authorizers[0].type: Unsupported value: \"ABAC\""),
            (json!([{"type": "RBAC", "name": "a"}, {"type": "RBAC", "name": "b"}]), "authorizers[1].type: Duplicate value: \"RBAC\""),
            (json!([{"type": "RBAC"}]), "authorizers[0].name: Required value"),
            (json!([{"type": "RBAC", "name": "A_"}]), "authorizer name is invalid"),
            (json!([{"type": "Webhook", "name": "a"}]), "authorizers[0].webhook: Required value: required when type=Webhook"),
            (webhook(json!({"timeout": "31s"})), "authorizers[1].timeout: Invalid value: \"31s\": must be > 0s and <= 30s"),
            (webhook(json!({"timeout": ""})), "authorizers[1].timeout: Required value"),
            (webhook(json!({"failurePolicy": "Fail"})), "Unsupported value: \"Fail\": supported values: \"NoOpinion\", \"Deny\""),
            (webhook(json!({"matchConditions": [{"expression": "true"}]})), "required if match conditions are specified"),
            (
                webhook(
                    json!({"matchConditionSubjectAccessReviewVersion": "v1", "matchConditions": [{"expression": "request.users == ''"}]}),
                ),
                "authorizers[1].matchConditions[0].expression: Invalid value: \"request.users == ''\": compilation failed",
            ),
            (webhook(json!({"connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "a"}})), "must be an absolute path"),
            (webhook(json!({"connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "/nowhere"}})), "error loading file"),
        ];
        for (authorizers, words) in wrong {
            let why = parse(&file(authorizers)).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
    }
}
