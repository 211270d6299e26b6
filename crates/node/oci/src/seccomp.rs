//! The default system call filter (`seccompProfile: RuntimeDefault`): what Docker and containerd forbid a container by default.
//!
//! It is written as what is refused, and what is newer than this list is answered with ENOSYS, so that C libraries fall back to the
//! older call; the classic BPF program is built here, without libseccomp.

use std::io;

use libc::sock_filter;

use crate::capabilities;

mod numbers;
mod profile;

pub use profile::Profile;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

/// The last call of Linux 6.12 (`mseal`); numbers above are answered with ENOSYS. It is the same on all architectures since 5.1.
const LAST: u32 = 462;
/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const NEW_NAMESPACES: u32 = 0x7e02_0000;
/// PER_LINUX and PER_LINUX32, with and without UNAME26, and the question.
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Refused with EPERM, but for holders of one of the capabilities.
const REFUSED: &[(libc::c_long, &[&str])] = &[
    (libc::SYS_acct, &["SYS_PACCT"]),
    (libc::SYS_add_key, &[]),
    (libc::SYS_bpf, &["SYS_ADMIN", "BPF"]),
    (libc::SYS_clock_adjtime, &["SYS_TIME"]),
    (libc::SYS_clock_settime, &["SYS_TIME"]),
    (libc::SYS_delete_module, &["SYS_MODULE"]),
    (libc::SYS_fanotify_init, &["SYS_ADMIN"]),
    (libc::SYS_finit_module, &["SYS_MODULE"]),
    (libc::SYS_fsconfig, &["SYS_ADMIN"]),
    (libc::SYS_fsmount, &["SYS_ADMIN"]),
    (libc::SYS_fsopen, &["SYS_ADMIN"]),
    (libc::SYS_fspick, &["SYS_ADMIN"]),
    (libc::SYS_get_mempolicy, &["SYS_NICE"]),
    (libc::SYS_init_module, &["SYS_MODULE"]),
    (libc::SYS_io_uring_enter, &[]),
    (libc::SYS_io_uring_register, &[]),
    (libc::SYS_io_uring_setup, &[]),
    (libc::SYS_kcmp, &["SYS_PTRACE"]),
    (libc::SYS_kexec_load, &[]),
    (libc::SYS_kexec_file_load, &[]),
    (libc::SYS_keyctl, &[]),
    (libc::SYS_lookup_dcookie, &["SYS_ADMIN"]),
    (libc::SYS_mbind, &["SYS_NICE"]),
    (libc::SYS_mount, &["SYS_ADMIN"]),
    (libc::SYS_mount_setattr, &["SYS_ADMIN"]),
    (libc::SYS_move_mount, &["SYS_ADMIN"]),
    (libc::SYS_move_pages, &[]),
    (libc::SYS_open_by_handle_at, &["DAC_READ_SEARCH"]),
    (libc::SYS_open_tree, &["SYS_ADMIN"]),
    (libc::SYS_perf_event_open, &["SYS_ADMIN", "PERFMON"]),
    (libc::SYS_pivot_root, &[]),
    (libc::SYS_quotactl, &["SYS_ADMIN"]),
    (libc::SYS_quotactl_fd, &["SYS_ADMIN"]),
    (libc::SYS_reboot, &["SYS_BOOT"]),
    (libc::SYS_request_key, &[]),
    (libc::SYS_set_mempolicy, &["SYS_NICE"]),
    (libc::SYS_setdomainname, &["SYS_ADMIN"]),
    (libc::SYS_sethostname, &["SYS_ADMIN"]),
    (libc::SYS_setns, &["SYS_ADMIN"]),
    (libc::SYS_settimeofday, &["SYS_TIME"]),
    (libc::SYS_swapoff, &[]),
    (libc::SYS_swapon, &[]),
    (libc::SYS_syslog, &["SYS_ADMIN", "SYSLOG"]),
    (libc::SYS_umount2, &["SYS_ADMIN"]),
    (libc::SYS_unshare, &["SYS_ADMIN"]),
    (libc::SYS_userfaultfd, &[]),
    (libc::SYS_vhangup, &["SYS_TTY_CONFIG"]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS__sysctl, &[]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_ioperm, &["SYS_RAWIO"]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_iopl, &["SYS_RAWIO"]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_sysfs, &[]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_uselib, &[]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_ustat, &[]),
];

/// From here on only what the profile allows a holder of `capabilities` (a bit mask) can be called, by this process and its children.
/// Needs `no_new_privs` or CAP_SYS_ADMIN.
///
/// `profile` takes the place of the default.
pub fn install(capabilities: u64, profile: Option<&Profile>) -> io::Result<()> {
    let mut program = match profile {
        Some(profile) => profile.program(capabilities).map_err(io::Error::other)?,
        None => program(capabilities),
    };
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which outlives the call.
    match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The default in the words of the OCI runtime specification, for another program to install.
pub fn default_to_oci(held: u64) -> serde_json::Value {
    use serde_json::json;
    let holds = |names: &[&str]| names.iter().any(|name| capabilities::number(name).is_some_and(|number| held & (1 << number) != 0));
    let refused = |number: libc::c_long| REFUSED.iter().any(|(other, but)| *other == number && !holds(but));
    let own = |number: libc::c_long| {
        [libc::SYS_socket, libc::SYS_personality].contains(&number)
            || (!holds(&["SYS_ADMIN"]) && [libc::SYS_clone, libc::SYS_clone3].contains(&number))
    };
    let all = || numbers::COMMON.iter().chain(numbers::OLDER);
    let allowed: Vec<&str> = all().filter(|(_, number)| !refused(*number) && !own(*number)).map(|(name, _)| *name).collect();
    let forbidden: Vec<&str> = all().filter(|(_, number)| refused(*number)).map(|(name, _)| *name).collect();
    let when = |name: &str, argument: serde_json::Value| json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]});
    let mut calls = vec![
        json!({"names": allowed, "action": "SCMP_ACT_ALLOW"}),
        json!({"names": forbidden, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM}),
        when("socket", json!({"index": 0, "value": libc::AF_VSOCK, "op": "SCMP_CMP_NE"})),
    ];
    calls.extend(PERSONALITIES.map(|personality| when("personality", json!({"index": 0, "value": personality, "op": "SCMP_CMP_EQ"}))));
    if !holds(&["SYS_ADMIN"]) {
        let none = json!({"index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"});
        calls.push(when("clone", none));
    }
    // As ours: what is not known has never been there.
    json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": libc::ENOSYS, "architectures": [ARCHITECTURE_NAME], "syscalls": calls})
}

#[cfg(target_arch = "x86_64")]
pub(super) const ARCHITECTURE_NAME: &str = "SCMP_ARCH_X86_64";
#[cfg(target_arch = "aarch64")]
pub(super) const ARCHITECTURE_NAME: &str = "SCMP_ARCH_AARCH64";

fn program(held: u64) -> Vec<sock_filter> {
    let holds = |names: &[&str]| names.iter().any(|name| capabilities::number(name).is_some_and(|number| held & (1 << number) != 0));
    // A program for another architecture would have other numbers: none of its calls exist.
    let mut program = vec![load(ARCHITECTURE), jump(libc::BPF_JEQ, NATIVE, 1, 0), answer(errno(libc::ENOSYS)), load(NUMBER)];
    program.extend([jump(libc::BPF_JGT, LAST, 0, 1), answer(errno(libc::ENOSYS))]);
    for (number, _) in REFUSED.iter().filter(|(_, but)| !holds(but)) {
        program.extend([jump(libc::BPF_JEQ, *number as u32, 0, 1), answer(errno(libc::EPERM))]);
    }
    if !holds(&["SYS_ADMIN"]) {
        // The flags of clone3 are behind a pointer that no filter can follow.
        program.extend([jump(libc::BPF_JEQ, libc::SYS_clone3 as u32, 0, 1), answer(errno(libc::ENOSYS))]);
        program.extend([jump(libc::BPF_JEQ, libc::SYS_clone as u32, 0, 4), load(FIRST_ARGUMENT)]);
        program.extend([jump(libc::BPF_JSET, NEW_NAMESPACES, 0, 1), answer(errno(libc::EPERM)), answer(libc::SECCOMP_RET_ALLOW)]);
    }
    program.extend([jump(libc::BPF_JEQ, libc::SYS_socket as u32, 0, 4), load(FIRST_ARGUMENT)]);
    program.extend([jump(libc::BPF_JEQ, libc::AF_VSOCK as u32, 0, 1), answer(errno(libc::EPERM)), answer(libc::SECCOMP_RET_ALLOW)]);
    program.extend([jump(libc::BPF_JEQ, libc::SYS_personality as u32, 0, 2 + 2 * PERSONALITIES.len() as u8), load(FIRST_ARGUMENT)]);
    for personality in PERSONALITIES {
        program.extend([jump(libc::BPF_JEQ, personality, 0, 1), answer(libc::SECCOMP_RET_ALLOW)]);
    }
    program.extend([answer(errno(libc::EPERM)), answer(libc::SECCOMP_RET_ALLOW)]);
    program
}

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Skips `then` or `otherwise` instructions.
fn jump(test: u32, value: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt: then, jf: otherwise, k: value }
}

fn answer(value: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the call.
    fn verdict(program: &[sock_filter], architecture: u32, number: libc::c_long, argument: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let step = program[at];
            let test = |code: u32| u32::from(step.code) == libc::BPF_JMP | code | libc::BPF_K;
            let skip = |on: bool| usize::from(if on { step.jt } else { step.jf });
            at += 1;
            if u32::from(step.code) == libc::BPF_RET | libc::BPF_K {
                return step.k;
            } else if test(libc::BPF_JEQ) {
                at += skip(value == step.k);
            } else if test(libc::BPF_JGT) {
                at += skip(value > step.k);
            } else if test(libc::BPF_JSET) {
                at += skip(value & step.k != 0);
            } else {
                value = [number as u32, architecture, 0, 0, argument][step.k as usize / 4];
            }
        }
    }

    /// What the kernel would do with a call of this architecture and these arguments.
    pub(super) fn verdict64(program: &[sock_filter], number: libc::c_long, arguments: [u64; 6]) -> u32 {
        let mut data = vec![number as u32, NATIVE, 0, 0];
        arguments.iter().for_each(|argument| data.extend([*argument as u32, (*argument >> 32) as u32]));
        let (mut at, mut value) = (0, 0);
        loop {
            let step = program[at];
            let code = u32::from(step.code);
            let skip = |on: bool| usize::from(if on { step.jt } else { step.jf });
            at += 1;
            at += match () {
                _ if code == libc::BPF_RET | libc::BPF_K => return step.k,
                _ if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => {
                    value &= step.k;
                    0
                }
                _ if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => skip(value == step.k),
                _ if code == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => skip(value > step.k),
                _ if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => skip(value >= step.k),
                _ => {
                    value = data[step.k as usize / 4];
                    0
                }
            };
        }
    }

    #[test]
    fn the_default_profile_refuses_what_docker_refuses() {
        let program = program(capabilities::mask(capabilities::DEFAULT.iter().copied()).unwrap());
        let (allow, eperm, enosys) = (libc::SECCOMP_RET_ALLOW, errno(libc::EPERM), errno(libc::ENOSYS));
        for (number, argument, expected) in [
            (libc::SYS_read, 0, allow),
            (libc::SYS_execve, 0, allow),
            (libc::SYS_chroot, 0, allow),
            (libc::SYS_mount, 0, eperm),
            (libc::SYS_unshare, 0, eperm),
            (libc::SYS_keyctl, 0, eperm),
            (libc::SYS_clone, libc::SIGCHLD as u32, allow),
            (libc::SYS_clone, libc::CLONE_NEWUSER as u32, eperm),
            (libc::SYS_clone3, 0, enosys),
            (libc::SYS_socket, libc::AF_INET as u32, allow),
            (libc::SYS_socket, libc::AF_VSOCK as u32, eperm),
            (libc::SYS_personality, 0, allow),
            (libc::SYS_personality, 0xffff_ffff, allow),
            (libc::SYS_personality, 0x0040_0000, eperm),
            (9999, 0, enosys),
            // The x32 form of read.
            (0x4000_0000, 0, enosys),
        ] {
            assert_eq!(verdict(&program, NATIVE, number, argument), expected, "call {number} with {argument:#x}");
        }
        assert_eq!(verdict(&program, 0x4000_0003, libc::SYS_read, 0), enosys, "another architecture");
    }

    #[test]
    fn a_capability_opens_the_calls_that_belong_to_it() {
        let program = program(capabilities::mask(["SYS_ADMIN"]).unwrap());
        for number in [libc::SYS_mount, libc::SYS_clone3, libc::SYS_setns] {
            assert_eq!(verdict(&program, NATIVE, number, 0), libc::SECCOMP_RET_ALLOW);
        }
        assert_eq!(verdict(&program, NATIVE, libc::SYS_reboot, 0), errno(libc::EPERM));
    }

    #[test]
    fn the_kernel_takes_the_filter() {
        // SAFETY: the child only makes system calls and leaves.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above.
            unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                let refused = install(0, None).is_ok() && libc::unshare(libc::CLONE_NEWUTS) < 0 && libc::getpid() > 0;
                libc::_exit(i32::from(!refused));
            }
        }
        let mut status = 0;
        // SAFETY: `status` is valid for writing.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
    }
}
