//! What this host must offer, checked before anything is changed: every fault is one line, all of them at once.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::{Config, outward_address};
use crate::keeper;

/// The oldest kernel with all that is used (clone3 with cgroups, the new mount API for overlays, atomic cgroup kill).
const KERNEL_MIN: (u32, u32) = (5, 15);
/// Free space below which nothing is started, in bytes.
const SPACE_MIN: u64 = 256 << 20;

/// How long a killed process may take to let go of its sockets.
const ENDING: Duration = Duration::from_secs(2);

/// Every fault of this host; empty means go.
pub fn check(config: &Config) -> Vec<String> {
    let checks: [fn(&Config, &mut Vec<String>); 8] = [root, kernel, filesystems, namespaces, netfilter, foreign_table, addresses, space];
    let mut faults = Vec::new();
    checks.iter().for_each(|check| check(config, &mut faults));
    ports(config, &mut faults);
    faults
}

/// The same for a node without a control plane.
pub fn check_agent(config: &Config) -> Vec<String> {
    let checks: [fn(&Config, &mut Vec<String>); 7] = [root, kernel, filesystems, namespaces, netfilter, foreign_table, space];
    let mut faults = Vec::new();
    checks.iter().for_each(|check| check(config, &mut faults));
    faults
}

fn root(_: &Config, faults: &mut Vec<String>) {
    if !rustix::process::geteuid().is_root() {
        faults.push("not root: containers need it; run with sudo".into());
    }
}

fn kernel(_: &Config, faults: &mut Vec<String>) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < KERNEL_MIN {
        faults.push(format!("kernel {release} is too old: at least {}.{} is needed", KERNEL_MIN.0, KERNEL_MIN.1));
    }
}

fn filesystems(_: &Config, faults: &mut Vec<String>) {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has = |name: &str| known.lines().any(|line| line.split_whitespace().next_back() == Some(name));
    if !has("overlay") && !module_available("overlay") {
        faults.push("no overlayfs in this kernel: container images cannot be mounted (module overlay)".into());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if is_initial_ram_disk(&mounts) {
        faults.push(
            "/ is the kernel's initial RAM disk (rootfs), which no container can leave (pivot_root): switch_root to a mounted one first"
                .into(),
        );
    }
    if !has("cgroup") && !has("cgroup2") {
        faults.push("no control groups in this kernel: containers cannot be limited".into());
    }
}

/// By `/proc/self/mountinfo`: the last mount at `/` is what processes see.
fn is_initial_ram_disk(mounts: &str) -> bool {
    let root = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/"));
    root.and_then(|line| line.split(" - ").nth(1)?.split(' ').next()) == Some("rootfs")
}

fn namespaces(_: &Config, faults: &mut Vec<String>) {
    for (file, name) in [("pid", "PID"), ("net", "network"), ("mnt", "mount"), ("ipc", "IPC"), ("uts", "UTS")] {
        if !Path::new("/proc/self/ns").join(file).exists() {
            faults.push(format!("no {name} namespaces in this kernel"));
        }
    }
}

fn netfilter(_: &Config, faults: &mut Vec<String>) {
    let netlink = rustix::net::socket_with(
        rustix::net::AddressFamily::NETLINK,
        rustix::net::SocketType::RAW,
        rustix::net::SocketFlags::CLOEXEC,
        Some(rustix::net::netlink::NETFILTER),
    );
    if netlink.is_err() {
        faults.push("no netfilter netlink in this kernel: Services cannot be programmed (nf_tables)".into());
    }
}

/// A table of our name with something in it that we would not make is somebody else's: we would take it for ours, and remove it one day.
fn foreign_table(config: &Config, faults: &mut Vec<String>) {
    let Ok(mut socket) = nft::Socket::netfilter() else { return };
    let table = nft::Table::inet(&config.nft_table);
    let names = [table.chains(&mut socket), table.sets(&mut socket)];
    let foreign = names.into_iter().flatten().flatten().find(|name| !["pods-", "svc-", "pol-"].iter().any(|ours| name.starts_with(ours)));
    if let Some(name) = foreign {
        faults.push(format!("the nftables table inet {} is not ours ({name:?} is in it); name another with nftTable", config.nft_table));
    }
}

fn addresses(config: &Config, faults: &mut Vec<String>) {
    let mut ranges = Vec::new();
    for (name, parsed) in [("podCidr", config.pods()), ("serviceCidr", config.services()), ("nodeCidr", config.nodes())] {
        match parsed {
            Err(error) => faults.push(format!("{error:#}")),
            Ok(parsed) => ranges.extend(parsed.into_iter().map(|range| (name, range))),
        }
    }
    let hosts = host_addresses();
    let bridge = crate::nodes::bridge(config);
    // Further nodes' network is looked at when there are some.
    for (name, range) in ranges.iter().filter(|(name, _)| *name != "nodeCidr") {
        let theirs = |link: &str| {
            !link.starts_with(&config.link_prefix) && !link.starts_with(&format!("vx-{}", config.link_prefix)) && link != bridge
        };
        if let Some((link, address)) = hosts.iter().find(|(link, address)| range.contains(*address) && theirs(link)) {
            faults.push(format!("{name} {}/{} overlaps with {address} on {link}; choose another range", range.address, range.prefix));
        }
    }
    for (index, (name, range)) in ranges.iter().enumerate() {
        for (other_name, other) in ranges.iter().skip(index + 1) {
            if range.contains(other.address) || other.contains(range.address) {
                let (range, other) = (range.pair(), other.pair());
                faults.push(format!("{name} {}/{} and {other_name} {}/{} overlap", range.0, range.1, other.0, other.1));
            }
        }
    }
    if config.node_ip.is_none() && outward_address().is_none() {
        faults.push("no address to be reached by: this host has no default route; name one with --node-ip".into());
    }
}

/// Who has an address in the further nodes' network already: another cluster's bridge, most likely.
pub fn node_network_taken(config: &Config) -> anyhow::Result<Option<String>> {
    let bridge = crate::nodes::bridge(config);
    let ranges = config.nodes()?;
    let taken = host_addresses().into_iter().find(|(link, address)| *link != bridge && ranges.iter().any(|range| range.contains(*address)));
    Ok(taken.map(|(link, address)| format!("nodeCidr {} overlaps with {address} on {link}; choose another range", config.node_cidr)))
}

/// Addresses of this host's links, by the kernel's own list; without those that are good on one link only.
pub fn host_addresses() -> Vec<(String, IpAddr)> {
    nix::ifaddrs::getifaddrs()
        .map(|list| {
            list.filter_map(|link| {
                let address = link.address?;
                let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
                let v6 = address.as_sockaddr_in6().map(|address| address.ip()).filter(|ip| !ip.is_unicast_link_local()).map(IpAddr::V6);
                Some((link.interface_name, v4.or(v6)?))
            })
            .collect()
        })
        .unwrap_or_default()
}

fn space(config: &Config, faults: &mut Vec<String>) {
    // A cluster that filled its disk must be startable, or nothing could be deleted from it.
    if config.data_dir.join("store").is_dir() && config.kubeconfig().exists() {
        return;
    }
    let existing = config.data_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(existing) {
        Ok(disk) if disk.f_bavail * disk.f_frsize < SPACE_MIN => {
            let free = (disk.f_bavail * disk.f_frsize) >> 20;
            faults.push(format!("{}: only {free} MiB free, at least {} MiB are needed", config.data_dir.display(), SPACE_MIN >> 20));
        }
        Ok(_) => {}
        Err(error) => faults.push(format!("{}: {error}", existing.display())),
    }
}

fn ports(config: &Config, faults: &mut Vec<String>) {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let tcp = |port, what| free("TCP", port, what, || TcpListener::bind(SocketAddr::new(any, port)).map(drop));
    faults.extend(tcp(config.api_port, "API server"));
    faults.extend(tcp(config.kubelet_port, "kubelet"));
    // Ours already, where a daemon ran a moment ago.
    if !keeper::is_there(&config.run_dir) {
        let port = config.dns_port;
        faults.extend(tcp(port, "cluster DNS"));
        faults.extend(free("UDP", port, "cluster DNS", || UdpSocket::bind(SocketAddr::new(any, port)).map(drop)));
    }
}

/// What keeps the port from us. A port that nobody holds although it is taken belongs to a process that is just ending, such as a killed daemon.
fn free(protocol: &str, port: u16, what: &str, bind: impl Fn() -> std::io::Result<()>) -> Option<String> {
    let deadline = Instant::now() + ENDING;
    loop {
        let error = bind().err()?;
        let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
        let holder = if in_use { holder(&protocol.to_lowercase(), port) } else { None };
        if holder.is_none() && in_use && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        return Some(match holder {
            Some((pid, name)) => format!("{protocol} port {port} ({what}) is taken by process {pid} ({name})"),
            None if in_use => format!("{protocol} port {port} ({what}) is taken by another process"),
            None => format!("{protocol} port {port} ({what}): {error}"),
        });
    }
}

/// The process with a socket on this local port.
fn holder(protocol: &str, port: u16) -> Option<(u32, String)> {
    let inode = ["", "6"].iter().find_map(|family| {
        let table = fs::read_to_string(format!("/proc/net/{protocol}{family}")).ok()?;
        table.lines().skip(1).find_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let local = columns.get(1)?.rsplit(':').next()?;
            let listens = protocol == "udp" || columns.get(3) == Some(&"0A");
            (listens && u16::from_str_radix(local, 16) == Ok(port)).then(|| columns.get(9).map(|inode| format!("socket:[{inode}]")))?
        })
    })?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find_map(|pid| {
        let mut sockets = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let ours = sockets.any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.to_string_lossy() == inode));
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        ours.then(|| (pid, name.trim().to_owned()))
    })
}

fn module_available(name: &str) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let list = fs::read_to_string(format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
    list.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&format!("/{name}.ko"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_named_at_once_with_the_process_that_holds_a_port() {
        let held = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let config = Config { api_port: port, pod_cidr: "10.96.0.0/12".into(), service_cidr: "nonsense".into(), ..Config::default() };
        let faults = check(&config).join("\n");
        assert!(faults.contains(&format!("TCP port {port} (API server) is taken by process {}", std::process::id())), "{faults}");
        assert!(faults.contains("serviceCidr: \"nonsense\" is not an address range"), "{faults}");
    }

    #[test]
    fn the_initial_ram_disk_is_known_by_the_last_mount_at_the_root() {
        let ram = "1 1 0:2 / / rw - rootfs rootfs rw,size=2997508k\n22 1 0:21 / /proc rw,relatime - proc proc rw\n";
        for (mounts, ram_disk) in [
            (ram.to_owned(), true),
            (format!("{ram}30 1 0:26 / / rw,relatime - tmpfs tmpfs rw\n"), false),
            ("25 30 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_initial_ram_disk(&mounts), ram_disk, "{mounts}");
        }
    }
}
