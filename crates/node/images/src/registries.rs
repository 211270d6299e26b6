//! How registries are reached: `registries.yaml` in k3s' format, the built-in registry, other nodes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::http::{Resolver, Tls};
use crate::reference::Reference;
use crate::{Error, Result};

/// Everything that a pull or push needs to know of the world.
#[derive(Clone)]
pub struct Registries {
    /// `registries.yaml`; read at every pull, so that a change needs no restart. It may be missing.
    pub file: Option<PathBuf>,
    pub resolver: Resolver,
    /// The built-in registry's name, such as `localhost:5000`: its content is this store's own, on every node of the cluster.
    pub own: Option<String>,
    /// Other nodes, asked before anything outside.
    pub peers: Arc<dyn Fn() -> Vec<Endpoint> + Send + Sync>,
    /// A folder of programs that judge each image before its layers are fetched (containerd's image verifiers).
    pub verifiers: Option<PathBuf>,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            file: None,
            resolver: Arc::new(|host| Box::pin(async move { Err(format!("{host}: nothing resolves names here")) })),
            own: None,
            peers: Arc::new(Vec::new),
            verifiers: None,
        }
    }
}

/// One server that may have an image.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The API's root, such as `https://registry-1.docker.io/v2`.
    pub base: String,
    pub tls: Arc<rustls::ClientConfig>,
    pub(crate) credentials: Option<Credentials>,
    /// The name of the repository there.
    pub(crate) repository: String,
    /// For a server of many registries: the one that is meant.
    pub(crate) namespace: Option<String>,
    /// The registry that the image is named after, not one in front of it.
    pub(crate) is_registry: bool,
}

impl Endpoint {
    /// Another node at `https://address:port`.
    pub fn peer(base: String, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { base: format!("{base}/v2"), tls, credentials: None, repository: String::new(), namespace: None, is_registry: false }
    }

    pub(crate) fn for_image(mut self, name: &Reference) -> Self {
        self.repository = name.repository.clone();
        self.namespace = Some(name.registry.clone());
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    Basic(String, String),
    /// A refresh token, exchanged at the registry's token server.
    Identity(String),
    Bearer(String),
}

impl Credentials {
    /// CRI's: user and password, or both in base64, or a token.
    pub fn of(auth: &cri::v1::AuthConfig) -> Result<Option<Self>> {
        let bad = || Error::Pull {
            reference: auth.server_address.clone(),
            reason: "invalid registry credentials: auth is not base64 of user:password".into(),
            not_found: false,
        };
        Self::from_parts(&auth.username, &auth.password, &auth.auth, &auth.identity_token, &auth.registry_token).map_err(|()| bad())
    }

    fn from_parts(user: &str, password: &str, both: &str, identity: &str, registry: &str) -> std::result::Result<Option<Self>, ()> {
        if !registry.is_empty() {
            return Ok(Some(Self::Bearer(registry.to_owned())));
        }
        if !identity.is_empty() {
            return Ok(Some(Self::Identity(identity.to_owned())));
        }
        if !user.is_empty() {
            return Ok(Some(Self::Basic(user.to_owned(), password.to_owned())));
        }
        if both.is_empty() {
            return Ok(None);
        }
        use base64::Engine;
        let decoded = base64::engine::general_purpose::STANDARD.decode(both.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let (user, password) = decoded.as_deref().and_then(|text| text.split_once(':')).ok_or(())?;
        Ok(Some(Self::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned())))
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, Settings>,
    auths: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Mirror {
    #[serde(alias = "endpoints")]
    endpoint: Vec<String>,
    rewrite: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    auth: Option<FileAuth>,
    tls: Option<FileTls>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct FileAuth {
    username: String,
    password: String,
    auth: String,
    identity_token: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct FileTls {
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    insecure_skip_verify: bool,
}

impl FileTls {
    fn read(&self) -> std::result::Result<Tls, String> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let identity = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            (None, None) => None,
            _ => return Err("cert_file and key_file belong together".into()),
        };
        let ca = self.ca_file.as_deref().map(read).transpose()?.unwrap_or_default();
        Ok(Tls { ca, identity, insecure: self.insecure_skip_verify })
    }
}

impl File {
    fn read(path: &Path) -> std::result::Result<Self, String> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|error| format!("{}: {error}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let file: Self = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        match file.auths {
            Some(_) => Err("auths is not supported: use configs.<host>.auth".into()),
            None => Ok(file),
        }
    }

    /// The servers to ask for an image, in their order: mirrors, then the registry itself.
    fn endpoints(&self, name: &Reference) -> std::result::Result<Vec<Endpoint>, String> {
        let mut all = Vec::new();
        let mirror = self.mirrors.get(&name.registry).or_else(|| self.mirrors.get("*"));
        for address in mirror.iter().flat_map(|mirror| &mirror.endpoint) {
            let repository = mirror.map_or(Ok(name.repository.clone()), |mirror| mirror.rewritten(&name.repository))?;
            let mut endpoint = self.endpoint(address, repository)?;
            endpoint.namespace = Some(name.registry.clone());
            all.push(endpoint);
        }
        let host = if name.registry == "docker.io" { "registry-1.docker.io" } else { &name.registry };
        let mut own = self.endpoint(host, name.repository.clone())?;
        own.is_registry = true;
        // Settings may stand under the registry's public name.
        own.credentials = own.credentials.or(self.credentials(&name.registry)?);
        // A mirror of the same address is the registry itself: asked once, as the registry.
        all.retain(|mirror| mirror.base != own.base || mirror.repository != own.repository);
        all.push(own);
        Ok(all)
    }

    fn endpoint(&self, address: &str, repository: String) -> std::result::Result<Endpoint, String> {
        let (scheme, rest) = match address.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
            Some(_) => return Err(format!("endpoint {address:?}: neither http nor https")),
            None if Reference::is_loopback_host(address) => ("http", address),
            None => ("https", address),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/');
        let path = if path.is_empty() { "v2" } else { path };
        let scheme = if scheme == "http" && self.configs.get(host).is_some_and(|c| c.tls.is_some()) && !address.contains("://") {
            "https"
        } else {
            scheme
        };
        let settings = self.configs.get(host).or_else(|| self.configs.get("*"));
        let tls = settings.and_then(|settings| settings.tls.as_ref()).map_or_else(|| Ok(Tls::default()), FileTls::read)?;
        Ok(Endpoint {
            base: format!("{scheme}://{host}/{path}"),
            tls: tls.config()?,
            credentials: self.credentials(host)?,
            repository,
            namespace: None,
            is_registry: false,
        })
    }

    fn credentials(&self, host: &str) -> std::result::Result<Option<Credentials>, String> {
        let Some(auth) = self.configs.get(host).and_then(|settings| settings.auth.as_ref()) else { return Ok(None) };
        let credentials = Credentials::from_parts(&auth.username, &auth.password, &auth.auth, &auth.identity_token, "");
        credentials.map_err(|()| format!("configs.{host}.auth: not base64 of user:password"))
    }
}

impl Mirror {
    /// The first rewrite that matches; `$1` and `${1}` stand for what a group matched.
    fn rewritten(&self, repository: &str) -> std::result::Result<String, String> {
        for (pattern, to) in &self.rewrite {
            let pattern = regex::Regex::new(pattern).map_err(|error| format!("rewrite {pattern:?}: {error}"))?;
            if pattern.is_match(repository) {
                return Ok(pattern.replace(repository, to.as_str()).into_owned());
            }
        }
        Ok(repository.to_owned())
    }
}

impl Registries {
    /// Mirrors, then the registry itself; `auth` is for the registry, as it came with the request.
    pub(crate) fn outside(&self, name: &Reference, auth: Option<&cri::v1::AuthConfig>) -> Result<Vec<Endpoint>> {
        let fail = |reason: String| Error::Pull { reference: name.to_string(), reason, not_found: false };
        let file = self.file.as_deref().map_or_else(|| Ok(File::default()), File::read).map_err(fail)?;
        let mut endpoints = file.endpoints(name).map_err(fail)?;
        if let Some(credentials) = auth.map(Credentials::of).transpose()?.flatten() {
            endpoints.iter_mut().filter(|endpoint| endpoint.is_registry).for_each(|own| own.credentials = Some(credentials.clone()));
        }
        Ok(endpoints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(file: &str, image: &str) -> Vec<(String, String)> {
        let endpoints = File::parse(file).unwrap().endpoints(&Reference::parse(image).unwrap()).unwrap();
        endpoints.into_iter().map(|e| (e.base, e.repository)).collect()
    }

    #[test]
    fn mirrors_come_before_the_registry_and_rewrites_are_theirs_alone() {
        let file = r#"
mirrors:
  docker.io:
    endpoint: ["https://mirror.example:5000", "http://other.example/v2/proxy"]
    rewrite: {"^library/(.*)": "hub/$1"}
  "*":
    endpoint: ["https://all.example"]
"#;
        let pair = |base: &str, repository: &str| (base.to_owned(), repository.to_owned());
        assert_eq!(
            bases(file, "busybox"),
            [
                pair("https://mirror.example:5000/v2", "hub/busybox"),
                pair("http://other.example/v2/proxy", "hub/busybox"),
                pair("https://registry-1.docker.io/v2", "library/busybox"),
            ]
        );
        assert_eq!(bases(file, "r.example/a/b"), [pair("https://all.example/v2", "a/b"), pair("https://r.example/v2", "a/b")]);
        assert_eq!(bases("", "localhost:5000/x"), [pair("http://localhost:5000/v2", "x")]);
        assert_eq!(bases("mirrors: {r.example: {endpoint: [\"https://r.example\"]}}", "r.example/x"), [pair("https://r.example/v2", "x")]);
    }

    #[test]
    fn settings_are_found_by_host_and_bad_ones_are_named() {
        let file = "configs:\n  r.example:\n    auth: {username: u, password: p}\n    tls: {insecure_skip_verify: true}\n  docker.io:\n    auth: {auth: dTpwOnE=}\n";
        let credentials = |image: &str| {
            let endpoints = File::parse(file).unwrap().endpoints(&Reference::parse(image).unwrap()).unwrap();
            endpoints.last().unwrap().credentials.clone()
        };
        assert_eq!(credentials("r.example/x"), Some(Credentials::Basic("u".into(), "p".into())));
        assert_eq!(credentials("busybox"), Some(Credentials::Basic("u".into(), "p:q".into())));
        assert_eq!(credentials("other.example/x"), None);
        for (file, reason) in [
            ("mirrors: {r.example: {endpoint: [\"ftp://r\"]}}", "neither http nor https"),
            ("configs: {r.example: {auth: {auth: \"?\"}}}", "not base64"),
            ("configs: {r.example: {tls: {ca_file: /no/such/file}}}", "/no/such/file"),
            ("configs: {r.example: {tls: {cert_file: /a}}}", "belong together"),
            ("mirrors: {r.example: {endpoint: [\"https://m\"], rewrite: {\"(\": x}}}", "rewrite"),
        ] {
            let error = File::parse(file).unwrap().endpoints(&Reference::parse("r.example/x").unwrap()).unwrap_err();
            assert!(error.contains(reason), "{file}: {error}");
        }
        assert!(File::parse("mirror: {}").is_err(), "a misspelt section is not ignored");
    }

    #[test]
    fn credentials_come_in_four_shapes() {
        let config = |f: fn(&mut cri::v1::AuthConfig)| {
            let mut config = cri::v1::AuthConfig::default();
            f(&mut config);
            Credentials::of(&config)
        };
        assert!(config(|_| {}).unwrap().is_none());
        assert_eq!(
            config(|c| (c.username, c.password) = ("u".into(), "p".into())).unwrap(),
            Some(Credentials::Basic("u".into(), "p".into()))
        );
        assert_eq!(config(|c| c.auth = "dTpwOnE=".into()).unwrap(), Some(Credentials::Basic("u".into(), "p:q".into())));
        assert_eq!(config(|c| c.identity_token = "i".into()).unwrap(), Some(Credentials::Identity("i".into())));
        assert_eq!(config(|c| c.registry_token = "t".into()).unwrap(), Some(Credentials::Bearer("t".into())));
        assert!(config(|c| c.auth = "?".into()).is_err());
    }
}
