//! Nothing secret where it does not belong: the stored bytes, the audit trail, answers to those who may not read.

mod harness;

use std::sync::Arc;

use auth::UserInfo;
use auth::encryption::Encryption;
use harness::{Api, admin, body};
use http::Request;
use serde_json::{Value, json};
use store::Store;

const PLANTED: &str = "cGxhbnRlZC1zZWNyZXQtdmFsdWU=";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn encryption(keys: &[(&str, u8)]) -> Encryption {
    Encryption::parse(&configuration(keys)).unwrap()
}

fn configuration(keys: &[(&str, u8)]) -> Value {
    use base64::Engine;
    let secret = |fill: u8| base64::engine::general_purpose::STANDARD.encode([fill; 32]);
    let keys: Vec<Value> = keys.iter().map(|(name, fill)| json!({"name": name, "secret": secret(*fill)})).collect();
    json!({"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1",
        "resources": [{"resources": ["secrets"], "providers": [{"aesgcm": {"keys": keys}}, {"identity": {}}]}]})
}

async fn start(store: &Arc<store::memory::Memory>, config: apiserver::Config) -> Api {
    let api = Api { server: apiserver::Server::new(config, store.clone()).unwrap(), store: store.clone() };
    api.server.bootstrap().await.unwrap();
    api
}

async fn stored(store: &store::memory::Memory) -> Vec<u8> {
    let everything = store.range(store::Range { prefix: "/registry/".into(), ..store::Range::default() }).await.unwrap();
    everything.entries.iter().flat_map(|entry| entry.value.to_vec()).collect()
}

fn holds(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// A server whose secret holds [`PLANTED`].
async fn planted(store: &Arc<store::memory::Memory>, config: apiserver::Config) -> Api {
    let api = start(store, config).await;
    let made = api.post(SECRETS, json!({"metadata": {"name": "s"}, "data": {"key": PLANTED}})).await;
    assert_eq!(made.code, 201, "{}", made.message());
    api
}

#[tokio::test]
async fn stored_secrets_are_sealed_and_served_as_they_were() {
    let store = Arc::new(store::memory::Memory::new());
    let api = planted(&store, apiserver::Config { encryption: Some(encryption(&[("k1", 1)])), ..Default::default() }).await;
    assert!(!holds(&stored(&store).await, PLANTED));
    let path = format!("{SECRETS}/s");
    assert_eq!(api.get(&path).await.json()["data"]["key"], PLANTED);
    assert_eq!(api.get(SECRETS).await.json()["items"][0]["data"]["key"], PLANTED);
    let mut watch = api.watch(&format!("{SECRETS}?watch=1&resourceVersion=0")).await;
    assert_eq!(watch.next().await.unwrap()["object"]["data"]["key"], PLANTED);
    assert_eq!(api.merge(&path, json!({"data": {"more": PLANTED}})).await.code, 200);
    assert_eq!(watch.next().await.unwrap()["object"]["data"]["more"], PLANTED);
    let apply = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"more": PLANTED}}).to_string();
    let by = format!("{path}?fieldManager=f&force=true");
    assert_eq!(api.ask("PATCH", &by, "application/apply-patch+yaml", apply).await.code, 200);
    assert!(!holds(&stored(&store).await, PLANTED));
    assert_eq!(api.delete(&path).await.code, 200);
    assert_eq!(watch.next().await.unwrap()["type"], "MODIFIED");
    assert_eq!(watch.line().await, "DELETED s");
}

#[tokio::test]
async fn a_new_first_key_seals_everything_again_and_the_old_one_can_go() {
    let store = Arc::new(store::memory::Memory::new());
    drop(planted(&store, apiserver::Config::default()).await);
    assert!(holds(&stored(&store).await, PLANTED), "without encryption it lies open");
    for keys in [&[("k1", 1)][..], &[("k2", 2), ("k1", 1)], &[("k2", 2)]] {
        let api = start(&store, apiserver::Config { encryption: Some(encryption(keys)), ..Default::default() }).await;
        assert_eq!(api.get(&format!("{SECRETS}/s")).await.json()["data"]["key"], PLANTED, "{keys:?}");
        let prefix = format!("k8s:enc:aesgcm:v1:{}:", keys[0].0);
        for _ in 0..100 {
            let entry = store.get(b"/registry/secrets/default/s").await.unwrap().unwrap();
            if entry.value.starts_with(prefix.as_bytes()) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let entry = store.get(b"/registry/secrets/default/s").await.unwrap().unwrap();
        assert!(entry.value.starts_with(prefix.as_bytes()), "{keys:?}");
    }
}

const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
- {level: None, users: ['system:apiserver']}
- {level: RequestResponse}
";

#[tokio::test]
async fn the_trail_tells_what_the_policy_wants_and_never_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.log");
    let store = Arc::new(store::memory::Memory::new());
    let config = apiserver::Config { audit_file: Some(file.clone()), audit_policy: Some(POLICY.into()), ..Default::default() };
    let api = planted(&store, config).await;
    api.get(SECRETS).await;
    api.merge(&format!("{SECRETS}/s"), json!({"data": {"more": PLANTED}})).await;
    api.post("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": PLANTED}})).await;
    api.post("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "m"}, "data": {"a": "told"}})).await;
    let impersonating = Request::builder().uri(format!("{SECRETS}/s")).header("impersonate-user", "joe").body(body("")).unwrap();
    let refused = api.send(impersonating, admin()).await;
    assert_eq!(refused.code, 403);
    let nobody = Request::builder().uri(SECRETS).header("authorization", format!("Bearer {PLANTED}")).body(body("")).unwrap();
    assert_eq!(api.server.handle(nobody, None).await.status(), 401);
    assert_eq!(api.send(Request::builder().uri("/version").body(body("")).unwrap(), UserInfo::anonymous()).await.code, 200);
    let mut lines: Vec<Value> = Vec::new();
    for _ in 0..100 {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains(PLANTED), "the trail holds the secret");
        lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        if lines.iter().any(|line| line["requestURI"] == "/version" && line["stage"] == "ResponseComplete") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let find = |uri: &str, verb: &str, stage: &str| {
        let wanted = |line: &&Value| line["requestURI"] == uri && line["verb"] == verb && line["stage"] == stage;
        lines.iter().find(wanted).unwrap_or_else(|| panic!("{uri} {verb} {stage}")).clone()
    };
    let maps = find("/api/v1/namespaces/default/configmaps", "create", "ResponseComplete");
    assert_eq!((&maps["requestObject"]["data"]["a"], &maps["responseObject"]["data"]["a"]), (&json!("told"), &json!("told")));
    assert_eq!(maps["responseObject"]["metadata"].get("managedFields"), None);
    assert_eq!((&maps["level"], &maps["responseStatus"]["code"]), (&json!("RequestResponse"), &json!(201)));
    assert_eq!(maps["objectRef"], json!({"resource": "configmaps", "namespace": "default", "apiVersion": "v1"}));
    assert_eq!(find(SECRETS, "create", "ResponseComplete")["level"], "Metadata");
    find(SECRETS, "create", "RequestReceived");
    let joe = lines.iter().find(|line| line["impersonatedUser"]["username"] == "joe" && line["stage"] == "ResponseComplete").unwrap();
    assert_eq!((&joe["user"]["username"], &joe["annotations"]["authorization.k8s.io/decision"]), (&json!("admin"), &json!("forbid")));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_key_is_exchanged_while_the_server_runs() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("encryption.yaml");
    std::fs::write(&file, configuration(&[("k1", 1)]).to_string()).unwrap();
    let store = Arc::new(store::memory::Memory::new());
    let config =
        apiserver::Config { encryption: Some(encryption(&[("k1", 1)])), encryption_file: Some(file.clone()), ..Default::default() };
    let api = planted(&store, config).await;
    let sealed_by = async |key: &str| {
        let prefix = format!("k8s:enc:aesgcm:v1:{key}:");
        for _ in 0..400 {
            if store.get(b"/registry/secrets/default/s").await.unwrap().unwrap().value.starts_with(prefix.as_bytes()) {
                return true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        false
    };
    assert!(sealed_by("k1").await);
    for keys in [&[("k2", 2), ("k1", 1)][..], &[("k2", 2)]] {
        std::fs::write(&file, configuration(keys).to_string()).unwrap();
        assert!(sealed_by("k2").await, "{keys:?}");
        assert_eq!(api.get(&format!("{SECRETS}/s")).await.json()["data"]["key"], PLANTED);
    }
    std::fs::write(&file, "nonsense").unwrap();
    assert_eq!(api.merge(&format!("{SECRETS}/s"), json!({"data": {"more": PLANTED}})).await.code, 200);
    assert!(!holds(&stored(&store).await, PLANTED));
}

#[tokio::test]
async fn error_texts_do_not_repeat_what_a_secret_holds() {
    let store = Arc::new(store::memory::Memory::new());
    let api = planted(&store, apiserver::Config::default()).await;
    let bad = [
        json!({"metadata": {"name": "t"}, "data": {"key": format!("!{PLANTED}")}}),
        json!({"metadata": {"name": "t"}, "data": {"bad key": PLANTED}}),
        json!({"metadata": {"name": "t"}, "type": "kubernetes.io/tls", "data": {"tls.crt": PLANTED}}),
        json!({"metadata": {"name": "t"}, "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": PLANTED}}),
    ];
    for object in bad {
        let answer = api.post(SECRETS, object.clone()).await;
        assert!(answer.code >= 400, "{object}");
        assert!(!holds(&answer.bytes, PLANTED), "{}", answer.message());
    }
}

/// Everything that is logged while it lives, at every level.
fn logged() -> (Arc<std::sync::Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    #[derive(Clone)]
    struct Sink(Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Sink(lines.clone());
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || sink.clone()).finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn neither_logs_nor_events_nor_metrics_nor_dumps_nor_webhooks_errors_hold_what_was_planted() {
    use harness::hooks::{hook, mutating, server, validating};
    let (lines, _guard) = logged();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.log");
    let store = Arc::new(store::memory::Memory::new());
    let config = apiserver::Config { audit_file: Some(file.clone()), encryption: Some(encryption(&[("k1", 1)])), ..Default::default() };
    let api = planted(&store, config).await;
    let mut answers: Vec<(String, Vec<u8>)> = Vec::new();
    // Webhooks that break while they hold the secret in their hands.
    let hooks = server().await;
    let rules = json!([{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"]}]);
    mutating(&api, "m", vec![hook(&hooks, "broken.example.com", "/broken-patch", json!({"rules": rules, "failurePolicy": "Ignore"}))])
        .await;
    let secret = || json!({"metadata": {"name": "t"}, "data": {"key": PLANTED}});
    answers.push(("a patch that does not fit".into(), api.post(SECRETS, secret()).await.bytes.to_vec()));
    let gone = api.delete("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/m").await;
    assert_eq!(gone.code, 200);
    validating(&api, vec![hook(&hooks, "crash.example.com", "/crash", json!({"rules": rules}))]).await;
    answers.push(("a webhook that crashes".into(), api.post(SECRETS, secret()).await.bytes.to_vec()));
    let gone = api.delete("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/v").await;
    assert_eq!(gone.code, 200);
    // A policy that cannot be evaluated over it.
    let spec = json!({"matchConstraints": {"resourceRules": rules}, "validations": [{"expression": "object.data.key == 'x' && object.data.none == 'y'"}]});
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let made = api.post(policies, json!({"metadata": {"name": "p"}, "spec": spec})).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny", "Audit"]}});
    let bound = api.post("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings", binding).await;
    let listed = format!("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings?resourceVersion={}", bound.version());
    assert_eq!((bound.code, api.get(&listed).await.code), (201, 200), "{}", bound.message());
    let refused = api.merge(&format!("{SECRETS}/s"), json!({"data": {"more": PLANTED}})).await;
    assert_eq!(refused.code, 422);
    answers.push(("a policy".into(), refused.bytes.to_vec()));
    // Credentials that are wrong, in every place where they may stand.
    for (name, value) in [
        ("authorization", format!("Bearer {PLANTED}")),
        ("sec-websocket-protocol", format!("base64url.bearer.authorization.k8s.io.{PLANTED}")),
    ] {
        let request = Request::builder().uri(SECRETS).header(name, value).body(body("")).unwrap();
        let answer = api.server.handle(request, None).await;
        assert!(matches!(answer.status().as_u16(), 401 | 403), "{name}: {}", answer.status());
    }
    // Bodies that cannot be read.
    for broken in
        [format!("{{\"data\": {{\"key\": \"{PLANTED}\""), format!("{{\"metadata\": {{\"name\": \"u\"}}, \"stringData\": [\"{PLANTED}\"]}}")]
    {
        let answer = api.ask("POST", SECRETS, "application/json", broken).await;
        assert!(answer.code >= 400);
        answers.push(("a broken body".into(), answer.bytes.to_vec()));
    }
    for path in ["/api/v1/events", "/metrics", "/debug/api_priority_and_fairness/dump_requests?includeRequestDetails=1", "/readyz?verbose"]
    {
        answers.push((path.into(), api.get(path).await.bytes.to_vec()));
    }
    for (what, bytes) in answers {
        assert!(!holds(&bytes, PLANTED), "{what}: {}", String::from_utf8_lossy(&bytes));
    }
    assert!(!holds(&stored(&store).await, PLANTED), "stored");
    assert!(!holds(&std::fs::read(&file).unwrap(), PLANTED), "the audit trail");
    let lines = lines.lock().unwrap();
    assert!(holds(&lines, "crash.example.com"), "something was logged");
    assert!(!holds(&lines, PLANTED), "the logs: {}", String::from_utf8_lossy(&lines));
}
