//! Answers: the one place where objects, lists and failures become HTTP responses.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use http::{HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use meta::Status;
use serde_json::Value;

use crate::negotiate::{Format, Media};
use crate::object::Object;

/// A body, whole or streamed; the same type in both directions and for both transports.
pub type Body = BoxBody<Bytes, io::Error>;

/// Bodies from this size on are compressed where the client accepts it (upstream: 128 KiB).
const GZIP_MIN: usize = 128 << 10;
/// The size of a chunk of a list.
const CHUNK: usize = 64 << 10;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

pub fn empty() -> Body {
    full(Bytes::new())
}

/// The answer to a HEAD: what a GET would be told before its body. Over HTTP/1.1 hyper sends no body anyway, over HTTP/2 it would.
pub fn head_only(response: Response<Body>) -> Response<Body> {
    let size = http_body::Body::size_hint(response.body()).exact();
    let mut response = response.map(|_| empty());
    if let Some(size) = size {
        response.headers_mut().entry(http::header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(size));
    }
    response
}

/// A response with a content type and a whole body.
pub fn bytes(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

pub fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    bytes(code, "text/plain; charset=utf-8", body)
}

/// Any tree in the wanted media type.
pub fn value(code: StatusCode, value: &Value, format: Format) -> Response<Body> {
    match format.media {
        Media::Json => bytes(code, Media::Json.content_type(), json(value, format.pretty)),
        Media::Yaml => yaml(code, value),
        Media::Protobuf => protobuf(code, value),
        Media::Cbor => bytes(code, Media::Cbor.content_type(), schema::cbor::encode(value)),
    }
}

/// A list as a tree (a table, metadata alone), compressed as the others.
pub fn list_value(value: &Value, format: Format, gzip: bool) -> Response<Body> {
    match format.media {
        Media::Json => packed(Media::Json.content_type(), json(value, format.pretty), gzip),
        _ => self::value(StatusCode::OK, value, format),
    }
}

fn json(value: &Value, pretty: bool) -> Vec<u8> {
    let encoded = if pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
    let mut encoded = encoded.unwrap_or_default();
    encoded.push(b'\n');
    encoded
}

fn yaml(code: StatusCode, value: &Value) -> Response<Body> {
    match serde_saphyr::to_string(value) {
        Ok(text) => bytes(code, Media::Yaml.content_type(), text),
        Err(error) => status(&Status::internal(error), Format::JSON),
    }
}

fn protobuf(code: StatusCode, value: &Value) -> Response<Body> {
    match crate::codec::to_protobuf(value) {
        Some(encoded) => bytes(code, Media::Protobuf.content_type(), encoded),
        None => self::value(code, value, Format::JSON),
    }
}

/// A failure (or a deletion's success).
pub fn status(status: &Status, format: Format) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value(code, &status.to_value(), format);
    let retry_after = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if retry_after > 0 {
        response.headers_mut().insert(http::header::RETRY_AFTER, retry_after.into());
    }
    response
}

/// The stored object itself; JSON without indentation is served from its bytes.
pub fn object(code: StatusCode, object: &Object, format: Format) -> Response<Body> {
    if format.media == Media::Json && !format.pretty {
        return bytes(code, Media::Json.content_type(), object.json());
    }
    value(code, &object.value(), format)
}

/// A list that is made while it is sent, from the stored bytes of its items. What fits into one chunk is sent whole.
pub fn list(
    head: Vec<u8>,
    objects: impl Iterator<Item = Arc<Object>> + Send + Sync + 'static,
    with_type: bool,
    gzip: bool,
) -> Response<Body> {
    let mut list = ListBody { ready: None, objects: Box::new(objects), with_type, first: true, done: false };
    let mut out = Vec::with_capacity(4 << 10);
    out.extend_from_slice(&head);
    out.extend_from_slice(b"\"items\":[");
    list.fill(&mut out, CHUNK);
    if list.done {
        return bytes(StatusCode::OK, Media::Json.content_type(), out);
    }
    // Compression is for lists that are worth it: a second chunk says whether this one is.
    list.fill(&mut out, GZIP_MIN);
    let gzip = gzip && out.len() >= GZIP_MIN;
    list.ready = Some(out.into());
    let body = if gzip { GzipBody::new(list).boxed() } else { list.boxed() };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(Media::Json.content_type()));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if gzip {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

/// `{head}"items":[…]}` in chunks.
struct ListBody {
    /// The beginning, made already.
    ready: Option<Bytes>,
    objects: Box<dyn Iterator<Item = Arc<Object>> + Send + Sync>,
    /// Items carry kind and apiVersion (custom resources).
    with_type: bool,
    first: bool,
    done: bool,
}

impl ListBody {
    /// Appends items until `out` has `enough` bytes or nothing is left.
    fn fill(&mut self, out: &mut Vec<u8>, enough: usize) {
        while !self.done && out.len() < enough {
            let Some(object) = self.objects.next() else {
                out.extend_from_slice(b"]}\n");
                self.done = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                out.push(b',');
            }
            if self.with_type { object.write_json(out) } else { object.write_item(out) }
        }
    }

    fn next_chunk(&mut self) -> Option<Bytes> {
        if let Some(ready) = self.ready.take() {
            return Some(ready);
        }
        if self.done {
            return None;
        }
        let mut out = Vec::with_capacity(CHUNK + (8 << 10));
        self.fill(&mut out, CHUNK);
        Some(out.into())
    }
}

impl http_body::Body for ListBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if pause(context) {
            return Poll::Pending;
        }
        Poll::Ready(self.next_chunk().map(|chunk| Ok(Frame::data(chunk))))
    }
}

/// A long answer lets others have their turn between its pieces.
fn pause(context: &Context<'_>) -> bool {
    let spent = crate::serve::turns::is_spent();
    if spent {
        context.waker().wake_by_ref();
    }
    spent
}

struct GzipBody {
    list: ListBody,
    encoder: Option<flate2::write::GzEncoder<Vec<u8>>>,
}

impl GzipBody {
    fn new(list: ListBody) -> Self {
        Self { list, encoder: Some(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1))) }
    }
}

impl http_body::Body for GzipBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        use std::io::Write;
        if pause(context) {
            return Poll::Pending;
        }
        let this = &mut *self;
        let Some(mut encoder) = this.encoder.take() else {
            return Poll::Ready(None);
        };
        loop {
            let Some(out) = this.list.next_chunk() else {
                return Poll::Ready(Some(encoder.finish().map(|rest| Frame::data(rest.into()))));
            };
            if let Err(error) = encoder.write_all(&out) {
                return Poll::Ready(Some(Err(error)));
            }
            if !encoder.get_ref().is_empty() {
                let ready = std::mem::take(encoder.get_mut());
                this.encoder = Some(encoder);
                return Poll::Ready(Some(Ok(Frame::data(ready.into()))));
            }
        }
    }
}

/// An answer with a whole body, compressed where that is worth it and the client takes it.
pub fn packed(content_type: &'static str, body: Vec<u8>, gzip: bool) -> Response<Body> {
    let Some(packed) = (gzip && body.len() >= GZIP_MIN).then(|| self::gzip(&body)).flatten() else {
        return bytes(StatusCode::OK, content_type, body);
    };
    let mut response = bytes(StatusCode::OK, content_type, packed);
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

/// A whole body, compressed; `None` where that fails.
pub fn gzip(body: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}
