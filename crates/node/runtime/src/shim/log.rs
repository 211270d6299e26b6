//! A container's log file in CRI's format: `<time> <stream> <F|P> <line>`.

use std::fs::File;
use std::io::Write;

/// Longer lines are split into partial entries, as containerd does.
const LINE_BYTES_MAX: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Appends entries. A full disk loses lines; it does not stop the container.
pub struct Log {
    file: Option<File>,
    /// The unfinished line of each stream.
    partial: [Vec<u8>; 2],
}

impl Log {
    pub fn new(file: Option<File>) -> Self {
        Self { file, partial: [Vec::new(), Vec::new()] }
    }

    pub fn reopen(&mut self, file: File) {
        self.file = Some(file);
    }

    pub fn append(&mut self, stream: Stream, mut bytes: &[u8], nanos: i64) {
        let Some(partial) = self.partial.get_mut(stream as usize) else { return };
        let mut entries = Vec::with_capacity(bytes.len() + 64);
        while !bytes.is_empty() {
            let line_end = bytes.iter().position(|byte| *byte == b'\n');
            let (line, rest) = bytes.split_at(line_end.unwrap_or(bytes.len()));
            let room = LINE_BYTES_MAX - partial.len();
            if line.len() > room {
                let (now, later) = bytes.split_at(room);
                partial.extend_from_slice(now);
                entry(&mut entries, stream, b'P', partial, nanos);
                partial.clear();
                bytes = later;
                continue;
            }
            partial.extend_from_slice(line);
            bytes = rest;
            if line_end.is_some() {
                entry(&mut entries, stream, b'F', partial, nanos);
                partial.clear();
                bytes = rest.get(1..).unwrap_or_default();
            }
        }
        if partial.is_empty() && partial.capacity() > 256 {
            *partial = Vec::new();
        }
        self.write(&entries);
    }

    /// At end of file an unfinished line is written as partial: it had no newline.
    pub fn finish(&mut self, nanos: i64) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let Some(partial) = self.partial.get_mut(stream as usize).map(std::mem::take) else { continue };
            if !partial.is_empty() {
                let mut entries = Vec::new();
                entry(&mut entries, stream, b'P', &partial, nanos);
                self.write(&entries);
            }
        }
        self.file = None;
    }

    fn write(&mut self, entries: &[u8]) {
        if let (Some(file), false) = (&mut self.file, entries.is_empty()) {
            let _ = file.write_all(entries);
        }
    }
}

fn entry(into: &mut Vec<u8>, stream: Stream, tag: u8, line: &[u8], nanos: i64) {
    let name = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    into.extend_from_slice(timestamp(nanos).as_bytes());
    into.extend_from_slice(format!(" {name} {} ", tag as char).as_bytes());
    into.extend_from_slice(line);
    into.push(b'\n');
}

/// RFC 3339 with nanoseconds, UTC. By hand: the shim carries no time library's tables.
pub fn timestamp(nanos: i64) -> String {
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Howard Hinnant's civil_from_days: years begin in March, so that the leap day comes last.
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(pieces: &[&[u8]]) -> Vec<String> {
        let mut file = tempfile::tempfile().unwrap();
        let mut log = Log::new(Some(file.try_clone().unwrap()));
        pieces.iter().for_each(|piece| log.append(Stream::Stdout, piece, 0));
        log.finish(0);
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        text.lines().map(|line| line.strip_prefix("1970-01-01T00:00:00.000000000Z stdout ").unwrap().to_owned()).collect()
    }

    #[test]
    fn a_line_is_one_full_entry_however_it_arrives() {
        assert_eq!(logged(&[b"one\ntw", b"o\n", b"\nthree"]), ["F one", "F two", "F ", "P three"]);
    }

    #[test]
    fn a_long_line_is_split_into_partial_entries() {
        let long = vec![b'x'; LINE_BYTES_MAX + 5];
        let lines = logged(&[&long, b"\nend\n"]);
        assert_eq!(lines[0], format!("P {}", "x".repeat(LINE_BYTES_MAX)));
        assert_eq!(lines[1..], ["F xxxxx", "F end"]);
        let exact = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(logged(&[&exact, b"\n"]), [format!("F {}", "x".repeat(LINE_BYTES_MAX))]);
    }

    #[test]
    fn times_are_utc_with_nanoseconds() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_795_229_999_120_000_000, "2026-11-21T02:59:59.120000000Z"),
        ] {
            assert_eq!(timestamp(nanos), text);
        }
    }
}
