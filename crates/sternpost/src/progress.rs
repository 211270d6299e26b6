//! What the user sees while the cluster starts.

use std::io::Write;
use std::time::{Duration, Instant};

/// The line by which a detached start says that all is well.
pub const READY: &str = "\u{4}ready";

/// Prints one line per step with the time since the start.
pub struct Progress {
    output: Box<dyn Write + Send>,
    start: Instant,
    detached: bool,
}

impl Progress {
    /// On standard output, or on the descriptor of the process that waits for a detached start.
    pub fn new(start: Instant, report: Option<std::fs::File>) -> Self {
        let detached = report.is_some();
        let output: Box<dyn Write + Send> = match report {
            Some(file) => Box::new(file),
            None => Box::new(std::io::stdout()),
        };
        Self { output, start, detached }
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub fn step(&mut self, what: &str, detail: &str) {
        let seconds = self.elapsed().as_secs_f64();
        self.line(&format!("  \u{2713} {what:<12} {detail:<46} {seconds:>6.3} s"));
    }

    pub fn line(&mut self, text: &str) {
        let _ = writeln!(self.output, "{text}").and_then(|()| self.output.flush());
    }

    /// Nothing runs: the process that waits is told why.
    pub fn failed(&mut self, error: &anyhow::Error) {
        if self.detached {
            self.line(&format!("sternpost: {error:#}"));
        }
    }

    /// Everything runs: the process that waits may go.
    pub fn done(&mut self) {
        if self.detached {
            self.line(READY);
            self.output = Box::new(std::io::sink());
        }
    }
}
