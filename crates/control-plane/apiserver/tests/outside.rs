//! Identities and decisions from outside, by real HTTPS servers: token issuers, webhooks that know tokens, webhooks that decide; and the files that
//! name them, changed while the server runs.

mod harness;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use apiserver::{Config, Source, TokenWebhook};
use auth::UserInfo;
use auth::tokens::{Bound, Issuer, Reference};
use harness::https::{Https, Reply, Seen};
use harness::{Answer, Api, body};
use http::Request;
use serde_json::{Value, json};

const SELF: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

async fn with_token(api: &Api, token: &str) -> (u16, Value) {
    let request = Request::builder().method("POST").uri(SELF).header("content-type", "application/json");
    let request = request.header("authorization", format!("Bearer {token}")).body(body("{}")).unwrap();
    let response = api.server.handle(request, None).await;
    let code = response.status().as_u16();
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    (code, serde_json::from_slice::<Value>(&bytes).unwrap()["status"]["userInfo"].clone())
}

async fn as_user(api: &Api, name: &str, path: &str) -> Answer {
    api.send(Request::builder().uri(path).body(body("")).unwrap(), UserInfo::authenticated(name, &[])).await
}

/// Asks until the answer is as wanted; what follows files and fetches keys does so on its own.
async fn eventually<T: PartialEq + std::fmt::Debug>(wanted: T, ask: impl AsyncFn() -> T) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let got = ask().await;
        if got == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{got:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A token issuer with a key that can be exchanged.
struct TokenIssuer {
    https: Https,
    key: Arc<Mutex<Issuer>>,
}

impl TokenIssuer {
    async fn start() -> Self {
        let key = Arc::new(Mutex::new(new_key("")));
        let shown = key.clone();
        let answer = move |seen: &Seen| {
            let host = seen.headers["host"].to_str().unwrap();
            match seen.path.as_str() {
                "/.well-known/openid-configuration" => {
                    Reply::Json(json!({"issuer": format!("https://{host}"), "jwks_uri": format!("https://{host}/keys")}))
                }
                "/keys" => Reply::Json(shown.lock().unwrap().key_set()),
                _ => Reply::Text(404, String::new()),
            }
        };
        let https = Https::start(&[], answer).await;
        let made = Self { https, key };
        made.change_key();
        made
    }
    fn url(&self) -> String {
        format!("https://localhost:{}", self.https.port)
    }
    fn change_key(&self) {
        *self.key.lock().unwrap() = new_key(&self.url());
    }
    fn token(&self, name: &str, audience: &str) -> String {
        let serviceaccount = Reference { name: name.into(), uid: String::new() };
        let bound = Bound { namespace: "corp".into(), serviceaccount, ..Bound::default() };
        let now = meta::time::epoch(&meta::time::now()).unwrap();
        self.key.lock().unwrap().issue(bound, &[audience.to_owned()], 600, now).unwrap()
    }
    /// Names its users `corp:<name>`.
    fn configuration(&self) -> Value {
        json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [{
            "issuer": {"url": self.url(), "audiences": ["cluster"], "certificateAuthority": self.https.ca},
            "claimMappings": {
                "username": {"expression": "'corp:' + claims['kubernetes.io'].serviceaccount.name"},
                "groups": {"expression": "['corp:' + claims['kubernetes.io'].namespace]"},
            },
            "userValidationRules": [{"expression": "user.username != 'corp:mallory'", "message": "not her"}],
        }]})
    }
}

fn new_key(issuer: &str) -> Issuer {
    Issuer::new(&rcgen::KeyPair::generate().unwrap().serialize_pem(), issuer).unwrap()
}

#[tokio::test]
async fn tokens_of_a_configured_issuer_stand_for_its_users_also_after_it_changed_its_key() {
    let issuer = TokenIssuer::start().await;
    let api = Api::with(Config { authentication: Some(Source::Text(issuer.configuration().to_string())), ..Config::default() }).await;
    let good = issuer.token("ann", "cluster");
    eventually(201, async || with_token(&api, &good).await.0).await;
    let (_, user) = with_token(&api, &good).await;
    assert_eq!((&user["username"], &user["groups"]), (&json!("corp:ann"), &json!(["corp:corp", "system:authenticated"])));
    assert_eq!(with_token(&api, &issuer.token("ann", "elsewhere")).await.0, 401);
    assert_eq!(with_token(&api, &issuer.token("mallory", "cluster")).await.0, 401);
    assert_eq!(with_token(&api, "nonsense").await.0, 401);
    let stranger = TokenIssuer::start().await;
    assert_eq!(with_token(&api, &stranger.token("ann", "cluster")).await.0, 401);
    issuer.change_key();
    let asked = |path: &str| issuer.https.seen().iter().filter(|seen| seen.path == path).count();
    assert_eq!(asked("/keys"), 1);
    eventually(201, async || with_token(&api, &issuer.token("joe", "cluster")).await.0).await;
    assert_eq!(with_token(&api, &good).await.0, 401, "the issuer took its old key back");
    assert_eq!(asked("/.well-known/openid-configuration"), 1);
    let review = json!({"spec": {"token": issuer.token("ann", "cluster")}});
    let status = api.post("/apis/authentication.k8s.io/v1/tokenreviews", review).await.json()["status"].clone();
    assert_eq!((&status["authenticated"], &status["user"]["username"]), (&json!(true), &json!("corp:ann")));
}

/// A signed token (ES256) with any claims.
fn signed(key: &aws_lc_rs::signature::EcdsaKeyPair, claims: &Value) -> String {
    use base64::Engine;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!("{}.{}", encode(br#"{"alg":"ES256"}"#), encode(claims.to_string().as_bytes()));
    let signature = key.sign(&aws_lc_rs::rand::SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", encode(signature.as_ref()))
}

#[tokio::test]
async fn groups_that_a_token_has_elsewhere_are_fetched_and_must_be_signed_there() {
    use aws_lc_rs::encoding::AsBigEndian;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use base64::Engine;
    let key = Arc::new(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let point: aws_lc_rs::encoding::EcPublicKeyUncompressedBin<'_> = key.public_key().as_be_bytes().unwrap();
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": encode(&point.as_ref()[1..33]), "y": encode(&point.as_ref()[33..])});
    let answering = key.clone();
    let https = Https::start(&[], move |seen: &Seen| {
        let url = format!("https://{}", seen.headers["host"].to_str().unwrap());
        let groups = |by: &EcdsaKeyPair| {
            Reply::Text(200, signed(by, &json!({"iss": url, "aud": "cluster", "exp": 4_000_000_000_u64, "groups": ["admins", "devs"]})))
        };
        match seen.path.as_str() {
            "/.well-known/openid-configuration" => Reply::Json(json!({"issuer": url, "jwks_uri": format!("{url}/keys")})),
            "/keys" => Reply::Json(json!({"keys": [jwk]})),
            "/groups" if seen.headers["authorization"] == "Bearer for-groups" => groups(&answering),
            "/forged" => groups(&EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()),
            _ => Reply::Text(403, String::new()),
        }
    })
    .await;
    let url = format!("https://localhost:{}", https.port);
    let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [{
        "issuer": {"url": url, "audiences": ["cluster"], "certificateAuthority": https.ca},
        "claimMappings": {"username": {"claim": "sub", "prefix": ""}, "groups": {"claim": "groups", "prefix": "corp:"}},
    }]});
    let api = Api::with(Config { authentication: Some(Source::Text(configuration.to_string())), ..Config::default() }).await;
    let token = |path: &str, access: &str| {
        let source = json!({"endpoint": format!("{url}{path}"), "access_token": access});
        signed(
            &key,
            &json!({"iss": url, "aud": "cluster", "exp": 4_000_000_000_u64, "sub": "ann",
            "_claim_names": {"groups": "src"}, "_claim_sources": {"src": source}}),
        )
    };
    eventually(201, async || with_token(&api, &token("/groups", "for-groups")).await.0).await;
    let (_, user) = with_token(&api, &token("/groups", "for-groups")).await;
    assert_eq!((&user["username"], &user["groups"]), (&json!("ann"), &json!(["corp:admins", "corp:devs", "system:authenticated"])));
    for (path, access) in [("/groups", "another's"), ("/forged", ""), ("/nowhere", "")] {
        assert_eq!(with_token(&api, &token(path, access)).await.0, 401, "{path}");
    }
}

#[tokio::test]
async fn the_authentication_file_is_followed_and_a_broken_one_changes_nothing() {
    let issuer = TokenIssuer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("authentication.yaml");
    let mut configuration = issuer.configuration();
    configuration["jwt"] = json!([]);
    configuration["anonymous"] = json!({"enabled": true, "conditions": [{"path": "/livez"}]});
    std::fs::write(&file, configuration.to_string()).unwrap();
    let api = Api::with(Config { authentication: Some(Source::File(file.clone())), ..Config::default() }).await;
    let anonymous =
        async |path: &str| api.server.handle(Request::builder().uri(path).body(body("")).unwrap(), None).await.status().as_u16();
    assert_eq!((anonymous("/livez").await, anonymous("/version").await), (200, 401));
    let token = issuer.token("ann", "cluster");
    assert_eq!(with_token(&api, &token).await.0, 401);
    std::fs::write(&file, issuer.configuration().to_string()).unwrap();
    eventually(201, async || with_token(&api, &token).await.0).await;
    assert_eq!(anonymous("/version").await, 200);
    std::fs::write(&file, "kind: Nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(with_token(&api, &token).await.0, 201);
    let why = apiserver::Server::new(
        Config { authentication: Some(Source::File(file)), ..Config::default() },
        Arc::new(store::memory::Memory::new()),
    );
    assert!(why.err().unwrap().to_string().starts_with("authentication configuration: "));
}

/// The file by which the API server finds a webhook.
fn kubeconfig(directory: &tempfile::TempDir, https: &Https, path: &str) -> std::path::PathBuf {
    let file = directory.path().join(format!("kubeconfig{}", https.port));
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "w", "cluster": {"server": format!("https://localhost:{}{path}", https.port), "certificate-authority-data": https.bundle()}}],
        "users": [{"name": "us", "user": {"token": "our-own-token"}}],
        "contexts": [{"name": "c", "context": {"cluster": "w", "user": "us"}}]});
    std::fs::write(&file, config.to_string()).unwrap();
    file
}

#[tokio::test]
async fn a_webhook_that_knows_tokens_is_asked_once_for_each() {
    let https = Https::start(&[], |seen| {
        let status = match seen.body["spec"]["token"].as_str().unwrap() {
            "good" => json!({"authenticated": true, "user": {"username": "ann", "uid": "7", "groups": ["devs"], "extra": {"a/b": ["c"]}}}),
            "root" => json!({"authenticated": true, "user": {"username": "system:serviceaccount:kube-system:root"}}),
            "bad" => json!({"authenticated": false, "error": "who is that?"}),
            _ => return Reply::Crash,
        };
        Reply::Json(json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}))
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let webhook =
        TokenWebhook { kubeconfig: kubeconfig(&directory, &https, "/tokens"), cache: Duration::from_secs(60), version: "v1".into() };
    let api = Api::with(Config { token_webhook: Some(webhook), ..Config::default() }).await;
    for _ in 0..3 {
        let (code, user) = with_token(&api, "good").await;
        assert_eq!(code, 201);
        assert_eq!(user, json!({"username": "ann", "uid": "7", "groups": ["devs", "system:authenticated"], "extra": {"a/b": ["c"]}}));
        assert_eq!(with_token(&api, "bad").await.0, 401);
    }
    let seen = https.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[0].path.as_str(), &seen[0].headers["authorization"]), ("/tokens", &"Bearer our-own-token".parse().unwrap()));
    assert_eq!(
        with_token(&api, "root").await.1["groups"],
        json!(["system:authenticated"]),
        "nothing is added that the webhook did not say"
    );
    let review = api.post("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": "bad"}})).await.json();
    assert_eq!(review["status"]["error"], "[invalid bearer token, who is that?]");
    // A crash is no answer: it is asked again.
    let asked = || https.seen().iter().filter(|seen| seen.body["spec"]["token"] == "crash").count();
    assert_eq!(with_token(&api, "crash").await.0, 401);
    let before = asked();
    assert_eq!(with_token(&api, "crash").await.0, 401);
    assert!(asked() > before);
}

/// Decides by the user's name.
async fn decider() -> Https {
    Https::start(&[], |seen| {
        let spec = &seen.body["spec"];
        let status = match spec["user"].as_str().unwrap() {
            "ann" => json!({"allowed": true, "reason": "I like her"}),
            "mallory" => json!({"allowed": false, "denied": true, "reason": "not her"}),
            "nonsense" => return Reply::Text(200, "nonsense".into()),
            "crash" => return Reply::Crash,
            "hang" => return Reply::Hang,
            _ => json!({"allowed": false, "reason": "never heard of"}),
        };
        Reply::Json(json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status}))
    })
    .await
}

fn webhook(directory: &tempfile::TempDir, https: &Https, name: &str, more: Value) -> Value {
    let mut settings = json!({"timeout": "500ms", "subjectAccessReviewVersion": "v1", "failurePolicy": "NoOpinion",
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": kubeconfig(directory, https, "/")}});
    more.as_object().unwrap().iter().for_each(|(key, value)| settings[key] = value.clone());
    json!({"type": "Webhook", "name": name, "webhook": settings})
}

fn authorizers(list: Value) -> String {
    json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": list}).to_string()
}

#[tokio::test]
async fn the_trail_goes_to_a_receiver_in_batches_and_a_failure_loses_none_of_it() {
    let failing = std::sync::atomic::AtomicBool::new(true);
    let https = Https::start(&[], move |_| match failing.swap(false, std::sync::atomic::Ordering::SeqCst) {
        true => Reply::Text(503, "later".into()),
        false => Reply::Json(json!({})),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let webhook = apiserver::AuditWebhook { kubeconfig: kubeconfig(&directory, &https, "/audit"), wait_max: Duration::from_millis(300) };
    let api = Api::with(Config { audit_webhook: Some(webhook), ..Config::default() }).await;
    for name in ["one", "two", "three"] {
        api.post(MAPS, json!({"metadata": {"name": name}})).await;
    }
    eventually(2, async || https.seen().len()).await;
    let seen = https.seen();
    assert_eq!(seen[0].body, seen[1].body);
    assert_eq!((&seen[0].body["kind"], &seen[0].body["apiVersion"]), (&json!("EventList"), &json!("audit.k8s.io/v1")));
    let items = seen[0].body["items"].as_array().unwrap();
    assert_eq!(items.iter().map(|event| event["verb"].as_str().unwrap()).collect::<Vec<_>>(), ["create"; 3]);
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_decide_in_their_order_and_their_silence_means_what_the_file_says() {
    let (https, strict) = (decider().await, decider().await);
    let directory = tempfile::tempdir().unwrap();
    let rbac = || json!({"type": "RBAC", "name": "rbac"});
    let conditions = json!({"failurePolicy": "Deny", "matchConditionSubjectAccessReviewVersion": "v1",
        "matchConditions": [{"expression": "has(request.resourceAttributes) && request.resourceAttributes.resource == 'secrets'"}]});
    let list =
        json!([webhook(&directory, &https, "kind.example", json!({})), webhook(&directory, &strict, "strict.example", conditions), rbac()]);
    let api = Api::with(Config { authorization: Some(Source::Text(authorizers(list))), ..Config::default() }).await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let refused = |name: &str, resource: &str, why: &str| {
        format!(
            "{resource} is forbidden: User {name:?} cannot list resource {resource:?} in API group \"\" in the namespace \"default\"{why}"
        )
    };
    let cases = [
        ("ann", MAPS, Ok(())),
        ("ann", secrets, Ok(())),
        ("mallory", MAPS, Err(refused("mallory", "configmaps", ": not her"))),
        ("joe", MAPS, Err(refused("joe", "configmaps", ": never heard of"))),
        // The second one is asked about secrets only.
        ("joe", secrets, Err(refused("joe", "secrets", ": never heard of\nnever heard of"))),
        ("nonsense", MAPS, Err(refused("nonsense", "configmaps", ""))),
        ("crash", MAPS, Err(refused("crash", "configmaps", ""))),
        ("hang", MAPS, Err(refused("hang", "configmaps", ""))),
    ];
    for (name, path, expected) in cases {
        let answer = as_user(&api, name, path).await;
        assert_eq!(if answer.code == 200 { Ok(()) } else { Err(answer.message()) }, expected, "{name} {path}");
    }
    let answer = as_user(&api, "nonsense", secrets).await;
    assert!(answer.code == 403 && answer.message().contains("the answer of authorizer \"strict.example\""), "{}", answer.message());
    // What was answered is kept; what was not is asked again.
    let count = |user: &str| https.seen().iter().filter(|seen| seen.body["spec"]["user"] == user).count();
    assert_eq!(as_user(&api, "ann", MAPS).await.code, 200);
    assert_eq!((count("ann"), count("mallory")), (2, 1));
    let before = count("crash");
    assert_eq!(as_user(&api, "crash", MAPS).await.code, 403);
    assert!(count("crash") > before);
    // Masters are nobody's business, and reviews ask the same authorizers.
    assert_eq!(api.get(MAPS).await.code, 200);
    let review = json!({"spec": {"user": "mallory", "resourceAttributes": {"verb": "list", "resource": "configmaps", "namespace": "default", "version": "v1"}}});
    let status = api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review).await.json()["status"].clone();
    assert_eq!(status, json!({"allowed": false, "denied": true, "reason": "not her"}));
    let selected = format!("{MAPS}?labelSelector=app%20in%20(a,b)&fieldSelector=metadata.name%3Dx");
    assert_eq!(as_user(&api, "ann", &selected).await.code, 200);
    let told = https.seen().last().unwrap().body["spec"].clone();
    let one = |key: &str, values: Value| json!({"requirements": [{"key": key, "operator": "In", "values": values}]});
    assert_eq!(told["resourceAttributes"]["labelSelector"], one("app", json!(["a", "b"])));
    assert_eq!(told["resourceAttributes"]["fieldSelector"], one("metadata.name", json!(["x"])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authorization_file_is_followed() {
    let https = decider().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("authorization.yaml");
    std::fs::write(&file, authorizers(json!([{"type": "RBAC", "name": "rbac"}]))).unwrap();
    let api = Api::with(Config { authorization: Some(Source::File(file.clone())), ..Config::default() }).await;
    assert_eq!(as_user(&api, "ann", MAPS).await.code, 403);
    std::fs::write(&file, authorizers(json!([webhook(&directory, &https, "w", json!({})), {"type": "RBAC", "name": "rbac"}]))).unwrap();
    eventually(200, async || as_user(&api, "ann", MAPS).await.code).await;
    // Rights that are asked for inside a request come from the same authorizers: a role may be bound by whom the webhook lets.
    let bind = json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "joe"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let post = Request::builder().method("POST").uri(bindings).header("content-type", "application/json").body(body(bind.to_string()));
    assert_eq!(api.send(post.unwrap(), UserInfo::authenticated("ann", &[])).await.code, 201);
    let rules = json!({"spec": {"namespace": "default"}});
    let request = Request::builder().method("POST").uri("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews");
    let request = request.header("content-type", "application/json").body(body(rules.to_string())).unwrap();
    let status = api.send(request, UserInfo::authenticated("ann", &[])).await.json()["status"].clone();
    assert_eq!(status["incomplete"], true);
    assert_eq!(status["evaluationError"], "webhook authorizer does not support user rule resolution");
}
