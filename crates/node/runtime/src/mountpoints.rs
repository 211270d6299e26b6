//! The files and directories that every container has something mounted on, below its image's layers.
//!
//! Few images have all of them. Made in each container's own layer, they are copied up and written to the disk one by one: half of the time
//! that a root file system takes. So they are a layer below the image's own, made once for all containers that need the same ones; what the image has
//! at such a path counts before it.

use std::io;
use std::path::{Path, PathBuf};

/// Path, and whether it is a directory.
const STANDARD: [(&str, bool); 7] = [
    ("/dev", true),
    ("/proc", true),
    ("/sys", true),
    ("/etc/hostname", false),
    ("/etc/hosts", false),
    ("/etc/resolv.conf", false),
    ("/var/run/secrets/kubernetes.io/serviceaccount", true),
];

/// The layer with exactly those of the standard ones that `targets` names (path, whether it is a directory). Doing it again changes nothing.
pub fn layer<'a>(data_dir: &Path, targets: impl Iterator<Item = (&'a str, bool)>) -> io::Result<PathBuf> {
    let targets: Vec<(&str, bool)> = targets.collect();
    let wanted: Vec<bool> = STANDARD.iter().map(|one| targets.contains(one)).collect();
    let name: String = wanted.iter().map(|one| if *one { '1' } else { '0' }).collect();
    let folder = data_dir.join("mountpoints");
    let path = folder.join(name);
    if path.is_dir() {
        return Ok(path);
    }
    std::fs::create_dir_all(&folder)?;
    let temporary = folder.join(crate::state::new_id().map_err(io::Error::other)?);
    make(&temporary, STANDARD.iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(one, _)| *one))?;
    match std::fs::rename(&temporary, &path) {
        // Another container was faster.
        Err(_) if path.is_dir() => std::fs::remove_dir_all(&temporary)?,
        other => other?,
    }
    Ok(path)
}

fn make<'a>(root: &Path, targets: impl Iterator<Item = (&'a str, bool)>) -> io::Result<()> {
    std::fs::create_dir(root)?;
    for (target, directory) in targets {
        let path = root.join(target.trim_start_matches('/'));
        if directory {
            std::fs::create_dir_all(path)?;
            continue;
        }
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::File::create(path)?;
    }
    Ok(())
}

/// What a daemon that was killed left unfinished.
pub fn clean(data_dir: &Path) {
    for entry in std::fs::read_dir(data_dir.join("mountpoints")).into_iter().flatten().flatten() {
        if entry.file_name().len() != STANDARD.len() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_with_the_same_standard_mounts_share_a_layer_that_has_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        let of = |targets: &[(&str, bool)]| layer(data.path(), targets.iter().copied()).unwrap();
        let first = of(&[("/proc", true), ("/etc/hosts", false), ("/data", true), ("/etc/hostname", true)]);
        assert!(first.join("proc").is_dir() && first.join("etc/hosts").is_file());
        assert!(!first.join("data").exists() && !first.join("dev").exists() && !first.join("etc/hostname").exists());
        assert_eq!(first, of(&[("/etc/hosts", false), ("/proc", true)]));
        assert_ne!(first, of(&[("/proc", true)]));
        std::fs::create_dir(data.path().join("mountpoints/unfinished")).unwrap();
        clean(data.path());
        assert_eq!(std::fs::read_dir(data.path().join("mountpoints")).unwrap().count(), 2);
    }
}
