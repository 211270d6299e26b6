//! Frames of SPDY/3.1 (draft-mbelshe-httpbis-spdy-00 with the 3.1 session window): decoding never trusts a length.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Header names are lower case; repeated values come joined by NUL, as on the wire.
pub type Headers = Vec<(String, String)>;

/// Longest control frame and longest inflated header block, bytes.
const CONTROL_BYTES_MAX: usize = 64 * 1024;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
/// `SETTINGS_INITIAL_WINDOW_SIZE`.
const SETTING_INITIAL_WINDOW: u32 = 7;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("SPDY control frame of {0} bytes is too large")]
    TooLarge(usize),
    #[error("SPDY version {0} is not supported")]
    Version(u16),
    #[error("SPDY control frame of type {0} is malformed")]
    Malformed(u16),
    #[error("SPDY header block cannot be inflated: {0}")]
    Inflate(String),
    #[error("SPDY header block cannot be deflated: {0}")]
    Deflate(String),
}

/// One frame; a long DATA frame is decoded in pieces, as its bytes arrive, and only its last piece carries `fin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    RstStream {
        id: u32,
        status: u32,
    },
    Settings {
        initial_window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last_id: u32,
    },
    Headers {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    Data {
        id: u32,
        fin: bool,
        bytes: Bytes,
    },
    /// A control type of no interest (CREDENTIAL, NOOP, unknown).
    Ignored,
}

/// Bytes to frames. Holds the connection's one inflater, so frames must be decoded in order.
pub struct Decoder {
    inflate: Decompress,
    /// The DATA frame under way: stream, FIN flag, bytes still to come.
    data: Option<(u32, bool, usize)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { inflate: Decompress::new(true), data: None }
    }
}

impl Decoder {
    /// Takes the next frame off `buffer`, or `None` when more bytes are needed.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Error> {
        if self.data.is_some() {
            return Ok(self.data_piece(buffer));
        }
        let Some(head) = buffer.get(..8) else { return Ok(None) };
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        if word & 0x8000_0000 == 0 {
            buffer.advance(8);
            self.data = Some((word, flags & FLAG_FIN != 0, length));
            return Ok(self.data_piece(buffer));
        }
        let version = (word >> 16) as u16 & 0x7fff;
        if version != VERSION {
            return Err(Error::Version(version));
        }
        if length > CONTROL_BYTES_MAX {
            return Err(Error::TooLarge(length));
        }
        if buffer.len() < 8 + length {
            return Ok(None);
        }
        buffer.advance(8);
        let body = buffer.split_to(length).freeze();
        self.control(word as u16, flags & FLAG_FIN != 0, body).map(Some)
    }

    fn data_piece(&mut self, buffer: &mut BytesMut) -> Option<Frame> {
        let (id, fin, left) = self.data?;
        if left > 0 && buffer.is_empty() {
            return None;
        }
        let bytes = buffer.split_to(left.min(buffer.len())).freeze();
        let left = left - bytes.len();
        self.data = (left > 0).then_some((id, fin, left));
        Some(Frame::Data { id, fin: fin && left == 0, bytes })
    }

    fn control(&mut self, kind: u16, fin: bool, mut body: Bytes) -> Result<Frame, Error> {
        let malformed = |_| Error::Malformed(kind);
        let word = |body: &mut Bytes| body.try_get_u32().map_err(malformed);
        Ok(match kind {
            1 => {
                let id = word(&mut body)? & 0x7fff_ffff;
                word(&mut body)?;
                body.try_get_u16().map_err(malformed)?;
                Frame::SynStream { id, fin, headers: self.headers(kind, &body)? }
            }
            2 | 8 => {
                let id = word(&mut body)? & 0x7fff_ffff;
                let headers = self.headers(kind, &body)?;
                if kind == 2 { Frame::SynReply { id, fin, headers } } else { Frame::Headers { id, fin, headers } }
            }
            3 => Frame::RstStream { id: word(&mut body)? & 0x7fff_ffff, status: word(&mut body)? },
            4 => {
                let mut initial_window = None;
                for _ in 0..word(&mut body)? {
                    let (key, value) = (word(&mut body)? & 0x00ff_ffff, word(&mut body)?);
                    if key == SETTING_INITIAL_WINDOW {
                        initial_window = Some(value);
                    }
                }
                Frame::Settings { initial_window }
            }
            6 => Frame::Ping { id: word(&mut body)? },
            7 => Frame::GoAway { last_id: word(&mut body)? & 0x7fff_ffff },
            9 => Frame::WindowUpdate { id: word(&mut body)? & 0x7fff_ffff, delta: word(&mut body)? & 0x7fff_ffff },
            _ => Frame::Ignored,
        })
    }

    fn headers(&mut self, kind: u16, deflated: &[u8]) -> Result<Headers, Error> {
        let block = self.inflate(deflated)?;
        parse_headers(&block).ok_or(Error::Malformed(kind))
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, Error> {
        let mut block = Vec::with_capacity(1024);
        while !input.is_empty() {
            if block.len() == block.capacity() {
                if block.len() >= CONTROL_BYTES_MAX {
                    return Err(Error::TooLarge(block.len()));
                }
                block.reserve(block.len());
            }
            let (consumed, produced) = (self.inflate.total_in(), self.inflate.total_out());
            match self.inflate.decompress_vec(input, &mut block, FlushDecompress::Sync) {
                Ok(status) => {
                    let taken = (self.inflate.total_in() - consumed) as usize;
                    input = input.get(taken..).unwrap_or_default();
                    if status == Status::StreamEnd || (taken == 0 && self.inflate.total_out() == produced && block.len() < block.capacity())
                    {
                        break;
                    }
                }
                Err(error) if error.needs_dictionary().is_some() => {
                    let taken = (self.inflate.total_in() - consumed) as usize;
                    input = input.get(taken..).unwrap_or_default();
                    self.inflate.set_dictionary(&dictionary()).map_err(|error| Error::Inflate(error.to_string()))?;
                }
                Err(error) => return Err(Error::Inflate(error.to_string())),
            }
        }
        self.flush_rest(&mut block)?;
        Ok(block)
    }

    /// A full output buffer can hide bytes that the inflater still holds after it took all input.
    fn flush_rest(&mut self, block: &mut Vec<u8>) -> Result<(), Error> {
        while block.len() == block.capacity() {
            if block.len() >= CONTROL_BYTES_MAX {
                return Err(Error::TooLarge(block.len()));
            }
            block.reserve(block.len().max(1024));
            let before = block.len();
            // No input and nothing pending is reported as a buffer error or as no progress: both mean that the block is whole.
            if self.inflate.decompress_vec(&[], block, FlushDecompress::Sync).is_err() || block.len() == before {
                break;
            }
        }
        Ok(())
    }
}

fn parse_headers(mut block: &[u8]) -> Option<Headers> {
    let count = block.try_get_u32().ok()?;
    let mut headers = Headers::new();
    for _ in 0..count {
        headers.push((take_text(&mut block)?, take_text(&mut block)?));
    }
    Some(headers)
}

fn take_text(block: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(block.try_get_u32().ok()?).ok()?;
    let text = String::from_utf8(block.get(..length)?.to_vec()).ok()?;
    block.advance(length);
    Some(text)
}

/// Frames to bytes. Holds the connection's one deflater, so frames must be sent in the order in which they are encoded.
#[derive(Default)]
pub struct Encoder {
    deflate: Option<Compress>,
}

impl Encoder {
    /// Appends `frame` to `out`. DATA longer than 2^24 - 1 bytes is a caller's error and is cut into frames by [`super::session`].
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), Error> {
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let block = self.header_block(headers)?;
                control(out, 1, *fin, 10 + block.len());
                out.put_u32(*id);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::SynReply { id, fin, headers } => self.with_headers(2, *id, *fin, headers, out)?,
            Frame::Headers { id, fin, headers } => self.with_headers(8, *id, *fin, headers, out)?,
            Frame::RstStream { id, status } => pair(out, 3, *id, *status),
            Frame::Settings { initial_window } => {
                control(out, 4, false, 4 + 8 * usize::from(initial_window.is_some()));
                out.put_u32(u32::from(initial_window.is_some()));
                if let Some(window) = initial_window {
                    out.put_u32(SETTING_INITIAL_WINDOW);
                    out.put_u32(*window);
                }
            }
            Frame::Ping { id } => {
                control(out, 6, false, 4);
                out.put_u32(*id);
            }
            Frame::GoAway { last_id } => pair(out, 7, *last_id, 0),
            Frame::WindowUpdate { id, delta } => pair(out, 9, *id, *delta),
            Frame::Data { id, fin, bytes } => {
                out.put_u32(id & 0x7fff_ffff);
                out.put_u32(u32::from(*fin) << 24 | (bytes.len() as u32 & 0x00ff_ffff));
                out.put_slice(bytes);
            }
            Frame::Ignored => {}
        }
        Ok(())
    }

    fn with_headers(&mut self, kind: u16, id: u32, fin: bool, headers: &Headers, out: &mut BytesMut) -> Result<(), Error> {
        let block = self.header_block(headers)?;
        control(out, kind, fin, 4 + block.len());
        out.put_u32(id);
        out.put_slice(&block);
        Ok(())
    }

    fn header_block(&mut self, headers: &Headers) -> Result<Vec<u8>, Error> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.put_u32(text.len() as u32);
            plain.put_slice(text.as_bytes());
        }
        let failed = |error: flate2::CompressError| Error::Deflate(error.to_string());
        if self.deflate.is_none() {
            let mut deflate = Compress::new(Compression::fast(), true);
            deflate.set_dictionary(&dictionary()).map_err(failed)?;
            self.deflate = Some(deflate);
        }
        let Some(deflate) = &mut self.deflate else { return Ok(Vec::new()) };
        let mut block = Vec::with_capacity(plain.len() + 64);
        let mut rest = plain.as_slice();
        loop {
            let consumed = deflate.total_in();
            deflate.compress_vec(rest, &mut block, FlushCompress::Sync).map_err(failed)?;
            rest = rest.get((deflate.total_in() - consumed) as usize..).unwrap_or_default();
            if rest.is_empty() && block.len() < block.capacity() {
                return Ok(block);
            }
            block.reserve(256);
        }
    }
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(u32::from(fin) << 24 | (length as u32 & 0x00ff_ffff));
}

fn pair(out: &mut BytesMut, kind: u16, first: u32, second: u32) {
    control(out, kind, false, 8);
    out.put_u32(first);
    out.put_u32(second);
}

/// The compression dictionary of the specification's section 2.6.10.1, from its parts: length-prefixed words, then loose text.
fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::with_capacity(1423);
    for word in DICTIONARY_WORDS.split('|') {
        dictionary.put_u32(word.len() as u32);
        dictionary.put_slice(word.as_bytes());
    }
    dictionary.put_slice(DICTIONARY_TEXT.as_bytes());
    dictionary
}

const DICTIONARY_WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|accept-ranges|age|allow|\
authorization|cache-control|connection|content-base|content-encoding|content-language|content-length|content-location|content-md5|\
content-range|content-type|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|\
last-modified|location|max-forwards|pragma|proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|\
transfer-encoding|upgrade|user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|\
keep-alive|origin";

const DICTIONARY_TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found\
500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,\
text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(frames: &[Frame]) -> Vec<Frame> {
        let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
        for frame in frames {
            encoder.encode(frame, &mut wire).unwrap();
        }
        let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
        while let Some(frame) = decoder.decode(&mut wire).unwrap() {
            seen.push(frame);
        }
        assert!(wire.is_empty());
        seen
    }

    #[test]
    fn dictionary_is_the_one_that_every_peer_has() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((dictionary().len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn every_frame_survives_the_wire_and_header_blocks_share_one_compression_state() {
        let headers = |kind: &str| vec![("streamtype".to_owned(), kind.to_owned()), ("port".to_owned(), "8080".repeat(kind.len()))];
        let frames = vec![
            Frame::SynStream { id: 1, fin: false, headers: headers("error") },
            Frame::SynReply { id: 1, fin: true, headers: Vec::new() },
            Frame::SynStream { id: 3, fin: true, headers: headers("data") },
            Frame::Headers { id: 3, fin: false, headers: vec![("a".into(), "x".repeat(5000))] },
            Frame::RstStream { id: 3, status: 5 },
            Frame::Settings { initial_window: Some(1 << 20) },
            Frame::Settings { initial_window: None },
            Frame::Ping { id: 7 },
            Frame::GoAway { last_id: 3 },
            Frame::WindowUpdate { id: 0, delta: 65536 },
            Frame::Data { id: 1, fin: false, bytes: Bytes::from_static(b"hello") },
            Frame::Data { id: 1, fin: true, bytes: Bytes::new() },
        ];
        assert_eq!(round_trip(&frames), frames);
    }

    #[test]
    fn long_data_comes_in_pieces_and_only_the_last_ends_the_stream() {
        let mut wire = BytesMut::new();
        Encoder::default().encode(&Frame::Data { id: 5, fin: true, bytes: Bytes::from_static(b"abcdef") }, &mut wire).unwrap();
        let rest = wire.split_off(11);
        let mut decoder = Decoder::default();
        let first = decoder.decode(&mut wire).unwrap();
        assert_eq!(first, Some(Frame::Data { id: 5, fin: false, bytes: Bytes::from_static(b"abc") }));
        assert_eq!(decoder.decode(&mut wire).unwrap(), None);
        wire.extend_from_slice(&rest);
        assert_eq!(decoder.decode(&mut wire).unwrap(), Some(Frame::Data { id: 5, fin: true, bytes: Bytes::from_static(b"def") }));
    }

    #[test]
    fn header_block_that_inflates_without_end_is_refused() {
        let mut wire = BytesMut::new();
        let bomb = vec![("a".to_owned(), "\0".repeat(10 << 20))];
        Encoder::default().encode(&Frame::SynReply { id: 1, fin: false, headers: bomb }, &mut wire).unwrap();
        assert!(matches!(Decoder::default().decode(&mut wire), Err(Error::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let (mut decoder, mut wire) = (Decoder::default(), BytesMut::from(garbage.as_slice()));
            while let Ok(Some(_)) = decoder.decode(&mut wire) {}
        }

        #[test]
        fn garbage_after_a_plausible_head_never_panics(kind in 0u16..12, body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut wire = BytesMut::new();
            control(&mut wire, kind, false, body.len());
            wire.put_slice(&body);
            let mut decoder = Decoder::default();
            while let Ok(Some(_)) = decoder.decode(&mut wire) {}
        }

        #[test]
        fn headers_survive_the_wire(values in proptest::collection::vec("[a-z0-9 ]{0,200}", 0..20)) {
            let headers: Headers = values.iter().map(|value| ("name".to_owned(), value.clone())).collect();
            let frames = vec![Frame::SynStream { id: 1, fin: false, headers: headers.clone() }, Frame::SynReply { id: 1, fin: false, headers }];
            prop_assert_eq!(round_trip(&frames), frames);
        }
    }
}
