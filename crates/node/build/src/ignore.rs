//! `.dockerignore`: which files of a folder are no part of the build.

/// Patterns in their order; the last one that matches decides.
#[derive(Clone, Debug, Default)]
pub struct Ignore(Vec<(Vec<String>, bool)>);

impl Ignore {
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let patterns = lines.map(|line| {
            let (pattern, keeps) = line.strip_prefix('!').map_or((line, false), |rest| (rest, true));
            (segments(pattern.trim()), keeps)
        });
        Self(patterns.filter(|(pattern, _)| !pattern.is_empty()).collect())
    }

    /// Whether a file (by its path in the folder) is left out. What lies in a folder that is left out is, too, unless an exception names it.
    pub fn ignores(&self, path: &str) -> bool {
        let parts = segments(path);
        let mut ignored = false;
        for (pattern, keeps) in &self.0 {
            let matched = (1..=parts.len()).any(|length| matches(pattern, parts.get(..length).unwrap_or_default()));
            if matched {
                ignored = !keeps;
            }
        }
        ignored
    }

    /// Whether a folder that is left out may hold exceptions.
    pub fn has_exceptions(&self) -> bool {
        self.0.iter().any(|(_, keeps)| *keeps)
    }
}

fn segments(path: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part.to_owned());
        }
    }
    parts
}

/// Whether a pattern of segments (`**` is any number of them) matches all of a path.
pub fn matches(pattern: &[String], path: &[String]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((first, rest)) if first == "**" => (0..=path.len()).any(|skipped| matches(rest, path.get(skipped..).unwrap_or_default())),
        Some((first, rest)) => path.split_first().is_some_and(|(name, after)| glob(first, name) && matches(rest, after)),
    }
}

/// `*`, `?`, `[a-z]` and `\` within one name, as Go's `filepath.Match`. Linear but for each star once.
pub fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, n));
            p += 1;
        } else if let Some(next) = one(&pattern, p, name.get(n).copied().unwrap_or_default()) {
            (p, n) = (next, n + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, n) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|c| *c == '*')
}

/// Where the pattern goes on after its part at `p` took `c`.
fn one(pattern: &[char], p: usize, c: char) -> Option<usize> {
    match pattern.get(p)? {
        '?' => Some(p + 1),
        '\\' => pattern.get(p + 1).filter(|literal| **literal == c).map(|_| p + 2),
        '[' => {
            let end = p + 1 + pattern.get(p + 1..)?.iter().position(|c| *c == ']')?;
            let set = pattern.get(p + 1..end)?;
            let (set, negated) = set.strip_prefix(&['^']).map_or((set, false), |rest| (rest, true));
            let mut at = 0;
            let mut found = false;
            while let Some(low) = set.get(at) {
                match (set.get(at + 1), set.get(at + 2)) {
                    (Some('-'), Some(high)) => {
                        found |= (*low..=*high).contains(&c);
                        at += 3;
                    }
                    _ => {
                        found |= *low == c;
                        at += 1;
                    }
                }
            }
            (found != negated).then_some(end + 1)
        }
        literal => (*literal == c).then_some(p + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_leave_files_out_and_exceptions_bring_them_back() {
        let ignore = Ignore::parse("# c\n*.log\nnode_modules\n**/*.tmp\n/secret/\n!secret/public\n!keep.log\n");
        for (path, ignored) in [
            ("a.log", true),
            ("keep.log", false),
            ("deep/a.log", false),
            ("node_modules/x/y.js", true),
            ("deep/er/x.tmp", true),
            ("x.tmp", true),
            ("secret/key", true),
            ("secret/public/x", false),
            ("src/main.rs", false),
        ] {
            assert_eq!(ignore.ignores(path), ignored, "{path}");
        }
    }

    #[test]
    fn globs_match_as_gos() {
        for (pattern, name, matched) in [
            ("*.tar.gz", "a.tar.gz", true),
            ("*a*b", "xaxbab", true),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("[", "[", false),
            ("*", "", true),
        ] {
            assert_eq!(glob(pattern, name), matched, "{pattern} {name}");
        }
        let slow = "*a".repeat(30);
        assert!(!glob(&slow, &"b".repeat(5000)));
    }
}
