//! The CRI contract on Debian's containerd with runc: the same cases as on the embedded runtime. Needs root and `/bin/busybox`.

use std::sync::Arc;

use containerd::{Containerd, IMAGE};
use cri::contract::Subject;

#[path = "support/containerd.rs"]
mod containerd;

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let failed = tokio::runtime::Runtime::new().expect("tokio").block_on(run(&filter));
    assert_eq!(failed, 0, "{failed} cases failed");
}

async fn run(filter: &str) -> usize {
    let directory = tempfile::Builder::new().prefix("sternpost-containerd-").tempdir().expect("a directory");
    let containerd = Containerd::start(directory.path(), "runc").await;
    let client = Arc::new(remote::Remote::new(&containerd.socket));
    let subject = Subject { runtime: client.clone(), images: client, image: IMAGE.into(), directory: directory.path().join("cases") };
    let failed = cri::contract::run(&subject, filter).await;
    containerd.stop().await;
    failed
}
