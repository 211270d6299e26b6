//! Gzip and zstd, told by the first bytes, whatever the media type claims.

use std::io::{self, BufReader, Read};

use crate::{Result, io_error, manifest};

const BUFFER: usize = 256 << 10;

/// Undoes the compression that the first bytes show.
pub(crate) fn decompress<'a>(from: impl Read + Send + 'a, name: &str) -> Result<Box<dyn Read + Send + 'a>> {
    let mut from = BufReader::with_capacity(BUFFER, from);
    let mut magic = [0_u8; 4];
    // A reader may give fewer bytes than asked for; what was taken goes back in front.
    let mut filled = 0;
    while let Some(rest) = magic.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest).map_err(io_error(format!("read {name}")))? {
            0 => break,
            length => filled += length,
        }
    }
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(magic).take(filled as u64).chain(from));
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Box::new(Zstd::Between(whole)),
        _ => Box::new(whole),
    })
}

/// The media type of a layer that begins with these bytes.
pub(crate) fn media_type(magic: [u8; 4]) -> &'static str {
    match magic {
        [0x1f, 0x8b, ..] => manifest::OCI_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => manifest::OCI_LAYER_ZSTD,
        _ => manifest::OCI_LAYER,
    }
}

/// A frame with its magic number, which was read to tell it from others, back in front.
type Framed<R> = io::Chain<io::Cursor<[u8; 4]>, R>;
type Decoder<R> = ruzstd::decoding::StreamingDecoder<Framed<R>, ruzstd::decoding::FrameDecoder>;

/// Frames one after the other, as parallel compressors and zstd:chunked write them; skippable ones are skipped.
enum Zstd<R: Read> {
    Between(R),
    Within(Box<Decoder<R>>),
    Ended,
}

impl<R: Read> Zstd<R> {
    fn begin(mut from: R) -> io::Result<Self> {
        loop {
            let mut head = [0_u8; 4];
            // Nothing at all is the end; a part of a frame's head is not.
            if from.read(head.get_mut(..1).unwrap_or_default())? == 0 {
                return Ok(Self::Ended);
            }
            from.read_exact(head.get_mut(1..).unwrap_or_default())?;
            if let [0x50..=0x5f, 0x2a, 0x4d, 0x18] = head {
                from.read_exact(&mut head)?;
                let length = u64::from(u32::from_le_bytes(head));
                if io::copy(&mut (&mut from).take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            let decoder =
                Decoder::new(io::Cursor::new(head).chain(from)).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            return Ok(Self::Within(Box::new(decoder)));
        }
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(self, Self::Ended) {
                Self::Ended => return Ok(0),
                Self::Between(from) => *self = Self::begin(from)?,
                Self::Within(mut decoder) => match decoder.read(into)? {
                    0 if !into.is_empty() => *self = Self::Between(decoder.into_inner().into_inner().1),
                    length => {
                        *self = Self::Within(decoder);
                        return Ok(length);
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `hello` as one raw block of a zstd frame.
    const HELLO: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd, 0x20, 5, 0x29, 0, 0, b'h', b'e', b'l', b'l', b'o'];

    fn all(bytes: &[u8]) -> io::Result<String> {
        let mut text = String::new();
        decompress(bytes, "it").map_err(io::Error::other)?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn compression_is_told_by_the_first_bytes() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, b"hello").unwrap();
        let gzip = gzip.finish().unwrap();
        let skippable = [&[0x51, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9], HELLO, &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], HELLO].concat();
        for (bytes, text) in [
            (gzip.as_slice(), "hello"),
            (&[gzip.as_slice(), &gzip].concat(), "hellohello"),
            (HELLO, "hello"),
            (&skippable, "hellohello"),
            (b"plain", "plain"),
            (b"ab", "ab"),
            (b"", ""),
        ] {
            assert_eq!(all(bytes).unwrap(), text);
        }
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        for cut in [5, 9, 12] {
            assert!(all(&HELLO[..cut]).is_err(), "{cut}");
        }
        assert!(all(&[HELLO, &[0x28]].concat()).is_err());
        assert!(all(&[0x1f, 0x8b, 8, 0, 0]).is_err());
    }
}
