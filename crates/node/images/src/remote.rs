//! One repository on one server, in the words of the OCI distribution specification 1.1.

use std::sync::Mutex;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION, RANGE, USER_AGENT, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;

use crate::blobs::digest_of;
use crate::http::{Body, Http, Resolver, empty, full};
use crate::manifest::{self, DOCUMENT_BYTES_MAX};
use crate::registries::{Credentials, Endpoint};

/// Until an answer begins, and between two parts of it.
pub(crate) const STALL: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: usize = 5;
const ERROR_BYTES_MAX: usize = 16 << 10;
/// When a tag of the built-in registry was pushed, in nanoseconds since 1970: among nodes the newest counts.
pub(crate) const PUSHED: &str = "sternpost-pushed";

/// Why a server did not give or take something.
#[derive(Debug)]
pub(crate) enum Failure {
    NotFound,
    Denied(String),
    /// It cannot be reached or is overloaded: another server or another time may do.
    Unavailable(String),
    Refused(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound => f.write_str("not found"),
            Self::Denied(why) => {
                write!(f, "pull access denied, repository does not exist or may require authorization: authorization failed")?;
                if why.is_empty() { Ok(()) } else { write!(f, ": {why}") }
            }
            Self::Unavailable(why) | Self::Refused(why) => f.write_str(why),
        }
    }
}

type Outcome<T> = Result<T, Failure>;

/// A manifest or an index as it came.
pub(crate) struct Fetched {
    pub bytes: Vec<u8>,
    pub digest: String,
    pub pushed: u64,
}

/// A repository on a server.
pub(crate) struct Remote {
    pub endpoint: Endpoint,
    http: Http,
    /// What the last challenge was answered with.
    authorization: Mutex<Option<HeaderValue>>,
    /// For tokens: what is to be done.
    actions: &'static str,
}

#[derive(Default, Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    realm: String,
    service: String,
    scope: String,
}

/// `Bearer realm="…",service="…"`.
fn challenge(text: &str) -> Challenge {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let mut found = Challenge { scheme: scheme.to_ascii_lowercase(), ..Challenge::default() };
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match key.trim_matches([',', ' ']) {
            "realm" => value.clone_into(&mut found.realm),
            "service" => value.clone_into(&mut found.service),
            "scope" => value.clone_into(&mut found.scope),
            _ => {}
        }
        rest = next;
    }
    found
}

/// Percent-encodes one value of a query.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            all.push(char::from(byte));
        } else {
            all.push_str(&format!("%{byte:02X}"));
        }
        all
    })
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The body, up to a limit; a stalled or longer one is an error.
async fn body(response: Response<Incoming>, max: usize) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut body = response.into_body();
    loop {
        let frame = tokio::time::timeout(STALL, body.frame()).await;
        match frame.map_err(|_| Failure::Unavailable("the answer stalled".into()))? {
            None => return Ok(bytes),
            Some(Err(error)) => return Err(Failure::Unavailable(crate::http::chain(&error))),
            Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data.as_ref())),
        }
        if bytes.len() > max {
            return Err(Failure::Refused(format!("an answer of more than {max} bytes")));
        }
    }
}

/// What the server says is wrong.
async fn failure(response: Response<Incoming>, what: &str) -> Failure {
    let status = response.status();
    let text = body(response, ERROR_BYTES_MAX).await.unwrap_or_default();
    let entries = serde_json::from_slice::<Errors>(&text).map(|all| all.errors).unwrap_or_default();
    let said: Vec<String> = entries.iter().map(|entry| format!("{}: {}", entry.code.to_lowercase(), entry.message)).collect();
    let missing = |entry: &ErrorEntry| matches!(entry.code.as_str(), "MANIFEST_UNKNOWN" | "NAME_UNKNOWN" | "BLOB_UNKNOWN" | "NOT_FOUND");
    let text = format!("unexpected status from {what}: {status}{}", said.iter().map(|s| format!(": {s}")).collect::<String>());
    match status {
        StatusCode::NOT_FOUND => Failure::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Denied(said.join(", ")),
        StatusCode::TOO_MANY_REQUESTS => Failure::Unavailable(text),
        status if status.is_server_error() => Failure::Unavailable(text),
        _ if entries.iter().any(missing) => Failure::NotFound,
        _ => Failure::Refused(text),
    }
}

impl Remote {
    pub fn new(endpoint: Endpoint, resolve: Resolver, pushes: bool) -> Self {
        let http = Http::new(endpoint.tls.clone(), resolve);
        let actions = if pushes { "pull,push" } else { "pull" };
        Self { endpoint, http, authorization: Mutex::new(None), actions }
    }

    fn url(&self, rest: &str) -> String {
        let separator = if rest.contains('?') { '&' } else { '?' };
        let namespace = self.endpoint.namespace.as_ref().map_or(String::new(), |name| format!("{separator}ns={}", encoded(name)));
        format!("{}/{}/{rest}{namespace}", self.endpoint.base, self.endpoint.repository)
    }

    fn host(&self) -> &str {
        let rest = self.endpoint.base.split_once("://").map_or("", |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default()
    }

    /// A manifest or an index by tag or digest, its digest verified.
    pub async fn manifest(&self, reference: &str) -> Outcome<Fetched> {
        let url = self.url(&format!("manifests/{reference}"));
        let accept = [(ACCEPT, HeaderValue::from_str(&manifest::ACCEPT.join(", ")).map_err(|e| Failure::Refused(e.to_string()))?)];
        let response = self.call(Method::GET, &url, &accept, empty).await?;
        if response.status() != StatusCode::OK {
            return Err(failure(response, &format!("GET request to {url}")).await);
        }
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let (told, pushed) = (header("docker-content-digest"), header(PUSHED).parse().unwrap_or(0));
        let bytes = body(response, DOCUMENT_BYTES_MAX as usize).await?;
        let digest = digest_of(&bytes);
        let expected = if reference.contains(':') { reference } else { told.as_str() };
        if expected.starts_with("sha256:") && expected != digest {
            return Err(Failure::Refused(format!("the manifest has digest {digest}, not {expected}")));
        }
        Ok(Fetched { bytes, digest, pushed })
    }

    /// Bytes of a blob from `offset` on: the answer, and where it really begins.
    pub async fn blob(&self, digest: &str, offset: u64) -> Outcome<(Response<Incoming>, u64)> {
        let url = self.url(&format!("blobs/{digest}"));
        let range = HeaderValue::from_str(&format!("bytes={offset}-")).map_err(|e| Failure::Refused(e.to_string()))?;
        let headers = [(RANGE, range)];
        let response = self.call(Method::GET, &url, if offset > 0 { &headers } else { &[] }, empty).await?;
        match response.status() {
            StatusCode::OK => Ok((response, 0)),
            StatusCode::PARTIAL_CONTENT => {
                let content_range = response.headers().get("content-range").and_then(|value| value.to_str().ok()).unwrap_or_default();
                let begins = content_range.strip_prefix("bytes ").and_then(|rest| rest.split('-').next()?.parse().ok());
                Ok((response, begins.unwrap_or(offset)))
            }
            _ => Err(failure(response, &format!("GET request to {url}")).await),
        }
    }

    /// How long a blob is; `None` where it is not.
    pub async fn blob_size(&self, digest: &str) -> Outcome<Option<u64>> {
        let url = self.url(&format!("blobs/{digest}"));
        let response = self.call(Method::HEAD, &url, &[], empty).await?;
        match response.status() {
            StatusCode::OK => {
                let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
                Ok(Some(length.and_then(|text| text.parse().ok()).unwrap_or(0)))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(failure(response, &format!("HEAD request to {url}")).await),
        }
    }

    /// Uploads a blob in one piece; `open` gives its bytes anew for each try.
    pub async fn upload(&self, digest: &str, size: u64, open: impl Fn() -> Body) -> Outcome<()> {
        let url = self.url("blobs/uploads/");
        let begun = self.call(Method::POST, &url, &[(CONTENT_LENGTH, HeaderValue::from_static("0"))], empty).await?;
        if begun.status() != StatusCode::ACCEPTED {
            return Err(failure(begun, &format!("POST request to {url}")).await);
        }
        let location = begun.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let location = absolute(&url, location).map_err(Failure::Refused)?;
        let url = format!("{location}{}digest={}", if location.contains('?') { '&' } else { '?' }, encoded(digest));
        let headers = [(CONTENT_LENGTH, HeaderValue::from(size)), (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))];
        let done = self.call(Method::PUT, &url, &headers, open).await?;
        if done.status() == StatusCode::CREATED { Ok(()) } else { Err(failure(done, &format!("PUT request to {url}")).await) }
    }

    pub async fn put_manifest(&self, reference: &str, media_type: &str, bytes: &[u8]) -> Outcome<()> {
        let url = self.url(&format!("manifests/{reference}"));
        let kind = HeaderValue::from_str(media_type).map_err(|e| Failure::Refused(e.to_string()))?;
        let bytes = Bytes::copy_from_slice(bytes);
        let done = self.call(Method::PUT, &url, &[(CONTENT_TYPE, kind)], || full(bytes.clone())).await?;
        if done.status().is_success() { Ok(()) } else { Err(failure(done, &format!("PUT request to {url}")).await) }
    }

    /// Sends a request; answers a challenge once, follows redirections.
    async fn call(
        &self,
        method: Method,
        url: &str,
        headers: &[(http::HeaderName, HeaderValue)],
        open: impl Fn() -> Body,
    ) -> Outcome<Response<Incoming>> {
        let mut url = url.to_owned();
        let (mut challenged, mut redirected) = (false, 0);
        loop {
            let ours = url.split("://").nth(1).and_then(|rest| rest.split(['/', '?']).next()) == Some(self.host());
            let mut request = Request::builder().method(method.clone()).uri(&url);
            request = request.header(USER_AGENT, concat!("sternpost/", env!("CARGO_PKG_VERSION")));
            for (name, value) in headers {
                request = request.header(name, value);
            }
            // Another host must not see what was meant for this one.
            if let Some(value) = self.authorization().filter(|_| ours) {
                request = request.header(AUTHORIZATION, value);
            }
            let request = request.body(open()).map_err(|error| Failure::Refused(format!("{url}: {error}")))?;
            let sent = if method == Method::GET || method == Method::HEAD {
                tokio::time::timeout(STALL, self.http.send(request)).await
            } else {
                Ok(self.http.send(request).await)
            };
            let sent = sent.map_err(|_| Failure::Unavailable(format!("{method} {url}: no answer within {} s", STALL.as_secs())))?;
            let response = sent.map_err(|error| Failure::Unavailable(format!("failed to do request: {method} {url:?}: {error}")))?;
            match response.status() {
                StatusCode::UNAUTHORIZED if ours && !challenged => {
                    challenged = true;
                    self.answer(&response).await?;
                }
                status if status.is_redirection() && status != StatusCode::NOT_MODIFIED => {
                    redirected += 1;
                    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
                    if redirected > REDIRECTS_MAX {
                        return Err(Failure::Refused(format!("stopped after {REDIRECTS_MAX} redirects: {url}")));
                    }
                    url = absolute(&url, location).map_err(Failure::Refused)?;
                }
                _ => return Ok(response),
            }
        }
    }

    fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Finds what the server wants to see: a password, or a token from whom it names.
    async fn answer(&self, response: &Response<Incoming>) -> Outcome<()> {
        let all: Vec<Challenge> =
            response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).map(challenge).collect();
        let credentials = self.endpoint.credentials.as_ref();
        let header = if let Some(bearer) = all.iter().find(|challenge| challenge.scheme == "bearer") {
            let token = match credentials {
                Some(Credentials::Bearer(token)) => token.clone(),
                other => self.token(bearer, other).await?,
            };
            format!("Bearer {token}")
        } else if all.iter().any(|challenge| challenge.scheme == "basic")
            && let Some(Credentials::Basic(user, password)) = credentials
        {
            format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
        } else {
            return Err(Failure::Denied(if credentials.is_none() { "no basic auth credentials".into() } else { String::new() }));
        };
        let mut value = HeaderValue::from_str(&header).map_err(|e| Failure::Refused(e.to_string()))?;
        value.set_sensitive(true);
        *self.authorization.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(value);
        Ok(())
    }

    async fn token(&self, challenge: &Challenge, credentials: Option<&Credentials>) -> Outcome<String> {
        let realm = &challenge.realm;
        if !(realm.starts_with("https://") || realm.starts_with("http://") && self.endpoint.base.starts_with("http://")) {
            return Err(Failure::Refused(format!("the registry names a token server that is not https: {realm:?}")));
        }
        let scope = match challenge.scope.as_str() {
            "" => format!("repository:{}:{}", self.endpoint.repository, self.actions),
            told => told.to_owned(),
        };
        let fields = format!("service={}&scope={}", encoded(&challenge.service), encoded(&scope));
        let (method, url, payload, basic) = match credentials {
            Some(Credentials::Identity(token)) => {
                let form = format!("grant_type=refresh_token&client_id=sternpost&refresh_token={}&{fields}", encoded(token));
                (Method::POST, realm.clone(), form, None)
            }
            Some(Credentials::Basic(user, password)) => {
                let basic = format!("Basic {}", BASE64.encode(format!("{user}:{password}")));
                (Method::GET, with_query(realm, &format!("{fields}&account={}", encoded(user))), String::new(), Some(basic))
            }
            _ => (Method::GET, with_query(realm, &fields), String::new(), None),
        };
        let mut request = Request::builder().method(method).uri(&url);
        if let Some(basic) = basic {
            request = request.header(AUTHORIZATION, basic);
        }
        if !payload.is_empty() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let request = request.body(full(payload)).map_err(|error| Failure::Refused(format!("{url}: {error}")))?;
        let sent = tokio::time::timeout(STALL, self.http.send(request)).await;
        let sent = sent.map_err(|_| Failure::Unavailable("failed to fetch a token: no answer".into()))?;
        let response = sent.map_err(|error| Failure::Unavailable(format!("failed to fetch anonymous token: Get {url:?}: {error}")))?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            return Err(match failure(response, &format!("GET request to {url}")).await {
                Failure::NotFound => Failure::Refused(format!("failed to fetch a token: unexpected status: {status}")),
                other => other,
            });
        }
        let token: Token = serde_json::from_slice(&body(response, DOCUMENT_BYTES_MAX as usize).await?)
            .map_err(|error| Failure::Refused(format!("the token server's answer: {error}")))?;
        let token = if token.token.is_empty() { token.access_token } else { token.token };
        if token.is_empty() { Err(Failure::Denied("no token in the answer".into())) } else { Ok(token) }
    }
}

fn with_query(url: &str, fields: &str) -> String {
    format!("{url}{}{fields}", if url.contains('?') { '&' } else { '?' })
}

/// Where a `Location` leads from `base`: never from https to anything less, never to anything but HTTP.
fn absolute(base: &str, location: &str) -> Result<String, String> {
    let (scheme, rest) = base.split_once("://").unwrap_or(("https", base));
    let authority = rest.split('/').next().unwrap_or_default();
    let refused = || format!("refused to follow {location:?} from {base}");
    if let Some(other) = location.strip_prefix("//") {
        return Ok(format!("{scheme}://{other}"));
    }
    if location.starts_with('/') {
        return Ok(format!("{scheme}://{authority}{location}"));
    }
    match location.split_once("://") {
        Some(("https", _)) => Ok(location.to_owned()),
        Some(("http", _)) if scheme == "http" => Ok(location.to_owned()),
        _ => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_with_and_without_quotes() {
        let told = r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#;
        let expected = Challenge {
            scheme: "bearer".into(),
            realm: "https://auth.example/token".into(),
            service: "r.example".into(),
            scope: "repository:a/b:pull,push".into(),
        };
        assert_eq!(challenge(told), expected);
        assert_eq!(challenge("Basic realm=x, charset=utf-8").realm, "x");
        assert_eq!(challenge("Negotiate").scheme, "negotiate");
        assert_eq!(challenge("Bearer realm=\"open").realm, "open");
    }

    #[test]
    fn redirections_never_lead_to_less_safety() {
        let from = "https://r.example/v2/a/blobs/x";
        assert_eq!(absolute(from, "/up?x=1").unwrap(), "https://r.example/up?x=1");
        assert_eq!(absolute(from, "https://cdn.example/x").unwrap(), "https://cdn.example/x");
        assert_eq!(absolute("http://r:5000/v2", "http://other/x").unwrap(), "http://other/x");
        for bad in ["http://cdn.example/x", "file:///etc/passwd", "gopher://x/", "", "relative"] {
            assert!(absolute(from, bad).is_err(), "{bad:?}");
        }
    }
}
