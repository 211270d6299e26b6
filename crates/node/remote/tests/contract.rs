//! The CRI contract on the embedded runtime, through its socket and back: what `crictl` sees. Needs root and `/bin/busybox`.

use std::sync::Arc;

use cri::contract::Subject;

#[path = "support/busybox.rs"]
mod busybox;

fn main() {
    if runtime::is_shim_invocation() {
        runtime::run_shim();
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let failed = tokio::runtime::Runtime::new().expect("tokio").block_on(run(&filter));
    assert_eq!(failed, 0, "{failed} cases failed");
}

async fn run(filter: &str) -> usize {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    busybox::busybox(&path.join("busybox"));
    let images = images::Store::open(path.join("images")).expect("the image store");
    let image = images::ImageConfig { cmd: vec!["sh".into()], ..images::ImageConfig::default() };
    images.add_builtin("busybox", image, &path.join("busybox")).expect("the image");
    let config = runtime::Config::new(path.join("data"), path.join("run"), format!("sternpost-test-remote-{}", std::process::id()));
    let own = runtime::Runtime::open(config, images.clone(), None).await.expect("the runtime");
    let drain = stdx::drain();
    let socket = path.join("cri.sock");
    let service = Arc::new(images::Service(images));
    remote::Server::start(Arc::new(own.clone()), service, &socket, drain.clone()).await.expect("the socket");
    let client = Arc::new(remote::Remote::new(&socket));
    let subject = Subject { runtime: client.clone(), images: client, image: "busybox".into(), directory: path.join("cases") };
    let failed = cri::contract::run(&subject, filter).await;
    drain.stop();
    own.remove_all().await.expect("removal");
    own.purge().expect("purge");
    failed
}
