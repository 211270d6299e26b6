//! A containerd of one's own, with folders and a socket below one directory: Debian's packages containerd, runc and
//! containernetworking-plugins, on PATH and in `/usr/lib/cni`, or unpacked below `STERNPOST_CONTAINERD_ROOT`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cri::{RuntimeService, v1};
use sha2::{Digest, Sha256};

#[path = "busybox.rs"]
mod busybox;

/// The image that is there.
pub const IMAGE: &str = "localhost/busybox:1";
const PAUSE: &str = "localhost/pause:1";

pub struct Containerd {
    pub socket: PathBuf,
    process: Child,
}

/// Where Debian's files lie: `/`, or where the packages were unpacked.
pub fn root() -> PathBuf {
    std::env::var_os("STERNPOST_CONTAINERD_ROOT").map_or_else(|| "/".into(), PathBuf::from)
}

impl Containerd {
    /// `low_level` is the program behind its shim: `runc`, `crun`.
    pub async fn start(directory: &Path, low_level: &str) -> Self {
        let (root, socket) = (root(), directory.join("containerd.sock"));
        let path = format!("{0}/usr/bin:{0}/usr/sbin:{1}", root.display(), std::env::var("PATH").unwrap_or_default());
        std::fs::create_dir_all(directory.join("cni")).expect("a directory");
        // Of its own for each process: what another test's end left of a network must not lead our packets astray.
        let subnet = format!("10.199.{}.0/24", std::process::id() % 256);
        let network = serde_json::json!({
            "cniVersion": "0.4.0", "name": "test", "plugins": [{
                "type": "ptp", "ipMasq": false,
                "ipam": {"type": "host-local", "dataDir": directory.join("ipam"), "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}}]});
        std::fs::write(directory.join("cni/10-test.conflist"), network.to_string()).expect("the network's configuration");
        let config = directory.join("config.toml");
        std::fs::write(&config, configuration(directory, &socket, &root, low_level)).expect("the configuration");
        let log = std::fs::File::create(directory.join("log")).expect("a log");
        let mut command = Command::new(root.join("usr/bin/containerd"));
        command.arg("--config").arg(&config).env("PATH", &path).stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        // A Ctrl-C at the terminal ends the tests first: their pods have to go before their runtime does.
        let process = command.process_group(0).spawn().expect("containerd: apt-get install containerd");
        std::fs::write(directory.join("pid"), process.id().to_string()).expect("the process id");
        let containerd = Self { socket, process };
        containerd.ready(directory).await;
        for (name, command) in [(IMAGE, vec!["sh"]), (PAUSE, vec!["/bin/busybox", "sleep", "1000000"])] {
            containerd.import(&archive(directory, name, &command));
        }
        containerd
    }

    /// Takes the images of an archive, of OCI's or docker's kind.
    pub fn import(&self, archive: &Path) {
        let mut import = Command::new(root().join("usr/bin/ctr"));
        import.arg("--address").arg(&self.socket).args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        let imported = import.output().expect("ctr runs");
        assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    }

    async fn ready(&self, directory: &Path) {
        let client = remote::Remote::new(&self.socket);
        for _ in 0..300 {
            if client.status(v1::StatusRequest::default()).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("containerd does not answer: {}", std::fs::read_to_string(directory.join("log")).unwrap_or_default());
    }

    /// Removes every pod and ends the daemon.
    pub async fn stop(mut self) {
        remove_pods(&self.socket).await;
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

/// Removes every pod of the containerd at this socket.
pub async fn remove_pods(socket: &Path) {
    let client = remote::Remote::new(socket);
    let left = client.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.map(|listed| listed.items).unwrap_or_default();
    for sandbox in left {
        let _ = client.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() }).await;
        let _ = client.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id }).await;
    }
}

/// A test that fails leaves no daemon behind, nor pods of it: their network namespaces and routes would be in the next one's way.
impl Drop for Containerd {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::scope(|scope| {
                let removal = scope.spawn(|| tokio::runtime::Runtime::new().expect("tokio").block_on(remove_pods(&self.socket)));
                let _ = removal.join();
            });
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configuration(directory: &Path, socket: &Path, root: &Path, low_level: &str) -> String {
    let (at, socket, root) = (directory.display(), socket.display(), root.display());
    format!(
        r#"version = 2
root = "{at}/root"
state = "{at}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{root}/usr/lib/cni"
    conf_dir = "{at}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{low_level}"
"#
    )
}

/// A docker archive of busybox.
pub fn archive(directory: &Path, name: &str, command: &[&str]) -> PathBuf {
    let tree = directory.join("busybox");
    if !tree.exists() {
        busybox::busybox(&tree);
    }
    let mut layer = tar::Builder::new(Vec::new());
    layer.follow_symlinks(false);
    layer.append_dir_all(".", &tree).expect("a layer");
    let layer = layer.into_inner().expect("a layer");
    let digest: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux", "config": {"Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let path = directory.join(format!("{}.tar", name.replace(['/', ':'], "-")));
    let mut archive = tar::Builder::new(std::fs::File::create(&path).expect("an archive"));
    for (file, bytes) in [("layer.tar", layer), ("config.json", config.to_string().into()), ("manifest.json", manifest.to_string().into())]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, file, bytes.as_slice()).expect("an entry");
    }
    archive.finish().expect("an archive");
    path
}
