//! Linux capabilities as bit masks.

const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// What a container has that asks for nothing: the set that containerd and Docker give.
pub const DEFAULT: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The number of a capability, by its name with or without `CAP_`, in any case.
pub fn number(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|n| *n == bare).map(|n| n as u32)
}

/// The names of a mask's capabilities, with `CAP_`.
pub fn names(mask: u64) -> Vec<String> {
    NAMES.iter().enumerate().filter(|(number, _)| mask & (1 << number) != 0).map(|(_, name)| format!("CAP_{name}")).collect()
}

/// What this process may give away.
pub fn held() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(ALL)
}

/// The mask of several names; an unknown name is the error.
pub fn mask<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<u64, String> {
    names.into_iter().try_fold(0, |mask, name| match name.to_ascii_uppercase().as_str() {
        "ALL" => Ok(ALL),
        _ => number(name).map(|n| mask | 1 << n).ok_or_else(|| format!("unknown capability {name:?}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_set_is_the_one_that_is_known_from_docker() {
        assert_eq!(mask(DEFAULT.iter().copied()), Ok(0xa804_25fb));
    }

    #[test]
    fn names_are_taken_with_and_without_prefix() {
        assert_eq!(mask(["cap_sys_admin", "NET_ADMIN"]), Ok(1 << 21 | 1 << 12));
        assert_eq!(mask(["ALL"]), Ok(ALL));
        assert!(mask(["SYS_ADMINISTRATOR"]).unwrap_err().contains("SYS_ADMINISTRATOR"));
    }
}
