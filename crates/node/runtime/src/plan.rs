//! CRI's words to a `Spec`: pure.

use std::collections::HashMap;

use cri::v1;
use cri::v1::security_profile::ProfileType;
use images::ImageConfig;
use oci::{FileSystem, Mount, PidNamespace, Process, Propagation, Source, Spec, capabilities};

use crate::protocol::IdRange;
use crate::shim;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program: CRI's command replaces the image's entry point, its arguments the image's command.
pub fn args(config: &v1::ContainerConfig, image: &ImageConfig) -> Vec<String> {
    let (entrypoint, default_args) =
        if config.command.is_empty() { (&image.entrypoint, image.cmd.as_slice()) } else { (&config.command, [].as_slice()) };
    let args = if config.args.is_empty() { default_args } else { &config.args };
    entrypoint.iter().chain(args).cloned().collect()
}

/// The environment: defaults, then the image's, then the container's; later ones win.
pub fn env(config: &v1::ContainerConfig, image: &ImageConfig, hostname: &str, home: &str) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let given = config.envs.iter().map(|pair| format!("{}={}", pair.key, String::from_utf8_lossy(&pair.value)));
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        match env.iter_mut().find(|old| old.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('='))) {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
    };
    set(DEFAULT_PATH.to_owned());
    set(format!("HOSTNAME={hostname}"));
    if config.tty {
        set("TERM=xterm".to_owned());
    }
    set(format!("HOME={home}"));
    image.env.iter().cloned().chain(given).for_each(set);
    env
}

/// The signal that asks a container to stop: CRI's number, else the image's name for it, else SIGTERM.
pub fn stop_signal(config: &v1::ContainerConfig, image: &ImageConfig) -> i32 {
    let by_name = |name: &str| signal_number(name).unwrap_or(libc::SIGTERM);
    match v1::Signal::try_from(config.stop_signal) {
        Ok(v1::Signal::RuntimeDefault) | Err(_) => by_name(&image.stop_signal),
        Ok(signal) => by_name(&format!("{signal:?}")),
    }
}

/// A signal's number from `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, or CRI's `Sigrtminplus3`.
pub fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 33] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("IOT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("STKFLT", 16),
        ("CHLD", 17),
        ("CLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("VTALRM", 26),
        ("PROF", 27),
        ("WINCH", 28),
        ("IO", 29),
        ("POLL", 29),
        ("PWR", 30),
    ];
    let upper = name.to_ascii_uppercase().replace("PLUS", "+").replace("MINUS", "-");
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(number) = bare.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    for (prefix, base, sign) in [("RTMIN", 34, 1), ("RTMAX", 64, -1)] {
        if let Some(rest) = bare.strip_prefix(prefix) {
            let offset: i32 = if rest.is_empty() { 0 } else { rest.trim_start_matches(['+', '-']).parse().ok()? };
            return Some(base + sign * offset).filter(|n| (34..=64).contains(n));
        }
    }
    if bare == "SYS" {
        return Some(31);
    }
    NAMES.iter().find(|(n, _)| *n == bare).map(|(_, number)| *number)
}

/// Does the container run under the default system call filter?
pub fn default_filter(security: &v1::LinuxContainerSecurityContext) -> bool {
    let profile = security.seccomp.as_ref().map(|profile| profile.profile_type);
    !security.privileged && profile == Some(ProfileType::RuntimeDefault as i32)
}

/// The container's own system call filter, from its file on the node.
pub fn own_filter(security: &v1::LinuxContainerSecurityContext) -> Result<Option<oci::seccomp::Profile>, String> {
    let own = |profile: &&v1::SecurityProfile| profile.profile_type == ProfileType::Localhost as i32 && !security.privileged;
    let Some(profile) = security.seccomp.as_ref().filter(own) else { return Ok(None) };
    let path = profile.localhost_ref.strip_prefix("localhost/").unwrap_or(&profile.localhost_ref);
    let text = std::fs::read_to_string(path).map_err(|error| format!("failed to load seccomp profile {path:?}: {error}"))?;
    oci::seccomp::Profile::parse(&text).map(Some).map_err(|error| format!("seccomp profile {path:?}: {error}"))
}

/// The ids of a pod's own user namespace (KEP-127): one range, the same for users and groups, from 0 on.
pub fn ids(namespaces: &v1::NamespaceOption) -> Result<Option<IdRange>, String> {
    let users = namespaces.userns_options.as_ref().filter(|users| users.mode != v1::NamespaceMode::Node as i32);
    let Some(users) = users else { return Ok(None) };
    match (users.uids.as_slice(), users.uids == users.gids) {
        ([one], true) if one.container_id == 0 && one.length > 0 && one.host_id > 0 => {
            Ok(Some(IdRange { first: one.host_id, length: one.length }))
        }
        _ => {
            Err("a user namespace needs one range of ids, the same for users and groups, that begins with 0 inside and not with 0 outside"
                .into())
        }
    }
}

/// Bounding and ambient capability masks.
pub fn capability_masks(security: &v1::LinuxContainerSecurityContext) -> Result<(u64, u64), String> {
    if security.privileged {
        return Ok((capabilities::ALL, 0));
    }
    let Some(asked) = &security.capabilities else {
        return Ok((capabilities::mask(capabilities::DEFAULT.iter().copied())?, 0));
    };
    let names = |list: &[String]| capabilities::mask(list.iter().map(String::as_str));
    let is_all = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case("all"));
    // "drop ALL, add X" means X alone; "add ALL, drop X" means all but X.
    let mut mask = capabilities::mask(capabilities::DEFAULT.iter().copied())?;
    if is_all(&asked.add_capabilities) {
        mask = capabilities::ALL;
    }
    if is_all(&asked.drop_capabilities) {
        mask = 0;
    }
    let single = |list: &[String]| list.iter().filter(|n| !n.eq_ignore_ascii_case("all")).cloned().collect::<Vec<_>>();
    let ambient = names(&asked.add_ambient_capabilities)?;
    mask |= names(&single(&asked.add_capabilities))? | ambient;
    mask &= !names(&single(&asked.drop_capabilities))?;
    Ok((mask, ambient & mask))
}

/// CRI resources as control group limits.
pub fn limits(resources: &v1::LinuxContainerResources) -> cgroups::Limits {
    let text = |value: &String| Some(value.clone()).filter(|v| !v.is_empty());
    cgroups::Limits {
        cpu_shares: (resources.cpu_shares > 0).then_some(resources.cpu_shares as u64),
        cpu_quota: (resources.cpu_quota != 0).then_some(resources.cpu_quota),
        cpu_period: (resources.cpu_period > 0).then_some(resources.cpu_period as u64),
        memory: (resources.memory_limit_in_bytes != 0).then_some(resources.memory_limit_in_bytes),
        memory_swap: (resources.memory_swap_limit_in_bytes != 0).then_some(resources.memory_swap_limit_in_bytes),
        pids: resources.unified.get("pids.max").and_then(|max| max.parse().ok()),
        cpuset_cpus: text(&resources.cpuset_cpus),
        cpuset_mems: text(&resources.cpuset_mems),
        hugepages: resources
            .hugepage_limits
            .iter()
            .map(|page| cgroups::HugepageLimit { page_size: page.page_size.clone(), limit: page.limit })
            .collect(),
        unified: resources.unified.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        devices: None,
    }
}

/// Which character devices a container may use: the harmless ones, terminals, and making nodes of any.
pub fn device_rules(privileged: bool, extra: &[oci::Device]) -> Vec<cgroups::DeviceRule> {
    let access = |device: &oci::Device| if device.access.is_empty() { "rwm".to_owned() } else { device.access.clone() };
    let rule = |kind, major: Option<u32>, minor: Option<u32>, access: String| cgroups::DeviceRule { kind, major, minor, access };
    if privileged {
        return vec![rule('a', None, None, "rwm".into())];
    }
    let mut rules = vec![rule('c', None, None, "m".into()), rule('b', None, None, "m".into())];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(rule('c', Some(major), Some(minor), "rwm".into()));
    }
    rules.push(rule('c', Some(136), None, "rwm".into()));
    rules.extend(extra.iter().filter(|d| d.kind != 'p').map(|d| rule(d.kind, Some(d.major), Some(d.minor), access(d))));
    rules
}

/// A volume that the daemon has opened.
pub struct Volume<'a> {
    pub mount: &'a v1::Mount,
    pub directory: bool,
}

/// What `/sys/fs/cgroup` shows.
pub enum CgroupView {
    Unified,
    /// A new mount of each of these v1 hierarchies.
    New(Vec<String>),
    /// A directory with a mount point for each hierarchy, and the container's own group in each, by index in the descriptors.
    Bound(usize, Vec<(String, usize)>),
}

/// What [`spec`] needs besides the container's own configuration.
pub struct Surroundings<'a> {
    pub process: Process,
    pub pid: PidNamespace,
    pub host_ipc: bool,
    /// In the order of the descriptors that go to the launcher.
    pub volumes: Vec<Volume<'a>>,
    pub devices: Vec<oci::Device>,
    pub cgroups: CgroupView,
    /// The index of a tree that is an empty directory.
    pub empty: Option<usize>,
    /// In a user namespace: a mount of the host's node for each device, by path in the container and index in the descriptors.
    pub device_mounts: Option<Vec<(String, usize)>>,
}

pub fn spec(config: &v1::ContainerConfig, surroundings: Surroundings<'_>) -> Spec {
    let security = config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default();
    let mut mounts = standard_mounts(&security, &surroundings);
    let mut volumes: Vec<(usize, &Volume<'_>)> = surroundings.volumes.iter().enumerate().collect();
    // Parents before children, whatever order they came in.
    volumes.sort_by_key(|(_, volume)| volume.mount.container_path.trim_matches('/').split('/').count());
    for (index, volume) in volumes {
        let target = format!("/{}", volume.mount.container_path.trim_matches('/'));
        mounts.retain(|mount| mount.target != target);
        mounts.push(volume_mount(target, index, volume));
    }
    let devices_are_mounts = surroundings.device_mounts.is_some();
    for (path, index) in surroundings.device_mounts.iter().flatten() {
        let at = mounts.iter().position(|mount| mount.target == "/dev").map_or(0, |at| at + 1);
        mounts.insert(at, device_mount(path.clone(), *index));
    }
    let privileged = security.privileged;
    let paths = |list: Vec<String>| if privileged { Vec::new() } else { list };
    Spec {
        process: surroundings.process,
        pid_namespace: surroundings.pid,
        cgroup_namespace: !privileged,
        root_readonly: security.readonly_rootfs,
        mounts,
        devices: if devices_are_mounts { Vec::new() } else { surroundings.devices },
        devices_are_mounts,
        masked_paths: paths(security.masked_paths),
        empty: surroundings.empty,
        readonly_paths: paths(security.readonly_paths),
        staging: shim::STAGING.to_owned(),
    }
}

fn device_mount(target: String, index: usize) -> Mount {
    Mount {
        target,
        source: Source::Tree { index, directory: false },
        readonly: false,
        recursive_readonly: false,
        nosuid: true,
        nodev: false,
        noexec: true,
        propagation: Propagation::Private,
    }
}

fn volume_mount(target: String, index: usize, volume: &Volume<'_>) -> Mount {
    let mount = volume.mount;
    Mount {
        target,
        source: Source::Tree { index, directory: volume.directory },
        // An image is only read, and nothing in it is run.
        readonly: mount.readonly || mount.image.is_some(),
        recursive_readonly: mount.recursive_read_only,
        nosuid: mount.mount_options.iter().any(|o| o == "nosuid"),
        nodev: mount.mount_options.iter().any(|o| o == "nodev"),
        noexec: mount.image.is_some() || mount.mount_options.iter().any(|o| o == "noexec"),
        propagation: match v1::MountPropagation::try_from(mount.propagation) {
            Ok(v1::MountPropagation::PropagationHostToContainer) => Propagation::FromHost,
            Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Shared,
            _ => Propagation::Private,
        },
    }
}

fn standard_mounts(security: &v1::LinuxContainerSecurityContext, surroundings: &Surroundings<'_>) -> Vec<Mount> {
    let new = |target: &str, kind: &str, options: &[(&str, &str)]| Mount {
        target: target.to_owned(),
        source: Source::New(FileSystem {
            kind: kind.to_owned(),
            options: options.iter().map(|(k, v)| ((*k).to_owned(), Some((*v).to_owned()).filter(|v| !v.is_empty()))).collect(),
        }),
        readonly: false,
        recursive_readonly: false,
        nosuid: true,
        nodev: true,
        noexec: true,
        propagation: Propagation::Private,
    };
    let mut mounts = vec![
        new("/proc", "proc", &[]),
        Mount { nodev: false, noexec: false, ..new("/dev", "tmpfs", &[("mode", "755"), ("size", "65536k")]) },
        Mount { nodev: false, ..new("/dev/pts", "devpts", &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")]) },
        new("/dev/mqueue", "mqueue", &[]),
        Mount { readonly: !security.privileged, ..new("/sys", "sysfs", &[]) },
    ];
    if !surroundings.host_ipc {
        let source = Source::Bind { path: shim::SHM.to_owned(), directory: true };
        mounts.push(Mount { source, ..new("/dev/shm", "", &[]) });
    }
    let readonly = !security.privileged;
    match &surroundings.cgroups {
        CgroupView::Unified => mounts.push(Mount { readonly, ..new("/sys/fs/cgroup", "cgroup2", &[]) }),
        CgroupView::New(controllers) => {
            mounts.push(new("/sys/fs/cgroup", "tmpfs", &[("mode", "755"), ("size", "64k")]));
            for controller in controllers {
                mounts.push(Mount { readonly, ..new(&format!("/sys/fs/cgroup/{controller}"), "cgroup", &[(controller, "")]) });
            }
        }
        CgroupView::Bound(base, controllers) => {
            let tree = |target: &str, index: usize| {
                let source = Source::Tree { index, directory: true };
                Mount { source, readonly: true, ..new(target, "", &[]) }
            };
            mounts.push(tree("/sys/fs/cgroup", *base));
            mounts.extend(controllers.iter().map(|(controller, index)| tree(&format!("/sys/fs/cgroup/{controller}"), *index)));
        }
    }
    mounts
}

/// `/etc/resolv.conf` of a pod.
pub fn resolv_conf(dns: &v1::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    dns.servers.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n")));
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// True when every wanted label is there with its value.
pub fn labels_match(wanted: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn command_and_args_replace_the_images_as_kubernetes_documents() {
        let image = ImageConfig { entrypoint: strings(&["/ep"]), cmd: strings(&["a", "b"]), ..ImageConfig::default() };
        for (command, given, expected) in [
            (&[][..], &[][..], &["/ep", "a", "b"][..]),
            (&["/c"], &[], &["/c"]),
            (&[], &["x"], &["/ep", "x"]),
            (&["/c"], &["x"], &["/c", "x"]),
        ] {
            let config = v1::ContainerConfig { command: strings(command), args: strings(given), ..Default::default() };
            assert_eq!(args(&config, &image), strings(expected));
        }
    }

    #[test]
    fn the_containers_environment_wins_over_the_images() {
        let image = ImageConfig { env: strings(&["A=image", "PATH=/image"]), ..ImageConfig::default() };
        let pair = v1::KeyValue { key: "A".into(), value: b"pod=1".as_slice().into() };
        let config = v1::ContainerConfig { envs: vec![pair], ..Default::default() };
        assert_eq!(env(&config, &image, "web-0", "/root"), strings(&["PATH=/image", "HOSTNAME=web-0", "HOME=/root", "A=pod=1"]));
    }

    #[test]
    fn signals_are_known_by_every_name_in_use() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("Sigrtmaxminus1", Some(63)),
            ("Sigsys", Some(31)),
            ("NOPE", None),
            ("99", None),
            ("", None),
        ] {
            assert_eq!(signal_number(name), number, "{name}");
        }
    }

    #[test]
    fn protection_that_cannot_be_given_is_refused() {
        let context = |seccomp: Option<ProfileType>, privileged| {
            let profile = |kind: ProfileType| v1::SecurityProfile { profile_type: kind as i32, localhost_ref: "own.json".into() };
            v1::LinuxContainerSecurityContext { seccomp: seccomp.map(profile), privileged, ..Default::default() }
        };
        let seccomp = |kind, privileged| context(Some(kind), privileged);
        assert!(own_filter(&seccomp(ProfileType::Localhost, false)).is_err_and(|error| error.contains("own.json")));
        assert!(default_filter(&seccomp(ProfileType::RuntimeDefault, false)));
        for unfiltered in [seccomp(ProfileType::RuntimeDefault, true), seccomp(ProfileType::Unconfined, false), context(None, false)] {
            assert!(!default_filter(&unfiltered));
        }
    }

    #[test]
    fn dropping_all_leaves_what_is_added() {
        let masks = |add: &[&str], drop: &[&str]| {
            let capabilities = v1::Capability { add_capabilities: strings(add), drop_capabilities: strings(drop), ..Default::default() };
            capability_masks(&v1::LinuxContainerSecurityContext { capabilities: Some(capabilities), ..Default::default() }).map(|m| m.0)
        };
        assert_eq!(masks(&["NET_ADMIN"], &["ALL"]), Ok(1 << 12));
        assert_eq!(masks(&["ALL"], &["NET_ADMIN"]), Ok(capabilities::ALL & !(1 << 12)));
        assert_eq!(masks(&[], &["CHOWN"]), Ok(0xa804_25fa));
        assert!(masks(&["FLY"], &[]).is_err());
    }

    #[test]
    fn a_volume_takes_the_place_of_a_standard_mount_and_parents_come_first() {
        let mount = |path: &str| v1::Mount { container_path: path.into(), ..Default::default() };
        let (deep, shallow, shm) = (mount("/data/deep/"), mount("/data"), mount("/dev/shm"));
        let volumes = [&deep, &shallow, &shm].map(|mount| Volume { mount, directory: true }).into();
        let surroundings = Surroundings {
            process: Process::default(),
            pid: PidNamespace::New,
            host_ipc: false,
            volumes,
            devices: Vec::new(),
            cgroups: CgroupView::Unified,
            empty: None,
            device_mounts: None,
        };
        let spec = spec(&v1::ContainerConfig::default(), surroundings);
        let targets: Vec<&str> = spec.mounts.iter().map(|m| m.target.as_str()).collect();
        assert_eq!(targets, ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/data", "/data/deep", "/dev/shm"]);
        assert_eq!(spec.mounts[6].source, Source::Tree { index: 1, directory: true });
    }

    #[test]
    fn resolv_conf_lists_search_servers_and_options() {
        let dns = v1::DnsConfig { servers: strings(&["10.96.0.10"]), searches: strings(&["a", "b"]), options: strings(&["ndots:5"]) };
        assert_eq!(resolv_conf(&dns), "search a b\nnameserver 10.96.0.10\noptions ndots:5\n");
    }
}
