//! A container's first process by another program: any that has runc's command line, such as runc and crun.
//!
//! The launcher's child becomes the parent of that program. In a mount namespace of its own, which is the host's but for what it adds, it attaches
//! root and volumes below a bundle, writes the bundle's `config.json` (OCI runtime specification 1.0), has the program run it detached, and tells
//! which process came of it: an orphan, and so the launcher's child, too. Network, IPC and host name are the launcher's own, as everywhere here.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::channel::{self, Failure};
use crate::{Handles, Mount, PidNamespace, Propagation, Source, Spec, Started, capabilities, child, seccomp, spawn, sys};

/// A program that makes a container for longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// What every container has.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];
/// Every host has it, and everybody may pass through it.
const SHOWN: &str = "/tmp";
/// In the bundle.
const CONSOLE: &str = "console";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which program makes the container, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// On the host, such as `/usr/sbin/runc`.
    pub program: String,
    pub id: String,
    /// A directory on the host of this container alone, with directories `rootfs` and `mounts`; what the program leaves there may be deleted with it.
    pub bundle: String,
    /// The container's control group, absolute in each hierarchy; its limits are set already.
    pub cgroup: String,
    /// The container may use every device of the host.
    pub all_devices: bool,
    /// The host's ids that those of the pod's user namespace are, from its 0 on: the first, and how many.
    pub ids: Option<(u32, u32)>,
}

/// Starts a container's first process through `external`. `host` is the mount namespace that the program is in. The [`crate::Channel`] says how it
/// went; on success by [`crate::Progress::Adopted`].
///
/// # Safety
/// The calling process must be single-threaded, and a reaper of its descendants.
pub unsafe fn spawn_external(spec: &Spec, external: &External, host: BorrowedFd<'_>, handles: &Handles<'_>) -> io::Result<Started> {
    // A program that finds itself in the group that it is to make refuses it; the group of a hybrid host's second hierarchy it does not look at.
    let birthplace = handles.birthplace.filter(|_| !handles.join.is_empty());
    let born = Handles { birthplace, ..Handles::default() };
    // SAFETY: passed on to the caller.
    unsafe { spawn::fork(0, None, &born, |report| launch(spec, external, host, handles, report)) }
}

fn launch(spec: &Spec, external: &External, host: BorrowedFd<'_>, handles: &Handles<'_>, report: &OwnedFd) -> Result<Infallible, Failure> {
    sys::reset_signals();
    child::hide();
    if spec.mounts.iter().any(|mount| mount.propagation == Propagation::Shared) {
        let message = format!("{} is not asked for volumes with mountPropagation Bidirectional", external.program);
        return Err(Failure::sentence("start", 0, message));
    }
    let mut bundle = Path::new(&external.bundle);
    attach_all(spec, bundle, host, handles)?;
    if handles.users.is_some() {
        show(bundle).map_err(|e| Failure::new("show the bundle to the pod's users", e))?;
        bundle = Path::new(SHOWN);
    }
    let text = config(spec, external, bundle, handles).to_string();
    std::fs::write(bundle.join("config.json"), text).map_err(|e| Failure::new("write config.json", e))?;
    let terminal = spec.process.terminal.then(|| listen(bundle)).transpose()?;
    let pid = run(external, bundle, handles, terminal.is_some())?;
    if let Some(listener) = terminal {
        let master = master_of(&listener).map_err(|e| Failure::new(format!("take the terminal of {}", external.program), e))?;
        channel::send_terminal(report, &master).map_err(|e| Failure::new("tell of the terminal", e))?;
    }
    channel::send_adopted(report, pid).map_err(|e| Failure::new("tell of the container", e))?;
    // SAFETY: ends the child at once, without running destructors or exit handlers of the launcher's copy.
    unsafe { libc::_exit(0) }
}

/// The pod's own root enters the bundle before the container is made, and may not pass through the folders that it lies in: in this mount namespace
/// alone it is where everybody comes by.
fn show(bundle: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for folder in [bundle.to_owned(), bundle.join("mounts")] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))?;
    }
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, bundle, clone)?;
    Ok(move_mount(&tree, "", CWD, SHOWN, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Where the mount with this number is attached for the program to bind.
fn place(bundle: &Path, number: usize) -> PathBuf {
    bundle.join("mounts").join(number.to_string())
}

fn attach_all(spec: &Spec, bundle: &Path, host: BorrowedFd<'_>, handles: &Handles<'_>) -> Result<(), Failure> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let mut own = Vec::new();
    for (number, mount) in spec.mounts.iter().enumerate() {
        if let Source::Bind { path, directory } = &mount.source {
            let tree = open_tree(CWD, path.as_str(), clone).map_err(|e| Failure::new(format!("mount {}", mount.target), e))?;
            own.push((number, tree, *directory));
        }
    }
    sys::setns(host, libc::CLONE_NEWNS).map_err(|e| Failure::new("join the host's mount namespace", e))?;
    sys::unshare(libc::CLONE_NEWNS).map_err(|e| Failure::new("unshare mount namespace", e))?;
    // Nothing of what follows may be seen by the host: what is deleted with the bundle would be the volumes themselves.
    sys::mount_setattr(CWD, c"/", true, 0, libc::MS_PRIVATE as u64).map_err(|e| Failure::new("make mounts private", e))?;
    let missing = || Failure::new("attach the root", io::Error::from_raw_os_error(libc::EBADF));
    let root = handles.rootfs.ok_or_else(missing)?;
    attach(root, &bundle.join("rootfs"), true).map_err(|e| Failure::new("attach the root", e))?;
    for (number, mount) in spec.mounts.iter().enumerate() {
        let (tree, directory) = match &mount.source {
            Source::New(_) => continue,
            Source::Tree { index, directory } => (handles.trees.get(*index).ok_or_else(missing)?.as_fd(), *directory),
            Source::Bind { .. } => {
                let Some((_, tree, directory)) = own.iter().find(|(of, _, _)| *of == number) else { return Err(missing()) };
                (tree.as_fd(), *directory)
            }
        };
        attach(tree, &place(bundle, number), directory).map_err(|e| Failure::new(format!("mount {}", mount.target), e))?;
    }
    Ok(())
}

fn attach(tree: BorrowedFd<'_>, at: &Path, directory: bool) -> io::Result<()> {
    match directory {
        true => std::fs::create_dir_all(at)?,
        false => drop(std::fs::File::create(at)?),
    }
    Ok(move_mount(tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Where the program sends the terminal that it opens. By a short name, from within the bundle: addresses of sockets are not longer than a hundred
/// letters or so.
fn listen(bundle: &Path) -> Result<UnixListener, Failure> {
    let step = |error: io::Error| Failure::new("listen for the terminal", error);
    std::env::set_current_dir(bundle).map_err(step)?;
    let listener = UnixListener::bind(CONSOLE).map_err(step)?;
    listener.set_nonblocking(true).map_err(step)?;
    Ok(listener)
}

/// The program has ended well: what it sent is there.
fn master_of(listener: &UnixListener) -> io::Result<OwnedFd> {
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    channel::receive_descriptor(&stream)?.ok_or_else(|| io::Error::other("it sent none"))
}

/// The program's whole run; returns the container's first process.
fn run(external: &External, bundle: &Path, handles: &Handles<'_>, terminal: bool) -> Result<i32, Failure> {
    let step = |error: io::Error| Failure::new(format!("run {}", external.program), error);
    let (pid_file, log) = (bundle.join("pid"), bundle.join("log"));
    let mut command = Command::new(&external.program);
    command.arg("--root").arg(bundle.join("state")).arg("--log").arg(&log);
    command.args(["run", "--detach", "--bundle"]).arg(bundle).arg("--pid-file").arg(&pid_file);
    if terminal {
        command.args(["--console-socket", CONSOLE]);
    }
    command.arg(&external.id);
    let [stdin, stdout, stderr] = handles.stdio.map(|end| {
        let copied = end.map(|end| end.try_clone_to_owned()).transpose();
        copied.map(|end| end.map_or_else(Stdio::null, Stdio::from))
    });
    command.stdin(stdin.map_err(step)?).stdout(stdout.map_err(step)?).stderr(stderr.map_err(step)?);
    let path = PATH.split_once('=').unwrap_or_default();
    let running = command.env_clear().env(path.0, path.1).current_dir(bundle).spawn().map_err(step)?;
    let status = end_of(running).map_err(step)?;
    if !status.success() {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let last = said.lines().rev().find(|line| line.contains("error")).unwrap_or("it gave no reason");
        return Err(Failure::sentence("run", 0, format!("{}: {status}: {last}", external.program)));
    }
    let text = std::fs::read_to_string(&pid_file).map_err(step)?;
    text.trim().parse().map_err(|_| step(io::Error::other(format!("{text:?} is no process id"))))
}

/// One that hangs is killed; what it leaves in the container's control group is the caller's to kill.
fn end_of(mut running: Child) -> io::Result<ExitStatus> {
    let since = Instant::now();
    loop {
        if let Some(status) = running.try_wait()? {
            return Ok(status);
        }
        if since.elapsed() > PATIENCE {
            running.kill()?;
            running.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The bundle's `config.json`.
fn config(spec: &Spec, external: &External, bundle: &Path, handles: &Handles<'_>) -> Value {
    let process = &spec.process;
    let held = capabilities::held();
    let names = |mask: u64| capabilities::names(mask & held);
    let mut namespaces = vec![json!({"type": "mount"})];
    match spec.pid_namespace {
        PidNamespace::New => namespaces.push(json!({"type": "pid"})),
        PidNamespace::Join => {
            namespaces.extend(pid_of(handles.pid_namespace).map(|pid| json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")})))
        }
        PidNamespace::Host => {}
    }
    if spec.cgroup_namespace {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let ids: Vec<Value> = external.ids.iter().map(|(first, count)| json!({"containerID": 0, "hostID": first, "size": count})).collect();
    if let Some(users) = &handles.users {
        // This process lives as long as the program runs.
        let path = format!("/proc/{}/fd/{}", std::process::id(), users.namespace.as_raw_fd());
        namespaces.push(json!({"type": "user", "path": path}));
    }
    let (bounding, ambient) = (names(process.bounding), names(process.ambient));
    let filter = match &process.seccomp_profile {
        Some(profile) => Some(profile.to_oci(process.bounding)),
        None => process.seccomp.then(|| seccomp::default_to_oci(process.bounding)),
    };
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": process.terminal, "args": process.args, "env": process.env, "cwd": process.cwd,
            "user": {"uid": process.user.uid, "gid": process.user.gid, "additionalGids": process.user.groups},
            "capabilities": {"bounding": bounding, "permitted": bounding, "effective": bounding, "inheritable": ambient, "ambient": ambient},
            "noNewPrivileges": process.no_new_privileges, "apparmorProfile": process.apparmor,
            "oomScoreAdj": process.oom_score_adj.map(|wanted| wanted.max(own_oom_score())),
        },
        "root": {"path": "rootfs", "readonly": spec.root_readonly},
        "mounts": mounts(spec, external, bundle),
        "linux": {
            "namespaces": namespaces, "uidMappings": ids, "gidMappings": ids, "cgroupsPath": external.cgroup, "seccomp": filter,
            "maskedPaths": spec.masked_paths, "readonlyPaths": spec.readonly_paths,
            "devices": spec.devices.iter().map(|device| json!({
                "path": device.path, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
                "fileMode": device.mode, "uid": device.uid, "gid": device.gid,
            })).collect::<Vec<_>>(),
            "resources": {"devices": devices(spec, external)},
        },
    })
}

/// The rules replace those that the control group has.
fn devices(spec: &Spec, external: &External) -> Vec<Value> {
    if external.all_devices {
        return vec![json!({"allow": true, "access": "rwm"})];
    }
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    rules.extend(spec.devices.iter().filter(|device| device.kind != 'p').map(|device| {
        let access = if device.access.is_empty() { "rwm" } else { &device.access };
        json!({"allow": true, "type": device.kind.to_string(), "major": device.major, "minor": device.minor, "access": access})
    }));
    rules
}

fn mounts(spec: &Spec, external: &External, bundle: &Path) -> Vec<Value> {
    let mut list = Vec::new();
    for (number, mount) in spec.mounts.iter().enumerate() {
        let mut options = options(mount);
        // In a user namespace such programs show these of the host by themselves, and trip over those that are there.
        if external.ids.is_some() && DEVICES.contains(&mount.target.as_str()) {
            continue;
        }
        match &mount.source {
            // Such programs mount all hierarchies at once.
            Source::New(_) if mount.target.starts_with("/sys/fs/cgroup/") => {}
            Source::New(_) if mount.target == "/sys/fs/cgroup" => {
                options.push(if spec.cgroup_namespace { "ro".into() } else { "rw".into() });
                list.push(json!({"destination": mount.target, "type": "cgroup", "source": "cgroup", "options": options}));
            }
            Source::New(new) => {
                options.extend(
                    new.options.iter().map(|(key, value)| value.as_ref().map_or_else(|| key.clone(), |value| format!("{key}={value}"))),
                );
                list.push(json!({"destination": mount.target, "type": new.kind, "source": new.kind, "options": options}));
            }
            Source::Tree { .. } | Source::Bind { .. } => {
                options
                    .extend(locked(&place(bundle, number)).filter(|name| !options.iter().any(|known| known == name)).collect::<Vec<_>>());
                options.push("rbind".into());
                options.push(if mount.propagation == Propagation::FromHost { "rslave".into() } else { "rprivate".into() });
                list.push(json!({"destination": mount.target, "type": "bind", "source": place(bundle, number), "options": options}));
            }
        }
    }
    list
}

/// What a mount forbids already: in a user namespace nobody can allow it again, and who leaves it out is refused.
fn locked(path: &Path) -> impl Iterator<Item = String> {
    use rustix::fs::StatVfsMountFlags as Flags;
    let flags = rustix::fs::statvfs(path).map_or(Flags::empty(), |found| found.f_flag);
    let names = [(Flags::NOSUID, "nosuid"), (Flags::NODEV, "nodev"), (Flags::NOEXEC, "noexec"), (Flags::RDONLY, "ro")];
    names.into_iter().filter(move |(flag, _)| flags.contains(*flag)).map(|(_, name)| name.to_owned())
}

fn options(mount: &Mount) -> Vec<String> {
    let readonly = if mount.recursive_readonly { "rro" } else { "ro" };
    let flags = [(mount.nosuid, "nosuid"), (mount.nodev, "nodev"), (mount.noexec, "noexec"), (mount.readonly, readonly)];
    flags.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_owned()).collect()
}

/// The process behind a pidfd, by its id on the host.
fn pid_of(pidfd: Option<BorrowedFd<'_>>) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd?.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok().filter(|pid| *pid > 0)
}

/// Lowering it below this takes a privilege that not every launcher has.
fn own_oom_score() -> i32 {
    std::fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileSystem, Process};

    #[test]
    fn a_bundle_says_what_the_spec_says() {
        let mount = |target: &str, source: Source| Mount {
            target: target.into(),
            source,
            readonly: true,
            recursive_readonly: false,
            nosuid: true,
            nodev: false,
            noexec: false,
            propagation: Propagation::Private,
        };
        let new = |kind: &str| Source::New(FileSystem { kind: kind.into(), options: vec![("mode".into(), Some("755".into()))] });
        let spec = Spec {
            process: Process { args: vec!["sh".into()], bounding: 1, seccomp: true, apparmor: Some("own".into()), ..Process::default() },
            cgroup_namespace: true,
            mounts: vec![
                mount("/dev", new("tmpfs")),
                mount("/sys/fs/cgroup", new("tmpfs")),
                mount("/sys/fs/cgroup/cpu", new("cgroup")),
                mount("/data", Source::Tree { index: 0, directory: true }),
            ],
            ..Spec::default()
        };
        let (program, id, cgroup) = ("/runc".into(), "c".into(), "/own/pods/c".into());
        let external = External { program, id, bundle: "/b".into(), cgroup, all_devices: false, ids: None };
        let config = config(&spec, &external, Path::new(&external.bundle), &Handles::default());
        assert_eq!(config["process"]["apparmorProfile"], "own");
        let mounts: Vec<String> = config["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| format!("{} {} {}", mount["destination"], mount["source"], mount["options"]))
            .collect();
        assert_eq!(
            mounts,
            [
                r#""/dev" "tmpfs" ["nosuid","ro","mode=755"]"#,
                r#""/sys/fs/cgroup" "cgroup" ["nosuid","ro","ro"]"#,
                r#""/data" "/b/mounts/3" ["nosuid","ro","rbind","rprivate"]"#,
            ]
        );
        assert_eq!(config["linux"]["namespaces"], json!([{"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}]));
        assert_eq!(config["linux"]["resources"]["devices"], json!([{"allow": false, "access": "rwm"}]));
        assert_eq!(config["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    }
}
