//! Bodies and answers in protobuf.

mod harness;

use harness::{Answer, Api, admin, body};
use http_body_util::BodyExt;
use schema::{protobuf, table};
use serde_json::{Value, json};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Asks as a Go client does that prefers protobuf.
async fn go(api: &Api, method: &str, path: &str, content: Vec<u8>) -> Answer {
    let request = http::Request::builder().method(method).uri(path).header("content-type", PROTOBUF);
    let request = request.header("accept", "application/vnd.kubernetes.protobuf,application/json");
    api.send(request.body(body(content)).unwrap(), admin()).await
}

async fn get(api: &Api, path: &str, accept: &str) -> Answer {
    api.send(http::Request::builder().uri(path).header("accept", accept).body(body("")).unwrap(), admin()).await
}

fn content_type(answer: &Answer) -> &str {
    answer.headers["content-type"].to_str().unwrap()
}

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

#[tokio::test]
async fn a_go_client_creates_updates_and_deletes_in_protobuf() {
    let api = Api::new().await;
    let made = go(&api, "POST", MAPS, encode("", "v1", &config_map("x"))).await;
    assert_eq!((made.code, content_type(&made)), (201, PROTOBUF));
    let mut object = read(&made.bytes);
    assert_eq!(object["data"]["a"], "b");
    object["data"]["a"] = "c".into();
    let path = format!("{MAPS}/x");
    let updated = go(&api, "PUT", &path, encode("", "v1", &object)).await;
    assert_eq!(read(&updated.bytes)["data"]["a"], "c");

    // Clients of a group send DeleteOptions in that group's version.
    let options = json!({"kind": "DeleteOptions", "apiVersion": "apps/v1", "preconditions": {"uid": "other"}});
    let refused = go(&api, "DELETE", &path, encode("", "v1", &options)).await;
    assert_eq!(refused.code, 409);
    assert_eq!(read(&refused.bytes)["reason"], "Conflict");
    // And some say no kind at all.
    let message = protobuf::encode_message(&json!({"propagationPolicy": "Background"}), table::by_gvk("", "v1", "DeleteOptions").unwrap());
    let gone = go(&api, "DELETE", &path, protobuf::envelope("", "", &message)).await;
    assert_eq!((gone.code, read(&gone.bytes)["status"].clone()), (200, json!("Success")));
}

#[tokio::test]
async fn bodies_of_another_kind_and_damaged_ones_are_refused() {
    let api = Api::new().await;
    let secret = encode("", "v1", &json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}}));
    for body in [secret, b"k8s\0\xff\xff\xff".to_vec(), b"{}".to_vec()] {
        let refused = api.ask("POST", MAPS, PROTOBUF, body).await;
        assert_eq!((refused.code, refused.json()["reason"].clone()), (400, json!("BadRequest")));
    }
}

#[tokio::test]
async fn lists_and_their_metadata_come_in_protobuf() {
    let api = Api::new().await;
    for name in ["a", "b"] {
        api.post(MAPS, config_map(name)).await;
    }
    let list = get(&api, MAPS, PROTOBUF).await;
    let value = read(&list.bytes);
    assert_eq!((content_type(&list), value["kind"].as_str()), (PROTOBUF, Some("ConfigMapList")));
    assert_eq!(value["items"][1]["metadata"]["name"], "b");
    assert_eq!(value["items"][1]["data"]["a"], "b");
    assert_eq!(value["metadata"]["resourceVersion"], get(&api, MAPS, "").await.json()["metadata"]["resourceVersion"]);

    let accept = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let partial = read(&get(&api, MAPS, accept).await.bytes);
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0]["metadata"]["name"], "a");

    // Tables have no protobuf form: the next form that the client takes, or none.
    let table = "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1";
    assert_eq!(get(&api, MAPS, table).await.code, 406);
    let next = get(&api, MAPS, &format!("{table},{PROTOBUF}")).await;
    assert_eq!(read(&next.bytes)["kind"], "ConfigMapList");
}

#[tokio::test]
async fn large_lists_in_protobuf_are_compressed_where_the_client_takes_it() {
    use std::io::Read;
    let api = Api::new().await;
    let mut large = config_map("large");
    large["data"]["a"] = "x".repeat(200_000).into();
    api.post(MAPS, large).await;
    let request = http::Request::builder().uri(MAPS).header("accept", PROTOBUF).header("accept-encoding", "gzip");
    let packed = api.send(request.body(body("")).unwrap(), admin()).await;
    assert_eq!((&packed.headers["content-encoding"], packed.bytes.len() < 20_000), (&http::HeaderValue::from_static("gzip"), true));
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&packed.bytes[..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, get(&api, MAPS, PROTOBUF).await.bytes);
}

#[tokio::test]
async fn failures_and_discovery_come_in_protobuf() {
    let api = Api::new().await;
    let missing = get(&api, &format!("{MAPS}/none"), "application/vnd.kubernetes.protobuf,application/json").await;
    assert_eq!((missing.code, content_type(&missing)), (404, PROTOBUF));
    let status = read(&missing.bytes);
    assert_eq!(status["message"], "configmaps \"none\" not found");
    assert_eq!(status["details"]["kind"], "configmaps");
    for path in ["/api", "/apis", "/api/v1", "/apis/apps", "/apis/apps/v1"] {
        let (answer, plain) = (get(&api, path, PROTOBUF).await, get(&api, path, "").await.json());
        assert_eq!(content_type(&answer), PROTOBUF, "{path}");
        let found = table::find(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{}", plain["kind"].as_str().unwrap()));
        // `/api` names no version, as upstream's.
        assert!(plain["apiVersion"].is_null() || protobuf::decode(&answer.bytes, found).unwrap().kind == plain["kind"], "{path}");
    }
}

#[tokio::test]
async fn a_watch_in_protobuf_is_framed_by_length() {
    let api = Api::new().await;
    api.post(MAPS, config_map("a")).await;
    for (accept, kind) in [
        ("application/vnd.kubernetes.protobuf;stream=watch", "ConfigMap"),
        ("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", "PartialObjectMetadata"),
    ] {
        let request = http::Request::builder().uri(format!("{MAPS}?watch=1")).header("accept", accept).body(body("")).unwrap();
        let response = api.server.handle(request, Some(admin())).await;
        assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
        let mut body = response.into_body();
        let (mut names, mut rest) = (Vec::new(), bytes::Bytes::new());
        api.post(MAPS, config_map(&format!("live-{}", kind.to_lowercase()))).await;
        while names.last().is_none_or(|name: &String| !name.starts_with("live-") || !name.ends_with(&kind.to_lowercase())) {
            // A piece of the stream holds whole frames, one or several.
            while rest.is_empty() {
                rest = body.frame().await.unwrap().unwrap().into_data().unwrap();
            }
            let length = u32::from_be_bytes(rest.split_to(4).as_ref().try_into().unwrap()) as usize;
            let event = &rest.split_to(length);
            let event = protobuf::decode_message(event, table::by_gvk("", "v1", "WatchEvent").unwrap()).unwrap();
            assert_eq!((event["type"].as_str(), event["object"]["kind"].as_str()), (Some("ADDED"), Some(kind)));
            names.push(event["object"]["metadata"]["name"].as_str().unwrap().to_owned());
        }
        assert_eq!(names[0], "a");
    }
}

#[tokio::test]
async fn a_client_creates_applies_lists_and_watches_in_cbor() {
    use schema::cbor;
    let api = Api::new().await;
    let ask = async |method: &str, path: &str, content_type: &str, content: Vec<u8>| {
        let request = http::Request::builder().method(method).uri(path).header("content-type", content_type);
        let request = request.header("accept", "application/cbor, application/json");
        api.send(request.body(body(content)).unwrap(), admin()).await
    };
    let made = ask("POST", MAPS, "application/cbor", cbor::encode(&config_map("x"))).await;
    assert_eq!((made.code, content_type(&made)), (201, "application/cbor"));
    assert_eq!(cbor::decode(&made.bytes).unwrap()["data"]["a"], "b");
    // Bytes are written as bytes, and mean their base64.
    let secret = [&cbor::encode(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}))[3..], b""].concat();
    let mut with_data = secret.clone();
    with_data[0] += 1;
    with_data.extend_from_slice(b"\x44data\xa1\x41k\xd6\x43abc");
    let made = ask("POST", "/api/v1/namespaces/default/secrets", "application/cbor", with_data).await;
    assert_eq!((made.code, cbor::decode(&made.bytes).unwrap()["data"]["k"].clone()), (201, json!("YWJj")), "{}", made.message());

    let apply = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x"}, "data": {"c": "d"}});
    let path = format!("{MAPS}/x?fieldManager=t");
    let applied = ask("PATCH", &path, "application/apply-patch+cbor", cbor::encode(&apply)).await;
    assert_eq!(cbor::decode(&applied.bytes).unwrap()["data"], json!({"a": "b", "c": "d"}));
    let list = ask("GET", MAPS, "", Vec::new()).await;
    let value = cbor::decode(&list.bytes).unwrap();
    assert_eq!(
        (content_type(&list), value["kind"].as_str(), value["items"][0]["data"]["c"].as_str()),
        ("application/cbor", Some("ConfigMapList"), Some("d"))
    );

    let refused = ask("POST", MAPS, "application/cbor", b"\xa1\x41".to_vec()).await;
    assert_eq!((refused.code, cbor::decode(&refused.bytes).unwrap()["reason"].clone()), (400, json!("BadRequest")));

    let request = http::Request::builder().uri(format!("{MAPS}?watch=1")).header("accept", "application/cbor").body(body("")).unwrap();
    let response = api.server.handle(request, Some(admin())).await;
    assert_eq!(response.headers()["content-type"], "application/cbor-seq");
    let event = cbor::decode(&response.into_body().frame().await.unwrap().unwrap().into_data().unwrap()).unwrap();
    assert_eq!((event["type"].as_str(), event["object"]["metadata"]["name"].as_str()), (Some("ADDED"), Some("x")));
}
