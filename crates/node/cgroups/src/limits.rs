//! What a group may use.

/// Limits as CRI's LinuxContainerResources gives them; absent means unlimited or unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Relative weight, v1 scale: 2 to 262,144.
    pub cpu_shares: Option<u64>,
    /// Microseconds per period; negative is unlimited.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Bytes; negative is unlimited.
    pub memory: Option<i64>,
    /// Bytes of memory plus swap, as v1 counts.
    pub memory_swap: Option<i64>,
    /// Processes; negative is unlimited.
    pub pids: Option<i64>,
    /// CPU list such as `0-3,7`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub hugepages: Vec<HugepageLimit>,
    /// v2 file names and values, written as given.
    pub unified: Vec<(String, String)>,
    /// What remains allowed after everything is denied; set once per group. Absent leaves devices as inherited.
    pub devices: Option<Vec<DeviceRule>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugepageLimit {
    /// As the kernel names it: `2MB`, `1GB`.
    pub page_size: String,
    pub limit: u64,
}

/// One allowed device. `None` numbers mean all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// `c`, `b` or `a`.
    pub kind: char,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Of `rwm`.
    pub access: String,
}

impl DeviceRule {
    pub(crate) fn line(&self) -> String {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        format!("{} {}:{} {}", self.kind, number(self.major), number(self.minor), self.access)
    }
}

/// v1 shares (2..=262144) as a v2 weight (1..=10000), upstream's KEP-2254 formula.
pub fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_map_to_the_whole_range_of_weights() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }

    #[test]
    fn a_device_rule_reads_as_the_kernel_wants_it() {
        let rule = DeviceRule { kind: 'c', major: Some(1), minor: None, access: "rwm".into() };
        assert_eq!(rule.line(), "c 1:* rwm");
    }
}
