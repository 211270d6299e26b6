//! The daemon as a process: one per machine (or run folder), known by a locked pid file, started in the background on request.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

use crate::config::Config;
use crate::progress::READY;

/// For a daemon that holds the lock to serve, or to be gone.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// The proof that this process is the daemon; released by the kernel when it ends, however it ends.
pub struct PidFile(#[allow(dead_code)] File);

impl PidFile {
    /// `Ok(None)` when another daemon holds it.
    pub fn take(config: &Config) -> anyhow::Result<Option<Self>> {
        fs::create_dir_all(&config.run_dir).with_context(|| config.run_dir.display().to_string())?;
        let mut file = open(config)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        file.set_len(0)?;
        write!(file, "{}", std::process::id())?;
        Ok(Some(Self(file)))
    }
}

/// The running daemon's process id.
pub fn running(config: &Config) -> Option<i32> {
    let mut file = OpenOptions::new().read(true).write(true).open(config.pid_file()).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return None;
    }
    // Whoever has just taken the lock writes its number next.
    for _ in 0..100 {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).ok()?;
        file.read_to_string(&mut text).ok()?;
        if let Ok(pid) = text.trim().parse() {
            return Some(pid);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// The daemon that runs, once that is clear: one that was killed may still be ending, and one that starts has no answers yet.
pub fn settled(config: &Config) -> Option<i32> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    loop {
        let pid = running(config)?;
        if crate::status::answers(config) || Instant::now() > deadline {
            return Some(pid);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn open(config: &Config) -> anyhow::Result<File> {
    let path = config.pid_file();
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    file.with_context(|| path.display().to_string())
}

/// Starts the daemon in a session of its own with its output in the log file, shows its progress, and returns once it is ready.
pub fn detach(config: &Config) -> anyhow::Result<i32> {
    if let Some(code) = crate::up::not_to_be_started(config)? {
        return Ok(code);
    }
    fs::create_dir_all(&config.data_dir).with_context(|| config.data_dir.display().to_string())?;
    let log = OpenOptions::new().create(true).append(true).open(config.log_file())?;
    let log_start = log.metadata()?.len();
    let (reader, writer) = std::io::pipe()?;
    let fd = writer.as_raw_fd();
    let mut command = Command::new("/proc/self/exe");
    command.arg0("sternpost").args(own_arguments()).arg("--report-fd").arg(fd.to_string());
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: only async-signal-safe calls between fork and exec: setsid, and fcntl to let the pipe through.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            Ok(())
        });
    }
    let mut child = command.spawn().context("start the daemon")?;
    drop(writer);
    for line in BufReader::new(reader).lines() {
        match line?.as_str() {
            READY => return Ok(0),
            other => println!("{other}"),
        }
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(0);
    }
    eprintln!("the daemon ended with {status}; the end of {}:", config.log_file().display());
    let mut log = File::open(config.log_file())?;
    log.seek(SeekFrom::Start(log_start))?;
    let mut text = String::new();
    log.read_to_string(&mut text)?;
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(15)).for_each(|line| eprintln!("  {line}"));
    Ok(status.code().unwrap_or(1))
}

/// This process's arguments without the wish to detach.
fn own_arguments() -> impl Iterator<Item = std::ffi::OsString> {
    std::env::args_os().skip(1).filter(|arg| arg != "--detach" && arg != "-d")
}
