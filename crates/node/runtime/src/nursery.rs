//! The daemon's end of the process that shims are forked from, see `shim::nursery`.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::protocol;
use crate::shim::{self, Spawn, Spawned, TITLE_BYTES};
use crate::state::lock;

/// Started when it is first needed, and again if it should end.
#[derive(Default)]
pub struct Nursery(Mutex<Option<Running>>);

struct Running {
    socket: OwnedFd,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It reads the end of its socket and goes.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

impl Nursery {
    /// Forks a shim for `directory` that listens on `listener`. Blocking.
    pub fn spawn(&self, exe: &Path, cgroup_root: &str, directory: &Path, listener: OwnedFd, log: OwnedFd) -> std::io::Result<()> {
        let mut nursery = lock(&self.0);
        for last_try in [false, true] {
            if nursery.is_none() {
                *nursery = Some(start(exe, cgroup_root)?);
            }
            let asked = nursery.as_ref().map(|running| ask(running, directory, &listener, &log));
            match asked {
                Some(Ok(Spawned { result })) => return result.map(drop).map_err(std::io::Error::other),
                Some(Err(error)) if last_try => return Err(error),
                _ => *nursery = None,
            }
        }
        Ok(())
    }
}

fn start(exe: &Path, cgroup_root: &str) -> std::io::Result<Running> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let child = Command::new(exe)
        .arg0("sternpost")
        .args([shim::NURSERY_ARGUMENT, cgroup_root, &" ".repeat(TITLE_BYTES)])
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()?;
    Ok(Running { socket: ours, child })
}

fn ask(running: &Running, directory: &Path, listener: &OwnedFd, log: &OwnedFd) -> std::io::Result<Spawned> {
    let spawn = Spawn { directory: directory.display().to_string() };
    let state = std::fs::File::open(directory)?;
    protocol::send(&running.socket, &spawn, &[listener.as_fd(), log.as_fd(), state.as_fd()])?;
    let answer = protocol::receive(&running.socket)?;
    answer.map(|(spawned, _)| spawned).ok_or_else(|| std::io::ErrorKind::ConnectionReset.into())
}
