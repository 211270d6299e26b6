//! Images for containers: present, pulled, or why not. Pulls run beside the reconcile, which is woken when they end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1;
use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, ServiceAccount};
use reconcile::EventKind;

use crate::credentials::{self, Found, Owner};
use crate::worker::{Agent, Scene, lock};
use crate::world::Image;
use crate::{podspec, pulled};

const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// The life of a token that a credential provider is shown: the API server's default.
const TOKEN_SECONDS: i64 = 3_600;

impl Agent {
    /// Finds the image here, or starts its pull.
    pub async fn ensure_image(self: &Arc<Self>, scene: &Scene, name: &str, attempt: u32) {
        let Some(container) = wanted(scene, name) else { return };
        let image = container.image.clone().unwrap_or_default();
        let about = scene.image_reference(name);
        let policy = pull_policy(&container);
        let key = (name.to_owned(), attempt);
        if let Some(fault) = reference_fault(&image) {
            let message = format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {fault}");
            self.event(&about, EventKind::Warning, "InspectFailed", message.clone());
            return self.failed(scene, key, "InvalidImageName", message);
        }
        match self.present(&image).await {
            // A pinned image is the node's own: no registry has it.
            Ok(Some((reference, true))) => {
                self.event(&about, EventKind::Normal, "Pulled", format!("Container image {image:?} already present on machine"));
                scene.record.memory().images.insert(key, Image::Ready(reference));
                return;
            }
            Ok(Some((reference, false))) if policy != "Always" => {
                if self.pulled.allows(&reference, &image, &self.credentials(scene, &image).await) {
                    self.event(&about, EventKind::Normal, "Pulled", present_message(&image));
                    scene.record.memory().images.insert(key, Image::Ready(reference));
                    return;
                }
                if policy == "Never" {
                    let message =
                        format!("Container image {image:?} is present with pull policy of Never but the pod's credentials do not open it");
                    self.event(&about, EventKind::Warning, "ErrImageNeverPull", message.clone());
                    return self.failed(scene, key, "ErrImageNeverPull", message);
                }
            }
            Ok(None) if policy == "Never" => {
                let message = format!("Container image {image:?} is not present with pull policy of Never");
                self.event(&about, EventKind::Warning, "ErrImageNeverPull", message.clone());
                return self.failed(scene, key, "ErrImageNeverPull", message);
            }
            Ok(_) => {}
            Err(_) if policy == "Always" => {}
            Err(error) => {
                let message = error.message;
                self.event(&about, EventKind::Warning, "InspectFailed", format!("Failed to inspect image {image:?}: {message}"));
                let message = format!("Failed to inspect image {image:?}: {message}");
                return self.failed(scene, key, "ImageInspectError", message);
            }
        }
        self.pull(scene, key, image, policy == "Always").await;
    }

    /// The id of the image where it is on the node, and whether it is pinned there.
    async fn present(&self, image: &str) -> Result<Option<(String, bool)>, cri::Error> {
        let spec = v1::ImageSpec { image: with_tag(image), user_specified_image: image.into(), ..Default::default() };
        let answer = self.images.image_status(v1::ImageStatusRequest { image: Some(spec), verbose: false }).await;
        Ok(answer?.image.map(|found| (found.id, found.pinned)))
    }

    async fn pull(self: &Arc<Self>, scene: &Scene, key: (String, u32), image: String, always: bool) {
        let former = scene.record.memory().images.insert(key.clone(), Image::Pulling);
        let former_wait = match former {
            Some(Image::Failed { wait, .. }) => Some(wait),
            _ => None,
        };
        let about = scene.image_reference(&key.0);
        let credentials = self.credentials(scene, &image).await;
        let (agent, record) = (self.clone(), scene.record.clone());
        tokio::spawn(async move {
            let turn = lock(&agent.pulling).entry(image.clone()).or_default().clone();
            let waiting = Instant::now();
            let held = turn.lock().await;
            let begun = Instant::now();
            // Another pod may have pulled it while this one waited.
            let present = if always { None } else { agent.present(&image).await.ok().flatten().map(|(id, _)| id) };
            let pulled = match present.filter(|id| agent.pulled.allows(id, &image, &credentials)) {
                Some(reference) => {
                    agent.event(&about, EventKind::Normal, "Pulled", present_message(&image));
                    Ok(reference)
                }
                None => {
                    agent.event(&about, EventKind::Normal, "Pulling", format!("Pulling image {image:?}"));
                    let result = agent.pull_with_each(&image, &credentials, always).await;
                    if result.is_ok() {
                        let size = agent.size_of(&image).await;
                        let message = format!(
                            "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {size} bytes.",
                            seconds(begun.elapsed()),
                            seconds(waiting.elapsed())
                        );
                        agent.event(&about, EventKind::Normal, "Pulled", message);
                    }
                    result
                }
            };
            drop(held);
            drop(turn);
            lock(&agent.pulling).retain(|_, turn| Arc::strong_count(turn) > 1);
            match pulled {
                Ok(reference) => drop(record.memory().images.insert(key, Image::Ready(reference))),
                Err(error) => {
                    agent.event(&about, EventKind::Warning, "Failed", format!("Failed to pull image {image:?}: {error}"));
                    let (reason, message) = explained(&image, error.message);
                    agent.event(&about, EventKind::Warning, "Failed", format!("Error: {reason}"));
                    record.memory().images.insert(key, failure(reason, message, former_wait));
                }
            }
            agent.queue.add(record.uid.clone());
        });
    }

    fn failed(&self, scene: &Scene, key: (String, u32), reason: &'static str, message: String) {
        self.event(&scene.image_reference(&key.0), EventKind::Warning, "Failed", format!("Error: {reason}"));
        let mut memory = scene.record.memory();
        let former = match memory.images.get(&key) {
            Some(Image::Failed { wait, .. }) => Some(*wait),
            _ => None,
        };
        memory.images.insert(key, failure(reason, message, former));
    }

    async fn size_of(&self, image: &str) -> u64 {
        let spec = v1::ImageSpec { image: with_tag(image), ..Default::default() };
        let answer = self.images.image_status(v1::ImageStatusRequest { image: Some(spec), verbose: false }).await;
        answer.ok().and_then(|answer| answer.image).map_or(0, |image| image.size)
    }

    /// Tries one after the other; without any, as nobody. Whose credentials opened the image is remembered.
    async fn pull_with_each(&self, image: &str, credentials: &[Found], always: bool) -> Result<String, cri::Error> {
        let nobody = [Found { auth: v1::AuthConfig::default(), owner: Owner::Node }];
        let mut failures = Vec::new();
        for found in if credentials.is_empty() { &nobody } else { credentials } {
            let mut spec = v1::ImageSpec { image: with_tag(image), user_specified_image: image.to_owned(), ..Default::default() };
            // The built-in runtime may believe another node what a tag means, unless the registry is to be asked.
            if !always {
                spec.annotations.insert("sternpost.io/any-known".into(), "true".into());
            }
            let auth = Some(found.auth.clone()).filter(|_| !credentials.is_empty());
            let request = v1::PullImageRequest { image: Some(spec), auth, sandbox_config: None };
            match self.images.pull_image(request).await {
                Ok(answer) => {
                    self.pulled.add(&answer.image_ref, image, &found.owner);
                    return Ok(answer.image_ref);
                }
                Err(error) => failures.push(error),
            }
        }
        let last = failures.pop().unwrap_or_else(|| cri::Error::internal("no credentials were tried"));
        if failures.is_empty() {
            return Err(last);
        }
        let all = failures.iter().chain([&last]).map(|error| error.message.as_str()).collect::<Vec<_>>().join(", ");
        Err(cri::Error::new(last.code, format!("[{all}]")))
    }

    /// What the pod's pull secrets say of the image's registry (one that is missing is skipped, as upstream), then what the node's own files and
    /// plugins say.
    async fn credentials(&self, scene: &Scene, image: &str) -> Vec<Found> {
        let mut all = Vec::new();
        for reference in podspec::spec(&scene.pod).image_pull_secrets.iter().flatten() {
            let name = reference.name.as_str();
            let secret = self.objects.secrets.get(&scene.record.uid, podspec::namespace(&scene.pod), name).await.ok().flatten();
            let Some(secret) = secret else { continue };
            let data = crate::env::secret_data(&secret);
            let new = data.get(".dockerconfigjson").map(|bytes| credentials::in_config(bytes, image));
            let old = data.get(".dockercfg").map(|bytes| credentials::in_old_config(bytes, image));
            let text = |field: &Option<String>| field.clone().unwrap_or_default();
            let meta = &secret.metadata;
            all.extend(new.into_iter().chain(old).flatten().map(|auth| {
                let hash = pulled::hash(&auth);
                Found { auth, owner: Owner::Secret { uid: text(&meta.uid), namespace: text(&meta.namespace), name: name.to_owned(), hash } }
            }));
        }
        let account = PodAccount { agent: self, pod: &scene.pod };
        all.extend(self.keyring.find(&self.config.credentials, image, &account).await);
        all
    }
}

/// The service account of a pod, for credential providers that want to see it.
struct PodAccount<'a> {
    agent: &'a Agent,
    pod: &'a Pod,
}

impl credentials::Accounts for PodAccount<'_> {
    fn account(&self) -> BoxFuture<'_, Result<Option<credentials::Account>, String>> {
        Box::pin(async {
            let name = podspec::spec(self.pod).service_account_name.as_deref().unwrap_or_default();
            if name.is_empty() {
                return Ok(None);
            }
            let namespace = podspec::namespace(self.pod);
            let found = self.agent.client.get::<ServiceAccount>(Some(namespace), name).await.map_err(|error| error.to_string())?;
            Ok(Some(credentials::Account {
                uid: found.metadata.uid.unwrap_or_default(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                annotations: found.metadata.annotations.unwrap_or_default(),
            }))
        })
    }

    fn token<'a>(&'a self, audience: &'a str) -> BoxFuture<'a, Result<String, String>> {
        Box::pin(async move {
            let token = self.agent.objects.tokens.get(self.pod, audience, TOKEN_SECONDS, Timestamp::now()).await?;
            Ok(token.text)
        })
    }
}

/// As upstream says it since images are checked for whose they are.
fn present_message(image: &str) -> String {
    format!("Container image {image:?} already present on machine and can be accessed by the pod")
}

/// The reasons that upstream tells from the rest by how a runtime's message begins (`pkg/kubelet/images`, `pkg/kubelet/errors`).
fn explained(image: &str, message: String) -> (&'static str, String) {
    for (reason, why) in
        [("RegistryUnavailable", "the registry is unavailable"), ("SignatureValidationFailed", "the signature validation failed")]
    {
        if let Some(rest) = message.strip_prefix(reason) {
            return (reason, format!("image pull failed for {image} because {why}{rest}"));
        }
    }
    ("ErrImagePull", message)
}

/// The container whose image that is; the image of a volume stands as that of a container of the same policy.
fn wanted(scene: &Scene, name: &str) -> Option<Container> {
    if let Some((_, container)) = podspec::container(&scene.pod, name) {
        return Some(container.into_owned());
    }
    let volume = podspec::spec(&scene.pod).volumes.iter().flatten().find(|volume| podspec::volume_image(&volume.name) == name)?;
    let source = volume.image.clone()?;
    Some(Container { image: source.reference, image_pull_policy: source.pull_policy, ..Container::default() })
}

fn failure(reason: &'static str, message: String, former: Option<Duration>) -> Image {
    let at = Timestamp::now();
    let wait = former.map_or(BACKOFF_FIRST, |wait| (wait * 2).min(BACKOFF_MAX));
    Image::Failed { reason, message, at, until: at + SignedDuration::try_from(wait).unwrap_or(SignedDuration::ZERO), wait }
}

/// As Go prints it, to the millisecond: `1.234s`, `12ms`.
fn seconds(duration: Duration) -> String {
    match duration.as_millis() {
        millis if millis < 1000 => format!("{millis}ms"),
        millis => format!("{}s", millis as f64 / 1000.0),
    }
}

fn is_latest(image: &str) -> bool {
    !image.contains('@') && with_tag(image).ends_with(":latest")
}

/// The spec's policy; without one, what the API's default would be.
fn pull_policy(container: &Container) -> &str {
    let image = container.image.as_deref().unwrap_or_default();
    let otherwise = if is_latest(image) { "Always" } else { "IfNotPresent" };
    container.image_pull_policy.as_deref().filter(|policy| !policy.is_empty()).unwrap_or(otherwise)
}

/// Adds `:latest` to a name with neither tag nor digest.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

/// What is wrong with an image's name, in the words of the reference grammar that every runtime shares (`distribution/reference`).
fn reference_fault(image: &str) -> Option<String> {
    let name = image.split('@').next().unwrap_or_default();
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let repository = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" || host.chars().any(char::is_uppercase) => rest,
        _ => path,
    };
    if repository.chars().any(char::is_uppercase) {
        return Some(format!("invalid reference format: repository name ({repository}) must be lowercase"));
    }
    let letter = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
    let component = |part: &str| {
        part.starts_with(letter) && part.ends_with(letter) && part.chars().all(|each| letter(each) || matches!(each, '.' | '_' | '-'))
    };
    let tag_letter = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | '-');
    let tag_fits = tag.is_none_or(|tag| (1..=128).contains(&tag.len()) && !tag.starts_with(['.', '-']) && tag.chars().all(tag_letter));
    (!repository.split('/').all(component) || !tag_fits).then(|| "invalid reference format".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_registry_could_have_are_faults() {
        for fine in ["nginx", "a/b:v1.2_3", "localhost:5000/a/b", "r.example/a__b/c-d.e@sha256:00", "sternpost.io/toolbox"] {
            assert_eq!(reference_fault(fine), None, "{fine}");
        }
        for bad in ["", "a b", "a//b", "-a", "r.example/a:", "a:b c", "a/b:-x"] {
            assert_eq!(reference_fault(bad).as_deref(), Some("invalid reference format"), "{bad:?}");
        }
        let fault = reference_fault("r.example/Upper:v1");
        assert_eq!(fault.as_deref(), Some("invalid reference format: repository name (Upper) must be lowercase"));
    }

    #[test]
    fn tags_are_added_only_where_there_is_none() {
        assert_eq!(with_tag("nginx"), "nginx:latest");
        assert_eq!(with_tag("localhost:5000/a/b"), "localhost:5000/a/b:latest");
        assert_eq!(with_tag("a:1"), "a:1");
        assert_eq!(with_tag("a@sha256:00"), "a@sha256:00");
    }

    #[test]
    fn reasons_are_told_by_how_the_message_begins() {
        for (message, reason, shown) in [
            ("no such host", "ErrImagePull", "no such host"),
            ("RegistryUnavailable: 503", "RegistryUnavailable", "image pull failed for x because the registry is unavailable: 503"),
            (
                "SignatureValidationFailed: no",
                "SignatureValidationFailed",
                "image pull failed for x because the signature validation failed: no",
            ),
        ] {
            assert_eq!(explained("x", message.into()), (reason, shown.to_owned()));
        }
    }
}
