//! What `COPY` and `ADD` bring: sources found, destinations resolved, owners looked up.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, Stat};

use crate::ignore::glob;
use crate::layer::{Content, Item, Items};
use crate::root::{Root, kind};

/// Files of one build; more is a mistake (a whole disk as context).
const ITEMS_MAX: usize = 2_000_000;

/// One `COPY`, its words expanded.
pub struct Wanted<'a> {
    pub sources: &'a [String],
    pub inline: &'a [(String, String)],
    /// Absolute; a trailing slash says that it is a folder.
    pub to: &'a str,
    pub owner: Option<(u32, u32)>,
    pub mode: Option<u32>,
    /// Where archives are unpacked to first (`ADD`).
    pub unpacks: Option<PathBuf>,
}

struct Gathering<'a> {
    wanted: &'a Wanted<'a>,
    into: &'a Root,
    items: Items,
}

/// Everything that the instruction puts into the image whose files are `into`.
pub fn gather(wanted: &Wanted<'_>, from: &Arc<Root>, into: &Root) -> io::Result<Items> {
    let mut gathering = Gathering { wanted, into, items: Items::new() };
    let mut found = Vec::new();
    for source in wanted.sources {
        let matched = expand(from, source)?;
        if matched.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{source}: not found in the build context")));
        }
        found.extend(matched);
    }
    if found.len() > 1 && !wanted.to.ends_with('/') {
        return Err(io::Error::other("with more than one source the destination must be a directory and end with a /"));
    }
    let to = into.real(wanted.to)?;
    let as_folder = wanted.to.ends_with('/') || into.is_directory(&to)?;
    for (name, content) in wanted.inline {
        let path = if as_folder { join(&to, name) } else { to.clone() };
        gathering.parents(&path)?;
        gathering.put(path, 0o644, (0, 0), 0, Content::Inline(content.clone().into_bytes()))?;
    }
    for source in found {
        let stat = from.stat(&source)?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{source}: not found")))?;
        if kind(&stat) == FileType::Directory {
            gathering.folder(&to)?;
            gathering.tree(from, &source, &to)?;
        } else if let Some(unpacked) = gathering.archive(from, &source)? {
            gathering.folder(&to)?;
            gathering.tree(&unpacked, "", &to)?;
        } else {
            let name = source.rsplit('/').next().unwrap_or_default();
            let path = if as_folder { join(&to, name) } else { to.clone() };
            gathering.parents(&path)?;
            // A link named as a source is followed; within a folder it is copied.
            gathering.file(from, &source, &stat, path)?;
        }
    }
    Ok(gathering.items)
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// The files that a pattern means.
fn expand(root: &Root, pattern: &str) -> io::Result<Vec<String>> {
    let mut found = vec![String::new()];
    for part in pattern.split('/').filter(|part| !part.is_empty() && *part != ".") {
        // As docker: a source never leaves its context.
        if part == ".." {
            found.iter_mut().for_each(|path| path.truncate(path.rfind('/').unwrap_or(0)));
            continue;
        }
        let mut next = Vec::new();
        for folder in found {
            if !part.contains(['*', '?', '[', '\\']) {
                let path = join(&folder, part);
                if root.lstat(&path).is_ok() {
                    next.push(path);
                }
            } else if root.is_directory(&folder)? {
                next.extend(root.names(&folder)?.into_iter().filter(|name| glob(part, name)).map(|name| join(&folder, &name)));
            }
        }
        found = next;
    }
    Ok(found)
}

impl Gathering<'_> {
    fn put(&mut self, path: String, mode: u32, owner: (u32, u32), modified: u64, content: Content) -> io::Result<()> {
        if self.items.len() >= ITEMS_MAX {
            return Err(io::Error::other(format!("more than {ITEMS_MAX} files")));
        }
        let mode = match (&content, self.wanted.mode) {
            (Content::Link(_), _) => 0o777,
            (_, Some(mode)) => mode,
            (_, None) => mode,
        };
        self.items.insert(path, Item { mode, owner: self.wanted.owner.unwrap_or(owner), modified, content });
        Ok(())
    }

    /// The folders above a path that are not there yet.
    fn parents(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.folder(parent),
            None => Ok(()),
        }
    }

    fn folder(&mut self, path: &str) -> io::Result<()> {
        if path.is_empty() || self.items.contains_key(path) || self.into.is_directory(path)? {
            return Ok(());
        }
        self.parents(path)?;
        let owner = self.wanted.owner.unwrap_or_default();
        self.items.insert(path.to_owned(), Item { mode: 0o755, owner, modified: 0, content: Content::Directory });
        Ok(())
    }

    fn file(&mut self, from: &Arc<Root>, source: &str, stat: &Stat, path: String) -> io::Result<()> {
        let modified = u64::try_from(stat.st_mtime).unwrap_or(0);
        match kind(stat) {
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let content = Content::File { root: from.clone(), path: source.to_owned(), size };
                self.put(path, stat.st_mode & 0o7777, (stat.st_uid, stat.st_gid), modified, content)
            }
            FileType::Symlink => {
                let target = PathBuf::from(from.link(source)?);
                self.put(path, 0o777, (stat.st_uid, stat.st_gid), modified, Content::Link(target))
            }
            // Sockets, pipes and devices are not copied, as docker does not.
            _ => Ok(()),
        }
    }

    fn tree(&mut self, from: &Arc<Root>, source: &str, to: &str) -> io::Result<()> {
        for name in from.names(source)? {
            let (source, path) = (join(source, &name), join(to, &name));
            let stat = from.lstat(&source)?;
            if kind(&stat) != FileType::Directory {
                self.file(from, &source, &stat, path)?;
                continue;
            }
            // What is there keeps its mode, and where it leads.
            let path = if self.into.is_directory(&path)? {
                self.into.real(&path)?
            } else {
                let modified = u64::try_from(stat.st_mtime).unwrap_or(0);
                self.put(path.clone(), stat.st_mode & 0o7777, (stat.st_uid, stat.st_gid), modified, Content::Directory)?;
                path
            };
            self.tree(from, &source, &path)?;
        }
        Ok(())
    }

    /// For `ADD`: the files of a local archive, told by its content.
    fn archive(&self, from: &Root, source: &str) -> io::Result<Option<Arc<Root>>> {
        let Some(folder) = &self.wanted.unpacks else { return Ok(None) };
        let Ok(plain) = images::open_archive(from.open(source)?, source) else { return Ok(None) };
        let mut block = [0_u8; 512];
        let mut plain = plain;
        if plain.read_exact(&mut block).is_err() || block.get(257..262) != Some(b"ustar") {
            return Ok(None);
        }
        let target = folder.join(self.items.len().to_string());
        std::fs::create_dir_all(&target)?;
        images::unpack_archive(from.open(source)?, &target).map_err(io::Error::other)?;
        Ok(Some(Arc::new(Root::folder(&target)?)))
    }
}

/// `user[:group]`, by number or by name in the image's own files.
pub fn owner(text: &str, into: &Root) -> io::Result<(u32, u32)> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    if let Ok(uid) = user.parse::<u32>() {
        // A number alone is both.
        if let Some(gid) = group.map_or(Some(uid), |group| group.parse().ok()) {
            return Ok((uid, gid));
        }
    }
    let read = |path: &str| into.read(path);
    let found = oci::user::resolve(text, &read("etc/passwd")?, &read("etc/group")?).map_err(|error| io::Error::other(error.to_string()))?;
    Ok((found.user.uid, found.user.gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots() -> (tempfile::TempDir, Arc<Root>, Root) {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        for path in ["context/dir/sub", "image/usr/bin", "image/opt", "image/etc"] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        for path in ["context/a.txt", "context/b.txt", "context/c.md", "context/dir/sub/deep"] {
            std::fs::write(at(path), path).unwrap();
        }
        std::os::unix::fs::symlink("sub/deep", at("context/dir/link")).unwrap();
        std::os::unix::fs::symlink("/etc/shadow", at("context/out")).unwrap();
        std::os::unix::fs::symlink("usr/bin", at("image/bin")).unwrap();
        std::fs::write(at("image/etc/passwd"), "www:x:33:44::/:/bin/sh\n").unwrap();
        std::fs::write(at("image/etc/group"), "other:x:55:\n").unwrap();
        let (context, image) = (Root::folder(&at("context")).unwrap(), Root::folder(&at("image")).unwrap());
        (folder, Arc::new(context), image)
    }

    fn paths(sources: &[&str], to: &str) -> io::Result<Vec<String>> {
        let (_folder, context, image) = roots();
        let sources: Vec<String> = sources.iter().map(|s| (*s).to_owned()).collect();
        let wanted = Wanted { sources: &sources, inline: &[], to, owner: None, mode: None, unpacks: None };
        Ok(gather(&wanted, &context, &image)?.into_keys().collect())
    }

    #[test]
    fn files_land_where_docker_puts_them() {
        for (sources, to, expected) in [
            (&["a.txt"][..], "/opt/x", &["opt/x"][..]),
            (&["a.txt"], "/opt", &["opt/a.txt"]),
            (&["a.txt"], "/new/", &["new", "new/a.txt"]),
            (&["a.txt"], "/bin/", &["usr/bin/a.txt"]),
            (&["*.txt", "c.md"], "/opt/", &["opt/a.txt", "opt/b.txt", "opt/c.md"]),
            (&["dir"], "/opt/", &["opt/link", "opt/sub", "opt/sub/deep"]),
            (&["dir/"], "/made", &["made", "made/link", "made/sub", "made/sub/deep"]),
            (&["../../a.txt"], "/opt/", &["opt/a.txt"]),
            (&["dir/s*/deep"], "/x/y", &["x", "x/y"]),
        ] {
            assert_eq!(paths(sources, to).unwrap(), expected, "{sources:?} {to}");
        }
    }

    #[test]
    fn sources_that_are_not_there_or_lead_out_are_errors() {
        for (sources, reason) in [(&["none"][..], "none: not found in the build context"), (&["*.x"], "not found"), (&["out"], "not found")]
        {
            let error = paths(sources, "/x").unwrap_err().to_string();
            assert!(error.contains(reason), "{sources:?}: {error}");
        }
        assert!(paths(&["*.txt"], "/x").unwrap_err().to_string().contains("end with a /"));
    }

    #[test]
    fn owners_are_numbers_or_the_images_own_names() {
        let (_folder, _, image) = roots();
        for (text, ids) in [("7", (7, 7)), ("7:8", (7, 8)), ("www", (33, 44)), ("www:other", (33, 55))] {
            assert_eq!(owner(text, &image).unwrap(), ids, "{text}");
        }
        assert!(owner("nobody-here", &image).is_err());
    }
}
