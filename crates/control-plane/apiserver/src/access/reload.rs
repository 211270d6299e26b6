//! Configuration that may change while the server runs: read at the start, and again whenever its file does.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use stdx::Drain;

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub enum Source {
    Text(String),
    /// Looked at while the server runs.
    File(PathBuf),
}

/// How often files are looked at. Only where there are any: a server without such files is not woken.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Source {
    pub fn read(&self) -> Result<String, String> {
        match self {
            Source::Text(text) => Ok(text.clone()),
            Source::File(path) => fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display())),
        }
    }

    /// Hands the text to `apply` at every change until the drain. What cannot be applied is said in the log, and what was before stays.
    pub async fn follow(self, drain: Drain, what: &'static str, apply: impl AsyncFn(&str) -> Result<(), String>) {
        let Source::File(path) = &self else { return };
        let state = || fs::metadata(path).map(|file| (file.ino(), file.mtime(), file.mtime_nsec(), file.len())).ok();
        let mut seen = state();
        while drain.run(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let now = state();
            if now == seen || now.is_none() {
                continue;
            }
            seen = now;
            let applied = match self.read() {
                Ok(text) => apply(&text).await,
                Err(why) => Err(why),
            };
            if let Some(metrics) = super::metrics() {
                metrics.reloaded(what, applied.is_ok());
            }
            match applied {
                Ok(()) => tracing::info!(file = %path.display(), what, "configuration was read again"),
                Err(why) => tracing::error!(file = %path.display(), what, why, "configuration cannot be used; the former one stays"),
            }
        }
    }
}
