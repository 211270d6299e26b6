//! A file as a block device. Which devices there are, the kernel says: nothing is remembered here.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::Error;

const SET_FD: u64 = 0x4C00;
const CLEAR_FD: u64 = 0x4C01;
const SET_CAPACITY: u64 = 0x4C07;
const GET_FREE: u64 = 0x4C82;
/// Another process may take the device that was free a moment before.
const ATTEMPTS: usize = 16;

/// The device of `file`: the one that it has, or a new one. Needs root.
pub fn attach(file: &Path) -> Result<PathBuf, Error> {
    let file = fs::canonicalize(file).map_err(Error::io("resolve", file))?;
    if let Some(device) = find(&file) {
        return Ok(device);
    }
    let backing = fs::OpenOptions::new().read(true).write(true).open(&file).map_err(Error::io("open", &file))?;
    let control = Path::new("/dev/loop-control");
    let control_file = fs::OpenOptions::new().read(true).write(true).open(control).map_err(Error::io("open", control))?;
    for _ in 0..ATTEMPTS {
        // SAFETY: the request takes no argument; the descriptor lives as long as its file.
        let number = unsafe { libc::ioctl(control_file.as_raw_fd(), GET_FREE as _) };
        if number < 0 {
            return Err(Error::io("find a free device of", control)(std::io::Error::last_os_error()));
        }
        let device = PathBuf::from(format!("/dev/loop{number}"));
        make_node(&device, number)?;
        let opened = fs::OpenOptions::new().read(true).write(true).open(&device).map_err(Error::io("open", &device))?;
        // SAFETY: the argument is a descriptor that is open during the call.
        if unsafe { libc::ioctl(opened.as_raw_fd(), SET_FD as _, backing.as_raw_fd()) } == 0 {
            return Ok(device);
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(Error::io("attach", &file)(error));
        }
    }
    Err(Error::Refused(format!("attach {}: every loop device was taken", file.display())))
}

/// Where `/dev` is not the kernel's own, nobody else makes the node.
fn make_node(device: &Path, number: i32) -> Result<(), Error> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    if device.exists() {
        return Ok(());
    }
    let minor = u32::try_from(number).unwrap_or_default();
    match mknodat(CWD, device, FileType::BlockDevice, Mode::from_raw_mode(0o660), makedev(7, minor)) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => other.map_err(Error::errno("make", device)),
    }
}

/// The device that `file` has.
pub fn find(file: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir("/sys/block").ok()?.flatten();
    let mut devices = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("loop"));
    let found = devices.find(|entry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        Path::new(backing.trim_end_matches('\n')) == file
    })?;
    Some(Path::new("/dev").join(found.file_name()))
}

/// The device learns that its file has grown.
pub fn grow(file: &Path) -> Result<(), Error> {
    let Some(device) = fs::canonicalize(file).ok().and_then(|file| find(&file)) else { return Ok(()) };
    let opened = fs::OpenOptions::new().read(true).write(true).open(&device).map_err(Error::io("open", &device))?;
    // SAFETY: the request takes no argument; the descriptor lives as long as its file.
    match unsafe { libc::ioctl(opened.as_raw_fd(), SET_CAPACITY as _) } {
        0 => Ok(()),
        _ => Err(Error::io("grow", &device)(std::io::Error::last_os_error())),
    }
}

/// What was written to the device of `file` is in the file.
pub fn flush(file: &Path) -> Result<(), Error> {
    let Some(device) = fs::canonicalize(file).ok().and_then(|file| find(&file)) else { return Ok(()) };
    fs::File::open(&device).and_then(|opened| opened.sync_all()).map_err(Error::io("flush", &device))
}

/// Gives the device of `file` back; one that is still open goes with its last user.
pub fn detach(file: &Path) -> Result<(), Error> {
    let Some(device) = fs::canonicalize(file).ok().and_then(|file| find(&file)) else { return Ok(()) };
    let opened = fs::OpenOptions::new().read(true).open(&device).map_err(Error::io("open", &device))?;
    // SAFETY: the request takes no argument; the descriptor lives as long as its file.
    match unsafe { libc::ioctl(opened.as_raw_fd(), CLEAR_FD as _) } {
        0 => Ok(()),
        _ if std::io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => Ok(()),
        _ => Err(Error::io("detach", &device)(std::io::Error::last_os_error())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_one_device_grows_with_it_and_gives_it_back() {
        // SAFETY: geteuid only reads.
        if unsafe { libc::geteuid() } != 0 || !Path::new("/dev/loop-control").exists() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("disk");
        let file = fs::File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let device = attach(&path).unwrap();
        assert_eq!(attach(&path).unwrap(), device);
        file.set_len(2 << 20).unwrap();
        grow(&path).unwrap();
        let name = device.file_name().unwrap();
        let sectors = fs::read_to_string(Path::new("/sys/block").join(name).join("size")).unwrap();
        assert_eq!(sectors.trim(), "4096");
        detach(&path).unwrap();
        assert_eq!(find(&fs::canonicalize(&path).unwrap()), None);
        detach(&path).unwrap();
    }
}
