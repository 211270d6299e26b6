//! The namespaces that a pod's containers share, and the shim's own small place in the world.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use oci::sys;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, move_mount, open_tree, unmount,
};

use crate::protocol::Setup;

/// Where a container's root is attached, in the shim's mount namespace.
pub const STAGING: &str = "/rootfs";
/// The pod's shared memory, in the shim's mount namespace.
pub const SHM: &str = "/shm";
/// What the shim's root directory must contain.
pub const ROOT_DIRECTORIES: [&str; 3] = ["rootfs", "shm", "proc"];

/// Unshares and prepares everything; `root` is the directory that becomes `/`. Returns the network namespace.
pub fn enter(setup: &Setup, root: &str) -> io::Result<OwnedFd> {
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWUTS;
    flags |= if setup.network_namespace { libc::CLONE_NEWNET } else { 0 };
    flags |= if setup.ipc_namespace { libc::CLONE_NEWIPC } else { 0 };
    sys::unshare(flags)?;
    slim_mounts(root, setup)?;
    if !setup.hostname.is_empty() {
        rustix::system::sethostname(setup.hostname.as_bytes())?;
    }
    if setup.network_namespace {
        loopback_up()?;
    }
    for (name, value) in &setup.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        if name.contains("..") {
            return Err(io::Error::other(format!("sysctl {name:?} is not a name")));
        }
        std::fs::write(&path, value).map_err(|error| io::Error::other(format!("sysctl {name}: {}", oci::errno_text(&error))))?;
    }
    Ok(std::fs::File::open("/proc/self/ns/net")?.into())
}

/// Killing the daemon's service must not kill its pods: their shims live in a group of their own.
pub fn join_shims(cgroup_root: &str) -> io::Result<()> {
    let root = cgroups::Root::detect(cgroup_root).map_err(io::Error::other)?;
    let group = root.create(crate::SHIMS).map_err(io::Error::other)?;
    group.add(rustix::process::getpid().as_raw_pid()).map_err(io::Error::other)
}

/// A mount namespace with three mounts instead of the host's: each container copies this one.
fn slim_mounts(root: &str, setup: &Setup) -> io::Result<()> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    sys::mount_setattr(CWD, c"/", true, 0, libc::MS_PRIVATE as u64)?;
    let tree = open_tree(CWD, root, clone)?;
    move_mount(&tree, "", CWD, root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let proc = open_tree(CWD, "/proc", clone)?;
    move_mount(&proc, "", &tree, "proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(&tree)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    if setup.ipc_namespace {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "mode", "1777")?;
        fsconfig_set_string(&context, "size", setup.shm_bytes.to_string())?;
        fsconfig_create(&context)?;
        let shm = fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        )?;
        move_mount(&shm, "", CWD, SHM, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    Ok(())
}

fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    use std::os::fd::AsRawFd;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is initialised and lives through the call.
    if unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
