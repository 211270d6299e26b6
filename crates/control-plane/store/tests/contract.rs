//! What every backend of the store promises, run on every backend.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store::{Entry, Error, Event, Expect, Range, Store, log::Log, memory::Memory};

/// Runs each case on each backend, as a test of its own.
macro_rules! contract {
    ($($case:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $case() { super::$case(std::sync::Arc::new(super::Memory::new())).await })*
        }
        mod log {
            $(#[tokio::test] async fn $case() {
                let dir = tempfile::tempdir().unwrap();
                super::$case(std::sync::Arc::new(super::Log::open(dir.path(), Default::default()).unwrap())).await
            })*
        }
    };
}

contract!(
    revisions_grow_by_one_per_change,
    a_created_key_must_be_absent,
    an_update_needs_the_newest_revision,
    a_refused_write_changes_nothing,
    a_deletion_has_its_own_revision,
    deleting_what_is_not_there_is_not_found,
    a_recreated_key_starts_a_new_life,
    a_range_is_in_key_order_and_stays_inside_its_prefix,
    a_limited_range_counts_what_remains_and_continues_at_the_same_revision,
    a_read_of_the_future_is_refused,
    a_watch_from_the_past_sees_every_change_of_its_prefix_in_order,
    a_watch_carries_the_previous_value,
    a_watch_that_joins_live_misses_nothing,
    a_slow_watcher_is_closed_with_an_error_and_never_skips,
    compaction_forgets_history_but_keeps_what_is_current,
    compaction_twice_and_of_the_future_is_harmless,
    only_one_of_many_racing_creators_wins,
    racing_updates_lose_no_increment,
    binary_keys_and_empty_values_are_fine,
    history_is_what_a_watch_from_the_past_sees,
    history_of_what_is_forgotten_is_refused_and_of_the_future_is_empty,
    an_uncounted_range_says_only_whether_there_is_more,
    an_uncounted_range_pages_through_everything_at_one_revision,
);

async fn put(store: &Arc<impl Store>, key: &str, value: &str) -> u64 {
    store.put(key.as_bytes(), Bytes::copy_from_slice(value.as_bytes()), Expect::Anything).await.unwrap()
}

async fn list(store: &Arc<impl Store>, prefix: &str, revision: u64) -> Vec<(String, String)> {
    let request = Range { prefix: Bytes::copy_from_slice(prefix.as_bytes()), revision, ..Range::default() };
    store.range(request).await.unwrap().entries.iter().map(pair).collect()
}

fn pair(entry: &Entry) -> (String, String) {
    (text(&entry.key), text(&entry.value))
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `+key=value@revision` or `-key@revision`.
fn line(event: &Event) -> String {
    match event {
        Event::Put { entry, .. } => format!("+{}={}@{}", text(&entry.key), text(&entry.value), entry.mod_revision),
        Event::Delete { key, revision, .. } => format!("-{}@{revision}", text(key)),
    }
}

async fn next(watch: &mut store::Watch) -> Result<Event, Error> {
    tokio::time::timeout(Duration::from_secs(5), watch.events.recv()).await.expect("an event in time").expect("an open watch")
}

async fn revisions_grow_by_one_per_change(store: Arc<impl Store>) {
    let before = store.revision();
    assert_eq!(put(&store, "/a", "1").await, before + 1);
    assert_eq!(put(&store, "/b", "1").await, before + 2);
    assert_eq!(store.delete(b"/a", Expect::Anything).await.unwrap().0, before + 3);
    assert_eq!(store.revision(), before + 3);
}

async fn a_created_key_must_be_absent(store: Arc<impl Store>) {
    let revision = store.put(b"/a", "1".into(), Expect::Absent).await.unwrap();
    let Err(Error::Conflict { current: Some(there) }) = store.put(b"/a", "2".into(), Expect::Absent).await else { panic!("created twice") };
    assert_eq!((there.mod_revision, there.value), (revision, Bytes::from("1")));
}

async fn an_update_needs_the_newest_revision(store: Arc<impl Store>) {
    let first = put(&store, "/a", "1").await;
    let second = store.put(b"/a", "2".into(), Expect::Revision(first)).await.unwrap();
    assert!(matches!(store.put(b"/a", "3".into(), Expect::Revision(first)).await, Err(Error::Conflict { current: Some(_) })));
    assert!(matches!(store.delete(b"/a", Expect::Revision(first)).await, Err(Error::Conflict { .. })));
    let entry = store.get(b"/a").await.unwrap().unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (first, second));
    assert!(matches!(store.put(b"/none", "1".into(), Expect::Revision(first)).await, Err(Error::Conflict { current: None })));
}

async fn a_refused_write_changes_nothing(store: Arc<impl Store>) {
    put(&store, "/a", "1").await;
    let before = store.revision();
    let _ = store.put(b"/a", "2".into(), Expect::Absent).await.unwrap_err();
    let _ = store.delete(b"/a", Expect::Revision(before + 9)).await.unwrap_err();
    assert_eq!(store.revision(), before);
    assert_eq!(list(&store, "/", 0).await, [("/a".into(), "1".into())]);
}

async fn a_deletion_has_its_own_revision(store: Arc<impl Store>) {
    let made = put(&store, "/a", "1").await;
    let mut watch = store.watch(b"/", made).unwrap();
    let (revision, last) = store.delete(b"/a", Expect::Revision(made)).await.unwrap();
    assert_eq!((revision, last.mod_revision), (made + 1, made));
    assert_eq!(line(&next(&mut watch).await.unwrap()), format!("-/a@{revision}"));
    assert_eq!(store.get(b"/a").await.unwrap(), None);
}

async fn deleting_what_is_not_there_is_not_found(store: Arc<impl Store>) {
    assert_eq!(store.delete(b"/none", Expect::Anything).await.unwrap_err(), Error::NotFound);
}

async fn a_recreated_key_starts_a_new_life(store: Arc<impl Store>) {
    put(&store, "/a", "1").await;
    store.delete(b"/a", Expect::Anything).await.unwrap();
    let again = store.put(b"/a", "2".into(), Expect::Absent).await.unwrap();
    assert_eq!(store.get(b"/a").await.unwrap().unwrap().create_revision, again);
}

async fn a_range_is_in_key_order_and_stays_inside_its_prefix(store: Arc<impl Store>) {
    for key in ["/p/b", "/p/a", "/q/a", "/p0", "/p/a/x"] {
        put(&store, key, "v").await;
    }
    let keys: Vec<String> = list(&store, "/p/", 0).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["/p/a", "/p/a/x", "/p/b"]);
}

async fn a_limited_range_counts_what_remains_and_continues_at_the_same_revision(store: Arc<impl Store>) {
    for number in 0..10 {
        put(&store, &format!("/k/{number}"), "old").await;
    }
    let first = store.range(Range { prefix: "/k/".into(), limit: 4, ..Range::default() }).await.unwrap();
    assert_eq!((first.entries.len(), first.remaining), (4, 6));
    put(&store, "/k/5", "new").await;
    put(&store, "/k/zz", "new").await;
    store.delete(b"/k/9", Expect::Anything).await.unwrap();
    let mut start = first.entries.last().unwrap().key.to_vec();
    start.push(0);
    let rest = Range { prefix: "/k/".into(), start: start.into(), revision: first.revision, ..Range::default() };
    let rest = store.range(rest).await.unwrap();
    let found: Vec<_> = rest.entries.iter().map(pair).collect();
    assert_eq!(found, (4..10).map(|number| (format!("/k/{number}"), "old".to_owned())).collect::<Vec<_>>());
}

async fn a_read_of_the_future_is_refused(store: Arc<impl Store>) {
    let newest = put(&store, "/a", "1").await;
    let request = Range { prefix: "/".into(), revision: newest + 1, ..Range::default() };
    assert_eq!(store.range(request).await.unwrap_err(), Error::Future { wanted: newest + 1, newest });
}

async fn a_watch_from_the_past_sees_every_change_of_its_prefix_in_order(store: Arc<impl Store>) {
    let from = put(&store, "/w/a", "1").await;
    put(&store, "/w/b", "1").await;
    put(&store, "/x/a", "1").await;
    put(&store, "/w/a", "2").await;
    store.delete(b"/w/b", Expect::Anything).await.unwrap();
    let mut watch = store.watch(b"/w/", from).unwrap();
    put(&store, "/w/c", "1").await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(line(&next(&mut watch).await.unwrap()));
    }
    let expected = [("+/w/b=1", 1), ("+/w/a=2", 3), ("-/w/b", 4), ("+/w/c=1", 5)];
    assert_eq!(seen, expected.map(|(change, later)| format!("{change}@{}", from + later)));
}

async fn a_watch_carries_the_previous_value(store: Arc<impl Store>) {
    let mut watch = store.watch(b"/", store.revision()).unwrap();
    put(&store, "/a", "1").await;
    put(&store, "/a", "2").await;
    store.delete(b"/a", Expect::Anything).await.unwrap();
    let Event::Put { previous: None, .. } = next(&mut watch).await.unwrap() else { panic!() };
    let Event::Put { previous: Some(first), .. } = next(&mut watch).await.unwrap() else { panic!() };
    let Event::Delete { previous: second, .. } = next(&mut watch).await.unwrap() else { panic!() };
    assert_eq!((text(&first.value), text(&second.value)), ("1".into(), "2".into()));
}

async fn a_watch_that_joins_live_misses_nothing(store: Arc<impl Store>) {
    let from = put(&store, "/n/start", "").await;
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for number in 0..500 {
                put(&store, &format!("/n/{number}"), "v").await;
            }
        }
    });
    tokio::task::yield_now().await;
    let mut watch = store.watch(b"/n/", from).unwrap();
    for later in 1..=500 {
        assert_eq!(next(&mut watch).await.unwrap().revision(), from + later);
    }
    writer.await.unwrap();
}

async fn a_slow_watcher_is_closed_with_an_error_and_never_skips(store: Arc<impl Store>) {
    let from = store.revision();
    let mut slow = store.watch(b"/", from).unwrap();
    let writers: Vec<_> = (0..64)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in 0..160 {
                    put(&store, &format!("/{writer}/{number}"), "v").await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut expected = from + 1;
    loop {
        match next(&mut slow).await {
            Ok(event) => assert_eq!(event.revision(), expected),
            Err(error) => break assert!(matches!(error, Error::Compacted { .. }), "{error}"),
        }
        expected += 1;
    }
    assert!(expected < store.revision(), "10,240 events cannot all have waited");
    assert!(slow.events.recv().await.is_none());
}

async fn compaction_forgets_history_but_keeps_what_is_current(store: Arc<impl Store>) {
    let first = put(&store, "/a", "1").await;
    let second = put(&store, "/a", "2").await;
    put(&store, "/b", "1").await;
    let gone = store.delete(b"/b", Expect::Anything).await.unwrap().0;
    assert_eq!(list(&store, "/", first).await, [("/a".into(), "1".into())]);
    store.compact(gone).await.unwrap();
    let request = |revision| Range { prefix: "/".into(), revision, ..Range::default() };
    assert_eq!(store.range(request(second)).await.unwrap_err(), Error::Compacted { oldest: gone });
    assert!(matches!(store.watch(b"/", second), Err(Error::Compacted { oldest }) if oldest == gone));
    assert_eq!(list(&store, "/", 0).await, [("/a".into(), "2".into())]);
    assert_eq!(list(&store, "/", gone).await, [("/a".into(), "2".into())]);
    let mut watch = store.watch(b"/", gone).unwrap();
    let next_revision = put(&store, "/a", "3").await;
    assert_eq!(line(&next(&mut watch).await.unwrap()), format!("+/a=3@{next_revision}"));
    assert_eq!(store.get(b"/a").await.unwrap().unwrap().create_revision, first);
}

async fn compaction_twice_and_of_the_future_is_harmless(store: Arc<impl Store>) {
    let newest = put(&store, "/a", "1").await;
    store.compact(newest + 1_000).await.unwrap();
    store.compact(1).await.unwrap();
    assert_eq!(store.revision(), newest);
    assert_eq!(put(&store, "/a", "2").await, newest + 1);
    assert_eq!(list(&store, "/", newest).await, [("/a".into(), "1".into())]);
}

async fn only_one_of_many_racing_creators_wins(store: Arc<impl Store>) {
    let racers: Vec<_> = (0..50)
        .map(|racer: u32| {
            let store = store.clone();
            tokio::spawn(async move { store.put(b"/lock", racer.to_string().into(), Expect::Absent).await })
        })
        .collect();
    let mut winners = 0;
    for racer in racers {
        winners += u32::from(racer.await.unwrap().is_ok());
    }
    assert_eq!(winners, 1);
}

async fn racing_updates_lose_no_increment(store: Arc<impl Store>) {
    put(&store, "/n", "0").await;
    let racers: Vec<_> = (0..20)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while done < 10 {
                    let entry = store.get(b"/n").await.unwrap().unwrap();
                    let number: u32 = text(&entry.value).parse().unwrap();
                    let written = store.put(b"/n", (number + 1).to_string().into(), Expect::Revision(entry.mod_revision)).await;
                    done += u32::from(written.is_ok());
                }
            })
        })
        .collect();
    for racer in racers {
        racer.await.unwrap();
    }
    assert_eq!(text(&store.get(b"/n").await.unwrap().unwrap().value), "200");
}

async fn binary_keys_and_empty_values_are_fine(store: Arc<impl Store>) {
    store.put(&[0, 255, 10], Bytes::new(), Expect::Absent).await.unwrap();
    assert_eq!(store.get(&[0, 255, 10]).await.unwrap().unwrap().value, Bytes::new());
}

async fn history_is_what_a_watch_from_the_past_sees(store: Arc<impl Store>) {
    let from = put(&store, "/h/a", "1").await;
    put(&store, "/h/b", "1").await;
    put(&store, "/other", "1").await;
    put(&store, "/h/a", "2").await;
    store.delete(b"/h/b", Expect::Anything).await.unwrap();
    let newest = put(&store, "/h/b", "again").await;
    for after in [0, from, from + 2, from + 3, newest] {
        let history = store.history(b"/h/", after).unwrap();
        let mut watch = store.watch(b"/h/", after).unwrap();
        for event in &history {
            assert_eq!(next(&mut watch).await.unwrap(), *event);
        }
        assert!(watch.events.try_recv().is_err(), "the watch after {after} has more than the history");
    }
    let lines: Vec<String> = store.history(b"/h/", from).unwrap().iter().map(line).collect();
    let expected = [("+/h/b=1", 1), ("+/h/a=2", 3), ("-/h/b", 4), ("+/h/b=again", 5)];
    assert_eq!(lines, expected.map(|(change, later)| format!("{change}@{}", from + later)));
    let previous = |event: &Event| match event {
        Event::Put { previous, .. } => previous.as_ref().map(|entry| entry.mod_revision),
        Event::Delete { previous, .. } => Some(previous.mod_revision),
    };
    let previous: Vec<Option<u64>> = store.history(b"/h/", from).unwrap().iter().map(previous).collect();
    assert_eq!(previous, [None, Some(from), Some(from + 1), None]);
}

async fn history_of_what_is_forgotten_is_refused_and_of_the_future_is_empty(store: Arc<impl Store>) {
    let first = put(&store, "/a", "1").await;
    let second = put(&store, "/a", "2").await;
    store.compact(second).await.unwrap();
    assert_eq!(store.history(b"/", first).unwrap_err(), Error::Compacted { oldest: second });
    assert_eq!(store.history(b"/", second).unwrap(), []);
    assert_eq!(store.history(b"/", second + 100).unwrap(), []);
    let third = put(&store, "/a", "3").await;
    assert_eq!(store.history(b"/", second).unwrap().iter().map(line).collect::<Vec<_>>(), [format!("+/a=3@{third}")]);
}

async fn an_uncounted_range_says_only_whether_there_is_more(store: Arc<impl Store>) {
    for number in 0..5 {
        put(&store, &format!("/u/{number}"), "v").await;
    }
    put(&store, "/v", "outside").await;
    for (limit, entries, more) in [(2, 2, 1), (4, 4, 1), (5, 5, 0), (9, 5, 0), (0, 5, 0)] {
        let request = Range { prefix: "/u/".into(), limit, uncounted: true, ..Range::default() };
        let result = store.range(request).await.unwrap();
        assert_eq!((result.entries.len(), result.remaining), (entries, more), "limit {limit}");
    }
}

async fn an_uncounted_range_pages_through_everything_at_one_revision(store: Arc<impl Store>) {
    for number in 0..7 {
        put(&store, &format!("/u/{number}"), "old").await;
    }
    store.delete(b"/u/3", Expect::Anything).await.unwrap();
    let (mut start, mut revision, mut seen) = (Bytes::new(), 0, Vec::new());
    loop {
        let request = Range { prefix: "/u/".into(), start, limit: 2, revision, uncounted: true };
        let page = store.range(request).await.unwrap();
        revision = page.revision;
        seen.extend(page.entries.iter().map(pair));
        let Some(last) = page.entries.last().filter(|_| page.remaining > 0) else { break };
        start = [&last.key[..], &[0]].concat().into();
        // What changes meanwhile is not seen.
        put(&store, "/u/6", "new").await;
        put(&store, "/u/9", "new").await;
    }
    let expected: Vec<_> = [0, 1, 2, 4, 5, 6].map(|number| (format!("/u/{number}"), "old".to_owned())).into();
    assert_eq!(seen, expected);
}
