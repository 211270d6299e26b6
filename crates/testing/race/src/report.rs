//! Where figures go: `target/race/<case>.json`, and the case's section of `docs/benchmarks.md`.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::Options;
use crate::case::Case;
use crate::floor::Floors;
use crate::machine::{self, Use};

/// What a case found.
pub struct Outcome {
    /// How it was measured and what the peer is, in a few sentences.
    pub method: String,
    pub head: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
    /// Everything measured, round by round.
    pub figures: serde_json::Value,
}

#[derive(Serialize)]
struct Record<'a> {
    case: &'a str,
    date: String,
    machine: String,
    rounds: usize,
    floors: &'a Floors,
    load: &'a Use,
    figures: &'a serde_json::Value,
}

/// More than this and absolute figures are of no use to anybody.
const FOREIGN_PERCENT_MAX: f64 = 5.0;
/// Below this a spread says little.
const ROUNDS_MIN: usize = 5;

/// The checkout.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.."))
}

pub fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../target/race"))
}

pub fn publish(options: &Options, case: &Case, floors: &Floors, load: &Use, outcome: &Outcome) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder())?;
    let machine = machine::describe(options.dir.as_deref().unwrap_or(folder()));
    let (date, rounds) = (machine::today(), options.rounds);
    let record = Record { case: case.name, date, machine, rounds, floors, load, figures: &outcome.figures };
    std::fs::remove_file(folder().join(case.name).with_extension("part.json")).ok();
    let path = folder().join(case.name).with_extension("json");
    std::fs::write(&path, serde_json::to_vec_pretty(&record)?).with_context(|| path.display().to_string())?;
    let section = section(case, &record, outcome);
    println!("{section}");
    if rounds < ROUNDS_MIN {
        println!("fewer than {ROUNDS_MIN} rounds: docs/benchmarks.md is left alone");
        return Ok(());
    }
    let document = root().join("docs/benchmarks.md");
    let text = std::fs::read_to_string(&document).with_context(|| document.display().to_string())?;
    std::fs::write(&document, replace(&text, case.name, &section)).with_context(|| document.display().to_string())
}

/// What a case has found so far, for whoever stops it: `target/race/<case>.part.json`.
pub fn keep(case: &str, outcome: &Outcome) -> anyhow::Result<()> {
    let path = folder().join(case).with_extension("part.json");
    std::fs::create_dir_all(folder())?;
    std::fs::write(&path, serde_json::to_vec_pretty(&outcome.figures)?).with_context(|| path.display().to_string())
}

fn section(case: &Case, record: &Record<'_>, outcome: &Outcome) -> String {
    let mut lines = vec![format!("## {}", case.title), String::new()];
    lines.push(format!("`cargo xtask race {}`, {}, {} rounds, on {}.", case.name, record.date, record.rounds, record.machine));
    let Floors { fdatasync_us, exec_us, loopback_us } = record.floors;
    lines.push(format!(
        "Floors in the same run (p50): fdatasync {fdatasync_us:.0} µs, fork + exec {exec_us:.0} µs, loopback round trip {loopback_us:.1} µs. \
         Other programs used {:.0} % of the processors meanwhile.{}",
        record.load.foreign_percent,
        if record.load.foreign_percent > FOREIGN_PERCENT_MAX { " **Not a quiet machine: absolute figures are pessimistic.**" } else { "" }
    ));
    lines.extend([outcome.method.clone(), String::new(), row(&outcome.head)]);
    lines.push(row(&vec!["---"; outcome.head.len()]));
    lines.extend(outcome.rows.iter().map(|cells| row(cells)));
    lines.join("\n") + "\n"
}

fn row<S: AsRef<str>>(cells: &[S]) -> String {
    let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
    format!("| {} |", cells.join(" | "))
}

/// `text` with the section between the case's marks replaced, or appended.
fn replace(text: &str, case: &str, section: &str) -> String {
    let (start, end) = (format!("<!-- race {case} -->\n"), format!("<!-- end of {case} -->\n"));
    let marked = format!("{start}{section}{end}");
    match (text.find(&start), text.find(&end)) {
        (Some(from), Some(to)) if from < to => {
            let (before, after) = (text.get(..from).unwrap_or_default(), text.get(to + end.len()..).unwrap_or_default());
            format!("{before}{marked}{after}")
        }
        _ => format!("{}\n\n{marked}", text.trim_end()),
    }
}

/// `12,345`, or with decimals where the number is small.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    if value.abs() < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1,234 (1,100–1,300)`
pub fn spread(spread: &crate::measure::Spread) -> String {
    format!("{} ({}–{})", number(spread.median), number(spread.min), number(spread.max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_where_it_stands() {
        let once = replace("# Figures\n", "store", "old\n");
        let twice = replace(&replace(&once, "boot", "b\n"), "store", "new\n");
        assert_eq!(twice, "# Figures\n\n<!-- race store -->\nnew\n<!-- end of store -->\n\n<!-- race boot -->\nb\n<!-- end of boot -->\n");
    }

    #[test]
    fn numbers_are_read_at_a_glance() {
        let cases = [(1_234_567.0, "1,234,567"), (999.6, "1,000"), (100.0, "100"), (2.5, "2.50"), (f64::NAN, "–")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }
}
