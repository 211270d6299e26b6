//! The container's file system tree, built below a descriptor and made `/` at the end.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, mknodat, open, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use crate::channel::Failure;
use crate::process::Stdio;
use crate::sys::{attr, mount_setattr};
use crate::{Device, FileSystem, Handles, Mount, Propagation, Source, Spec, in_root};

/// (name, major, minor) of what every container finds in `/dev`.
const DEVICES: [(&str, u32, u32); 6] = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Builds everything and makes it `/`.
pub(crate) fn enter(spec: &Spec, handles: &Handles<'_>) -> Result<(), Failure> {
    let root = handles.rootfs.ok_or_else(|| Failure::new("attach the root", io::Error::from_raw_os_error(libc::EBADF)))?;
    // New mounts must not show up in the launcher's namespace, whatever its propagation is.
    mount_setattr(CWD, c"/", true, 0, libc::MS_PRIVATE as u64).map_err(|e| Failure::new("make mounts private", e))?;
    move_mount(root, "", CWD, spec.staging.as_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| Failure::new("attach the root", e))?;
    for mount in &spec.mounts {
        attach(&root, mount, handles).map_err(|e| Failure::new(format!("mount {}", mount.target), e))?;
        if mount.target == "/dev" && matches!(mount.source, Source::New(_)) {
            populate_dev(&root, &spec.devices, spec.devices_are_mounts).map_err(|e| Failure::new("make devices", e))?;
        }
    }
    for path in &spec.readonly_paths {
        make_readonly(&root, path).map_err(|e| Failure::new(format!("make {path} read-only"), e))?;
    }
    mask(&root, spec, handles)?;
    pivot(&root).map_err(|e| Failure::new("pivot_root", e))
}

fn attach(root: impl AsFd, mount: &Mount, handles: &Handles<'_>) -> io::Result<()> {
    let root = root.as_fd();
    let made;
    let (tree, directory) = match &mount.source {
        Source::New(file_system) => {
            made = instance(file_system, attributes(mount))?;
            (made.as_fd(), true)
        }
        Source::Tree { index, directory } => {
            let tree = handles.trees.get(*index).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
            (tree.as_fd(), *directory)
        }
        Source::Bind { path, directory } => {
            made = open_tree(CWD, path.as_str(), clone_flags())?;
            (made.as_fd(), *directory)
        }
    };
    let propagation = match mount.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::FromHost => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
    };
    mount_setattr(tree, c"", true, 0, propagation as u64)?;
    let flags = u64::from(attributes(mount).bits());
    if flags != 0 && !matches!(mount.source, Source::New(_)) {
        mount_setattr(tree, c"", mount.recursive_readonly, flags, 0)?;
    }
    let target = if directory { in_root::make_directory(root, &mount.target)? } else { in_root::make_file(root, &mount.target)? };
    move_onto(tree, &target)
}

fn attributes(mount: &Mount) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, mount.nosuid);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, mount.nodev);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, mount.noexec);
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, mount.readonly);
    flags
}

fn clone_flags() -> OpenTreeFlags {
    OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE
}

fn move_onto(tree: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}

/// The kernel refuses a user namespace an instance that may do more than the one it sees, so that the attributes come first.
fn instance(file_system: &FileSystem, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(file_system.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in &file_system.options {
        match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str())?,
            None => fsconfig_set_flag(&context, key.as_str())?,
        }
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn populate_dev(root: impl AsFd, devices: &[Device], mounted: bool) -> io::Result<()> {
    let root = root.as_fd();
    let dev = in_root::open(root, "/dev", OFlags::RDONLY | OFlags::DIRECTORY)?;
    // The umask is the launcher's; devices have exact modes.
    let old = rustix::process::umask(Mode::empty());
    for (name, major, minor) in DEVICES.into_iter().filter(|_| !mounted) {
        mknodat(&dev, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), rustix::fs::makedev(major, minor))?;
    }
    for (target, name) in LINKS {
        symlinkat(target, &dev, name)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        mkdirat(&dev, name, Mode::from_raw_mode(0o755))?;
    }
    for device in devices {
        make_device(root, device)?;
    }
    rustix::process::umask(old);
    Ok(())
}

fn make_device(root: impl AsFd, device: &Device) -> io::Result<()> {
    let (parent, name) = device.path.rsplit_once('/').unwrap_or(("", &device.path));
    let parent = in_root::make_directory(root, parent)?;
    let kind = match device.kind {
        'b' => FileType::BlockDevice,
        'p' => FileType::Fifo,
        _ => FileType::CharacterDevice,
    };
    match mknodat(&parent, name, kind, Mode::from_raw_mode(device.mode), rustix::fs::makedev(device.major, device.minor)) {
        Err(rustix::io::Errno::EXIST) => return Ok(()),
        other => other?,
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(device.uid), rustix::fs::Gid::from_raw(device.gid));
    Ok(rustix::fs::chownat(&parent, name, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
}

fn make_readonly(root: impl AsFd, path: &str) -> io::Result<()> {
    let target = match in_root::open(root, path, OFlags::PATH) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let tree = open_tree(&target, "", clone_flags() | OpenTreeFlags::AT_EMPTY_PATH)?;
    mount_setattr(&tree, c"", true, attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC, 0)?;
    move_onto(tree, target)
}

/// All directories are hidden by the same empty one.
fn mask(root: impl AsFd, spec: &Spec, handles: &Handles<'_>) -> Result<(), Failure> {
    let root = root.as_fd();
    let mut empty: Option<OwnedFd> = None;
    for path in &spec.masked_paths {
        let masked = in_root::open(root, path, OFlags::PATH).and_then(|target| {
            if FileType::from_raw_mode(fstat(&target)?.st_mode) == FileType::Directory {
                let tree = match &empty {
                    Some(attached) => open_tree(attached, "", clone_flags() | OpenTreeFlags::AT_EMPTY_PATH)?,
                    None => first_empty(spec, handles)?,
                };
                move_onto(&tree, target)?;
                empty.get_or_insert(tree);
                return Ok(());
            }
            let null = in_root::open(root, "/dev/null", OFlags::PATH)?;
            move_onto(open_tree(&null, "", clone_flags() | OpenTreeFlags::AT_EMPTY_PATH)?, target)
        });
        match masked {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(|e| Failure::new(format!("mask {path}"), e))?,
        }
    }
    Ok(())
}

fn first_empty(spec: &Spec, handles: &Handles<'_>) -> io::Result<OwnedFd> {
    let Some(index) = spec.empty else {
        let options = vec![("size".to_owned(), Some("0k".to_owned())), ("nr_inodes".to_owned(), Some("2".to_owned()))];
        return instance(&FileSystem { kind: "tmpfs".into(), options }, MountAttrFlags::MOUNT_ATTR_RDONLY);
    };
    let tree = handles.trees.get(index).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?.try_clone()?;
    mount_setattr(&tree, c"", false, attr::RDONLY, libc::MS_PRIVATE as u64)?;
    Ok(tree)
}

fn pivot(root: impl AsFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // The old root lands on top of the new one and is dropped from there: no directory for it is needed inside.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// `/dev/console` is the container's own terminal.
pub(crate) fn bind_console(stdio: &Stdio) -> Result<(), Failure> {
    let bind = || -> io::Result<()> {
        let Some(slave) = stdio.terminal_path() else { return Ok(()) };
        let path = CString::new(slave).map_err(io::Error::other)?;
        open("/dev/console", OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::from_raw_mode(0o600))
            .map(drop)
            .or_else(|error| if error == rustix::io::Errno::EXIST { Ok(()) } else { Err(error) })?;
        let tree = open_tree(CWD, path.as_c_str(), clone_flags())?;
        Ok(move_mount(&tree, "", CWD, "/dev/console", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    };
    bind().map_err(|e| Failure::new("bind /dev/console", e))
}
