//! Semantic versions.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use super::{Called, Opaque};
use crate::error::EvalError;
use crate::value::Value;

#[derive(Debug)]
pub struct Semver {
    core: [u64; 3],
    pre: Vec<String>,
    build: String,
}

impl fmt::Display for Semver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.core;
        write!(f, "{major}.{minor}.{patch}")?;
        if !self.pre.is_empty() {
            write!(f, "-{}", self.pre.join("."))?;
        }
        if !self.build.is_empty() {
            write!(f, "+{}", self.build)?;
        }
        Ok(())
    }
}

impl Semver {
    /// `normalize` lets a leading `v`, missing parts and leading zeros pass.
    pub fn parse(text: &str, normalize: bool) -> Option<Self> {
        let text = if normalize { text.strip_prefix('v').unwrap_or(text) } else { text };
        let (text, build) = text.split_once('+').map_or((text, ""), |(text, build)| (text, build));
        let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
        let mut parts: Vec<&str> = core.split('.').collect();
        if normalize {
            while parts.len() < 3 {
                parts.push("0");
            }
        }
        let number = |part: &&str| {
            let trimmed = if normalize && part.len() > 1 { part.trim_start_matches('0') } else { part };
            let part = if trimmed.is_empty() { "0" } else { trimmed };
            let leading = part.len() > 1 && part.starts_with('0');
            (!leading && part.bytes().all(|byte| byte.is_ascii_digit())).then(|| part.parse().ok()).flatten()
        };
        let numbers: Vec<u64> = parts.iter().map(number).collect::<Option<_>>()?;
        let core: [u64; 3] = numbers.try_into().ok()?;
        let identifier = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let pre: Vec<String> = pre.map(|pre| pre.split('.').map(str::to_owned).collect()).unwrap_or_default();
        let numeric_zero = |part: &String| part.len() > 1 && part.starts_with('0') && part.bytes().all(|byte| byte.is_ascii_digit());
        if !pre.iter().all(|part| identifier(part)) || pre.iter().any(numeric_zero) {
            return None;
        }
        if !build.is_empty() && !build.split('.').all(identifier) {
            return None;
        }
        Some(Self { core, pre, build: build.to_owned() })
    }

    pub fn compare(&self, other: &Semver) -> Ordering {
        self.core.cmp(&other.core).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ => {
                let pairs = self.pre.iter().zip(&other.pre).map(|(a, b)| match (a.parse::<u64>(), b.parse::<u64>()) {
                    (Ok(a), Ok(b)) => a.cmp(&b),
                    (Ok(_), Err(_)) => Ordering::Less,
                    (Err(_), Ok(_)) => Ordering::Greater,
                    _ => a.cmp(b),
                });
                pairs.fold(Ordering::Equal, Ordering::then).then(self.pre.len().cmp(&other.pre.len()))
            }
        })
    }
}

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Called<'a>> {
    let parse = |text: &str, normalize: bool| {
        let wrong = || EvalError::failed(format!("semver parse error during conversion from string: {text:?} is no semantic version"));
        Semver::parse(text, normalize).map(|version| Value::Opaque(Opaque::Semver(Arc::new(version)))).ok_or_else(wrong)
    };
    Some(match (function, args) {
        ("semver", [Value::String(text)]) => parse(text, false),
        ("semver", [Value::String(text), Value::Bool(normalize)]) => parse(text, *normalize),
        ("isSemver", [Value::String(text)]) => Ok(Value::Bool(Semver::parse(text, false).is_some())),
        ("isSemver", [Value::String(text), Value::Bool(normalize)]) => Ok(Value::Bool(Semver::parse(text, *normalize).is_some())),
        (_, [Value::Opaque(Opaque::Semver(version))]) => {
            let [major, minor, patch] = version.core;
            let part = match function {
                "major" => major,
                "minor" => minor,
                "patch" => patch,
                _ => return None,
            };
            Ok(Value::Int(i64::try_from(part).unwrap_or(i64::MAX)))
        }
        (_, [Value::Opaque(Opaque::Semver(version)), Value::Opaque(Opaque::Semver(other))]) => match function {
            "isGreaterThan" => Ok(Value::Bool(version.compare(other).is_gt())),
            "isLessThan" => Ok(Value::Bool(version.compare(other).is_lt())),
            "compareTo" => Ok(Value::Int(version.compare(other) as i64)),
            _ => return None,
        },
        _ => return None,
    })
}
