//! `watch`: a stream of events, made while it is read.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use meta::Status;
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep, sleep_until};

use super::read;
use crate::Inner;
use crate::cache::{Caches, Change, Delivery, Event, Next, Since, Subscription, TooOld, feed, frame, metadata_frame};
use crate::context::Context;
use crate::metrics::Watched;
use crate::negotiate::{Format, Media, View};
use crate::object::Object;
use crate::registry::Target;
use crate::registry::catalog::Kind;
use crate::reply::Body;
use crate::selection::Selection;
use crate::views::{self, Include};

/// A watch without `timeoutSeconds` ends after this time and up to as much again (upstream's min-request-timeout).
const TIMEOUT_MIN_SECONDS: u64 = 1_800;
/// Open watches at most: each costs a few KiB, whoever asks.
const WATCHES_MAX: i64 = 200_000;
/// Longer wishes are cut.
const TIMEOUT_MAX_SECONDS: u64 = 30 * 24 * 3_600;
/// Frames that are ready at the same time are sent in one piece up to about this size.
const TOGETHER_BYTES: usize = 32 << 10;
/// About how often a bookmark is sent to a watcher that allows them.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

pub async fn watch(server: &Arc<Inner>, context: &Context, target: Target<'_>) -> Result<Response<Body>, Status> {
    let mut format = super::format(context, target.kind)?;
    format.pretty = false;
    if format.media == Media::Yaml {
        return Err(Status::not_acceptable(&["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"]));
    }
    if server.metrics.watches() >= WATCHES_MAX {
        return Err(Status::too_many_requests("too many watches are open on this server, please try again later", 5));
    }
    let include = Include::parse(&context.query)?;
    let selection = Arc::new(read::selection(context, target)?);
    let query = &context.query;
    let version = read::parse_version(query.text("resourceVersion"))?;
    let initial_events = initial_events(context, version)?;
    let caches = &server.registry.caches;
    read::reach(server, version.filter(|version| *version > 0).unwrap_or_else(|| server.registry.store.revision())).await?;
    let since = match version {
        Some(revision) if revision > 0 => Since::Revision(revision),
        _ => Since::State,
    };
    let announce = initial_events.unwrap_or(since == Since::State);
    let seconds = read::number(context, "timeoutSeconds")?.filter(|seconds| *seconds > 0).unwrap_or_else(random_timeout);
    let now = Instant::now();
    let bookmarks = query.flag("allowWatchBookmarks");
    let ends = now + Duration::from_secs(seconds.min(TIMEOUT_MAX_SECONDS));
    let bookmark = bookmarks.then(|| now + BOOKMARK_EVERY);
    let mut body = WatchBody {
        encoder: Encoder { kind: target.kind.clone(), format, include, headers: true, selection: selection.clone() },
        caches: caches.clone(),
        phase: Phase::Live,
        replay: Vec::new().into_iter(),
        subscription: None,
        revision: 0,
        ends,
        bookmark,
        timer: Box::pin(sleep_until(bookmark.map_or(ends, |bookmark| bookmark.min(ends)))),
        counted: server.metrics.watched(context, target.kind),
    };
    match subscribe(server, target.kind, since, announce, selection) {
        Ok(mut subscription) => {
            body.replay = std::mem::take(&mut subscription.replay).into_iter();
            body.revision = subscription.revision;
            body.phase = if announce { Phase::Initial { bookmark: initial_events == Some(true) && bookmarks } } else { Phase::Live };
            body.subscription = Some(subscription);
        }
        Err(old) => body.phase = Phase::Failed(Box::new(Status::expired(old.to_string()))),
    }
    let mut response = Response::new(body.boxed());
    let media = match format.media {
        Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        Media::Cbor => schema::cbor::MEDIA_TYPE_SEQUENCE,
        _ => "application/json",
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// What the cache has forgotten, the store may still know: a watch goes on over a restart of the server.
fn subscribe(server: &Inner, kind: &Kind, since: Since, announce: bool, selection: Arc<Selection>) -> Result<Subscription, TooOld> {
    let caches = &server.registry.caches;
    let prefix = kind.storage.prefix.as_bytes();
    let cache = caches.of(prefix);
    let old = match cache.watch(since, announce, selection.clone(), caches.observed()) {
        Err(old) => old,
        found => return found,
    };
    // First the queue, then the past: together they have everything.
    let mut subscription = cache.watch(Since::State, false, selection.clone(), caches.observed())?;
    let past = match server.registry.store.history(prefix, old.wanted) {
        Ok(past) => past.into_iter().take_while(|event| event.revision() <= subscription.applied),
        Err(store::Error::Compacted { oldest }) => return Err(TooOld { oldest, ..old }),
        Err(_) => return Err(old),
    };
    let events = past.filter_map(|event| feed::event_of(event, |_| None));
    subscription.replay = events.filter_map(|event| selection.classify(&event).map(|change| (change, event))).collect();
    Ok(subscription)
}

/// KEP-3157: `sendInitialEvents` and what has to come with it.
fn initial_events(context: &Context, version: Option<u64>) -> Result<Option<bool>, Status> {
    let query = &context.query;
    let rule = query.text("resourceVersionMatch");
    let path = |name: &str| meta::field::Path::new(name);
    let refuse = |error| Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]));
    let Some(_) = query.text("sendInitialEvents") else {
        if rule.is_some() {
            let detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return refuse(meta::field::Error::forbidden(&path("resourceVersionMatch"), detail));
        }
        return Ok(None);
    };
    if rule != Some("NotOlderThan") {
        let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return refuse(meta::field::Error::forbidden(&path("resourceVersionMatch"), detail));
    }
    let _ = version;
    Ok(Some(query.flag("sendInitialEvents")))
}

fn random_timeout() -> u64 {
    let mut bytes = [0_u8; 2];
    // Without randomness all watches of a moment end together, which only costs reconnections.
    let _ = getrandom::fill(&mut bytes);
    TIMEOUT_MIN_SECONDS + u64::from(u16::from_le_bytes(bytes)) % TIMEOUT_MIN_SECONDS
}

/// Turns events into frames of the wanted media type and view.
struct Encoder {
    kind: Arc<Kind>,
    format: Format,
    include: Include,
    /// The next table has its column definitions.
    headers: bool,
    selection: Arc<Selection>,
}

impl Encoder {
    fn is_plain(&self) -> bool {
        self.format.media == Media::Json && self.format.view == View::Object && !self.kind.converts()
    }

    /// What a change of the stored object is to a watcher who selects by fields that only the shown object has.
    fn late(&self, change: Change, event: &Event) -> Option<Change> {
        let has = |object: &Arc<Object>| self.kind.present(object.clone()).is_ok_and(|shown| self.selection.matches_shown(&shown));
        if self.selection.late.is_everything() {
            return Some(change);
        }
        let was = change != Change::Added && event.previous.as_ref().is_some_and(has);
        let is = change != Change::Deleted && has(&event.object);
        match (was, is) {
            (false, true) => Some(Change::Added),
            (true, true) => Some(Change::Modified),
            (true, false) => Some(Change::Deleted),
            (false, false) => None,
        }
    }

    /// An object that was there when the watch began; `None` where it is not selected.
    fn initial(&mut self, object: &Arc<Object>) -> Option<Bytes> {
        let event = Event { deleted: false, object: object.clone(), previous: None };
        self.late(Change::Added, &event).map(|change| self.event(change, object))
    }

    /// An event out of the past.
    fn replayed(&mut self, change: Change, event: &Event) -> Option<Bytes> {
        self.late(change, event).map(|change| self.event(change, &event.shown(change)))
    }

    /// An event that watchers share: its bytes are made once where all get the same.
    fn delivered(&mut self, change: Change, delivery: &Delivery) -> Option<Bytes> {
        self.late(change, &delivery.event).map(|change| self.shared(change, delivery))
    }

    fn shared(&mut self, change: Change, delivery: &Delivery) -> Bytes {
        let event = &delivery.event;
        match (self.format.media, self.format.view) {
            (Media::Json, View::Object) if self.kind.is_custom() => {
                let shown = event.shown(change);
                match self.kind.present(shown.clone()) {
                    Ok(presented) if Arc::ptr_eq(&presented, &shown) => delivery.json(change),
                    _ => self.event(change, &shown),
                }
            }
            _ if self.kind.converts() => self.event(change, &event.shown(change)),
            (Media::Json, View::Object) => delivery.json(change),
            (Media::Protobuf, View::Object) => delivery.protobuf(change, || self.event(change, &event.shown(change))),
            (Media::Json, View::PartialMetadata("v1")) if !self.kind.is_custom() => {
                delivery.metadata(change, || self.event(change, &event.shown(change)))
            }
            _ => self.event(change, &event.shown(change)),
        }
    }

    fn event(&mut self, change: Change, object: &Arc<Object>) -> Bytes {
        let presented = match self.kind.present(object.clone()) {
            Ok(presented) => presented,
            Err(status) => return self.error(&status),
        };
        let object = &*presented;
        if self.is_plain() {
            return frame(change, object);
        }
        if let (Media::Json, View::PartialMetadata(version)) = (self.format.media, self.format.view)
            && !self.kind.converts()
            && let Some(line) = metadata_frame(change, object, version)
        {
            return line;
        }
        if (self.format.media, self.format.view) == (Media::Protobuf, View::Object)
            && let Some(body) = crate::codec::object_body(&self.kind, object)
        {
            return schema::protobuf::watch_frame(change.word(), &body).into();
        }
        let value = match self.format.view {
            View::Table(version) => {
                let list = json!({"resourceVersion": object.revision.to_string()});
                let headers = std::mem::take(&mut self.headers);
                views::table(&self.kind, vec![object.value()], version, self.include, list, headers)
            }
            _ => views::one(&self.kind, object, self.format, self.include),
        };
        self.envelope(change.word(), value)
    }

    fn envelope(&self, word: &str, value: Value) -> Bytes {
        if self.format.media == Media::Cbor {
            return schema::cbor::watch_event(word, &schema::cbor::encode(&value)).into();
        }
        if self.format.media == Media::Protobuf
            && let Some(frame) = crate::codec::watch_frame(word, &value)
        {
            return frame;
        }
        let mut line = json!({"type": word, "object": value}).to_string().into_bytes();
        line.push(b'\n');
        line.into()
    }

    fn bookmark(&self, revision: u64, initial_events_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let value = match self.format.view {
            View::Object => json!({"kind": self.kind.facts.kind, "apiVersion": self.kind.api_version(), "metadata": metadata}),
            View::PartialMetadata(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata})
            }
            View::Table(version) => {
                let object = json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata});
                json!({"kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": {"resourceVersion": revision.to_string()},
                    "columnDefinitions": [], "rows": [{"cells": [], "object": object}]})
            }
        };
        self.envelope("BOOKMARK", value)
    }

    fn error(&self, status: &Status) -> Bytes {
        self.envelope("ERROR", status.to_value())
    }
}

enum Phase {
    /// The objects that were there; then, if wanted, the bookmark that ends them.
    Initial {
        bookmark: bool,
    },
    Live,
    /// One last error.
    Failed(Box<Status>),
    Over,
}

struct WatchBody {
    encoder: Encoder,
    caches: Arc<Caches>,
    phase: Phase,
    replay: std::vec::IntoIter<(Change, Event)>,
    subscription: Option<Subscription>,
    /// What the client has seen.
    revision: u64,
    ends: Instant,
    /// When the next one is due, for a client that allows them.
    bookmark: Option<Instant>,
    /// Goes off at the earlier of the two.
    timer: Pin<Box<Sleep>>,
    counted: Watched,
}

impl WatchBody {
    /// The next frame; what waits already goes out together, so that a busy watch costs fewer writes than events.
    fn step(&mut self, poller: &mut Poller<'_>) -> Poll<Option<Bytes>> {
        let first = match self.next(poller) {
            Poll::Ready(Some(first)) => first,
            other => return other,
        };
        let (mut together, mut events) = (Vec::new(), 1);
        while first.len() + together.len() < TOGETHER_BYTES
            && let Some(frame) = self.ready()
        {
            if together.is_empty() {
                together.reserve(2 * first.len() + 2 * frame.len());
                together.extend_from_slice(&first);
            }
            together.extend_from_slice(&frame);
            events += 1;
        }
        let piece = if together.is_empty() { first } else { together.into() };
        self.counted.sent(events, piece.len());
        Poll::Ready(Some(piece))
    }

    /// An object or event that can be sent at once.
    fn ready(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.take()? {
                return Some(frame);
            }
        }
    }

    /// The next object or event that is there; `Some(None)` where it is not for this watcher.
    fn take(&mut self) -> Option<Option<Bytes>> {
        let subscription = self.subscription.as_mut()?;
        match self.phase {
            Phase::Initial { .. } => {
                let object = subscription.initial.as_mut()?.next()?;
                Some(self.encoder.initial(&object))
            }
            Phase::Live => match self.replay.next() {
                Some((change, event)) => Some(self.encoder.replayed(change, &event)),
                None => {
                    let (change, delivery) = subscription.live.take_event()?;
                    self.revision = delivery.event.object.revision;
                    Some(self.encoder.delivered(change, &delivery))
                }
            },
            Phase::Failed(_) | Phase::Over => None,
        }
    }

    fn next(&mut self, poller: &mut Poller<'_>) -> Poll<Option<Bytes>> {
        if let Phase::Failed(status) = &self.phase {
            let last = self.encoder.error(status);
            self.phase = Phase::Over;
            return Poll::Ready(Some(last));
        }
        if let Phase::Over = self.phase {
            return Poll::Ready(None);
        }
        // Read before the queue: all events up to here are already in it.
        let observed = self.caches.observed();
        if let Some(frame) = self.ready() {
            return Poll::Ready(Some(frame));
        }
        if let Phase::Initial { bookmark } = self.phase {
            self.phase = Phase::Live;
            if let Some(subscription) = &mut self.subscription {
                subscription.initial = None;
            }
            if bookmark {
                return Poll::Ready(Some(self.encoder.bookmark(self.revision, true)));
            }
            if let Some(frame) = self.ready() {
                return Poll::Ready(Some(frame));
            }
        }
        self.wait(poller, observed)
    }

    /// Nothing is there to be sent.
    fn wait(&mut self, poller: &mut Poller<'_>, observed: u64) -> Poll<Option<Bytes>> {
        let Some(subscription) = &self.subscription else {
            return Poll::Ready(None);
        };
        match subscription.live.poll_next(poller) {
            Poll::Ready(Next::Event(change, delivery)) => {
                self.revision = delivery.event.object.revision;
                if let Some(frame) = self.encoder.delivered(change, &delivery) {
                    return Poll::Ready(Some(frame));
                }
                poller.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(Next::Lagged) => {
                self.phase = Phase::Over;
                let status = Status::expired(format!("too old resource version: {} ({observed})", self.revision));
                return Poll::Ready(Some(self.encoder.error(&status)));
            }
            Poll::Ready(Next::Closed) => return self.end(observed),
            Poll::Pending => {}
        }
        while self.timer.as_mut().poll(poller).is_ready() {
            let now = Instant::now();
            if now >= self.ends {
                return self.end(observed);
            }
            let Some(due) = self.bookmark else { continue };
            let next = if now >= due { now + BOOKMARK_EVERY } else { due };
            self.bookmark = Some(next);
            self.timer.as_mut().reset(next.min(self.ends));
            if now >= due {
                return Poll::Ready(Some(self.encoder.bookmark(observed.max(self.revision), false)));
            }
        }
        Poll::Pending
    }

    /// A last bookmark lets the client resume from here.
    fn end(&mut self, observed: u64) -> Poll<Option<Bytes>> {
        self.phase = Phase::Over;
        Poll::Ready(self.bookmark.map(|_| self.encoder.bookmark(observed.max(self.revision), false)))
    }
}

impl http_body::Body for WatchBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.step(poller).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
