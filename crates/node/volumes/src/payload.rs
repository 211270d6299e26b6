//! From the keys of a ConfigMap, Secret or anything else to the files of a volume.

use std::collections::BTreeMap;

use crate::Error;

/// One file: its bytes, permission bits, and owner (root where absent).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub bytes: Vec<u8>,
    pub mode: u32,
    pub uid: Option<u32>,
}

/// Relative paths to files.
pub type Payload = BTreeMap<String, File>;

/// One of a source's `items`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub key: String,
    pub path: String,
    pub mode: Option<u32>,
}

/// What a key is called in an error: `config key` or `secret key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    ConfigMap,
    Secret,
}

/// The files of `data`: all keys, or the chosen `items`. A missing key is an error unless `optional`.
pub fn of_keys(
    source: Source,
    data: &BTreeMap<String, Vec<u8>>,
    items: &[Item],
    default_mode: u32,
    optional: bool,
) -> Result<Payload, Error> {
    if items.is_empty() {
        let file = |bytes: &Vec<u8>| File { bytes: bytes.clone(), mode: default_mode, uid: None };
        return Ok(data.iter().map(|(key, bytes)| (key.clone(), file(bytes))).collect());
    }
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => {
                payload.insert(item.path.clone(), File { bytes: bytes.clone(), mode: item.mode.unwrap_or(default_mode), uid: None });
            }
            None if optional => {}
            None => {
                let what = if source == Source::ConfigMap { "config" } else { "secret" };
                return Err(Error::Refused(format!("references non-existent {what} key: {}", item.key)));
            }
        }
    }
    Ok(payload)
}

/// Refuses paths that could leave the volume, in upstream's words.
pub(crate) fn check_path(path: &str) -> Result<(), Error> {
    let refuse = |why: &str| Err(Error::Refused(format!("invalid path: {why}: {path}")));
    if path.is_empty() {
        return refuse("must not be empty");
    }
    if path.starts_with('/') {
        return refuse("must be relative path");
    }
    if path.len() > 4096 || path.contains('\0') {
        return refuse("must be less than or equal to 4096 characters");
    }
    if path.split('/').any(|part| part == "..") {
        return refuse("must not contain '..'");
    }
    if path.starts_with("..") {
        return refuse("must not start with '..'");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_choose_rename_and_must_exist_unless_optional() {
        let data = BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let item = |key: &str, path: &str, mode| Item { key: key.into(), path: path.into(), mode };
        assert_eq!(of_keys(Source::Secret, &data, &[], 0o644, false).unwrap().len(), 2);
        let chosen = of_keys(Source::Secret, &data, &[item("a", "x/y", Some(0o400))], 0o644, false).unwrap();
        assert_eq!(chosen, Payload::from([("x/y".to_owned(), File { bytes: b"1".to_vec(), mode: 0o400, uid: None })]));
        let missing = of_keys(Source::Secret, &data, &[item("c", "c", None)], 0o644, false).unwrap_err();
        assert_eq!(missing.to_string(), "references non-existent secret key: c");
        assert!(of_keys(Source::ConfigMap, &data, &[item("c", "c", None)], 0o644, true).unwrap().is_empty());
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        for path in ["", "/etc/passwd", "a/../../b", "..data", "..", "a\0b"] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
        for path in ["a", "a/b", "a..b", ".hidden"] {
            assert!(check_path(path).is_ok(), "{path:?}");
        }
    }
}
