//! The listening sockets: bound anew, or taken over from whoever kept them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

use crate::{Config, Error};

/// For every address a TCP listener and a few UDP sockets. They may be kept open by another process too: questions then wait in them
/// while this one starts again.
#[derive(Debug)]
pub struct Sockets {
    pub(crate) udp: Vec<std::net::UdpSocket>,
    pub(crate) tcp: Vec<std::net::TcpListener>,
}

impl Sockets {
    /// Binds every address, UDP and TCP alike; port 0 takes the same free one for both.
    pub fn bind(config: &Config) -> Result<Self, Error> {
        let mut all = Self { udp: Vec::new(), tcp: Vec::new() };
        for address in &config.listen {
            let listen = |source| Error::Listen { address: *address, source };
            let listener = std::net::TcpListener::bind(address).map_err(listen)?;
            listener.set_nonblocking(true).map_err(listen)?;
            let bound = listener.local_addr().map_err(listen)?;
            all.tcp.push(listener);
            for _ in 0..config.sockets.max(1) {
                all.udp.push(bind_udp(bound).map_err(listen)?);
            }
        }
        Ok(all)
    }

    /// What [`Sockets::share`] once gave away.
    pub fn take_over(descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let mut all = Self { udp: Vec::new(), tcp: Vec::new() };
        for descriptor in descriptors {
            match sockopt::socket_type(&descriptor)? {
                SocketType::DGRAM => all.udp.push(descriptor.into()),
                SocketType::STREAM => all.tcp.push(descriptor.into()),
                _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither TCP nor UDP")),
            }
        }
        Ok(all)
    }

    /// The same sockets for somebody who keeps them open.
    pub fn share(&self) -> io::Result<Vec<OwnedFd>> {
        let udp = self.udp.iter().map(|socket| socket.try_clone().map(OwnedFd::from));
        let tcp = self.tcp.iter().map(|listener| listener.try_clone().map(OwnedFd::from));
        udp.chain(tcp).collect()
    }
}

/// One of several sockets on the same address: the kernel spreads clients over them.
fn bind_udp(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    sockopt::set_socket_reuseport(&socket, true)?;
    bind(&socket, &address)?;
    Ok(socket.into())
}
