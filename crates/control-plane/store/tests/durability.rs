//! The log across restarts, crashes, damaged tails, full disks.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use proptest::prelude::*;
use store::log::{Log, Options};
use store::{Error, Event, Expect, Range, Store};

fn small() -> Options {
    Options { segment_bytes: 64 << 10, quota_bytes: 64 << 20, history_bytes: 8 << 20, value_bytes_max: 16 << 10, write_zeros: false }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn everything(store: &Log, revision: u64) -> BTreeMap<Bytes, (Bytes, u64, u64)> {
    let range = store.range(Range { revision, ..Range::default() }).await.unwrap();
    range.entries.into_iter().map(|entry| (entry.key, (entry.value, entry.create_revision, entry.mod_revision))).collect()
}

fn files(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix));
    found.sort();
    found
}

/// A value that does not compress, so that segments fill as planned.
fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u16),
    Delete(u8),
    Compact(u8),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0u8..12, 0u16..6_000).prop_map(|(key, len)| Step::Put(key, len)),
        4 => (0u8..12).prop_map(Step::Delete),
        2 => (0u8..40).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Against a plain map with its whole history, through cleaning and reopening: nothing is lost, nothing rises again.
    #[test]
    fn the_log_says_what_a_simple_model_says_across_cleaning_and_restarts(steps in steps()) {
        runtime().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = Log::open(dir.path(), small()).unwrap();
            let mut history: Vec<BTreeMap<Bytes, (Bytes, u64, u64)>> = vec![BTreeMap::new()];
            let mut compacted = 0;
            for (number, step) in steps.into_iter().enumerate() {
                let mut now = history.last().unwrap().clone();
                let revision = history.len() as u64;
                match step {
                    Step::Put(key, len) => {
                        let key = Bytes::from(vec![b'k', key]);
                        let value = noise(len.into(), number as u64);
                        assert_eq!(store.put(&key, value.clone(), Expect::Anything).await.unwrap(), revision);
                        let created = now.get(&key).map_or(revision, |there| there.1);
                        now.insert(key, (value, created, revision));
                        history.push(now);
                    }
                    Step::Delete(key) => {
                        let deleted = store.delete(&[b'k', key], Expect::Anything).await;
                        if now.remove(&vec![b'k', key][..]).is_some() {
                            assert_eq!(deleted.unwrap().0, revision);
                            history.push(now);
                        }
                    }
                    Step::Compact(back) => {
                        compacted = compacted.max((revision - 1).saturating_sub(back.into()));
                        store.compact(compacted).await.unwrap();
                    }
                    Step::Reopen => {
                        drop(store);
                        store = Log::open(dir.path(), small()).unwrap();
                    }
                }
            }
            drop(store);
            let store = Log::open(dir.path(), small()).unwrap();
            assert_eq!(store.revision(), history.len() as u64 - 1);
            for revision in compacted.max(1)..history.len() as u64 {
                assert_eq!(everything(&store, revision).await, history[revision as usize], "at {revision}, compacted {compacted}");
            }
            let mut watch = store.watch(b"", compacted).unwrap();
            for revision in compacted + 1..history.len() as u64 {
                let event = watch.events.recv().await.unwrap().unwrap();
                assert_eq!(event.revision(), revision);
                let before = history[revision as usize - 1].get(event.key()).map(|there| there.0.clone());
                let previous = match event {
                    Event::Put { previous, .. } => previous.map(|entry| entry.value),
                    Event::Delete { previous, .. } => Some(previous.value),
                };
                assert_eq!(previous, before);
            }
        });
    }

    /// A write that was torn by power loss was never acknowledged: any garbage behind the last group is cut off.
    #[test]
    fn garbage_behind_the_last_acknowledged_write_is_ignored(garbage in prop::collection::vec(any::<u8>(), 1..2_000), gap in 0usize..64) {
        runtime().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = Log::open(dir.path(), small()).unwrap();
            for number in 0..5u8 {
                store.put(&[number], noise(300, number.into()), Expect::Absent).await.unwrap();
            }
            let expected = everything(&store, 0).await;
            drop(store);
            let last = files(dir.path(), "segment-").pop().unwrap();
            let end = last_written_byte(&last) + 1;
            let file = fs::File::options().write(true).open(&last).unwrap();
            file.write_all_at(&garbage, end + gap as u64).unwrap();
            let store = Log::open(dir.path(), small()).unwrap();
            assert_eq!(everything(&store, 0).await, expected);
            let next = store.put(b"next", "v".into(), Expect::Absent).await.unwrap();
            drop(store);
            let store = Log::open(dir.path(), small()).unwrap();
            assert_eq!((store.revision(), store.get(b"next").await.unwrap().unwrap().mod_revision), (next, next));
        });
    }
}

fn last_written_byte(path: &Path) -> u64 {
    fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).unwrap() as u64
}

#[tokio::test]
async fn a_damaged_acknowledged_write_is_reported_and_not_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let store = Log::open(dir.path(), small()).unwrap();
    for number in 0..5u8 {
        store.put(&[number], noise(300, number.into()), Expect::Absent).await.unwrap();
    }
    drop(store);
    let segment = files(dir.path(), "segment-").pop().unwrap();
    let file = fs::File::options().read(true).write(true).open(&segment).unwrap();
    file.write_all_at(b"rot", 4_096 + 150).unwrap();
    let error = Log::open(dir.path(), small()).err().expect("a refusal").to_string();
    assert!(error.contains("segment-0000000000000001.log: group 1 is damaged but later ones are intact"), "{error}");
}

#[tokio::test]
async fn a_missing_segment_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = Log::open(dir.path(), small()).unwrap();
    for number in 0..40u8 {
        store.put(&[number], noise(8_000, number.into()), Expect::Absent).await.unwrap();
    }
    drop(store);
    fs::remove_file(&files(dir.path(), "segment-")[2]).unwrap();
    let error = Log::open(dir.path(), small()).err().expect("a refusal").to_string();
    assert!(error.contains("are missing before it"), "{error}");
}

#[tokio::test]
async fn a_second_process_may_not_open_the_same_log() {
    let dir = tempfile::tempdir().unwrap();
    let _store = Log::open(dir.path(), small()).unwrap();
    let error = Log::open(dir.path(), small()).err().expect("a refusal").to_string();
    assert!(error.contains("in use by another process"), "{error}");
}

#[tokio::test]
async fn overwriting_for_long_takes_bounded_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = Log::open(dir.path(), small()).unwrap();
    for number in 0..2_000u64 {
        store.put(&[(number % 7) as u8], noise(4_000, number), Expect::Anything).await.unwrap();
        if number % 50 == 0 {
            store.compact(store.revision()).await.unwrap();
        }
    }
    let used = files(dir.path(), "s").len();
    assert!(used <= 12, "{used} files of 64 KiB for 28 kB of live data and 8 MB of overwriting");
}

#[tokio::test]
async fn a_full_store_still_deletes_compacts_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let store = Log::open(dir.path(), Options { quota_bytes: 8 * (64 << 10), ..small() }).unwrap();
    let mut written = 0u64;
    let refused = loop {
        match store.put(&written.to_be_bytes(), noise(4_000, written), Expect::Absent).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1_000, "the quota holds nothing back");
    };
    assert_eq!(refused, Error::NoSpace);
    assert_eq!(everything(&store, 0).await.len() as u64, written, "what was acknowledged is there");
    for number in 0..written / 2 {
        store.delete(&number.to_be_bytes(), Expect::Anything).await.unwrap();
    }
    store.compact(store.revision()).await.unwrap();
    let mut accepted = 0u64;
    for number in 0..written / 4 {
        accepted += u64::from(store.put(&(10_000 + number).to_be_bytes(), noise(4_000, number), Expect::Absent).await.is_ok());
    }
    assert_eq!(accepted, written / 4, "half was freed, a quarter must fit again");
    drop(store);
    let store = Log::open(dir.path(), small()).unwrap();
    assert_eq!(everything(&store, 0).await.len() as u64, written - written / 2 + accepted);
}

#[tokio::test]
async fn a_value_beyond_the_limit_is_refused_and_the_store_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Log::open(dir.path(), small()).unwrap();
    let error = store.put(b"big", noise(17 << 10, 1), Expect::Anything).await.unwrap_err();
    assert_eq!(error, Error::TooLarge { size: 17 << 10, limit: 16 << 10 });
    store.put(b"fine", noise(16 << 10, 1), Expect::Anything).await.unwrap();
}

#[tokio::test]
async fn a_closed_store_refuses_writes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Log::open(dir.path(), small()).unwrap();
    store.close().await.unwrap();
    assert_eq!(store.put(b"a", "1".into(), Expect::Anything).await.unwrap_err(), Error::Closed);
}

/// How often the writing process is killed.
const KILLS: u64 = 200;
const CHILD: &str = "STERNPOST_TEST_STORE_CHILD";

/// The child's side of the next test: writes for ever from eight tasks and prints each acknowledgement.
#[test]
fn child_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    runtime().block_on(async {
        let options = Options { segment_bytes: 1 << 20, ..small() };
        let store = std::sync::Arc::new(Log::open(Path::new(&dir), options).unwrap());
        let start = store.revision();
        let writers: Vec<_> = (0..8u64)
            .map(|writer| {
                let store = store.clone();
                tokio::spawn(async move {
                    for number in 0.. {
                        let key = format!("{writer}/{}", number % 20);
                        let value = format!("{start}-{number}-{}", "x".repeat((number % 700) as usize));
                        let revision = match number % 11 {
                            10 => store.delete(key.as_bytes(), Expect::Anything).await.ok().map(|(revision, _)| revision),
                            _ => store.put(key.as_bytes(), value.clone().into(), Expect::Anything).await.ok(),
                        };
                        if let Some(revision) = revision {
                            println!("ACK {revision} {key} {}", if number % 11 == 10 { "-" } else { &value });
                        }
                        if number % 100 == 99 {
                            store.compact(store.revision().saturating_sub(500)).await.unwrap();
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

#[test]
fn every_acknowledged_write_survives_kill_9_in_order_with_its_revision() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<u64, (String, Option<String>)> = BTreeMap::new();
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_writes_until_it_is_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || output.lines().map_while(Result::ok).collect::<Vec<String>>());
        std::thread::sleep(std::time::Duration::from_millis(8 + kill * 7 % 61));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            let Some(ack) = line.split("ACK ").nth(1) else { continue };
            let words: Vec<&str> = ack.split(' ').collect();
            // The last line may be cut by the kill; an acknowledgement counts once it was printed whole.
            let [revision, key, value] = words[..] else { continue };
            let complete = value == "-" || value.ends_with('x') || value.ends_with('-');
            if complete {
                let value = (value != "-").then(|| value.to_owned());
                acknowledged.insert(revision.parse().unwrap(), (key.to_owned(), value));
            }
        }
        check_survivors(dir.path(), &mut acknowledged);
    }
    assert!(acknowledged.len() > KILLS as usize * 5, "only {} writes were acknowledged", acknowledged.len());
}

/// Every acknowledged write stands in the history at its revision, with its key and value; then the present state is what the
/// history says. Writes that were durable but whose acknowledgement the kill swallowed are learnt from the history.
fn check_survivors(dir: &Path, acknowledged: &mut BTreeMap<u64, (String, Option<String>)>) {
    let store = Log::open(dir, Options { segment_bytes: 1 << 20, ..small() }).unwrap();
    let newest = acknowledged.keys().next_back().copied().unwrap_or(0);
    assert!(store.revision() >= newest, "revision {} is below the acknowledged {newest}", store.revision());
    let request = Range { revision: 1, ..Range::default() };
    runtime().block_on(async {
        let oldest = match store.range(request).await {
            Err(Error::Compacted { oldest }) => oldest,
            _ => 0,
        };
        let mut history = store.watch(b"", oldest).unwrap();
        for revision in oldest + 1..=store.revision() {
            let event = history.events.recv().await.unwrap().unwrap();
            assert_eq!(event.revision(), revision);
            let key = String::from_utf8_lossy(event.key()).into_owned();
            let value = match event {
                Event::Put { entry, .. } => Some(String::from_utf8_lossy(&entry.value).into_owned()),
                Event::Delete { .. } => None,
            };
            let known = acknowledged.entry(revision).or_insert_with(|| (key.clone(), value.clone()));
            assert_eq!((&known.0, known.1.is_some()), (&key, value.is_some()), "at {revision}");
            // A value whose printed line was cut ends early.
            assert!(value.unwrap_or_default().starts_with(known.1.as_deref().unwrap_or("")), "{key} at {revision}");
        }
        let mut last: BTreeMap<&str, (u64, bool)> = BTreeMap::new();
        for (revision, (key, value)) in &*acknowledged {
            last.insert(key, (*revision, value.is_some()));
        }
        for (key, (revision, exists)) in last {
            let there = store.get(key.as_bytes()).await.unwrap().map(|entry| entry.mod_revision);
            assert_eq!(there, exists.then_some(revision), "{key}");
        }
    });
}
