//! What clients see of lists and watches.

mod harness;

use apiserver::Config;
use harness::{Api, admin, body};
use serde_json::{Value, json};
use store::Store;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn make(api: &Api, name: &str, label: &str) -> String {
    let object = json!({"metadata": {"name": name, "labels": {"l": label}}, "data": {"a": "1"}});
    let answer = api.post(MAPS, object).await;
    assert_eq!(answer.code, 201, "{}", answer.message());
    answer.version()
}

fn names(list: &Value) -> Vec<String> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn pages_of_a_list_show_one_moment() {
    let api = Api::new().await;
    for name in ["a", "b", "c", "d", "e"] {
        make(&api, name, "x").await;
    }
    let first = api.get(&format!("{MAPS}?limit=2")).await.json();
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["a".into(), "b".into()], &json!(3)));
    make(&api, "bb", "x").await;
    api.delete(&format!("{MAPS}/d")).await;
    let token = |list: &Value| list["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    let second = api.get(&format!("{MAPS}?limit=2&continue={}", token(&first))).await.json();
    let third = api.get(&format!("{MAPS}?limit=2&continue={}", token(&second))).await.json();
    assert_eq!((names(&second), names(&third), token(&third)), (vec!["c".into(), "d".into()], vec!["e".into()], String::new()));
    assert_eq!(second["metadata"]["remainingItemCount"], 1);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let exact = api
        .get(&format!("{MAPS}?resourceVersionMatch=Exact&resourceVersion={}", first["metadata"]["resourceVersion"].as_str().unwrap()))
        .await;
    assert_eq!(names(&exact.json()), ["a", "b", "c", "d", "e"]);
    api.store.compact(api.store.revision()).await.unwrap();
    let expired = api.get(&format!("{MAPS}?limit=2&continue={}", token(&first))).await;
    assert_eq!((expired.code, expired.json()["reason"].as_str()), (410, Some("Expired")));
    // The answer has a token for the rest as it is now: without d, which was deleted, and without bb, which comes before.
    let inconsistent = expired.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    let rest = api.get(&format!("{MAPS}?limit=5&continue={inconsistent}")).await.json();
    assert_eq!(names(&rest), ["bb", "c", "e"]);
    let gone = api.get(&format!("{MAPS}?resourceVersionMatch=Exact&resourceVersion=3")).await;
    assert_eq!((gone.code, gone.message().as_str()), (410, "The resourceVersion for the provided list is too old."));
    assert_eq!(api.get(&format!("{MAPS}?continue=junk")).await.code, 400);
}

#[tokio::test]
async fn selectors_choose_and_bad_ones_are_refused() {
    let api = Api::new().await;
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        make(&api, name, label).await;
    }
    let cases: &[(&str, &[&str])] = &[
        ("labelSelector=l%3Dx", &["a", "c"]),
        ("labelSelector=l%21%3Dx", &["b"]),
        ("labelSelector=l+in+%28x%2Cy%29", &["a", "b", "c"]),
        ("fieldSelector=metadata.name%3Db", &["b"]),
        ("labelSelector=l%3Dx&limit=1", &["a"]),
    ];
    for (query, wanted) in cases {
        assert_eq!(names(&api.get(&format!("{MAPS}?{query}")).await.json()), *wanted, "{query}");
    }
    for query in ["labelSelector=%3D%3D", "fieldSelector=spec.foo%3Dx", "resourceVersionMatch=Exact", "resourceVersion=x"] {
        let code = api.get(&format!("{MAPS}?{query}")).await.code;
        assert!(matches!(code, 400 | 422), "{query}: {code}");
    }
    let future = api.get(&format!("{MAPS}?resourceVersion=100000")).await;
    assert_eq!((future.code, future.json()["details"]["causes"][0]["reason"].as_str()), (504, Some("ResourceVersionTooLarge")));
}

#[tokio::test]
async fn a_watch_tells_every_change_in_order() {
    let api = Api::new().await;
    let from = make(&api, "a", "x").await;
    make(&api, "b", "x").await;
    let mut watch = api.watch(&format!("{MAPS}?watch=1&resourceVersion={from}")).await;
    api.merge(&format!("{MAPS}/a"), json!({"data": {"a": "2"}})).await;
    let deleted = api.delete(&format!("{MAPS}/a")).await;
    assert_eq!(deleted.code, 200);
    make(&api, "c", "x").await;
    let mut last = from.parse::<u64>().unwrap();
    for wanted in ["ADDED b", "MODIFIED a", "DELETED a", "ADDED c"] {
        let event = watch.next().await.unwrap();
        let version: u64 = event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        assert_eq!(format!("{} {}", event["type"].as_str().unwrap(), event["object"]["metadata"]["name"].as_str().unwrap()), wanted);
        assert!(version > last, "{wanted}: {version} after {last}");
        last = version;
    }
}

#[tokio::test]
async fn an_object_that_leaves_the_selection_is_deleted_for_the_watcher() {
    let api = Api::new().await;
    make(&api, "a", "x").await;
    let mut watch = api.watch(&format!("{MAPS}?watch=1&labelSelector=l%3Dx")).await;
    assert_eq!(watch.line().await, "ADDED a");
    api.merge(&format!("{MAPS}/a"), json!({"metadata": {"labels": {"l": "y"}}})).await;
    // The last state that was selected, at the revision at which it no longer was.
    let left = watch.next().await.unwrap();
    let now = api.get(&format!("{MAPS}/a")).await;
    assert_eq!((&left["type"], &left["object"]["metadata"]["labels"]["l"]), (&json!("DELETED"), &json!("x")));
    assert_eq!(left["object"]["metadata"]["resourceVersion"], now.version());
    api.merge(&format!("{MAPS}/a"), json!({"data": {"unseen": "1"}})).await;
    api.merge(&format!("{MAPS}/a"), json!({"metadata": {"labels": {"l": "x"}}})).await;
    assert_eq!(watch.line().await, "ADDED a");
}

#[tokio::test]
async fn pods_are_found_by_the_node_they_are_on() {
    let api = Api::new().await;
    let pods = "/api/v1/namespaces/default/pods";
    api.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    for name in ["a", "b", "c"] {
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        assert_eq!(api.post(pods, pod).await.code, 201);
    }
    let bind = async |pod: &str, node: &str| {
        let binding = json!({"metadata": {"name": pod}, "target": {"kind": "Node", "name": node}});
        assert_eq!(api.post(&format!("{pods}/{pod}/binding"), binding).await.code, 201);
    };
    let on = |node: &str| format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
    let mut watch = api.watch(&format!("{}&watch=1", on("n1"))).await;
    bind("a", "n1").await;
    bind("b", "n2").await;
    bind("c", "n1").await;
    assert_eq!([watch.line().await, watch.line().await], ["ADDED a", "ADDED c"]);
    assert_eq!(names(&api.get(&on("n1")).await.json()), ["a", "c"]);
    assert_eq!(names(&api.get(&format!("{}%2Cmetadata.name%21%3Da", on("n1"))).await.json()), ["c"]);
    assert_eq!(names(&api.get(&on("n3")).await.json()), Vec::<String>::new());
    assert_eq!(names(&api.get("/api/v1/pods?fieldSelector=spec.nodeName%21%3Dn1").await.json()), ["b"]);
    api.delete(&format!("{pods}/a?gracePeriodSeconds=0")).await;
    assert_eq!(watch.line().await, "DELETED a");
    assert_eq!(names(&api.get(&on("n1")).await.json()), ["c"]);
}

#[tokio::test]
async fn the_shards_of_a_list_are_its_parts_and_say_so() {
    let api = Api::new().await;
    let all: Vec<String> = (0..20).map(|number| format!("m-{number:02}")).collect();
    for name in &all {
        make(&api, name, "x").await;
    }
    let range = |from: &str, to: &str| format!("shardRange(object.metadata.uid,%20'0x{from}',%20'0x{to}')");
    let shards = [range("0000000000000000", "8000000000000000"), range("8000000000000000", "10000000000000000")];
    let mut found = Vec::new();
    for shard in &shards {
        let list = api.get(&format!("{MAPS}?shardSelector={shard}")).await.json();
        assert_eq!(list["metadata"]["shardInfo"]["selector"].as_str().unwrap().replace(' ', "%20"), *shard);
        found.extend(names(&list));
    }
    found.sort();
    assert_eq!(found, all);
    assert_eq!(api.get(&format!("{MAPS}?shardSelector=x")).await.code, 400);
}

#[tokio::test]
async fn a_streaming_list_ends_with_a_bookmark() {
    let api = Api::new().await;
    make(&api, "a", "x").await;
    let version = make(&api, "b", "x").await;
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=0";
    let mut watch = api.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!((watch.line().await, watch.line().await), ("ADDED a".to_owned(), "ADDED b".to_owned()));
    let bookmark = watch.next().await.unwrap();
    assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    let metadata = &bookmark["object"]["metadata"];
    assert_eq!((&metadata["annotations"]["k8s.io/initial-events-end"], &metadata["resourceVersion"]), (&json!("true"), &json!(version)));
    make(&api, "c", "x").await;
    assert_eq!(watch.line().await, "ADDED c");
    assert_eq!(api.get(&format!("{MAPS}?watch=1&sendInitialEvents=true")).await.code, 422);
}

/// Another server over the same store, as after a restart.
async fn restarted(api: &Api) -> Api {
    let server = apiserver::Server::new(apiserver::Config::default(), api.store.clone()).unwrap();
    let again = Api { server, store: api.store.clone() };
    again.server.bootstrap().await.unwrap();
    again
}

#[tokio::test]
async fn a_watch_goes_on_over_a_restart_of_the_server() {
    let api = Api::new().await;
    let from = make(&api, "a", "x").await;
    make(&api, "b", "y").await;
    api.merge(&format!("{MAPS}/a"), json!({"metadata": {"labels": {"l": "y"}}})).await;
    let again = restarted(&api).await;
    let mut watch = again.watch(&format!("{MAPS}?watch=1&resourceVersion={from}")).await;
    make(&again, "c", "x").await;
    assert_eq!([watch.line().await, watch.line().await, watch.line().await], ["ADDED b", "MODIFIED a", "ADDED c"]);
    let mut selected = again.watch(&format!("{MAPS}?watch=1&resourceVersion={from}&labelSelector=l%3Dx")).await;
    let left = selected.next().await.unwrap();
    assert_eq!((&left["type"], &left["object"]["metadata"]["labels"]["l"]), (&json!("DELETED"), &json!("x")));
    assert_eq!(selected.line().await, "ADDED c");
}

#[tokio::test]
async fn a_watch_from_too_long_ago_is_told_so() {
    let api = Api::new().await;
    make(&api, "a", "x").await;
    api.store.compact(api.store.revision()).await.unwrap();
    let again = restarted(&api).await;
    let mut watch = again.watch(&format!("{MAPS}?watch=1&resourceVersion=1")).await;
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"], &event["object"]["reason"]), (&json!("ERROR"), &json!(410), &json!("Expired")));
    assert!(event["object"]["message"].as_str().unwrap().starts_with("too old resource version: 1 ("), "{event}");
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_slow_watcher_is_closed_with_410_and_never_skipped() {
    let api = Api::with(Config { watch_backlog_max: 500, ..Config::default() }).await;
    make(&api, "a", "x").await;
    let mut watch = api.watch(&format!("{MAPS}?watch=1")).await;
    assert_eq!(watch.line().await, "ADDED a");
    for number in 0..1_000 {
        api.merge(&format!("{MAPS}/a"), json!({"data": {"a": number.to_string()}})).await;
    }
    // The caches have seen everything once a list at the newest revision answers.
    api.get(MAPS).await;
    let mut seen = 0;
    loop {
        let event = watch.next().await.unwrap();
        if event["type"] == "ERROR" {
            assert_eq!(event["object"]["code"], 410);
            break;
        }
        assert_eq!(event["object"]["data"]["a"], seen.to_string());
        seen += 1;
    }
    assert!(seen > 0 && seen < 1_000, "{seen}");
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn tables_and_metadata_are_views_of_the_same_objects() {
    let api = Api::new().await;
    make(&api, "a", "x").await;
    let ask = async |accept: &str| {
        let request = http::Request::builder().uri(MAPS).header("accept", accept).body(body("")).unwrap();
        api.send(request, admin()).await
    };
    let table = ask("application/json;as=Table;v=v1;g=meta.k8s.io").await.json();
    assert_eq!((&table["kind"], &table["columnDefinitions"][0]["name"]), (&json!("Table"), &json!("Name")));
    assert_eq!((&table["rows"][0]["cells"][0], &table["rows"][0]["object"]["kind"]), (&json!("a"), &json!("PartialObjectMetadata")));
    let partial = ask("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.json();
    assert_eq!((&partial["kind"], &partial["items"][0]["data"]), (&json!("PartialObjectMetadataList"), &Value::Null));
    let yaml = ask("application/yaml").await;
    assert!(String::from_utf8_lossy(&yaml.bytes).contains("kind: ConfigMapList"));
    assert!(ask("application/vnd.kubernetes.protobuf").await.bytes.starts_with(b"k8s\0"));
    assert_eq!(ask("image/png").await.code, 406);
}

#[tokio::test]
async fn an_old_watch_of_one_name_sees_that_object_alone() {
    let api = Api::new().await;
    for name in ["a", "b"] {
        make(&api, name, "x").await;
    }
    let old = "/api/v1/watch/namespaces/default/configmaps";
    let mut watch = api.watch(&format!("{old}/b?timeoutSeconds=1")).await;
    assert_eq!(watch.line().await, "ADDED b");
    make(&api, "c", "x").await;
    api.merge(&format!("{MAPS}/b"), json!({"data": {"a": "2"}})).await;
    assert_eq!(watch.line().await, "MODIFIED b");
    for (method, path, code) in [
        ("GET", format!("{old}/b?fieldSelector=metadata.name%3Da"), 400),
        ("GET", format!("{old}/b/status"), 404),
        ("DELETE", old.to_owned(), 405),
        ("POST", old.to_owned(), 405),
        ("GET", "/api/v1/watch/configmaps/b".to_owned(), 404),
    ] {
        assert_eq!(api.ask(method, &path, "application/json", "{}").await.code, code, "{method} {path}");
    }
}

#[tokio::test]
async fn a_watch_that_comes_while_the_server_stops_ends_at_once_like_those_before_it() {
    let api = Api::new().await;
    let path = "/api/v1/namespaces/default/configmaps?watch=1";
    let mut before = api.watch(path).await;
    api.server.stop();
    let mut after = api.watch(path).await;
    let ended = async { (before.next().await, after.next().await) };
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), ended).await;
    assert_eq!(ended.expect("they end"), (None, None));
}
