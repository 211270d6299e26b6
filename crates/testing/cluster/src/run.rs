//! Running commands and waiting for what they bring about.

use std::fmt;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a command may take before it counts as hanging.
const COMMAND_SECONDS_MAX: u64 = 120;
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// A command that has ended.
#[derive(Clone, Debug)]
pub struct Ran {
    pub command: String,
    /// `None` after a signal, or when the command was ended for taking too long.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The standard output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == Some(0), "{self}");
        self.stdout
    }

    /// Everything that a command wrote which must have failed.
    #[track_caller]
    pub fn fails(self) -> String {
        assert!(self.code != Some(0), "must fail, but succeeded: {self}");
        self.stderr + &self.stdout
    }

    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.map_or("no exit code".into(), |code| format!("exit code {code}"));
        write!(to, "$ {}\n{code}\n{}{}", self.command, self.stdout, self.stderr)
    }
}

/// Runs a command to its end with the given standard input.
#[track_caller]
pub fn run(command: &mut Command, input: &str) -> Ran {
    let mut running = Running::start(command);
    let mut stdin = running.child.stdin.take().expect("standard input is a pipe");
    let input = input.to_owned();
    // A command that does not read all of its input closes the pipe early: that is its right.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let ended = running.end_within(Duration::from_secs(COMMAND_SECONDS_MAX));
    let _ = writer.join();
    ended
}

/// A command that goes on while the test looks at what it writes. Ended when dropped.
pub struct Running {
    pub child: Child,
    command: String,
    output: [Collected; 2],
}

struct Collected {
    text: String,
    from: mpsc::Receiver<Vec<u8>>,
}

impl Collected {
    fn of(mut from: impl Read + Send + 'static) -> Self {
        let (to, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if to.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { text: String::new(), from: receiver }
    }

    /// Adds what has arrived.
    fn catch_up(&mut self) {
        while let Ok(bytes) = self.from.try_recv() {
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Adds what arrives until the writer is gone; a grandchild that keeps the pipe open is not waited for, a reader that the machine has no time
    /// for is.
    fn finish(&mut self) {
        while let Ok(bytes) = self.from.recv_timeout(Duration::from_secs(5)) {
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
}

impl Running {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let text = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{text}: {error}; the tests need this program"));
        let stdout = Collected::of(child.stdout.take().expect("a pipe"));
        let stderr = Collected::of(child.stderr.take().expect("a pipe"));
        Self { child, command: text, output: [stdout, stderr] }
    }

    /// Writes to its standard input.
    #[track_caller]
    pub fn write(&mut self, text: &str) {
        self.child.stdin.as_mut().expect("not closed yet").write_all(text.as_bytes()).expect("the command reads");
    }

    /// Standard output and error so far.
    pub fn output(&mut self) -> String {
        self.output.iter_mut().for_each(Collected::catch_up);
        self.output.iter().map(|collected| collected.text.as_str()).collect()
    }

    /// Waits until the output contains the text; returns the output.
    #[track_caller]
    pub fn wait_for_output(&mut self, text: &str, seconds_max: u64) -> String {
        let deadline = Instant::now() + Duration::from_secs(seconds_max);
        loop {
            let output = self.output();
            if output.contains(text) {
                return output;
            }
            assert!(Instant::now() < deadline, "$ {}\ndid not write {text:?} within {seconds_max} s, but:\n{output}", self.command);
            std::thread::sleep(POLL);
        }
    }

    /// Waits for its end; a command that takes longer is killed and has no exit code.
    pub fn end_within(&mut self, limit: Duration) -> Ran {
        let deadline = Instant::now() + limit;
        let code = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status.code(),
                _ if Instant::now() > deadline => {
                    self.output[1].text.push_str(&format!("(ended by the test after {} s)\n", limit.as_secs()));
                    break None;
                }
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.output.iter_mut().for_each(Collected::finish);
        let [stdout, stderr] = &self.output;
        Ran { command: self.command.clone(), code, stdout: stdout.text.clone(), stderr: stderr.text.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks until the condition holds and returns what it found; panics with its last complaint.
#[track_caller]
pub fn wait_for<T>(what: &str, seconds_max: u64, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds_max);
    loop {
        match condition() {
            Ok(found) => return found,
            Err(complaint) => assert!(Instant::now() < deadline, "{what}: not within {seconds_max} s; at last: {complaint}"),
        }
        std::thread::sleep(POLL);
    }
}

/// `Ok` if the condition holds, else the text as complaint.
pub fn ensure(condition: bool, complaint: impl fmt::Display) -> Result<(), String> {
    if condition { Ok(()) } else { Err(complaint.to_string()) }
}
