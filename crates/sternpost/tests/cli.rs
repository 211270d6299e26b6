//! The binary as a user without a cluster meets it. (Being here also makes `cargo test` build the binary that `testing/cluster` runs.)

use std::process::{Command, Output};

fn sternpost(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sternpost"));
    command.args(args).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn status_where_nothing_runs_says_so_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (dir.path().join("data"), dir.path().join("run"));
    let output = sternpost(&["--data-dir", data.to_str().unwrap(), "--run-dir", run.to_str().unwrap(), "status"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output.stdout).contains("not running") && !data.exists() && !run.exists(), "{output:?}");
}

#[test]
fn a_configuration_file_that_is_missing_or_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let path = file.to_str().unwrap();
    let missing = sternpost(&["--config", path, "status"]);
    assert!(!missing.status.success() && text(&missing.stderr).contains(path), "{missing:?}");
    std::fs::write(&file, "apiPort: many\n").unwrap();
    let wrong = sternpost(&["--config", path, "status"]);
    assert!(!wrong.status.success() && text(&wrong.stderr).contains(path), "{wrong:?}");
}

#[test]
fn the_binary_is_the_toolbox_by_name_and_by_command() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("echo");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sternpost"), &link).unwrap();
    let linked = Command::new(&link).args(["a", "b"]).output().unwrap();
    assert_eq!(text(&linked.stdout), "a b\n");
    assert_eq!(text(&sternpost(&["toolbox", "echo", "a", "b"]).stdout), "a b\n");
    assert_eq!(sternpost(&["toolbox", "exit", "7"]).status.code(), Some(7));
    assert_eq!(sternpost(&["toolbox", "nonsense"]).status.code(), Some(127));
}

#[test]
fn a_mistyped_command_is_an_error_with_a_hint() {
    let output = sternpost(&["stauts"]);
    assert!(!output.status.success() && text(&output.stderr).contains("status"), "{output:?}");
}
