//! What a group has used.

/// Counters of one group. Absent where the controller is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu_nanos: Option<u64>,
    pub memory_usage: Option<u64>,
    /// Usage without the file cache that could be dropped at once: what eviction looks at.
    pub working_set: Option<u64>,
    pub rss: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    /// Bytes; absent when unlimited.
    pub memory_limit: Option<u64>,
    pub processes: Option<u64>,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
}

/// How long a group's processes waited for one resource (pressure stall information, kernel's Documentation/accounting/psi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// While at least one waited.
    pub some: Stall,
    /// While all did.
    pub full: Stall,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10, 60 and 300 seconds.
    pub averages: [f64; 3],
    /// Microseconds.
    pub total: u64,
}

/// What a file such as `cpu.pressure` says; `None` for anything else.
pub(crate) fn pressure(text: &str) -> Option<Pressure> {
    let stall = |line: &str| {
        let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let average = |key: &str| value(key)?.parse::<f64>().ok();
        Some(Stall { averages: [average("avg10")?, average("avg60")?, average("avg300")?], total: value("total")?.parse().ok()? })
    };
    let of = |kind: &str| text.lines().find_map(|line| line.strip_prefix(kind)).and_then(stall);
    Some(Pressure { some: of("some ")?, full: of("full ").unwrap_or_default() })
}

/// The number behind `key` in a flat-keyed file.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_read_as_the_kernel_writes_them() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let found = pressure(text).unwrap();
        assert_eq!((found.some.averages, found.some.total, found.full.total), ([1.5, 0.25, 0.0], 123, 7));
        assert_eq!(pressure(""), None);
        assert_eq!(pressure("some avg10=x total=1\n"), None);
    }

    #[test]
    fn a_key_matches_whole_words_only() {
        let text = "total_inactive_file_x 3\ntotal_inactive_file 7\nbroken\n";
        assert_eq!(keyed(text, "total_inactive_file"), Some(7));
        assert_eq!(keyed(text, "inactive_file"), None);
    }
}
