//! The first process of a pod's shared PID namespace: it only reaps.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Forks the init, in the pod's user namespace if it has one; the pidfd leads to its PID namespace.
///
/// # Safety
/// The calling process must be single-threaded.
pub unsafe fn spawn(users: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller.
    let forked = unsafe {
        match users {
            Some(users) => oci::sys::fork_within(users, libc::CLONE_NEWPID, None, || Ok(())),
            None => oci::sys::fork(libc::CLONE_NEWPID, None),
        }
    };
    match forked? {
        Some((_, pidfd)) => Ok(pidfd),
        None => reap_forever(),
    }
}

fn reap_forever() -> ! {
    // SAFETY: plain system calls on initialised arguments. The shim's descriptors are closed: holding its listener or pipes open would keep
    // others waiting for their end.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_NAME, c"sternpost-init".as_ptr());
        let mut child: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut child);
        libc::sigaddset(&raw mut child, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const child, std::ptr::null_mut());
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            libc::sigwaitinfo(&raw const child, std::ptr::null_mut());
        }
    }
}
