//! What users do with a running cluster, on Debian's containerd with runc: the very tests of `workloads`, of which those of other modules
//! run by `STERNPOST_TEST_RUNTIME=containerd cargo test -p cluster --test workloads node:: volumes:: storage:: csi::`.

#[path = "../workloads/connect.rs"]
mod connect;
#[path = "../workloads/pods.rs"]
mod pods;

/// The images that those tests run.
mod images {
    use std::sync::OnceLock;

    use cluster::{Cluster, images};

    pub fn busybox(version: u32) -> String {
        static LOADED: OnceLock<()> = OnceLock::new();
        let name = |version| format!("stest.local/busybox:{version}");
        LOADED.get_or_init(|| {
            let file = Cluster::shared().dir().join("busybox-1.tar");
            images::busybox("1").write_oci_archive(&file, &name(1));
            Cluster::shared().load_images(&file);
        });
        name(version)
    }
}
