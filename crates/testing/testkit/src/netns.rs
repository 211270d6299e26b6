//! Network namespaces that live as long as their descriptor. They need root.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::{io, thread};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// A new network namespace, alive as long as the descriptor.
///
/// # Errors
/// Of `unshare`: without root it is refused.
pub fn namespace() -> io::Result<OwnedFd> {
    let made = thread::spawn(|| {
        // SAFETY: only this thread's network namespace changes, and the thread ends here.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    });
    made.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Runs `work` on a thread of that namespace and hands on what it returns, a panic too.
///
/// # Panics
/// When the kernel does not let the thread in.
pub fn inside<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("a network namespace is entered by root alone");
            work()
        });
        there.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}
