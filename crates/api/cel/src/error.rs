//! Failures: of compilation in cel-go's display form, of evaluation in cel-go's sentences.

use std::fmt;

/// One thing that is wrong with an expression; `at` in characters from its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    pub at: usize,
    pub message: String,
}

/// Why an expression does not compile. Prints as cel-go does, one block per issue:
///
/// ```text
/// ERROR: <input>:1:6: undefined field 'foo'
///  | self.foo
///  | .....^
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    pub source: String,
    pub issues: Vec<Issue>,
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, issue) in self.issues.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            let (line, column, text) = locate(&self.source, issue.at);
            write!(f, "ERROR: <input>:{line}:{}: {}\n | {}\n | ", column + 1, issue.message, text.replace('\t', " "))?;
            for c in text.chars().take(column) {
                f.write_str(if c.len_utf8() > 1 { "\u{ff0e}" } else { "." })?;
            }
            let wide = text.chars().nth(column).is_some_and(|c| c.len_utf8() > 1);
            f.write_str(if wide { "\u{ff3e}" } else { "^" })?;
        }
        Ok(())
    }
}

impl std::error::Error for CompileError {}

/// Line from 1, column from 0, the line's text.
fn locate(source: &str, at: usize) -> (usize, usize, &str) {
    let mut start = 0;
    let lines: Vec<&str> = source.split('\n').collect();
    for (number, line) in lines.iter().enumerate() {
        let length = line.chars().count();
        if at <= start + length {
            return (number + 1, at - start, line);
        }
        start += length + 1;
    }
    (lines.len().max(1), 0, lines.last().copied().unwrap_or_default())
}

/// Why an evaluation has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The expression failed: `no such key: x`, `division by zero`.
    #[error("{0}")]
    Failed(String),
    /// This evaluation cost more than one may.
    #[error("operation cancelled: actual cost limit exceeded")]
    CostExceeded,
    /// The request's budget over all expressions is spent.
    #[error("operation cancelled: actual cost limit exceeded")]
    BudgetExceeded,
    #[error("operation interrupted")]
    Interrupted,
}

impl EvalError {
    pub fn failed(message: impl Into<String>) -> Self {
        EvalError::Failed(message.into())
    }
    /// It is about cost or time, not about values: nothing may absorb it.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, EvalError::Failed(_))
    }
}

pub fn no_such_overload() -> EvalError {
    EvalError::failed("no such overload")
}
