//! Words and variables of a Dockerfile's lines, as a shell would take them apart.

use std::collections::BTreeMap;

/// What `$NAME` stands for.
pub type Variables = BTreeMap<String, String>;

/// Expands `$NAME`, `${NAME}`, `${NAME:-otherwise}` and `${NAME:+instead}`; not within single quotes, nor after the escape character.
/// Quotes stay.
pub fn expand(text: &str, variables: &Variables, escape: char) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text.chars().peekable();
    let mut single = false;
    while let Some(next) = rest.next() {
        match next {
            '\'' => {
                single = !single;
                out.push(next);
            }
            c if c == escape && !single => match rest.next() {
                Some('$') => out.push('$'),
                Some(other) => out.extend([c, other]),
                None => out.push(c),
            },
            '$' if !single => match rest.peek() {
                Some('{') => {
                    rest.next();
                    let mut depth = 1;
                    let mut inner = String::new();
                    for c in rest.by_ref() {
                        depth += i32::from(c == '{') - i32::from(c == '}');
                        if depth == 0 {
                            break;
                        }
                        inner.push(c);
                    }
                    if depth != 0 {
                        return Err(format!("{text}: a brace is not closed"));
                    }
                    out.push_str(&braced(&inner, variables, escape)?);
                }
                _ => {
                    let mut name = String::new();
                    while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                        name.push(c);
                    }
                    match name.is_empty() {
                        true => out.push('$'),
                        false => out.push_str(variables.get(&name).map_or("", String::as_str)),
                    }
                }
            },
            other => out.push(other),
        }
    }
    Ok(out)
}

fn braced(inner: &str, variables: &Variables, escape: char) -> Result<String, String> {
    let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
    let (name, modifier) = inner.split_at(end);
    let value = variables.get(name).filter(|value| !modifier.starts_with(':') || !value.is_empty());
    match modifier.trim_start_matches(':').chars().next() {
        None if !name.is_empty() => Ok(value.cloned().unwrap_or_default()),
        Some('-') => {
            let otherwise = modifier.split_once('-').map_or("", |(_, rest)| rest);
            value.map_or_else(|| expand(otherwise, variables, escape), |value| Ok(value.clone()))
        }
        Some('+') => {
            let instead = modifier.split_once('+').map_or("", |(_, rest)| rest);
            value.map_or(Ok(String::new()), |_| expand(instead, variables, escape))
        }
        _ => Err(format!("${{{inner}}}: a substitution that is not supported")),
    }
}

/// Words between blanks; quotes and the escape character keep blanks, and go.
pub fn split(text: &str, escape: char) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        match (quote, next) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => {
                quote = Some(next);
                word.get_or_insert_default();
            }
            (None | Some('"'), c) if c == escape => match (quote, rest.next()) {
                (_, None) => word.get_or_insert_default().push(c),
                // Within double quotes it only protects what would be special there.
                (Some('"'), Some(other)) if other != '"' && other != escape && other != '$' => {
                    word.get_or_insert_default().extend([c, other])
                }
                (_, Some(other)) => word.get_or_insert_default().push(other),
            },
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(format!("{text}: a quote is not closed"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded_as_docker_does() {
        let variables: Variables = [("A", "one"), ("EMPTY", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for (text, expected) in [
            ("$A/${A}x", "one/onex"),
            ("${B:-two} ${EMPTY:-three} ${EMPTY-four}", "two three "),
            ("${A:+yes}${B:+no}", "yes"),
            ("${B:-${A}}", "one"),
            (r"\$A '$A' $", "$A '$A' $"),
            ("$B", ""),
        ] {
            assert_eq!(expand(text, &variables, '\\').as_deref(), Ok(expected), "{text}");
        }
        for bad in ["${A", "${A?x}", "${}"] {
            assert!(expand(bad, &variables, '\\').is_err(), "{bad}");
        }
    }

    #[test]
    fn words_keep_what_is_quoted() {
        for (text, expected) in [
            (r#"a "b c" d\ e 'f"g'"#, vec!["a", "b c", "d e", "f\"g"]),
            (r#"K="a b"c"#, vec!["K=a bc"]),
            (r#""" x"#, vec!["", "x"]),
            (r#""a\n\"""#, vec!["a\\n\""]),
            ("", vec![]),
        ] {
            assert_eq!(split(text, '\\').unwrap(), expected, "{text}");
        }
        assert!(split("'open", '\\').is_err());
    }
}
