//! Label selectors and field selectors, as text and as objects.
//!
//! The grammar, its quirks and its error sentences are apimachinery's `pkg/labels` and `pkg/fields`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use crate::{field, names};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without duplicates.
    pub values: Vec<String>,
}

/// A conjunction of requirements, sorted by key; without any it matches everything, unless it is [`LabelSelector::nothing`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
    nothing: bool,
}

impl Requirement {
    pub fn new(key: &str, operator: Operator, values: BTreeSet<String>) -> Result<Self, Error> {
        let values: Vec<String> = values.into_iter().collect();
        let mut errors = key_errors(key);
        let path = field::Path::new("values");
        let integer = |value: &String| value.parse::<i64>().is_ok();
        let complaint = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => "for 'in', 'notin' operators, values set can't be empty",
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                "exact-match compatibility requires one single value"
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => "values set must be empty for exists and does not exist",
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => "for 'Gt', 'Lt' operators, exactly one value is required",
            _ => "",
        };
        if !complaint.is_empty() {
            errors.push(field::Error::invalid(&path, values.clone(), complaint));
        }
        for (index, value) in values.iter().enumerate() {
            if matches!(operator, Operator::GreaterThan | Operator::LessThan) && !integer(value) {
                let sentence = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(field::Error::invalid(&path.index(index), value.clone(), sentence));
            }
            let complaints = names::label_value(value);
            if !complaints.is_empty() {
                errors.push(field::Error::invalid(&path.index(index).key(key), value.clone(), complaints.join("; ")));
            }
        }
        aggregate(&errors)?;
        Ok(Self { key: key.to_owned(), operator, values })
    }

    /// `value` is the label's value, `None` where the label is absent.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let among = |value: &str| self.values.iter().any(|one| one == value);
        let compare = |wanted: fn(&i64, &i64) -> bool| {
            let bound = self.values.first().and_then(|bound| bound.parse().ok());
            value.and_then(|value| value.parse().ok()).zip(bound).is_some_and(|(value, bound)| wanted(&value, &bound))
        };
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(among),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(among),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => compare(i64::gt),
            Operator::LessThan => compare(i64::lt),
        }
    }
}

fn key_errors(key: &str) -> Vec<field::Error> {
    let complaints = names::qualified_name(key);
    let path = field::Path::new("key");
    if complaints.is_empty() { Vec::new() } else { vec![field::Error::invalid(&path, key, complaints.join("; "))] }
}

/// Several errors print as a list in brackets (Go's aggregate).
fn aggregate(errors: &[field::Error]) -> Result<(), Error> {
    match errors {
        [] => Ok(()),
        [one] => Err(Error(one.to_string())),
        many => Err(Error(format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")))),
    }
}

impl LabelSelector {
    pub fn everything() -> Self {
        Self::default()
    }
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }
    /// Narrowed by one more requirement; nothing stays nothing.
    pub fn with(self, requirement: Requirement) -> Self {
        self.and(Self::of(vec![requirement]))
    }
    /// What both select.
    pub fn and(mut self, other: Self) -> Self {
        self.requirements.extend(other.requirements);
        let nothing = self.nothing || other.nothing;
        Self { nothing, ..Self::of(self.requirements) }
    }
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
    fn of(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// Reads `a=b,c!=d,e in (f,g),h,!i,j>5`; the empty text selects everything.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Parser { tokens: scan(text), position: 0 }.parse().map(Self::of)
    }

    /// A `metav1.LabelSelector` object (`matchLabels`, `matchExpressions`). `null` selects nothing, `{}` everything.
    pub fn from_object(object: &Value) -> Result<Self, Error> {
        if object.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = equalities(&object["matchLabels"])?;
        for expression in object["matchExpressions"].as_array().into_iter().flatten() {
            let operator = match expression["operator"].as_str().unwrap_or("") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(Error(format!("{other:?} is not a valid label selector operator"))),
            };
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(Requirement::new(expression["key"].as_str().unwrap_or(""), operator, values)?);
        }
        Ok(Self::of(requirements))
    }

    /// A plain map of labels, each of which must be equal (`spec.selector` of Services). `null` and `{}` select everything.
    pub fn from_set(labels: &Value) -> Result<Self, Error> {
        equalities(labels).map(Self::of)
    }

    /// `label` answers with the value of a label, `None` where it is absent.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches(label(&requirement.key)))
    }
    pub fn matches_map(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches(|key| labels.get(key).map(String::as_str))
    }
    /// `labels` is the JSON object `metadata.labels`, or null.
    pub fn matches_object(&self, labels: &Value) -> bool {
        self.matches(|key| labels.get(key).and_then(Value::as_str))
    }
    /// The only value that `key` may have, where a requirement says so (an index can serve it).
    pub fn exact(&self, key: &str) -> Option<&str> {
        let single = |requirement: &&Requirement| {
            requirement.key == key && matches!(requirement.operator, Operator::In | Operator::Equals | Operator::DoubleEquals)
        };
        let found = self.requirements.iter().find(single)?;
        if found.values.len() == 1 { found.values.first().map(String::as_str) } else { None }
    }
}

fn equalities(labels: &Value) -> Result<Vec<Requirement>, Error> {
    let pairs = labels.as_object().into_iter().flatten();
    let one =
        |(key, value): (&String, &Value)| Requirement::new(key, Operator::In, BTreeSet::from([value.as_str().unwrap_or("").to_owned()]));
    // Printed as `a=b` although it matches as a set of one (upstream does the same).
    pairs.map(|pair| one(pair).map(|requirement| Requirement { operator: Operator::Equals, ..requirement })).collect()
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.requirements.iter().map(ToString::to_string).collect();
        f.write_str(&parts.join(","))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    End,
    Error,
    Identifier,
    In,
    NotIn,
    Open,
    Close,
    Comma,
    Not,
    Equals,
    DoubleEquals,
    NotEquals,
    Greater,
    Less,
}

fn symbol(text: &str) -> Option<Token> {
    Some(match text {
        "(" => Token::Open,
        ")" => Token::Close,
        "," => Token::Comma,
        "!" => Token::Not,
        "=" => Token::Equals,
        "==" => Token::DoubleEquals,
        "!=" => Token::NotEquals,
        ">" => Token::Greater,
        "<" => Token::Less,
        _ => return None,
    })
}

fn is_symbol(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn scan(text: &str) -> Vec<(Token, String)> {
    let mut rest = text;
    let mut tokens = Vec::new();
    loop {
        rest = rest.trim_start_matches(is_space);
        let Some(first) = rest.chars().next() else {
            tokens.push((Token::End, String::new()));
            return tokens;
        };
        if is_symbol(first) {
            // The longest symbol that starts here: two characters, else one.
            let two = rest.get(..2).and_then(|pair| symbol(pair).map(|token| (token, pair)));
            let Some((token, literal)) = two.or_else(|| rest.get(..1).and_then(|one| symbol(one).map(|token| (token, one)))) else {
                tokens.push((Token::Error, format!("error expected: keyword found '{first}'")));
                return tokens;
            };
            tokens.push((token, literal.to_owned()));
            rest = &rest[literal.len()..];
            continue;
        }
        let end = rest.find(|c| is_symbol(c) || is_space(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let token = match word {
            "in" => Token::In,
            "notin" => Token::NotIn,
            _ => Token::Identifier,
        };
        tokens.push((token, word.to_owned()));
        rest = after;
    }
}

struct Parser {
    tokens: Vec<(Token, String)>,
    position: usize,
}

impl Parser {
    fn raw(&self) -> (Token, String) {
        self.tokens.get(self.position).cloned().unwrap_or((Token::End, String::new()))
    }
    /// The next token where `in` and `notin` are ordinary words.
    fn peek(&self) -> (Token, String) {
        let (token, literal) = self.raw();
        (if matches!(token, Token::In | Token::NotIn) { Token::Identifier } else { token }, literal)
    }
    fn next(&mut self) -> (Token, String) {
        let found = self.peek();
        self.position += 1;
        found
    }

    fn parse(&mut self) -> Result<Vec<Requirement>, Error> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Token::Identifier | Token::Not, _) => {
                    let requirement = self.requirement().map_err(|Error(why)| Error(format!("unable to parse requirement: {why}")))?;
                    requirements.push(requirement);
                }
                (Token::End, _) => return Ok(requirements),
                (_, literal) => return Err(Error(format!("found '{literal}', expected: !, identifier, or 'end of string'"))),
            }
            match self.next() {
                (Token::End, _) => return Ok(requirements),
                (Token::Comma, _) => {
                    let (token, literal) = self.peek();
                    if !matches!(token, Token::Identifier | Token::Not) {
                        return Err(Error(format!("found '{literal}', expected: identifier after ','")));
                    }
                }
                (_, literal) => return Err(Error(format!("found '{literal}', expected: ',' or 'end of string'"))),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, Error> {
        let (mut token, mut key) = self.next();
        let absent = token == Token::Not;
        if absent {
            (token, key) = self.next();
        }
        if token != Token::Identifier {
            return Err(Error(format!("found '{key}', expected: identifier")));
        }
        aggregate(&key_errors(&key))?;
        if absent {
            return Requirement::new(&key, Operator::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Requirement::new(&key, Operator::Exists, BTreeSet::new());
        }
        let operator = self.operator()?;
        let values = if matches!(operator, Operator::In | Operator::NotIn) { self.values()? } else { self.exact_value()? };
        Requirement::new(&key, operator, values)
    }

    fn operator(&mut self) -> Result<Operator, Error> {
        let (token, literal) = self.raw();
        self.position += 1;
        Ok(match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return Err(Error(format!("found '{literal}', expected: in, notin, =, ==, !=, gt, lt"))),
        })
    }

    fn values(&mut self) -> Result<BTreeSet<String>, Error> {
        let (token, literal) = self.next();
        if token != Token::Open {
            return Err(Error(format!("found '{literal}' expected: '('")));
        }
        match self.peek() {
            (Token::Identifier | Token::Comma, _) => {
                let values = self.identifiers()?;
                let (token, literal) = self.next();
                if token != Token::Close {
                    return Err(Error(format!("found '{literal}', expected: ')'")));
                }
                Ok(values)
            }
            (Token::Close, _) => {
                self.next();
                Ok(BTreeSet::from([String::new()]))
            }
            (_, literal) => Err(Error(format!("found '{literal}', expected: ',', ')' or identifier"))),
        }
    }

    fn identifiers(&mut self) -> Result<BTreeSet<String>, Error> {
        let mut values = BTreeSet::new();
        loop {
            match self.next() {
                (Token::Identifier, value) => {
                    values.insert(value);
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(values),
                        (_, literal) => return Err(Error(format!("found '{literal}', expected: ',' or ')'"))),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.peek().0 {
                        Token::Close => {
                            values.insert(String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            self.next();
                            values.insert(String::new());
                        }
                        _ => {}
                    }
                }
                (_, literal) => return Err(Error(format!("found '{literal}', expected: ',', or identifier"))),
            }
        }
    }

    fn exact_value(&mut self) -> Result<BTreeSet<String>, Error> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(BTreeSet::from([String::new()]));
        }
        match self.next() {
            (Token::Identifier, value) => Ok(BTreeSet::from([value])),
            (_, literal) => Err(Error(format!("found '{literal}', expected: identifier"))),
        }
    }
}

/// `field=value` or `field!=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    pub equal: bool,
}

/// A conjunction of field terms; empty selects everything.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FieldSelector {
    pub terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// Reads `a=b,c!=d,e==f`; in values `\,`, `\=` and `\\` stand for the plain characters.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let Some((field, equal, value)) = split_term(part) else {
                return Err(Error(format!("invalid selector: '{text}'; can't understand '{part}'")));
            };
            terms.push(FieldTerm { field: field.to_owned(), value: unescape(value)?, equal });
        }
        Ok(Self { terms })
    }
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }
    /// `field` answers with the value of a field; an absent one is empty.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|term| (field(&term.field).unwrap_or("") == term.value) == term.equal)
    }
    /// The value that `field` must have, if a term says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_term(part: &str) -> Option<(&str, bool, &str)> {
    part.char_indices().find_map(|(index, _)| {
        let (field, rest) = part.split_at(index);
        let (equal, value) = match rest {
            _ if rest.starts_with("!=") => (false, &rest[2..]),
            _ if rest.starts_with("==") => (true, &rest[2..]),
            _ if rest.starts_with('=') => (true, &rest[1..]),
            _ => return None,
        };
        Some((field, equal, value))
    })
}

fn unescape(value: &str) -> Result<String, Error> {
    let mut text = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => text.push(escaped),
                other => {
                    let sequence: String = ['\\'].into_iter().chain(other).collect();
                    return Err(Error(format!("invalid field selector: invalid escape sequence: {sequence}")));
                }
            },
            ',' | '=' => return Err(Error(format!("invalid field selector: unescaped character in value: {c}"))),
            plain => text.push(plain),
        }
    }
    Ok(text)
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escape = |value: &str| value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        let one = |term: &FieldTerm| format!("{}{}{}", term.field, if term.equal { "=" } else { "!=" }, escape(&term.value));
        f.write_str(&self.terms.iter().map(one).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_match_as_their_text_says() {
        let labels = json!({"app": "web", "tier": "front", "n": "7"});
        let cases = [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app=web,tier=back", false),
            ("app in (web, api)", true),
            ("app notin (web)", false),
            ("missing notin (a)", true),
            ("missing!=a", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("n>5", true),
            ("n<5", false),
            ("app>5", false),
            ("app=", false),
            ("in in (in)", false),
        ];
        for (text, expected) in cases {
            let selector = LabelSelector::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(selector.matches_object(&labels), expected, "{text}");
        }
    }

    #[test]
    fn bad_selectors_are_explained_in_upstreams_sentences() {
        let cases = [
            ("app=web,", "found '', expected: identifier after ','"),
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            ("(a)", "found '(', expected: !, identifier, or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("a>x", "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer"),
        ];
        for (text, expected) in cases {
            assert_eq!(LabelSelector::parse(text).expect_err(text).to_string(), expected);
        }
    }

    #[test]
    fn selectors_print_in_canonical_form() {
        for (text, expected) in [
            ("b=2 , a in (y,x),!c, d", "a in (x,y),b=2,!c,d"),
            ("a==b", "a==b"),
            ("a!=b", "a!=b"),
            ("a notin (b)", "a notin (b)"),
            ("a>1", "a>1"),
        ] {
            assert_eq!(LabelSelector::parse(text).expect(text).to_string(), expected);
        }
    }

    #[test]
    fn selector_objects_select_like_text() {
        let object = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["front", "back"]}, {"key": "x", "operator": "DoesNotExist"}]});
        let selector = LabelSelector::from_object(&object).expect("valid");
        assert_eq!(selector.to_string(), "app=web,tier in (back,front),!x");
        assert!(selector.matches_object(&json!({"app": "web", "tier": "back"})));
        assert!(!selector.matches_object(&json!({"app": "web", "tier": "back", "x": ""})));
        assert!(!LabelSelector::from_object(&Value::Null).expect("valid").matches_object(&json!({})));
        assert!(LabelSelector::from_object(&json!({})).expect("valid").is_everything());
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "Like"}]});
        assert_eq!(LabelSelector::from_object(&bad).expect_err("bad").to_string(), "\"Like\" is not a valid label selector operator");
        assert_eq!(selector.exact("app"), Some("web"));
        assert_eq!(selector.exact("tier"), None);
    }

    #[test]
    fn field_selectors_read_terms_and_escapes() {
        let selector = FieldSelector::parse(r"spec.nodeName=n1,status.phase!=Failed,x==a\,b").expect("valid");
        let fields = BTreeMap::from([("spec.nodeName", "n1"), ("status.phase", "Running"), ("x", "a,b")]);
        assert!(selector.matches(|field| fields.get(field).copied()));
        assert_eq!(selector.exact("spec.nodeName"), Some("n1"));
        assert_eq!(selector.to_string(), r"spec.nodeName=n1,status.phase!=Failed,x=a\,b");
        assert_eq!(FieldSelector::parse("a").expect_err("bad").to_string(), "invalid selector: 'a'; can't understand 'a'");
    }
}
