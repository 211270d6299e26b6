//! The child's side: an ordered list of steps that ends in exec.

use std::convert::Infallible;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::channel::Failure;
use crate::{Handles, Process, Spec, process, rootfs, sys};

/// A container's first process, born in its new mount and PID namespaces.
pub(crate) fn first(spec: &Spec, handles: &Handles<'_>, report: &OwnedFd) -> Result<Infallible, Failure> {
    sys::reset_signals();
    hide();
    // In a user namespace the go-between did it.
    if handles.users.is_none() {
        prepare(&spec.process, handles).map_err(|e| Failure::new("join the control group", e))?;
    }
    if spec.cgroup_namespace {
        sys::unshare(libc::CLONE_NEWCGROUP).map_err(|e| Failure::new("unshare cgroup namespace", e))?;
    }
    rootfs::enter(spec, handles)?;
    let stdio = process::Stdio::prepare(&spec.process, handles, report)?;
    if spec.process.terminal {
        rootfs::bind_console(&stdio)?;
    }
    if spec.root_readonly {
        sys::mount_setattr(rustix::fs::CWD, c"/", false, sys::attr::RDONLY, 0).map_err(|e| Failure::new("make the root read-only", e))?;
    }
    process::become_program(&spec.process, stdio)
}

/// A further process in a running container.
pub(crate) fn further(process: &Process, target: BorrowedFd<'_>, handles: &Handles<'_>, report: &OwnedFd) -> Result<Infallible, Failure> {
    sys::reset_signals();
    hide();
    prepare(process, handles).map_err(|e| Failure::new("join the control group", e))?;
    let users = if handles.users.is_some() { libc::CLONE_NEWUSER } else { 0 };
    sys::setns(target, libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP | users)
        .map_err(|e| Failure::new("join the container's namespaces", e))?;
    if handles.users.is_some() {
        sys::become_root().map_err(|e| Failure::new("become root of the user namespace", e))?;
    }
    let stdio = process::Stdio::prepare(process, handles, report)?;
    process::become_program(process, stdio)
}

/// Until it becomes the program, this process is ours: nobody inside may trace it or open its executable through /proc, which is the
/// runtime's own (CVE-2019-5736). The exec takes this back.
pub(crate) fn hide() {
    // SAFETY: plain system call.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// What takes the launcher's own privileges.
pub(crate) fn prepare(process: &Process, handles: &Handles<'_>) -> io::Result<()> {
    for group in handles.join {
        rustix::io::write(group, b"0")?;
    }
    process::adjust_oom_score(process);
    Ok(())
}
