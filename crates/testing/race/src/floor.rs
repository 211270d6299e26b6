//! What the machine itself takes: no program is faster than this here.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::Serialize;

use crate::measure::{quantile, sorted};

/// Median times in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Floors {
    /// 4 KiB written in place, then fdatasync.
    pub fdatasync_us: f64,
    /// A process that starts a static program and waits for its end.
    pub exec_us: f64,
    /// 64 bytes to and fro over a TCP connection on loopback.
    pub loopback_us: f64,
}

pub fn measure(dir: &Path) -> anyhow::Result<Floors> {
    Ok(Floors { fdatasync_us: fdatasync(dir)?, exec_us: exec(dir)?, loopback_us: loopback()? })
}

fn fdatasync(dir: &Path) -> anyhow::Result<f64> {
    let path = dir.join("floor");
    let file = File::create(&path)?;
    file.write_all_at(&vec![0; 4 << 20], 0)?;
    file.sync_all()?;
    let block = [1; 4096];
    let p50 = median(1_000, |turn| {
        file.write_all_at(&block, (turn as u64 % 1_024) * 4_096)?;
        file.sync_data()
    });
    std::fs::remove_file(path)?;
    p50
}

/// A program of 30 instructions at most: an ELF file of one page that only exits.
fn exec(dir: &Path) -> anyhow::Result<f64> {
    let path = dir.join("true");
    std::fs::write(&path, exit_program())?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let p50 = median(300, |_| Command::new(&path).stdin(Stdio::null()).status().map(drop));
    std::fs::remove_file(path)?;
    p50
}

/// The smallest static executable: one loaded page whose code is `exit(0)`.
fn exit_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    #[cfg(target_arch = "x86_64")]
    // xor edi, edi; mov eax, 60; syscall
    let (machine, code): (u16, &[u8]) = (62, &[0x31, 0xff, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05]);
    #[cfg(target_arch = "aarch64")]
    // mov x0, #0; mov x8, #93; svc #0
    let (machine, code): (u16, &[u8]) = (183, &[0x00, 0x00, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4]);
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let size = HEADERS + code.len() as u64;
    // type EXEC, machine, version, entry, program headers at 64, no sections, flags, sizes and counts.
    elf.extend([2u16, machine].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(1u32.to_le_bytes());
    elf.extend([BASE + HEADERS, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    // One segment: LOAD, readable and executable, the whole file.
    elf.extend([1u32, 5].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend([0, BASE, BASE, size, size, 0x1000].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(code);
    elf
}

fn loopback() -> anyhow::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut message = [0; 64];
        while stream.read_exact(&mut message).is_ok() {
            stream.write_all(&message)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut message = [0; 64];
    let p50 = median(5_000, |_| stream.write_all(&message).and_then(|()| stream.read_exact(&mut message)));
    drop(stream);
    echo.join().map_err(|_| anyhow::anyhow!("the echo thread panicked"))??;
    p50
}

/// Median time of `turns` turns, in microseconds.
fn median(turns: usize, mut turn: impl FnMut(usize) -> std::io::Result<()>) -> anyhow::Result<f64> {
    let mut times = Vec::with_capacity(turns);
    for number in 0..turns {
        let start = Instant::now();
        turn(number)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(quantile(&sorted(&times), 0.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_program_runs_and_the_floors_are_positive() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("true"), exit_program()).unwrap();
        let floors = measure(dir.path()).unwrap();
        assert!(floors.fdatasync_us > 0.0 && floors.exec_us > 0.0 && floors.loopback_us > 0.0);
    }
}
