//! Project quotas: how much a directory may hold, where its file system can say so (xfs and ext4 mounted with `prjquota`).

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::Error;

/// `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR` of linux/fs.h.
const GET_ATTRIBUTES: u64 = 0x801c_581f;
const SET_ATTRIBUTES: u64 = 0x401c_5820;
/// New files belong to their directory's project.
const INHERIT: u32 = 0x200;
const PROJECT: u32 = 2;
const SET_QUOTA: u32 = 0x80_0008;
const GET_QUOTA: u32 = 0x80_0007;
/// Limits of blocks.
const BLOCK_LIMITS: u32 = 1;
/// Of the kernel's unit of limits.
const BLOCK_BYTES: u64 = 1024;

#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

#[repr(C)]
#[derive(Default)]
struct Limits {
    block_hard: u64,
    block_soft: u64,
    space: u64,
    inode_hard: u64,
    inode_soft: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// Limits what `directory` may hold to `bytes`. `Ok(false)`: its file system has no project quotas. `project` is a number that no other
/// directory of the file system has. Needs root.
pub fn limit(directory: &Path, project: u32, bytes: u64) -> Result<bool, Error> {
    let opened = fs::File::open(directory).map_err(Error::io("open", directory))?;
    let limits = Limits { block_hard: bytes.div_ceil(BLOCK_BYTES), block_soft: 0, valid: BLOCK_LIMITS, ..Limits::default() };
    if !quota(&opened, SET_QUOTA, project, &limits) {
        return Ok(false);
    }
    let mut attributes = Attributes::default();
    // SAFETY: the kernel fills a structure of exactly this size.
    let read = unsafe { libc::ioctl(opened.as_raw_fd(), GET_ATTRIBUTES as _, &raw mut attributes) };
    attributes.project = project;
    attributes.flags |= INHERIT;
    // SAFETY: the kernel reads a structure of exactly this size.
    if read != 0 || unsafe { libc::ioctl(opened.as_raw_fd(), SET_ATTRIBUTES as _, &raw const attributes) } != 0 {
        return Err(Error::io("set the project of", directory)(std::io::Error::last_os_error()));
    }
    Ok(true)
}

/// Forgets the limit of a directory that is about to go.
pub fn forget(directory: &Path, project: u32) {
    if let Ok(opened) = fs::File::open(directory) {
        quota(&opened, SET_QUOTA, project, &Limits { valid: BLOCK_LIMITS, ..Limits::default() });
    }
}

/// Bytes that the project uses, and its limit.
pub fn usage(directory: &Path, project: u32) -> Option<(u64, u64)> {
    let opened = fs::File::open(directory).ok()?;
    let limits = Limits::default();
    let found = quota(&opened, GET_QUOTA, project, &limits);
    (found && limits.block_hard > 0).then(|| (limits.space, limits.block_hard * BLOCK_BYTES))
}

/// Some file systems answer with "no such process", some that they do not know the call: both have no quotas.
fn quota(file: &fs::File, command: u32, project: u32, limits: &Limits) -> bool {
    let command = (command << 8) | PROJECT;
    // SAFETY: the structure has the kernel's layout and lives during the call, which fills it where it is asked to.
    unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, project, std::ptr::from_ref(limits)) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_project_quotas_says_so() {
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(!limit(root.path(), 4711, 1 << 20).unwrap());
        assert_eq!(usage(root.path(), 4711), None);
    }
}
