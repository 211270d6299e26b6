//! What an AdmissionConfiguration file makes of plugins, against the real server: their configurations, and the servers outside that they ask.

mod harness;

use std::path::Path;
use std::time::Instant;

use harness::Api;
use harness::cases::{Has, Made, Refused, check, namespace, pod};
use harness::hooks::{CONFIG_MAPS, create, hook, review, validating};
use harness::https::{Https, Reply, Seen};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/a/pods";

/// The file with these plugins' configurations, the odd ones in files of their own beside it.
fn write(directory: &Path, plugins: &[(&str, Value)]) -> std::path::PathBuf {
    let plugins: Vec<Value> = plugins
        .iter()
        .enumerate()
        .map(|(at, (name, configuration))| {
            if at % 2 == 0 {
                return json!({"name": name, "configuration": configuration});
            }
            let file = format!("{name}.yaml");
            std::fs::write(directory.join(&file), configuration.to_string()).unwrap();
            json!({"name": name, "path": file})
        })
        .collect();
    let path = directory.join("admission.yaml");
    let document = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration", "plugins": plugins});
    std::fs::write(&path, document.to_string()).unwrap();
    path
}

async fn server(enable: &[&str], file: &Path) -> Api {
    let mut options =
        admission::Options { enable: enable.iter().map(|name| (*name).to_owned()).collect(), ..admission::Options::default() };
    options.read(file).unwrap();
    let api = Api::with(apiserver::Config { admission: options, ..apiserver::Config::default() }).await;
    namespace(&api, "a", json!({}), json!({})).await;
    api
}

/// How this cluster finds a server outside, and what it shows there.
fn kubeconfig(directory: &Path, https: &Https, path: &str, users: Value) -> String {
    let file = directory.join(format!("kubeconfig{}", users.as_array().map_or(0, Vec::len)));
    let cluster = json!({"server": format!("https://localhost:{}{path}", https.port), "certificate-authority-data": https.bundle()});
    let config = json!({"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "w", "cluster": cluster}], "users": users});
    std::fs::write(&file, config.to_string()).unwrap();
    file.display().to_string()
}

/// Says what the first image's name says.
async fn image_policy() -> Https {
    Https::start(&[], |seen: &Seen| {
        let review = |allowed: bool, reason: &str| {
            Reply::Json(json!({"kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "status": {"allowed": allowed, "reason": reason}}))
        };
        match seen.body["spec"]["containers"][0]["image"].as_str().unwrap_or_default() {
            "bad" => review(false, "it is bad"),
            "bad-and-silent" => review(false, ""),
            "nonsense" => Reply::Text(200, "<html>".into()),
            "error" => Reply::Text(500, "boom".into()),
            "crash" => Reply::Crash,
            _ => review(true, ""),
        }
    })
    .await
}

#[tokio::test]
async fn an_image_policy_backend_decides_and_its_silence_means_what_the_file_says() {
    let https = image_policy().await;
    let directory = tempfile::tempdir().unwrap();
    let users = json!([{"name": "us", "user": {"token": "our-own-token"}}]);
    let path = kubeconfig(directory.path(), &https, "/review", users);
    let policy = |allows: bool| json!({"imagePolicy": {"kubeConfigFile": path, "defaultAllow": allows, "allowTTL": 60, "denyTTL": 60}});
    let api = server(&["ImagePolicyWebhook"], &write(directory.path(), &[("ImagePolicyWebhook", policy(false))])).await;
    let image = |name: &str, image: &str| pod(name, json!({"containers": [{"name": "c", "image": image}]}));
    check(
        &api,
        vec![
            ("a good image", PODS, image("p1", "good"), Made),
            ("a bad one", PODS, image("p2", "bad"), Refused(403, "image policy webhook backend denied one or more images: it is bad")),
            ("without a reason", PODS, image("p3", "bad-and-silent"), Refused(403, "one or more images rejected by webhook backend")),
            ("nonsense", PODS, image("p4", "nonsense"), Refused(403, "expected value at line 1")),
            (
                "an error",
                PODS,
                image("p5", "error"),
                Refused(403, "an error on the server (\"boom\") has prevented the request from succeeding"),
            ),
            ("a crash", PODS, image("p6", "crash"), Refused(403, "EOF")),
            ("none of its business", CONFIG_MAPS, json!({"metadata": {"name": "m"}}), Made),
        ],
    )
    .await;
    let seen = https.seen();
    assert!(seen.iter().all(|seen| seen.headers["authorization"] == "Bearer our-own-token"));
    assert_eq!((&seen[0].body["kind"], &seen[0].body["spec"]["namespace"]), (&json!("ImageReview"), &json!("a")));
    let before = seen.len();
    assert_eq!(api.post(PODS, image("p7", "good")).await.code, 201);
    assert_eq!(https.seen().len(), before, "its answer holds for a while");
    let api = server(&["ImagePolicyWebhook"], &write(directory.path(), &[("ImagePolicyWebhook", policy(true))])).await;
    let allowed = api.post(PODS, image("p1", "crash")).await;
    assert_eq!(allowed.code, 201, "silence allows: {}", allowed.message());
    assert_eq!(api.post(PODS, image("p2", "bad")).await.code, 403, "an answer is none");
}

#[tokio::test]
async fn pod_securitys_defaults_and_exemptions_come_from_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let configuration = json!({"apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration",
        "defaults": {"enforce": "baseline", "enforce-version": "latest", "warn": "restricted"},
        "exemptions": {"usernames": ["trusted"], "namespaces": ["system"], "runtimeClasses": ["sandboxed"]}});
    let api = server(&[], &write(directory.path(), &[("EventRateLimit", json!({"limits": []})), ("PodSecurity", configuration)])).await;
    namespace(&api, "system", json!({}), json!({})).await;
    namespace(&api, "open", json!({"pod-security.kubernetes.io/enforce": "privileged"}), json!({})).await;
    let class = json!({"metadata": {"name": "sandboxed"}, "handler": "h"});
    harness::cases::make(&api, "/apis/node.k8s.io/v1/runtimeclasses", class).await;
    let privileged = |name: &str, more: Value| {
        let mut spec = json!({"containers": [{"name": "c", "image": "i", "securityContext": {"privileged": true}}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pod(name, spec)
    };
    let why = "violates PodSecurity \"baseline:latest\": privileged";
    check(
        &api,
        vec![
            ("the default", PODS, privileged("p1", json!({})), Refused(403, why)),
            ("a label is stronger", "/api/v1/namespaces/open/pods", privileged("p2", json!({})), Made),
            ("an exempt namespace", "/api/v1/namespaces/system/pods", privileged("p3", json!({})), Made),
            ("an exempt runtime class", PODS, privileged("p4", json!({"runtimeClassName": "sandboxed"})), Made),
            ("what baseline allows", PODS, pod("p5", json!({})), Has("/metadata/name", json!("p5"))),
        ],
    )
    .await;
    let warned = api.post(PODS, pod("p6", json!({}))).await;
    assert!(warned.warnings()[0].contains(r#"would violate PodSecurity \"restricted:latest\""#), "{:?}", warned.warnings());
    let body = harness::body(privileged("p7", json!({})).to_string());
    let request = http::Request::post(PODS).header("content-type", "application/json").body(body).unwrap();
    let trusted = api.send(request, auth::UserInfo::authenticated("trusted", &["system:masters"])).await;
    assert_eq!(trusted.code, 201, "an exempt user: {}", trusted.message());
}

#[tokio::test]
async fn events_are_bounded_by_server_namespace_user_and_source() {
    let event = |name: &str, object: &str| {
        json!({"metadata": {"name": name}, "involvedObject": {"namespace": "a", "kind": "Pod", "name": object}, "reason": "R",
            "message": "m", "type": "Normal", "source": {"component": "c"}})
    };
    // The type, and whether an event passes: of the same kind, in another namespace, about another object.
    let cases = [("Server", [false, false, false]), ("Namespace", [false, true, false]), ("SourceAndObject", [false, false, true])];
    for (kind, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        let limits = json!({"limits": [{"type": kind, "qps": 1, "burst": 1, "cacheSize": 50}]});
        let api = server(&["EventRateLimit"], &write(directory.path(), &[("EventRateLimit", limits)])).await;
        namespace(&api, "b", json!({}), json!({})).await;
        let started = Instant::now();
        let (here, there) = ("/api/v1/namespaces/a/events", "/api/v1/namespaces/b/events");
        assert_eq!(api.post(here, event("e1", "p")).await.code, 201, "{kind}");
        let mut elsewhere = event("e3", "p");
        elsewhere["involvedObject"]["namespace"] = "b".into();
        let found = [api.post(here, event("e2", "p")).await, api.post(there, elsewhere).await, api.post(here, event("e4", "q")).await];
        // A second later there is room again.
        if started.elapsed().as_millis() < 900 {
            let in_another_namespace = kind == "SourceAndObject" || expected[1];
            let codes = [expected[0], in_another_namespace, expected[2]].map(|passes| if passes { 201 } else { 429 });
            assert_eq!(found.each_ref().map(|answer| answer.code), codes, "{kind}");
            assert!(found[0].message().contains(&format!("limit reached on type {kind}")), "{}", found[0].message());
        }
    }
}

#[tokio::test]
async fn webhooks_are_shown_the_credentials_that_the_file_names_for_them() {
    let https = Https::start(&[], |seen: &Seen| match seen.headers.get("authorization").is_some_and(|shown| shown == "Bearer for-hooks") {
        true => review(seen, json!({"allowed": true})),
        false => Reply::Text(401, "who are you?".into()),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    for (users, code) in [
        (json!([{"name": format!("localhost:{}", https.port), "user": {"token": "for-hooks"}}]), 201),
        (json!([{"name": "other.example.com", "user": {"token": "for-hooks"}}, {"name": "x", "user": {}}]), 500),
    ] {
        let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration",
            "kubeConfigFile": kubeconfig(directory.path(), &https, "", users)});
        let file = write(directory.path(), &[("ValidatingAdmissionWebhook", configuration)]);
        let api = server(&[], &file).await;
        validating(&api, vec![hook(&https, "w.example.com", "/", json!({}))]).await;
        let answer = create(&api, "m").await;
        assert_eq!(answer.code, code, "{}", answer.message());
        if code == 500 {
            let why = "failed calling webhook \"w.example.com\": failed to call webhook: the server has asked for the client to provide credentials";
            assert!(answer.message().contains(why), "{}", answer.message());
        }
    }
}

#[test]
fn a_file_that_cannot_be_used_stops_the_start_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let gone = json!({"kubeConfigFile": "/nowhere/kubeconfig"});
    let cases = [
        ("ValidatingAdmissionWebhook", gone.clone(), "kubeConfigFile /nowhere/kubeconfig: No such file or directory"),
        ("ImagePolicyWebhook", json!({"imagePolicy": gone}), "kubeConfigFile /nowhere/kubeconfig: No such file or directory"),
        ("EventRateLimit", json!({"limits": [{"type": "Galaxy", "qps": 1, "burst": 1}]}), "limits.type: Unsupported value: \"Galaxy\""),
        ("PodSecurity", json!({"defaults": {"enforce": "strict"}}), "defaults.enforce: "),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    for (plugin, configuration, expected) in cases {
        let mut options = admission::Options { enable: vec![plugin.to_owned()], ..admission::Options::default() };
        options.read(&write(directory.path(), &[(plugin, configuration)])).unwrap();
        let config = apiserver::Config { admission: options, ..apiserver::Config::default() };
        let error = apiserver::Server::new(config, std::sync::Arc::new(store::memory::Memory::new())).err().unwrap();
        let said = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(said.contains(plugin) && said.contains(expected), "{plugin}: {said}");
    }
    let path = directory.path().join("other.yaml");
    std::fs::write(&path, "kind: Nonsense").unwrap();
    let why = admission::Options::default().read(&path).err().unwrap().to_string();
    assert!(why.ends_with("expected kind AdmissionConfiguration of apiserver.config.k8s.io/v1"), "{why}");
}
