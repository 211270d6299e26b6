//! Device rules on the unified hierarchy: a small BPF program per group, because v2 has no `devices` controller.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::DeviceRule;

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Replaces nothing and lets groups below add their own, all of which must agree.
const ALLOW_MULTI: u32 = 2;

/// One BPF instruction: opcode, registers (source in the high nibble), jump offset, immediate value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

// Opcodes by their kernel names: class | mode or operation | source.
const LDX_W: u8 = 0x61;
const MOV_REG: u8 = 0xbc;
const MOV_IMM: u8 = 0xb7;
const AND_IMM: u8 = 0x54;
const RSH_IMM: u8 = 0x74;
const JNE_IMM: u8 = 0x55;
const EXIT: u8 = 0x95;

/// The program for a list of allowed devices. The context is `bpf_cgroup_dev_ctx`: access in the high and type in the low half of the first word, then
/// major, then minor.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut code = vec![
        op(LDX_W, 2, 1, 0, 0),
        op(AND_IMM, 2, 0, 0, 0xffff),
        op(LDX_W, 3, 1, 0, 0),
        op(RSH_IMM, 3, 0, 0, 16),
        op(LDX_W, 4, 1, 4, 0),
        op(LDX_W, 5, 1, 8, 0),
    ];
    // The kernel refuses a program with instructions that nothing leads to, so whoever may use everything ends it.
    let everything = rules.iter().position(|rule| rule_code(rule).iter().all(|instruction| instruction.code != JNE_IMM));
    rules[..everything.map_or(rules.len(), |at| at + 1)].iter().for_each(|rule| code.extend(rule_code(rule)));
    if everything.is_none() {
        code.extend([op(MOV_IMM, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    }
    code
}

/// Falls through to the next rule unless everything matches.
fn rule_code(rule: &DeviceRule) -> Vec<Instruction> {
    let mut code = Vec::new();
    match rule.kind {
        'b' => code.push(op(JNE_IMM, 2, 0, 0, 1)),
        'c' => code.push(op(JNE_IMM, 2, 0, 0, 2)),
        _ => {}
    }
    let access =
        [('m', 1), ('r', 2), ('w', 4)].into_iter().filter(|(letter, _)| rule.access.contains(*letter)).map(|(_, bit)| bit).sum::<i32>();
    if access != 7 {
        code.extend([op(MOV_REG, 1, 3, 0, 0), op(AND_IMM, 1, 0, 0, 7 & !access), op(JNE_IMM, 1, 0, 0, 0)]);
    }
    for (register, number) in [(4, rule.major), (5, rule.minor)] {
        if let Some(number) = number {
            code.push(op(JNE_IMM, register, 0, 0, number as i32));
        }
    }
    code.extend([op(MOV_IMM, 0, 0, 0, 1), op(EXIT, 0, 0, 0, 0)]);
    let end = code.len();
    for (at, instruction) in code.iter_mut().enumerate().filter(|(_, i)| i.code == JNE_IMM) {
        instruction.offset = (end - at - 1) as i16;
    }
    code
}

/// bpf(2)'s argument for loading; fields after these are zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    rest: [u64; 12],
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Allows only these devices to processes in the group behind `directory`, which must not be an O_PATH descriptor.
pub(crate) fn restrict(directory: BorrowedFd<'_>, rules: &[DeviceRule]) -> io::Result<()> {
    let program = load(rules)?;
    let attach = Attach {
        target: directory.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: as in `load`.
    let attached = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    if attached < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Hands the program to the kernel, which checks it.
fn load(rules: &[DeviceRule]) -> io::Result<OwnedFd> {
    let code = program(rules);
    let load = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        rest: [0; 12],
    };
    // SAFETY: the argument and what it points to live through the call; the size is its own.
    let program = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    if program < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(program as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_does_not_match_jumps_behind_itself() {
        let rule = DeviceRule { kind: 'c', major: Some(1), minor: Some(3), access: "rw".into() };
        let code = rule_code(&rule);
        assert_eq!(code.len(), 8);
        for (at, instruction) in code.iter().enumerate().filter(|(_, i)| i.code == JNE_IMM) {
            assert_eq!(at + 1 + instruction.offset as usize, code.len(), "{instruction:?}");
        }
        let all = DeviceRule { kind: 'a', major: None, minor: None, access: "rwm".into() };
        assert_eq!(rule_code(&all), [op(MOV_IMM, 0, 0, 0, 1), op(EXIT, 0, 0, 0, 0)]);
    }

    /// Needs root. Whatever the rules are, the kernel's own verifier takes the program.
    #[test]
    fn the_kernel_takes_the_program_of_every_list_of_rules() {
        let rule = |kind, major, minor, access: &str| DeviceRule { kind, major, minor, access: access.into() };
        let all = || rule('a', None, None, "rwm");
        let null = || rule('c', Some(1), Some(3), "rwm");
        let lists = [
            vec![],
            vec![all()],
            vec![all(), null()],
            vec![null(), all(), rule('b', None, None, "m")],
            vec![rule('c', None, None, "m"), rule('b', None, None, "m"), null(), rule('c', Some(136), None, "rwm")],
            vec![rule('a', None, None, "r"), rule('b', Some(8), Some(0), "r")],
        ];
        for rules in lists {
            load(&rules).unwrap_or_else(|error| panic!("{rules:?}: {error}"));
        }
    }
}
