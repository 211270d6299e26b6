//! Paths into objects: kubectl's JSONPath as printer columns use it, and the plain dotted paths of scale and selectable fields.
//!
//! Source: client-go `util/jsonpath`, apiextensions-apiserver `pkg/registry/customresource/tableconvertor`.

use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    /// `[*]` and `.*`.
    All,
    /// `..name`
    Descend,
    /// `[?(@.path op literal)]`
    Filter(Vec<Step>, Option<(String, Value)>),
}

/// A path that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Reads `.spec.containers[0]['a.b'][?(@.type=="Ready")].status`; the error is a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
        let mut parser = Parser { text: text.chars().collect(), at: 0 };
        let steps = parser.steps(|_| false)?;
        Ok(Self(steps))
    }

    /// Everything that it leads to.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        follow(&self.0, vec![value])
    }

    /// The first of it.
    pub fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.find(value).into_iter().next()
    }

    /// The names, where it is nothing but fields.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0
            .iter()
            .map(|step| match step {
                Step::Field(name) => Some(name.as_str()),
                _ => None,
            })
            .collect()
    }
}

fn follow<'v>(steps: &[Step], from: Vec<&'v Value>) -> Vec<&'v Value> {
    let Some((step, rest)) = steps.split_first() else { return from };
    let mut next: Vec<&'v Value> = Vec::new();
    for value in from {
        match step {
            Step::Field(name) => next.extend(value.get(name)),
            Step::All => match value {
                Value::Array(items) => next.extend(items),
                Value::Object(map) => next.extend(map.values()),
                _ => {}
            },
            Step::Index(at) => {
                if let Value::Array(items) = value {
                    next.extend(position(*at, items.len()).and_then(|at| items.get(at)));
                }
            }
            Step::Slice(from, to) => {
                if let Value::Array(items) = value {
                    let length = items.len() as i64;
                    let clamp = |at: i64| (if at < 0 { at + length } else { at }).clamp(0, length) as usize;
                    let (from, to) = (clamp(from.unwrap_or(0)), clamp(to.unwrap_or(length)));
                    next.extend(items.get(from..to.max(from)).unwrap_or_default());
                }
            }
            Step::Descend => descend(value, &mut next),
            Step::Filter(path, test) => {
                if let Value::Array(items) = value {
                    next.extend(items.iter().filter(|item| matches(path, test.as_ref(), item)));
                }
            }
        }
    }
    follow(rest, next)
}

fn position(at: i64, length: usize) -> Option<usize> {
    usize::try_from(if at < 0 { at + length as i64 } else { at }).ok()
}

fn descend<'v>(value: &'v Value, out: &mut Vec<&'v Value>) {
    out.push(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| descend(item, out)),
        Value::Object(map) => map.values().for_each(|item| descend(item, out)),
        _ => {}
    }
}

fn matches(path: &[Step], test: Option<&(String, Value)>, item: &Value) -> bool {
    let found = follow(path, vec![item]);
    let Some((operator, wanted)) = test else { return !found.is_empty() };
    let Some(found) = found.first() else { return false };
    let order = match (found, wanted) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (a, b) => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
    };
    let Some(order) = order else { return false };
    match operator.as_str() {
        "==" => order.is_eq(),
        "!=" => order.is_ne(),
        "<" => order.is_lt(),
        "<=" => order.is_le(),
        ">" => order.is_gt(),
        _ => order.is_ge(),
    }
}

struct Parser {
    text: Vec<char>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn steps(&mut self, ends: impl Fn(char) -> bool) -> Result<Vec<Step>, String> {
        let mut steps = Vec::new();
        while let Some(c) = self.peek() {
            if ends(c) {
                break;
            }
            match c {
                '$' | '@' if steps.is_empty() => self.at += 1,
                '.' => {
                    self.at += 1;
                    if self.peek() == Some('.') {
                        self.at += 1;
                        steps.push(Step::Descend);
                    }
                    match self.peek() {
                        Some('*') => {
                            self.at += 1;
                            steps.push(Step::All);
                        }
                        Some('[') => {}
                        _ => {
                            let name = self.name(&ends)?;
                            if !name.is_empty() {
                                steps.push(Step::Field(name));
                            }
                        }
                    }
                }
                '[' => steps.push(self.bracket()?),
                _ if steps.is_empty() => steps.push(Step::Field(self.name(&ends)?)),
                other => return Err(format!("unrecognized character in action: U+{:04X} '{other}'", other as u32)),
            }
        }
        Ok(steps)
    }

    fn name(&mut self, ends: &impl Fn(char) -> bool) -> Result<String, String> {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            match c {
                '\\' => {
                    self.at += 1;
                    name.extend(self.peek());
                    self.at += 1;
                }
                '.' | '[' | ']' | '{' | '}' | '(' | ')' => break,
                c if c.is_whitespace() || ends(c) => break,
                c => {
                    name.push(c);
                    self.at += 1;
                }
            }
        }
        Ok(name)
    }

    fn bracket(&mut self) -> Result<Step, String> {
        let start = self.at + 1;
        let (mut depth, mut quote) = (0, None);
        while let Some(c) = self.peek() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (Some(_), '\\') => self.at += 1,
                (Some(_), _) => {}
                (None, '\'' | '"') => quote = Some(c),
                (None, '[') => depth += 1,
                (None, ']') => {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        if self.peek() != Some(']') {
            return Err("unterminated array".into());
        }
        let inner: String = self.text.get(start..self.at).unwrap_or_default().iter().collect();
        self.at += 1;
        bracketed(inner.trim())
    }
}

fn bracketed(inner: &str) -> Result<Step, String> {
    if inner == "*" {
        return Ok(Step::All);
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        return filtered(filter.trim());
    }
    for quote in ['\'', '"'] {
        if let Some(name) = inner.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return Ok(Step::Field(name.replace("\\'", "'").replace("\\\"", "\"")));
        }
    }
    let number = |text: &str| text.trim().parse::<i64>().map_err(|_| format!("invalid array index {inner}"));
    if let Some((from, to)) = inner.split_once(':') {
        let bound = |text: &str| if text.trim().is_empty() { Ok(None) } else { number(text).map(Some) };
        return Ok(Step::Slice(bound(from)?, bound(to)?));
    }
    number(inner).map(Step::Index)
}

fn filtered(filter: &str) -> Result<Step, String> {
    let mut parser = Parser { text: filter.chars().collect(), at: 0 };
    let path = parser.steps(|c| matches!(c, '=' | '!' | '<' | '>' | ' '))?;
    let rest: String = parser.text.get(parser.at..).unwrap_or_default().iter().collect();
    let rest = rest.trim();
    if rest.is_empty() {
        return Ok(Step::Filter(path, None));
    }
    let operator = ["==", "!=", "<=", ">=", "<", ">"].into_iter().find(|operator| rest.starts_with(operator));
    let Some(operator) = operator else { return Err(format!("unrecognized filter operator in {filter}")) };
    let literal = rest.get(operator.len()..).unwrap_or_default().trim();
    let unquoted = ['\'', '"'].into_iter().find_map(|quote| literal.strip_prefix(quote)?.strip_suffix(quote));
    let value = match unquoted {
        Some(text) => Value::String(text.to_owned()),
        None => serde_json::from_str(literal).map_err(|_| format!("unrecognized literal {literal}"))?,
    };
    Ok(Step::Filter(path, Some((operator.to_owned(), value))))
}

/// A column's cell: what the path leads to, by the column's type; `null` where there is nothing.
pub fn cell(path: &JsonPath, kind: &str, object: &Value, now: i64) -> Value {
    let found = path.find(object);
    let Some(first) = found.first() else { return Value::Null };
    match kind {
        "integer" => match first {
            Value::Number(number) if number.is_f64() => number.as_f64().map_or(Value::Null, |number| (number as i64).into()),
            Value::Number(_) => (*first).clone(),
            _ => Value::Null,
        },
        "number" => {
            if first.is_number() {
                (*first).clone()
            } else {
                Value::Null
            }
        }
        "boolean" => {
            if first.is_boolean() {
                (*first).clone()
            } else {
                Value::Null
            }
        }
        "date" => match first.as_str() {
            Some(text) => meta::time::age(Some(text), now).into(),
            None => Value::Null,
        },
        _ if found.len() == 1 => text(first).into(),
        _ => found.into_iter().map(text).collect::<Vec<_>>().join(",").into(),
    }
}

/// As Go prints what a path found.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".into(),
        other => other.to_string(),
    }
}

/// Whether a scale path is a plain dotted one.
pub fn plain(path: &str) -> Option<Vec<&str>> {
    let names: Vec<&str> = path.strip_prefix('.')?.split('.').collect();
    names.iter().all(|name| !name.is_empty() && !name.contains(['[', ']', '{', '}', '*'])).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_where_kubectls_do() {
        let object = json!({
            "spec": {"replicas": 3, "f": 1.9, "list": [{"n": "a"}, {"n": "b"}], "a.b": "dotted"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}], "t": "2020-01-01T00:00:00Z"}
        });
        let cases = [
            (".spec.replicas", "integer", json!(3)),
            (".spec.f", "integer", json!(1)),
            (".spec.replicas", "string", json!("3")),
            ("{.spec.replicas}", "number", json!(3)),
            (".spec.list[0].n", "string", json!("a")),
            (".spec.list[-1:].n", "string", json!("b")),
            (".spec.list[*].n", "string", json!("a,b")),
            (".spec['a.b']", "string", json!("dotted")),
            (r".spec.a\.b", "string", json!("dotted")),
            (".status.conditions[?(@.type==\"Ready\")].status", "string", json!("True")),
            (".status.conditions[?(@.type=='Ready')].status", "string", json!("True")),
            (".spec.missing", "string", json!(null)),
            (".spec.list[0]", "string", json!("{\"n\":\"a\"}")),
            (".status.t", "date", json!("24h")),
        ];
        for (path, kind, wanted) in cases {
            let parsed = JsonPath::parse(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(cell(&parsed, kind, &object, 1_577_836_800 + 86_400), wanted, "{path}");
        }
        assert!(JsonPath::parse(".spec[").is_err());
    }
}
