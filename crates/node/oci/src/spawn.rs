//! The launcher's side: descriptors in, a child out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::channel::{self, Channel};
use crate::{PidNamespace, Process, Spec, child, sys};

/// Everything with a name on the host, as descriptors.
#[derive(Default)]
pub struct Handles<'a> {
    /// The container's root: a mount that is attached nowhere yet.
    pub rootfs: Option<BorrowedFd<'a>>,
    /// Detached mounts for [`crate::Source::Tree`].
    pub trees: &'a [OwnedFd],
    /// `cgroup.procs` of every v1 hierarchy to join, see `cgroups::Cgroup::join_fds`.
    pub join: &'a [OwnedFd],
    /// The v2 control group to be born in.
    pub birthplace: Option<BorrowedFd<'a>>,
    /// Standard input, output, error; unused with a terminal.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// For [`PidNamespace::Join`].
    pub pid_namespace: Option<BorrowedFd<'a>>,
    /// The launcher's own PID namespace, to return to after a child was born in another one.
    pub own_pid_namespace: Option<BorrowedFd<'a>>,
}

/// A child on its way.
#[derive(Debug)]
pub struct Started {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub channel: Channel,
}

/// Starts a container's first process. Returns at once; the [`Channel`] says how it went.
///
/// # Safety
/// The calling process must be single-threaded.
pub unsafe fn spawn(spec: &Spec, handles: &Handles<'_>) -> io::Result<Started> {
    let flags = libc::CLONE_NEWNS | if spec.pid_namespace == PidNamespace::New { libc::CLONE_NEWPID } else { 0 };
    if spec.pid_namespace == PidNamespace::Join && handles.pid_namespace.is_none() {
        return Err(io::Error::other("no PID namespace to join was given"));
    }
    let join = handles.pid_namespace.filter(|_| spec.pid_namespace == PidNamespace::Join);
    // SAFETY: passed on to the caller.
    unsafe { fork(flags, join, handles, |report| child::first(spec, handles, report)) }
}

/// Starts one more process in the container whose first process is behind `target` (a pidfd).
///
/// # Safety
/// The calling process must be single-threaded.
pub unsafe fn enter(process: &Process, target: BorrowedFd<'_>, handles: &Handles<'_>) -> io::Result<Started> {
    // SAFETY: passed on to the caller.
    unsafe { fork(0, handles.pid_namespace, handles, |report| child::further(process, target, handles, report)) }
}

/// # Safety
/// The calling process must be single-threaded.
unsafe fn fork(
    flags: i32,
    join: Option<BorrowedFd<'_>>,
    handles: &Handles<'_>,
    body: impl FnOnce(&OwnedFd) -> Result<std::convert::Infallible, crate::Failure>,
) -> io::Result<Started> {
    let (channel, theirs) = channel::pair()?;
    if let Some(namespace) = join {
        sys::setns(namespace, libc::CLONE_NEWPID)?;
    }
    // SAFETY: single-threaded by contract.
    let forked = unsafe { sys::fork(flags, handles.birthplace) };
    match forked {
        Ok(None) => {
            drop(channel);
            let Err(failure) = body(&theirs);
            channel::send_failure(&theirs, &failure);
            // SAFETY: ends the child at once, without running destructors or exit handlers of the launcher's copy.
            unsafe { libc::_exit(127) }
        }
        other => {
            if let (Some(_), Some(own)) = (join, handles.own_pid_namespace) {
                sys::setns(own.as_fd(), libc::CLONE_NEWPID)?;
            }
            let (pid, pidfd) = other?.ok_or_else(|| io::Error::other("clone3 returned nothing"))?;
            Ok(Started { pid, pidfd, channel })
        }
    }
}
