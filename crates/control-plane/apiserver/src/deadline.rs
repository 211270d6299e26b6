//! How long a request may take: a minute, or less where the client says so; what lasts as long as its client likes, until the server stops.
//!
//! Source: apiserver `pkg/server/filters/timeout.go`, `pkg/endpoints/filters/request_deadline.go`.

use std::io;
use std::pin::Pin;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use meta::Status;
use stdx::Drain;

use crate::backend::PassedOn;
use crate::context::Context;
use crate::reply::Body;

/// Upstream's `--request-timeout`.
const DEFAULT: Duration = Duration::from_secs(60);

/// `None` for requests that last as long as their client likes.
pub fn of(context: &Context) -> Result<Option<Duration>, Status> {
    if context.info.is_long_running() {
        return Ok(None);
    }
    let Some(text) = context.query.text("timeout") else { return Ok(Some(DEFAULT)) };
    let wanted = duration(text).ok_or_else(|| {
        let why = format!("time: invalid duration {text:?}");
        Status::bad_request(format!("invalid timeout specified in the request URL - {why}"))
    })?;
    Ok(Some(if wanted.is_zero() { DEFAULT } else { wanted.min(DEFAULT) }))
}

/// The answer when it took longer.
pub fn exceeded() -> Status {
    Status::failure(504, "Timeout", "Timeout: request did not complete within requested timeout - context deadline exceeded")
}

/// Such as a log that is followed: an answer that is passed on from elsewhere ends when the server stops, as our own watches do. Otherwise the stop
/// would wait for it, with no new connection taken meanwhile.
pub fn until_stop(response: Response<Body>, drain: &Drain) -> Response<Body> {
    if response.extensions().get::<PassedOn>().is_none() {
        return response;
    }
    let (drain, stop) = (drain.clone(), drain.clone());
    response.map(|body| Ending { body, drain, stopping: Box::pin(async move { stop.stopping().await }) }.boxed())
}

struct Ending {
    body: Body,
    drain: Drain,
    /// Wakes a body that waits for more.
    stopping: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.drain.is_stopping() {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.body).poll_frame(poller) {
            Poll::Pending if self.stopping.as_mut().poll(poller).is_ready() => Poll::Ready(None),
            frame => frame,
        }
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Go's form of a duration: `1m30s`, `1.5s`, `300ms`, `0`.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|end| *end > 0)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let factor = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * factor;
        rest = tail;
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let cases = [
            ("34s", Some(34.0)),
            ("1m30s", Some(90.0)),
            ("1.5s", Some(1.5)),
            ("300ms", Some(0.3)),
            ("0", Some(0.0)),
            ("5", None),
            ("s", None),
            ("", None),
            ("-1s", None),
            ("1x", None),
            ("1..2s", None),
            ("999999999999999999999h", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(duration(text).map(|duration| duration.as_secs_f64()), wanted, "{text}");
        }
    }
}
