//! The process that shims are forked from.
//!
//! A statically linked, position-independent binary relocates itself at every exec: some megabytes of private memory and milliseconds per shim. So one
//! process is exec'd per daemon, and shims are forked from it: they share its pages. It lives in the control group of the shims, so that no
//! shim has to be moved, and ends with the daemon; its shims stay.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::Shim;
use crate::protocol;

/// Room for a shim's command line in the nursery's own.
pub const TITLE_BYTES: usize = 256;

/// Fork a shim. Descriptors: its listener, its error log and its directory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spawn {
    pub directory: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Spawned {
    pub result: Result<i32, oci::Failure>,
}

/// Serves until the daemon is gone.
pub fn serve(cgroup_root: &str) -> io::Result<()> {
    let socket = super::standard_input()?;
    rustix::process::setsid().map(drop).or_else(|e| if e == rustix::io::Errno::PERM { Ok(()) } else { Err(e) })?;
    super::sandbox::join_shims(cgroup_root)?;
    let title = Title::find()?;
    super::sandbox::slim().map_err(|error| io::Error::other(format!("make the shims' mount namespace: {error}")))?;
    // SAFETY: plain system call: the kernel reaps the shims, of whose end the daemon hears by their sockets.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    while let Some((Spawn { directory }, descriptors)) = protocol::receive(&socket)? {
        let result = fork(&directory, descriptors, &socket, &title).map_err(|e| oci::Failure::new("fork a shim", e));
        protocol::send(&socket, &Spawned { result }, &[])?;
    }
    Ok(())
}

fn fork(directory: &str, descriptors: Vec<OwnedFd>, socket: &OwnedFd, title: &Title) -> io::Result<i32> {
    let mut descriptors = descriptors.into_iter();
    let missing = || io::Error::other("a descriptor is missing");
    let mut next = || descriptors.next().ok_or_else(missing);
    let (listener, log, state) = (next()?, next()?, next()?);
    // SAFETY: the nursery has one thread.
    if let Some((pid, _)) = unsafe { oci::sys::fork(0, None) }? {
        return Ok(pid);
    }
    title.set(directory);
    // SAFETY: plain system calls. The nursery's socket is closed so that the nursery's end is seen; it is not used any more in this process, which
    // ends without running destructors. Descriptor 2 is this process's standard error, which nobody owns.
    unsafe {
        libc::close(socket.as_raw_fd());
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::dup2(log.as_raw_fd(), 2);
    }
    drop(log);
    let code = match Shim::open(state, listener).and_then(|mut shim| shim.serve()) {
        Ok(()) => 0,
        Err(error) => {
            super::complain(format_args!("{error}"));
            1
        }
    };
    // SAFETY: ends this process at once.
    unsafe { libc::_exit(code) }
}

/// Where the kernel reads this process's command line: a shim writes its own there, for `ps`.
struct Title {
    start: usize,
    length: usize,
}

impl Title {
    fn find() -> io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        // The name in parentheses may contain anything; field 3 follows the last one.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).and_then(|f| f.parse::<usize>().ok());
        match (field(48), field(49)) {
            (Some(start), Some(end)) if start != 0 && end > start => Ok(Self { start, length: end - start }),
            _ => Ok(Self { start: 0, length: 0 }),
        }
    }

    fn set(&self, directory: &str) {
        let mut title = format!("sternpost\0{}\0{directory}", super::ARGUMENT).into_bytes();
        if self.length == 0 {
            return;
        }
        title.resize(self.length, 0);
        // SAFETY: the kernel put the arguments there, writable, on this process's stack; std has copied nothing that refers to them but the
        // argument list itself, which is not read after this.
        unsafe { std::ptr::copy_nonoverlapping(title.as_ptr(), self.start as *mut u8, self.length) };
    }
}
