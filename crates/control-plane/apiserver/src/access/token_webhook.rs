//! A server outside that knows tokens: asked by TokenReview, its answers kept for a while.
//!
//! Source: `apiserver/plugin/pkg/authenticator/token/webhook`, `pkg/authentication/token/cache`.

use std::path::PathBuf;
use std::time::Duration;

use admission::Lookup;
use auth::UserInfo;
use serde_json::{Value, json};

use super::answers::{Answers, Key};
use super::authenticate::Known;
use crate::outcall::Remote;

const TIMEOUT: Duration = Duration::from_secs(30);

/// How the server is reached (`--authentication-token-webhook-*`).
#[derive(Clone, Debug)]
pub struct TokenWebhook {
    pub kubeconfig: PathBuf,
    /// How long an answer holds, whichever it is.
    pub cache: Duration,
    /// `v1` or `v1beta1`.
    pub version: String,
}

pub struct Webhook {
    remote: Remote,
    cache: Duration,
    version: String,
    answers: Answers<Result<(UserInfo, Vec<String>), String>>,
}

impl Webhook {
    pub fn new(settings: &TokenWebhook) -> Result<Self, String> {
        if !["v1", "v1beta1"].contains(&settings.version.as_str()) {
            let version = &settings.version;
            return Err(format!("unsupported authentication webhook version {version:?}, supported versions are \"v1\", \"v1beta1\""));
        }
        let remote = Remote::from_kubeconfig(&settings.kubeconfig)?;
        Ok(Self { remote, cache: settings.cache, version: settings.version.clone(), answers: Answers::default() })
    }

    /// `own` are the API server's audiences: an answer that names none is for them.
    pub async fn token(&self, token: &str, wanted: &[String], own: &[String], lookup: &dyn Lookup) -> Result<Known, String> {
        let parts: Vec<&[u8]> = std::iter::once(token.as_bytes()).chain(wanted.iter().map(String::as_bytes)).collect();
        let key = Key::of(&parts);
        let answer = match self.answers.get(key) {
            Some(answer) => {
                count(None);
                answer
            }
            None => {
                // That nobody answers is not kept.
                let answer = self.ask(token, wanted, lookup).await;
                count(Some(answer.is_ok()));
                let answer = answer?;
                self.answers.keep(key, answer.clone(), self.cache);
                answer
            }
        };
        let (user, given) = answer?;
        let audiences: Vec<String> =
            if given.is_empty() { own } else { &given }.iter().filter(|one| wanted.contains(one)).cloned().collect();
        if audiences.is_empty() && !wanted.is_empty() {
            return Err("the token is for other audiences".into());
        }
        Ok(Known::new(user, audiences))
    }

    async fn ask(&self, token: &str, wanted: &[String], lookup: &dyn Lookup) -> Result<Result<(UserInfo, Vec<String>), String>, String> {
        let version = format!("authentication.k8s.io/{}", self.version);
        let review = json!({
            "kind": "TokenReview", "apiVersion": version, "metadata": {"creationTimestamp": null},
            "spec": {"token": token, "audiences": wanted}, "status": {"user": {}},
        });
        let (code, bytes) = self.remote.post(review.to_string().into(), TIMEOUT, lookup).await.inspect_err(|why| unreachable(why))?;
        if !code.is_success() {
            let why = format!("the authentication webhook answered {code}");
            unreachable(&why);
            return Err(why);
        }
        let answer: Value = serde_json::from_slice(&bytes).map_err(|error| format!("the authentication webhook's answer: {error}"))?;
        let status = &answer["status"];
        if status["authenticated"] != true {
            return Ok(Err(status["error"].as_str().filter(|why| !why.is_empty()).unwrap_or("invalid bearer token").to_owned()));
        }
        let user: UserInfo =
            serde_json::from_value(status["user"].clone()).map_err(|error| format!("the authentication webhook's user: {error}"))?;
        if user.username.is_empty() {
            return Ok(Err("the authentication webhook names no user".into()));
        }
        let audiences = status["audiences"].as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect();
        Ok(Ok((super::complete(user), audiences)))
    }
}

fn count(fetched: Option<bool>) {
    if let Some(metrics) = super::metrics() {
        metrics.cached(fetched);
    }
}

/// Bad configuration or an outage: worth a line.
fn unreachable(why: &str) {
    tracing::warn!(why, "failed to make webhook authenticator request");
}
