//! Bodies and answers in protobuf.

#[path = "support/api.rs"]
mod api;

use api::{PROTOBUF, ask, create, get, server};
use apiserver::Config;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use schema::{protobuf, table};
use serde_json::{Value, json};

fn encode(group: &str, version: &str, value: &Value) -> Vec<u8> {
    let kind = value["kind"].as_str().unwrap();
    protobuf::encode(value, table::by_gvk(group, version, kind).unwrap())
}

fn read(body: &[u8]) -> Value {
    protobuf::decode(body, None).unwrap().value
}

fn config_map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"a": "b"}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const BOTH_WAYS: [(&str, &str); 2] = [("content-type", PROTOBUF), ("accept", "application/vnd.kubernetes.protobuf,application/json")];

#[tokio::test]
async fn a_go_client_creates_updates_and_deletes_in_protobuf() {
    let server = server(Config::default()).await;
    let made = ask(&server, Method::POST, MAPS, &BOTH_WAYS, encode("", "v1", &config_map("x"))).await;
    assert_eq!((made.code, made.header("content-type")), (StatusCode::CREATED, PROTOBUF));
    let mut object = read(&made.body);
    assert_eq!(object["data"]["a"], "b");
    object["data"]["a"] = "c".into();
    let path = format!("{MAPS}/x");
    let updated = ask(&server, Method::PUT, &path, &BOTH_WAYS, encode("", "v1", &object)).await;
    assert_eq!(read(&updated.body)["data"]["a"], "c");

    // Clients of a group send DeleteOptions in that group's version.
    let options = json!({"kind": "DeleteOptions", "apiVersion": "apps/v1", "preconditions": {"uid": "other"}});
    let refused = ask(&server, Method::DELETE, &path, &BOTH_WAYS, encode("", "v1", &options)).await;
    assert_eq!(refused.code, StatusCode::CONFLICT);
    assert_eq!(read(&refused.body)["reason"], "Conflict");
    // And some say no kind at all.
    let message = protobuf::encode_message(&json!({"propagationPolicy": "Background"}), table::by_gvk("", "v1", "DeleteOptions").unwrap());
    let gone = ask(&server, Method::DELETE, &path, &BOTH_WAYS, protobuf::envelope("", "", &message)).await;
    assert_eq!((gone.code, read(&gone.body)["status"].clone()), (StatusCode::OK, json!("Success")));
}

#[tokio::test]
async fn bodies_of_another_kind_and_damaged_ones_are_refused() {
    let server = server(Config::default()).await;
    let secret = encode("", "v1", &json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}}));
    for body in [secret, b"k8s\0\xff\xff\xff".to_vec(), b"{}".to_vec()] {
        let refused = ask(&server, Method::POST, MAPS, &[("content-type", PROTOBUF)], body).await;
        assert_eq!((refused.code, refused.json()["reason"].clone()), (StatusCode::BAD_REQUEST, json!("BadRequest")));
    }
}

#[tokio::test]
async fn lists_and_their_metadata_come_in_protobuf() {
    let server = server(Config::default()).await;
    for name in ["a", "b"] {
        create(&server, MAPS, &config_map(name)).await;
    }
    let list = get(&server, MAPS, PROTOBUF).await;
    let value = read(&list.body);
    assert_eq!((list.header("content-type"), value["kind"].as_str()), (PROTOBUF, Some("ConfigMapList")));
    assert_eq!(value["items"][1]["metadata"]["name"], "b");
    assert_eq!(value["items"][1]["data"]["a"], "b");
    assert_eq!(value["metadata"]["resourceVersion"], get(&server, MAPS, "").await.json()["metadata"]["resourceVersion"]);

    let accept = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let partial = read(&get(&server, MAPS, accept).await.body);
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0]["metadata"]["name"], "a");

    // Tables have no protobuf form: the next form that the client takes, or none.
    let table = "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1";
    assert_eq!(get(&server, MAPS, table).await.code, StatusCode::NOT_ACCEPTABLE);
    let next = get(&server, MAPS, &format!("{table},{PROTOBUF}")).await;
    assert_eq!(read(&next.body)["kind"], "ConfigMapList");
}

#[tokio::test]
async fn failures_and_discovery_come_in_protobuf() {
    let server = server(Config::default()).await;
    let missing = get(&server, &format!("{MAPS}/none"), "application/vnd.kubernetes.protobuf,application/json").await;
    assert_eq!((missing.code, missing.header("content-type")), (StatusCode::NOT_FOUND, PROTOBUF));
    let status = read(&missing.body);
    assert_eq!(status["message"], "configmaps \"none\" not found");
    assert_eq!(status["details"]["kind"], "configmaps");
    for path in ["/api", "/apis", "/api/v1", "/apis/apps", "/apis/apps/v1"] {
        let (answer, plain) = (get(&server, path, PROTOBUF).await, get(&server, path, "").await.json());
        assert_eq!(answer.header("content-type"), PROTOBUF, "{path}");
        let found = table::find(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{}", plain["kind"].as_str().unwrap()));
        // `/api` names no version, as upstream's.
        assert!(plain["apiVersion"].is_null() || protobuf::decode(&answer.body, found).unwrap().kind == plain["kind"], "{path}");
    }
}

#[tokio::test]
async fn a_watch_in_protobuf_is_framed_by_length() {
    let server = server(Config::default()).await;
    create(&server, MAPS, &config_map("a")).await;
    for (accept, kind) in [
        ("application/vnd.kubernetes.protobuf;stream=watch", "ConfigMap"),
        ("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", "PartialObjectMetadata"),
    ] {
        let request = api::request(Method::GET, &format!("{MAPS}?watch=1"), &[("accept", accept)], "");
        let response = server.handle(request, Some(api::admin())).await;
        assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
        let mut body = response.into_body();
        let mut names = Vec::new();
        create(&server, MAPS, &config_map(&format!("live-{}", kind.to_lowercase()))).await;
        while names.last().is_none_or(|name: &String| !name.starts_with("live-") || !name.ends_with(&kind.to_lowercase())) {
            let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
            let (length, event) = frame.split_at(4);
            assert_eq!(u32::from_be_bytes(length.try_into().unwrap()) as usize, event.len());
            let event = protobuf::decode_message(event, table::by_gvk("", "v1", "WatchEvent").unwrap()).unwrap();
            assert_eq!((event["type"].as_str(), event["object"]["kind"].as_str()), (Some("ADDED"), Some(kind)));
            names.push(event["object"]["metadata"]["name"].as_str().unwrap().to_owned());
        }
        assert_eq!(names[0], "a");
    }
}
