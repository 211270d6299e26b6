//! Two hundred watchers of all speeds, while the server is killed with signal 9 again and again and its history is cut behind them: what
//! each of them was told is compared with the store's own history.
//!
//! The server is a process of its own (this very test program, see [`server_process`]); it also writes down every event of its store.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const WATCHERS: usize = 200;
const WRITES: usize = 1_600;
const KILLS: usize = 4;
/// More than the history keeps.
const NAP: usize = 600;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PREFIX: &[u8] = b"/registry/configmaps/default/";
/// Small, so that the store forgets while watchers sleep.
const HISTORY_BYTES: usize = 160 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    revision: u64,
    label: String,
}

/// One event of the store: `label` is absent where the object was deleted.
#[derive(Clone, Debug)]
struct Entry {
    revision: u64,
    name: String,
    label: Option<String>,
}

/// What a watcher was told, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    /// It listed: the names and their revisions.
    Listed(u64, Vec<(String, u64)>),
    Event(String, String, u64),
    /// 410: it may have missed something and knows it.
    Expired,
}

#[derive(Clone, Debug)]
struct Selection {
    label: Option<&'static str>,
    name: Option<String>,
}

impl Selection {
    fn query(&self) -> String {
        let label = self.label.map(|label| format!("&labelSelector=l%3D{label}")).unwrap_or_default();
        let name = self.name.as_ref().map(|name| format!("&fieldSelector=metadata.name%3D{name}")).unwrap_or_default();
        label + &name
    }
    fn chooses(&self, name: &str, label: &str) -> bool {
        self.label.is_none_or(|wanted| wanted == label) && self.name.as_ref().is_none_or(|wanted| wanted == name)
    }
}

/// Not a test: the server that the checker starts and kills.
#[test]
#[ignore = "the server's process of the test below"]
fn server_process() {
    let Some(dir) = std::env::var_os("HISTORIES_DIR").map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = store::log::Options { history_bytes: HISTORY_BYTES, segment_bytes: 1 << 20, ..store::log::Options::default() };
        let store = Arc::new(store::log::Log::open(&dir.join("store"), options).unwrap());
        tokio::spawn(record(store.clone(), dir.join("history")));
        let mut authenticator = auth::authenticate::Authenticator::default();
        authenticator.add_token("checker", auth::UserInfo::authenticated("checker", &["system:masters"]));
        // So few that slow watchers do fall behind.
        let config = apiserver::Config { authenticator, watch_backlog_max: 4_096, ..apiserver::Config::default() };
        let server = apiserver::Server::new(config, store).unwrap();
        server.bootstrap().await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        std::fs::write(dir.join("port.new"), listener.local_addr().unwrap().port().to_string()).unwrap();
        std::fs::rename(dir.join("port.new"), dir.join("port")).unwrap();
        let drain = stdx::drain();
        let (stop, wish) = (drain.clone(), dir.join("stop"));
        tokio::spawn(async move {
            while !wish.exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            stop.stop();
        });
        server.serve(listener, None, drain).await.unwrap();
    });
}

/// Writes the store's events down, after those that an earlier life of the server wrote.
async fn record(store: Arc<store::log::Log>, path: PathBuf) {
    let last = read_history(&path).last().map_or(0, |entry| entry.revision);
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    let mut watch = store.watch(PREFIX, last).unwrap();
    while let Some(event) = watch.events.recv().await {
        let event = event.unwrap();
        let name = String::from_utf8(event.key()[PREFIX.len()..].to_vec()).unwrap();
        let label = match &event {
            store::Event::Put { entry, .. } => {
                let object: Value = serde_json::from_slice(&entry.value).unwrap();
                object["metadata"]["labels"]["l"].as_str().unwrap_or("none").to_owned()
            }
            store::Event::Delete { .. } => "-".into(),
        };
        file.write_all(format!("{} {name} {label}\n", event.revision()).as_bytes()).unwrap();
    }
}

/// A line that a kill has cut is not there.
fn read_history(path: &Path) -> Vec<Entry> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut entries: Vec<Entry> = Vec::new();
    for line in whole.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [revision, name, label] = words.as_slice() else { panic!("{line:?}") };
        let label = (*label != "-").then(|| (*label).to_owned());
        entries.push(Entry { revision: revision.parse().unwrap(), name: (*name).to_owned(), label });
    }
    entries
}

struct Server {
    dir: PathBuf,
    child: Child,
}

impl Server {
    fn start(dir: &Path) -> Self {
        let _ = std::fs::remove_file(dir.join("port"));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "server_process", "--ignored", "--nocapture"]).env("HISTORIES_DIR", dir);
        let child = command.stdout(Stdio::null()).stdin(Stdio::null()).spawn().unwrap();
        Self { dir: dir.to_owned(), child }
    }
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection; `None` while the server is not there.
async fn connect(dir: &Path) -> Option<TcpStream> {
    let port: u16 = std::fs::read_to_string(dir.join("port")).ok()?.parse().ok()?;
    TcpStream::connect(("127.0.0.1", port)).await.ok()
}

/// Reads a chunked or measured body piece by piece.
struct Reader {
    stream: TcpStream,
    raw: Vec<u8>,
    lines: Vec<u8>,
    chunked: bool,
    status: u16,
}

impl Reader {
    async fn ask(dir: &Path, method: &str, path: &str, content_type: &str, body: &str) -> Option<Self> {
        let mut stream = connect(dir).await?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer checker\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        let mut reader = Self { stream, raw: Vec::new(), lines: Vec::new(), chunked: false, status: 0 };
        let end = loop {
            if let Some(end) = reader.raw.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            reader.more().await?;
        };
        let head = String::from_utf8(reader.raw.drain(..end + 4).collect()).unwrap().to_lowercase();
        reader.status = head.split(' ').nth(1)?.parse().ok()?;
        reader.chunked = head.contains("transfer-encoding: chunked");
        Some(reader)
    }

    async fn more(&mut self) -> Option<()> {
        let read = self.stream.read_buf(&mut self.raw).await.ok()?;
        (read > 0).then_some(())
    }

    /// The next line; `None` at the end of the connection or of the body.
    async fn line(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.lines.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.lines.drain(..=end).collect();
                return serde_json::from_slice(&line).ok();
            }
            if !self.chunked {
                if self.raw.is_empty() {
                    self.more().await?;
                }
                self.lines.append(&mut self.raw);
                continue;
            }
            let Some(end) = self.raw.windows(2).position(|two| two == b"\r\n") else {
                self.more().await?;
                continue;
            };
            let size = usize::from_str_radix(std::str::from_utf8(&self.raw[..end]).ok()?, 16).ok()?;
            if size == 0 {
                return None;
            }
            while self.raw.len() < end + 2 + size + 2 {
                self.more().await?;
            }
            self.lines.extend_from_slice(&self.raw[end + 2..end + 2 + size]);
            self.raw.drain(..end + 2 + size + 2);
        }
    }
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Watches until the server has ended in an orderly way. `pause` is waited after each event, and after each connection's first
/// hundred a napper is gone until others have written `NAP` objects.
async fn watcher(
    dir: PathBuf,
    selection: Selection,
    pause: Duration,
    napper: bool,
    done: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
) -> Vec<Told> {
    let (mut told, mut at) = (Vec::new(), None);
    loop {
        let Some(since) = at else {
            let Some(mut list) = Reader::ask(&dir, "GET", &format!("{MAPS}?{}", selection.query()), "", "").await else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            let Some(list) = list.line().await.filter(|_| list.status == 200) else { continue };
            let items = list["items"].as_array().unwrap().iter();
            let names = items.map(|item| (item["metadata"]["name"].as_str().unwrap().to_owned(), version(item))).collect();
            told.push(Told::Listed(version(&list), names));
            at = Some(version(&list));
            continue;
        };
        let path = format!("{MAPS}?watch=1&allowWatchBookmarks=true&resourceVersion={since}{}", selection.query());
        let Some(mut watch) = Reader::ask(&dir, "GET", &path, "", "").await.filter(|watch| watch.status == 200) else {
            if over.load(Ordering::Relaxed) {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let mut events = 0;
        while let Some(event) = watch.line().await {
            let object = &event["object"];
            match event["type"].as_str().unwrap() {
                "BOOKMARK" => at = Some(version(object)),
                "ERROR" => {
                    assert_eq!((object["code"].as_u64(), object["reason"].as_str()), (Some(410), Some("Expired")), "{event}");
                    told.push(Told::Expired);
                    at = None;
                    break;
                }
                word => {
                    told.push(Told::Event(word.to_owned(), object["metadata"]["name"].as_str().unwrap().to_owned(), version(object)));
                    at = Some(version(object));
                    events += 1;
                    tokio::time::sleep(pause).await;
                }
            }
            if events == 100 && napper && !over.load(Ordering::Relaxed) {
                // Gone for a while, to come back to a history that may be cut.
                drop(watch);
                let until = done.load(Ordering::Relaxed) + NAP;
                while done.load(Ordering::Relaxed) < until && !over.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                break;
            }
        }
    }
}

/// Creates, changes labels and deletes; says how many writes were made.
async fn writer(dir: PathBuf, number: usize, done: Arc<AtomicUsize>) {
    let mut step = 0;
    while done.load(Ordering::Relaxed) < WRITES {
        let name = format!("m-{number}-{}", step % 7);
        let label = ["x", "y"][step / 3 % 2];
        step += 1;
        let one = format!("{MAPS}/{name}");
        let body = json!({"metadata": {"name": name, "labels": {"l": label}}, "data": {"step": step.to_string()}}).to_string();
        let answer = match step % 5 {
            0 => Reader::ask(&dir, "DELETE", &one, "", "").await,
            1 | 2 => Reader::ask(&dir, "POST", MAPS, "application/json", &body).await,
            _ => Reader::ask(&dir, "PATCH", &one, "application/merge-patch+json", &body).await,
        };
        match answer {
            Some(answer) if answer.status < 300 => {
                done.fetch_add(1, Ordering::Relaxed);
            }
            Some(answer) => assert!(matches!(answer.status, 404 | 409), "{}", answer.status),
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// What a watcher of the selection has to be told of the history, and what it would list.
fn project(history: &[Entry], selection: &Selection, from: u64, to: u64) -> (Vec<Told>, BTreeMap<String, State>) {
    let (mut objects, mut events) = (BTreeMap::<String, State>::new(), Vec::new());
    let chosen = |name: &str, state: Option<&State>| state.is_some_and(|state| selection.chooses(name, &state.label));
    for Entry { revision, name, label } in history.iter().take_while(|entry| entry.revision <= to) {
        let before = objects.get(name).cloned();
        match label {
            Some(label) => objects.insert(name.clone(), State { revision: *revision, label: label.clone() }),
            None => objects.remove(name),
        };
        let word = match (chosen(name, before.as_ref()), chosen(name, objects.get(name))) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => continue,
        };
        if *revision > from {
            events.push(Told::Event(word.into(), name.clone(), *revision));
        }
    }
    objects.retain(|name, state| selection.chooses(name, &state.label));
    (events, objects)
}

/// Compares; says how many events were told and how often the watcher had to list again.
fn check(history: &[Entry], selection: &Selection, told: &[Told]) -> (usize, usize) {
    let (mut events, mut expired) = (0, 0);
    for segment in told.split(|told| *told == Told::Expired) {
        let Some((Told::Listed(from, names), heard)) = segment.split_first() else {
            assert!(segment.is_empty(), "a segment begins with {:?}", segment.first());
            continue;
        };
        let (_, state) = project(history, selection, 0, *from);
        let listed: Vec<(String, u64)> = state.into_iter().map(|(name, state)| (name, state.revision)).collect();
        assert_eq!(*names, listed, "a list at {from} of {selection:?}");
        let (wanted, _) = project(history, selection, *from, u64::MAX);
        // Cut by a 410 it is a beginning; nothing is missing inside.
        assert_eq!(*heard, wanted[..heard.len().min(wanted.len())], "{selection:?} from {from}");
        events += heard.len();
        expired += 1;
        if heard.len() < wanted.len() {
            assert!(segment.as_ptr_range().end < told.as_ptr_range().end, "{selection:?}: the last {} events", wanted.len() - heard.len());
        }
    }
    (events, expired.max(1) - 1)
}

#[test]
fn every_watcher_is_told_the_stores_history_or_that_it_missed_something() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let histories = runtime.block_on(async {
        let mut server = Server::start(dir.path());
        let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut watchers = Vec::new();
        for number in 0..WATCHERS {
            let selection = Selection {
                label: [None, Some("x"), Some("y"), None][number % 4],
                name: (number % 10 == 9).then(|| format!("m-{}-{}", number % 3, number % 7)),
            };
            let pause = Duration::from_millis([0, 0, 0, 1, 4][number % 5]);
            let napper = number % 8 == 0;
            let task = tokio::spawn(watcher(dir.path().to_owned(), selection.clone(), pause, napper, done.clone(), over.clone()));
            watchers.push((selection, task));
        }
        let writers: Vec<_> = (0..3).map(|number| tokio::spawn(writer(dir.path().to_owned(), number, done.clone()))).collect();
        for kill in 1..=KILLS {
            while done.load(Ordering::Relaxed) < kill * WRITES / (KILLS + 1) {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            server.kill();
            server = Server::start(&server.dir.clone());
        }
        for writer in writers {
            writer.await.unwrap();
        }
        over.store(true, Ordering::Relaxed);
        // Nappers come back, everybody reads what there is; then the server ends and says up to where they have seen everything.
        tokio::time::sleep(Duration::from_millis(950)).await;
        std::fs::write(dir.path().join("stop"), "").unwrap();
        let mut histories = Vec::new();
        for (selection, task) in watchers {
            histories.push((selection, task.await.unwrap()));
        }
        histories
    });
    let history = read_history(&dir.path().join("history"));
    assert!(history.len() >= WRITES, "{}", history.len());
    let (mut events, mut expired) = (0, 0);
    for (selection, told) in &histories {
        let (told, again) = check(&history, selection, told);
        events += told;
        expired += again;
    }
    println!("{} events in the store, {events} told to {WATCHERS} watchers, {expired} of them too late", history.len());
    assert!(events > 20 * WRITES && expired > 0);
}
