//! The tar streams of layers: what `COPY` brings, and what a command has changed. The same files give the same bytes.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tar::EntryType;

use crate::root::Root;

/// One file of a layer, by its path from the root.
#[derive(Clone)]
pub struct Item {
    pub mode: u32,
    pub owner: (u32, u32),
    /// Seconds since 1970.
    pub modified: u64,
    pub content: Content,
}

#[derive(Clone)]
pub enum Content {
    Directory,
    Link(PathBuf),
    Inline(Vec<u8>),
    File { root: Arc<Root>, path: String, size: u64 },
}

/// In the order of paths: a folder comes before what is in it.
pub type Items = BTreeMap<String, Item>;

/// What the files are, but not from when.
pub fn digest(items: &Items) -> io::Result<String> {
    let mut hash = Sha256::new();
    for (path, item) in items {
        hash.update(format!("{}:{path}:{:o}:{}:{}:", path.len(), item.mode, item.owner.0, item.owner.1));
        match &item.content {
            Content::Directory => hash.update("d"),
            Content::Link(to) => hash.update(to.as_os_str().as_bytes()),
            Content::Inline(bytes) => hash.update(bytes),
            Content::File { root, path, size } => {
                hash.update(format!("f{size}:"));
                io::copy(&mut root.open(path)?, &mut hash)?;
            }
        }
    }
    Ok(format!("{:x}", hash.finalize()))
}

fn header(kind: EntryType, mode: u32, owner: (u32, u32), modified: u64, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode & 0o7777);
    header.set_uid(owner.0.into());
    header.set_gid(owner.1.into());
    header.set_mtime(modified);
    header.set_size(size);
    header
}

/// Writes files; `latest` cuts their times (`SOURCE_DATE_EPOCH`).
pub fn write(items: &Items, to: &mut dyn Write, latest: Option<u64>) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    for (path, item) in items {
        let modified = latest.map_or(item.modified, |latest| item.modified.min(latest));
        let of = |kind, size| header(kind, item.mode, item.owner, modified, size);
        match &item.content {
            Content::Directory => archive.append_data(&mut of(EntryType::Directory, 0), format!("{path}/"), io::empty())?,
            Content::Link(target) => archive.append_link(&mut of(EntryType::Symlink, 0), path, target)?,
            Content::Inline(bytes) => archive.append_data(&mut of(EntryType::Regular, bytes.len() as u64), path, bytes.as_slice())?,
            Content::File { root, path: from, size } => {
                let file = root.open(from)?.take(*size);
                archive.append_data(&mut of(EntryType::Regular, *size), path, exactly(file, *size))?;
            }
        }
    }
    archive.finish()
}

/// A file that changes while it is read must not spoil the archive: its end is filled up.
fn exactly(from: impl Read, size: u64) -> impl Read {
    from.chain(io::repeat(0)).take(size)
}

/// Writes what an overlay's upper folder says: changed files, and whiteouts for removed ones.
pub fn write_changes(upper: &Path, to: &mut dyn Write, latest: Option<u64>) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    let mut links = HashMap::new();
    changes(&mut archive, upper, Path::new(""), latest, &mut links)?;
    archive.finish()
}

/// Whether a command has changed nothing that counts.
pub fn is_unchanged(upper: &Path) -> io::Result<bool> {
    Ok(listed(upper, Path::new(""))?.is_empty())
}

/// What is put over an image's files while a command runs is none of its own.
fn is_ours(path: &Path, metadata: &std::fs::Metadata) -> bool {
    let text = path.to_string_lossy();
    match text.as_ref() {
        "etc/resolv.conf" | "etc/hosts" | "etc/hostname" => metadata.len() == 0 && metadata.is_file(),
        other => {
            ["dev", "proc", "sys"].iter().any(|top| other.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
        }
    }
}

fn listed(upper: &Path, relative: &Path) -> io::Result<Vec<(PathBuf, std::fs::Metadata)>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(upper.join(relative))? {
        let entry = entry?;
        let path = relative.join(entry.file_name());
        let metadata = entry.metadata()?;
        if !is_ours(&path, &metadata) {
            entries.push((path, metadata));
        }
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(entries)
}

fn changes(
    archive: &mut tar::Builder<&mut dyn Write>,
    upper: &Path,
    relative: &Path,
    latest: Option<u64>,
    links: &mut HashMap<u64, PathBuf>,
) -> io::Result<()> {
    for (path, metadata) in listed(upper, relative)? {
        let whole = upper.join(&path);
        let kind = metadata.file_type();
        let modified = u64::try_from(metadata.mtime()).unwrap_or(0);
        let modified = latest.map_or(modified, |latest| modified.min(latest));
        let of = |kind, size| header(kind, metadata.mode(), (metadata.uid(), metadata.gid()), modified, size);
        if kind.is_char_device() && metadata.rdev() == 0 {
            let mut name = std::ffi::OsString::from(".wh.");
            name.push(path.file_name().unwrap_or_default());
            archive.append_data(&mut of(EntryType::Regular, 0), path.with_file_name(name), io::empty())?;
            continue;
        }
        attributes(archive, &whole, kind.is_symlink())?;
        if kind.is_dir() {
            archive.append_data(&mut of(EntryType::Directory, 0), path.join(""), io::empty())?;
            if attribute(&whole, "trusted.overlay.opaque").as_deref() == Some(b"y") {
                archive.append_data(&mut of(EntryType::Regular, 0), path.join(".wh..wh..opq"), io::empty())?;
            }
            changes(archive, upper, &path, latest, links)?;
        } else if kind.is_symlink() {
            archive.append_link(&mut of(EntryType::Symlink, 0), &path, std::fs::read_link(&whole)?)?;
        } else if kind.is_file() {
            let first = (metadata.nlink() > 1).then(|| links.get(&metadata.ino()).cloned()).flatten();
            match first {
                Some(first) => archive.append_link(&mut of(EntryType::Link, 0), &path, first)?,
                None => {
                    links.insert(metadata.ino(), path.clone());
                    let file = std::fs::File::open(&whole)?.take(metadata.len());
                    archive.append_data(&mut of(EntryType::Regular, metadata.len()), &path, exactly(file, metadata.len()))?;
                }
            }
        } else if kind.is_fifo() {
            archive.append_data(&mut of(EntryType::Fifo, 0), &path, io::empty())?;
        } else if kind.is_char_device() || kind.is_block_device() {
            let mut header = of(if kind.is_block_device() { EntryType::Block } else { EntryType::Char }, 0);
            header.set_device_major(rustix::fs::major(metadata.rdev()))?;
            header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
            archive.append_data(&mut header, &path, io::empty())?;
        }
        // A socket is nothing without its process.
    }
    Ok(())
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0_u8; 64 << 10];
    let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

/// Capabilities and users' own attributes, as pax records.
fn attributes(archive: &mut tar::Builder<&mut dyn Write>, path: &Path, is_link: bool) -> io::Result<()> {
    if is_link {
        return Ok(());
    }
    let mut list = vec![0_u8; 64 << 10];
    let Ok(length) = rustix::fs::llistxattr(path, list.as_mut_slice()) else { return Ok(()) };
    let names = list.get(..length).unwrap_or_default().split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
    let mut names: Vec<&str> = names.filter(|name| name.starts_with("user.") || *name == "security.capability").collect();
    names.sort_unstable();
    let records: Vec<(String, Vec<u8>)> =
        names.into_iter().filter_map(|name| Some((format!("SCHILY.xattr.{name}"), attribute(path, name)?))).collect();
    if records.is_empty() {
        return Ok(());
    }
    archive.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(bytes: &[u8]) -> Vec<(String, char)> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(Result::unwrap);
        entries.map(|entry| (entry.path().unwrap().display().to_string(), entry.header().entry_type().as_byte() as char)).collect()
    }

    #[test]
    fn what_a_command_changed_becomes_files_links_and_whiteouts() {
        let upper = tempfile::tempdir().unwrap();
        let at = |path: &str| upper.path().join(path);
        for folder in ["a", "proc", "etc", "emptied"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        std::fs::write(at("a/file"), "x").unwrap();
        std::fs::hard_link(at("a/file"), at("a/same")).unwrap();
        std::os::unix::fs::symlink("file", at("a/link")).unwrap();
        std::fs::write(at("etc/resolv.conf"), "").unwrap();
        std::fs::write(at("etc/hosts"), "mine").unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("gone"), rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty(), 0).unwrap();
        rustix::fs::setxattr(at("emptied"), "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        let mut bytes = Vec::new();
        write_changes(upper.path(), &mut bytes, Some(7)).unwrap();
        let expected = [
            ("a/", '5'),
            ("a/file", '0'),
            ("a/link", '2'),
            ("a/same", '1'),
            ("emptied/", '5'),
            ("emptied/.wh..wh..opq", '0'),
            ("etc/", '5'),
            ("etc/hosts", '0'),
            (".wh.gone", '0'),
        ];
        assert_eq!(listing(&bytes), expected.map(|(path, kind)| (path.to_owned(), kind)));
        let mut again = Vec::new();
        write_changes(upper.path(), &mut again, Some(7)).unwrap();
        assert_eq!(bytes, again);
    }
}
