//! What the cases build with.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use super::Subject;
use crate::v1;

/// Fails with a sentence.
pub type Outcome<T = ()> = std::result::Result<T, String>;

/// No case takes longer than this for any one thing.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// One case's subject, with what it made so far.
pub struct World {
    pub subject: Subject,
    name: &'static str,
    sandboxes: Mutex<Vec<(String, v1::PodSandboxConfig)>>,
}

pub(super) fn check(condition: bool, why: impl FnOnce() -> String) -> Outcome {
    if condition { Ok(()) } else { Err(why()) }
}

pub(super) fn equal<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Outcome {
    check(got == wanted, || format!("{what} is {got:?}, not {wanted:?}"))
}

fn words<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

impl World {
    pub fn new(subject: Subject, name: &'static str) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self { subject, name, sandboxes: Mutex::default() })
    }

    pub fn directory(&self) -> PathBuf {
        self.subject.directory.join(self.name)
    }

    pub fn sandbox_config(&self) -> v1::PodSandboxConfig {
        let count = self.sandboxes.lock().map_or(0, |s| s.len());
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: self.name.to_owned(),
                uid: format!("uid-{}-{count}", self.name),
                namespace: "contract".into(),
                attempt: 0,
            }),
            hostname: "contract-host".into(),
            log_directory: self.directory().join("logs").display().to_string(),
            labels: HashMap::from([("case".to_owned(), self.name.to_owned())]),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(private_namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn sandbox(&self) -> Outcome<String> {
        self.sandbox_with(self.sandbox_config()).await
    }

    pub async fn sandbox_with(&self, config: v1::PodSandboxConfig) -> Outcome<String> {
        // The caller makes the folder of logs, as the kubelet does.
        std::fs::create_dir_all(&config.log_directory).map_err(words)?;
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let id = self.subject.runtime.run_pod_sandbox(request).await.map_err(words)?.pod_sandbox_id;
        if let Ok(mut sandboxes) = self.sandboxes.lock() {
            sandboxes.push((id.clone(), config));
        }
        Ok(id)
    }

    /// A container that runs a shell script.
    pub fn script(&self, name: &str, script: &str) -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: self.subject.image.clone(), ..Default::default() }),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            log_path: format!("{name}.log"),
            linux: Some(v1::LinuxContainerConfig {
                resources: None,
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: Some(private_namespaces()),
                    masked_paths: vec!["/proc/kcore".into(), "/proc/acpi".into(), "/sys/firmware".into()],
                    readonly_paths: vec!["/proc/sys".into()],
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    pub async fn create(&self, sandbox: &str, config: v1::ContainerConfig) -> Outcome<String> {
        let of = |sandboxes: &Vec<(String, v1::PodSandboxConfig)>| {
            sandboxes.iter().find(|(id, _)| id == sandbox).map(|(_, config)| config.clone())
        };
        let sandbox_config = self.sandboxes.lock().ok().and_then(|sandboxes| of(&sandboxes));
        let request = v1::CreateContainerRequest { pod_sandbox_id: sandbox.to_owned(), config: Some(config), sandbox_config };
        Ok(self.subject.runtime.create_container(request).await.map_err(words)?.container_id)
    }

    pub async fn start(&self, sandbox: &str, config: v1::ContainerConfig) -> Outcome<String> {
        let id = self.create(sandbox, config).await?;
        self.subject.runtime.start_container(v1::StartContainerRequest { container_id: id.clone() }).await.map_err(words)?;
        Ok(id)
    }

    pub async fn status(&self, container: &str) -> Outcome<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        self.subject.runtime.container_status(request).await.map_err(words)?.status.ok_or_else(|| "no status".to_owned())
    }

    /// Waits for the end; the status then.
    pub async fn ended(&self, container: &str) -> Outcome<v1::ContainerStatus> {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = self.status(container).await?;
            if status.state == v1::ContainerState::ContainerExited as i32 {
                return Ok(status);
            }
            check(tokio::time::Instant::now() < until, || format!("container {container} does not end: {status:?}"))?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The log's lines without their times.
    pub fn log(&self, name: &str) -> Outcome<Vec<String>> {
        let path = self.directory().join("logs").join(format!("{name}.log"));
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        text.lines().map(|line| line.split_once(' ').map(|(_, rest)| rest.to_owned()).ok_or_else(|| format!("log line {line:?}"))).collect()
    }

    /// Waits until the log holds a line.
    pub async fn log_has(&self, name: &str, line: &str) -> Outcome {
        let until = tokio::time::Instant::now() + PATIENCE;
        while !self.log(name).is_ok_and(|lines| lines.iter().any(|l| l == line)) {
            check(tokio::time::Instant::now() < until, || format!("{line:?} does not appear in {:?}", self.log(name)))?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Runs a script to its end; exit code and log.
    pub async fn output(&self, config: v1::ContainerConfig) -> Outcome<(i32, Vec<String>)> {
        let sandbox = self.sandbox().await?;
        let name = config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
        let id = self.start(&sandbox, config).await?;
        Ok((self.ended(&id).await?.exit_code, self.log(&name)?))
    }

    pub async fn exec_sync(&self, container: &str, script: &str, timeout: i64) -> crate::Result<v1::ExecSyncResponse> {
        let cmd = vec!["/bin/sh".into(), "-c".into(), script.into()];
        self.subject.runtime.exec_sync(v1::ExecSyncRequest { container_id: container.to_owned(), cmd, timeout }).await
    }

    /// Removes every sandbox of the case; that must always work.
    pub async fn clean(&self) -> Outcome {
        let sandboxes = self.sandboxes.lock().map(|mut s| std::mem::take(&mut *s)).unwrap_or_default();
        for (id, _) in sandboxes {
            self.subject.runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await.map_err(words)?;
            self.subject.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await.map_err(words)?;
        }
        Ok(())
    }
}

pub(super) fn private_namespaces() -> v1::NamespaceOption {
    v1::NamespaceOption { pid: v1::NamespaceMode::Container as i32, ..Default::default() }
}

pub(super) fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}
