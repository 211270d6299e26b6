//! How the API server shows itself to webhooks: users of a kubeconfig file, each named by the hosts that it is for.
//!
//! Source: apiserver `pkg/util/webhook/authentication.go`; the file is named by `kubeConfigFile` of a WebhookAdmissionConfiguration.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use rules::value::{at, list, text};
use serde_json::Value;

use super::tls::Identity;
use crate::{ConfigError, Options};

/// What is shown to one server.
#[derive(Clone, Default)]
pub struct Credential {
    pub identity: Option<Identity>,
    pub authorization: Option<HeaderValue>,
}

/// Credentials by the names of their users: `host`, `host:port`, `*.domain`.
#[derive(Default)]
pub struct Credentials {
    by_name: BTreeMap<String, Credential>,
    /// For those who are not named.
    other: Option<Credential>,
}

impl Credentials {
    /// Those that the configuration of a webhook plugin names.
    pub fn of_plugin(name: &'static str, options: &Options) -> Result<Self, ConfigError> {
        let Some(configuration) = options.configurations.get(name) else { return Ok(Self::default()) };
        let file = text(configuration, "kubeConfigFile");
        if file.is_empty() {
            return Ok(Self::default());
        }
        Self::read(Path::new(file)).map_err(|why| ConfigError::Plugin { name, why: format!("kubeConfigFile {file}: {why}") })
    }

    /// One for whoever is asked.
    pub fn for_all(credential: Credential) -> Self {
        Self { by_name: BTreeMap::new(), other: Some(credential) }
    }

    fn read(path: &Path) -> Result<Self, String> {
        let content = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let file: Value = serde_saphyr::from_str(&content).map_err(|error| error.to_string())?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let users = list(&file, "users").iter().map(|entry| {
            let name = text(entry, "name");
            let made = credential(at(entry, "user"), folder).map_err(|why| format!("user {name:?}: {why}"))?;
            Ok::<_, String>((name.to_owned(), made))
        });
        Ok(Self { by_name: users.collect::<Result<_, _>>()?, other: None })
    }

    /// By host and port, then by the domains that hold the host; where the port is 443, also without it.
    pub fn of(&self, host: &str, port: u16) -> Option<&Credential> {
        let exact = |target: &str| {
            let domains = target.match_indices('.').map(|(at, _)| format!("*{}", &target[at..]));
            std::iter::once(target.to_owned()).chain(domains).find_map(|name| self.by_name.get(&name))
        };
        exact(&format!("{host}:{port}")).or_else(|| exact(host).filter(|_| port == 443)).or(self.other.as_ref())
    }
}

/// A kubeconfig's user; files are relative to its folder.
pub fn credential(user: &Value, folder: &Path) -> Result<Credential, String> {
    if let Some(what) = ["exec", "auth-provider"].into_iter().find(|what| !at(user, what).is_null()) {
        return Err(format!("credentials by {what} are not supported"));
    }
    let pem = |name: &str| data_or_file(user, name, folder);
    let identity = match (pem("client-certificate")?, pem("client-key")?) {
        (Some(certificate), Some(key)) => {
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| "client certificate or key: no PEM".to_owned());
            let pair = auth::pki::Pair { certificate: text(certificate)?, key: text(key)? };
            Some(auth::tls::Client::new(&pair).map_err(|error| format!("client certificate: {error}"))? as Identity)
        }
        (None, None) => None,
        _ => return Err("client-certificate and client-key belong together".into()),
    };
    let token = match (text(user, "token"), text(user, "tokenFile")) {
        ("", "") => None,
        ("", file) => Some(String::from_utf8_lossy(&read(&folder.join(file))?).trim().to_owned()),
        (token, _) => Some(token.to_owned()),
    };
    let basic = || {
        let (name, password) = (text(user, "username"), text(user, "password"));
        (!name.is_empty()).then(|| format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))))
    };
    let authorization = token.map(|token| format!("Bearer {token}")).or_else(basic);
    Ok(Credential { identity, authorization: authorization.as_deref().map(header).transpose()? })
}

/// A header that nobody prints.
fn header(value: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(value).map_err(|_| "token: not the form of a header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// `Authorization` with a bearer token.
pub fn bearer(token: &str) -> Result<HeaderValue, String> {
    header(&format!("Bearer {token}"))
}

/// Inline base64 wins over a file, as in client-go; a relative file is relative to the kubeconfig.
pub fn data_or_file(tree: &Value, name: &str, folder: &Path) -> Result<Option<Vec<u8>>, String> {
    match (text(tree, &format!("{name}-data")), text(tree, name)) {
        ("", "") => Ok(None),
        ("", file) => read(&folder.join(file)).map(Some),
        (data, _) => STANDARD.decode(data.trim()).map(Some).map_err(|error| format!("{name}-data: {error}")),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_webhook_is_shown_the_user_that_is_named_after_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let user = |name: &str| json!({"name": name, "user": {"token": name}});
        let users = ["hook.a.svc", "hook.b.svc:8443", "*.c.svc", "*.example.com", "plain"].map(user);
        std::fs::write(file.path(), json!({"users": users}).to_string()).expect("written");
        let credentials = Credentials::read(file.path()).expect("credentials");
        let cases = [
            ("hook.a.svc", 443, Some("hook.a.svc")),
            ("hook.a.svc", 8443, None),
            ("hook.b.svc", 8443, Some("hook.b.svc:8443")),
            ("hook.b.svc", 443, None),
            ("any.c.svc", 443, Some("*.c.svc")),
            ("deep.in.example.com", 443, Some("*.example.com")),
            ("example.com", 443, None),
            ("plain", 443, Some("plain")),
        ];
        for (host, port, expected) in cases {
            let found = credentials.of(host, port).and_then(|credential| credential.authorization.clone());
            assert_eq!(found, expected.map(|name| bearer(name).expect("a header")), "{host}:{port}");
        }
    }

    #[test]
    fn credentials_that_cannot_be_used_are_refused() {
        let folder = Path::new("/nowhere");
        let cases = [
            (json!({"exec": {"command": "x"}}), "credentials by exec are not supported"),
            (json!({"client-certificate-data": "AAAA"}), "client-certificate and client-key belong together"),
            (json!({"tokenFile": "gone"}), "/nowhere/gone: No such file or directory (os error 2)"),
            (json!({"token": "two\nlines"}), "token: not the form of a header"),
        ];
        for (user, expected) in cases {
            assert_eq!(credential(&user, folder).err().as_deref(), Some(expected), "{user}");
        }
        let basic = credential(&json!({"username": "ann", "password": "p"}), folder).expect("a credential");
        assert_eq!(basic.authorization.expect("a header"), "Basic YW5uOnA=");
    }
}
