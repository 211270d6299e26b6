//! A profile from a file (`seccompProfile: Localhost`): the JSON form that Docker, containerd and runc read, compiled to a filter.
//!
//! Source: moby's `profiles/seccomp`, the OCI runtime specification's `linux.seccomp`. The calls are judged in the order of the profile; the
//! first entry whose arguments match decides. A call that this architecture does not have is skipped, as there.

use libc::sock_filter;
use serde::{Deserialize, Serialize};

use super::numbers::number;
use super::{ARCHITECTURE, FIRST_ARGUMENT, NATIVE, NUMBER, answer, errno, jump, load};
use crate::capabilities;

/// The kernel takes no longer programs.
const INSTRUCTIONS_MAX: usize = 4096;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Profile {
    pub default_action: String,
    pub default_errno_ret: Option<u32>,
    pub syscalls: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    /// The older form names one call.
    pub name: String,
    pub names: Vec<String>,
    pub action: String,
    pub errno_ret: Option<u32>,
    pub args: Option<Vec<Argument>>,
    pub includes: Condition,
    pub excludes: Condition,
}

/// When an entry counts at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// Names of capabilities.
    pub caps: Vec<String>,
    /// Docker's names of architectures: `amd64`, `arm64`.
    pub arches: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Argument {
    pub index: u32,
    pub value: u64,
    pub value_two: u64,
    pub op: String,
}

impl Profile {
    /// `Err` is a sentence about what cannot be obeyed: a profile is never applied in part.
    pub fn parse(text: &str) -> Result<Self, String> {
        let profile: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        profile.program(0)?;
        Ok(profile)
    }

    /// The same in the words of the OCI runtime specification, which knows no conditions.
    pub fn to_oci(&self, capabilities: u64) -> serde_json::Value {
        use serde_json::json;
        let calls = self.syscalls.iter().filter(|rule| rule.counts(capabilities)).map(|rule| {
            let names: Vec<&String> = rule.names.iter().chain(Some(&rule.name).filter(|name| !name.is_empty())).collect();
            json!({"names": names, "action": rule.action, "errnoRet": rule.errno_ret, "args": rule.args})
        });
        let calls: Vec<serde_json::Value> = calls.collect();
        let architectures = [super::ARCHITECTURE_NAME];
        json!({"defaultAction": self.default_action, "defaultErrnoRet": self.default_errno_ret, "architectures": architectures, "syscalls": calls})
    }

    /// The filter for a holder of `capabilities`.
    pub fn program(&self, capabilities: u64) -> Result<Vec<sock_filter>, String> {
        let default = action(&self.default_action, self.default_errno_ret)?;
        let mut program = vec![load(ARCHITECTURE), jump(libc::BPF_JEQ, NATIVE, 1, 0), answer(errno(libc::ENOSYS)), load(NUMBER)];
        for rule in self.syscalls.iter().filter(|rule| rule.counts(capabilities)) {
            let act = action(&rule.action, rule.errno_ret)?;
            let arguments = rule.args.as_deref().unwrap_or_default();
            let checks = arguments.iter().map(Argument::check).collect::<Result<Vec<_>, _>>()?;
            for number in rule.names.iter().chain(Some(&rule.name).filter(|name| !name.is_empty())).filter_map(|name| number(name)) {
                program.extend(entry(number, &checks, act)?);
            }
        }
        program.push(answer(default));
        match program.len() <= INSTRUCTIONS_MAX {
            true => Ok(program),
            false => Err(format!("the profile needs {} instructions, the kernel takes {INSTRUCTIONS_MAX}", program.len())),
        }
    }
}

/// One call with all its checks; the number is loaded before and after.
fn entry(number: u32, checks: &[Vec<sock_filter>], act: u32) -> Result<Vec<sock_filter>, String> {
    if checks.is_empty() {
        return Ok(vec![jump(libc::BPF_JEQ, number, 0, 1), answer(act)]);
    }
    // Every check falls through where it holds and leaves to the end where not.
    let length: usize = checks.iter().map(Vec::len).sum::<usize>() + 2;
    let skip = u8::try_from(length).map_err(|_| "an entry has too many arguments".to_owned())?;
    let mut made = vec![jump(libc::BPF_JEQ, number, 0, skip)];
    let mut left = length;
    for check in checks {
        for step in check {
            left -= 1;
            let to = |offset: u8| if offset == FAIL { u8::try_from(left.saturating_sub(1)).unwrap_or(u8::MAX) } else { offset };
            made.push(sock_filter { jt: to(step.jt), jf: to(step.jf), ..*step });
        }
    }
    made.extend([answer(act), load(NUMBER)]);
    Ok(made)
}

/// Stands for "to the end of the entry" in a check.
const FAIL: u8 = u8::MAX;

impl Rule {
    fn counts(&self, capabilities: u64) -> bool {
        let holds =
            |names: &[String]| names.iter().filter_map(|name| capabilities::number(name)).any(|number| capabilities & (1 << number) != 0);
        let here = |names: &[String]| names.iter().any(|name| name == ARCH_NAME);
        let included = (self.includes.caps.is_empty() || holds(&self.includes.caps))
            && (self.includes.arches.is_empty() || here(&self.includes.arches));
        included && !holds(&self.excludes.caps) && !here(&self.excludes.arches)
    }
}

#[cfg(target_arch = "x86_64")]
const ARCH_NAME: &str = "amd64";
#[cfg(target_arch = "aarch64")]
const ARCH_NAME: &str = "arm64";

impl Argument {
    /// Instructions that fall through where the argument matches; [`FAIL`] where not. Arguments have 64 bits, the machine 32.
    fn check(&self) -> Result<Vec<sock_filter>, String> {
        if self.index > 5 {
            return Err(format!("a call has six arguments, the profile names argument {}", self.index));
        }
        let low = FIRST_ARGUMENT + 8 * self.index;
        let (value_high, value_low) = ((self.value >> 32) as u32, self.value as u32);
        let (two_high, two_low) = ((self.value_two >> 32) as u32, self.value_two as u32);
        let and = |mask: u32| sock_filter { code: (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16, jt: 0, jf: 0, k: mask };
        let (equal, more, least) = (libc::BPF_JEQ, libc::BPF_JGT, libc::BPF_JGE);
        Ok(match self.op.as_str() {
            "SCMP_CMP_EQ" => vec![load(low + 4), jump(equal, value_high, 0, FAIL), load(low), jump(equal, value_low, 0, FAIL)],
            "SCMP_CMP_NE" => vec![load(low + 4), jump(equal, value_high, 0, 2), load(low), jump(equal, value_low, FAIL, 0)],
            "SCMP_CMP_MASKED_EQ" => vec![
                load(low + 4),
                and(value_high),
                jump(equal, two_high, 0, FAIL),
                load(low),
                and(value_low),
                jump(equal, two_low, 0, FAIL),
            ],
            // High halves decide unless they are equal.
            "SCMP_CMP_GT" => vec![
                load(low + 4),
                jump(more, value_high, 3, 0),
                jump(equal, value_high, 0, FAIL),
                load(low),
                jump(more, value_low, 0, FAIL),
            ],
            "SCMP_CMP_GE" => vec![
                load(low + 4),
                jump(more, value_high, 3, 0),
                jump(equal, value_high, 0, FAIL),
                load(low),
                jump(least, value_low, 0, FAIL),
            ],
            "SCMP_CMP_LT" => vec![
                load(low + 4),
                jump(more, value_high, FAIL, 0),
                jump(equal, value_high, 0, 2),
                load(low),
                jump(least, value_low, FAIL, 0),
            ],
            "SCMP_CMP_LE" => vec![
                load(low + 4),
                jump(more, value_high, FAIL, 0),
                jump(equal, value_high, 0, 2),
                load(low),
                jump(more, value_low, FAIL, 0),
            ],
            other => return Err(format!("operator {other:?} of an argument is not known")),
        })
    }
}

fn action(name: &str, number: Option<u32>) -> Result<u32, String> {
    let number = number.unwrap_or(libc::EPERM as u32) & 0xffff;
    Ok(match name {
        "SCMP_ACT_ALLOW" => libc::SECCOMP_RET_ALLOW,
        "SCMP_ACT_ERRNO" => libc::SECCOMP_RET_ERRNO | number,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => libc::SECCOMP_RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => libc::SECCOMP_RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => libc::SECCOMP_RET_TRAP,
        "SCMP_ACT_LOG" => libc::SECCOMP_RET_LOG,
        "SCMP_ACT_TRACE" => libc::SECCOMP_RET_TRACE | number,
        other => return Err(format!("action {other:?} is not supported")),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::verdict64;
    use super::*;

    fn profile(text: &str) -> Profile {
        Profile::parse(text).unwrap()
    }

    #[test]
    fn the_first_entry_that_matches_decides() {
        let profile = profile(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
                {"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}"#,
        );
        let admin = capabilities::mask(["SYS_ADMIN"]).unwrap();
        let (allow, refuse) = (libc::SECCOMP_RET_ALLOW, |number: i32| errno(number));
        for (call, held, expected) in [
            (libc::SYS_read, 0, allow),
            (libc::SYS_mount, 0, refuse(38)),
            (libc::SYS_mount, admin, allow),
            (libc::SYS_fchmodat, 0, refuse(13)),
            (libc::SYS_getpid, 0, refuse(38)),
        ] {
            assert_eq!(verdict64(&profile.program(held).unwrap(), call, [0; 6]), expected, "{call}");
        }
    }

    #[test]
    fn arguments_are_compared_in_all_their_bits() {
        let big = 0x1_0000_0005_u64;
        for (op, value, two, yes, no) in [
            ("SCMP_CMP_EQ", big, 0, vec![big], vec![5, big + 1]),
            ("SCMP_CMP_NE", big, 0, vec![5, big + 1], vec![big]),
            ("SCMP_CMP_GT", big, 0, vec![big + 1, big << 1], vec![big, 5, 0xffff_ffff]),
            ("SCMP_CMP_GE", big, 0, vec![big, big + 1], vec![5]),
            ("SCMP_CMP_LT", big, 0, vec![5, 0xffff_ffff, big - 1], vec![big, big + 1, big << 1]),
            ("SCMP_CMP_LE", big, 0, vec![big, 5], vec![big + 1, big << 1]),
            ("SCMP_CMP_MASKED_EQ", 0x7e02_0000, 0, vec![0x11, 0x1_0000_0000], vec![0x1000_0000]),
        ] {
            let text = format!(
                r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{{"names": ["socket"], "action": "SCMP_ACT_ERRNO",
                    "args": [{{"index": 1, "value": {value}, "valueTwo": {two}, "op": "{op}"}}, {{"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}}]}}]}}"#
            );
            let program = profile(&text).program(0).unwrap();
            for (list, expected) in [(yes, errno(libc::EPERM)), (no, libc::SECCOMP_RET_ALLOW)] {
                for argument in list {
                    assert_eq!(
                        verdict64(&program, libc::SYS_socket, [7, argument, 0, 0, 0, 0]),
                        expected,
                        "{op} {value:#x}: {argument:#x}"
                    );
                    assert_eq!(verdict64(&program, libc::SYS_socket, [8, argument, 0, 0, 0, 0]), libc::SECCOMP_RET_ALLOW, "{op}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused_as_a_whole() {
        for (text, word) in [
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "x"}]}"#, "\"x\""),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG", "args": [{"index": 9, "op": "SCMP_CMP_EQ"}]}]}"#,
                "9",
            ),
            ("{", "EOF"),
        ] {
            assert!(Profile::parse(text).unwrap_err().contains(word), "{text}");
        }
    }
}
