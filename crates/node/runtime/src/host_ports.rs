//! Host ports of a new sandbox that somebody on this node listens on already. The port would lead to the pod from then on and the other
//! would never hear of it, so it is refused, as CRI-O does.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use cri::v1::{PortMapping, Protocol};

/// The first port that is taken, in words.
pub fn taken(ports: &[PortMapping]) -> Option<String> {
    ports.iter().find_map(|mapping| {
        let port = u16::try_from(mapping.host_port).ok().filter(|port| *port > 0)?;
        let address = mapping.host_ip.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let address = SocketAddr::new(address, port);
        let bound = match mapping.protocol() {
            Protocol::Tcp => TcpListener::bind(address).map(drop),
            Protocol::Udp => UdpSocket::bind(address).map(drop),
            Protocol::Sctp => Ok(()),
        };
        // An address that is not this node's takes nothing from anybody.
        let in_use = bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse);
        let protocol = mapping.protocol().as_str_name();
        in_use.then(|| format!("cannot open host port {port}/{protocol}: a process of this node listens on it already"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_a_process_listens_on_is_named_and_others_are_free() {
        let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = |protocol: Protocol, host_port: u16, host_ip: &str| PortMapping {
            protocol: protocol.into(),
            host_port: host_port.into(),
            host_ip: host_ip.into(),
            ..PortMapping::default()
        };
        let (of_tcp, of_udp) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
        let said = taken(&[port(Protocol::Udp, 0, ""), port(Protocol::Tcp, of_tcp, "")]).unwrap();
        assert!(said.contains(&format!("host port {of_tcp}/TCP")), "{said}");
        assert!(taken(&[port(Protocol::Udp, of_udp, "127.0.0.1")]).is_some());
        for free in [port(Protocol::Udp, of_udp, "127.0.0.2"), port(Protocol::Tcp, of_tcp, "192.0.2.77"), port(Protocol::Sctp, of_tcp, "")]
        {
            assert_eq!(taken(&[free]), None);
        }
    }
}
