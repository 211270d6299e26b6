//! Kernel parameters: only those that a namespace has of its own.

use rules::value::{list, text};

use super::super::policy::Level;
use super::{Check, Finding, Pod, finding};

pub static CHECK: Check = Check {
    level: Level::Baseline,
    versions: &[
        (0, |pod| run(pod, 5)),
        (27, |pod| run(pod, 6)),
        (29, |pod| run(pod, 10)),
        (32, |pod| run(pod, 12)),
        (37, |pod| run(pod, 14)),
    ],
    replaces: None,
};

/// In the order in which versions added them.
const ALLOWED: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_notsent_lowat",
];

/// The first `count` of them are allowed.
fn run(pod: &Pod<'_>, count: usize) -> Option<Finding> {
    let names = list(pod.spec, "securityContext.sysctls").iter().map(|sysctl| text(sysctl, "name"));
    let bad: Vec<&str> = names.filter(|name| !ALLOWED.iter().take(count).any(|allowed| allowed == name)).collect();
    if bad.is_empty() { None } else { finding("forbidden sysctls", bad.join(", ")) }
}
