//! Many datagrams with one system call each way: at a hundred thousand questions a second the calls are most of the work.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Taken in and sent out together.
pub const BATCH: usize = 32;
/// Larger questions do not exist outside TCP.
const DATAGRAM_BYTES_MAX: usize = 4096;

/// Where a datagram came from, as the kernel writes it.
type Name = libc::sockaddr_storage;

/// What came in with the last call. A page per datagram, of which the kernel backs those that were ever used.
pub struct Inbox {
    bytes: Vec<u8>,
    lengths: [usize; BATCH],
    names: Box<[Name; BATCH]>,
}

impl Inbox {
    pub fn new() -> Self {
        // SAFETY: all zeroes are a sockaddr_storage, of no family.
        let names = Box::new([unsafe { std::mem::zeroed() }; BATCH]);
        Self { bytes: vec![0; BATCH * DATAGRAM_BYTES_MAX], lengths: [0; BATCH], names }
    }

    /// Waits for at least one datagram; how many there are, at most [`BATCH`].
    pub async fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        socket.async_io(Interest::READABLE, || self.receive_now(rustix::fd::AsFd::as_fd(socket))).await
    }

    fn receive_now(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: all zeroes are an mmsghdr and an iovec without buffers.
        let (mut parts, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let buffers = self.bytes.chunks_exact_mut(DATAGRAM_BYTES_MAX);
        for (((header, part), buffer), name) in headers.iter_mut().zip(&mut parts).zip(buffers).zip(self.names.iter_mut()) {
            *part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = size_of::<Name>() as libc::socklen_t;
        }
        // SAFETY: every header points at a buffer, a name and a part of its own with their sizes, all of which outlive the call.
        let count =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), BATCH as u32, libc::MSG_DONTWAIT, std::ptr::null_mut()) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (length, header) in self.lengths.iter_mut().zip(&headers) {
            *length = header.msg_len as usize;
        }
        Ok(count)
    }

    /// Datagram `index` of the last call, and who sent it.
    pub fn get(&self, index: usize) -> Option<(&[u8], SocketAddr)> {
        let start = index * DATAGRAM_BYTES_MAX;
        let bytes = self.bytes.get(start..start + *self.lengths.get(index)?)?;
        Some((bytes, address(self.names.get(index)?)?))
    }
}

/// Answers to datagrams of an [`Inbox`], in the order they are to go.
#[derive(Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// The end of each answer in `bytes`, and which datagram it answers.
    letters: Vec<(usize, usize)>,
}

impl Outbox {
    /// Room for one more answer to datagram `index`: what `write` appends.
    pub fn answer(&mut self, index: usize, bytes: &[u8]) -> &mut [u8] {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.letters.push((self.bytes.len(), index));
        self.bytes.get_mut(start..).unwrap_or_default()
    }

    /// Sends all of them and is empty again. One that cannot be sent is lost, as datagrams may be.
    pub async fn send(&mut self, socket: &UdpSocket, to: &Inbox) {
        let mut sent = 0;
        while sent < self.letters.len() {
            let call = socket.async_io(Interest::WRITABLE, || self.send_now(rustix::fd::AsFd::as_fd(socket), to, sent)).await;
            sent += call.unwrap_or_else(|error| {
                tracing::debug!(%error, "send a DNS answer");
                1
            });
        }
        self.letters.clear();
        self.bytes.clear();
    }

    fn send_now(&self, socket: BorrowedFd<'_>, to: &Inbox, from: usize) -> io::Result<usize> {
        // SAFETY: all zeroes are an mmsghdr and an iovec without buffers.
        let (mut parts, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let starts = std::iter::once(0).chain(self.letters.iter().map(|(end, _)| *end));
        let letters = starts.zip(&self.letters).skip(from);
        let mut count = 0;
        for ((header, part), (start, (end, index))) in headers.iter_mut().zip(&mut parts).zip(letters) {
            let (Some(bytes), Some(name)) = (self.bytes.get(start..*end), to.names.get(*index)) else { break };
            *part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_ref(name).cast_mut().cast();
            header.msg_hdr.msg_namelen = name_bytes(name);
            count += 1;
        }
        // SAFETY: the first `count` headers point at bytes, names and parts with their sizes, which outlive the call and are only read by it.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

fn name_bytes(name: &Name) -> libc::socklen_t {
    let bytes =
        if libc::c_int::from(name.ss_family) == libc::AF_INET { size_of::<libc::sockaddr_in>() } else { size_of::<libc::sockaddr_in6>() };
    bytes as libc::socklen_t
}

fn address(name: &Name) -> Option<SocketAddr> {
    let pointer = std::ptr::from_ref(name);
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the kernel wrote a sockaddr_in here; a sockaddr_storage is larger and as strictly aligned.
            let v4 = unsafe { &*pointer.cast::<libc::sockaddr_in>() };
            Some(SocketAddr::from((v4.sin_addr.s_addr.to_ne_bytes(), u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for a sockaddr_in6.
            let v6 = unsafe { &*pointer.cast::<libc::sockaddr_in6>() };
            let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(address, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}
