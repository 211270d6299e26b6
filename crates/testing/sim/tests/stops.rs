//! Components that are asked to stop end, however far they have come.

use std::sync::Arc;
use std::time::Duration;

use sim::{Embedded, Parts};

#[tokio::test(flavor = "multi_thread")]
async fn controllers_that_are_stopped_while_they_start_end_as_those_that_have_started() {
    let cluster =
        Embedded::start(Arc::new(store::memory::Memory::new()), Parts { controllers: None, scheduler: None, taints: false }).await.unwrap();
    for millis in [0, 1, 2, 5, 10, 20, 50] {
        let drain = stdx::drain();
        let client = cluster.client("system:kube-controller-manager", &["system:masters"]);
        let running = tokio::spawn(controllers::run(client, controllers::Config::default(), drain.clone()));
        tokio::time::sleep(Duration::from_millis(millis)).await;
        drain.stop();
        let ended = tokio::time::timeout(Duration::from_secs(60), running).await;
        assert!(ended.is_ok(), "stopped after {millis} ms");
    }
}
