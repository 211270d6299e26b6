//! The text of a scenario.

use std::collections::BTreeMap;
use std::fmt;

/// Words before the first step set the cluster up, such as `grace=1`.
pub struct Script {
    comment: String,
    pub settings: BTreeMap<String, String>,
    pub steps: Vec<Step>,
}

pub struct Step {
    /// Its first line.
    pub command: String,
    pub input: String,
    pub expected: Vec<String>,
}

impl Script {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().peekable();
        let mut comment = String::new();
        while let Some(line) = lines.next_if(|line| line.starts_with('#')) {
            comment.push_str(line);
            comment.push('\n');
        }
        let mut settings = BTreeMap::new();
        if let Some(line) = lines.next_if(|line| line.starts_with("with ")) {
            settings.extend(
                line.split_whitespace().skip(1).filter_map(|word| word.split_once('=')).map(|(key, value)| (key.into(), value.into())),
            );
        }
        let mut steps = Vec::new();
        while let Some(command) = lines.by_ref().find(|line| !line.trim().is_empty()) {
            let mut input = String::new();
            for line in lines.by_ref().take_while(|line| *line != "----") {
                input.push_str(line);
                input.push('\n');
            }
            let expected = lines.by_ref().take_while(|line| !line.is_empty()).map(str::to_owned).collect();
            steps.push(Step { command: command.to_owned(), input, expected });
        }
        if steps.is_empty() { Err("no steps".into()) } else { Ok(Self { comment, settings, steps }) }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.comment)?;
        if !self.settings.is_empty() {
            let words: Vec<String> = self.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
            writeln!(f, "with {}", words.join(" "))?;
        }
        for step in &self.steps {
            writeln!(f, "\n{}\n{}----", step.command, step.input)?;
            step.expected.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        }
        Ok(())
    }
}
