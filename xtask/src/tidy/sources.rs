//! Rules over the text of source files.

use super::{Fault, Source};

const LINES_MAX: usize = 900;

/// Every crate's root says what the crate is for before anything else.
pub fn stories(sources: &[Source]) -> Vec<Fault> {
    let is_root = |path: &str| path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs");
    let roots = sources.iter().filter(|source| is_root(&source.path));
    let story = |source: &Source| source.text.lines().take_while(|line| line.starts_with("//!")).map(str::len).sum::<usize>();
    roots.filter(|source| story(source) < 40).map(|source| Fault::new(&source.path, "opens without its story (`//!`)")).collect()
}

pub fn placeholders(sources: &[Source]) -> Vec<Fault> {
    // Written apart, so that this file passes its own rule.
    let words = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("FIX", "ME"), concat!("X", "XX:")];
    each_line(sources, |line| words.iter().find(|word| line.contains(**word)).map(|word| format!("{word} stands for work that is missing")))
}

/// `unsafe` blocks and implementations carry their argument: on the line, or in the comment above the statement.
pub fn unsafe_blocks(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust() && !source.is_generated()) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            if opens_unsafe(line) && !is_argued(&lines, index) {
                faults.push(Fault::new(format!("{}:{}", source.path, index + 1), "unsafe without a `// SAFETY:` comment"));
            }
        }
    }
    faults
}

fn opens_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let marks = [concat!("unsafe", " {"), concat!("unsafe", " impl ")];
    marks.iter().any(|mark| code.split('"').step_by(2).any(|part| part.contains(mark)))
}

/// A long statement may put a few lines between its comment and the block.
fn is_argued(lines: &[&str], index: usize) -> bool {
    const STATEMENT_LINES_MAX: usize = 10;
    let says = |line: &&str| line.contains("SAFETY:");
    let above = lines.get(..index).unwrap_or_default().iter().rev().take(STATEMENT_LINES_MAX).take_while(|line| !line.trim().is_empty());
    lines.get(index).is_some_and(says) || above.into_iter().any(says)
}

pub fn lengths(sources: &[Source]) -> Vec<Fault> {
    let written = sources.iter().filter(|source| source.is_rust() && !source.is_generated());
    let long = written.map(|source| (source, source.text.lines().count())).filter(|(_, lines)| *lines > LINES_MAX);
    long.map(|(source, lines)| Fault::new(&source.path, format!("has {lines} lines; {LINES_MAX} at most"))).collect()
}

/// Paths that exist on one machine only. (`/root` alone is every container's home.)
pub fn machine_paths(sources: &[Source]) -> Vec<Fault> {
    let paths = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/root", "/."), concat!("/Us", "ers/")];
    each_line(sources, |line| paths.iter().find(|path| line.contains(**path)).map(|path| format!("{path}… is a path of one machine")))
}

/// Advice: a `plan` module imports words and std only, so that it stays pure.
pub fn plan_imports(sources: &[Source]) -> Vec<Fault> {
    const ACTS: [&str; 9] =
        ["tokio", "reconcile::", "client::", "std::fs", "std::process", "std::net::Tcp", "std::thread", "Instant", "SystemTime"];
    let is_plan = |path: &str| path.ends_with("/plan.rs") || path.contains("/plan/");
    let plans: Vec<&Source> = sources.iter().filter(|source| is_plan(&source.path)).collect();
    let imports = |source: &Source| {
        let uses = source.text.lines().filter(|line| line.starts_with("use ")).map(str::to_owned).collect::<Vec<_>>();
        uses.into_iter()
            .filter(|line| ACTS.iter().any(|act| line.contains(act)))
            .map(|line| format!("a plan imports what acts: {line}"))
            .map(|what| Fault::new(&source.path, what))
            .collect::<Vec<_>>()
    };
    plans.into_iter().flat_map(imports).collect()
}

fn each_line(sources: &[Source], check: impl Fn(&str) -> Option<String>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        for (index, line) in source.text.lines().enumerate() {
            faults.extend(check(line).map(|what| Fault::new(format!("{}:{}", source.path, index + 1), what)));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Vec<Source> {
        vec![Source { path: path.into(), text: text.into() }]
    }

    #[test]
    fn unsafe_is_accepted_only_with_its_argument() {
        let cases = [
            ("// SAFETY: it is.\nlet a = unsafe { f() };", 0),
            ("// SAFETY: it is.\nlet a = g(\n    unsafe { f() },\n);", 0),
            ("let a = unsafe { f() }; // SAFETY: it is.", 0),
            ("let a = unsafe { f() };", 1),
            ("// SAFETY: of another.\n\nlet a = unsafe { f() };", 1),
            ("let text = \"unsafe { }\";", 0),
            ("unsafe impl Send for A {}", 1),
        ];
        for (text, faults) in cases {
            assert_eq!(unsafe_blocks(&source("a.rs", text)).len(), faults, "{text}");
        }
    }

    #[test]
    fn a_crate_without_a_story_is_a_fault() {
        assert_eq!(stories(&source("crates/a/src/lib.rs", "pub mod b;\n")).len(), 1);
        assert_eq!(stories(&source("crates/a/src/lib.rs", "//! What it is for, how one gets in, what flows where.\n")), []);
    }

    #[test]
    fn generated_files_may_be_long() {
        let long = "x\n".repeat(LINES_MAX + 1);
        assert_eq!(lengths(&source("a.rs", &long)).len(), 1);
        assert_eq!(lengths(&source("a.rs", &format!("// Generated by `x`; do not edit.\n{long}"))), []);
    }
}
