//! The machine, and who else used it meanwhile.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use crate::processes::TICKS_PER_SECOND;

/// `4 × AMD EPYC 7B13, 24 GiB, Linux 6.18.5, ext4`
pub fn describe(dir: &Path) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = field(&read("/proc/cpuinfo"), "model name");
    let kib: f64 = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    format!("{cores} × {model}, {:.0} GiB, Linux {kernel}, {}", kib / 1024.0 / 1024.0, file_system(dir))
}

/// The type of the file system that holds `dir`: the mount with the longest matching path.
fn file_system(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let of = |line: &str| Some((line.split(' ').nth(1)?.to_owned(), line.split(' ').nth(2)?.to_owned()));
    let holding = mounts.lines().filter_map(of).filter(|(mount, _)| dir.starts_with(mount));
    holding.max_by_key(|(mount, _)| mount.len()).map(|(_, kind)| kind).unwrap_or_default()
}

/// The date of today, UTC, as `2026-11-21`.
pub fn today() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Civil date from days since the epoch, after Howard Hinnant's `civil_from_days`.
    let days = (seconds / 86_400) as i64 + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Use of the machine's processors over a race.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Use {
    /// Of all processors' time, by programs that are not part of the race (or stolen by the hypervisor), in percent.
    pub foreign_percent: f64,
    pub seconds: f64,
}

/// Watches the processors from its start on.
pub struct Load {
    start: Instant,
    total: Ticks,
    own: f64,
}

#[derive(Clone, Copy, Default)]
struct Ticks {
    all: f64,
    idle: f64,
}

impl Load {
    pub fn start() -> Self {
        Self { start: Instant::now(), total: ticks(), own: own_ticks() }
    }

    /// Children count as ours once they ended and were waited for.
    pub fn stop(self) -> Use {
        let now = ticks();
        let all = (now.all - self.total.all).max(1.0);
        let busy = all - (now.idle - self.total.idle);
        let foreign = (busy - (own_ticks() - self.own)).max(0.0);
        Use { foreign_percent: foreign / all * 100.0, seconds: self.start.elapsed().as_secs_f64() }
    }
}

fn ticks() -> Ticks {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // user nice system idle iowait irq softirq steal; guest time is inside user's.
    let words = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
    let fields: Vec<f64> = words.filter_map(|word| word.parse().ok()).collect();
    let idle = fields.iter().skip(3).take(2).sum();
    Ticks { all: fields.iter().sum(), idle }
}

/// Hundredths of a second that daemons of the race used: they are not our children, so nobody adds them up for us.
static OF_DAEMONS: AtomicU64 = AtomicU64::new(0);

/// Counts processor time of a daemon that is about to end as the race's own.
pub fn count_as_own(seconds: f64) {
    OF_DAEMONS.fetch_add((seconds * TICKS_PER_SECOND) as u64, Ordering::Relaxed);
}

/// This process and its ended children, all four columns of them, and daemons.
fn own_ticks() -> f64 {
    crate::processes::ticks("/proc/self/stat", 4) + OF_DAEMONS.load(Ordering::Relaxed) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_has_ten_characters_and_the_machine_a_kernel() {
        assert_eq!(today().len(), 10);
        assert!(today().as_str() >= "2026-01-01");
        assert!(describe(Path::new("/")).contains("Linux"));
    }
}
