//! Values that are not containers: their checks, and the form in which Go writes them.

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use meta::quantity::Quantity;
use serde_json::Value;

use super::Error;

/// Go's decoder ignores what the last symbol holds beyond the last byte.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&base64::alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// What a value is in Go's words: `string`, `number 1.5`, `bool`, `object`, `array`.
pub fn described(value: &Value, literal: bool) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(number) if literal => format!("number {number}"),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    }
}

/// The canonical text. Numbers are taken as well, as upstream does.
pub fn quantity(value: &Value) -> Result<Value, Error> {
    let parsed = match value {
        Value::String(text) => Quantity::parse(text),
        Value::Number(number) => Quantity::parse(&number.to_string()),
        _ => Err(meta::quantity::Error::Format),
    };
    parsed.map(|quantity| Value::String(quantity.to_string())).map_err(|error| Error::Type(error.to_string()))
}

/// RFC 3339 in UTC, with microseconds where `micro`; Go's zero time is `null`.
pub fn time(text: &str, micro: bool) -> Result<Value, Error> {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let parsed = meta::time::parse(text);
    let parsed = parsed.ok_or_else(|| Error::Type(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")))?;
    let written = if micro { meta::time::micro(parsed) } else { meta::time::seconds(parsed) };
    let zero = written == "0001-01-01T00:00:00Z" || written == "0001-01-01T00:00:00.000000Z";
    Ok(if zero { Value::Null } else { Value::String(written) })
}

/// Base64 as Go reads it: line breaks are skipped.
pub fn bytes(text: &str) -> Result<Vec<u8>, Error> {
    let joined;
    let text = if text.contains(['\r', '\n']) {
        joined = text.replace(['\r', '\n'], "");
        &joined
    } else {
        text
    };
    BASE64.decode(text).map_err(|error| Error::Type(format!("illegal base64 data at input byte {}", offset(&error, text))))
}

pub fn base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

fn offset(error: &base64::DecodeError, text: &str) -> usize {
    match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        // Go names the start of the incomplete group.
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len() / 4 * 4,
    }
}
