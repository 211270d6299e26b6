//! What a child says before it becomes the program.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

/// The first step that failed in a child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What was being done, such as `mount /proc`.
    pub step: String,
    pub errno: i32,
    /// The whole sentence for the user.
    pub message: String,
}

impl Failure {
    pub fn new(step: impl Into<String>, error: impl Into<io::Error>) -> Self {
        let (step, error) = (step.into(), error.into());
        Self { errno: error.raw_os_error().unwrap_or(0), message: format!("{step}: {}", errno_text(&error)), step }
    }
    pub(crate) fn sentence(step: &str, errno: i32, message: String) -> Self {
        Self { step: step.to_owned(), errno, message }
    }
}

/// The kernel's words for an error as other runtimes print them: lower case, no number.
pub fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// What the launcher hears.
#[derive(Debug)]
pub enum Progress {
    /// The master side of the process's terminal.
    Terminal(OwnedFd),
    Failed(Failure),
    /// Another program made the process; it is the launcher's child by now.
    Adopted(i32, OwnedFd),
    /// End of file: the program runs.
    Running,
}

/// The launcher's end; readable when the child has said something.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(crate) fn pair() -> io::Result<(Channel, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Channel(ours), theirs))
}

pub(crate) fn send_terminal(channel: &OwnedFd, master: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(channel, &[IoSlice::new(b"T")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

pub(crate) fn send_failure(channel: &OwnedFd, failure: &Failure) {
    if let Ok(text) = serde_json::to_vec(failure) {
        let _ = rustix::net::send(channel, &text, SendFlags::NOSIGNAL);
    }
}

/// Tells the launcher of a process that became its child. One that has ended by now may be gone altogether: then the descriptor is of no use.
pub(crate) fn send_adopted(channel: &OwnedFd, pid: i32) -> io::Result<()> {
    let open = |pid: Option<rustix::process::Pid>| {
        rustix::process::pidfd_open(pid.ok_or(rustix::io::Errno::SRCH)?, rustix::process::PidfdFlags::empty())
    };
    let pidfd = open(rustix::process::Pid::from_raw(pid)).or_else(|_| open(Some(rustix::process::getpid())))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [pidfd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(channel, &[IoSlice::new(&pid.to_le_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Tells the launcher of a process that a go-between gave birth to.
pub(crate) fn send_birth(channel: &OwnedFd, born: io::Result<(i32, OwnedFd)>) {
    let _ = match born {
        Ok((pid, pidfd)) => {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = [pidfd.as_fd()];
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
            sendmsg(channel, &[IoSlice::new(&pid.to_le_bytes())], &mut control, SendFlags::NOSIGNAL)
        }
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            sendmsg(channel, &[IoSlice::new(&(-errno).to_le_bytes())], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
        }
    };
}

/// What [`send_birth`] told.
pub(crate) fn take_birth(channel: &Channel) -> io::Result<(i32, OwnedFd)> {
    let mut bytes = [0_u8; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(&channel.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let pidfd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    match (i32::from_le_bytes(bytes), pidfd) {
        _ if received.bytes != bytes.len() => Err(io::Error::from_raw_os_error(libc::ECHILD)),
        (pid, Some(pidfd)) if pid > 0 => Ok((pid, pidfd)),
        (errno, _) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
    }
}

/// The descriptor that comes with the next message.
pub(crate) fn receive_descriptor(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut bytes = [0_u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

impl Channel {
    /// Takes one message; blocks when there is none.
    pub fn receive(&self) -> io::Result<Progress> {
        let mut bytes = [0_u8; 8192];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let master = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        match (bytes.get(..received.bytes).unwrap_or_default(), master) {
            ([], _) => Ok(Progress::Running),
            (&[a, b, c, d], Some(pidfd)) => Ok(Progress::Adopted(i32::from_le_bytes([a, b, c, d]), pidfd)),
            (_, Some(master)) => Ok(Progress::Terminal(master)),
            (text, None) => serde_json::from_slice(text).map(Progress::Failed).map_err(io::Error::other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_arrives_with_its_step_and_silence_means_running() {
        let (ours, theirs) = pair().unwrap();
        let failure = Failure::new("mount /proc", io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(failure.to_string(), "mount /proc: operation not permitted");
        send_failure(&theirs, &failure);
        drop(theirs);
        assert!(matches!(ours.receive().unwrap(), Progress::Failed(got) if got == failure));
        assert!(matches!(ours.receive().unwrap(), Progress::Running));
    }
}
