//! A process of a few pages that keeps the DNS sockets open while the daemon starts again, however that ended: a pod's question waits in a
//! socket for some hundred milliseconds instead of being refused.
//!
//! The daemon stays connected to it by `<run>/dns.sock`. Whoever connects is given the sockets; a message instead of silence ends the
//! keeper, and so does a minute without a daemon.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, send, sendmsg, socket_with,
};

/// This process's first argument.
const ARGUMENT: &str = "keep-sockets";
/// What a daemon that starts again takes at most, on a bad day.
const PATIENCE: Duration = Duration::from_secs(60);
/// Two families with a listener and eight sockets each, and room.
const SOCKETS_MAX: usize = 64;
/// What the sockets are of, as text; keepers of other sockets are told to end.
const DESCRIPTION_BYTES_MAX: usize = 1024;

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("dns.sock")
}

/// A connection to the keeper; it waits for the next daemon once this is closed.
pub struct Kept(#[allow(dead_code)] OwnedFd);

/// The sockets of that description, where a keeper has them. One that has others ends.
pub fn take_over(run_dir: &Path, description: &str) -> io::Result<Option<(Kept, Vec<OwnedFd>)>> {
    let Some(keeper) = call(run_dir)? else { return Ok(None) };
    let mut text = [0; DESCRIPTION_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(&keeper, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            sockets.extend(rights);
        }
    }
    if text.get(..received.bytes) == Some(description.as_bytes()) {
        return Ok(Some((Kept(keeper), sockets)));
    }
    drop(sockets);
    end_of(&keeper)?;
    Ok(None)
}

/// Starts a keeper of these sockets.
pub fn start(run_dir: &Path, description: &str, sockets: &[OwnedFd]) -> io::Result<Kept> {
    let path = path(run_dir);
    let _ = fs::remove_file(&path);
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&listener, &SocketAddrUnix::new(&path)?)?;
    listen(&listener, 4)?;
    let inherited: Vec<i32> = std::iter::once(&listener).chain(sockets).map(AsRawFd::as_raw_fd).collect();
    let mut keeper = Command::new("/proc/self/exe");
    keeper.arg0("sternpost").arg(ARGUMENT).arg(&path).arg(description).args(inherited.iter().map(ToString::to_string)).env_clear();
    keeper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: only async-signal-safe calls between fork and exec: setsid, and fcntl on descriptors that the parent holds until spawn returns.
    unsafe {
        keeper.pre_exec(move || {
            rustix::process::setsid()?;
            for descriptor in &inherited {
                rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(*descriptor), rustix::io::FdFlags::empty())?;
            }
            Ok(())
        });
    }
    let mut child = keeper.spawn()?;
    // It ends after us, or by our successor's word: somebody has to take note of it meanwhile.
    std::thread::Builder::new().name("keeper".into()).stack_size(64 << 10).spawn(move || child.wait())?;
    let connection = call(run_dir)?.ok_or(io::ErrorKind::NotFound)?;
    Ok(Kept(connection))
}

/// Whether there is a keeper, and so ports that are taken but ours.
pub fn is_there(run_dir: &Path) -> bool {
    call(run_dir).is_ok_and(|keeper| keeper.is_some())
}

/// Ends the keeper, where there is one: the ports are free afterwards.
pub fn end(run_dir: &Path) -> io::Result<()> {
    call(run_dir)?.map_or(Ok(()), |keeper| end_of(&keeper))
}

fn end_of(keeper: &OwnedFd) -> io::Result<()> {
    send(keeper, b"end", SendFlags::NOSIGNAL)?;
    // It answers by being gone.
    let mut rest = [0; DESCRIPTION_BYTES_MAX];
    while matches!(rustix::net::recv(keeper, &mut rest[..], RecvFlags::empty()), Ok((_, 1..))) {}
    Ok(())
}

fn call(run_dir: &Path) -> io::Result<Option<OwnedFd>> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    match connect(&socket, &SocketAddrUnix::new(path(run_dir))?) {
        Ok(()) => Ok(Some(socket)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Runs the keeper where this process was started as one. Returns its exit code, or `None` for every other invocation.
pub fn dispatch() -> Option<i32> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let (path, description) = (PathBuf::from(arguments.next()?), arguments.next()?);
    // SAFETY: the daemon opened these descriptors for this process alone and passed their numbers; nobody else here owns them.
    let mut inherited = arguments.filter_map(|number| number.parse().ok()).map(|number: i32| unsafe { OwnedFd::from_raw_fd(number) });
    let listener = inherited.next()?;
    let result = keep(&listener, &description, &inherited.collect::<Vec<_>>());
    // A successor may have its own there by now.
    if result.is_ok() {
        let _ = fs::remove_file(path);
    }
    Some(i32::from(result.is_err()))
}

/// Until it is told to end, or nobody was connected for a while.
fn keep(listener: &OwnedFd, description: &str, sockets: &[OwnedFd]) -> io::Result<()> {
    let mut daemons: Vec<OwnedFd> = Vec::new();
    let mut alone_since = Instant::now();
    loop {
        let all = std::iter::once(listener).chain(&daemons);
        let mut waiting: Vec<PollFd<'_>> = all.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        let patience = PATIENCE.checked_sub(alone_since.elapsed()).unwrap_or_default();
        let limit = Timespec { tv_sec: patience.as_secs() as i64 + 1, tv_nsec: 0 };
        let ready = match poll(&mut waiting, if daemons.is_empty() { Some(&limit) } else { None }) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if ready == 0 && patience.is_zero() {
            return Ok(());
        }
        let [at_listener, at_daemons @ ..] = &waiting[..] else { return Ok(()) };
        let new = !at_listener.revents().is_empty();
        let spoke: Vec<bool> = at_daemons.iter().map(|daemon| !daemon.revents().is_empty()).collect();
        let mut spoke = spoke.into_iter();
        let mut told_to_end = false;
        daemons.retain(|daemon| {
            !spoke.next().unwrap_or_default() || {
                told_to_end |= matches!(rustix::net::recv(daemon, &mut [0; 8][..], RecvFlags::DONTWAIT), Ok((_, 1..)));
                false
            }
        });
        if told_to_end {
            return Ok(());
        }
        if new {
            let daemon = accept_with(listener, SocketFlags::CLOEXEC)?;
            if give(&daemon, description, sockets).is_ok() {
                daemons.push(daemon);
            }
        }
        if !daemons.is_empty() {
            alone_since = Instant::now();
        }
    }
}

fn give(to: &OwnedFd, description: &str, sockets: &[OwnedFd]) -> io::Result<()> {
    let all: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&all)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many sockets"));
    }
    sendmsg(to, &[IoSlice::new(description.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
