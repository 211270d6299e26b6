//! AppArmor profiles of containers, on hosts whose kernel enforces them.
//!
//! A container without a profile of its own gets the runtime's default where the host can load it, as upstream documents it; that one is compiled by the
//! host's `apparmor_parser` when the first container needs it. A container never runs with less than it asked for.
//!
//! Source: upstream's "Restrict a Container's Access to Resources with AppArmor".

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, Once};

use cri::v1;
use cri::v1::security_profile::ProfileType;

/// What containers get where they ask for nothing else.
const DEFAULT: &str = "sternpost-default";
/// Its text. What the mounts of a container hide already is denied once more, for a container that finds another way to it.
const DEFAULT_TEXT: &str = "\
profile sternpost-default flags=(attach_disconnected,mediate_deleted) {
  file,
  network,
  capability,
  umount,
  unix,
  signal (receive) peer=unconfined,
  signal (send, receive) peer=sternpost-default,
  ptrace (trace, read, tracedby, readby) peer=sternpost-default,

  deny mount,
  deny /proc/{acpi,bus,fs,irq,scsi}/** wklx,
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwklx,
  deny /proc/sys/{abi,debug,dev,fs,vm}/** wklx,
  deny /proc/sys/kernel/{core_pattern,hotplug,kexec*,modprobe,modules_disabled,perf*,printk*,randomize*,sysrq,yama/**} wklx,
  deny /sys/{block,bus,class,dev,devices,hypervisor,module,power}/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/fs/{bpf,ext4,f2fs,pstore,selinux,xfs}/** wklx,
  deny /sys/kernel/{debug,security,tracing}/** rwklx,
}
";

/// The host as far as AppArmor goes.
pub struct Host {
    /// `Y` where the kernel enforces profiles.
    enabled: PathBuf,
    /// Names of the profiles that it knows, one per line with their mode.
    loaded: PathBuf,
    /// Where the compiler of profiles may be.
    parsers: Vec<PathBuf>,
    /// Containers that start together load one profile.
    loading: Mutex<()>,
    warned: Once,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            enabled: "/sys/module/apparmor/parameters/enabled".into(),
            loaded: "/sys/kernel/security/apparmor/profiles".into(),
            parsers: ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser", "/usr/bin/apparmor_parser"].map(PathBuf::from).into(),
            loading: Mutex::default(),
            warned: Once::new(),
        }
    }
}

impl Host {
    /// The profile that the container's processes enter, which the kernel knows by now; `None` leaves them unconfined. `Err` is a sentence for the user.
    pub fn profile(&self, security: &v1::LinuxContainerSecurityContext) -> Result<Option<String>, String> {
        let enforced = std::fs::read_to_string(&self.enabled).is_ok_and(|answer| answer.trim() == "Y");
        let asked = security.apparmor.as_ref().map(|profile| profile.profile_type);
        match asked {
            _ if security.privileged => Ok(None),
            Some(kind) if kind == ProfileType::Unconfined as i32 => Ok(None),
            Some(_) if !enforced => Err("Cannot enforce AppArmor: AppArmor is not enabled on the host".into()),
            Some(kind) if kind == ProfileType::Localhost as i32 => {
                let reference = security.apparmor.as_ref().map_or("", |profile| profile.localhost_ref.as_str());
                let name = reference.strip_prefix("localhost/").unwrap_or(reference);
                if self.knows(name) { Ok(Some(name.to_owned())) } else { Err(format!("apparmor profile not found {name}")) }
            }
            Some(_) => self.default_profile(&self.parser().ok_or("Cannot enforce AppArmor: apparmor_parser is not installed on the host")?),
            None if !enforced => Ok(None),
            None => match self.parser() {
                // Nobody asked, and hosts within containers often may not load profiles.
                Some(parser) => Ok(self.default_profile(&parser).unwrap_or_else(|error| {
                    self.warned.call_once(|| tracing::warn!(error, "containers without an AppArmor profile of their own run unconfined"));
                    None
                })),
                None => Ok(None),
            },
        }
    }

    fn parser(&self) -> Option<PathBuf> {
        self.parsers.iter().find(|path| path.is_file()).cloned()
    }

    fn knows(&self, name: &str) -> bool {
        let loaded = std::fs::read_to_string(&self.loaded).unwrap_or_default();
        loaded.lines().any(|line| line.rsplit_once(" (").map_or(line, |(name, _)| name) == name)
    }

    fn default_profile(&self, parser: &Path) -> Result<Option<String>, String> {
        let _alone = self.loading.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !self.knows(DEFAULT) {
            load(parser, DEFAULT_TEXT).map_err(|error| format!("Cannot enforce AppArmor: load profile {DEFAULT}: {error}"))?;
        }
        Ok(Some(DEFAULT.to_owned()))
    }
}

/// Compiles a profile without a cache and hands it to the kernel.
fn load(parser: &Path, text: &str) -> std::io::Result<()> {
    let mut compiler = Command::new(parser);
    compiler.args(["--skip-cache", "--replace"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = compiler.spawn()?;
    let written = running.stdin.take().map_or(Ok(()), |mut input| input.write_all(text.as_bytes()));
    let ended = running.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stderr);
    // A compiler that gives up does not read on; what it says tells more than its closed pipe.
    if ended.status.success() { written } else { Err(std::io::Error::other(format!("{}: {}", ended.status, said.trim()))) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A host whose parser is a script that adds what it loads to the kernel's list.
    fn host(dir: &Path, enforces: bool, parser: Option<&str>) -> Host {
        let file = |name: &str, text: &str| {
            std::fs::write(dir.join(name), text).unwrap();
            dir.join(name)
        };
        let script = parser.map(|script| {
            let path = file("parser", script);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        });
        Host {
            enabled: file("enabled", if enforces { "Y\n" } else { "N\n" }),
            loaded: file("profiles", "/usr/bin/man (enforce)\nweb (v2) (complain)\n"),
            parsers: script.into_iter().collect(),
            loading: Mutex::default(),
            warned: Once::new(),
        }
    }

    fn asks(kind: Option<ProfileType>, name: &str, privileged: bool) -> v1::LinuxContainerSecurityContext {
        let profile = |kind: ProfileType| v1::SecurityProfile { profile_type: kind as i32, localhost_ref: name.into() };
        v1::LinuxContainerSecurityContext { apparmor: kind.map(profile), privileged, ..Default::default() }
    }

    #[test]
    fn a_container_has_the_profile_that_it_asked_for_or_does_not_run() {
        use ProfileType::{Localhost, RuntimeDefault, Unconfined};
        let dir = tempfile::tempdir().unwrap();
        let loads = format!(
            "#!/bin/sh\ngrep '^profile sternpost-default ' > /dev/null && echo 'sternpost-default (enforce)' >> {}/profiles\n",
            dir.path().display()
        );
        let default = Ok(Some("sternpost-default".to_owned()));
        let cases = [
            (true, Some(loads.as_str()), None, "", default.clone()),
            (true, Some("#!/bin/sh\necho 'compiled already' >&2; exit 1\n"), Some(RuntimeDefault), "", Err("compiled already")),
            (true, Some("#!/bin/sh\nexit 1\n"), None, "", Ok(None)),
            (true, None, None, "", Ok(None)),
            (true, None, Some(RuntimeDefault), "", Err("apparmor_parser is not installed")),
            (true, None, Some(Localhost), "localhost//usr/bin/man", Ok(Some("/usr/bin/man".to_owned()))),
            (true, None, Some(Localhost), "web (v2)", Ok(Some("web (v2)".to_owned()))),
            (true, None, Some(Localhost), "nowhere", Err("apparmor profile not found nowhere")),
            (true, None, Some(Unconfined), "", Ok(None)),
            (false, None, Some(Localhost), "web (v2)", Err("AppArmor is not enabled on the host")),
            (false, Some(loads.as_str()), None, "", Ok(None)),
        ];
        for (enforces, parser, kind, name, expected) in cases {
            let got = host(dir.path(), enforces, parser).profile(&asks(kind, name, false));
            match (&got, &expected) {
                (Err(got), Err(expected)) => assert!(got.contains(expected), "{got}"),
                _ => assert_eq!(got.as_ref().ok(), expected.as_ref().ok(), "{kind:?} {name}: {got:?}"),
            }
            assert_eq!(host(dir.path(), enforces, parser).profile(&asks(kind, name, true)), Ok(None), "privileged");
        }
        // It is loaded once.
        let host = host(dir.path(), true, Some(&loads));
        for _ in 0..3 {
            assert_eq!(host.profile(&asks(None, "", false)).as_ref().ok(), default.as_ref().ok());
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("profiles")).unwrap().matches("sternpost-default").count(), 1);
    }
}
