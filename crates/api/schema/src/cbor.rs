//! Objects as CBOR (RFC 8949), both ways, in the dialect that Kubernetes speaks (KEP-4222).
//!
//! What is written: the tag of self-described CBOR, then maps and lists of definite length; text is a byte string, as Go's encoder
//! writes it; keys stand in the order of their encoded bytes, numbers in their shortest form. What is read is wider: text strings, items
//! of indefinite length, tags. Decoding is safe on any bytes: lengths are checked, nesting is bounded, keys may not repeat.
//! Source: apimachinery `pkg/runtime/serializer/cbor`.

use base64::Engine;
use serde_json::{Map, Number, Value};

/// The media type of bodies.
pub const MEDIA_TYPE: &str = "application/cbor";
/// The media type of a watch: one item after the other (RFC 8742).
pub const MEDIA_TYPE_SEQUENCE: &str = "application/cbor-seq";

/// The head of tag 55799: what every body starts with.
pub const SELF_DESCRIBED: [u8; 3] = [0xd9, 0xd9, 0xf7];

/// Deeper nesting is refused. Go allows 10,000; as for JSON here, the stack sets the bound.
const DEPTH_MAX: usize = 400;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("unexpected EOF")]
    End,
    #[error("cbor: {0} bytes of extraneous data starting at index {1}")]
    Trailing(usize, usize),
    #[error("cbor: exceeded max nested level {DEPTH_MAX}")]
    Depth,
    #[error("cbor: {0}")]
    Item(&'static str),
    #[error("cbor: found duplicate map key {0:?}")]
    Duplicate(String),
}

/// Whether bytes start as a body does.
pub fn is_self_described(bytes: &[u8]) -> bool {
    bytes.starts_with(&SELF_DESCRIBED)
}

/// Writes a body.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = SELF_DESCRIBED.to_vec();
    write(&mut out, value);
    out
}

/// One event of a watch; `object` is a body.
pub fn watch_event(word: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + 32);
    out.extend_from_slice(&SELF_DESCRIBED);
    head(&mut out, MAP, 2);
    text(&mut out, "type");
    text(&mut out, word);
    text(&mut out, "object");
    out.extend_from_slice(object);
    out
}

/// Reads a body, which is one item.
pub fn decode(bytes: &[u8]) -> Result<Value, Error> {
    let mut reader = Reader { bytes, at: 0, depth: 0 };
    let value = reader.item(Format::Plain)?;
    match bytes.len() - reader.at {
        0 => Ok(value),
        rest => Err(Error::Trailing(rest, reader.at)),
    }
}

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const LIST: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;

/// The head of an item: its major type and its number in the shortest form.
fn head(out: &mut Vec<u8>, major: u8, number: u64) {
    let first = major << 5;
    if let Ok(small) = u8::try_from(number) {
        match small {
            0..=23 => out.push(first | small),
            _ => out.extend_from_slice(&[first | 24, small]),
        }
    } else if let Ok(short) = u16::try_from(number) {
        out.push(first | 25);
        out.extend_from_slice(&short.to_be_bytes());
    } else if let Ok(word) = u32::try_from(number) {
        out.push(first | 26);
        out.extend_from_slice(&word.to_be_bytes());
    } else {
        out.push(first | 27);
        out.extend_from_slice(&number.to_be_bytes());
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    head(out, BYTES, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(0xf6),
        Value::Bool(false) => out.push(0xf4),
        Value::Bool(true) => out.push(0xf5),
        Value::String(string) => text(out, string),
        Value::Number(number) => write_number(out, number),
        Value::Array(items) => {
            head(out, LIST, items.len() as u64);
            items.iter().for_each(|item| write(out, item));
        }
        Value::Object(map) => {
            // In the order of the encoded keys: shorter ones first, then by bytes.
            let mut keys: Vec<(&String, &Value)> = map.iter().collect();
            keys.sort_by(|(a, _), (b, _)| (a.len(), a.as_bytes()).cmp(&(b.len(), b.as_bytes())));
            head(out, MAP, keys.len() as u64);
            for (key, value) in keys {
                text(out, key);
                write(out, value);
            }
        }
    }
}

fn write_number(out: &mut Vec<u8>, number: &Number) {
    if let Some(unsigned) = number.as_u64() {
        head(out, UNSIGNED, unsigned);
    } else if let Some(signed) = number.as_i64() {
        head(out, NEGATIVE, !signed as u64);
    } else {
        write_float(out, number.as_f64().unwrap_or_default());
    }
}

/// The narrowest of the three widths that keeps the value.
fn write_float(out: &mut Vec<u8>, value: f64) {
    let single = value as f32;
    if f64::from(single) != value {
        out.push(0xfb);
        out.extend_from_slice(&value.to_be_bytes());
    } else if let Some(half) = half_of(single) {
        out.push(0xf9);
        out.extend_from_slice(&half.to_be_bytes());
    } else {
        out.push(0xfa);
        out.extend_from_slice(&single.to_be_bytes());
    }
}

/// The bits of the same number in sixteen of them, where they hold it.
fn half_of(value: f32) -> Option<u16> {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let (exponent, fraction) = ((bits >> 23 & 0xff) as i32 - 127, bits & 0x7f_ffff);
    if value == 0.0 {
        return Some(sign);
    }
    match exponent {
        -14..=15 if fraction & 0x1fff == 0 => Some(sign | ((exponent + 15) as u16) << 10 | (fraction >> 13) as u16),
        // Too small for a leading one: all of it stands in the fraction.
        -24..=-15 => {
            let (whole, shift) = (fraction | 0x80_0000, (-exponent - 1) as u32);
            (whole & ((1 << shift) - 1) == 0).then(|| sign | (whole >> shift) as u16)
        }
        _ => None,
    }
}

fn from_half(bits: u16) -> f64 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    match exponent {
        0 => sign * fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => sign * f64::INFINITY,
        31 => f64::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    }
}

/// What a byte string stands for, by the tag around it.
#[derive(Clone, Copy)]
enum Format {
    Plain,
    Base64Url,
    Base64,
    Hex,
}

impl Format {
    fn of_tag(number: u64, around: Self) -> Result<Self, Error> {
        match number {
            2 | 3 => Err(Error::Item("arbitrary-precision integers are not supported")),
            21 => Ok(Self::Base64Url),
            22 => Ok(Self::Base64),
            23 => Ok(Self::Hex),
            _ => Ok(around),
        }
    }

    fn string(self, bytes: &[u8]) -> Result<String, Error> {
        use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
        match self {
            Self::Plain => std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Error::Item("invalid UTF-8 string")),
            Self::Base64Url => Ok(URL_SAFE_NO_PAD.encode(bytes)),
            Self::Base64 => Ok(STANDARD.encode(bytes)),
            Self::Hex => Ok(bytes.iter().map(|byte| format!("{byte:02X}")).collect()),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(count).ok_or(Error::End)?;
        let taken = self.bytes.get(self.at..end).ok_or(Error::End)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Error> {
        self.take(1).map(|bytes| bytes.first().copied().unwrap_or_default())
    }

    /// A big-endian number of so many bytes.
    fn number(&mut self, width: usize) -> Result<u64, Error> {
        Ok(self.take(width)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// The head of an item; `None` for the number of an item of indefinite length.
    fn head(&mut self) -> Result<(u8, u8, Option<u64>), Error> {
        let first = self.byte()?;
        let (major, info) = (first >> 5, first & 0x1f);
        let number = match info {
            0..=23 => Some(u64::from(info)),
            24..=27 => Some(self.number(1 << (info - 24))?),
            31 => None,
            _ => return Err(Error::Item("invalid additional information")),
        };
        Ok((major, info, number))
    }

    fn item(&mut self, format: Format) -> Result<Value, Error> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Error::Depth);
        }
        let (major, info, number) = self.head()?;
        let value = match (major, number) {
            (UNSIGNED, Some(number)) => i64::try_from(number).map(Value::from).map_err(|_| Error::Item("the integer overflows int64"))?,
            (NEGATIVE, Some(number)) => match i64::try_from(number) {
                Ok(number) => Value::from(!number),
                Err(_) => return Err(Error::Item("the integer overflows int64")),
            },
            (BYTES, _) => Value::String(format.string(&self.string(BYTES, number)?)?),
            (TEXT, _) => Value::String(Format::Plain.string(&self.string(TEXT, number)?)?),
            (LIST, _) => self.list(number, format)?,
            (MAP, _) => self.map(number, format)?,
            (TAG, Some(tag)) => self.item(Format::of_tag(tag, format)?)?,
            _ => simple(info, number)?,
        };
        self.depth -= 1;
        Ok(value)
    }

    /// The bytes of a string, joined where they come in pieces.
    fn string(&mut self, major: u8, length: Option<u64>) -> Result<Vec<u8>, Error> {
        if let Some(length) = length {
            return Ok(self.take(usize::try_from(length).map_err(|_| Error::End)?)?.to_vec());
        }
        let mut joined = Vec::new();
        while !self.ends()? {
            match self.head()? {
                (piece, _, Some(length)) if piece == major => {
                    joined.extend_from_slice(self.take(usize::try_from(length).map_err(|_| Error::End)?)?);
                }
                _ => return Err(Error::Item("wrong element type in an indefinite-length string")),
            }
        }
        Ok(joined)
    }

    /// Steps over the break that ends an item of indefinite length.
    fn ends(&mut self) -> Result<bool, Error> {
        let ends = *self.bytes.get(self.at).ok_or(Error::End)? == 0xff;
        self.at += usize::from(ends);
        Ok(ends)
    }

    fn list(&mut self, length: Option<u64>, format: Format) -> Result<Value, Error> {
        let mut items = Vec::new();
        let mut left = length;
        while !self.finished(&mut left)? {
            items.push(self.item(format)?);
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, length: Option<u64>, format: Format) -> Result<Value, Error> {
        let mut map = Map::new();
        let mut left = length;
        while !self.finished(&mut left)? {
            let (major, _, number) = self.head()?;
            if major != BYTES && major != TEXT {
                return Err(Error::Item("map keys must be strings"));
            }
            let key = Format::Plain.string(&self.string(major, number)?)?;
            let value = self.item(format)?;
            if map.contains_key(&key) {
                return Err(Error::Duplicate(key));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }

    /// Whether a container has no more items. Nothing is reserved for a promised length: only bytes that are there count.
    fn finished(&mut self, left: &mut Option<u64>) -> Result<bool, Error> {
        match left {
            None => self.ends(),
            Some(0) => Ok(true),
            Some(count) => {
                *count -= 1;
                Ok(false)
            }
        }
    }
}

/// `false`, `true`, `null` and floating-point numbers.
fn simple(info: u8, number: Option<u64>) -> Result<Value, Error> {
    let bits = number.unwrap_or_default();
    let float = match info {
        20 => return Ok(Value::Bool(false)),
        21 => return Ok(Value::Bool(true)),
        22 => return Ok(Value::Null),
        25 => from_half(bits as u16),
        26 => f64::from(f32::from_bits(bits as u32)),
        27 => f64::from_bits(bits),
        _ => return Err(Error::Item("simple value is not recognized")),
    };
    Number::from_f64(float).map(Value::Number).ok_or(Error::Item("floating-point infinity and NaN are not supported"))
}

#[cfg(test)]
mod tests;
