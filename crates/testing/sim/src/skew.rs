//! A component whose wall clock is wrong, without another clock: every time that it reads from the API is earlier by the error of its clock,
//! and every time that it writes later. To the component that is the same as a clock that is ahead by so much; to all others as well.
//!
//! What it computes from the calendar alone (the next run of a schedule) follows the true clock, and what it has read before a jump keeps the
//! times that it had then.

use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::{Bytes, BytesMut};
use client::{Body, Transport};
use futures_util::StreamExt;
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use jiff::{SignedDuration, Timestamp};

use crate::chaos::SyncStream;

/// The shortest and the longest of what the API writes: `2026-01-01T00:00:00Z`, and with nanoseconds.
const LENGTHS: std::ops::RangeInclusive<usize> = 20..=30;

/// By how many seconds a clock is ahead; it may jump at any moment.
#[derive(Clone, Default)]
pub struct Clock(Arc<AtomicI64>);

impl Clock {
    pub fn set(&self, seconds_ahead: i64) {
        self.0.store(seconds_ahead, Ordering::Release);
    }

    fn ahead(&self) -> i64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A transport for who has that clock.
pub struct Skewed {
    pub inner: Arc<dyn Transport>,
    pub clock: Clock,
}

impl Transport for Skewed {
    fn send(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>> {
        let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let clock = self.clock.clone();
        Box::pin(async move {
            let request = request.map(|body| shifted(&body, clock.ahead()));
            let response = self.inner.send(request).await?;
            if watch {
                return Ok(response.map(|body| BodyExt::boxed(StreamBody::new(SyncStream::new(lines(body, clock))))));
            }
            let (head, body) = response.into_parts();
            let whole = shifted(&body.collect().await?.to_bytes(), -clock.ahead());
            let body = http_body_util::Full::new(whole).map_err(|never| match never {}).boxed();
            let mut response = http::Response::from_parts(head, body);
            response.headers_mut().remove(http::header::CONTENT_LENGTH);
            Ok(response)
        })
    }
}

/// The events of a watch, each whole: a time may stand in two frames.
fn lines(body: Body, clock: Clock) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send {
    let mut rest = BytesMut::new();
    BodyStream::new(body).filter_map(move |frame| {
        let whole = frame.map(|frame| {
            rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            let end = rest.iter().rposition(|byte| *byte == b'\n')?;
            Some(Frame::data(shifted(&rest.split_to(end + 1), -clock.ahead())))
        });
        std::future::ready(whole.transpose())
    })
}

/// The text with every string that is a time and nothing else later by so many seconds. What is no time stays as it is.
fn shifted(text: &[u8], seconds: i64) -> Bytes {
    let mut out = BytesMut::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.iter().position(|byte| *byte == b'"') {
        let (before, string) = rest.split_at(start + 1);
        out.extend_from_slice(before);
        let length = string.iter().position(|byte| *byte == b'"').unwrap_or(string.len());
        let (string, after) = string.split_at(length);
        match later(string, seconds) {
            Some(later) => out.extend_from_slice(later.as_bytes()),
            None => out.extend_from_slice(string),
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out.freeze()
}

fn later(string: &[u8], seconds: i64) -> Option<String> {
    if seconds == 0 || !LENGTHS.contains(&string.len()) || string.get(10) != Some(&b'T') || string.last() != Some(&b'Z') {
        return None;
    }
    let time = Timestamp::from_str(std::str::from_utf8(string).ok()?).ok()?.checked_add(SignedDuration::from_secs(seconds)).ok()?;
    // As many digits after the seconds as before.
    match string.len() - LENGTHS.start() {
        0 => Some(time.to_string()),
        more => Some(format!("{time:.*}", more - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_move_and_nothing_else_does() {
        let cases = [
            (r#"{"a":"2026-01-01T00:00:00Z","b":"x"}"#, r#"{"a":"2026-01-01T01:00:00Z","b":"x"}"#),
            (r#"["2025-12-31T23:30:00.000120Z"]"#, r#"["2026-01-01T00:30:00.000120Z"]"#),
            (r#"{"text":"since 2026-01-01T00:00:00Z","v":"1.2.3"}"#, r#"{"text":"since 2026-01-01T00:00:00Z","v":"1.2.3"}"#),
            (r#"{"cut":"2026-01-01T00:00"#, r#"{"cut":"2026-01-01T00:00"#),
        ];
        for (text, expected) in cases {
            assert_eq!(shifted(text.as_bytes(), 3600), expected.as_bytes(), "{text}");
            assert_eq!(shifted(expected.as_bytes(), -3600), text.as_bytes(), "back: {text}");
        }
    }
}
