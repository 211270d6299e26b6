//! What is built in: licences and refused crates, by the lists of `deny.toml`.
//!
//! `cargo deny` does the same and more; this needs nothing installed, so it runs with every test.

use super::Fault;

/// The lists, relative to the checkout.
const LISTS: &str = "deny.toml";

/// Asks cargo for every crate that is built for this machine, without the network.
pub fn faults() -> anyhow::Result<Vec<Fault>> {
    let lists = std::fs::read_to_string(crate::root().join(LISTS))?;
    let (allowed, refused) = (quoted(between(&lists, "allow = [", "]\n")), crates(between(&lists, "deny = [", "\n]")));
    let format = ["--prefix=none", "--no-dedupe", "--format={p}\t{l}"];
    let output = crate::cargo().args(["tree", "--workspace", "--offline", "--edges=normal,build"]).args(format).output()?;
    anyhow::ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let built: std::collections::BTreeSet<(&str, &str)> = text.lines().filter_map(|line| line.split_once('\t')).collect();
    Ok(built.into_iter().filter_map(|(package, licence)| judge(package, licence, &allowed, &refused)).collect())
}

fn judge(package: &str, licence: &str, allowed: &[&str], refused: &[&str]) -> Option<Fault> {
    let name = package.split(' ').next().unwrap_or_default();
    if refused.contains(&name) {
        return Some(Fault::new(package, format!("{LISTS} refuses it")));
    }
    (!permits(licence, allowed)).then(|| Fault::new(package, format!("its licence {licence:?} is not in {LISTS}")))
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let rest = text.split_once(start).map(|(_, rest)| rest).unwrap_or_default();
    rest.split(end).next().unwrap_or_default()
}

fn quoted(list: &str) -> Vec<&str> {
    list.split('"').skip(1).step_by(2).collect()
}

/// Crates that nobody may import; those with wrappers have rules of their own (see `arrows`).
fn crates(list: &str) -> Vec<&str> {
    list.lines().filter(|line| !line.contains("wrappers")).filter_map(|line| line.split('"').nth(1)).collect()
}

/// Whether an SPDX expression can be met with the allowed licences: `AND` binds tighter than `OR`, as SPDX says; `/` is an old `OR`.
fn permits(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ").replace(" WITH ", "~");
    let mut words = spaced.split_whitespace().peekable();
    any(&mut words, allowed) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut met = every(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= every(words, allowed);
    }
    met
}

fn every(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    match words.next() {
        Some("(") => any(words, allowed) & words.next_if_eq(&")").is_some(),
        Some(name) => allowed.contains(&name.replace('~', " WITH ").as_str()),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions_are_judged_as_spdx_reads_them() {
        let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"];
        let cases = [
            ("MIT", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0 AND MIT", false),
            ("ISC AND (GPL-3.0 OR MIT)", true),
            ("(ISC AND GPL-3.0) OR GPL-2.0", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("", false),
            ("MIT MIT", false),
        ];
        for (expression, met) in cases {
            assert_eq!(permits(expression, &allowed), met, "{expression:?}");
        }
    }

    #[test]
    fn a_refused_crate_is_named() {
        let fault = judge("ring v0.17.14", "MIT", &["MIT"], &["ring"]).expect("a fault");
        assert_eq!(fault.to_string(), "ring v0.17.14: deny.toml refuses it");
    }

    #[test]
    fn everything_built_in_has_an_allowed_licence() {
        let faults: Vec<String> = faults().expect("cargo tree").iter().map(Fault::to_string).collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}
