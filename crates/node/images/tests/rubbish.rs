//! Bytes that nobody vouches for: whatever they are, they are an error or an archive, and nothing is made outside. Needs root to unpack.

use std::io::Write;

use images::{Document, Reference, Store};
use proptest::prelude::*;

fn header(name: &[u8], kind: u8, size: u64, link: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    let fields = header.as_old_mut();
    fields.name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    fields.linkname[..link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o755);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

prop_compose! {
    /// Paths that an attacker would try, and others.
    fn path()(parts in prop::collection::vec(prop_oneof![Just(".."), Just("."), Just("a"), Just("b"), Just(".wh.a"), Just(".wh..wh..opq"), Just("")], 0..5)) -> String {
        parts.join("/")
    }
}

prop_compose! {
    fn entry()(
        name in path(), link in path(), size in prop_oneof![Just(0_u64), 0_u64..2000, Just(u64::MAX >> 2)],
        kind in prop::sample::select(b"0125gxLKSx34567\0".to_vec()), body in prop::collection::vec(any::<u8>(), 0..600),
    ) -> Vec<u8> {
        let mut bytes = header(name.as_bytes(), kind, size, link.as_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn an_archive_of_anything_stays_below_its_folder(entries in prop::collection::vec(entry(), 0..8), packed in any::<bool>()) {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("deep/target");
        std::fs::create_dir_all(&target).unwrap();
        let mut bytes = entries.concat();
        if packed {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&bytes).unwrap();
            bytes = gzip.finish().unwrap();
        }
        let _ = images::unpack_archive(bytes.as_slice(), &target);
        let made = |path: &str| std::fs::read_dir(directory.path().join(path)).unwrap().count();
        prop_assert_eq!((made(""), made("deep")), (1, 1));
        let store = Store::open(directory.path().join("store")).unwrap();
        prop_assert!(store.import(bytes.as_slice()).is_err(), "no manifest can be in it");
        prop_assert_eq!(std::fs::read_dir(directory.path().join("store/ingest")).unwrap().count(), 0);
    }

    #[test]
    fn documents_names_and_streams_of_anything_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..2000), text in ".{0,80}") {
        let directory = tempfile::tempdir().unwrap();
        let _ = Document::parse(&bytes);
        let _ = Document::parse(text.as_bytes());
        for magic in [&b""[..], &[0x1f, 0x8b, 8, 0], &[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18]] {
            let _ = images::unpack_archive([magic, &bytes].concat().as_slice(), directory.path());
        }
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
        }
    }
}
