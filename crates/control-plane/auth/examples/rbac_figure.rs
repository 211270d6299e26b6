//! How long one RBAC decision takes with 10,000 bindings: `cargo run --release -p auth --example rbac_figure`.

use std::time::Instant;

use auth::UserInfo;
use auth::authorize::Attributes;
use auth::rbac::Policy;
use serde_json::json;

const BINDINGS: usize = 10_000;
const DECISIONS: usize = 200_000;

fn main() {
    let mut policy = Policy::default();
    let made = Instant::now();
    for at in 0..BINDINGS {
        let (namespace, name) = (format!("ns{}", at % 500), format!("b{at}"));
        let rule = |resource: &str| json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": [resource]});
        let rules: Vec<_> = ["pods", "services", "configmaps", "secrets"].map(rule).into();
        policy.set_role(&namespace, &name, Some(&json!({"rules": rules})));
        let subject = json!({"kind": "User", "name": format!("user{}", at % 1_000)});
        let binding = json!({"roleRef": {"kind": "Role", "name": name}, "subjects": [subject, {"kind": "Group", "name": format!("group{}", at % 100)}]});
        policy.set_binding(&namespace, &name, Some(&binding));
    }
    println!("{BINDINGS} bindings read in {:.1} ms", made.elapsed().as_secs_f64() * 1e3);
    let user = |at: usize| UserInfo::authenticated(&format!("user{}", at % 1_000), &[&format!("group{}", at % 100)]);
    let users: Vec<UserInfo> = (0..1_000).map(user).collect();
    let namespaces: Vec<String> = (0..500).map(|at| format!("ns{at}")).collect();
    for (what, verb) in [("allowed", "list"), ("refused", "delete")] {
        let mut allowed = 0;
        let start = Instant::now();
        for at in 0..DECISIONS {
            let asked =
                Attributes { is_resource: true, verb, resource: "secrets", namespace: &namespaces[at % 500], ..Attributes::default() };
            allowed += usize::from(policy.reason(&users[at % 1_000], &asked).is_some());
        }
        let each = start.elapsed().as_secs_f64() * 1e6 / DECISIONS as f64;
        println!("{what}: {each:.2} µs a decision with its reason ({allowed} of {DECISIONS} allowed)");
    }
}
