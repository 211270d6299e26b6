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
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::read;
use crate::Inner;
use crate::cache::{Caches, Change, Delivery, Event, Since, Subscription, frame};
use crate::context::Context;
use crate::negotiate::{Format, Media, View};
use crate::object::Object;
use crate::registry::Target;
use crate::registry::catalog::Kind;
use crate::reply::Body;
use crate::views::{self, Include};

/// A watch without `timeoutSeconds` ends after this time and up to as much again (upstream's min-request-timeout).
const TIMEOUT_MIN_SECONDS: u64 = 1_800;
/// About how often a bookmark is sent to a watcher that allows them.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

pub async fn watch(server: &Arc<Inner>, context: &Context, target: Target<'_>) -> Result<Response<Body>, Status> {
    let mut format = super::format(context, target.kind)?;
    format.pretty = false;
    if format.media == Media::Yaml {
        return Err(Status::not_acceptable(&["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"]));
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
    let cache = caches.of(target.kind.storage.prefix.as_bytes());
    let subscription = cache.watch(since, announce, selection, caches.observed());
    let seconds = read::number(context, "timeoutSeconds")?.filter(|seconds| *seconds > 0).unwrap_or_else(random_timeout);
    let encoder = Encoder { kind: target.kind.clone(), format, include, headers: true };
    let mut body = WatchBody {
        encoder,
        caches: caches.clone(),
        phase: Phase::Live,
        initial: Vec::new().into_iter(),
        replay: Vec::new().into_iter(),
        subscription: None,
        revision: 0,
        bookmarks: query.flag("allowWatchBookmarks"),
        ends: Box::pin(sleep(Duration::from_secs(seconds))),
        bookmark: Box::pin(sleep(BOOKMARK_EVERY)),
        stopping: Box::pin({
            let drain = server.drain.clone();
            async move { drain.stopping().await }
        }),
    };
    match subscription {
        Ok(mut subscription) => {
            body.initial = std::mem::take(&mut subscription.initial).into_iter();
            body.replay = std::mem::take(&mut subscription.replay).into_iter();
            body.revision = subscription.revision;
            body.phase = if announce { Phase::Initial { bookmark: initial_events == Some(true) && body.bookmarks } } else { Phase::Live };
            body.subscription = Some(subscription);
        }
        Err(old) => body.phase = Phase::Failed(Status::expired(old.to_string())),
    }
    let mut response = Response::new(body.boxed());
    let media = match format.media {
        Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
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
}

impl Encoder {
    fn is_plain(&self) -> bool {
        self.format.media == Media::Json && self.format.view == View::Object && !self.kind.converts()
    }

    /// An event that watchers share: its bytes are made once where all get the same.
    fn delivered(&mut self, change: Change, delivery: &Delivery) -> Bytes {
        let object = &delivery.event.object;
        match (self.format.media, self.format.view) {
            _ if self.kind.converts() => self.event(change, object),
            (Media::Json, View::Object) => delivery.json(change),
            (Media::Protobuf, View::Object) => delivery.protobuf(change, || self.event(change, object)),
            _ => self.event(change, object),
        }
    }

    fn event(&mut self, change: Change, object: &Object) -> Bytes {
        if self.is_plain() {
            return frame(change, object);
        }
        let value = match self.format.view {
            View::Table(version) => {
                let list = json!({"resourceVersion": object.revision.to_string()});
                let headers = std::mem::take(&mut self.headers);
                views::table(&self.kind, vec![views::served(&self.kind, object)], version, self.include, list, headers)
            }
            _ => views::one(&self.kind, object, self.format, self.include),
        };
        self.envelope(change.word(), value)
    }

    fn envelope(&self, word: &str, value: Value) -> Bytes {
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
    Failed(Status),
    Over,
}

struct WatchBody {
    encoder: Encoder,
    caches: Arc<Caches>,
    phase: Phase,
    initial: std::vec::IntoIter<Arc<Object>>,
    replay: std::vec::IntoIter<(Change, Event)>,
    subscription: Option<Subscription>,
    /// What the client has seen.
    revision: u64,
    bookmarks: bool,
    ends: Pin<Box<Sleep>>,
    bookmark: Pin<Box<Sleep>>,
    stopping: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl WatchBody {
    fn step(&mut self, poller: &mut Poller<'_>) -> Poll<Option<Bytes>> {
        match &self.phase {
            Phase::Over => return Poll::Ready(None),
            Phase::Failed(status) => {
                let last = self.encoder.error(status);
                self.phase = Phase::Over;
                return Poll::Ready(Some(last));
            }
            Phase::Initial { bookmark } => {
                if let Some(object) = self.initial.next() {
                    return Poll::Ready(Some(self.encoder.event(Change::Added, &object)));
                }
                let bookmark = *bookmark;
                self.phase = Phase::Live;
                if bookmark {
                    return Poll::Ready(Some(self.encoder.bookmark(self.revision, true)));
                }
            }
            Phase::Live => {}
        }
        if let Some((change, event)) = self.replay.next() {
            return Poll::Ready(Some(self.encoder.event(change, &event.object)));
        }
        self.live(poller)
    }

    fn live(&mut self, poller: &mut Poller<'_>) -> Poll<Option<Bytes>> {
        // Read before the queue: all events up to here are already in it.
        let observed = self.caches.observed();
        let Some(subscription) = &mut self.subscription else {
            return Poll::Ready(None);
        };
        match subscription.live.poll_recv(poller) {
            Poll::Ready(Some((change, delivery))) => {
                self.revision = delivery.event.object.revision;
                return Poll::Ready(Some(self.encoder.delivered(change, &delivery)));
            }
            Poll::Ready(None) if subscription.lagged() => {
                self.phase = Phase::Over;
                let status = Status::expired(format!("too old resource version: {} ({observed})", self.revision));
                return Poll::Ready(Some(self.encoder.error(&status)));
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        if self.ends.as_mut().poll(poller).is_ready() || self.stopping.as_mut().poll(poller).is_ready() {
            self.phase = Phase::Over;
            // A last bookmark lets the client resume from here.
            return Poll::Ready(self.bookmarks.then(|| self.encoder.bookmark(observed.max(self.revision), false)));
        }
        if self.bookmarks && self.bookmark.as_mut().poll(poller).is_ready() {
            self.bookmark.set(sleep_until(Instant::now() + BOOKMARK_EVERY));
            return Poll::Ready(Some(self.encoder.bookmark(observed.max(self.revision), false)));
        }
        Poll::Pending
    }
}

impl http_body::Body for WatchBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.step(poller).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
