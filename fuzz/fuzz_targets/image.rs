//! What strangers' images consist of: layers, compressed or not, manifests, references.
//!
//! Byte 0 chooses the reader. A layer is unpacked beside a file that it must not reach; as root it may make devices and owners, as on a node.

#![no_main]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// In memory where the machine has that, so that its disk is not what is measured.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = parent.join(format!("sternpost-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("outside"), "untouched").expect("a file outside");
        folder
    })
}

fn unpack(bytes: &[u8]) {
    let (outside, target) = (folder().join("outside"), folder().join("layer"));
    std::fs::create_dir_all(&target).expect("the layer's folder");
    let _ = images::unpack_archive(bytes, &target);
    assert_eq!(std::fs::read_dir(folder()).expect("the folder").count(), 2, "an entry was placed outside of the layer");
    assert_eq!(std::fs::read(&outside).expect("the file outside"), b"untouched");
    assert_eq!(std::fs::symlink_metadata(&outside).expect("the file outside").nlink(), 1, "a hard link leads out of the layer");
    std::fs::remove_dir_all(&target).expect("an unpacked layer can be removed");
}

/// Entries with right checksums, which no mutation of raw bytes finds: a byte of the type, one of the name's length, one of the link's, one of
/// the body's, then these.
fn archive(mut from: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    while let [kind, name, link, body, rest @ ..] = from {
        let (name, rest) = rest.split_at(usize::from(*name).min(100).min(rest.len()));
        let (link, rest) = rest.split_at(usize::from(*link).min(100).min(rest.len()));
        let (content, rest) = rest.split_at(usize::from(*body).min(rest.len()));
        let mut header = tar::Header::new_gnu();
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name);
        fields.linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_mode(0o4755);
        header.set_size(u64::from(*body));
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
        from = rest;
    }
    archive
}

fuzz_target!(|input: &[u8]| {
    let [choice, rest @ ..] = input else { return };
    match choice % 8 {
        0 => {
            if let Ok(document) = images::Document::parse(rest) {
                let _ = (document.is_index(), document.kind().len(), document.ours().is_ok(), document.references().count());
            }
        }
        1 => {
            if let Some(reference) = std::str::from_utf8(rest).ok().and_then(|text| images::Reference::parse(text).ok()) {
                let shown = reference.to_string();
                assert_eq!(images::Reference::parse(&shown).expect("our own words").to_string(), shown);
            }
        }
        2 => unpack(rest),
        _ => unpack(&archive(rest)),
    }
});
