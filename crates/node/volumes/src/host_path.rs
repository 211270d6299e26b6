//! `hostPath`: a path of the node, checked against the type that the pod asks for.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::Error;

/// Checks, and for `…OrCreate` makes, `path`; `kind` is the volume's `type`, empty for no check. Errors are upstream's sentences.
pub fn prepare(path: &Path, kind: &str) -> Result<(), Error> {
    let shown = path.display();
    let found = fs::metadata(path).ok().map(|metadata| metadata.file_type());
    let refuse = |what: &str| Err(Error::Refused(format!("hostPath type check failed: {shown} is not a {what}")));
    match kind {
        "" => Ok(()),
        "Directory" if found.is_some_and(|found| found.is_dir()) => Ok(()),
        "Directory" => refuse("directory"),
        "File" if found.is_some_and(|found| found.is_file()) => Ok(()),
        "File" => refuse("file"),
        "Socket" if found.is_some_and(|found| found.is_socket()) => Ok(()),
        "Socket" => refuse("socket"),
        "CharDevice" if found.is_some_and(|found| found.is_char_device()) => Ok(()),
        "CharDevice" => refuse("character device"),
        "BlockDevice" if found.is_some_and(|found| found.is_block_device()) => Ok(()),
        "BlockDevice" => refuse("block device"),
        "DirectoryOrCreate" => match found {
            Some(found) if found.is_dir() => Ok(()),
            Some(_) => refuse("directory"),
            None => fs::DirBuilder::new().mode(0o755).recursive(true).create(path).map_err(Error::io("create directory", path)),
        },
        "FileOrCreate" => match found {
            Some(found) if found.is_file() => Ok(()),
            Some(_) => refuse("file"),
            None => {
                let made = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path);
                made.map(drop).map_err(Error::io("create", path))
            }
        },
        other => Err(Error::Refused(format!("{other} is an invalid volume type"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_in_upstreams_words() {
        let root = tempfile::tempdir().unwrap();
        let (file, directory) = (root.path().join("file"), root.path().join("a/b"));
        let refused = prepare(&file, "File").unwrap_err().to_string();
        assert_eq!(refused, format!("hostPath type check failed: {} is not a file", file.display()));
        prepare(&file, "FileOrCreate").unwrap();
        prepare(&file, "File").unwrap();
        prepare(&directory, "DirectoryOrCreate").unwrap();
        prepare(&directory, "Directory").unwrap();
        assert!(prepare(&file, "DirectoryOrCreate").is_err());
        assert!(prepare(&directory, "Socket").unwrap_err().to_string().ends_with("is not a socket"));
        prepare(Path::new("/dev/null"), "CharDevice").unwrap();
        prepare(Path::new("/does/not/exist"), "").unwrap();
    }
}
