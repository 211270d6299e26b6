//! What a scraper sees. Alone in its process: the first server of a process has its registry.

mod harness;

use harness::Api;
use serde_json::json;

#[tokio::test]
async fn requests_are_counted_under_upstreams_names_and_strangers_make_no_series() {
    let api = Api::new().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(api.post(maps, json!({"metadata": {"name": "m"}})).await.code, 201);
    api.get(&format!("{maps}/m/strange-part")).await;
    api.get("/api/v1/strange-kind").await;
    let body = String::from_utf8(api.get("/metrics").await.bytes.to_vec()).unwrap();
    let post = "apiserver_request_total{code=\"201\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"configmaps\",scope=\"resource\",subresource=\"\",verb=\"POST\",version=\"v1\"}";
    assert!(body.contains(post), "{body}");
    assert!(body.contains("apiserver_request_duration_seconds_bucket"));
    assert!(!body.contains("strange"));
}
