//! Who the node is to a registry: pull secrets of pods, the node's own docker files, credential provider plugins (KEP-2133), which may be shown a
//! token of the pod's service account (KEP-4412).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cri::v1;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Upstream's patience with a plugin, and more than any real answer.
const PATIENCE: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: u64 = 1 << 20;
const KEPT_MAX: usize = 1_024;

/// Where credentials of the node itself come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Docker's `config.json`; missing ones are fine.
    pub docker_files: Vec<PathBuf>,
    /// A `CredentialProviderConfig`, and the folder of the programs that it names.
    pub provider_config: Option<PathBuf>,
    pub provider_directory: PathBuf,
}

/// Credentials, and whose they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub auth: v1::AuthConfig,
    pub owner: Owner,
}

/// Whose credentials opened an image (KEP-2535).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Owner {
    /// The node's own, or nobody's: every pod may use what they brought.
    Node,
    /// A pull secret, by what it is and a hash of what it says.
    Secret { uid: String, namespace: String, name: String, hash: String },
    /// A service account, for whose token a plugin gave them; with a hash of what it gave where that depends on the token itself.
    ServiceAccount { uid: String, namespace: String, name: String, hash: String },
}

/// The service account of the pod that an image is for.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub annotations: BTreeMap<String, String>,
}

/// Who asks the API server for it; nobody is asked where no plugin wants to know.
pub trait Accounts: Send + Sync {
    /// `None`: the pod has none (a static pod).
    fn account(&self) -> BoxFuture<'_, Result<Option<Account>, String>>;
    /// A token for that audience, bound to the pod.
    fn token<'a>(&'a self, audience: &'a str) -> BoxFuture<'a, Result<String, String>>;
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// Everything in docker's `config.json` that is for this image, the most specific path first.
pub fn in_config(config: &[u8], image: &str) -> Vec<v1::AuthConfig> {
    let Ok(config) = serde_json::from_slice::<DockerConfig>(config) else { return Vec::new() };
    in_auths(config.auths, image)
}

/// The old `.dockercfg`: the entries without a frame.
pub fn in_old_config(config: &[u8], image: &str) -> Vec<v1::AuthConfig> {
    in_auths(serde_json::from_slice(config).unwrap_or_default(), image)
}

fn in_auths(auths: BTreeMap<String, DockerAuth>, image: &str) -> Vec<v1::AuthConfig> {
    let mut known: Vec<(String, DockerAuth)> = auths.into_iter().map(|(key, auth)| (registry(&key), auth)).collect();
    known.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
    known.into_iter().filter(|(key, _)| matches(key, image)).map(|(key, auth)| to_cri(key, &auth)).collect()
}

fn to_cri(key: String, auth: &DockerAuth) -> v1::AuthConfig {
    let decoded = BASE64.decode(&auth.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let (user, password) = decoded.split_once(':').unwrap_or_default();
    let or = |own: &str, decoded: &str| if own.is_empty() { decoded.to_owned() } else { own.to_owned() };
    v1::AuthConfig {
        username: or(&auth.username, user),
        password: or(&auth.password, password),
        server_address: key,
        identity_token: auth.identitytoken.clone(),
        registry_token: auth.registrytoken.clone(),
        ..Default::default()
    }
}

/// `https://index.docker.io/v1/` and `host/path/` as the beginning of an image's full name.
fn registry(key: &str) -> String {
    let bare = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or(bare.strip_suffix("/v2")).unwrap_or(bare);
    if bare == "index.docker.io" { "docker.io".into() } else { bare.to_owned() }
}

/// With its registry, without tag and digest.
pub fn full_name(image: &str) -> String {
    let image = image.split('@').next().unwrap_or_default();
    let image = match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    };
    let first = image.split('/').next().unwrap_or_default();
    let named = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    match (named, image.contains('/')) {
        (true, _) => image.to_owned(),
        (false, true) => format!("docker.io/{image}"),
        (false, false) => format!("docker.io/library/{image}"),
    }
}

/// Whether a pattern (`host[:port][/path]`, with `*` in parts of the host's name) is for an image, as upstream's `URLsMatch`.
fn matches(pattern: &str, image: &str) -> bool {
    let name = full_name(image);
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (host, path) = name.split_once('/').unwrap_or((&name, ""));
    let port = |host: &str| host.rsplit_once(':').map_or((host.to_owned(), None), |(host, port)| (host.to_owned(), Some(port.to_owned())));
    let ((pattern_host, pattern_port), (host, port)) = (port(pattern_host), port(host));
    let parts = |host: &str| host.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (pattern_parts, parts) = (parts(&pattern_host), parts(&host));
    let same_host = pattern_parts.len() == parts.len() && pattern_parts.iter().zip(&parts).all(|(pattern, part)| wild(pattern, part));
    let below = path.strip_prefix(pattern_path).is_some_and(|rest| pattern_path.is_empty() || rest.is_empty() || rest.starts_with('/'));
    same_host && pattern_port == port && below
}

/// `*` is any number of characters.
fn wild(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, between)) = pieces.split_last() else { return rest.is_empty() };
    for piece in between {
        match rest.find(piece) {
            Some(at) => rest = rest.get(at + piece.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProviderConfig {
    kind: String,
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    #[serde(default)]
    token_attributes: Option<TokenAttributes>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TokenAttributes {
    service_account_token_audience: String,
    /// `Token` or `ServiceAccount`: what an answer holds for.
    cache_type: String,
    require_service_account: Option<bool>,
    required_service_account_annotation_keys: Vec<String>,
    optional_service_account_annotation_keys: Vec<String>,
}

impl TokenAttributes {
    fn fault(&self, version: &str) -> Option<&'static str> {
        let required = self.require_service_account;
        match self.cache_type.as_str() {
            _ if version != "credentialprovider.kubelet.k8s.io/v1" => {
                Some("tokenAttributes is only supported for credentialprovider.kubelet.k8s.io/v1")
            }
            _ if self.service_account_token_audience.is_empty() => Some("serviceAccountTokenAudience is required"),
            _ if required.is_none() => Some("requireServiceAccount is required"),
            _ if required == Some(false) && !self.required_service_account_annotation_keys.is_empty() => {
                Some("requiredServiceAccountAnnotationKeys cannot be set when requireServiceAccount is false")
            }
            "Token" | "ServiceAccount" => None,
            _ => Some("cacheType must be Token or ServiceAccount"),
        }
    }

    /// Of the account's annotations those that the plugin is shown.
    fn shown(&self, account: &Account) -> Result<BTreeMap<String, String>, String> {
        let missing = |key: &&String| !account.annotations.contains_key(*key);
        if let Some(key) = self.required_service_account_annotation_keys.iter().find(missing) {
            return Err(format!("service account {}/{} is missing required annotation {key}", account.namespace, account.name));
        }
        let keys = self.required_service_account_annotation_keys.iter().chain(&self.optional_service_account_annotation_keys);
        Ok(keys.filter_map(|key| account.annotations.get(key).map(|value| (key.clone(), value.clone()))).collect())
    }
}

/// What a plugin is told of a pod's service account.
struct Shown {
    account: Account,
    annotations: BTreeMap<String, String>,
    token: String,
    /// For whom its answer holds.
    holds_for: String,
    /// Another token may bring another answer.
    by_token: bool,
}

impl Shown {
    /// `None`: the plugin is to be asked without.
    async fn find(attributes: &TokenAttributes, accounts: &dyn Accounts) -> Result<Option<Self>, String> {
        let Some(account) = accounts.account().await? else { return Ok(None) };
        let annotations = attributes.shown(&account)?;
        let token = accounts.token(&attributes.service_account_token_audience).await?;
        let by_token = attributes.cache_type == "Token";
        let mut words = vec![account.namespace.as_str(), &account.name, &account.uid];
        words.extend(annotations.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]));
        if by_token {
            words.push(&token);
        }
        let mut hash = Sha256::new();
        words.iter().for_each(|word| hash.update(format!("{}:{word}", word.len())));
        let holds_for = BASE64.encode(hash.finalize());
        Ok(Some(Self { annotations, token, holds_for, by_token, account }))
    }

    fn owner(&self, auth: &v1::AuthConfig) -> Owner {
        let Account { uid, namespace, name, .. } = self.account.clone();
        let hash = if self.by_token { crate::pulled::hash(auth) } else { String::new() };
        Owner::ServiceAccount { uid, namespace, name, hash }
    }
}

#[derive(Clone, Debug, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(default)]
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: BTreeMap<String, DockerAuth>,
}

/// Answers of plugins by plugin and key, until when they hold.
#[derive(Default)]
pub struct Keyring {
    kept: Mutex<BTreeMap<(String, String), (Instant, BTreeMap<String, DockerAuth>)>>,
}

impl Keyring {
    /// The node's own credentials for an image, and those that plugins give for the pod's service account.
    pub async fn find(&self, sources: &Sources, image: &str, accounts: &dyn Accounts) -> Vec<Found> {
        let mut all = Vec::new();
        for path in &sources.docker_files {
            if let Ok(bytes) = std::fs::read(path) {
                all.extend(in_config(&bytes, image).into_iter().map(|auth| Found { auth, owner: Owner::Node }));
            }
        }
        let Some(path) = &sources.provider_config else { return all };
        let providers = providers(path).unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), error, "the credential providers' configuration");
            Vec::new()
        });
        for provider in providers.iter().filter(|provider| provider.match_images.iter().any(|pattern| matches(pattern, image))) {
            match self.of_provider(provider, &sources.provider_directory, image, accounts).await {
                Ok(found) => all.extend(found),
                Err(error) => tracing::error!(provider = provider.name, image, error, "credential provider"),
            }
        }
        all
    }

    async fn of_provider(&self, provider: &Provider, folder: &Path, image: &str, accounts: &dyn Accounts) -> Result<Vec<Found>, String> {
        let shown = match &provider.token_attributes {
            None => None,
            Some(attributes) => match Shown::find(attributes, accounts).await? {
                // It has nothing to say of pods without an account.
                None if attributes.require_service_account == Some(true) => return Ok(Vec::new()),
                shown => shown,
            },
        };
        let auths = in_auths(self.ask(provider, folder, image, shown.as_ref()).await?, image);
        let owner = |auth: &v1::AuthConfig| shown.as_ref().map_or(Owner::Node, |shown| shown.owner(auth));
        Ok(auths.into_iter().map(|auth| Found { owner: owner(&auth), auth }).collect())
    }

    async fn ask(
        &self,
        provider: &Provider,
        directory: &Path,
        image: &str,
        shown: Option<&Shown>,
    ) -> Result<BTreeMap<String, DockerAuth>, String> {
        let name = full_name(image);
        let host = name.split('/').next().unwrap_or_default().to_owned();
        let holds_for = shown.map_or("", |shown| shown.holds_for.as_str());
        let key_of = |what: &str| (provider.name.clone(), format!("{what} {holds_for}"));
        let now = Instant::now();
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let keys = [name.as_str(), &host, "global"].map(key_of);
            let known = keys.iter().filter_map(|key| kept.get(key)).find(|(until, _)| *until > now);
            if let Some((_, auths)) = known {
                return Ok(auths.clone());
            }
        }
        let answer = run(provider, directory, image, shown).await?;
        let duration = answer.cache_duration.as_ref().or(provider.default_cache_duration.as_ref());
        let duration = duration.and_then(|text| crate::settings::duration(text)).unwrap_or_default();
        let key = match answer.cache_key_type.as_str() {
            "Image" => key_of(&name),
            "Registry" => key_of(&host),
            "Global" => key_of("global"),
            other => return Err(format!("cacheKeyType {other:?} is none of Image, Registry, Global")),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, (until, _)| *until > now);
        if !duration.is_zero() && kept.len() < KEPT_MAX {
            kept.insert(key, (now + duration, answer.auth.clone()));
        }
        Ok(answer.auth)
    }
}

fn providers(path: &Path) -> Result<Vec<Provider>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let config: ProviderConfig = serde_saphyr::from_str(&text).map_err(|error| error.to_string())?;
    if config.kind != "CredentialProviderConfig" {
        return Err(format!("kind {:?} is not CredentialProviderConfig", config.kind));
    }
    let bad = |provider: &&Provider| provider.name.contains(['/', ' ']) || matches!(provider.name.as_str(), "" | "." | "..");
    if let Some(provider) = config.providers.iter().find(bad) {
        return Err(format!("provider name {:?} is no file's name", provider.name));
    }
    let fault = |provider: &Provider| provider.token_attributes.as_ref().and_then(|attributes| attributes.fault(&provider.api_version));
    match config.providers.iter().find_map(|provider| fault(provider).map(|fault| (provider, fault))) {
        Some((provider, fault)) => Err(format!("provider {:?}: {fault}", provider.name)),
        None => Ok(config.providers),
    }
}

async fn run(provider: &Provider, directory: &Path, image: &str, shown: Option<&Shown>) -> Result<Answer, String> {
    let program = directory.join(&provider.name);
    let mut request =
        serde_json::json!({ "kind": "CredentialProviderRequest", "apiVersion": provider.api_version, "image": full_name(image) });
    if let Some(shown) = shown {
        request["serviceAccountToken"] = serde_json::json!(shown.token);
        request["serviceAccountAnnotations"] = serde_json::json!(shown.annotations);
    }
    let mut command = tokio::process::Command::new(&program);
    command.args(&provider.args).envs(provider.env.iter().map(|variable| (&variable.name, &variable.value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let work = async {
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program need not read it.
            let _ = stdin.write_all(request.to_string().as_bytes()).await;
        }
        let mut bytes = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).await.map_err(|error| error.to_string())?;
        }
        let status = child.wait().await.map_err(|error| error.to_string())?;
        if status.success() { Ok(bytes) } else { Err(format!("{}: {status}", program.display())) }
    };
    let bytes = tokio::time::timeout(PATIENCE, work).await.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))??;
    serde_json::from_slice(&bytes).map_err(|error| format!("its answer: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn patterns_are_for_hosts_ports_and_whole_parts_of_paths() {
        for (pattern, image, expected) in [
            ("docker.io", "nginx", true),
            ("docker.io/library/nginx", "nginx:1", true),
            ("*.registry.io", "a.registry.io/x", true),
            ("*.registry.io", "a.b.registry.io/x", false),
            ("*.*.registry.io", "a.b.registry.io/x", true),
            ("r.example:5000", "r.example:5000/x", true),
            ("r.example", "r.example:5000/x", false),
            ("r.example/team", "r.example/teams/x", false),
            ("r.example/team", "r.example/team/x@sha256:00", true),
            ("gc*.io", "gcr.io/x", true),
        ] {
            assert_eq!(matches(pattern, image), expected, "{pattern} {image}");
        }
    }

    #[test]
    fn credentials_go_to_the_registry_that_they_are_for() {
        let config =
            br#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}, "r.example:5000/team": {"username": "a", "password": "b"}, "r.example:5000": {"username": "c", "password": "d"}}}"#;
        let users = |image: &str| in_config(config, image).into_iter().map(|auth| auth.username).collect::<Vec<_>>();
        assert_eq!(users("nginx"), ["u"]);
        assert_eq!(users("r.example:5000/team/x:1"), ["a", "c"]);
        assert_eq!(users("r.example:5000/teams/x:1"), ["c"]);
        assert!(in_config(b"{", "nginx").is_empty());
        assert_eq!(in_old_config(br#"{"r.example": {"auth": "dTpw"}}"#, "r.example/x").len(), 1);
    }

    /// A static pod.
    struct Nobody;

    impl Accounts for Nobody {
        fn account(&self) -> BoxFuture<'_, Result<Option<Account>, String>> {
            Box::pin(async { Ok(None) })
        }
        fn token<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<String, String>> {
            Box::pin(async { Err("nobody has no token".into()) })
        }
    }

    /// A pod of the service account, by its token.
    struct Bot(&'static str);

    impl Accounts for Bot {
        fn account(&self) -> BoxFuture<'_, Result<Option<Account>, String>> {
            let annotations = BTreeMap::from([("team".to_owned(), "red".to_owned()), ("secret".to_owned(), "yes".to_owned())]);
            Box::pin(async { Ok(Some(Account { uid: "u".into(), namespace: "a".into(), name: "bot".into(), annotations })) })
        }
        fn token<'a>(&'a self, audience: &'a str) -> BoxFuture<'a, Result<String, String>> {
            Box::pin(async move { Ok(format!("{}-for-{audience}", self.0)) })
        }
    }

    #[tokio::test]
    async fn a_provider_sees_a_token_of_the_pods_account_and_its_answer_holds_for_that_account() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let script = format!(
            "#!/bin/sh\ncat >>{0}/asked\necho >>{0}/asked\n\
             echo '{{\"kind\":\"CredentialProviderResponse\",\"cacheKeyType\":\"Registry\",\"auth\":{{\"*.example\":{{\"username\":\"u\",\"password\":\"p\"}}}}}}'\n",
            folder.path().display()
        );
        std::fs::write(at("plugin"), script).unwrap();
        std::fs::set_permissions(at("plugin"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let sources =
            Sources { provider_config: Some(at("config.yaml")), provider_directory: folder.path().into(), docker_files: Vec::new() };
        let config = |attributes: &str| {
            let text = format!(
                "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: plugin\n  matchImages: [\"*.example\"]\n  defaultCacheDuration: 10m\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  tokenAttributes: {{serviceAccountTokenAudience: reg, {attributes}}}\n"
            );
            std::fs::write(at("config.yaml"), text).unwrap();
        };
        let asked = || std::fs::read_to_string(at("asked")).unwrap_or_default();
        let strict =
            "requireServiceAccount: true, requiredServiceAccountAnnotationKeys: [team], optionalServiceAccountAnnotationKeys: [colour]";
        config(&format!("cacheType: ServiceAccount, {strict}"));
        let keyring = Keyring::default();
        for token in ["one", "two"] {
            let found = keyring.find(&sources, "r.example/a:1", &Bot(token)).await;
            let owner = Owner::ServiceAccount { uid: "u".into(), namespace: "a".into(), name: "bot".into(), hash: String::new() };
            assert_eq!(found.iter().map(|found| &found.owner).collect::<Vec<_>>(), [&owner]);
        }
        assert_eq!(asked().lines().count(), 1, "{}", asked());
        assert!(
            asked().contains(r#""serviceAccountToken":"one-for-reg""#) && asked().contains(r#""serviceAccountAnnotations":{"team":"red"}"#)
        );
        assert!(keyring.find(&sources, "r.example/a:1", &Nobody).await.is_empty(), "it wants accounts");
        config(&format!("cacheType: Token, {strict}"));
        let (keyring, before) = (Keyring::default(), asked().lines().count());
        for token in ["one", "two", "two"] {
            assert_eq!(keyring.find(&sources, "r.example/a:1", &Bot(token)).await.len(), 1);
        }
        assert_eq!(asked().lines().count() - before, 2);
        config("cacheType: Token, requireServiceAccount: false");
        let found = keyring.find(&sources, "r.example/b:1", &Nobody).await;
        assert_eq!(found.iter().map(|found| &found.owner).collect::<Vec<_>>(), [&Owner::Node]);
        config("cacheType: Token, requireServiceAccount: true, requiredServiceAccountAnnotationKeys: [none]");
        assert!(keyring.find(&sources, "r.example/c:1", &Bot("one")).await.is_empty());
        for (wrong, why) in [
            ("cacheType: Never, requireServiceAccount: true", "cacheType must be"),
            ("cacheType: Token", "requireServiceAccount is required"),
            ("cacheType: Token, requireServiceAccount: false, requiredServiceAccountAnnotationKeys: [a]", "cannot be set"),
        ] {
            config(wrong);
            let error = providers(&at("config.yaml")).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn a_provider_is_asked_once_while_its_answer_holds_and_only_for_its_images() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let script = format!(
            "#!/bin/sh\ncat >>{0}/asked\necho >>{0}/asked\n[ \"$WHO\" = me ] || exit 3\n\
             echo '{{\"kind\":\"CredentialProviderResponse\",\"cacheKeyType\":\"Registry\",\"auth\":{{\"*.example\":{{\"username\":\"u\",\"password\":\"p\"}}}}}}'\n",
            folder.path().display()
        );
        std::fs::write(at("plugin"), script).unwrap();
        std::fs::set_permissions(at("plugin"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: plugin\n  matchImages: [\"*.example\"]\n  \
                      defaultCacheDuration: 10m\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  env: [{name: WHO, value: me}]\n";
        std::fs::write(at("config.yaml"), config).unwrap();
        let sources =
            Sources { provider_config: Some(at("config.yaml")), provider_directory: folder.path().into(), docker_files: Vec::new() };
        let keyring = Keyring::default();
        for image in ["r.example/a:1", "r.example/b"] {
            let found = keyring.find(&sources, image, &Nobody).await;
            assert_eq!(found.iter().map(|found| found.auth.username.as_str()).collect::<Vec<_>>(), ["u"]);
        }
        assert!(keyring.find(&sources, "nginx", &Nobody).await.is_empty());
        let asked = std::fs::read_to_string(at("asked")).unwrap();
        assert_eq!(asked.lines().count(), 1, "{asked}");
        assert!(asked.contains("\"image\":\"r.example/a\""), "{asked}");
    }
}
