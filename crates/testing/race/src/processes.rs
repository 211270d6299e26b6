//! What processes use: memory and processor time, from /proc.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

/// Kernel ticks a second: USER_HZ, fixed at 100 for user space.
pub const TICKS_PER_SECOND: f64 = 100.0;

/// All processes of one program together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Footprint {
    pub processes: usize,
    pub rss_mib: f64,
    /// What was written to and is no file's: code comes and goes with what runs.
    pub anonymous_mib: f64,
    /// Shared pages divided among their users: the honest sum.
    pub pss_mib: f64,
    pub cpu_seconds: f64,
}

/// The processes that run the very file `program`.
pub fn running(program: &Path) -> Vec<i32> {
    let Ok(wanted) = program.metadata() else { return Vec::new() };
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_ours = |pid: &i32| {
        let exe = std::fs::metadata(format!("/proc/{pid}/exe"));
        exe.is_ok_and(|exe| (exe.dev(), exe.ino()) == (wanted.dev(), wanted.ino()))
    };
    pids.filter(is_ours).collect()
}

/// The memory of all processes whose command line begins so (NUL between its words), PSS in MiB.
pub fn with_command(begin: &str) -> f64 {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = pids.filter(|path| std::fs::read_to_string(path.join("cmdline")).is_ok_and(|command| command.starts_with(begin)));
    let pss = ours.filter_map(|path| {
        let rollup = std::fs::read_to_string(path.join("smaps_rollup")).ok()?;
        rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?.split_whitespace().next()?.parse::<f64>().ok()
    });
    pss.sum::<f64>() / 1024.0
}

pub fn footprint(program: &Path) -> Footprint {
    let mut sum = Footprint::default();
    for pid in running(program) {
        let Ok(rollup) = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        let kib = |name: &str| -> f64 {
            let line = rollup.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or_default()
        };
        sum.processes += 1;
        sum.rss_mib += kib("Rss:") / 1024.0;
        sum.anonymous_mib += kib("Anonymous:") / 1024.0;
        sum.pss_mib += kib("Pss:") / 1024.0;
        sum.cpu_seconds += ticks(&format!("/proc/{pid}/stat"), 4) / TICKS_PER_SECOND;
    }
    sum
}

/// The first `columns` of utime, stime, cutime, cstime in a `stat` file, added.
pub fn ticks(stat: &str, columns: usize) -> f64 {
    let text = std::fs::read_to_string(stat).unwrap_or_default();
    // The name in parentheses may hold anything; the fields after it are numbers, utime being the 12th.
    let fields = text.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    fields.split_whitespace().skip(11).take(columns).filter_map(|word| word.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_finds_itself_by_its_program() {
        let program = std::env::current_exe().unwrap();
        assert!(running(&program).contains(&(std::process::id() as i32)));
        let own = footprint(&program);
        assert!(own.rss_mib >= own.pss_mib && own.pss_mib > 0.0, "{own:?}");
        assert!(own.rss_mib > own.anonymous_mib && own.anonymous_mib > 0.0, "{own:?}");
    }
}
