//! A container's output on its way to the log and to whoever is attached.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::log::{Log, Stream};

/// Read at once. On the stack: the shim's heap stays small.
const READ_BYTES: usize = 16 << 10;

/// Where a copy of the output goes.
struct Sink {
    end: OwnedFd,
    /// Not yet taken by the reader; while there is some, the source is not read: a slow reader slows the container down, as with containerd.
    pending: Vec<u8>,
}

/// One source and its sinks.
pub struct Output {
    pub source: OwnedFd,
    pub stream: Stream,
    sinks: Vec<Sink>,
}

impl Output {
    pub fn new(source: OwnedFd, stream: Stream) -> io::Result<Self> {
        nonblocking(&source)?;
        Ok(Self { source, stream, sinks: Vec::new() })
    }

    pub fn attach(&mut self, end: OwnedFd) -> io::Result<()> {
        nonblocking(&end)?;
        self.sinks.push(Sink { end, pending: Vec::new() });
        Ok(())
    }

    /// The sinks that must take their bytes before anything more is read.
    pub fn blocked(&self) -> impl Iterator<Item = &OwnedFd> {
        self.sinks.iter().filter(|sink| !sink.pending.is_empty()).map(|sink| &sink.end)
    }

    /// Gives waiting bytes to the sinks.
    pub fn flush(&mut self) {
        self.sinks.retain_mut(|sink| {
            let pending = std::mem::take(&mut sink.pending);
            deliver(sink, &pending)
        });
    }

    /// Reads once; false at the end of the source.
    pub fn pump(&mut self, log: &mut Log, nanos: i64) -> bool {
        let mut bytes = [0_u8; READ_BYTES];
        match rustix::io::read(&self.source, &mut bytes) {
            Ok(0) => false,
            Ok(length) => {
                let bytes = bytes.get(..length).unwrap_or_default();
                log.append(self.stream, bytes, nanos);
                self.sinks.retain_mut(|sink| deliver(sink, bytes));
                true
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
            // A terminal whose last user is gone says EIO.
            Err(_) => false,
        }
    }

    /// Reads what is there now, up to a bound, without waiting.
    pub fn drain(&mut self, log: &mut Log, nanos: i64) {
        for _ in 0..4096 {
            let mut ready = [rustix::event::PollFd::new(&self.source, rustix::event::PollFlags::IN)];
            let none = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
            match rustix::event::poll(&mut ready, Some(&none)) {
                Ok(1..) if self.pump(log, nanos) => {}
                _ => return,
            }
        }
    }
}

fn deliver(sink: &mut Sink, mut bytes: &[u8]) -> bool {
    if !sink.pending.is_empty() {
        sink.pending.extend_from_slice(bytes);
        return true;
    }
    while !bytes.is_empty() {
        match rustix::io::write(&sink.end, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::AGAIN) => {
                sink.pending.extend_from_slice(bytes);
                return true;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

pub fn nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
