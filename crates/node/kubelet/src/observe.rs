//! One look at the runtime: a pod's sandboxes and containers, the dead ones included.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use cri::{RuntimeService, v1};
use jiff::Timestamp;

use crate::crispec;
use crate::world::{Sandbox, Seen, State};

/// Upstream's limits for a termination message, and for one taken from the log's end.
const MESSAGE_BYTES_MAX: u64 = 4096;
const LOG_MESSAGE_BYTES_MAX: u64 = 2048;
const LOG_MESSAGE_LINES_MAX: usize = 80;

#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Newest first.
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Seen>,
}

fn by_uid(uid: &str) -> HashMap<String, String> {
    HashMap::from([(crispec::LABEL_UID.to_owned(), uid.to_owned())])
}

/// Nanoseconds since 1970; 0 is "not yet".
fn time(nanos: i64) -> Option<Timestamp> {
    (nanos > 0).then(|| Timestamp::from_nanosecond(i128::from(nanos)).ok()).flatten()
}

pub async fn observe(runtime: &dyn RuntimeService, uid: &str, runtime_name: &Arc<str>) -> cri::Result<Observed> {
    let filter = v1::PodSandboxFilter { label_selector: by_uid(uid), ..Default::default() };
    let mut listed = runtime.list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(filter) }).await?.items;
    listed.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.metadata.as_ref().map_or(0, |metadata| metadata.attempt), sandbox.created_at)));
    let mut sandboxes = Vec::with_capacity(listed.len());
    for sandbox in listed {
        let ready = sandbox.state == v1::PodSandboxState::SandboxReady as i32;
        let ips = if ready { sandbox_ips(runtime, &sandbox.id).await? } else { Vec::new() };
        sandboxes.push(Sandbox { attempt: sandbox.metadata.map_or(0, |metadata| metadata.attempt), id: sandbox.id, ready, ips });
    }
    let filter = v1::ContainerFilter { label_selector: by_uid(uid), ..Default::default() };
    let listed = runtime.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await?.containers;
    let mut containers = Vec::with_capacity(listed.len());
    for container in listed {
        let request = v1::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
        match runtime.container_status(request).await {
            Ok(answer) => containers.extend(answer.status.map(|status| seen(status, container.pod_sandbox_id, runtime_name))),
            // Removed since the list.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Observed { sandboxes, containers })
}

async fn sandbox_ips(runtime: &dyn RuntimeService, id: &str) -> cri::Result<Vec<String>> {
    let answer = runtime.pod_sandbox_status(v1::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false }).await?;
    let network = answer.status.and_then(|status| status.network).unwrap_or_default();
    let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    Ok(all.filter(|ip| !ip.is_empty()).collect())
}

fn seen(status: v1::ContainerStatus, sandbox_id: String, runtime_name: &Arc<str>) -> Seen {
    let state = match v1::ContainerState::try_from(status.state) {
        Ok(v1::ContainerState::ContainerCreated) => State::Created,
        Ok(v1::ContainerState::ContainerRunning) => State::Running,
        Ok(v1::ContainerState::ContainerExited) => State::Exited,
        _ => State::Unknown,
    };
    let metadata = status.metadata.clone().unwrap_or_default();
    let restarts = status.annotations.get(crispec::ANNOTATION_RESTARTS).and_then(|text| text.parse().ok());
    let image = status.image.clone().unwrap_or_default();
    let shown = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    Seen {
        message: if state == State::Exited { last_words(&status) } else { String::new() },
        sandbox_id,
        attempt: restarts.unwrap_or(metadata.attempt),
        name: status.labels.get(crispec::LABEL_CONTAINER).cloned().unwrap_or(metadata.name),
        state,
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason,
        image: shown,
        image_id: if status.image_ref.is_empty() { status.image_id } else { status.image_ref },
        hash: status.annotations.get(crispec::ANNOTATION_HASH).cloned().unwrap_or_default(),
        runtime: runtime_name.clone(),
        resources: status.resources.and_then(|resources| resources.linux),
        user: status.user.and_then(|user| user.linux),
        id: status.id,
    }
}

/// The termination message: the container's file, else the end of its log where it asked for that, else the runtime's own words.
fn last_words(status: &v1::ContainerStatus) -> String {
    let file = status.annotations.get(crispec::ANNOTATION_MESSAGE_FILE).map(Path::new);
    let own = file.and_then(|file| tail(file, MESSAGE_BYTES_MAX)).filter(|text| !text.is_empty());
    if let Some(own) = own {
        return own;
    }
    let falls_back = status.annotations.get(crispec::ANNOTATION_MESSAGE_POLICY).is_some_and(|policy| policy == "FallbackToLogsOnError");
    if falls_back && status.exit_code != 0 && !status.log_path.is_empty() {
        let raw = tail(Path::new(&status.log_path), LOG_MESSAGE_BYTES_MAX * 4).unwrap_or_default();
        return log_end(&raw);
    }
    status.message.clone()
}

/// The last `bytes_max` bytes of a plain file; a link or device that a container put there is not read.
fn tail(path: &Path, bytes_max: u64) -> Option<String> {
    let metadata = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let mut file = std::fs::File::open(path).ok()?;
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(bytes_max))).ok()?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn log_end(raw: &str) -> String {
    // `time stream tag content`: a line whose tag is P goes on, and the container wrote no line feed there.
    let entry = |line: &str| {
        let mut parts = line.splitn(4, ' ').skip(2);
        let (tag, content) = (parts.next()?.to_owned(), parts.next()?);
        Some(if tag.starts_with('P') { content.to_owned() } else { format!("{content}\n") })
    };
    let contents: Vec<String> = raw.lines().filter_map(entry).collect();
    let mut text = contents[contents.len().saturating_sub(LOG_MESSAGE_LINES_MAX)..].concat();
    let mut from = text.len().saturating_sub(LOG_MESSAGE_BYTES_MAX as usize);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.split_off(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_come_from_the_file_then_the_log_then_the_runtime() {
        let root = tempfile::tempdir().unwrap();
        let (file, log) = (root.path().join("message"), root.path().join("log"));
        std::fs::write(&log, "2026-01-01T00:00:00Z stderr F one\n2026-01-01T00:00:00Z stderr F two\n").unwrap();
        let mut status =
            v1::ContainerStatus { exit_code: 1, message: "runtime".into(), log_path: log.display().to_string(), ..Default::default() };
        status.annotations.insert(crispec::ANNOTATION_MESSAGE_FILE.into(), file.display().to_string());
        assert_eq!(last_words(&status), "runtime");
        status.annotations.insert(crispec::ANNOTATION_MESSAGE_POLICY.into(), "FallbackToLogsOnError".into());
        assert_eq!(last_words(&status), "one\ntwo\n");
        std::fs::write(&log, "2026-01-01T00:00:00Z stderr P DO\n2026-01-01T00:00:00Z stderr P NE\n").unwrap();
        assert_eq!(last_words(&status), "DONE");
        std::fs::write(&log, "2026-01-01T00:00:00Z stderr F one\n2026-01-01T00:00:00Z stderr F two\n").unwrap();
        std::fs::write(&file, "own").unwrap();
        assert_eq!(last_words(&status), "own");
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &file).unwrap();
        assert_eq!(last_words(&status), "one\ntwo\n");
    }
}
