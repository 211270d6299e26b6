//! Who may use the kubelet's server: the API server by its certificate, everybody else by what the API says of them (TokenReview,
//! SubjectAccessReview). Answers hold for a while, as upstream's do.
//!
//! Source: `pkg/kubelet/server/auth.go`; KEP-2862 (a resource of its own for each kind of path).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use auth::UserInfo;
use client::Client;
use http::{Method, Request};
use hyper::body::Incoming;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};

/// How long answers hold (`KubeletConfiguration`: authentication.webhook.cacheTTL, authorization.webhook.cacheAuthorizedTTL and …UnauthorizedTTL).
const KNOWN: Duration = Duration::from_secs(120);
const ALLOWED: Duration = Duration::from_secs(300);
const REFUSED: Duration = Duration::from_secs(30);
/// Answers that are kept at most.
const KEPT_MAX: usize = 1_024;

/// Asks the API who callers are and what they may do.
pub struct Access {
    client: Client,
    node: String,
    /// Users and groups that may use everything, unasked.
    unasked: Vec<String>,
    users: Kept<Option<UserInfo>>,
    decisions: Kept<bool>,
}

/// Why a request goes no further.
#[derive(Debug)]
pub enum Refusal {
    Unauthorized,
    /// With upstream's sentence.
    Forbidden(String),
    /// The API could not be asked.
    Unknown(String),
}

impl Access {
    pub fn new(client: Client, node: &str, unasked: Vec<String>) -> Self {
        Self { client, node: node.to_owned(), unasked, users: Kept::default(), decisions: Kept::default() }
    }

    /// `certificate` is the user of the connection's certificate.
    pub async fn check(&self, certificate: Option<&UserInfo>, request: &Request<Incoming>) -> Result<(), Refusal> {
        let user = match (certificate, auth::authenticate::bearer(request.headers())) {
            (Some(user), _) => user.clone(),
            (None, Some(token)) => self.user(token).await?.ok_or(Refusal::Unauthorized)?,
            (None, None) => return Err(Refusal::Unauthorized),
        };
        if self.unasked.iter().any(|name| *name == user.username || user.groups.contains(name)) {
            return Ok(());
        }
        let verb = verb(request.method());
        let subresources = subresources(request.uri().path());
        for subresource in &subresources {
            if self.allows(&user, verb, subresource).await? {
                return Ok(());
            }
        }
        let asked = subresources.join(",");
        Err(Refusal::Forbidden(format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{asked}])\n", user.username)))
    }

    async fn user(&self, token: &str) -> Result<Option<UserInfo>, Refusal> {
        if let Some(known) = self.users.get(token) {
            return Ok(known);
        }
        let review =
            TokenReview { spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() }, ..TokenReview::default() };
        let status = self.client.create(&review).await.map_err(unknown)?.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|user| UserInfo {
            username: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        });
        self.users.keep(token.to_owned(), user.clone(), KNOWN);
        Ok(user)
    }

    async fn allows(&self, user: &UserInfo, verb: &str, subresource: &str) -> Result<bool, Refusal> {
        let question = format!("{verb} {subresource} {}", serde_json::to_string(user).unwrap_or_default());
        if let Some(known) = self.decisions.get(&question) {
            return Ok(known);
        }
        let attributes = ResourceAttributes {
            version: Some("v1".into()),
            resource: Some("nodes".into()),
            subresource: Some(subresource.into()),
            name: Some(self.node.clone()),
            verb: Some(verb.into()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.username.clone()),
                uid: Some(user.uid.clone()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let allowed = self.client.create(&review).await.map_err(unknown)?.status.is_some_and(|status| status.allowed);
        self.decisions.keep(question, allowed, if allowed { ALLOWED } else { REFUSED });
        Ok(allowed)
    }
}

fn unknown(error: client::Error) -> Refusal {
    tracing::warn!(%error, "ask the API about a caller");
    Refusal::Unknown(error.to_string())
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The parts of the Node of which one must be allowed. `proxy` opens everything that the others open one by one, but for what they are alone
/// responsible for.
fn subresources(path: &str) -> Vec<&'static str> {
    let within = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let alone = [("/stats", "stats"), ("/metrics", "metrics"), ("/logs", "log"), ("/checkpoint", "checkpoint"), ("/statusz", "statusz")];
    if let Some((_, subresource)) = alone.iter().find(|(root, _)| within(root)) {
        return vec![subresource];
    }
    let finer = [("/pods", "pods"), ("/runningpods", "pods"), ("/runningPods", "pods"), ("/healthz", "healthz"), ("/configz", "configz")];
    let finer = finer.iter().find(|(root, _)| within(root)).map(|(_, subresource)| *subresource);
    finer.into_iter().chain(["proxy"]).collect()
}

/// Answers with their ends.
struct Kept<T>(Mutex<HashMap<String, (T, Instant)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Kept<T> {
    fn get(&self, question: &str) -> Option<T> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer, until) = kept.get(question)?;
        (Instant::now() < *until).then(|| answer.clone())
    }

    fn keep(&self, question: String, answer: T, time: Duration) {
        let now = Instant::now();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.retain(|_, (_, until)| now < *until);
        }
        if kept.len() < KEPT_MAX {
            kept.insert(question, (answer, now + time));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_a_part_of_the_node() {
        let cases: &[(&str, &[&str])] = &[
            ("/stats/summary", &["stats"]),
            ("/metrics", &["metrics"]),
            ("/metrics/cadvisor", &["metrics"]),
            ("/metricsx", &["proxy"]),
            ("/logs/messages", &["log"]),
            ("/pods", &["pods", "proxy"]),
            ("/configz", &["configz", "proxy"]),
            ("/exec/a/b/c", &["proxy"]),
            ("/containerLogs/a/b/c", &["proxy"]),
        ];
        for (path, expected) in cases {
            assert_eq!(subresources(path), *expected, "{path}");
        }
    }
}
