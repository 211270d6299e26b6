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

/// The number behind `key` in a flat-keyed file.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_matches_whole_words_only() {
        let text = "total_inactive_file_x 3\ntotal_inactive_file 7\nbroken\n";
        assert_eq!(keyed(text, "total_inactive_file"), Some(7));
        assert_eq!(keyed(text, "inactive_file"), None);
    }
}
