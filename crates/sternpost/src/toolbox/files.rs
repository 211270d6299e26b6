//! The small applets without a network.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

pub(super) fn sleep(args: &[String]) -> Result<i32, String> {
    let wait = args.first().ok_or("how many seconds?")?;
    if wait == "infinity" {
        loop {
            std::thread::sleep(Duration::from_secs(86_400));
        }
    }
    let seconds: f64 = wait.trim_end_matches('s').parse().map_err(|_| format!("invalid time interval {wait:?}"))?;
    let wait = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    std::thread::sleep(wait);
    Ok(0)
}

/// Spins for the given seconds (for ever without) while holding the given memory, touched page by page.
pub(super) fn burn(args: &[String]) -> Result<i32, String> {
    let number = |at: usize| args.get(at).map(|text| text.parse::<u64>().map_err(|_| format!("invalid number {text:?}"))).transpose();
    let seconds = number(0)?;
    let held = number(1)?.map(|mebibytes| vec![1u8; (mebibytes as usize) << 20]);
    let start = Instant::now();
    let mut rounds = 0u64;
    while seconds.is_none_or(|seconds| start.elapsed().as_secs() < seconds) {
        for number in 0..1_000_000u64 {
            rounds = std::hint::black_box(rounds.wrapping_mul(31).wrapping_add(number));
        }
    }
    std::hint::black_box(held);
    Ok(0)
}

pub(super) fn cat(args: &[String]) -> Result<i32, String> {
    let mut output = std::io::stdout();
    let mut copy = |from: &mut dyn Read, name: &str| std::io::copy(from, &mut output).map_err(|error| format!("{name}: {error}"));
    if args.is_empty() {
        copy(&mut std::io::stdin(), "standard input")?;
    }
    for name in args {
        let mut file = std::fs::File::open(name).map_err(|error| format!("{name}: {error}"))?;
        copy(&mut file, name)?;
    }
    output.flush().map_err(|error| error.to_string())?;
    Ok(0)
}

pub(super) fn ls(args: &[String]) -> Result<i32, String> {
    let here = [".".to_owned()];
    let paths: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    for path in if paths.is_empty() { here.iter().collect() } else { paths } {
        let metadata = std::fs::symlink_metadata(path).map_err(|error| format!("{path}: {error}"))?;
        if !metadata.is_dir() {
            println!("{path}");
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|error| format!("{path}: {error}"))?;
        let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names.iter().for_each(|name| println!("{name}"));
    }
    Ok(0)
}

pub(super) fn id(_: &[String]) -> Result<i32, String> {
    let groups: Vec<String> = nix::unistd::getgroups().unwrap_or_default().iter().map(ToString::to_string).collect();
    println!("uid={} gid={} groups={}", nix::unistd::getuid(), nix::unistd::getgid(), groups.join(","));
    Ok(0)
}

pub(super) fn env(_: &[String]) -> Result<i32, String> {
    std::env::vars_os().for_each(|(name, value)| println!("{}={}", name.to_string_lossy(), value.to_string_lossy()));
    Ok(0)
}

pub(super) fn echo(args: &[String]) -> Result<i32, String> {
    println!("{}", args.join(" "));
    Ok(0)
}

pub(super) fn exit(args: &[String]) -> Result<i32, String> {
    args.first().map_or(Ok(0), |code| code.parse().map_err(|_| format!("invalid exit code {code:?}")))
}

pub(super) fn hostname(_: &[String]) -> Result<i32, String> {
    println!("{}", host_name());
    Ok(0)
}

/// The kernel's host name.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
