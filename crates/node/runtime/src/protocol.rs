//! What the daemon and a pod's shim say to each other.
//!
//! One sequenced-packet Unix socket per pod; a packet is one JSON message with descriptors beside it (SCM_RIGHTS). A message too
//! large for a packet travels in a memory file, as the first descriptor. Requests carry a number that the reply repeats; events
//! come unasked. Both ends are root on this machine and check it (SO_PEERCRED), yet neither trusts a length.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Larger messages go by memory file.
const INLINE_BYTES_MAX: usize = 16 << 10;
/// The kernel's own limit on descriptors per packet.
pub const DESCRIPTORS_MAX: usize = 253;
/// A pod with more configuration than this is refused.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    pub number: u64,
    pub request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first request of a new shim. Reply: [`Reply::Ready`] with the network namespace, the user namespace if it has its own, and an
    /// rtnetlink socket of the network namespace.
    Setup(Setup),
    /// What runs here? Reply: [`Reply::Hello`] with the namespaces.
    Hello,
    /// Descriptors: root, log, then `trees`, `join`, the v2 group if `birthplace`, the kill file if `kill`, and the host's
    /// mount namespace if `external`.
    Start(Box<Start>),
    /// Descriptors: standard input, output, error as far as present. Reply: with the terminal, if any.
    Exec {
        exec: u64,
        container: String,
        process: Box<oci::Process>,
        stdio: [bool; 3],
    },
    SignalExec {
        exec: u64,
        signal: i32,
    },
    /// To the container's first process.
    Signal {
        container: String,
        signal: i32,
    },
    /// Descriptors: where to copy standard output and error to, as far as present. Reply: with the input or terminal if `stdin`.
    Attach {
        container: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Descriptor: the new log file.
    ReopenLog {
        container: String,
    },
    /// Reply: with a TCP socket of the pod's network namespace.
    Socket {
        ipv6: bool,
    },
    /// Forget an exited container.
    Forget {
        container: String,
    },
    /// Kill what runs and exit.
    Shutdown,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Setup {
    pub hostname: String,
    pub network_namespace: bool,
    pub ipc_namespace: bool,
    /// One PID namespace for the whole pod, kept by an init of our own.
    pub shared_pid_namespace: bool,
    pub sysctls: Vec<(String, String)>,
    pub shm_bytes: u64,
    /// A user namespace for the pod.
    #[serde(default)]
    pub users: Option<IdRange>,
}

/// The host's ids that a user namespace's ids from 0 on stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub first: u32,
    pub length: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    pub container: String,
    pub spec: oci::Spec,
    /// Join this container's PID namespace instead of the pod's.
    pub pid_target: Option<String>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub trees: usize,
    pub join: usize,
    pub birthplace: bool,
    pub kill: bool,
    /// Another program makes the container.
    #[serde(default)]
    pub external: Option<oci::External>,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    Reply { number: u64, reply: Result<Reply, oci::Failure> },
    Exited { container: String, exit: Exit },
    ExecExited { exec: u64, code: i32 },
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// `shim` is the shim's process id.
    Ready {
        shim: i32,
    },
    Hello {
        shim: i32,
        running: Vec<Running>,
    },
    Started {
        pid: i32,
        started_at: i64,
    },
    Done,
}

/// A container as its shim knows it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Running {
    pub container: String,
    pub pid: i32,
    pub started_at: i64,
    pub exit: Option<Exit>,
}

/// How a container ended; also the content of its `exit` file. Times are nanoseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 128 + signal when killed by one.
    pub code: i32,
    pub started_at: i64,
    pub finished_at: i64,
    /// Set when the container never ran.
    pub reason: String,
    pub message: String,
}

/// Sends one message. `WouldBlock` when the other side does not read and the socket does not wait.
pub fn send(socket: impl AsFd, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.len() >= DESCRIPTORS_MAX {
        return Err(io::Error::other(format!("{} mounts and descriptors are more than the kernel passes at once", descriptors.len())));
    }
    let mut bytes = vec![0_u8];
    serde_json::to_writer(&mut bytes, message)?;
    let mut all: Vec<BorrowedFd<'_>> = Vec::with_capacity(descriptors.len() + 1);
    let memory;
    if bytes.len() > INLINE_BYTES_MAX {
        let fd = rustix::fs::memfd_create("message", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut file = std::fs::File::from(fd);
        file.write_all(bytes.get(1..).unwrap_or_default())?;
        memory = OwnedFd::from(file);
        all.push(memory.as_fd());
        bytes = vec![1];
    }
    all.extend_from_slice(descriptors);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !all.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&all)) {
        return Err(io::Error::other("too many descriptors"));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes one message; `None` at the end of the connection.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = [0_u8; INLINE_BYTES_MAX + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    match bytes.get(..received.bytes).unwrap_or_default() {
        [] => Ok(None),
        [0, inline @ ..] => Ok(Some((serde_json::from_slice(inline)?, descriptors))),
        _ if descriptors.is_empty() => Err(io::Error::other("a message without its memory file")),
        _ => {
            let mut file = std::fs::File::from(descriptors.remove(0));
            io::Seek::rewind(&mut file)?;
            let mut text = Vec::new();
            file.take(MESSAGE_BYTES_MAX).read_to_end(&mut text)?;
            Ok(Some((serde_json::from_slice(&text)?, descriptors)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn small_and_large_messages_arrive_with_their_descriptors() {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        for length in [0, 10, INLINE_BYTES_MAX, 3 << 20] {
            let text = "x".repeat(length);
            send(&a, &text, &[a.as_fd(), b.as_fd()]).unwrap();
            let (got, descriptors): (String, _) = receive(&b).unwrap().unwrap();
            assert_eq!((got, descriptors.len()), (text, 2));
        }
        drop(a);
        assert!(receive::<String>(&b).unwrap().is_none());
    }
}
