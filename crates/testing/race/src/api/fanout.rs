//! Many watchers of one collection, and what their number does to the time between a write and its last delivery.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use super::requests::NAMESPACE;
use super::wire::{Call, Connection, Remote};

/// Every so manieth watcher notes delays.
const SAMPLED: usize = 20;
/// How long deliveries may lag behind the last write.
const PATIENCE: Duration = Duration::from_secs(30);
const EVENTS_MAX: usize = 1 << 20;

/// What a leg gave.
#[derive(Clone, Debug, Default)]
pub struct Fanout {
    pub events_per_second: f64,
    pub deliveries_per_second: f64,
    pub deliveries: f64,
    /// Milliseconds from before the write to the delivery, sorted.
    pub delays: Vec<f64>,
}

struct Shared {
    start: Instant,
    sent: Vec<AtomicU64>,
    delivered: AtomicU64,
    over: AtomicBool,
}

/// `watchers` watches see what `writers` writers write as fast as they can (or `rate` a second together).
pub async fn leg(remote: &Remote, watchers: usize, writers: usize, rate: Option<f64>, length: Duration) -> anyhow::Result<Fanout> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    let sent = (0..EVENTS_MAX).map(|_| AtomicU64::new(0)).collect();
    let shared = Arc::new(Shared { start: Instant::now(), sent, delivered: AtomicU64::new(0), over: AtomicBool::new(false) });
    let current = AtomicUsize::new(0);
    for writer in 0..writers {
        let mut connection = remote.connect().await?;
        let body = json!({"metadata": {"name": format!("event-{writer}")}}).to_string();
        let answer = connection.ask(&Call::new("POST", &path, "application/json", &body)).await?;
        ensure!(matches!(answer.status, 201 | 409), "status {}", answer.status);
    }
    let begin = Call::get(&format!("{path}?watch=1&resourceVersion={}", newest(remote, &path).await?));
    let mut readers = tokio::task::JoinSet::new();
    for number in 0..watchers {
        let mut connection = remote.connect().await?;
        connection.begin(&begin).await?;
        readers.spawn(read(connection, shared.clone(), number % SAMPLED == 0));
    }
    let began = Instant::now();
    let current = Arc::new(current);
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let mut connection = remote.connect().await?;
        let (shared, current, path) = (shared.clone(), current.clone(), format!("{path}/event-{writer}"));
        let pause = rate.map(|rate| Duration::from_secs_f64(writers as f64 / rate));
        tasks.spawn(async move {
            let mut due = tokio::time::Instant::now();
            while began.elapsed() < length {
                if let Some(pause) = pause {
                    due += pause;
                    tokio::time::sleep_until(due).await;
                }
                let number = current.fetch_add(1, Ordering::Relaxed);
                ensure!(number < EVENTS_MAX, "too many events for one leg");
                let body = json!({"metadata": {"annotations": {"number": format!("{number:08}"), "text": "x".repeat(600)}}}).to_string();
                shared.sent[number].store(shared.start.elapsed().as_nanos() as u64, Ordering::Release);
                let answer = connection.ask(&Call::new("PATCH", &path, "application/merge-patch+json", &body)).await?;
                ensure!(answer.status == 200, "status {}", answer.status);
            }
            anyhow::Ok(())
        });
    }
    while let Some(finished) = tasks.join_next().await {
        finished??;
    }
    let events = current.load(Ordering::Relaxed);
    let wanted = (events * watchers) as u64;
    while shared.delivered.load(Ordering::Relaxed) < wanted && began.elapsed() < length + PATIENCE {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    shared.over.store(true, Ordering::Relaxed);
    let delivered = shared.delivered.load(Ordering::Relaxed);
    ensure!(delivered == wanted, "{delivered} of {wanted} events arrived: a watcher was closed");
    let mut delays = Vec::new();
    while let Some(finished) = readers.try_join_next() {
        delays.extend(finished??);
    }
    readers.abort_all();
    delays.extend(DELAYS.lock().map(|mut all| std::mem::take(&mut *all)).unwrap_or_default());
    delays.sort_by(f64::total_cmp);
    Ok(Fanout {
        events_per_second: events as f64 / seconds,
        deliveries_per_second: delivered as f64 / seconds,
        deliveries: delivered as f64,
        delays,
    })
}

static DELAYS: std::sync::Mutex<Vec<f64>> = std::sync::Mutex::new(Vec::new());

async fn newest(remote: &Remote, path: &str) -> anyhow::Result<String> {
    let mut connection = remote.connect().await?;
    connection.begin(&Call::get(&format!("{path}?limit=1"))).await?;
    let text = String::from_utf8_lossy(connection.piece().await?).into_owned();
    let after = text.split("\"resourceVersion\":\"").nth(1).unwrap_or_default();
    Ok(after.split('"').next().unwrap_or_default().to_owned())
}

/// Lines of this many bytes from the floor to so many watchers, as fast as they go: lines a second.
pub async fn floor(remote: &Remote, watchers: usize, line_bytes: usize, length: Duration) -> anyhow::Result<f64> {
    let counted = Arc::new(AtomicU64::new(0));
    let mut readers = tokio::task::JoinSet::new();
    let begin = Call::get(&format!("/stream/{line_bytes}"));
    // All are connected before the first begins: after that, nobody else gets much of the processors.
    let mut connections = Vec::new();
    for _ in 0..watchers {
        connections.push(remote.connect().await?);
    }
    for mut connection in connections {
        let (begin, counted) = (begin.clone(), counted.clone());
        readers.spawn(async move {
            if connection.begin(&begin).await.is_err() {
                return;
            }
            while let Ok(piece) = connection.piece().await {
                counted.fetch_add(lines(piece), Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(length).await;
    let (began, before) = (Instant::now(), counted.load(Ordering::Relaxed));
    tokio::time::sleep(length).await;
    let lines = counted.load(Ordering::Relaxed) - before;
    readers.abort_all();
    Ok(lines as f64 / began.elapsed().as_secs_f64())
}

/// Lines that end here: those of the chunked encoding have a carriage return too, which no JSON of ours has.
fn lines(piece: &[u8]) -> u64 {
    let count = |wanted: u8| piece.iter().filter(|byte| **byte == wanted).count() as u64;
    // A pair may be cut in two pieces: over the whole stream it comes out even.
    count(b'\n').wrapping_sub(count(b'\r'))
}

async fn read(mut connection: Connection, shared: Arc<Shared>, sampled: bool) -> anyhow::Result<Vec<f64>> {
    const NUMBER: &[u8] = b"\"number\":\"";
    loop {
        let Ok(piece) = connection.piece().await else { return Ok(Vec::new()) };
        let now = shared.start.elapsed().as_nanos() as u64;
        let count = lines(piece);
        if sampled {
            let mut delays = Vec::new();
            for at in 0..piece.len().saturating_sub(NUMBER.len() + 8) {
                if piece[at..].starts_with(NUMBER) {
                    let digits = &piece[at + NUMBER.len()..at + NUMBER.len() + 8];
                    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<usize>().ok());
                    let sent = number.and_then(|number| shared.sent.get(number)).map_or(0, |sent| sent.load(Ordering::Acquire));
                    if sent > 0 {
                        delays.push(now.saturating_sub(sent) as f64 / 1e6);
                    }
                }
            }
            if let Ok(mut all) = DELAYS.lock() {
                all.extend(delays);
            }
        }
        shared.delivered.fetch_add(count, Ordering::Relaxed);
        if shared.over.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
    }
}
