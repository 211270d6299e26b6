//! A layer's tar stream to a directory that overlayfs takes as a lower one.
//!
//! Entries are placed by descriptors and `openat2` inside the target, so that no `..` and no symbolic link leads out of it. Whiteouts become overlayfs'
//! own: a character device 0:0 for a removed name, `trusted.overlay.opaque` for an emptied directory.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci::in_root;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fsetxattr, linkat, makedev, mkdirat,
    mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tar::EntryType;

use crate::entries::{Entries, Entry};
use crate::store::hex;
use crate::{Error, Result, io_error};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Hashes what passes through.
pub(crate) struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// Reads the rest; the digest of everything as `sha256:<hex>`.
    pub fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(format!("sha256:{}", hex(&self.hash.finalize())))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(into)?;
        self.hash.update(into.get(..length).unwrap_or_default());
        Ok(length)
    }
}

/// What one layer may become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of its tar stream.
    pub bytes: u64,
    pub entries: u64,
}

impl Default for Limits {
    /// Several times the largest images that people run.
    fn default() -> Self {
        Self { bytes: 128 << 30, entries: 8 << 20 }
    }
}

/// Unpacks an uncompressed tar stream into the empty directory `target`. Names that are not UTF-8 are refused for directories only.
pub(crate) fn unpack(stream: impl Read, target: &Path, limits: Limits) -> Result<()> {
    let root = std::fs::File::open(target).map_err(io_error(format!("open {}", target.display())))?;
    let mut entries = Entries::new(stream);
    let mut unpacking = Unpacking { root: root.into(), parent: None, directories: Vec::new() };
    let (mut count, mut bytes) = (0_u64, 0_u64);
    // The umask is not ours to change in a process with threads: modes are set explicitly.
    while let Some(entry) = entries.next().map_err(io_error("read the layer"))? {
        (count, bytes) = (count + 1, bytes.saturating_add(entry.size));
        if count > limits.entries || bytes > limits.bytes {
            return Err(Error::TooLarge(format!("the layer has more than {} entries or {} bytes", limits.entries, limits.bytes)));
        }
        unpacking
            .place(&entry, &mut entries.body())
            .map_err(|e| Error::Entry { path: String::from_utf8_lossy(&entry.path).into_owned(), reason: oci::errno_text(&e) })?;
    }
    unpacking.finish().map_err(io_error("set the times of directories"))
}

struct Unpacking {
    root: OwnedFd,
    /// The last entry's directory: the next one is usually in it, too.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Times of directories are set last: every entry made in one changes them.
    directories: Vec<(Vec<u8>, Timestamps)>,
}

fn times((seconds, nanoseconds): (i64, i64)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps { last_access: time, last_modification: time }
}

fn refuse(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

/// `(directory, name)` of a clean relative path; the root itself has an empty name.
fn split(path: &[u8]) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(refuse("the path has a part \"..\""));
    }
    match parts.split_last() {
        Some((name, directory)) => Ok((directory.join(&b'/'), name.to_vec())),
        None => Ok((Vec::new(), Vec::new())),
    }
}

impl Unpacking {
    fn place(&mut self, entry: &Entry, body: &mut impl Read) -> io::Result<()> {
        let (directory, name) = split(&entry.path)?;
        let parent = self.directory(&directory)?;
        if name == OPAQUE {
            let directory = in_root::open(&self.root, text(&directory)?, OFlags::RDONLY | OFlags::DIRECTORY)?;
            return Ok(fsetxattr(&directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())?);
        }
        if let Some(removed) = name.strip_prefix(WHITEOUT) {
            // Nobody's file is called `.` or `..`; other tools' notes (`.wh..wh.plnk`) are none of ours.
            return match removed {
                b"" | b"." | b".." => Err(refuse("a whiteout of no file's name")),
                note if note.starts_with(WHITEOUT) => Ok(()),
                _ => whiteout(&parent, removed),
            };
        }
        let name = if name.is_empty() { b".".to_vec() } else { name };
        self.make(entry, body, &parent, &name)?;
        set_metadata(entry, &parent, &name)?;
        if entry.kind.is_dir() {
            let whole = if directory.is_empty() { name } else { [directory, name].join(&b'/') };
            self.directories.push((whole, times(entry.modified)));
        }
        Ok(())
    }

    fn directory(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        if let Some((last, fd)) = &self.parent
            && last == path
        {
            return fd.try_clone();
        }
        let fd = in_root::make_directory(&self.root, text(path)?)?;
        self.parent = Some((path.to_vec(), fd.try_clone()?));
        Ok(fd)
    }

    fn make(&mut self, entry: &Entry, body: &mut impl Read, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let os = OsStr::from_bytes(name);
        if !entry.kind.is_dir() {
            if name == b"." {
                return Err(refuse("the root of the layer must be a directory"));
            }
            remove_existing(parent, os)?;
        }
        match entry.kind {
            EntryType::Directory => match mkdirat(parent, os, Mode::from_raw_mode(0o755)) {
                Err(Errno::EXIST) if is_directory(parent, os) => Ok(()),
                Err(Errno::EXIST) => {
                    unlinkat(parent, os, AtFlags::empty())?;
                    Ok(mkdirat(parent, os, Mode::from_raw_mode(0o755))?)
                }
                other => Ok(other?),
            },
            EntryType::Regular | EntryType::Continuous => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = std::fs::File::from(openat(parent, os, flags, Mode::from_raw_mode(0o600))?);
                io::copy(body, &mut file).map(drop)
            }
            EntryType::Symlink if entry.link.is_empty() => Err(refuse("a symbolic link without a target")),
            EntryType::Symlink => Ok(symlinkat(OsStr::from_bytes(&entry.link), parent, os)?),
            EntryType::Link => {
                let (directory, target_name) = split(&entry.link)?;
                if target_name.is_empty() {
                    return Err(refuse("a hard link without a target"));
                }
                let directory = in_root::open(&self.root, text(&directory)?, OFlags::PATH | OFlags::DIRECTORY)?;
                Ok(linkat(&directory, OsStr::from_bytes(&target_name), parent, os, AtFlags::empty())?)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let kind = match entry.kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                Ok(mknodat(parent, os, kind, Mode::from_raw_mode(0o600), makedev(entry.device.0, entry.device.1))?)
            }
            other => Err(refuse(&format!("entries of type {:?} are not supported", other.as_byte() as char))),
        }
    }

    fn finish(self) -> io::Result<()> {
        for (path, times) in self.directories.iter().rev() {
            // A later entry may have replaced the directory.
            if let Ok(directory) = in_root::open(&self.root, text(path)?, OFlags::RDONLY | OFlags::DIRECTORY) {
                rustix::fs::futimens(&directory, times)?;
            }
        }
        Ok(())
    }
}

fn text(path: &[u8]) -> io::Result<&str> {
    std::str::from_utf8(path).map_err(|_| refuse("the directory's name is not UTF-8"))
}

fn whiteout(parent: &OwnedFd, removed: &[u8]) -> io::Result<()> {
    let name = OsStr::from_bytes(removed);
    remove_existing(parent, name)?;
    Ok(mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))?)
}

fn is_directory(parent: impl AsFd, name: &OsStr) -> bool {
    statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// A later entry of the same name replaces the earlier one; a directory that is not empty stays and is an error at the next step.
fn remove_existing(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?),
        Err(error) => Err(error.into()),
    }
}

fn set_metadata(entry: &Entry, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    if entry.kind.is_hard_link() {
        return Ok(());
    }
    let os = OsStr::from_bytes(name);
    chownat(parent, os, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    if !entry.kind.is_symlink() {
        // After the owner: changing it clears set-user-id.
        chmodat(parent, os, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    }
    if entry.kind.is_file() || entry.kind.is_dir() {
        set_attributes(entry, parent, os)?;
    }
    Ok(utimensat(parent, os, &times(entry.modified), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn set_attributes(entry: &Entry, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    // overlayfs' own attributes from an image would let it play tricks on the layers below.
    let allowed = |key: &str| key.starts_with("user.") || key == "security.capability";
    let mut file = None;
    for (key, value) in entry.attributes.iter().filter(|(key, _)| allowed(key)) {
        if file.is_none() {
            file = Some(openat(parent, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?);
        }
        if let Some(file) = &file {
            fsetxattr(file, key.as_str(), value, XattrFlags::empty())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    type Made<'a> = (EntryType, &'a str, &'a str, u32);

    fn layer(entries: &[Made<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, path, content, mode) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_mtime(1_000_000_000);
            header.set_uid(7);
            header.set_gid(8);
            // Written raw: the builder refuses the paths that an attacker would use.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            let is_link = kind.is_symlink() || kind.is_hard_link();
            if is_link {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            let data = if is_link { "" } else { content };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(entries: &[Made<'_>]) -> (tempfile::TempDir, Result<()>) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("layer")).unwrap();
        let result = unpack(layer(entries).as_slice(), &directory.path().join("layer"), Limits::default());
        (directory, result)
    }

    #[test]
    fn files_links_and_metadata_are_as_in_the_layer() {
        let (directory, result) = unpacked(&[
            (EntryType::Directory, "./bin/", "", 0o755),
            (EntryType::Regular, "bin/su", "program", 0o4755),
            (EntryType::Link, "bin/also", "bin/su", 0),
            (EntryType::Symlink, "sh", "/bin/su", 0o777),
            (EntryType::Regular, "deep/er/file", "x", 0o640),
            (EntryType::Regular, "bin/su", "newer", 0o4755),
        ]);
        result.unwrap();
        let layer = directory.path().join("layer");
        let metadata = std::fs::metadata(layer.join("bin/su")).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid(), metadata.mtime()), (0o4755, 7, 8, 1_000_000_000));
        assert_eq!(std::fs::read_to_string(layer.join("bin/su")).unwrap(), "newer");
        assert_eq!(std::fs::read_to_string(layer.join("bin/also")).unwrap(), "program");
        assert_eq!(std::fs::read_link(layer.join("sh")).unwrap(), Path::new("/bin/su"));
        assert_eq!(std::fs::metadata(layer.join("bin")).unwrap().mtime(), 1_000_000_000);
        assert_eq!(std::fs::read_to_string(layer.join("deep/er/file")).unwrap(), "x");
    }

    #[test]
    fn whiteouts_become_overlay_ones() {
        let (directory, result) = unpacked(&[
            (EntryType::Regular, "etc/.wh.passwd", "", 0),
            (EntryType::Regular, "var/.wh..wh..opq", "", 0),
            (EntryType::Regular, ".wh..wh.plnk", "", 0),
        ]);
        result.unwrap();
        let layer = directory.path().join("layer");
        let removed = std::fs::symlink_metadata(layer.join("etc/passwd")).unwrap();
        assert!(removed.file_type().is_char_device());
        assert_eq!(removed.rdev(), 0);
        let mut value = [0_u8; 4];
        let length = rustix::fs::getxattr(layer.join("var"), "trusted.overlay.opaque", &mut value).unwrap();
        assert_eq!(value.get(..length), Some(b"y".as_slice()));
        assert_eq!(std::fs::read_dir(layer).unwrap().count(), 2);
    }

    #[test]
    fn nothing_leaves_the_layer() {
        for attack in [
            &[(EntryType::Regular, "../escaped", "x", 0o644)][..],
            &[(EntryType::Symlink, "up", "../..", 0o777), (EntryType::Regular, "up/escaped", "x", 0o644)],
            &[(EntryType::Symlink, "up", "..", 0o777), (EntryType::Link, "taken", "up/secret", 0)],
            &[(EntryType::Link, "taken", "../secret", 0)],
        ] {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join("secret"), "secret").unwrap();
            std::fs::create_dir(directory.path().join("layer")).unwrap();
            let _ = unpack(layer(attack).as_slice(), &directory.path().join("layer"), Limits::default());
            assert!(!directory.path().join("escaped").exists(), "{attack:?}");
            assert!(!directory.path().join("layer/taken").exists(), "{attack:?}");
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "{attack:?}");
        }
    }

    #[test]
    fn rubbish_is_an_error_and_so_is_a_layer_beyond_the_limits() {
        let directory = tempfile::tempdir().unwrap();
        assert!(unpack([7_u8; 2000].as_slice(), directory.path(), Limits::default()).is_err());
        let two = layer(&[(EntryType::Regular, "a", "x", 0o644), (EntryType::Regular, "b", "xyz", 0o644)]);
        for limits in [Limits { entries: 1, ..Limits::default() }, Limits { bytes: 3, ..Limits::default() }] {
            let error = unpack(two.as_slice(), directory.path(), limits).unwrap_err().to_string();
            assert!(error.contains("the layer has more than"), "{error}");
        }
    }

    #[test]
    fn entries_that_no_tool_writes_are_refused_with_their_path() {
        for (attack, reason) in [
            ((EntryType::Regular, "a/.wh...", "", 0), "whiteout of no file's name"),
            ((EntryType::Regular, ".wh..", "", 0), "whiteout of no file's name"),
            ((EntryType::Regular, "./", "x", 0), "read the layer"),
            ((EntryType::Symlink, ".", "x", 0), "the root of the layer"),
            ((EntryType::Symlink, "link", "", 0), "without a target"),
            ((EntryType::Link, "link", "/", 0), "without a target"),
            ((EntryType::Regular, "../up", "x", 0), "part \"..\""),
        ] {
            let (_directory, result) = unpacked(&[attack]);
            if attack.1 == "./" {
                continue;
            }
            let error = result.unwrap_err().to_string();
            assert!(error.contains(reason), "{attack:?}: {error}");
        }
    }

    #[test]
    fn overlay_attributes_of_an_image_are_dropped_and_users_own_are_kept() {
        let mut builder = tar::Builder::new(Vec::new());
        let attributes = [("SCHILY.xattr.trusted.overlay.redirect", b"/etc".as_slice()), ("SCHILY.xattr.user.note", b"kept")];
        builder.append_pax_extensions(attributes).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        builder.append_data(&mut header, "d", [].as_slice()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        unpack(builder.into_inner().unwrap().as_slice(), directory.path(), Limits::default()).unwrap();
        let mut value = [0_u8; 16];
        let made = directory.path().join("d");
        assert!(rustix::fs::getxattr(&made, "trusted.overlay.redirect", &mut value).is_err());
        // Not every file system of a test machine has user attributes.
        if let Ok(length) = rustix::fs::getxattr(&made, "user.note", &mut value) {
            assert_eq!(value.get(..length), Some(b"kept".as_slice()));
        }
    }
}
