//! Requests for group-versions of other servers go there, with the user's identity in headers that the server believes because of our
//! certificate.

use std::sync::Arc;

use auth::UserInfo;
use http::header::{HOST, HeaderName};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};

use super::services::Remote;
use crate::Inner;
use crate::context::Context;
use crate::reply::{self, Body};

const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA: &str = "x-remote-extra-";

/// The answer of another server; gives the request back where it is about nothing of the kind.
pub async fn respond(server: &Arc<Inner>, context: &Context, request: Request<Body>) -> Result<Response<Body>, Request<Body>> {
    let path = context.info.path.as_str();
    let rest = path.strip_prefix("/apis/").or_else(|| path.strip_prefix("/openapi/v3/apis/"));
    let mut words = rest.unwrap_or_default().split('/');
    let (Some(group), Some(version)) = (words.next(), words.next().filter(|version| !version.is_empty())) else { return Err(request) };
    let Some(remote) = server.aggregator.remote(server, group, version) else { return Err(request) };
    Ok(forward(server, context, &remote, request).await)
}

async fn forward(server: &Arc<Inner>, context: &Context, remote: &Remote, mut request: Request<Body>) -> Response<Body> {
    let unavailable = |why: &str| reply::text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    if !remote.available {
        return unavailable("service unavailable");
    }
    if let Err(why) = &remote.tls {
        return reply::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n"));
    }
    let (backend, name) = match (remote.backend(server).await, remote.server_name()) {
        (Ok(backend), Ok(name)) => (backend, name),
        (Err(why), _) | (_, Err(why)) => {
            tracing::warn!(service = remote.name, why, "an aggregated server cannot be found");
            return unavailable("service unavailable");
        }
    };
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    set_identity(request.headers_mut(), &context.user);
    if let Ok(host) = HeaderValue::from_str(&remote.host()) {
        request.headers_mut().insert(HOST, host);
    }
    match backend.forward_named(name, request, &target).await {
        Ok(response) => response,
        Err(error) => unavailable(&format!("error trying to reach service: {error}")),
    }
}

/// What clients say in these headers is dropped.
pub fn set_identity(headers: &mut HeaderMap, user: &UserInfo) {
    let own = |name: &HeaderName| name.as_str().starts_with("x-remote-");
    let dropped: Vec<HeaderName> = headers.keys().filter(|name| own(name)).cloned().collect();
    for name in dropped {
        headers.remove(name);
    }
    let mut add = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.append(name, value);
        }
    };
    add(USER, &user.username);
    if !user.uid.is_empty() {
        add(UID, &user.uid);
    }
    user.groups.iter().for_each(|group| add(GROUP, group));
    for (key, values) in &user.extra {
        let Ok(name) = format!("{EXTRA}{}", escaped(key)).parse::<HeaderName>() else { continue };
        values.iter().for_each(|value| add(name.clone(), value));
    }
}

/// A key of `extra` as part of a header's name: what a name may not contain, and `%`, is percent-encoded.
fn escaped(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'-'
            | b'.'
            | b'_'
            | b'!'
            | b'#'
            | b'$'
            | b'&'
            | b'\''
            | b'*'
            | b'+'
            | b'^'
            | b'`'
            | b'|'
            | b'~' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02x}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_identity_replaces_what_the_client_claims() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("root"));
        headers.insert("x-remote-extra-a", HeaderValue::from_static("b"));
        let mut user = UserInfo::authenticated("ann", &["devs"]);
        user.extra.insert("example.com/id".into(), vec!["1".into(), "2".into()]);
        set_identity(&mut headers, &user);
        let all = |name: &str| headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(all("x-remote-user"), ["ann"]);
        assert_eq!(all("x-remote-group"), ["devs", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.com%2fid"), ["1", "2"]);
        assert!(all("x-remote-extra-a").is_empty());
    }
}
