//! What one client can ask of a server at most.

mod harness;

use bytes::Bytes;
use harness::{Api, admin};
use http::Request;
use http_body_util::BodyExt;
use serde_json::json;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A body that never comes.
struct Stalled;

impl http_body::Body for Stalled {
    type Data = Bytes;
    type Error = std::io::Error;
    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn a_request_ends_at_its_deadline() {
    let api = Api::new().await;
    let request = Request::builder().method("POST").uri(format!("{MAPS}?timeout=50ms")).body(Stalled.boxed()).unwrap();
    let answer = api.send(request, admin()).await;
    assert_eq!((answer.code, answer.json()["reason"].as_str()), (504, Some("Timeout")));
    let wrong = api.get(&format!("{MAPS}?timeout=soon")).await;
    let sentence = "invalid timeout specified in the request URL - time: invalid duration \"soon\"";
    assert_eq!((wrong.code, wrong.message().as_str()), (400, sentence));
    let mut watch = api.watch(&format!("{MAPS}?watch=1&timeout=1ms")).await;
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    api.post(MAPS, json!({"metadata": {"name": "a"}})).await;
    loop {
        if watch.line().await == "ADDED a" {
            break;
        }
    }
}

#[tokio::test]
async fn bodies_beyond_three_mebibytes_are_refused() {
    let api = Api::new().await;
    let object = json!({"metadata": {"name": "large"}, "data": {"a": "x".repeat(3 << 20)}});
    let answer = api.post(MAPS, object).await;
    assert_eq!((answer.code, answer.json()["reason"].as_str()), (413, Some("RequestEntityTooLarge")));
}
