//! A blocking netlink socket of the calling thread's network namespace.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use netlink_sys::{Socket as RawSocket, SocketAddr, protocols};

use crate::wire::{self, Encoder, Message, Messages};

const RECEIVE_BYTES: usize = 256 << 10;
/// The kernel answers at once; this only keeps a lost answer from blocking a thread for ever.
const RECEIVE_SECONDS_MAX: libc::time_t = 30;

/// One netlink protocol, one caller at a time. Usable from any thread: the namespace is fixed when it is opened.
#[derive(Debug)]
pub struct Socket {
    inner: RawSocket,
    /// Sequence number of the next message; answers are matched by it.
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// For nftables and conntrack.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(protocols::NETLINK_NETFILTER)
    }
    /// For links, addresses, routes and neighbours.
    pub fn route() -> io::Result<Self> {
        Self::open(protocols::NETLINK_ROUTE)
    }
    /// The same for the network namespace that `socket`, a fresh rtnetlink socket, was opened in.
    pub fn adopt_route(socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned, and given away here.
        Self::set_up(unsafe { RawSocket::from_raw_fd(socket.into_raw_fd()) })
    }
    fn open(protocol: isize) -> io::Result<Self> {
        Self::set_up(RawSocket::new(protocol)?)
    }
    fn set_up(mut inner: RawSocket) -> io::Result<Self> {
        inner.bind_auto()?;
        inner.connect(&SocketAddr::new(0, 0))?;
        // Errors without a copy of the refused message, which may be 64 KB.
        inner.set_cap_ack(true)?;
        let timeout = libc::timeval { tv_sec: RECEIVE_SECONDS_MAX, tv_usec: 0 };
        set_option(&inner, libc::SO_RCVTIMEO, &timeout)?;
        Ok(Self { inner, sequence: 1, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Reserves `count` consecutive sequence numbers and returns the first; zero is never used.
    pub fn sequences(&mut self, count: u32) -> u32 {
        if self.sequence.checked_add(count).is_none() {
            self.sequence = 1;
        }
        let first = self.sequence;
        self.sequence += count.max(1);
        first
    }

    /// Sends everything in one datagram, however large.
    pub fn send(&mut self, encoder: &Encoder) -> io::Result<()> {
        if encoder.overflowed() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a netlink attribute is longer than 65,535 bytes"));
        }
        let bytes = encoder.bytes();
        // The kernel accounts twice the payload and some; forcing needs CAP_NET_ADMIN, which everything here needs anyway.
        if bytes.len() > 100 << 10 {
            let wanted = libc::c_int::try_from(bytes.len() + (64 << 10)).unwrap_or(libc::c_int::MAX / 2);
            set_option(&self.inner, libc::SO_SNDBUFFORCE, &wanted)?;
        }
        let sent = self.inner.send(bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::WriteZero, "netlink datagram cut short")) }
    }

    /// Hands one datagram's messages to `each` until it says it has enough.
    pub fn receive(&mut self, mut each: impl FnMut(Message<'_>) -> bool) -> io::Result<()> {
        loop {
            let mut window = &mut self.buffer[..];
            let length = match self.inner.recv(&mut window, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            for message in Messages(&self.buffer[..length.min(self.buffer.len())]) {
                if each(message) {
                    return Ok(());
                }
            }
        }
    }

    /// Throws away what is still queued from an earlier exchange.
    pub fn drain(&mut self) {
        loop {
            let mut window = &mut self.buffer[..];
            if self.inner.recv(&mut window, libc::MSG_DONTWAIT).is_err() {
                return;
            }
        }
    }

    /// Asks for a dump and hands every message of it to `each`. `body` writes the protocol header and filters.
    pub fn dump(&mut self, kind: u16, body: impl FnOnce(&mut Encoder), mut each: impl FnMut(Message<'_>)) -> io::Result<()> {
        let sequence = self.sequences(1);
        let mut encoder = Encoder::new();
        encoder.message(kind, wire::REQUEST | wire::DUMP, sequence, body);
        self.drain();
        self.send(&encoder)?;
        let mut failure = 0;
        self.receive(|message| {
            if message.sequence != sequence {
                return false;
            }
            match (message.kind, message.errno()) {
                (_, Some(errno)) => {
                    failure = errno;
                    true
                }
                (wire::DONE, _) => true,
                _ => {
                    each(message);
                    false
                }
            }
        })?;
        if failure == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failure)) }
    }
}

fn set_option<T>(socket: &RawSocket, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is a live, plain C value of exactly the length passed, and the descriptor is owned by `socket`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            std::mem::size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
