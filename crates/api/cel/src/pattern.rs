//! Go's regular expressions (RE2) in the syntax of the `regex` crate: what differs is rewritten.
//!
//! Both match in linear time. Differences: `\d`, `\s`, `\w` and `\b` know ASCII only in Go; inside a class Go has no set operations and
//! takes `[` as itself.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use regex::Regex;

/// Patterns kept compiled; beyond this many all are forgotten.
const KEPT_MAX: usize = 1_024;

/// Compiles a Go pattern; the error is a sentence.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let translated = translate(pattern);
    regex::RegexBuilder::new(&translated).size_limit(4 << 20).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "expression too large".to_owned(),
        _ => format!("error parsing regexp: `{pattern}`"),
    })
}

/// [`compile`], remembered.
pub fn cached(pattern: &str) -> Result<Arc<Regex>, String> {
    static KEPT: LazyLock<Mutex<HashMap<String, Arc<Regex>>>> = LazyLock::new(Mutex::default);
    let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = kept().get(pattern) {
        return Ok(found.clone());
    }
    let made = Arc::new(compile(pattern)?);
    let mut kept = kept();
    if kept.len() >= KEPT_MAX {
        kept.clear();
    }
    kept.insert(pattern.to_owned(), made.clone());
    Ok(made)
}

fn translate(pattern: &str) -> String {
    let chars: Vec<char> = pattern.chars().collect();
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut at = 0;
    let mut class = false;
    let mut class_start = 0;
    while let Some(&c) = chars.get(at) {
        let next = chars.get(at + 1).copied();
        match c {
            '\\' => {
                at += 1;
                match (next, class) {
                    (Some('d'), _) => out.push_str("[0-9]"),
                    (Some('D'), _) => out.push_str("[^0-9]"),
                    (Some('w'), _) => out.push_str("[0-9A-Za-z_]"),
                    (Some('W'), _) => out.push_str("[^0-9A-Za-z_]"),
                    (Some('s'), _) => out.push_str("[\\t\\n\\x0C\\r ]"),
                    (Some('S'), _) => out.push_str("[^\\t\\n\\x0C\\r ]"),
                    (Some('b'), false) => out.push_str("(?-u:\\b)"),
                    (Some('B'), false) => out.push_str("(?-u:\\B)"),
                    (Some('Q'), _) => at = quoted(&chars, at, &mut out),
                    (Some(other), _) => out.extend(['\\', other]),
                    (None, _) => out.push('\\'),
                }
            }
            '[' if !class => {
                class = true;
                out.push('[');
                if next == Some('^') {
                    at += 1;
                    out.push('^');
                }
                class_start = at + 1;
                // A bracket right at the start is a member.
                if chars.get(at + 1) == Some(&']') {
                    at += 1;
                    out.push_str("\\]");
                }
            }
            '[' if class && next == Some(':') => match named_class(&chars, at) {
                Some(end) => {
                    out.extend(&chars[at..end]);
                    at = end - 1;
                }
                None => out.push_str("\\["),
            },
            '[' => out.push_str("\\["),
            ']' if class => {
                class = false;
                out.push(']');
            }
            '&' | '~' if class => out.extend(['\\', c]),
            '-' if class && next == Some('-') && at > class_start => out.push_str("\\-"),
            '-' if class && at > class_start && chars.get(at - 1) == Some(&'-') => out.push_str("\\-"),
            other => out.push(other),
        }
        at += 1;
    }
    out
}

/// `\Q…\E`; returns where it ends.
fn quoted(chars: &[char], from: usize, out: &mut String) -> usize {
    let mut at = from + 1;
    while let Some(&c) = chars.get(at) {
        if c == '\\' && chars.get(at + 1) == Some(&'E') {
            return at + 1;
        }
        out.push_str(&regex::escape(&c.to_string()));
        at += 1;
    }
    at
}

fn named_class(chars: &[char], from: usize) -> Option<usize> {
    let end = chars.get(from + 2..)?.windows(2).position(|pair| pair == [':', ']'])?;
    let end = from + 2 + end + 2;
    (end - from < 16).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        let cases = [
            (r"^\d+$", "123", true),
            (r"^\d+$", "١", false),
            (r"^[\w.-]+$", "a-b.c_d", true),
            (r"^[^\s]+$", "a b", false),
            (r"^[[a]+$", "[a", true),
            (r"^[]a]+$", "]a", true),
            (r"^[a-z&&b]+$", "&a", true),
            (r"\bfoo\b", "a foo b", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"^[[:alpha:]]+$", "abc", true),
            (r"^[a--]+$", "a-", true),
            (r"^(https?)://[^/]+/?$", "https://x/", true),
        ];
        for (pattern, text, wanted) in cases {
            match compile(pattern) {
                Ok(found) => assert_eq!(found.is_match(text), wanted, "{pattern} {text}"),
                Err(error) => panic!("{pattern}: {error}"),
            }
        }
        assert!(compile("(").is_err());
        assert!(compile("(?=a)").is_err());
    }
}
