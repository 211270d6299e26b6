//! Whatever a client sends, the answer is the API's own: never a failure of the server, never a panic, never silence.

mod harness;

use std::time::Duration;

use harness::Api;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const MAP: &str = "/api/v1/namespaces/default/configmaps/m";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

fn deployment(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

async fn furnished() -> Api {
    let api = Api::new().await;
    assert_eq!(api.post(MAPS, json!({"metadata": {"name": "m"}, "data": {"a": "1"}})).await.code, 201);
    assert_eq!(api.post(DEPLOYMENTS, deployment("d")).await.code, 201);
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    assert_eq!(api.post("/api/v1/namespaces/default/services", service).await.code, 201);
    api
}

/// Method, path, content type, body; code and the whole message.
type Case = (&'static str, &'static str, &'static str, &'static str, u16, &'static str);

#[tokio::test]
async fn each_mistake_is_answered_in_upstreams_words() {
    let api = furnished().await;
    let cases: &[Case] = &[
        (
            "POST",
            MAPS,
            JSON,
            "{",
            400,
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input ({)",
        ),
        (
            "POST",
            MAPS,
            "text/plain",
            "{}",
            415,
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        ),
        (
            "POST",
            MAPS,
            JSON,
            r#"{"metadata":{"name":5}}"#,
            400,
            r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string"#,
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps?fieldValidation=Strict",
            JSON,
            r#"{"metadata":{"name":"x","foo":1},"data":{"x":"1","x":"2"}}"#,
            400,
            r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "metadata.foo", duplicate field "data.x""#,
        ),
        (
            "PUT",
            "/api/v1/namespaces/default/configmaps/m?dryRun=x",
            JSON,
            "{}",
            422,
            r#"UpdateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: "x": supported values: "All""#,
        ),
        ("DELETE", "/api/v1/namespaces/default", JSON, "", 403, r#"namespaces "default" is forbidden: this namespace may not be deleted"#),
        (
            "DELETE",
            MAP,
            JSON,
            r#"{"gracePeriodSeconds":"x"}"#,
            400,
            r#"DeleteOptions in version "v1" cannot be handled as a DeleteOptions: json: cannot unmarshal string into Go struct field DeleteOptions.gracePeriodSeconds of type int64"#,
        ),
        (
            "DELETE",
            "/api/v1/namespaces/default/configmaps/m?gracePeriodSeconds=x",
            JSON,
            "",
            400,
            r#"strconv.ParseInt: parsing "x": invalid syntax"#,
        ),
        (
            "DELETE",
            "/api/v1/namespaces/default/configmaps/m?propagationPolicy=x",
            JSON,
            "",
            422,
            r#"DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Unsupported value: "x": supported values: "Foreground", "Background", "Orphan", "nil""#,
        ),
        (
            "PATCH",
            MAP,
            MERGE,
            "[]",
            400,
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        ("PATCH", MAP, STRATEGIC, "{", 400, "error decoding patch: unexpected end of JSON input"),
        ("PATCH", MAP, PATCH, "{}", 400, "error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch"),
        ("PATCH", MAP, PATCH, "[1]", 400, "error decoding patch: json: cannot unmarshal number into Go value of type jsonpatch.Operation"),
        (
            "PATCH",
            MAP,
            MERGE,
            r#"{"data":5}"#,
            400,
            r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type map[string]string"#,
        ),
        (
            "PATCH",
            MAP,
            MERGE,
            r#"{"kind":"Pod"}"#,
            400,
            r#"Pod in version "v1" cannot be handled as a ConfigMap: converting (Pod) to (ConfigMap): unknown conversion"#,
        ),
        ("PATCH", MAP, STRATEGIC, r#"{"metadata":{"$patch":"foo"}}"#, 400, "unknown patch type: foo in map: map[$patch:foo]"),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/default/deployments/d",
            STRATEGIC,
            r#"{"spec":{"replicas":"x"}}"#,
            422,
            r#" "" is invalid: patch: Invalid value: "map[spec:map[replicas:x]]": json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"#,
        ),
        (
            "PATCH",
            MAP,
            APPLY,
            "{}",
            422,
            r#"PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch"#,
        ),
        ("GET", "/api/v1/namespaces/default/configmaps?limit=x", "", "", 400, r#"strconv.ParseInt: parsing "x": invalid syntax"#),
        ("GET", "/api/v1/namespaces/default/configmaps?timeoutSeconds=x", "", "", 400, r#"strconv.ParseInt: parsing "x": invalid syntax"#),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps?resourceVersion=x",
            "",
            "",
            422,
            r#"ListOptions.meta.k8s.io "" is invalid: resourceVersion: Invalid value: "x": strconv.ParseUint: parsing "x": invalid syntax"#,
        ),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps?sendInitialEvents=true",
            "",
            "",
            422,
            r#"ListOptions.meta.k8s.io "" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"#,
        ),
        ("GET", "/api/v1/namespaces/default/configmaps?continue=zzz", "", "", 400, "continue key is not valid: the token is malformed"),
        ("BREW", MAPS, "", "", 405, "the server does not allow this method on the requested resource"),
    ];
    for (method, path, media, body, code, message) in cases {
        let answer = api.ask(method, path, media, *body).await;
        assert_eq!((answer.code, answer.message().as_str()), (*code, *message), "{method} {path} {body}");
        assert_eq!(answer.json()["kind"], "Status", "{method} {path} {body}");
    }
}

#[tokio::test]
async fn a_job_finds_its_pods_by_its_own_uid() {
    let api = Api::new().await;
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let job =
        api.post("/apis/batch/v1/namespaces/default/jobs", json!({"metadata": {"name": "j"}, "spec": {"template": template}})).await.json();
    let uid = &job["metadata"]["uid"];
    assert!(uid.as_str().is_some_and(|uid| !uid.is_empty()));
    assert_eq!(&job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], uid);
    assert_eq!(&job["spec"]["template"]["metadata"]["labels"]["controller-uid"], uid);
}

/// What takes the place of some part of a good body.
fn odd() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(json!(null)),
        Just(json!("")),
        Just(json!(-1)),
        Just(json!(1e300)),
        Just(json!(true)),
        Just(json!(u64::MAX)),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[{}]])),
        Just(json!({"$patch": "delete"})),
        "[\\PC]{0,12}".prop_map(Value::from),
    ];
    scalar.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z$./]{1,8}", inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Puts `odd` at one of the places of `body`.
fn break_at(body: &mut Value, place: usize, odd: Value) {
    fn places(value: &Value, here: String, out: &mut Vec<String>) {
        match value {
            Value::Object(members) => members.iter().for_each(|(key, part)| places(part, format!("{here}/{key}"), out)),
            Value::Array(items) => items.iter().enumerate().for_each(|(index, part)| places(part, format!("{here}/{index}"), out)),
            _ => {}
        }
        out.push(here);
    }
    let mut all = Vec::new();
    places(body, String::new(), &mut all);
    if let Some(part) = body.pointer_mut(&all[place % all.len()]) {
        *part = odd;
    }
}

fn good_bodies() -> Vec<(&'static str, Value)> {
    let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}, "ownerReferences": []}, "spec": {"containers": [{"name": "c", "image": "i",
        "ports": [{"containerPort": 80}], "env": [{"name": "A", "value": "b"}], "resources": {"limits": {"cpu": "1"}},
        "livenessProbe": {"httpGet": {"port": 80}}}], "volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [{"key": "k"}]}});
    let service = json!({"metadata": {"name": "s2"}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80, "targetPort": "http"}]}});
    let job = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let scaler = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}});
    vec![
        (MAPS, json!({"metadata": {"generateName": "m-", "annotations": {"a/b": "c"}}, "data": {"a": "1"}})),
        (DEPLOYMENTS, deployment("e")),
        ("/api/v1/namespaces/default/pods", pod),
        ("/api/v1/namespaces/default/services", service),
        ("/apis/batch/v1/namespaces/default/jobs", job),
        ("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", scaler),
        ("/api/v1/namespaces", json!({"metadata": {"name": "n"}})),
    ]
}

#[derive(Clone, Debug)]
struct Ask {
    method: &'static str,
    path: String,
    media: &'static str,
    body: String,
}

fn ask() -> impl Strategy<Value = Ask> {
    let media =
        prop::sample::select(vec![JSON, "application/yaml", MERGE, STRATEGIC, PATCH, APPLY, "", "application/vnd.kubernetes.protobuf"]);
    let method = prop::sample::select(vec!["POST", "POST", "PUT", "PATCH", "DELETE", "GET"]);
    let tail =
        prop::sample::select(vec!["", "", "/m", "/d", "/s", "/d/scale", "/d/status", "/p/binding", "/p/eviction", "/%2e%2e", "/%00"]);
    let key = prop::sample::select(vec![
        "limit",
        "continue",
        "resourceVersion",
        "resourceVersionMatch",
        "labelSelector",
        "fieldSelector",
        "fieldManager",
        "force",
        "dryRun",
        "fieldValidation",
        "gracePeriodSeconds",
        "propagationPolicy",
        "pretty",
        "timeoutSeconds",
        "includeObject",
    ]);
    let value = prop_oneof![Just("1".to_owned()), Just("x%3Dy".to_owned()), Just("Strict".to_owned()), "[!-$'-;=@-~]{0,10}"];
    let query = prop::option::of((key, value));
    (method, 0..good_bodies().len(), tail, media, any::<prop::sample::Index>(), odd(), query, 0..12_usize).prop_map(
        |(method, kind, tail, media, place, odd, query, cut)| {
            let (base, mut body) = good_bodies().swap_remove(kind);
            break_at(&mut body, place.index(1 << 16), odd);
            if media == PATCH {
                body = json!([{"op": "replace", "path": "/spec", "value": body}]);
            }
            let mut body = body.to_string();
            // Some bodies end too early.
            if cut == 0 {
                let half = (0..=body.len() / 2).rev().find(|at| body.is_char_boundary(*at)).unwrap_or(0);
                body.truncate(half);
            }
            let query = query.map_or(String::new(), |(key, value)| format!("?{key}={}", value.replace('%', "%25")));
            Ask { method, path: format!("{base}{tail}{query}"), media, body }
        },
    )
}

/// A server fault is none of these: a list at a revision that is not there yet is a timeout (504), and so is nothing else.
#[test]
fn no_request_is_the_servers_fault() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let api = runtime.block_on(furnished());
    let mut runner = TestRunner::new(Config { cases: 2_000, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&ask(), |ask| {
        if ask.path.parse::<http::Uri>().is_err() {
            return Ok(());
        }
        let sent = api.ask(ask.method, &ask.path, ask.media, ask.body.clone());
        let answer = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), sent).await });
        let answer = answer.map_err(|_| TestCaseError::fail("no answer"))?;
        prop_assert!(answer.code < 500 || answer.code == 504, "{}: {}", answer.code, answer.message());
        if answer.code >= 400 && answer.code != 404 {
            let status = answer.json();
            prop_assert_eq!(&status["kind"], "Status");
            prop_assert_eq!(status["code"].as_u64(), Some(u64::from(answer.code)));
            prop_assert!(!answer.message().is_empty());
        }
        Ok(())
    });
    outcome.unwrap();
}
