//! Mounts that a volume itself is: a device, a network file system, a bind of a path on itself that others may mount below.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change};

use crate::{Error, empty_dir};

/// The bytes of a device that tell which file system it holds.
const PROBE_BYTES: usize = 0x1_0080;

/// One file system to be mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// A device, or `server:/path`.
    pub source: String,
    pub kind: String,
    /// As on the command line of `mount -o`, one each.
    pub options: Vec<String>,
    pub read_only: bool,
}

/// Mounts it on `target`, which is made; what is mounted there already stays. Needs root.
pub fn file_system(wanted: &FileSystem, target: &Path) -> Result<(), Error> {
    fs::create_dir_all(target).map_err(Error::io("create directory", target))?;
    if empty_dir::is_mount_point(target)? {
        return Ok(());
    }
    let (flags, data) = split(&wanted.options, wanted.read_only);
    let data = CString::new(data).map_err(|_| Error::Refused("mount options hold NUL".into()))?;
    match mount(&wanted.source, target, &wanted.kind, flags, Some(data.as_c_str())) {
        Err(rustix::io::Errno::NODEV) => {
            Err(Error::Refused(format!("mount failed: the kernel of this node has no file system {:?}", wanted.kind)))
        }
        other => other.map_err(Error::errno("mount", target)),
    }
}

/// Options of the kernel's own, and those that are the file system's.
fn split(options: &[String], read_only: bool) -> (MountFlags, String) {
    let mut flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let mut rest: Vec<&str> = Vec::new();
    for option in options.iter().flat_map(|option| option.split(',')) {
        match option {
            "" | "rw" | "defaults" | "_netdev" | "bind" => {}
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            other => rest.push(other),
        }
    }
    (flags, rest.join(","))
}

/// A device with a file system of that kind; an empty device is formatted, one with another file system is mounted as what it is
/// (upstream: `FormatAndMount`). Needs root.
pub fn device(wanted: &FileSystem, target: &Path) -> Result<(), Error> {
    if empty_dir::is_mount_point(target).unwrap_or(false) {
        return Ok(());
    }
    let device = Path::new(&wanted.source);
    let found = probe(device)?;
    let kind = match found {
        Some(found) => found.to_owned(),
        None if wanted.read_only => {
            return Err(Error::Refused(format!(
                "cannot mount unformatted disk {} as we are manipulating it in read-only mode",
                wanted.source
            )));
        }
        None => {
            format(device, &wanted.kind)?;
            wanted.kind.clone()
        }
    };
    file_system(&FileSystem { kind, ..wanted.clone() }, target)
}

/// Which file system a device holds; `None` where it is empty, and an error where it holds something unknown.
fn probe(device: &Path) -> Result<Option<&'static str>, Error> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = fs::File::open(device).map_err(Error::io("open", device))?;
    file.take(PROBE_BYTES as u64).read_to_end(&mut bytes).map_err(Error::io("read", device))?;
    let has = |at: usize, magic: &[u8]| bytes.get(at..at + magic.len()) == Some(magic);
    let features = |at: usize| bytes.get(at..at + 4).map_or(0, |four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]));
    Ok(match () {
        // Extents (0x40) or 64bit (0x80) say ext4, a journal ext3.
        () if has(0x438, &[0x53, 0xef]) && features(0x460) & 0xc0 != 0 => Some("ext4"),
        () if has(0x438, &[0x53, 0xef]) && features(0x45c) & 4 != 0 => Some("ext3"),
        () if has(0x438, &[0x53, 0xef]) => Some("ext2"),
        () if has(0, b"XFSB") => Some("xfs"),
        () if has(0x1_0040, b"_BHRfS_M") => Some("btrfs"),
        () if bytes.iter().all(|byte| *byte == 0) => None,
        () => {
            return Err(Error::Refused(format!("{} holds something that is no known file system; it is not formatted", device.display())));
        }
    })
}

fn format(device: &Path, kind: &str) -> Result<(), Error> {
    let program = format!("mkfs.{kind}");
    let mut command = Command::new(&program);
    if kind.starts_with("ext") {
        command.args(["-F", "-m0"]);
    }
    let made = command.arg(device).output().map_err(|error| Error::Refused(format!("format {}: {program}: {error}", device.display())))?;
    if made.status.success() {
        return Ok(());
    }
    Err(Error::Refused(format!("format {}: {program}: {}", device.display(), String::from_utf8_lossy(&made.stderr).trim())))
}

/// Makes `directory` a mount of its own that hands on what is mounted below it: what a driver's container mounts there must be seen by
/// us, and by other containers. Where the host's root does so already, nothing is needed. Needs root.
pub fn share(directory: &Path) -> Result<(), Error> {
    let directory = fs::canonicalize(directory).map_err(Error::io("resolve", directory))?;
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
    if is_shared(&table, &directory) {
        return Ok(());
    }
    if !empty_dir::is_mount_point(&directory)? {
        mount_bind_recursive(&directory, &directory).map_err(Error::errno("bind", &directory))?;
    }
    let flags = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    mount_change(&directory, flags).map_err(Error::errno("share", &directory))
}

/// Does the mount that holds the path hand on what is mounted below it?
pub fn is_shared(table: &str, path: &Path) -> bool {
    let points = table.lines().filter_map(|line| {
        let point = line.split(' ').nth(4)?;
        path.starts_with(point).then_some((Path::new(point).components().count(), line))
    });
    // The innermost, and of those on top of each other the last.
    points.max_by_key(|(depth, _)| *depth).is_some_and(|(_, line)| line.split(" - ").next().is_some_and(|left| left.contains(" shared:")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_kernel_are_flags_and_the_rest_is_the_file_systems() {
        let (flags, rest) = split(&["ro,noatime".into(), "vers=4.1".into(), "hard".into()], false);
        assert_eq!((flags, rest.as_str()), (MountFlags::RDONLY | MountFlags::NOATIME, "vers=4.1,hard"));
    }

    #[test]
    fn the_innermost_mount_decides_whether_mounts_are_handed_on() {
        let table = "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw\n2 1 8:2 / /data rw - ext4 /dev/b rw\n3 2 8:2 /k /data/k rw shared:2 - ext4 /dev/b rw\n";
        for (path, shared) in [("/x", true), ("/data/x", false), ("/data/k/pods", true), ("/database", true)] {
            assert_eq!(is_shared(table, Path::new(path)), shared, "{path}");
        }
    }

    #[test]
    fn a_device_is_formatted_only_where_it_is_empty() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("image");
        fs::write(&path, vec![0u8; 4096]).unwrap();
        assert_eq!(probe(&path).unwrap(), None);
        let mut bytes = vec![0u8; 4096];
        bytes[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        bytes[0x460] = 0x40;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(probe(&path).unwrap(), Some("ext4"));
        fs::write(&path, "#!/bin/sh").unwrap();
        assert!(probe(&path).unwrap_err().to_string().contains("not formatted"));
    }

    #[test]
    fn a_kernel_without_the_file_system_says_so() {
        // SAFETY: geteuid only reads.
        if unsafe { libc::geteuid() } != 0 {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let wanted = FileSystem { source: "127.0.0.1:/".into(), kind: "nosuchfs".into(), ..FileSystem::default() };
        let error = file_system(&wanted, &root.path().join("m")).unwrap_err().to_string();
        assert!(error.contains("has no file system \"nosuchfs\""), "{error}");
    }
}
