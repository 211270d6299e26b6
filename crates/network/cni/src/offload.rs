//! Checksums that the network card promises to compute. For tunnelled packets some cards compute them wrongly, and then a tunnel carries
//! pings and nothing else.

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// linux/ethtool.h: get and set whether checksums of sent packets are left to the device.
const GET: u32 = 0x16;
const SET: u32 = 0x17;

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether checksums of packets sent over `link` are left to the device.
pub fn leaves_checksums(link: &str) -> io::Result<bool> {
    call(link, GET, 0).map(|data| data != 0)
}

/// Leaves them to the device, or has the processor compute them.
pub fn leave_checksums(link: &str, to_device: bool) -> io::Result<()> {
    call(link, SET, to_device.into()).map(drop)
}

fn call(link: &str, command: u32, data: u32) -> io::Result<u32> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut value = Value { command, data };
    // SAFETY: all zeroes are an ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if link.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the request names a link with a zero at its end and points at an ethtool_value, as this command wants; both outlive the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.data)
}
