//! A node of its own for a test: directories, control group root, a busybox image.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::contract::Subject;
use images::ImageConfig;
use runtime::{Config, Runtime};

pub struct Node {
    directory: tempfile::TempDir,
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

impl Node {
    pub async fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "needs root");
        let directory = tempfile::tempdir().expect("a directory");
        let cgroup_root = format!("sternpost-test-runtime-{}", std::process::id());
        busybox(&directory.path().join("busybox"));
        let (images, runtime) = open(directory.path(), &cgroup_root).await;
        let config = ImageConfig { cmd: vec!["sh".into()], ..ImageConfig::default() };
        images.add_builtin("busybox", config, &directory.path().join("busybox")).expect("the image");
        Self { directory, cgroup_root, runtime, images }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// As if the daemon were new: everything it knows it finds out.
    #[allow(dead_code)]
    pub async fn restart(self) -> Self {
        let Self { directory, cgroup_root, runtime, images } = self;
        drop((runtime, images));
        let (images, runtime) = open(directory.path(), &cgroup_root).await;
        Self { directory, cgroup_root, runtime, images }
    }

    pub fn subject(&self) -> Subject {
        Subject {
            runtime: Arc::new(self.runtime.clone()),
            images: Arc::new(images::Service(self.images.clone())),
            image: "busybox".into(),
            directory: self.directory.path().join("cases"),
        }
    }

    /// Nothing of ours is left on the machine; then the directories and the control group root go.
    pub async fn assert_clean(self) {
        let name = self.directory.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!mounts.contains(&name), "a mount is left");
        let left: Vec<String> = processes().into_iter().filter(|command| command.contains(&name)).collect();
        assert!(left.is_empty(), "processes are left: {left:?}");
        let layers = std::fs::read_dir(self.directory.path().join("data/containers")).expect("layers").count();
        assert_eq!(layers, 0, "writable layers are left");
        self.runtime.purge().expect("purge");
        assert!(!Path::new("/sys/fs/cgroup/unified").join(&self.cgroup_root).exists(), "control groups are left");
    }
}

fn processes() -> Vec<String> {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    all.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok()).collect()
}

async fn open(directory: &Path, cgroup_root: &str) -> (Arc<images::Store>, Runtime) {
    let images = images::Store::open(directory.join("images")).expect("the image store");
    let config = Config::new(directory.join("data"), directory.join("run"), cgroup_root);
    let runtime = Runtime::open(config, images.clone(), None).await.expect("the runtime");
    (images, runtime)
}
