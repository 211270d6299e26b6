//! Identity, limits, terminal, and the exec itself: the same for a container's first process and for later ones.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;

use crate::channel::{Failure, errno_text, send_terminal};
use crate::{Handles, Process, sys};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The group `tty` on every Linux system.
const TTY_GROUP: u32 = 5;

/// Raising the protection needs CAP_SYS_RESOURCE, which not even root may have: then the inherited value stays.
pub(crate) fn adjust_oom_score(process: &Process) {
    if let Some(score) = process.oom_score_adj {
        let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    }
}

/// What becomes descriptors 0, 1 and 2.
pub(crate) enum Stdio<'a> {
    Terminal { slave: OwnedFd, path: String },
    Descriptors([Option<BorrowedFd<'a>>; 3]),
}

impl<'a> Stdio<'a> {
    /// With a terminal: opens a pair in the container's own devpts and sends the master to the launcher.
    pub fn prepare(process: &Process, handles: &Handles<'a>, report: &OwnedFd) -> Result<Self, Failure> {
        if !process.terminal {
            return Ok(Self::Descriptors(handles.stdio));
        }
        open_terminal(&process.user, report).map_err(|e| Failure::new("open a terminal", e))
    }

    pub fn terminal_path(&self) -> Option<&str> {
        match self {
            Self::Terminal { path, .. } => Some(path),
            Self::Descriptors(_) => None,
        }
    }

    fn install(&self, process: &Process) -> io::Result<()> {
        let ends: [Option<BorrowedFd<'_>>; 3] = match self {
            Self::Terminal { slave, .. } => [Some(slave.as_fd()); 3],
            Self::Descriptors(ends) => *ends,
        };
        rustix::process::setsid().map(drop).or_else(|e| if e == rustix::io::Errno::PERM { Ok(()) } else { Err(e) })?;
        if let Self::Terminal { slave, .. } = self {
            rustix::process::ioctl_tiocsctty(slave)?;
        }
        // Moved out of the way first, so that no end overwrites another one's number.
        let mut moved: Vec<OwnedFd> = Vec::new();
        for end in ends {
            let end = match end {
                Some(end) => rustix::io::fcntl_dupfd_cloexec(end, 3)?,
                None => rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                    .and_then(|null| rustix::io::fcntl_dupfd_cloexec(null, 3))?,
            };
            // So that a process without privileges can open /dev/stdout again.
            let _ = rustix::fs::fchown(&end, Some(Uid::from_raw(process.user.uid)), None);
            moved.push(end);
        }
        for (number, end) in moved.iter().enumerate() {
            // SAFETY: plain system call; descriptors 0 to 2 are this process's standard streams and owned by nobody else.
            if unsafe { libc::dup2(end.as_raw_fd(), number as i32) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

fn open_terminal(user: &crate::User, report: &OwnedFd) -> io::Result<Stdio<'static>> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    let path = rustix::pty::ptsname(&master, Vec::new())?.to_string_lossy().into_owned();
    let _ = rustix::fs::fchown(&slave, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(TTY_GROUP)));
    send_terminal(report, &master)?;
    Ok(Stdio::Terminal { slave, path })
}

/// The last steps; returns only when one of them fails.
pub(crate) fn become_program(process: &Process, stdio: Stdio<'_>) -> Result<Infallible, Failure> {
    for limit in &process.rlimits {
        set_rlimit(limit).map_err(|e| Failure::new(format!("set resource limit {}", limit.resource), e))?;
    }
    stdio.install(process).map_err(|e| Failure::new("connect the standard streams", e))?;
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(0o022)));
    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    make_cwd(cwd, process);
    // Entered before privileges go (a directory may be closed to the user, as with Docker) and, failing that, after.
    let entered = rustix::process::chdir(cwd).is_ok();
    let filter = || {
        crate::seccomp::install(process.bounding, process.seccomp_profile.as_ref()).map_err(|e| Failure::new("load the seccomp filter", e))
    };
    if let Some(profile) = &process.apparmor {
        enter_profile(profile).map_err(|e| Failure::new(format!("enter AppArmor profile {profile}"), e))?;
    }
    // Without no_new_privs this takes the privileges that are about to go.
    let filtered = process.seccomp || process.seccomp_profile.is_some();
    if filtered && !process.no_new_privileges {
        filter()?;
    }
    assume(process).map_err(|(step, e)| Failure::new(step, e))?;
    if !entered {
        rustix::process::chdir(cwd).map_err(|e| {
            let text = errno_text(&e.into());
            Failure::sentence("chdir", e.raw_os_error(), format!("chdir to cwd ({cwd:?}) set in config.json failed: {text}"))
        })?;
    }
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(|e| Failure::new("set no_new_privs", e))?;
        if filtered {
            filter()?;
        }
    }
    let program = find_program(process)?;
    sys::close_on_exec_from(3).map_err(|e| Failure::new("close descriptors", e))?;
    exec(&program, process)
}

/// The next exec of this thread enters the profile; kernels before 5.8 have one such file for all security modules.
fn enter_profile(profile: &str) -> io::Result<()> {
    let wanted = format!("exec {profile}");
    let own = std::fs::write("/proc/thread-self/attr/apparmor/exec", &wanted);
    own.or_else(|_| std::fs::write("/proc/thread-self/attr/exec", &wanted))
}

/// An image's working directory that does not exist is made, as Docker does.
fn make_cwd(cwd: &str, process: &Process) {
    if !std::path::Path::new(cwd).exists() && std::fs::create_dir_all(cwd).is_ok() {
        let (uid, gid) = (process.user.uid, process.user.gid);
        let _ = rustix::fs::chownat(CWD, cwd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::empty());
    }
}

fn set_rlimit(limit: &crate::Rlimit) -> io::Result<()> {
    let mut own = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `own` is valid for writing.
    if unsafe { libc::prlimit64(0, limit.resource, std::ptr::null(), &raw mut own) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let wanted = libc::rlimit64 { rlim_cur: limit.soft.min(limit.hard), rlim_max: limit.hard };
    // SAFETY: `wanted` is valid for reading.
    if unsafe { libc::prlimit64(0, limit.resource, &raw const wanted, std::ptr::null_mut()) } == 0 {
        return Ok(());
    }
    let hard = limit.hard.min(own.rlim_max);
    let clamped = libc::rlimit64 { rlim_cur: limit.soft.min(hard), rlim_max: hard };
    // SAFETY: `clamped` is valid for reading.
    if unsafe { libc::prlimit64(0, limit.resource, &raw const clamped, std::ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Becomes the user, with exactly the capabilities asked for, as far as they are ours to give.
fn assume(process: &Process) -> Result<(), (&'static str, io::Error)> {
    let step = |name: &'static str| move |e: rustix::io::Errno| (name, io::Error::from(e));
    for number in 0..64 {
        if process.bounding & (1_u64 << number) != 0 {
            continue;
        }
        // SAFETY: plain system call; an unknown number is EINVAL.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(("drop capabilities from the bounding set", error));
        }
    }
    let user = &process.user;
    rustix::thread::set_keep_capabilities(true).map_err(step("keep capabilities"))?;
    let groups: Vec<libc::gid_t> = user.groups.clone();
    // SAFETY: the pointer and the length are the vector's own.
    if unsafe { libc::setgroups(groups.len(), groups.as_ptr()) } < 0 {
        return Err(("set supplementary groups", io::Error::last_os_error()));
    }
    // SAFETY: plain system calls; this process has one thread, so that glibc's all-threads emulation has nothing to do.
    unsafe {
        if libc::setresgid(user.gid, user.gid, user.gid) < 0 {
            return Err(("set the group", io::Error::last_os_error()));
        }
        if libc::setresuid(user.uid, user.uid, user.uid) < 0 {
            return Err(("set the user", io::Error::last_os_error()));
        }
    }
    set_capabilities(process).map_err(step("set capabilities"))
}

fn set_capabilities(process: &Process) -> rustix::io::Result<()> {
    use rustix::thread::CapabilitySet;
    let own = rustix::thread::capabilities(None)?;
    let granted = CapabilitySet::from_bits_retain(process.bounding) & own.permitted;
    let ambient = CapabilitySet::from_bits_retain(process.ambient) & granted;
    rustix::thread::set_capabilities(
        None,
        rustix::thread::CapabilitySets { effective: granted, permitted: granted, inheritable: ambient },
    )?;
    rustix::thread::set_keep_capabilities(false)?;
    for number in 0..41_u64 {
        if ambient.bits() & (1 << number) != 0 {
            // SAFETY: plain system call.
            unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) };
        }
    }
    Ok(())
}

/// The file behind `args[0]`, by the same rules and in the same words as Go's exec.LookPath, which users know from runc.
fn find_program(process: &Process) -> Result<String, Failure> {
    let missing = |name: &str, errno: i32, why: &str| Failure::sentence("exec", errno, format!("exec: {name:?}: {why}"));
    let Some(name) = process.args.first().filter(|name| !name.is_empty()) else {
        return Err(missing("", libc::ENOENT, "no command specified"));
    };
    if name.contains('/') {
        return match check_program(name) {
            Ok(()) => Ok(name.clone()),
            Err(rustix::io::Errno::ACCESS) => Err(missing(name, libc::EACCES, "permission denied")),
            Err(rustix::io::Errno::ISDIR) => Err(missing(name, libc::EISDIR, "is a directory")),
            Err(error) => Err(missing(name, error.raw_os_error(), &format!("stat {name}: {}", errno_text(&error.into())))),
        };
    }
    let path = process.env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    path.split(':')
        .map(|directory| if directory.is_empty() { format!("./{name}") } else { format!("{directory}/{name}") })
        .find(|candidate| check_program(candidate).is_ok())
        .ok_or_else(|| missing(name, libc::ENOENT, "executable file not found in $PATH"))
}

fn check_program(path: &str) -> rustix::io::Result<()> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(rustix::io::Errno::ISDIR);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

fn exec(program: &str, process: &Process) -> Result<Infallible, Failure> {
    let text = |s: &str| {
        CString::new(OsStr::new(s).as_bytes())
            .map_err(|_| Failure::new("a string with a NUL byte", io::Error::from_raw_os_error(libc::EINVAL)))
    };
    let path = text(program)?;
    let args = process.args.iter().map(|s| text(s)).collect::<Result<Vec<_>, _>>()?;
    let env = process.env.iter().map(|s| text(s)).collect::<Result<Vec<_>, _>>()?;
    let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (args, env) = (pointers(&args), pointers(&env));
    // SAFETY: both arrays end with a null pointer and their strings live until the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    let error = io::Error::last_os_error();
    Err(Failure::sentence("exec", error.raw_os_error().unwrap_or(0), format!("exec {program}: {}", errno_text(&error))))
}
