//! What admission costs a create: without anybody to ask, with a policy in CEL, with a webhook over TLS. In one process, without sockets but
//! the webhook's; one request after the other. `cargo run --release -p apiserver --example admission`.

#[path = "../tests/harness/https.rs"]
mod https;

use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::{Config, Server};
use auth::UserInfo;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const LEG: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;

async fn post(server: &Server, path: &str, object: &Value) -> u16 {
    let body = Full::new(object.to_string().into()).map_err(|never: std::convert::Infallible| match never {}).boxed();
    let request = Request::post(path).header("content-type", "application/json").body(body).expect("a request");
    let admin = UserInfo::authenticated("admin", &["system:masters"]);
    server.handle(request, Some(admin)).await.status().as_u16()
}

async fn server() -> Server {
    let server = Server::new(Config::default(), Arc::new(store::memory::Memory::new())).expect("a server");
    server.bootstrap().await.expect("bootstrap");
    server
}

/// Microseconds of each create, sorted.
async fn leg(server: &Server, prefix: &str) -> Vec<f64> {
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < LEG {
        let object = json!({"metadata": {"name": format!("{prefix}-{}", times.len())}, "data": {"settings": "x".repeat(800)}});
        let asked = Instant::now();
        assert_eq!(post(server, MAPS, &object).await, 201);
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    times
}

fn rules() -> Value {
    json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}])
}

async fn with_policy(server: &Server) {
    let spec = json!({"matchConstraints": {"resourceRules": rules()}, "validations": [{"expression": "object.data.all(key, size(key) < 100) && object.metadata.name.startsWith('p')"}]});
    assert_eq!(post(server, &format!("{GROUP}/validatingadmissionpolicies"), &json!({"metadata": {"name": "p"}, "spec": spec})).await, 201);
    let spec = json!({"policyName": "p", "validationActions": ["Deny"]});
    assert_eq!(
        post(server, &format!("{GROUP}/validatingadmissionpolicybindings"), &json!({"metadata": {"name": "b"}, "spec": spec})).await,
        201
    );
}

async fn with_webhook(server: &Server, hook: &https::Https) {
    let hook = json!({
        "name": "w.example.com", "rules": rules(), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": format!("https://localhost:{}/", hook.port), "caBundle": hook.bundle()},
    });
    let object = json!({"metadata": {"name": "w"}, "webhooks": [hook]});
    assert_eq!(post(server, &format!("{GROUP}/validatingwebhookconfigurations"), &object).await, 201);
}

#[tokio::main]
async fn main() {
    let hook = https::Https::start(&[], |seen| {
        let response = json!({"uid": seen.body["request"]["uid"], "allowed": true});
        https::Reply::Json(json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}))
    })
    .await;
    let (plain, policy, webhook) = (server().await, server().await, server().await);
    with_policy(&policy).await;
    with_webhook(&webhook, &hook).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    println!("{:<10} {:>10} {:>10} {:>10}", "", "creates/s", "p50 µs", "p99 µs");
    for round in 0..ROUNDS {
        // A-B-C, C-B-A: what the machine does meanwhile hits all alike.
        let mut order = [("nobody", &plain), ("CEL", &policy), ("webhook", &webhook)];
        if round % 2 == 1 {
            order.reverse();
        }
        for (name, server) in order {
            let times = leg(server, &format!("p{round}")).await;
            let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
            println!("{name:<10} {:>10.0} {:>10.1} {:>10.1}", times.len() as f64 / LEG.as_secs_f64(), at(0.5), at(0.99));
        }
    }
    let seen = hook.seen().len();
    println!("the webhook was asked {seen} times");
}
