//! A watch's body, newline-delimited JSON frames, as a stream of typed events.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http_body_util::BodyExt;
use meta::Status;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::{Body, Error};

/// A frame larger than this breaks the watch: objects are at most a few MiB.
const FRAME_BYTES_MAX: usize = 32 << 20;

/// One change.
#[derive(Clone, Debug)]
pub enum WatchEvent<K> {
    Added(K),
    Modified(K),
    /// The object's last state, at the revision of its deletion.
    Deleted(K),
    /// Nothing before this revision is still to come.
    Bookmark {
        resource_version: String,
        /// The end of the initial events that `send_initial_events` asked for.
        initial_events_end: bool,
    },
    /// The server ends the watch; 410 means: list again.
    Error(Box<Status>),
}

/// The events of one watch, in order. Ends when the server ends it; after an `Err` it ends too.
pub struct WatchStream<K> {
    body: Option<Body>,
    /// An unfinished frame.
    partial: BytesMut,
    /// Whole frames that arrived and are not yet decoded; the server's chunks bound them.
    frames: VecDeque<Bytes>,
    /// Objects are read with their managedFields.
    owned: bool,
    kind: PhantomData<fn() -> K>,
}

impl<K> WatchStream<K> {
    pub(crate) fn new(body: Body) -> Self {
        Self { body: Some(body), partial: BytesMut::new(), frames: VecDeque::new(), owned: true, kind: PhantomData }
    }

    /// From now on objects are read without `metadata.managedFields`, which costs less.
    #[must_use]
    pub fn without_owners(self) -> Self {
        Self { owned: false, ..self }
    }

    /// Cuts what arrived into whole frames, without a copy where a chunk holds whole frames only (the in-process transport's do).
    fn feed(&mut self, mut chunk: Bytes) -> Result<(), Error> {
        while let Some(end) = memchr::memchr(b'\n', &chunk) {
            let head = chunk.split_to(end + 1);
            if self.partial.is_empty() {
                self.frames.push_back(head);
            } else {
                self.partial.extend_from_slice(&head);
                self.frames.push_back(self.partial.split().freeze());
            }
        }
        self.partial.extend_from_slice(&chunk);
        if self.partial.len() > FRAME_BYTES_MAX {
            return Err(Error::Transport(std::io::Error::other(format!("a watch frame exceeds {FRAME_BYTES_MAX} bytes"))));
        }
        Ok(())
    }
}

impl<K: DeserializeOwned> WatchStream<K> {
    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<WatchEvent<K>, Error>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<WatchEvent<K>, Error>>> {
        loop {
            while let Some(frame) = self.frames.pop_front() {
                if frame.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let event = decode(&frame, self.owned);
                if event.is_err() {
                    self.close();
                }
                return Poll::Ready(Some(event));
            }
            let Some(body) = &mut self.body else { return Poll::Ready(None) };
            let arrived = match std::task::ready!(Pin::new(&mut body.frame()).poll(context)) {
                Some(Ok(frame)) => frame.into_data().map_or(Ok(()), |data| self.feed(data)),
                Some(Err(error)) => Err(Error::Transport(error)),
                None => {
                    self.body = None;
                    // A server may leave out the last newline.
                    self.frames.push_back(self.partial.split().freeze());
                    Ok(())
                }
            };
            if let Err(error) = arrived {
                self.close();
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    fn close(&mut self) {
        self.body = None;
        self.frames.clear();
        self.partial.clear();
    }
}

impl<K: DeserializeOwned> Stream for WatchStream<K> {
    type Item = Result<WatchEvent<K>, Error>;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context)
    }
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// The object within a frame as servers write it, without a look at each of its bytes: `{"type":"ADDED","object":…}` and a line's end.
fn object_of<'a>(frame: &'a [u8], kind: &str) -> Option<&'a [u8]> {
    let rest = frame.strip_prefix(b"{\"type\":\"")?.strip_prefix(kind.as_bytes())?;
    rest.strip_prefix(b"\",\"object\":")?.trim_ascii_end().strip_suffix(b"}")
}

fn decode<K: DeserializeOwned>(frame: &[u8], owned: bool) -> Result<WatchEvent<K>, Error> {
    let broken = |source| Error::Decode { what: "watch".into(), source };
    let read = |object: &[u8]| if owned { crate::decode::object(object) } else { crate::decode::unowned(object) }.map_err(broken);
    let usual: [(&str, fn(K) -> WatchEvent<K>); 3] =
        [("ADDED", WatchEvent::Added), ("MODIFIED", WatchEvent::Modified), ("DELETED", WatchEvent::Deleted)];
    for (kind, event) in usual {
        if let Some(object) = object_of(frame, kind) {
            return read(object).map(event);
        }
    }
    let frame: Frame<'_> = serde_json::from_slice(frame).map_err(broken)?;
    let object = frame.object.get();
    Ok(match frame.kind.as_str() {
        "ADDED" => WatchEvent::Added(read(object.as_bytes())?),
        "MODIFIED" => WatchEvent::Modified(read(object.as_bytes())?),
        "DELETED" => WatchEvent::Deleted(read(object.as_bytes())?),
        "BOOKMARK" => {
            let Bookmark { metadata } = serde_json::from_str(object).map_err(broken)?;
            let ends = metadata
                .annotations
                .is_some_and(|annotations| annotations.get("k8s.io/initial-events-end").is_some_and(|value| value == "true"));
            WatchEvent::Bookmark { resource_version: metadata.resource_version, initial_events_end: ends }
        }
        "ERROR" => WatchEvent::Error(serde_json::from_str(object).map_err(broken)?),
        other => return Err(broken(serde::de::Error::custom(format!("unknown event type {other:?}")))),
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use hyper::body::Frame as BodyFrame;
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn stream(chunks: Vec<&'static str>) -> WatchStream<ConfigMap> {
        let chunks = chunks.into_iter().map(|text| Ok(BodyFrame::data(Bytes::from_static(text.as_bytes()))));
        WatchStream::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(chunks))))
    }

    #[tokio::test]
    async fn events_are_whole_however_the_bytes_were_cut() {
        let mut events = stream(vec![
            "{\"type\":\"ADDED\",\"object\":{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{\"na",
            "me\":\"a\"}}}\n{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"7\",",
            "\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}}}}\n\n",
            "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"reason\":\"Expired\"}}",
        ]);
        assert!(matches!(events.next().await, Some(Ok(WatchEvent::Added(map))) if map.metadata.name.as_deref() == Some("a")));
        let Some(Ok(WatchEvent::Bookmark { resource_version, initial_events_end: true })) = events.next().await else { panic!() };
        assert_eq!(resource_version, "7");
        assert!(matches!(events.next().await, Some(Ok(WatchEvent::Error(status))) if status.code == 410));
        assert!(events.next().await.is_none());
    }

    #[tokio::test]
    async fn a_malformed_frame_is_an_error_and_the_end() {
        let mut events = stream(vec!["{\"type\":\"WHAT\",\"object\":{}}\n", "{\"type\":\"ADDED\"\n"]);
        assert!(matches!(events.next().await, Some(Err(Error::Decode { .. }))));
        assert!(events.next().await.is_none());
    }
}
