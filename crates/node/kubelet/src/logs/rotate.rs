//! Rotation of the logs of running containers (upstream: `containerLogMaxSize`, `containerLogMaxFiles`).
//!
//! A log that has grown too large is renamed to `<log>.<time>` and the runtime is told to open a new one; the file that was rotated
//! before it is compressed to `.gz`, and the oldest go. `kubectl logs` reads the file that is written now, as upstream.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::v1;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::crispec;
use crate::worker::Agent;

impl Agent {
    /// Looks at every running container's log once in `Config::log_interval`.
    pub async fn rotate_logs(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.config.log_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.rotate_once().await {
                tracing::warn!(%error, "list containers to rotate their logs; will retry");
            }
        }
    }

    async fn rotate_once(&self) -> cri::Result<()> {
        let state = Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning as i32 });
        let filter = Some(v1::ContainerFilter { state, ..Default::default() });
        let containers = self.runtime.list_containers(v1::ListContainersRequest { filter }).await?.containers;
        let logs: Vec<(String, PathBuf)> =
            containers.iter().filter_map(|container| Some((container.id.clone(), self.log_of(container)?))).collect();
        let bytes_max = self.config.log_bytes_max;
        let large = move || logs.into_iter().filter(|(_, path)| is_due(path, bytes_max)).collect::<Vec<_>>();
        for (id, path) in tokio::task::spawn_blocking(large).await.unwrap_or_default() {
            if let Err(error) = self.rotate(&id, &path).await {
                tracing::warn!(container = id, log = %path.display(), error, "rotate a log; will retry");
            }
        }
        Ok(())
    }

    fn log_of(&self, container: &v1::Container) -> Option<PathBuf> {
        let label = |name: &str| container.labels.get(name).map(String::as_str);
        let pod = [crispec::LABEL_NAMESPACE, crispec::LABEL_POD, crispec::LABEL_UID].map(label);
        let [Some(namespace), Some(name), Some(uid)] = pod else { return None };
        let metadata = container.metadata.as_ref()?;
        let directory = self.config.log_directory.join(format!("{namespace}_{name}_{uid}")).join(&metadata.name);
        Some(directory.join(format!("{}.log", metadata.attempt)))
    }

    async fn rotate(&self, id: &str, path: &Path) -> Result<(), String> {
        let (log, files_max) = (path.to_owned(), self.config.log_files_max);
        let moved = tokio::task::spawn_blocking(move || make_room(&log, files_max).and_then(|()| move_away(&log, Timestamp::now()))).await;
        let moved = moved.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let reopened = self.runtime.reopen_container_log(v1::ReopenContainerLogRequest { container_id: id.into() }).await;
        reopened.map(drop).map_err(|error| {
            // The container goes on in the old file: it keeps the name under which it is looked for.
            let _ = moved.map(|moved| std::fs::rename(moved, path));
            error.message
        })
    }
}

/// Too large, or gone: then the runtime must open it anew.
fn is_due(path: &Path, bytes_max: u64) -> bool {
    match std::fs::metadata(path) {
        Ok(metadata) => metadata.len() > bytes_max,
        Err(error) => error.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir),
    }
}

/// Compresses what was rotated and removes the oldest, so that with the file in use and the next one there are at most `files_max`.
fn make_room(log: &Path, files_max: usize) -> io::Result<()> {
    let mut rotated = rotated(log)?;
    let (unfinished, whole): (Vec<_>, Vec<_>) = rotated.drain(..).partition(|path| path.extension().is_some_and(|end| end == "tmp"));
    unfinished.iter().try_for_each(std::fs::remove_file)?;
    let excess = whole.len().saturating_sub(files_max.saturating_sub(2));
    let (old, kept) = whole.split_at(excess);
    old.iter().try_for_each(std::fs::remove_file)?;
    kept.iter().filter(|path| path.extension().is_none_or(|end| end != "gz")).try_for_each(|path| compress(path))
}

/// `<log>.<time>` with and without `.gz`, the oldest first.
fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else { return Ok(Vec::new()) };
    let prefix = format!("{name}.");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn compress(path: &Path) -> io::Result<()> {
    let with = |end: &str| PathBuf::from(format!("{}.{end}", path.display()));
    let temporary = with("tmp");
    let mut encoder = flate2::write::GzEncoder::new(File::create(&temporary)?, flate2::Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?;
    std::fs::rename(&temporary, with("gz"))?;
    std::fs::remove_file(path)
}

/// `None` where there was no file.
fn move_away(log: &Path, now: Timestamp) -> io::Result<Option<PathBuf>> {
    let time = now.to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M%S").to_string();
    let target = PathBuf::from(format!("{}.{time}", log.display()));
    match std::fs::rename(log, &target) {
        Ok(()) => Ok(Some(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a log and what was rotated from it; what is not there is as good as removed.
pub fn remove(log: &Path) {
    for path in rotated(log).unwrap_or_default().iter().map(PathBuf::as_path).chain([log]) {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn rotation_keeps_the_newest_files_and_compresses_all_but_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        for second in 0..6 {
            std::fs::write(&log, format!("entry {second}")).unwrap();
            make_room(&log, 4).unwrap();
            move_away(&log, Timestamp::from_second(second).unwrap()).unwrap();
        }
        std::fs::write(&log, "now").unwrap();
        let expected = ["0.log", "0.log.19700101-000003.gz", "0.log.19700101-000004.gz", "0.log.19700101-000005"];
        assert_eq!(names(directory.path()), expected);
        let mut text = String::new();
        let packed = File::open(directory.path().join(expected[2])).unwrap();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
        assert_eq!(text, "entry 4");
    }

    #[test]
    fn an_interrupted_compression_is_done_again() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("1.log");
        for name in ["1.log.20260101-000000", "1.log.20260101-000000.tmp", "10.log.20260101-000000"] {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        make_room(&log, 5).unwrap();
        assert_eq!(names(directory.path()), ["1.log.20260101-000000.gz", "10.log.20260101-000000"]);
        remove(&log);
        assert_eq!(names(directory.path()), ["10.log.20260101-000000"]);
    }

    #[test]
    fn a_log_is_rotated_when_it_is_too_large_or_gone() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        assert!(is_due(&log, 3));
        std::fs::write(&log, "abc").unwrap();
        assert!(!is_due(&log, 3));
        std::fs::write(&log, "abcd").unwrap();
        assert!(is_due(&log, 3));
        assert!(!is_due(Path::new("/does/not/exist/0.log"), 3));
    }
}
