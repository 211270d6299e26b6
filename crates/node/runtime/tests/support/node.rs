//! A node of its own for a test: directories, control group root, a busybox image.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::contract::Subject;
use images::ImageConfig;
use runtime::{Config, Runtime};

pub struct Node {
    directory: Option<tempfile::TempDir>,
    path: PathBuf,
    cgroup_root: String,
    pub runtime: Runtime,
    pub images: Arc<images::Store>,
}

/// A root file system of nothing but busybox.
fn busybox(root: &Path) {
    for directory in ["bin", "etc", "tmp"] {
        std::fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("/bin/busybox: apt-get install busybox-static");
    let applets = std::process::Command::new("/bin/busybox").arg("--list").output().expect("busybox runs").stdout;
    for applet in String::from_utf8_lossy(&applets).lines().filter(|a| *a != "busybox") {
        std::os::unix::fs::symlink("/bin/busybox", root.join("bin").join(applet)).expect("a link");
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("passwd");
    std::fs::write(root.join("etc/group"), "root:x:0:\n").expect("group");
}

// Each test binary uses its part of this.
#[allow(dead_code)]
impl Node {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        busybox(&directory.path().join("busybox"));
        Self::adopt(directory, format!("sternpost-test-runtime-{}", std::process::id())).await
    }

    /// What is in the directory already, to be removed at the end.
    pub async fn adopt(directory: tempfile::TempDir, cgroup_root: String) -> Self {
        let path = directory.path().to_owned();
        Self { directory: Some(directory), ..Self::at(&path, &cgroup_root).await }
    }

    /// What is in somebody else's directory.
    pub async fn at(path: &Path, cgroup_root: &str) -> Self {
        Self::connected(path, cgroup_root, None).await
    }

    /// With a pod network.
    pub async fn connected(path: &Path, cgroup_root: &str, network: Option<Arc<dyn cni::PodNetwork>>) -> Self {
        assert!(rustix::process::geteuid().is_root(), "needs root");
        let images = images::Store::open(path.join("images")).expect("the image store");
        let image = ImageConfig { cmd: vec!["sh".into()], ..ImageConfig::default() };
        images.add_builtin("busybox", image, &path.join("busybox")).expect("the image");
        let config = Config::new(path.join("data"), path.join("run"), cgroup_root);
        let runtime = Runtime::open(config, images.clone(), network).await.expect("the runtime");
        Self { directory: None, path: path.to_owned(), cgroup_root: cgroup_root.to_owned(), runtime, images }
    }

    pub async fn with_network(network: Arc<dyn cni::PodNetwork>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        busybox(&directory.path().join("busybox"));
        let path = directory.path().to_owned();
        let node = Self::connected(&path, &format!("sternpost-test-network-{}", std::process::id()), Some(network)).await;
        Self { directory: Some(directory), ..node }
    }

    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Leaves everything as it is.
    pub fn give_up(self) -> (tempfile::TempDir, String) {
        (self.directory.expect("a directory of its own"), self.cgroup_root)
    }

    /// As if the daemon were new: everything it knows it finds out.
    pub async fn restart(self) -> Self {
        let (directory, cgroup_root) = self.give_up();
        Self::adopt(directory, cgroup_root).await
    }

    /// The process that serves a sandbox.
    pub fn shim_of(&self, sandbox: &str) -> rustix::process::Pid {
        let all = std::fs::read_dir("/proc").expect("/proc").flatten();
        let is_shim = |entry: &std::fs::DirEntry| {
            std::fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|c| c.contains("\0shim\0") && c.contains(sandbox))
        };
        let shim = all.into_iter().find(is_shim).expect("a shim").file_name();
        shim.to_string_lossy().parse().ok().and_then(rustix::process::Pid::from_raw).expect("a process id")
    }

    pub fn subject(&self) -> Subject {
        Subject {
            runtime: Arc::new(self.runtime.clone()),
            images: Arc::new(images::Service(self.images.clone())),
            image: "busybox".into(),
            directory: self.path.join("cases"),
        }
    }

    /// Nothing of ours is left on the machine; then the directories and the control group root go.
    pub async fn assert_clean(self) {
        let name = self.path.display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!mounts.contains(&name), "a mount is left");
        let left: Vec<String> = processes().into_iter().filter(|command| command.contains(&name)).collect();
        assert!(left.is_empty(), "processes are left: {left:?}");
        let layers = std::fs::read_dir(self.path.join("data/containers")).expect("layers").count();
        assert_eq!(layers, 0, "writable layers are left");
        self.runtime.purge().expect("purge");
        assert!(!Path::new("/sys/fs/cgroup/unified").join(&self.cgroup_root).exists(), "control groups are left");
        drop(self.directory);
    }
}

pub fn processes() -> Vec<String> {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    all.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok()).collect()
}
