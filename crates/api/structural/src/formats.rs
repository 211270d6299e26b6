//! The formats that go-openapi's `strfmt` knows; others are not looked at.

/// Whether a text has a format; `true` for unknown formats.
pub fn has(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => is_date_time(text),
        "date" => text.len() == 10 && cel::library::time::schema_time(text).is_some(),
        "duration" => cel::library::time::duration(text).is_ok() || loose_duration(text),
        "byte" => cel::library::formats::is_base64(text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => cel::library::formats::is_uuid(text),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "ip" => text.parse::<std::net::IpAddr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, prefix)| {
            let most = match address.parse::<std::net::IpAddr>() {
                Ok(address) => {
                    if address.is_ipv4() {
                        32
                    } else {
                        128
                    }
                }
                Err(_) => return false,
            };
            prefix.parse::<u8>().is_ok_and(|prefix| prefix <= most)
        }),
        "mac" => {
            let parts: Vec<&str> = text.split([':', '-']).collect();
            matches!(parts.len(), 6 | 8 | 20)
                && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
        }
        "hostname" => text.len() <= 253 && !text.is_empty() && text.trim_end_matches('.').split('.').all(is_host_label),
        "email" => text.rsplit_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty() && !text.contains(' ')),
        "uri" => text.contains(':') && !text.contains(char::is_whitespace) && !text.starts_with(':'),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        }
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|byte| byte.is_ascii_hexdigit()),
        _ => true,
    }
}

fn is_date_time(text: &str) -> bool {
    // Go's strfmt also takes a date alone.
    cel::library::time::schema_time(text).is_some()
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= 63
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// `3 days`, `1w`: what strfmt takes beyond Go.
fn loose_duration(text: &str) -> bool {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    digits > 0
        && matches!(
            text.get(digits..).unwrap_or_default().trim(),
            "nano"
                | "ns"
                | "micro"
                | "us"
                | "milli"
                | "ms"
                | "s"
                | "sec"
                | "secs"
                | "second"
                | "seconds"
                | "m"
                | "min"
                | "mins"
                | "minute"
                | "minutes"
                | "h"
                | "hr"
                | "hour"
                | "hours"
                | "d"
                | "day"
                | "days"
                | "w"
                | "wk"
                | "week"
                | "weeks"
        )
}
