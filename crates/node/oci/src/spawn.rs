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
    /// `tasks` of every v1 hierarchy to join, see `cgroups::Cgroup::join_fds`.
    pub join: &'a [OwnedFd],
    /// The v2 control group to be born in.
    pub birthplace: Option<BorrowedFd<'a>>,
    /// Standard input, output, error; unused with a terminal.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// The user namespace of the pod, where it has one.
    pub users: Option<Users<'a>>,
    /// For [`PidNamespace::Join`].
    pub pid_namespace: Option<BorrowedFd<'a>>,
    /// The launcher's own PID namespace, to return to after a child was born in another one.
    pub own_pid_namespace: Option<BorrowedFd<'a>>,
}

/// A user namespace whose ids from 0 on are the host's from `first` on.
#[derive(Clone, Copy)]
pub struct Users<'a> {
    pub namespace: BorrowedFd<'a>,
    pub first: u32,
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
    own_streams(&spec.process, handles);
    let Some(users) = handles.users else {
        // SAFETY: passed on to the caller.
        return unsafe { fork(flags, join, handles, |report| child::first(spec, handles, report)) };
    };
    let (channel, theirs) = channel::pair()?;
    let prepare = || {
        child::hide();
        child::prepare(&spec.process, handles)?;
        join.map_or(Ok(()), |namespace| sys::setns(namespace, libc::CLONE_NEWPID))
    };
    // SAFETY: single-threaded by contract.
    match unsafe { sys::fork_within(users.namespace, flags, handles.birthplace, prepare) }? {
        None => {
            drop(channel);
            // SAFETY: this is the child, and the launcher's copy is not used again.
            unsafe { live(&theirs, |report| child::first(spec, handles, report)) }
        }
        Some((pid, pidfd)) => Ok(Started { pid, pidfd, channel }),
    }
}

/// Starts one more process in the container whose first process is behind `target` (a pidfd).
///
/// # Safety
/// The calling process must be single-threaded.
pub unsafe fn enter(process: &Process, target: BorrowedFd<'_>, handles: &Handles<'_>) -> io::Result<Started> {
    own_streams(process, handles);
    // SAFETY: passed on to the caller.
    unsafe { fork(0, handles.pid_namespace, handles, |report| child::further(process, target, handles, report)) }
}

/// So that a process without privileges can open /dev/stdout again. Where it has no user namespace it does that itself.
fn own_streams(process: &Process, handles: &Handles<'_>) {
    let Some(users) = handles.users else { return };
    let owner = rustix::fs::Uid::from_raw(users.first.saturating_add(process.user.uid));
    for end in handles.stdio.iter().flatten() {
        let _ = rustix::fs::fchown(end, Some(owner), None);
    }
}

/// The child's life until its exec, or its end.
///
/// # Safety
/// Must be called in a forked child, with no use of what its parent owns afterwards.
unsafe fn live(report: &OwnedFd, body: impl FnOnce(&OwnedFd) -> Result<std::convert::Infallible, crate::Failure>) -> ! {
    let Err(failure) = body(report);
    channel::send_failure(report, &failure);
    // SAFETY: ends the child at once, without running destructors or exit handlers of the launcher's copy.
    unsafe { libc::_exit(127) }
}

/// # Safety
/// The calling process must be single-threaded.
pub(crate) unsafe fn fork(
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
            // SAFETY: this is the child, and the launcher's copy is not used again.
            unsafe { live(&theirs, body) }
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
