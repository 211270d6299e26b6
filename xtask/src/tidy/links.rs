//! Links in Markdown documents: files exist, and so do headings.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::{Fault, Source};

pub fn resolve(sources: &[Source]) -> Vec<Fault> {
    let documents = || sources.iter().filter(|source| source.path.ends_with(".md"));
    let mut faults = Vec::new();
    for document in documents() {
        for (line, target) in links(&document.text) {
            let place = format!("{}:{line}", document.path);
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { PathBuf::from(&document.path) } else { beside(&document.path, file) };
            if !crate::root().join(&path).exists() {
                faults.push(Fault::new(place, format!("link to {target:?}: no such file")));
            } else if let Some(other) = documents().find(|source| Path::new(&source.path) == path)
                && !heading.is_empty()
                && !headings(&other.text).contains(heading)
            {
                faults.push(Fault::new(place, format!("link to {target:?}: no such heading")));
            }
        }
    }
    faults
}

/// Line number and target of every inline link that stays in the repository; code is skipped.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // Every second piece between backticks is code.
        for prose in line.split('`').step_by(2) {
            let targets = prose.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
            found.extend(
                targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")).map(|target| (index + 1, target)),
            );
        }
    }
    found
}

fn beside(document: &str, file: &str) -> PathBuf {
    let mut path = Path::new(document).parent().unwrap_or(Path::new("")).to_path_buf();
    for part in Path::new(file).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

/// Headings as the anchors that forges make of them.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim().to_lowercase());
    let anchor = |title: String| {
        title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    titles.map(anchor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_in_prose_and_not_in_code() {
        let text = "See [a](b.md) and `[x](no.md)`, [web](https://e.org).\n```\n[c](no.md)\n```\n[d](../e.md#the-end)\n";
        assert_eq!(links(text), [(1, "b.md"), (5, "../e.md#the-end")]);
        assert_eq!(beside("docs/guide/a.md", "../e.md"), Path::new("docs/e.md"));
        assert!(headings("## The `end`, or not\n").contains("the-end-or-not"));
    }
}
