//! A server outside that decides: asked by SubjectAccessReview, its answers kept for a while.
//!
//! Source: `apiserver/plugin/pkg/authorizer/webhook`.

use std::time::Instant;

use admission::Lookup;
use auth::UserInfo;
use auth::authorize::configuration;
use auth::authorize::{Attributes, Decision};
use meta::selector::{FieldSelector, LabelSelector, Operator};
use serde_json::{Map, Value, json};

use super::answers::{Answers, Key};
use crate::outcall::Remote;

/// What the requester controls of a question; longer ones are not kept, for they may be an attempt to fill the memory.
const KEPT_BYTES_MAX: usize = 10_000;

pub struct Webhook {
    settings: configuration::Webhook,
    remote: Remote,
    answers: Answers<Decision>,
}

impl Webhook {
    pub fn new(settings: configuration::Webhook) -> Result<Self, String> {
        let remote = Remote::from_kubeconfig(&settings.kubeconfig).map_err(|why| format!("authorizer {:?}: {why}", settings.name))?;
        Ok(Self { settings, remote, answers: Answers::default() })
    }

    pub async fn decide(&self, user: &UserInfo, asked: &Attributes<'_>, lookup: &dyn Lookup) -> Decision {
        let spec = spec(user, asked, true);
        if !self.settings.conditions.is_empty() {
            match self.settings.conditions.hold(&spec) {
                Ok(true) => {}
                Ok(false) => return Decision::NoOpinion(String::new()),
                Err(why) => return self.failed(&why),
            }
        }
        let question = self::spec(user, asked, false).to_string();
        let key = Key::of(&[question.as_bytes()]);
        if let Some(known) = self.answers.get(key) {
            self.counted(&known);
            return known;
        }
        let began = Instant::now();
        let answer = self.ask(user, asked, lookup).await;
        if let Some(metrics) = super::metrics() {
            let failure = answer.as_ref().err().map(String::as_str);
            metrics.webhook(&self.settings.name, failure, !self.settings.failure_denies, began.elapsed());
        }
        match answer {
            Ok(decision) => {
                self.counted(&decision);
                let time = if decision.is_allowed() { self.settings.authorized } else { self.settings.unauthorized };
                if let Some(time) = time.filter(|_| controlled(asked) < KEPT_BYTES_MAX) {
                    self.answers.keep(key, decision.clone(), time);
                }
                decision
            }
            Err(why) => {
                tracing::warn!(authorizer = self.settings.name, why, "failed to make webhook authorizer request");
                self.failed(&why)
            }
        }
    }

    fn counted(&self, decision: &Decision) {
        if let Some(metrics) = super::metrics() {
            metrics.decided(&self.settings.name, decision);
        }
    }

    fn failed(&self, why: &str) -> Decision {
        match self.settings.failure_denies {
            true => Decision::Deny(why.to_owned()),
            false => Decision::NoOpinion(String::new()),
        }
    }

    async fn ask(&self, user: &UserInfo, asked: &Attributes<'_>, lookup: &dyn Lookup) -> Result<Decision, String> {
        let mut spec = spec(user, asked, false);
        let version = &self.settings.review_version;
        if version == "v1beta1"
            && let Some(spec) = spec.as_object_mut()
            && let Some(groups) = spec.remove("groups")
        {
            spec.insert("group".into(), groups);
        }
        let review = json!({
            "kind": "SubjectAccessReview", "apiVersion": format!("authorization.k8s.io/{version}"), "metadata": {"creationTimestamp": null},
            "spec": spec, "status": {"allowed": false},
        });
        let (code, bytes) = self.remote.post(review.to_string().into(), self.settings.timeout, lookup).await?;
        if !code.is_success() {
            return Err(format!("the authorizer {:?} answered {code}", self.settings.name));
        }
        let answer: Value =
            serde_json::from_slice(&bytes).map_err(|error| format!("the answer of authorizer {:?}: {error}", self.settings.name))?;
        let status = &answer["status"];
        let Some(allowed) = status["allowed"].as_bool() else {
            return Err(format!("the answer of authorizer {:?} has no status.allowed", self.settings.name));
        };
        let reason = status["reason"].as_str().unwrap_or_default().to_owned();
        Ok(match (allowed, status["denied"] == true) {
            (true, true) => Decision::Deny("webhook subject access review returned both allow and deny response".into()),
            (false, true) => Decision::Deny(reason),
            (true, false) => Decision::Allow(reason),
            (false, false) => Decision::NoOpinion(reason),
        })
    }
}

fn controlled(asked: &Attributes<'_>) -> usize {
    let Attributes { namespace, verb, group, version, resource, subresource, name, path, .. } = asked;
    [namespace, verb, group, version, resource, subresource, name, path].iter().map(|text| text.len()).sum()
}

/// The review's spec. Expressions see every field, also where it is empty; on the wire empty ones are left out.
fn spec(user: &UserInfo, asked: &Attributes<'_>, whole: bool) -> Value {
    let mut spec = Map::new();
    let say = |spec: &mut Map<String, Value>, name: &str, value: Value| {
        let empty = match &value {
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if whole || !empty {
            spec.insert(name.to_owned(), value);
        }
    };
    if asked.is_resource {
        let mut resource = Map::new();
        let texts = [
            ("namespace", asked.namespace),
            ("verb", asked.verb),
            ("group", asked.group),
            ("version", asked.version),
            ("resource", asked.resource),
            ("subresource", asked.subresource),
            ("name", asked.name),
        ];
        texts.into_iter().for_each(|(name, text)| say(&mut resource, name, text.into()));
        for (name, requirements) in [("fieldSelector", fields(asked.field_selector)), ("labelSelector", labels(asked.label_selector))] {
            if !requirements.is_empty() {
                resource.insert(name.into(), json!({"requirements": requirements}));
            }
        }
        spec.insert("resourceAttributes".into(), resource.into());
    } else {
        spec.insert("nonResourceAttributes".into(), json!({"path": asked.path, "verb": asked.verb}));
    }
    say(&mut spec, "user", user.username.as_str().into());
    say(&mut spec, "groups", json!(user.groups));
    say(&mut spec, "extra", json!(user.extra));
    say(&mut spec, "uid", user.uid.as_str().into());
    spec.into()
}

/// Selectors only narrow: what cannot be read is left out, and the question is the broader one.
fn fields(text: &str) -> Vec<Value> {
    let selector = FieldSelector::parse(text).unwrap_or_default();
    let one = |term: &meta::selector::FieldTerm| json!({"key": term.field, "operator": if term.equal { "In" } else { "NotIn" }, "values": [term.value]});
    selector.terms.iter().map(one).collect()
}

fn labels(text: &str) -> Vec<Value> {
    let selector = LabelSelector::parse(text).unwrap_or_default();
    let one = |requirement: &meta::selector::Requirement| {
        let operator = match requirement.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => "In",
            Operator::NotIn | Operator::NotEquals => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            Operator::GreaterThan | Operator::LessThan => return None,
        };
        let mut told = json!({"key": requirement.key, "operator": operator});
        if !requirement.values.is_empty() {
            told["values"] = json!(requirement.values);
        }
        Some(told)
    };
    selector.requirements.iter().filter_map(one).collect()
}
