//! Timestamps and durations.

use jiff::{Timestamp, tz::TimeZone};

use super::Called;
use crate::error::{EvalError, no_such_overload};
use crate::value::Value;

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Called<'a>> {
    Some(match (function, args) {
        ("getHours", [Value::Duration(n)]) => Ok(Value::Int(n / 3_600_000_000_000)),
        ("getMinutes", [Value::Duration(n)]) => Ok(Value::Int(n / 60_000_000_000)),
        ("getSeconds", [Value::Duration(n)]) => Ok(Value::Int(n / 1_000_000_000)),
        ("getMilliseconds", [Value::Duration(n)]) => Ok(Value::Int(n / 1_000_000 % 1_000)),
        (_, [Value::Timestamp(at)]) if function.starts_with("get") => part(function, *at, "UTC"),
        (_, [Value::Timestamp(at), Value::String(zone)]) if function.starts_with("get") => part(function, *at, zone),
        _ => return None,
    })
}

fn part<'a>(function: &str, at: Timestamp, zone: &str) -> Called<'a> {
    let zoned = at.to_zoned(time_zone(zone)?);
    let number = match function {
        "getFullYear" => i64::from(zoned.year()),
        "getMonth" => i64::from(zoned.month()) - 1,
        "getDayOfYear" => i64::from(zoned.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(zoned.day()) - 1,
        "getDate" => i64::from(zoned.day()),
        "getDayOfWeek" => i64::from(zoned.weekday().to_sunday_zero_offset()),
        "getHours" => i64::from(zoned.hour()),
        "getMinutes" => i64::from(zoned.minute()),
        "getSeconds" => i64::from(zoned.second()),
        "getMilliseconds" => i64::from(zoned.millisecond()),
        _ => return Err(no_such_overload()),
    };
    Ok(Value::Int(number))
}

/// `UTC`, `+02:00`, or a name of the time zone database where the host has one.
fn time_zone(name: &str) -> Result<TimeZone, EvalError> {
    if name.is_empty() || name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    let offset = || {
        let (sign, rest) = match name.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, name.strip_prefix('+').unwrap_or(name)),
        };
        let (hours, minutes) = rest.split_once(':')?;
        let seconds = sign * (hours.parse::<i32>().ok()? * 3_600 + minutes.parse::<i32>().ok()? * 60);
        jiff::tz::Offset::from_seconds(seconds).ok().map(|offset| offset.to_time_zone())
    };
    offset().or_else(|| TimeZone::get(name).ok()).ok_or_else(|| EvalError::failed(format!("unknown time zone {name}")))
}

pub fn timestamp(text: &str) -> Result<Timestamp, EvalError> {
    let strict = text.len() >= 20 && text.as_bytes().get(10).is_some_and(|byte| *byte == b'T' || *byte == b't');
    let parsed = if strict { text.parse().ok() } else { None };
    parsed.ok_or_else(|| EvalError::failed("type conversion error from 'string' to 'google.protobuf.Timestamp'"))
}

/// A text of format `date-time` or `date`.
pub fn schema_time(text: &str) -> Option<Timestamp> {
    if let Ok(date) = text.parse::<jiff::civil::Date>()
        && text.len() == 10
    {
        return date.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    }
    timestamp(text).ok()
}

pub fn from_seconds<'a>(seconds: i64) -> Called<'a> {
    Timestamp::from_second(seconds).map(Value::Timestamp).map_err(|_| EvalError::failed("timestamp overflow"))
}

pub fn shift<'a>(at: Timestamp, nanoseconds: i64) -> Called<'a> {
    let shifted = at.checked_add(jiff::SignedDuration::from_nanos(nanoseconds));
    shifted.map(Value::Timestamp).map_err(|_| EvalError::failed("timestamp overflow"))
}

/// Go's `time.ParseDuration`, in nanoseconds.
pub fn duration(text: &str) -> Result<i64, EvalError> {
    meta::time::parse_duration(text).ok_or_else(|| EvalError::failed("type conversion error from 'string' to 'google.protobuf.Duration'"))
}

/// As CEL prints durations: seconds with what fraction there is.
pub fn duration_text(nanoseconds: i64) -> String {
    let (sign, n) = if nanoseconds < 0 { ("-", nanoseconds.unsigned_abs()) } else { ("", nanoseconds.unsigned_abs()) };
    let (seconds, rest) = (n / 1_000_000_000, n % 1_000_000_000);
    if rest == 0 {
        return format!("{sign}{seconds}s");
    }
    let fraction = format!("{rest:09}");
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}
