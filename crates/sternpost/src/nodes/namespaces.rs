//! A further node's network and mount namespace, each kept by a mount on a file, so that they outlive the node's processes as a machine's
//! own do.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc;

use anyhow::Context;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::thread::{UnshareFlags, gettid};

/// Whether a namespace is mounted there.
pub fn is_kept(path: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|fs| i64::from(fs.f_type) == NSFS_MAGIC)
}

/// A new network namespace, kept on `path`.
pub fn keep_network(path: &Path) -> anyhow::Result<()> {
    File::create(path)?;
    keep(path, "net", || unshare(UnshareFlags::NEWNET))
}

/// A new mount namespace, kept on `path`: what the host mounts is seen in it, what is mounted in it is not seen outside.
pub fn keep_mounts(path: &Path) -> anyhow::Result<()> {
    File::create(path)?;
    // The kernel refuses a mount that could spread into the very namespace that it keeps: mount(2), on loops of namespaces.
    mount_bind(path, path)?;
    // Nor does it let a tree that holds one be put anywhere: a pod that mounts the host's root gets a tree without it.
    mount_change(path, MountPropagationFlags::UNBINDABLE)?;
    keep(path, "mnt", || {
        unshare(UnshareFlags::NEWNS)?;
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)?;
        // Among its own processes mounts spread, as on any machine: CSI drivers rely on it.
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::SHARED)?;
        Ok(())
    })
}

fn unshare(what: UnshareFlags) -> io::Result<()> {
    // SAFETY: called on a thread that was made for this and holds nothing that the flags could take away.
    Ok(unsafe { rustix::thread::unshare_unsafe(what) }?)
}

/// Lets a thread of its own `enter` a new namespace, and keeps that on `path`, seen from the caller's.
fn keep(path: &Path, kind: &str, enter: impl FnOnce() -> io::Result<()> + Send) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let (entered, thread) = mpsc::channel();
        let (kept, until) = mpsc::channel::<()>();
        scope.spawn(move || {
            let _ = entered.send(enter().map(|()| gettid().as_raw_nonzero()));
            let _ = until.recv();
        });
        let thread =
            thread.recv().context("the thread that makes the namespace panicked")?.with_context(|| format!("a new {kind} namespace"))?;
        let mounted = mount_bind(format!("/proc/self/task/{thread}/ns/{kind}"), path);
        drop(kept);
        Ok(mounted.with_context(|| format!("keep the {kind} namespace"))?)
    })
}

/// Lets the namespace go, with whatever lies under it on that file.
pub fn release(path: &Path) {
    loop {
        match unmount(path, UnmountFlags::DETACH) {
            Ok(()) => {}
            // Nothing is mounted there, or nothing is there.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return,
            Err(error) => return eprintln!("{}: {error}", path.display()),
        }
    }
}
