//! `GET …/pods/x/log`: the kubelet's stream, passed through.

use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use meta::Status;
use meta::field::{self, Path};
use rustls::ClientConfig;
use serde_json::Value;

use super::{container, kubelet, query_string, refusal};
use crate::Inner;
use crate::context::Context;
use crate::registry::Target;
use crate::reply::{self, Body};
use crate::request::Query;

pub async fn log(server: &Arc<Inner>, context: &Context, target: Target<'_>) -> Result<Response<Body>, Status> {
    check(&context.query, target.name)?;
    let pod = server.registry.get(target).await?.value();
    let container = container(&pod, context.query.text("container"))?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        // Not on a node yet: there is nothing to read, which is no failure.
        return Ok(reply::text(StatusCode::OK, ""));
    }
    let mut backend = kubelet(server, node).await?;
    if context.query.flag("insecureSkipTLSVerifyBackend") {
        backend.tls = backend.tls.map(unverified);
    }
    let path = format!("/containerLogs/{}/{}/{container}{}", target.namespace, target.name, kubelet_query(&context.query));
    let request = Request::builder().method(Method::GET).uri(&path).body(reply::empty()).map_err(Status::internal)?;
    let response = backend.forward(request, &path).await;
    let mut response = response.map_err(|error| error.unreachable(&format!("Get {:?}", backend.url(&path))))?;
    if !response.status().is_success() {
        return Err(refusal(context, target, response).await);
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// The same client, shown to whoever answers.
fn unverified(tls: Arc<ClientConfig>) -> Arc<ClientConfig> {
    let mut tls = ClientConfig::clone(&tls);
    let provider = tls.crypto_provider().clone();
    tls.dangerous().set_certificate_verifier(auth::pki::any_certificate(provider));
    Arc::new(tls)
}

fn kubelet_query(query: &Query) -> String {
    let flags = ["follow", "previous", "timestamps"].into_iter().filter(|name| query.flag(name)).map(|name| (name, "true"));
    let values = ["sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"];
    query_string(flags.chain(values.into_iter().filter_map(|name| Some((name, query.text(name)?)))))
}

fn number(query: &Query, name: &str) -> Result<Option<i64>, Status> {
    let Some(text) = query.text(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
}

/// Upstream: `ValidatePodLogOptions`.
fn check(query: &Query, pod: &str) -> Result<(), Status> {
    let (tail, limit, since) = (number(query, "tailLines")?, number(query, "limitBytes")?, number(query, "sinceSeconds")?);
    let mut errors = Vec::new();
    let mut at_least = |name: &str, number: Option<i64>, least: i64, detail: &str| {
        if let Some(number) = number.filter(|number| *number < least) {
            errors.push(field::Error::invalid(&Path::new(name), number, detail));
        }
    };
    at_least("tailLines", tail, 0, "must be greater than or equal to 0");
    at_least("limitBytes", limit, 1, "must be greater than 0");
    if since.is_some() && query.text("sinceTime").is_some() {
        errors.push(field::Error::forbidden(&Path::root(), "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    } else {
        at_least("sinceSeconds", since, 1, "must be greater than 0");
    }
    if let Some(time) = query.text("sinceTime").filter(|time| time.parse::<jiff::Timestamp>().is_err()) {
        // Go names the first part of its layout that does not fit; of what people type, that is the year.
        let part = if time.bytes().take(4).filter(u8::is_ascii_digit).count() == 4 { "" } else { " as \"2006\"" };
        return Err(Status::bad_request(format!("parsing time {time:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {time:?}{part}")));
    }
    match query.text("stream") {
        None | Some("All") => {}
        Some("Stdout" | "Stderr") if tail.is_none() => {}
        Some("Stdout" | "Stderr") => {
            errors.push(field::Error::forbidden(&Path::root(), "`tailLines` and specific `stream` are mutually exclusive for now"));
        }
        Some(other) => errors.push(field::Error::not_supported(&Path::new("stream"), Value::from(other), &["All", "Stderr", "Stdout"])),
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "PodLogOptions", pod, &errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked_as_upstream_does() {
        let time = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        let cases = [
            ("tailLines=0&limitBytes=1&sinceSeconds=1&follow&stream=All", None),
            ("tailLines=-1", Some((422, "tailLines: Invalid value: -1: must be greater than or equal to 0"))),
            ("limitBytes=0", Some((422, "limitBytes: Invalid value: 0: must be greater than 0"))),
            ("sinceSeconds=0", Some((422, "sinceSeconds: Invalid value: 0: must be greater than 0"))),
            ("sinceSeconds=5&sinceTime=2026-01-01T00:00:00Z", Some((422, time))),
            ("stream=Stdin", Some((422, "stream: Unsupported value: \"Stdin\""))),
            ("stream=Stdout&tailLines=1", Some((422, "mutually exclusive"))),
            ("tailLines=x", Some((400, "strconv.ParseInt: parsing \"x\": invalid syntax"))),
            ("sinceTime=yesterday", Some((400, "parsing time \"yesterday\""))),
        ];
        for (query, wanted) in cases {
            match (check(&Query::parse(Some(query)), "p"), wanted) {
                (Ok(()), None) => {}
                (Err(status), Some((code, part))) => {
                    assert!(status.code == code && status.message.contains(part), "{query}: {status}");
                }
                (other, _) => panic!("{query}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_kubelet_is_told_what_was_asked_and_nothing_else() {
        let query = Query::parse(Some("follow=true&previous=false&tailLines=5&sinceTime=2026-01-01T00:00:00Z&container=c&pretty=1"));
        assert_eq!(kubelet_query(&query), "?follow=true&sinceTime=2026-01-01T00%3A00%3A00Z&tailLines=5");
    }
}
