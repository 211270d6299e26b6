//! The documents that `kubectl explain`, `apply` and `--validate` read.

mod harness;

use std::io::Read;

use harness::{Answer, Api, admin, body};

async fn get(api: &Api, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = http::Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.send(request.body(body("")).unwrap(), admin()).await
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_document_is_found_by_its_hash_and_may_be_kept_for_ever() {
    let api = Api::new().await;
    let index = get(&api, "/openapi/v3", &[]).await.json();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = get(&api, url, &[("accept", "application/json")]).await;
    assert_eq!((document.code, header(&document, "cache-control")), (200, "public, immutable"));
    assert!(header(&document, "expires").ends_with(" GMT"));
    let replicas = &document.json()["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["replicas"];
    assert!(replicas["description"].as_str().unwrap().contains("desired pods"), "{replicas}");

    let etag = header(&document, "etag");
    assert!(url.ends_with(etag.trim_matches('"')) && etag.len() == 130, "the hash is the ETag");
    let again = get(&api, url, &[("if-none-match", etag)]).await;
    assert_eq!((again.code, again.bytes.len(), header(&again, "etag")), (304, 0, etag));
    let old = get(&api, "/openapi/v3/apis/apps/v1?hash=OLD", &[]).await;
    assert_eq!((old.code, header(&old, "location")), (301, url));
    let anyhow = get(&api, "/openapi/v3/apis/apps/v1", &[]).await;
    assert_eq!((anyhow.code, header(&anyhow, "cache-control")), (200, "no-cache, private"));
    assert_eq!(anyhow.bytes, document.bytes);
}

#[tokio::test]
async fn documents_come_compressed_where_the_client_takes_it() {
    let api = Api::new().await;
    let plain = get(&api, "/openapi/v3/api/v1", &[]).await;
    let packed = get(&api, "/openapi/v3/api/v1", &[("accept-encoding", "gzip")]).await;
    assert_eq!(header(&packed, "content-encoding"), "gzip");
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&packed.bytes[..]).read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == plain.bytes && packed.bytes.len() < plain.bytes.len() / 4);
}

#[tokio::test]
async fn version_2_comes_as_json_and_as_protobuf() {
    let api = Api::new().await;
    let plain = get(&api, "/openapi/v2", &[]).await;
    assert_eq!(plain.json()["swagger"], "2.0");
    let asked = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let binary = get(&api, "/openapi/v2", &[("accept", asked)]).await;
    assert_eq!(header(&binary, "content-type"), "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    assert_eq!(&binary.bytes[..5], b"\x0a\x032.0");
    assert_ne!(header(&binary, "etag"), header(&plain, "etag"));
}

#[tokio::test]
async fn unknown_documents_and_forms_are_refused() {
    let api = Api::new().await;
    for path in ["/openapi/v3/apis/example.com/v1", "/openapi/v3/api/v9", "/openapi/v4"] {
        assert_eq!(get(&api, path, &[]).await.code, 404, "{path}");
    }
    let protobuf = [("accept", "application/com.github.proto-openapi.spec.v3@v1.0+protobuf")];
    assert_eq!(get(&api, "/openapi/v3/api/v1", &protobuf).await.code, 406);
}
