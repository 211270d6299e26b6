//! What a load balancer and a person ask about a server's health.

mod harness;

use harness::Api;

#[tokio::test]
async fn health_is_told_in_upstreams_words() {
    let api = Api::new().await;
    for endpoint in ["livez", "readyz", "healthz"] {
        let plain = api.get(&format!("/{endpoint}")).await;
        assert_eq!((plain.code, plain.bytes.as_ref()), (200, &b"ok"[..]), "{endpoint}");
        let verbose = api.get(&format!("/{endpoint}?verbose")).await;
        let text = String::from_utf8(verbose.bytes.to_vec()).unwrap();
        assert!(text.starts_with("[+]ping ok\n[+]log ok\n[+]etcd ok\n"), "{text}");
        assert!(text.contains("[+]poststarthook/rbac/bootstrap-roles ok\n"), "{text}");
        assert!(text.ends_with(&format!("{endpoint} check passed\n")), "{text}");
        let excluded = api.get(&format!("/{endpoint}?verbose&exclude=etcd&exclude=nothing")).await;
        let text = String::from_utf8(excluded.bytes.to_vec()).unwrap();
        assert!(text.contains("[+]etcd excluded: ok\n"), "{text}");
        assert!(text.contains("warn: some health checks cannot be excluded: no matches for \"nothing\"\n"), "{text}");
        let one = api.get(&format!("/{endpoint}/etcd")).await;
        assert_eq!((one.code, one.bytes.as_ref()), (200, &b"ok"[..]));
        assert_eq!(api.get(&format!("/{endpoint}/nothing")).await.code, 404);
    }
    assert_eq!(api.get("/livez/shutdown").await.code, 404);
}

#[tokio::test]
async fn a_stopping_server_is_alive_but_not_ready() {
    let api = Api::new().await;
    api.server.stop();
    let ready = api.get("/readyz").await;
    let text = String::from_utf8(ready.bytes.to_vec()).unwrap();
    assert_eq!(ready.code, 500, "{text}");
    assert!(text.contains("[-]shutdown failed: reason withheld\n") && text.ends_with("readyz check failed\n"), "{text}");
    assert_eq!(api.get("/livez").await.code, 200);
}

#[tokio::test]
async fn the_root_names_every_path_that_is_no_objects() {
    let api = Api::new().await;
    let index = api.get("/").await;
    let paths: Vec<String> = serde_json::from_value(index.json()["paths"].clone()).unwrap();
    assert!(paths.is_sorted());
    for path in ["/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/livez/etcd", "/openapi/v3", "/version"] {
        assert!(paths.iter().any(|known| known == path), "{path}: {paths:?}");
        assert_eq!(api.get(path).await.code, 200, "{path}");
    }
    assert_eq!(api.get("/index.html").await.bytes, index.bytes);
}
