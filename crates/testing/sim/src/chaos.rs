//! A network that delays requests, loses some, loses the answers of others, delays and repeats events, and cuts watches: all as a seed says.
//!
//! A watch that is cut begins anew from where it was or with a list: events come late, twice, and as the difference of two lists. Each watch
//! has delays of its own, so that what happened to one kind is seen before or after what happened to another.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use client::{Body, Transport};
use futures_util::StreamExt;
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};

use crate::Random;

/// How bad it is.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub delay_max: Duration,
    /// One in so many requests never arrives; 0: none.
    pub lost: u64,
    /// One in so many answers never arrives though the server did what was asked.
    pub answer_lost: u64,
    /// Watches live at most so long.
    pub watch_max: Duration,
    /// One in so many events comes late, with all that follow on its watch; and one in so many comes twice. 0: none.
    pub late: u64,
    pub twice: u64,
}

impl Weather {
    pub fn stormy() -> Self {
        Self { delay_max: Duration::from_millis(8), lost: 30, answer_lost: 30, watch_max: Duration::from_millis(300), late: 8, twice: 8 }
    }
}

/// The weather can end while requests are under way.
#[derive(Clone)]
pub struct Sky(Arc<Mutex<(Random, Option<Weather>)>>);

/// What happens to one request.
struct Fate {
    delay: Duration,
    lost: bool,
    answer_lost: bool,
    watch: Option<Duration>,
}

impl Sky {
    pub fn new(seed: u64, weather: Weather) -> Self {
        Self(Arc::new(Mutex::new((Random::new(seed), Some(weather)))))
    }

    pub fn clear_up(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = None;
    }

    fn fate(&self) -> Fate {
        let mut sky = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (random, weather) = &mut *sky;
        let Some(weather) = weather else { return Fate { delay: Duration::ZERO, lost: false, answer_lost: false, watch: None } };
        let mut hits = |often: u64| often > 0 && random.one_in(often);
        let (lost, answer_lost) = (hits(weather.lost), hits(weather.answer_lost));
        Fate { delay: random.up_to(weather.delay_max), lost, answer_lost, watch: Some(random.up_to(weather.watch_max)) }
    }
}

impl Sky {
    /// How long an event waits, and whether it comes twice.
    fn event(&self) -> (Duration, bool) {
        let mut sky = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (random, weather) = &mut *sky;
        let Some(weather) = weather else { return (Duration::ZERO, false) };
        let mut hits = |often: u64| often > 0 && random.one_in(often);
        let (late, twice) = (hits(weather.late), hits(weather.twice));
        (if late { random.up_to(2 * weather.delay_max) } else { Duration::ZERO }, twice)
    }

    /// The frames of a watch as they arrive.
    fn scatter(self, body: Body) -> impl futures_util::Stream<Item = Frames> + Send {
        BodyStream::new(body).flat_map(move |frame| {
            let (delay, twice) = self.event();
            let again = frame.as_ref().ok().and_then(|frame| frame.data_ref().cloned()).filter(|_| twice);
            let late = async move {
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                frame
            };
            futures_util::stream::once(late).chain(futures_util::stream::iter(again.map(|data| Ok(Frame::data(data)))))
        })
    }
}

type Frames = Result<Frame<Bytes>, std::io::Error>;

/// A transport under that sky.
pub struct Chaotic {
    pub inner: Arc<dyn Transport>,
    pub sky: Sky,
}

impl Transport for Chaotic {
    fn send(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>> {
        let fate = self.sky.fate();
        let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let broken = || Err(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "lost in the storm"));
        Box::pin(async move {
            tokio::time::sleep(fate.delay).await;
            if fate.lost {
                return broken();
            }
            let response = self.inner.send(request).await?;
            if fate.answer_lost && !watch {
                return broken();
            }
            Ok(match fate.watch.filter(|_| watch) {
                None => response,
                Some(life) => response.map(|body| {
                    let frames = self.sky.clone().scatter(body).take_until(tokio::time::sleep(life));
                    BodyExt::boxed(StreamBody::new(SyncStream::new(frames)))
                }),
            })
        })
    }
}

/// A stream that only its owner polls: shareable because nobody shares it.
pub(crate) struct SyncStream<S>(Mutex<Pin<Box<S>>>);

impl<S> SyncStream<S> {
    pub fn new(stream: S) -> Self {
        Self(Mutex::new(Box::pin(stream)))
    }
}

impl<S: futures_util::Stream> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<S::Item>> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().poll_next(context)
    }
}
