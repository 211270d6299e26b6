//! The namespaces that a pod's containers share, and the shim's own small place in the world.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use oci::sys;
use rustix::fs::{CWD, Mode, mkdirat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, move_mount, open_tree, unmount,
};

use crate::protocol::{IdRange, Setup};

/// Where a container's root is attached, in the shim's mount namespace.
pub const STAGING: &str = "/rootfs";
/// The pod's shared memory, in the shim's mount namespace.
pub const SHM: &str = "/shm";
/// Mount points of the shims' common root.
const ROOT_DIRECTORIES: [&str; 4] = ["rootfs", "shm", "proc", "sys"];

/// Unshares and prepares everything. Returns the network namespace and, if the pod has one, the user namespace.
///
/// # Safety
/// The calling process must be single-threaded.
pub unsafe fn enter(setup: &Setup) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let mut flags = libc::CLONE_NEWUTS;
    flags |= if setup.network_namespace { libc::CLONE_NEWNET } else { 0 };
    flags |= if setup.ipc_namespace { libc::CLONE_NEWIPC } else { 0 };
    let users = match setup.users {
        // SAFETY: passed on to the caller.
        Some(range) => Some(unsafe { user_namespace(range, flags) }?),
        None => None,
    };
    sys::unshare(libc::CLONE_NEWNS | if users.is_some() { 0 } else { flags })?;
    pod_mounts(setup)?;
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
    Ok((std::fs::File::open("/proc/self/ns/net")?.into(), users))
}

/// A user namespace that owns the pod's other namespaces, which this process joins; it stays outside of the user namespace itself.
///
/// # Safety
/// The calling process must be single-threaded.
unsafe fn user_namespace(range: IdRange, flags: i32) -> io::Result<OwnedFd> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    // SAFETY: passed on to the caller.
    let Some((pid, pidfd)) = (unsafe { sys::fork(libc::CLONE_NEWUSER, None) })
        .map_err(|error| io::Error::other(format!("make a user namespace: {}", oci::errno_text(&error))))?
    else {
        drop(ours);
        // SAFETY: ends the child at once, without running destructors or exit handlers of its parent's copy.
        unsafe { libc::_exit(i32::from(own_namespaces(theirs, flags).is_err())) }
    };
    drop(theirs);
    let map = format!("0 {} {}", range.first, range.length);
    for file in ["uid_map", "gid_map"] {
        let written = std::fs::write(format!("/proc/{pid}/{file}"), &map);
        written.map_err(|error| io::Error::other(format!("map the pod's ids to {}: {}", range.first, oci::errno_text(&error))))?;
    }
    let mut word = [0_u8];
    io::Write::write_all(&mut &ours, &word)?;
    io::Read::read_exact(&mut &ours, &mut word)
        .map_err(|_| io::Error::other("the pod's namespaces could not be made in its user namespace"))?;
    let users = std::fs::File::open(format!("/proc/{pid}/ns/user"))?.into();
    sys::setns(&pidfd, flags)?;
    Ok(users)
}

/// Waits for the ids, makes the namespaces, and holds them until they are taken.
fn own_namespaces(mut parent: std::os::unix::net::UnixStream, flags: i32) -> io::Result<()> {
    let mut word = [0_u8];
    io::Read::read_exact(&mut parent, &mut word)?;
    sys::become_root()?;
    sys::unshare(flags)?;
    io::Write::write_all(&mut parent, &word)?;
    io::Read::read(&mut parent, &mut word).map(drop)
}

/// Killing the daemon's service must not kill its pods: their shims live in a group of their own.
pub fn join_shims(cgroup_root: &str) -> io::Result<()> {
    let root = cgroups::Root::detect(cgroup_root).map_err(io::Error::other)?;
    let group = root.create(crate::SHIMS).map_err(io::Error::other)?;
    group.add(rustix::process::getpid().as_raw_pid()).map_err(io::Error::other)
}

/// A mount namespace with two mounts instead of the host's, for the parent of all shims: each shim copies this one and adds the pod's, and each
/// container copies that. Made once, because the kernel looks at every process of the machine when `/` becomes another one.
pub fn slim() -> io::Result<()> {
    sys::unshare(libc::CLONE_NEWNS)?;
    sys::mount_setattr(CWD, c"/", true, 0, libc::MS_PRIVATE as u64)?;
    let proc = open_tree(CWD, "/proc", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let inodes = (ROOT_DIRECTORIES.len() + 1).to_string();
    let root = instance("tmpfs", &[("mode", "755"), ("size", "4k"), ("nr_inodes", &inodes)], MountAttrFlags::empty())?;
    for name in ROOT_DIRECTORIES {
        mkdirat(&root, name, Mode::from_raw_mode(0o755))?;
    }
    // Anywhere: it is `/` in a moment.
    move_mount(&root, "", CWD, "/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    move_mount(&proc, "", &root, "proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    sys::mount_setattr(CWD, c"/", false, sys::attr::RDONLY, 0)
}

/// What a pod's containers share, in the shim's mount namespace.
fn pod_mounts(setup: &Setup) -> io::Result<()> {
    if setup.users.is_some() {
        // The kernel lets a user namespace mount its own only where it sees one already.
        let sysfs = instance("sysfs", &[], MountAttrFlags::empty())?;
        move_mount(&sysfs, "", CWD, "/sys", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    if setup.ipc_namespace {
        let (size, owner) = (setup.shm_bytes.to_string(), setup.users.map(|range| range.first.to_string()));
        let mut options = vec![("mode", "1777"), ("size", size.as_str())];
        options.extend(owner.iter().flat_map(|id| [("uid", id.as_str()), ("gid", id.as_str())]));
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let shm = instance("tmpfs", &options, attributes)?;
        move_mount(&shm, "", CWD, SHM, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    Ok(())
}

/// A new file system of this kind, attached nowhere.
pub(crate) fn instance(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
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
