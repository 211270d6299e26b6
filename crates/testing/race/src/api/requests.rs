//! Closed loops of single requests and lists.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use super::wire::{Asker, Call};

pub const NAMESPACE: &str = "race";
const MAPS: &str = "/api/v1/namespaces/race/configmaps";
const PODS: &str = "/api/v1/namespaces/race/pods";
pub const LISTED: usize = 500;

/// What a leg gave.
#[derive(Clone, Debug, Default)]
pub struct Leg {
    pub per_second: f64,
    pub bytes_per_second: f64,
    /// Milliseconds, sorted.
    pub latencies: Vec<f64>,
}

/// Makes the request of a number.
pub type Make = Arc<dyn Fn(u64) -> Arc<Call> + Send + Sync>;

pub fn namespace() -> Call {
    Call::new("POST", "/api/v1/namespaces", "application/json", &json!({"metadata": {"name": NAMESPACE}}).to_string())
}

pub fn get_one() -> Make {
    let ready: Vec<Arc<Call>> = (0..LISTED).map(|number| Arc::new(Call::get(&format!("{MAPS}/listed-{number}")))).collect();
    Arc::new(move |number| ready[number as usize % LISTED].clone())
}

pub fn list_maps() -> Make {
    always(Call::get(&format!("{MAPS}?labelSelector=app%3Dlisted")))
}

pub fn create(prefix: &'static str) -> Make {
    Arc::new(move |number| Arc::new(Call::new("POST", MAPS, "application/json", &config_map(&format!("{prefix}-{number}"), prefix))))
}

/// A server-side apply that changes one field of one of a hundred pods.
pub fn apply_pod() -> Make {
    Arc::new(|number| {
        let name = format!("applied-{}", number % 100);
        let mut pod = pod(&name, "applied");
        pod["metadata"]["annotations"] = json!({"number": number.to_string()});
        pod["kind"] = "Pod".into();
        pod["apiVersion"] = "v1".into();
        let path = format!("{PODS}/{name}?fieldManager=race&force=true");
        Arc::new(Call::new("PATCH", &path, "application/apply-patch+yaml", &pod.to_string()))
    })
}

fn config_map(name: &str, app: &str) -> String {
    json!({"metadata": {"name": name, "labels": {"app": app}}, "data": {"settings": "x".repeat(800)}}).to_string()
}

/// A pod as a Deployment's controller would make it, never scheduled.
pub fn pod(name: &str, app: &str) -> serde_json::Value {
    let env: Vec<_> = (0..12).map(|number| json!({"name": format!("SETTING_{number}"), "value": "some value of a usual length"})).collect();
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": 8080}, "periodSeconds": 10, "timeoutSeconds": 2});
    let container = json!({
        "name": "main", "image": "registry.example.com/team/application:v1.2.3", "args": ["--port=8080", "--log=info"], "env": env,
        "ports": [{"name": "http", "containerPort": 8080}], "livenessProbe": probe("/livez"), "readinessProbe": probe("/readyz"),
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
    });
    json!({
        "metadata": {"name": name, "labels": {"app": app, "pod-template-hash": "5d4f8c7b9d"}},
        "spec": {"containers": [container], "serviceAccountName": "default", "schedulerName": "nobody"},
    })
}

pub fn create_pod() -> Make {
    Arc::new(move |number| Arc::new(Call::new("POST", PODS, "application/json", &pod(&format!("p-{number:06}"), "many").to_string())))
}

pub fn list_pods() -> Make {
    always(Call::get(PODS))
}

/// The same request each time.
pub fn always(call: Call) -> Make {
    let ready = Arc::new(call);
    Arc::new(move |_| ready.clone())
}

/// So many askers with one request under way each, until `length` is over or `most` requests were made.
pub async fn closed_loop(askers: Vec<Asker>, length: Duration, most: u64, make: &Make) -> anyhow::Result<Leg> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let last = NUMBER.load(Ordering::Relaxed).saturating_add(most);
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for mut asker in askers {
        let make = make.clone();
        tasks.spawn(async move {
            let (mut latencies, mut bytes) = (Vec::new(), 0);
            while start.elapsed() < length {
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                if number >= last {
                    break;
                }
                let call = make(number);
                let sent = Instant::now();
                let answer = asker.ask(&call).await?;
                ensure!((200..300).contains(&answer.status), "status {}", answer.status);
                latencies.push(sent.elapsed().as_secs_f64() * 1e3);
                bytes += answer.body_bytes;
            }
            anyhow::Ok((latencies, bytes))
        });
    }
    let (mut latencies, mut bytes) = (Vec::new(), 0);
    while let Some(finished) = tasks.join_next().await {
        let (more, counted) = finished??;
        latencies.extend(more);
        bytes += counted;
    }
    let seconds = start.elapsed().as_secs_f64();
    latencies.sort_by(f64::total_cmp);
    Ok(Leg { per_second: latencies.len() as f64 / seconds, bytes_per_second: bytes as f64 / seconds, latencies })
}
