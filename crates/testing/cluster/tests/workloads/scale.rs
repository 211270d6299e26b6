//! The mission's scenario, in small.

use std::collections::BTreeSet;

use cluster::run::ensure;
use cluster::{Namespace, http, wait_for};

const REPLICAS: usize = 100;

#[test]
fn a_hundred_replicas_run_and_all_answer_through_the_service() {
    let ns = Namespace::new("hundred");
    ns.kubectl(&["create", "deployment", "web", "--image=sternpost.io/toolbox", &format!("--replicas={REPLICAS}")]).ok();
    ns.kubectl(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]).ok();
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=110s"]).ok();
    let pods = ns.kubectl(&["get", "pods", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].metadata.name}"]).ok();
    let mut silent: BTreeSet<&str> = pods.split(' ').collect();
    assert_eq!(silent.len(), REPLICAS, "{pods}");
    ns.wait_for_endpoints("web", REPLICAS);
    let address = format!("{}:80", ns.value("service/web", "{.spec.clusterIP}"));
    wait_for("every pod answers", 60, || {
        for _ in 0..200 {
            let name = http::get(&address, "/hostname")?;
            silent.remove(name.trim());
        }
        ensure(silent.is_empty(), format!("{} are silent", silent.len()))
    });
    ns.kubectl(&["delete", "deployment", "web", "--cascade=foreground", "--timeout=100s"]).ok();
    assert_eq!(ns.kubectl(&["get", "pods", "-o", "name"]).ok(), "");
}
