//! A command of a build, in a container of the node's own runtime.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri::{RuntimeService, v1};

use crate::{Error, Result};

const LOOK_EVERY: Duration = Duration::from_millis(50);
const STOP_GRACE_SECONDS: i64 = 2;

/// Where commands run.
#[derive(Clone)]
pub struct Runner {
    pub runtime: Arc<dyn RuntimeService>,
    /// The runtime's folder of containers: what one has written is in `<id>/upper`.
    pub containers: PathBuf,
    /// For the output of commands under way.
    pub logs: PathBuf,
    pub dns: v1::DnsConfig,
}

/// A command that has ended; gone with its container when dropped by [`Ran::remove`].
pub struct Ran {
    pub exit_code: i32,
    /// What it has changed, as an overlay's upper folder.
    pub upper: PathBuf,
    pod: String,
    runner: Runner,
    log: PathBuf,
}

impl Runner {
    /// Runs `command` on the files and with the settings of the image `id`; `say` gets its output line by line.
    pub async fn run(&self, id: &str, command: Vec<String>, variables: Vec<(String, String)>, say: &(dyn Fn(&str) + Sync)) -> Result<Ran> {
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random).map_err(|error| Error::Run(error.to_string()))?;
        let name = random.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        std::fs::create_dir_all(&self.logs).map_err(|error| Error::Run(error.to_string()))?;
        let sandbox = self.sandbox(&name);
        let request = v1::RunPodSandboxRequest { config: Some(sandbox.clone()), runtime_handler: String::new() };
        let pod = self.runtime.run_pod_sandbox(request).await.map_err(|error| Error::Run(error.to_string()))?.pod_sandbox_id;
        let ran = Ran { exit_code: -1, upper: PathBuf::new(), pod, runner: self.clone(), log: self.logs.join(format!("{name}.log")) };
        match self.container(ran, id, sandbox, command, variables, say).await {
            Ok(ran) => Ok(ran),
            Err((ran, error)) => {
                ran.remove().await;
                Err(error)
            }
        }
    }

    fn sandbox(&self, name: &str) -> v1::PodSandboxConfig {
        let metadata = v1::PodSandboxMetadata {
            name: format!("build-{name}"),
            uid: format!("build-{name}"),
            namespace: "sternpost-build".into(),
            attempt: 0,
        };
        v1::PodSandboxConfig {
            metadata: Some(metadata),
            hostname: "build".into(),
            log_directory: self.logs.display().to_string(),
            dns_config: Some(self.dns.clone()),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(v1::NamespaceOption { pid: v1::NamespaceMode::Container as i32, ..Default::default() }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    async fn container(
        &self,
        mut ran: Ran,
        id: &str,
        sandbox: v1::PodSandboxConfig,
        command: Vec<String>,
        variables: Vec<(String, String)>,
        say: &(dyn Fn(&str) + Sync),
    ) -> std::result::Result<Ran, (Ran, Error)> {
        let security = v1::LinuxContainerSecurityContext {
            namespace_options: Some(v1::NamespaceOption { pid: v1::NamespaceMode::Container as i32, ..Default::default() }),
            seccomp: Some(v1::SecurityProfile {
                profile_type: v1::security_profile::ProfileType::RuntimeDefault as i32,
                ..Default::default()
            }),
            ..Default::default()
        };
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "step".into(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: id.to_owned(), ..Default::default() }),
            command,
            envs: variables.into_iter().map(|(key, value)| v1::KeyValue { key, value: value.into_bytes().into() }).collect(),
            log_path: ran.log.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            linux: Some(v1::LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
            ..Default::default()
        };
        let request = v1::CreateContainerRequest { pod_sandbox_id: ran.pod.clone(), config: Some(config), sandbox_config: Some(sandbox) };
        let container = match self.runtime.create_container(request).await {
            Ok(answer) => answer.container_id,
            Err(error) => return Err((ran, Error::Run(error.message))),
        };
        ran.upper = self.containers.join(&container).join("upper");
        if let Err(error) = self.runtime.start_container(v1::StartContainerRequest { container_id: container.clone() }).await {
            return Err((ran, Error::Run(error.message)));
        }
        let mut output = Output { path: ran.log.clone(), offset: 0, partial: String::new() };
        loop {
            let request = v1::ContainerStatusRequest { container_id: container.clone(), verbose: false };
            let status = match self.runtime.container_status(request).await {
                Ok(answer) => answer.status.unwrap_or_default(),
                Err(error) => return Err((ran, Error::Run(error.message))),
            };
            output.pass_on(say);
            if status.state == v1::ContainerState::ContainerExited as i32 {
                output.pass_on(say);
                ran.exit_code = status.exit_code;
                return Ok(ran);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Ran {
    /// Takes the container and its pod away.
    pub async fn remove(self) {
        let stop = v1::StopPodSandboxRequest { pod_sandbox_id: self.pod.clone() };
        let stopped =
            tokio::time::timeout(Duration::from_secs(STOP_GRACE_SECONDS as u64 + 10), self.runner.runtime.stop_pod_sandbox(stop)).await;
        let removed = self.runner.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: self.pod.clone() }).await;
        if let (Err(error), _) | (Ok(()), Err(error)) = (stopped.map_or(Ok(()), |stopped| stopped.map(drop)), removed) {
            tracing::warn!(pod = self.pod, %error, "take a build's container away");
        }
        let _ = std::fs::remove_file(&self.log);
    }
}

/// A container's log while it grows.
struct Output {
    path: PathBuf,
    offset: u64,
    partial: String,
}

impl Output {
    fn pass_on(&mut self, say: &(dyn Fn(&str) + Sync)) {
        let Some(text) = read_from(&self.path, self.offset) else { return };
        // A line that is half written is read again.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let Some(lines) = text.get(..whole) else { return };
        self.offset += whole as u64;
        for line in lines.lines() {
            // `time stream tag content`
            let mut parts = line.splitn(4, ' ').skip(2);
            let (tag, content) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            self.partial.push_str(content);
            if tag.starts_with('F') {
                say(&std::mem::take(&mut self.partial));
            }
        }
    }
}

fn read_from(path: &Path, offset: u64) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    file.seek(SeekFrom::Start(offset)).ok()?;
    let mut bytes = Vec::new();
    file.take(1 << 20).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
