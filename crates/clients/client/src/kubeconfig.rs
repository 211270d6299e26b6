//! The part of a kubeconfig file that says where a cluster is and who we are.
//!
//! Exec plugins and auth providers are refused with a clear error: components have certificates or tokens.

use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("parse {}: {reason}", path.display())]
    Parse { path: PathBuf, reason: String },
    #[error("kubeconfig {}: no {what} named {name:?}", path.display())]
    Missing { path: PathBuf, what: &'static str, name: String },
    #[error("kubeconfig user {user:?}: {what} is not supported")]
    Unsupported { user: String, what: &'static str },
    #[error("kubeconfig field {field}: {reason}")]
    Field { field: &'static str, reason: String },
}

/// A cluster's address and our credentials for it, with every file read.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `https://127.0.0.1:6443`
    pub server: String,
    /// The name to expect in the server's certificate instead of the address's host.
    pub server_name: Option<String>,
    /// PEM.
    pub ca: Option<Vec<u8>>,
    pub insecure: bool,
    /// PEM: certificate chain and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    pub token: Option<String>,
    pub namespace: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    current_context: String,
    clusters: Vec<Named<Cluster>>,
    users: Vec<Named<User>>,
    contexts: Vec<Named<Context>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "user", alias = "context")]
    value: T,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
    username: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

/// Reads the file; `context` `None` is its current one.
pub fn load(path: &Path, context: Option<&str>) -> Result<Access, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let file: File = serde_saphyr::from_str(&text).map_err(|error| Error::Parse { path: path.into(), reason: error.to_string() })?;
    let missing = |what, name: &str| Error::Missing { path: path.into(), what, name: name.to_owned() };
    let context_name = context.unwrap_or(&file.current_context);
    let context = find(&file.contexts, context_name).ok_or_else(|| missing("context", context_name))?;
    let cluster = find(&file.clusters, &context.cluster).ok_or_else(|| missing("cluster", &context.cluster))?;
    let user = find(&file.users, &context.user).ok_or_else(|| missing("user", &context.user))?;
    refuse_unsupported(&context.user, user)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let pem = |field, data: &Option<String>, file: &Option<PathBuf>| data_or_file(field, data.as_deref(), file.as_deref(), directory);
    let certificate = pem("client-certificate", &user.client_certificate_data, &user.client_certificate)?;
    let key = pem("client-key", &user.client_key_data, &user.client_key)?;
    let token = match (&user.token, &user.token_file) {
        (Some(token), _) => Some(token.clone()),
        (None, Some(file)) => Some(String::from_utf8_lossy(&read(&directory.join(file))?).trim().to_owned()),
        (None, None) => None,
    };
    Ok(Access {
        server: cluster.server.clone(),
        server_name: cluster.tls_server_name.clone(),
        ca: pem("certificate-authority", &cluster.certificate_authority_data, &cluster.certificate_authority)?,
        insecure: cluster.insecure_skip_tls_verify,
        identity: certificate.zip(key),
        token,
        namespace: context.namespace.clone(),
    })
}

fn find<'a, T>(list: &'a [Named<T>], name: &str) -> Option<&'a T> {
    list.iter().find(|named| named.name == name).map(|named| &named.value)
}

fn refuse_unsupported(name: &str, user: &User) -> Result<(), Error> {
    let what = match user {
        User { exec: Some(_), .. } => "an exec plugin",
        User { auth_provider: Some(_), .. } => "an auth-provider",
        User { username: Some(_), .. } => "basic authentication",
        _ => return Ok(()),
    };
    Err(Error::Unsupported { user: name.to_owned(), what })
}

/// Inline base64 wins over a file, as in client-go; a relative file is relative to the kubeconfig.
fn data_or_file(field: &'static str, data: Option<&str>, file: Option<&Path>, directory: &Path) -> Result<Option<Vec<u8>>, Error> {
    match (data, file) {
        (Some(data), _) if !data.is_empty() => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(data.trim());
            decoded.map(Some).map_err(|error| Error::Field { field, reason: error.to_string() })
        }
        (_, Some(file)) if !file.as_os_str().is_empty() => read(&directory.join(file)).map(Some),
        _ => Ok(None),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })
}
