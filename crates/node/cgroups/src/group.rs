//! One control group: the same path in every hierarchy, held open by directory descriptors.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};

use crate::hierarchy::{Hierarchy, Root};
use crate::limits::{Limits, weight_of_shares};
use crate::stats::{Pressure, Stats, keyed, pressure};
use crate::{Result, file_error};

/// An emptied group stays busy until its last zombie is reaped; this bounds the wait.
const REMOVE_ATTEMPTS: u32 = 200;

/// The kernel's own period for processor quotas.
const PERIOD_US: u64 = 100_000;

struct Directory {
    fd: OwnedFd,
    hierarchy: Hierarchy,
}

/// A group that exists in at least some hierarchies.
pub struct Cgroup {
    root: Root,
    path: String,
    directories: Vec<Directory>,
}

impl Cgroup {
    pub(crate) fn open(root: Root, path: String) -> Result<Self> {
        let mut directories = Vec::new();
        for hierarchy in &root.shared.hierarchies {
            let directory = root.directory(hierarchy, &path);
            match rustix::fs::open(&directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(fd) => directories.push(Directory { fd, hierarchy: hierarchy.clone() }),
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(file_error("open control group", directory.display().to_string())(error.into())),
            }
        }
        Ok(Self { root, path, directories })
    }

    /// Relative to the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// True while the group exists anywhere.
    pub fn exists(&self) -> bool {
        !self.directories.is_empty()
    }

    /// Applies what is present in `limits`. What the host cannot limit is skipped with one warning; a value that the kernel refuses is an
    /// error that names the file.
    pub fn set(&mut self, limits: &Limits) -> Result<()> {
        if limits.cpuset_cpus.is_some() || limits.cpuset_mems.is_some() {
            self.enter_cpuset()?;
        }
        self.set_cpu(limits)?;
        self.set_memory(limits)?;
        if let Some(pids) = limits.pids {
            self.put("pids", "pids.max", "pids.max", &number_or_max(pids))?;
        }
        for (file, value) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
            if let Some(value) = value {
                self.put("cpuset", file, file, value)?;
            }
        }
        for page in &limits.hugepages {
            let (v1, v2) = (format!("hugetlb.{}.limit_in_bytes", page.page_size), format!("hugetlb.{}.max", page.page_size));
            self.put("hugetlb", &v1, &v2, &page.limit.to_string())?;
        }
        if self.root.is_unified() {
            for (file, value) in &limits.unified {
                let file = file.as_str();
                if file.contains('/') {
                    return Err(crate::Error::Path(file.to_owned()));
                }
                self.write_in(self.unified(), file, value)?;
            }
        }
        self.set_devices(limits)
    }

    fn set_cpu(&self, limits: &Limits) -> Result<()> {
        if let Some(shares) = limits.cpu_shares {
            match self.v1("cpu") {
                Some(directory) => self.write_in(Some(directory), "cpu.shares", &shares.max(2).to_string())?,
                None => self.put("cpu", "", "cpu.weight", &weight_of_shares(shares).to_string())?,
            }
        }
        if limits.cpu_quota.is_none() && limits.cpu_period.is_none() {
            return Ok(());
        }
        let period = limits.cpu_period.filter(|p| *p > 0).unwrap_or(PERIOD_US);
        if let Some(directory) = self.v1("cpu") {
            // Each write visits every group of the machine: what a new group has is only looked at.
            let is = |file: &str, value: &str| self.read_in(Some(directory), file).is_some_and(|text| text.trim() == value);
            let unlimited = limits.cpu_quota.is_none_or(|quota| quota <= 0) && period == PERIOD_US;
            if unlimited && is("cpu.cfs_quota_us", "-1") && is("cpu.cfs_period_us", "100000") {
                return Ok(());
            }
            // Quota before period or after: the kernel checks the pair on each write, so lift the old quota first.
            self.write_in(Some(directory), "cpu.cfs_quota_us", "-1")?;
            self.write_in(Some(directory), "cpu.cfs_period_us", &period.to_string())?;
            return self.write_in(Some(directory), "cpu.cfs_quota_us", &limits.cpu_quota.filter(|q| *q > 0).unwrap_or(-1).to_string());
        }
        let quota = number_or_max(limits.cpu_quota.filter(|q| *q > 0).unwrap_or(-1));
        self.put("cpu", "", "cpu.max", &format!("{quota} {period}"))
    }

    fn set_memory(&self, limits: &Limits) -> Result<()> {
        let Some(memory) = limits.memory else { return Ok(()) };
        if let Some(directory) = self.v1("memory") {
            let swap = limits.memory_swap.unwrap_or(memory);
            // memory <= memory+swap must hold at every moment: try the order for growing, then the one for shrinking.
            let has_swap = self.read_in(Some(directory), "memory.memsw.limit_in_bytes").is_some();
            if has_swap && self.write_in(Some(directory), "memory.limit_in_bytes", &memory.to_string()).is_err() {
                self.write_in(Some(directory), "memory.memsw.limit_in_bytes", &swap.to_string())?;
            }
            self.write_in(Some(directory), "memory.limit_in_bytes", &memory.to_string())?;
            return if has_swap { self.write_in(Some(directory), "memory.memsw.limit_in_bytes", &swap.to_string()) } else { Ok(()) };
        }
        self.put("memory", "", "memory.max", &number_or_max(memory))?;
        if let (Some(swap), true) = (limits.memory_swap, self.read_in(self.unified(), "memory.swap.max").is_some()) {
            self.write_in(self.unified(), "memory.swap.max", &number_or_max(if memory < 0 { -1 } else { (swap - memory).max(0) }))?;
        }
        Ok(())
    }

    fn set_devices(&self, limits: &Limits) -> Result<()> {
        let Some(rules) = &limits.devices else { return Ok(()) };
        if let Some(directory) = self.v1("devices") {
            self.write_in(Some(directory), "devices.deny", "a")?;
            return rules.iter().try_for_each(|rule| self.write_in(Some(directory), "devices.allow", &rule.line()));
        }
        let Some(directory) = self.unified() else { return Ok(()) };
        let restrict = || {
            let directory = openat(&directory.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            crate::devices::restrict(directory.as_fd(), rules)
        };
        restrict().map_err(file_error("restrict the devices of", &self.path))
    }

    fn enter_cpuset(&mut self) -> Result<()> {
        let Some(hierarchy) = self.root.shared.hierarchies.iter().find(|h| !h.unified && h.controllers == ["cpuset"]).cloned() else {
            return Ok(());
        };
        if self.v1("cpuset").is_some() {
            return Ok(());
        }
        let processes = self.processes();
        self.root.make(&hierarchy, &self.path)?;
        *self = Self::open(self.root.clone(), self.path.clone())?;
        for pid in processes {
            let _ = self.write_in(self.v1("cpuset"), "cgroup.procs", &pid.to_string());
        }
        Ok(())
    }

    /// The group's directory in each of [`Root::v1_controllers`].
    pub fn v1_directories(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.directories.iter().filter(|d| !d.hierarchy.unified).filter_map(|d| match d.hierarchy.controllers.as_slice() {
            [single] if single != "cpuset" => Some((single.as_str(), d.fd.as_fd())),
            _ => None,
        })
    }

    /// Descriptors of `tasks` in the v1 hierarchies: a process of one thread that writes `0` into each has joined. For the unified one see
    /// [`Cgroup::birthplace`]. Not `cgroup.procs`: for a thread that moves itself the kernel does not wait until no process on the machine forks or
    /// exits, which takes a grace period of 5 to 50 ms (Linux 5.16).
    pub fn join_fds(&self) -> Result<Vec<OwnedFd>> {
        let open = |d: &Directory| openat(&d.fd, "tasks", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let v1 = self.directories.iter().filter(|d| !d.hierarchy.unified);
        v1.map(|d| open(d).map_err(|e| file_error("open tasks of", &self.path)(e.into()))).collect()
    }

    /// The unified hierarchy's directory, for CLONE_INTO_CGROUP (Linux 5.7). A process born there need not be moved: the
    /// first move after a pause waits 5 to 20 ms for an RCU grace period, and every fork and exit on the machine waits with it.
    pub fn birthplace(&self) -> Option<OwnedFd> {
        self.unified()?.fd.try_clone().ok()
    }

    /// `cgroup.kill` of the unified hierarchy: writing `1` kills all atomically (Linux 5.14).
    pub fn kill_fd(&self) -> Option<OwnedFd> {
        openat(&self.unified()?.fd, "cgroup.kill", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    pub fn add(&self, pid: i32) -> Result<()> {
        self.directories.iter().try_for_each(|d| self.write_in(Some(d), "cgroup.procs", &pid.to_string()))
    }

    /// Kills every process in the group and below.
    pub fn kill(&self) -> Result<()> {
        if let Some(fd) = self.kill_fd() {
            return std::fs::File::from(fd).write_all(b"1").map_err(file_error("kill control group", &self.path));
        }
        for pid in self.processes() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        Ok(())
    }

    /// Waits until no process is left in the group itself; false where one was after `patience`.
    pub fn wait_empty(&self, patience: Duration) -> bool {
        let since = std::time::Instant::now();
        while !self.processes().is_empty() {
            if since.elapsed() > patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    pub fn freeze(&self, frozen: bool) -> Result<()> {
        self.put("freezer", "", "cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Process ids in the group itself, as the first hierarchy tells.
    pub fn processes(&self) -> Vec<i32> {
        let text = self.read_in(self.unified().or(self.directories.first()), "cgroup.procs").unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// How many processes the kernel has killed here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let v1 = || keyed(&self.read_in(self.v1("memory"), "memory.oom_control")?, "oom_kill");
        let v2 = || keyed(&self.read_in(self.unified(), "memory.events")?, "oom_kill");
        v1().or_else(v2).unwrap_or(0)
    }

    pub fn stats(&self) -> Stats {
        if self.v1("memory").is_some() || self.v1("cpuacct").is_some() { self.stats_v1() } else { self.stats_v2() }
    }

    /// How long the group waited for `cpu`, `memory` or `io`; the unified hierarchy tells it with and without controllers, where the kernel does.
    pub fn pressure(&self, resource: &str) -> Option<Pressure> {
        pressure(&self.read_in(self.unified(), &format!("{resource}.pressure"))?)
    }

    fn stats_v1(&self) -> Stats {
        let number = |controller: &str, file: &str| self.read_in(self.v1(controller), file)?.trim().parse::<u64>().ok();
        let stat = self.read_in(self.v1("memory"), "memory.stat").unwrap_or_default();
        let usage = number("memory", "memory.usage_in_bytes");
        Stats {
            cpu_nanos: number("cpuacct", "cpuacct.usage"),
            memory_usage: usage,
            working_set: usage.map(|u| u.saturating_sub(keyed(&stat, "total_inactive_file").unwrap_or(0))),
            rss: keyed(&stat, "total_rss"),
            page_faults: keyed(&stat, "total_pgfault"),
            major_page_faults: keyed(&stat, "total_pgmajfault"),
            memory_limit: keyed(&stat, "hierarchical_memory_limit").filter(|limit| *limit < i64::MAX as u64 / 2),
            processes: number("pids", "pids.current"),
            oom_kills: Some(self.oom_kills()),
        }
    }

    fn stats_v2(&self) -> Stats {
        let text = |file: &str| self.read_in(self.unified(), file);
        let number = |file: &str| text(file)?.trim().parse::<u64>().ok();
        let stat = text("memory.stat").unwrap_or_default();
        let usage = number("memory.current");
        Stats {
            cpu_nanos: text("cpu.stat").and_then(|t| keyed(&t, "usage_usec")).map(|us| us * 1000),
            memory_usage: usage,
            working_set: usage.map(|u| u.saturating_sub(keyed(&stat, "inactive_file").unwrap_or(0))),
            rss: keyed(&stat, "anon"),
            page_faults: keyed(&stat, "pgfault"),
            major_page_faults: keyed(&stat, "pgmajfault"),
            memory_limit: number("memory.max"),
            processes: number("pids.current"),
            oom_kills: Some(self.oom_kills()),
        }
    }

    /// Removes the group in every hierarchy; a group that is gone is fine. Waits shortly for dying processes.
    pub fn remove(&self) -> Result<()> {
        self.root.shared.hierarchies.iter().try_for_each(|hierarchy| self.remove_in(hierarchy))
    }

    fn remove_in(&self, hierarchy: &Hierarchy) -> Result<()> {
        let directory = self.root.directory(hierarchy, &self.path);
        for attempt in 0.. {
            match std::fs::remove_dir(&directory) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ResourceBusy && attempt < REMOVE_ATTEMPTS => {
                    std::thread::sleep(Duration::from_millis(u64::from(attempt.min(9)) + 1));
                }
                Err(error) => return Err(file_error("remove control group", directory.display().to_string())(error)),
            }
        }
        Ok(())
    }

    fn unified(&self) -> Option<&Directory> {
        self.directories.iter().find(|d| d.hierarchy.unified)
    }

    fn v1(&self, controller: &str) -> Option<&Directory> {
        self.directories.iter().find(|d| !d.hierarchy.unified && d.hierarchy.controllers.iter().any(|c| c == controller))
    }

    /// Writes to whichever hierarchy carries `controller`; warns once when none does.
    fn put(&self, controller: &str, v1_file: &str, v2_file: &str, value: &str) -> Result<()> {
        if let (Some(directory), false) = (self.v1(controller), v1_file.is_empty()) {
            return self.write_in(Some(directory), v1_file, value);
        }
        let offered = |d: &&Directory| controller == "freezer" || d.hierarchy.controllers.iter().any(|c| c == controller);
        let own_files = !self.root.shared.has_v1(controller) && (controller == "freezer" || self.root.is_unified());
        match self.unified().filter(offered).filter(|_| own_files || controller == "freezer") {
            Some(directory) => self.write_in(Some(directory), v2_file, value),
            None => {
                self.root.shared.warn_missing(controller);
                Ok(())
            }
        }
    }

    fn write_in(&self, directory: Option<&Directory>, file: &str, value: &str) -> Result<()> {
        let Some(directory) = directory else { return Ok(()) };
        let write = || {
            let fd = openat(directory.fd.as_fd(), file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            std::fs::File::from(fd).write_all(value.as_bytes())
        };
        write().map_err(file_error("write", format!("{value:?} to {}/{file}", self.path)))
    }

    fn read_in(&self, directory: Option<&Directory>, file: &str) -> Option<String> {
        let fd = openat(directory?.fd.as_fd(), file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut text = String::new();
        std::fs::File::from(fd).read_to_string(&mut text).ok()?;
        Some(text)
    }
}

fn number_or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}
