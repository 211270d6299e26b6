//! System calls that no crate wraps.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Mount attribute bits of mount_setattr(2).
pub mod attr {
    pub const RDONLY: u64 = 0x1;
    pub const NOSUID: u64 = 0x2;
    pub const NODEV: u64 = 0x4;
    pub const NOEXEC: u64 = 0x8;
    pub(super) const IDMAP: u64 = 0x10_0000;
}

/// libc's own constant of this name overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes a mount's attributes and its propagation (`libc::MS_PRIVATE` and so on; 0 leaves it), and those of all below when `recursive`. An empty path
/// means `dirfd` itself.
pub fn mount_setattr(dirfd: impl AsFd, path: &CStr, recursive: bool, set: u64, propagation: u64) -> io::Result<()> {
    let attr = MountAttr { set, propagation, ..MountAttr::default() };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: path and attr are valid for the call; the size is attr's own.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, dirfd.as_fd().as_raw_fd(), path.as_ptr(), flags, &attr, std::mem::size_of::<MountAttr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Every file of a detached tree, mounts below it included, belongs to whom the user namespace `users` maps its owner to. Not every file
/// system can do that: `EINVAL`.
pub fn idmap(tree: impl AsFd, users: impl AsFd) -> io::Result<()> {
    let attr = MountAttr { set: attr::IDMAP, userns_fd: users.as_fd().as_raw_fd() as u64, ..MountAttr::default() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: path and attr are valid for the call; the size is attr's own.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree.as_fd().as_raw_fd(), c"".as_ptr(), flags, &attr, std::mem::size_of::<MountAttr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Forks with namespaces: `None` in the child, process id and its pidfd in the parent. With `cgroup`, the child is born in
/// that v2 group.
///
/// # Safety
/// The calling process must be single-threaded: the child goes on with ordinary code, allocation included.
pub unsafe fn fork(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<(i32, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags as u64 | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    // A sibling's end is told as this process's own would be.
    args.exit_signal = if flags & libc::CLONE_PARENT == 0 { libc::SIGCHLD as u64 } else { 0 };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no stack and no CLONE_VM: the child gets a copy of this one's memory, like fork; single-threaded by contract.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, std::mem::size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        // SAFETY: the kernel stored a new descriptor that nobody else owns.
        pid => Ok(Some((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))),
    }
}

/// As [`fork`], but the new namespaces belong to the user namespace behind `users`, whose root the child is. A go-between enters it after `prepare`,
/// and its child is this process's own.
///
/// # Safety
/// The calling process must be single-threaded.
pub unsafe fn fork_within(
    users: BorrowedFd<'_>,
    flags: i32,
    cgroup: Option<BorrowedFd<'_>>,
    prepare: impl FnOnce() -> io::Result<()>,
) -> io::Result<Option<(i32, OwnedFd)>> {
    let (ours, theirs) = crate::channel::pair()?;
    // SAFETY: passed on to the caller.
    if unsafe { fork(0, cgroup) }?.is_some() {
        drop(theirs);
        return crate::channel::take_birth(&ours).map(Some);
    }
    drop(ours);
    // SAFETY: passed on to the caller.
    let born = prepare().and_then(|()| become_root_of(users)).and_then(|()| unsafe { fork(flags | libc::CLONE_PARENT, None) });
    if let Ok(None) = born {
        return Ok(None);
    }
    crate::channel::send_birth(&theirs, born.and_then(|child| child.ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))));
    // SAFETY: ends the go-between at once, without running destructors or exit handlers of the launcher's copy.
    unsafe { libc::_exit(0) }
}

/// Enters the user namespace and is its root.
pub fn become_root_of(users: BorrowedFd<'_>) -> io::Result<()> {
    setns(users, libc::CLONE_NEWUSER)?;
    become_root()
}

/// The root of the user namespace that this process is in, where it has all privileges but may still be nobody.
pub fn become_root() -> io::Result<()> {
    // SAFETY: plain system calls; this process has one thread, so that glibc's all-threads emulation has nothing to do.
    let failed = unsafe { libc::setgroups(0, std::ptr::null()) < 0 || libc::setresgid(0, 0, 0) < 0 || libc::setresuid(0, 0, 0) < 0 };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Joins the namespaces in `flags` of the process behind a pidfd, or the one namespace behind a namespace descriptor.
pub fn setns(fd: impl AsFd, flags: i32) -> io::Result<()> {
    // SAFETY: plain system call on a borrowed descriptor.
    if unsafe { libc::setns(fd.as_fd().as_raw_fd(), flags) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: plain system call.
    if unsafe { libc::unshare(flags) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Every descriptor from `first` on is closed by the next exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: plain system call.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// All signals unblocked and at their defaults, which exec does not do for blocked and ignored ones.
pub fn reset_signals() {
    // SAFETY: valid, initialised arguments; failures (SIGKILL, SIGSTOP, reserved numbers) are expected and harmless.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}
