//! Processes as the kernel lists them.

use std::fs;
use std::path::{Path, PathBuf};

/// A process, told apart from a later one with the same id by its start time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub id: i32,
    /// In clock ticks since the machine started.
    pub start_ticks: u64,
}

impl Process {
    pub fn of(id: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name in parentheses may contain anything: count from its end.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if fields.first() == Some(&"Z") {
            return None;
        }
        Some(Self { id, start_ticks: fields.get(19)?.parse().ok()? })
    }

    pub fn command_line(&self) -> String {
        let bytes = fs::read(self.file("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
    }

    pub fn executable(&self) -> Option<PathBuf> {
        fs::read_link(self.file("exe")).ok()
    }

    /// `(hierarchy's controllers, path)` of every hierarchy; the controllers of version 2 are the empty string.
    pub fn cgroups(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.file("cgroup")).unwrap_or_default();
        let line = |line: &str| {
            let mut parts = line.splitn(3, ':').skip(1);
            Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
        };
        text.lines().filter_map(line).collect()
    }

    /// The variables that it was started with.
    pub fn environment(&self) -> Vec<String> {
        let bytes = fs::read(self.file("environ")).unwrap_or_default();
        bytes.split(|byte| *byte == 0).map(|variable| String::from_utf8_lossy(variable).into_owned()).collect()
    }

    /// What a `/proc/PID/ns` link names, such as `net:[4026531840]`.
    pub fn namespace(&self, kind: &str) -> Option<String> {
        Some(fs::read_link(self.file("ns").join(kind)).ok()?.to_string_lossy().into_owned())
    }

    /// A field of `/proc/PID/status`.
    pub fn status(&self, field: &str) -> Option<String> {
        let text = fs::read_to_string(self.file("status")).ok()?;
        text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(|value| value.trim().to_owned()))
    }

    pub fn is_alive(&self) -> bool {
        Self::of(self.id).as_ref() == Some(self)
    }

    /// Kills it and waits until the kernel has let go of what it held.
    pub fn kill(&self) {
        // SAFETY: kill takes plain numbers. That the id still names the same process was just looked at.
        assert!(self.is_alive() && unsafe { libc::kill(self.id, libc::SIGKILL) } == 0, "process {} is not there to be killed", self.id);
        crate::run::wait_for("a killed process ends", 10, || {
            // Its first thread may be dead while others still close files.
            let threads = fs::read_dir(self.file("task")).map_or(0, Iterator::count);
            crate::run::ensure(!self.is_alive() && threads <= 1, "it is still there")
        });
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.id.to_string()).join(name)
    }
}

/// Every process that is not a zombie.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(Process::of).collect()
}

/// Processes that were started with this variable, such as `MARK=a`.
pub fn with_variable(variable: &str) -> Vec<Process> {
    let mut found: Vec<Process> = all().into_iter().filter(|process| process.environment().iter().any(|each| each == variable)).collect();
    found.sort();
    found
}
