//! ImagePolicyWebhook: somebody outside says which images may run (`imagepolicy.k8s.io/v1alpha1`).
//!
//! Configured by `imagePolicy`: the kubeconfig of the backend, how long its answers hold, and what its silence means.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use meta::status::Status;
use rules::value::{annotation, at, entries, flag, int, list, text};
use serde_json::{Map, Value, json};

use crate::webhook::credentials::{self, Credentials};
use crate::webhook::transport::{Destination, Transport};
use crate::{Attributes, ConfigError, Lookup, Options, Plugin, Verdict};

const NAME: &str = "ImagePolicyWebhook";
const TIMEOUT: Duration = Duration::from_secs(30);
const FAILED_OPEN: &str = "alpha.image-policy.k8s.io/failed-open";
/// Answers that are kept at most.
const CACHE_MAX: usize = 1_024;

#[derive(Default)]
pub struct ImagePolicyWebhook {
    backend: Option<Backend>,
    answers: Mutex<HashMap<String, (Answer, Instant)>>,
}

struct Backend {
    transport: Transport,
    destination: Destination,
    allow_time: Duration,
    deny_time: Duration,
    /// What silence means.
    allows_by_default: bool,
}

#[derive(Clone)]
struct Answer {
    allowed: bool,
    reason: String,
}

impl ImagePolicyWebhook {
    pub fn new(options: &Options) -> Result<Self, ConfigError> {
        let Some(configuration) = options.configurations.get(NAME) else { return Ok(Self::default()) };
        let policy = at(configuration, "imagePolicy");
        let backend = Backend::read(policy).map_err(|why| ConfigError::Plugin { name: NAME, why })?;
        Ok(Self { backend: Some(backend), ..Self::default() })
    }
}

impl Backend {
    fn read(policy: &Value) -> Result<Self, String> {
        let path = Path::new(text(policy, "kubeConfigFile"));
        let content = std::fs::read_to_string(path).map_err(|error| format!("kubeConfigFile {}: {error}", path.display()))?;
        let config: Value = serde_saphyr::from_str(&content).map_err(|error| format!("kubeConfigFile {}: {error}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let context = list(&config, "contexts").iter().find(|entry| text(entry, "name") == text(&config, "current-context"));
        let context = context.map_or(&Value::Null, |entry| at(entry, "context"));
        let cluster = named(&config, "clusters", text(context, "cluster")).map(|entry| at(entry, "cluster"));
        let cluster = cluster.ok_or("the kubeconfig has no cluster")?;
        let user = named(&config, "users", text(context, "user")).map(|entry| credentials::credential(at(entry, "user"), folder));
        let bundle = credentials::data_or_file(cluster, "certificate-authority", folder)?;
        let destination = Destination::of_url(text(cluster, "server"), bundle)?;
        let seconds = |field: &str, other: u64| {
            Duration::from_secs(int(policy, field).and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(other))
        };
        Ok(Self {
            transport: Transport::with(Credentials::for_all(user.transpose()?.unwrap_or_default())),
            destination,
            allow_time: seconds("allowTTL", 300),
            deny_time: seconds("denyTTL", 30),
            allows_by_default: flag(policy, "defaultAllow"),
        })
    }
}

/// The entry with this name; the first one where no context names any.
fn named<'a>(config: &'a Value, kind: &str, name: &str) -> Option<&'a Value> {
    list(config, kind).iter().find(|entry| name.is_empty() || text(entry, "name") == name)
}

impl Plugin for ImagePolicyWebhook {
    fn name(&self) -> &'static str {
        NAME
    }
    fn on_by_default(&self) -> bool {
        false
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(self.judge(attributes, lookup))
    }
}

impl ImagePolicyWebhook {
    async fn judge(&self, attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
        let concerned = attributes.is("", "pods") || attributes.is_part("", "pods", "ephemeralcontainers");
        let (Some(pod), Some(backend)) = (attributes.object.as_ref().filter(|_| concerned), &self.backend) else { return Ok(()) };
        lookup.depends_on_more();
        let question = json!({"kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "spec": spec(pod, attributes)});
        match self.ask(backend, question.to_string(), lookup).await {
            Ok(Answer { allowed: true, .. }) => Ok(()),
            Ok(Answer { reason, .. }) if reason.is_empty() => Err(attributes.forbidden("one or more images rejected by webhook backend")),
            Ok(Answer { reason, .. }) => {
                Err(attributes.forbidden(format!("image policy webhook backend denied one or more images: {reason}")))
            }
            Err(why) if backend.allows_by_default => {
                tracing::warn!(why, "the image policy backend does not answer: allowed");
                attributes.notes.annotate(FAILED_OPEN, "true");
                Ok(())
            }
            Err(why) => Err(attributes.forbidden(why)),
        }
    }

    async fn ask(&self, backend: &Backend, question: String, lookup: &dyn Lookup) -> Result<Answer, String> {
        let known = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&question).cloned();
        if let Some((answer, until)) = known.filter(|(_, until)| Instant::now() < *until) {
            let _ = until;
            return Ok(answer);
        }
        let bytes = backend.transport.post(&backend.destination, Bytes::from(question.clone()), TIMEOUT, lookup).await;
        let review: Value =
            serde_json::from_slice(&bytes.map_err(|failure| failure.why().to_owned())?).map_err(|error| error.to_string())?;
        let status = review.get("status").filter(|status| status.is_object()).ok_or("the image policy backend gave no status")?;
        let answer = Answer { allowed: flag(status, "allowed"), reason: text(status, "reason").to_owned() };
        let until = Instant::now() + if answer.allowed { backend.allow_time } else { backend.deny_time };
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= CACHE_MAX {
            answers.retain(|_, (_, until)| Instant::now() < *until);
        }
        if answers.len() < CACHE_MAX {
            answers.insert(question, (answer.clone(), until));
        }
        Ok(answer)
    }
}

/// The images, and the annotations that are meant for the backend.
fn spec(pod: &Value, attributes: &Attributes) -> Value {
    let kinds =
        if attributes.subresource.is_empty() { &["spec.containers", "spec.initContainers"][..] } else { &["spec.ephemeralContainers"] };
    let containers = kinds.iter().flat_map(|kind| list(pod, kind));
    let images: Vec<Value> = containers.map(|container| json!({"image": text(container, "image")})).collect();
    let meant = entries(pod, "metadata.annotations")
        .filter(|(key, _)| key.split('/').next().is_some_and(|domain| domain.ends_with("image-policy.k8s.io")));
    let annotations: Map<String, Value> = meant.filter_map(|(key, _)| Some((key.clone(), annotation(pod, key)?.into()))).collect();
    json!({"containers": images, "annotations": annotations, "namespace": attributes.namespace})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Operation;
    use crate::fixture::{Objects, run, write};

    fn plugin(allows_by_default: bool) -> ImagePolicyWebhook {
        let folder = std::env::temp_dir().join(format!("image-policy-{}", meta::names::uid()));
        // Port 1: nobody answers there.
        std::fs::write(&folder, "clusters: [{cluster: {server: 'https://127.0.0.1:1/review'}}]").expect("written");
        let policy = json!({"imagePolicy": {"kubeConfigFile": folder.to_string_lossy(), "defaultAllow": allows_by_default}});
        let made = ImagePolicyWebhook::new(&Options { configurations: [(NAME.to_owned(), policy)].into(), ..Options::default() });
        std::fs::remove_file(&folder).expect("removed");
        made.expect("plugin")
    }

    #[tokio::test]
    async fn silence_means_what_the_configuration_says() {
        for allows in [true, false] {
            let object = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
            let mut attributes = write(Operation::Create, "pods", "Pod", object);
            let outcome = run(plugin(allows), Objects::default(), &mut attributes).await;
            assert_eq!(outcome.is_ok(), allows, "{outcome:?}");
        }
    }
}
