//! Times and durations as the API writes them, and ages as kubectl prints them.

use jiff::Timestamp;

/// Now as `2026-11-21T02:30:00Z` (`metav1.Time`).
pub fn now() -> String {
    seconds(Timestamp::now())
}

/// Now as `2026-11-21T02:30:00.123456Z` (`metav1.MicroTime`).
pub fn now_micro() -> String {
    micro(Timestamp::now())
}

/// RFC 3339 in UTC with whole seconds.
pub fn seconds(time: Timestamp) -> String {
    quick(time, 0).unwrap_or_else(|| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// RFC 3339 in UTC with six decimals.
pub fn micro(time: Timestamp) -> String {
    quick(time, 6).unwrap_or_else(|| time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
}

/// The same without a format to interpret: every request has its times. `None` before 1970 and where a year has more than four digits.
fn quick(time: Timestamp, decimals: usize) -> Option<String> {
    let seconds = u64::try_from(time.as_second()).ok()?;
    let nanos = u64::try_from(time.subsec_nanosecond()).ok()?;
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days since the epoch, after Howard Hinnant's `civil_from_days`; no day here lies before 1970.
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    if year > 9_999 {
        return None;
    }
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    let mut two = |at: usize, value: u64| {
        text[at] = b'0' + (value / 10) as u8;
        text[at + 1] = b'0' + (value % 10) as u8;
    };
    two(0, year / 100);
    two(2, year % 100);
    two(5, month);
    two(8, of_year - (153 * from_march + 2) / 5 + 1);
    two(11, second / 3_600);
    two(14, second / 60 % 60);
    two(17, second % 60);
    let micros = nanos / 1_000;
    two(20, micros / 10_000);
    two(22, micros / 100 % 100);
    two(24, micros % 100);
    let length = if decimals == 6 { text.len() } else { 20 };
    text[length - 1] = b'Z';
    let text = std::str::from_utf8(&text[..length]).ok()?.to_owned();
    Some(text)
}

/// Reads RFC 3339 with any offset and any fraction.
pub fn parse(text: &str) -> Option<Timestamp> {
    let wellformed = text.len() >= 20 && text.as_bytes().get(10) == Some(&b'T');
    if wellformed { text.parse().ok() } else { None }
}

/// Seconds since the epoch of an RFC 3339 text.
pub fn epoch(text: &str) -> Option<i64> {
    parse(text).map(Timestamp::as_second)
}

/// The whole-second text of seconds since the epoch.
pub fn from_epoch(second: i64) -> String {
    Timestamp::from_second(second).map_or_else(|_| String::new(), seconds)
}

/// An age of so many seconds with two or three significant figures: `5s`, `2m10s`, `3d4h` (apimachinery `HumanDuration`).
pub fn human(age_seconds: i64) -> String {
    let s = age_seconds;
    let (minutes, hours) = (s / 60, s / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let pair = |large: i64, unit: &str, small: i64, smaller: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{smaller}") }
    };
    match () {
        // Clocks may differ by a second or two.
        () if s < -1 => "<invalid>".to_owned(),
        () if s < 0 => "0s".to_owned(),
        () if s < 120 => format!("{s}s"),
        () if minutes < 10 => pair(minutes, "m", s % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => pair(days, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{days}d"),
        () if hours < 24 * 365 * 8 => pair(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

/// The age of an RFC 3339 text at `now` (seconds since the epoch); `<unknown>` where there is none.
pub fn age(since: Option<&str>, now: i64) -> String {
    since.and_then(epoch).map_or_else(|| "<unknown>".to_owned(), |since| human(now - since))
}

/// Prints nanoseconds as Go's `time.Duration` does: `1h0m0s`, `1.5s`, `100ms`, `0s`.
pub fn format_duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    let decimal = |unit: u64, suffix: &str| {
        let fraction = format!("{:0width$}", total % unit, width = unit.ilog10() as usize);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() || unit == 1 { String::new() } else { format!(".{fraction}") };
        format!("{sign}{}{point}{suffix}", total / unit)
    };
    match total {
        0 => "0s".to_owned(),
        1..1_000 => decimal(1, "ns"),
        1_000..1_000_000 => decimal(1_000, "µs"),
        1_000_000..1_000_000_000 => decimal(1_000_000, "ms"),
        _ => {
            let minutes = total / 60_000_000_000;
            let rest = total % 60_000_000_000;
            let fraction = format!("{:09}", rest % 1_000_000_000);
            let fraction = fraction.trim_end_matches('0');
            let point = if fraction.is_empty() { String::new() } else { format!(".{fraction}") };
            let seconds = format!("{}{point}s", rest / 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}"),
                (0, m) => format!("{sign}{m}m{seconds}"),
                (h, m) => format!("{sign}{h}h{m}m{seconds}"),
            }
        }
    }
}

/// Reads Go's duration text (`1h30m`, `1.5s`, `-100ms`, `0`) as nanoseconds.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, after) = rest.split_at(number);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse::<i64>().ok()?.into() };
        // Nothing past 15 decimals is a nanosecond of any unit.
        let fraction = fraction.get(..15).unwrap_or(fraction);
        let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
        let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        total = total.checked_add(whole * unit + part * unit / scale)?;
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_their_format_says() {
        let mut seconds = vec![-1, 0, 1, 951_782_399, 951_782_400, 951_868_800, 1_709_164_800, 4_107_542_400, 253_402_207_200];
        seconds.extend((0..4_000).map(|turn| turn * 15_637_003));
        for second in seconds {
            let time = Timestamp::new(second, 123_456_789).unwrap();
            assert_eq!(super::seconds(time), time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            assert_eq!(micro(time), time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
        }
        assert_eq!(micro(Timestamp::from_second(1).unwrap()), "1970-01-01T00:00:01.000000Z");
    }

    #[test]
    fn ages_read_as_kubectl_prints_them() {
        const M: i64 = 60;
        const H: i64 = 3600;
        const D: i64 = 24 * H;
        let cases = [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (130, "2m10s"),
            (10 * M + 5, "10m"),
            (179 * M, "179m"),
            (3 * H, "3h"),
            (3 * H + 5 * M, "3h5m"),
            (9 * H + 5 * M, "9h"),
            (47 * H, "47h"),
            (2 * D, "2d"),
            (3 * D + 4 * H, "3d4h"),
            (9 * D + 4 * H, "9d"),
            (730 * D, "2y"),
            (800 * D, "2y70d"),
            (4000 * D, "10y"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(human(seconds), expected, "{seconds}");
        }
        assert_eq!(age(Some("1970-01-01T00:01:00Z"), 65), "5s");
        assert_eq!(age(None, 65), "<unknown>");
    }

    #[test]
    fn times_are_written_with_seconds_or_microseconds_in_utc() {
        let time = parse("2026-01-02T03:04:05.123456789+01:00").expect("RFC 3339");
        assert_eq!(seconds(time), "2026-01-02T02:04:05Z");
        assert_eq!(micro(time), "2026-01-02T02:04:05.123456Z");
        assert_eq!(from_epoch(0), "1970-01-01T00:00:00Z");
        for text in ["", "yesterday", "2026-01-02", "2026-01-02 03:04:05Z", "2026-13-02T03:04:05Z"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn durations_read_and_print_as_in_go() {
        let cases = [("0s", 0), ("1.5s", 1_500_000_000), ("100ms", 100_000_000), ("1h0m0s", 3_600_000_000_000), ("2m30s", 150_000_000_000)];
        for (text, nanoseconds) in cases {
            assert_eq!(format_duration(nanoseconds), text);
            assert_eq!(parse_duration(text), Some(nanoseconds));
        }
        assert_eq!((format_duration(1_500), format_duration(-7)), ("1.5µs".to_owned(), "-7ns".to_owned()));
        assert_eq!((parse_duration("1h30m"), parse_duration("-.5m")), (Some(5_400_000_000_000), Some(-30_000_000_000)));
        for text in ["", "1", "s", "1.2.3s", "1d", "99999999999h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
