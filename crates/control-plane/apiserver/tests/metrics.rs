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
    let mut watch = api.watch(&format!("{maps}?watch=1")).await;
    assert_eq!(watch.line().await, "ADDED m");
    let path = format!("{maps}/n?fieldManager=f");
    let applied = api.ask("PATCH", &path, "application/apply-patch+yaml", r#"{"kind":"ConfigMap","apiVersion":"v1"}"#).await;
    assert_eq!(applied.code, 201);
    assert_eq!(watch.line().await, "ADDED n");
    let request = http::Request::builder().uri("/metrics").header("accept", "application/openmetrics-text; version=1.0.0");
    let answer = api.send(request.body(harness::body("")).unwrap(), harness::admin()).await;
    assert_eq!(answer.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = String::from_utf8(answer.bytes.to_vec()).unwrap();
    for wanted in [
        "apiserver_current_inflight_requests{request_kind=\"mutating\"} 0",
        "apiserver_longrunning_requests{component=\"apiserver\",group=\"\",resource=\"configmaps\",scope=\"namespace\",subresource=\"\",verb=\"WATCH\",version=\"v1\"} 1",
        "apiserver_watch_events_total{group=\"\",resource=\"configmaps\",version=\"v1\"} 2",
        "apiserver_storage_objects{resource=\"configmaps\"} ",
        "apiserver_storage_objects{resource=\"clusterroles.rbac.authorization.k8s.io\"} ",
        "verb=\"APPLY\"",
        "# TYPE apiserver_request counter",
        "kubernetes_build_info{",
        "apiserver_response_sizes_count{",
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}
