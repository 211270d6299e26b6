//! Does the applied configuration conform to the schema? In structured-merge-diff's sentences.

use std::collections::BTreeSet;

use serde_json::Value;

use super::element::Element;
use super::node::{Node, Scalar, Shape};
use crate::merge::go_format::{plain, syntax, type_name};

/// A complaint: the path, built from the inside out, and the sentence.
type Complaints = Vec<(String, String)>;

/// Complaints after which the rest is not looked at: the reply shall stay readable.
const COMPLAINTS_MAX: usize = 100;

/// All complaints in one text, as upstream prints them; `Ok` if there are none.
pub(super) fn validate(value: &Value, node: Node<'_>) -> Result<(), String> {
    let complaints = check(value, node);
    let line = |(path, text): &(String, String)| if path.is_empty() { text.clone() } else { format!("{path}: {text}") };
    match complaints.as_slice() {
        [] => Ok(()),
        [one] => Err(line(one)),
        many => Err(many.iter().fold("errors:".to_owned(), |all, one| format!("{all}\n  {}", line(one)))),
    }
}

fn complaint(text: String) -> Complaints {
    vec![(String::new(), text)]
}

fn below(element: &Element<'_>, mut complaints: Complaints) -> Complaints {
    if !complaints.is_empty() {
        let prefix = element.to_string();
        complaints.iter_mut().for_each(|(path, _)| path.insert_str(0, &prefix));
    }
    complaints
}

fn check(value: &Value, node: Node<'_>) -> Complaints {
    if value.is_null() {
        return Complaints::new();
    }
    match node {
        Node::Scalar(scalar) => check_scalar(value, scalar),
        Node::Struct { .. } | Node::Map { .. } => match value {
            Value::Object(_) => check_fields(value, node),
            other => complaint(format!("expected map, got &{{{}}}", plain(other))),
        },
        Node::List { .. } => match value {
            Value::Array(items) => check_items(items, value, node),
            other => complaint(format!("expected list, got &{{{}}}", plain(other))),
        },
        Node::Atomic | Node::Deduced => Complaints::new(),
    }
}

fn check_scalar(value: &Value, scalar: Scalar) -> Complaints {
    let printed = || format!("&{{{}}}", plain(value));
    match scalar {
        Scalar::Number if !value.is_number() => complaint(format!("expected numeric (int or float), got {}", type_name(value))),
        Scalar::String if !value.is_string() => {
            complaint(format!("expected string, got &value.valueUnstructured{{Value:{}}}", syntax(value)))
        }
        Scalar::Bool if !value.is_boolean() => complaint(format!("expected boolean, got {}", printed())),
        Scalar::Any if value.is_array() || value.is_object() => complaint(format!("expected any scalar, got {}", printed())),
        _ => Complaints::new(),
    }
}

fn check_fields(value: &Value, node: Node<'_>) -> Complaints {
    let mut complaints = Complaints::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        let element = Element::field(name);
        let Some((child, _)) = node.declared(name) else {
            complaints.extend(below(&element, complaint("field not declared in schema".to_owned())));
            // Upstream stops at an object's first unknown field.
            return complaints;
        };
        complaints.extend(below(&element, check(value, child)));
        if complaints.len() >= COMPLAINTS_MAX {
            break;
        }
    }
    complaints
}

fn check_items(items: &[Value], list: &Value, node: Node<'_>) -> Complaints {
    let mut complaints = Complaints::new();
    let shape = node.shape(list);
    let mut seen = BTreeSet::new();
    for (position, item) in items.iter().enumerate() {
        let element = match element_of(&shape, item) {
            None => Element::Index(position as i64),
            Some(Ok(element)) => element,
            Some(Err(text)) => {
                complaints.extend(complaint(format!("element {position}: {text}")));
                return complaints;
            }
        };
        if !matches!(element, Element::Index(_)) && !seen.insert(element.clone()) {
            complaints.extend(complaint(format!("duplicate entries for key {element}")));
        }
        complaints.extend(below(&element, check(item, node.items())));
        if complaints.len() >= COMPLAINTS_MAX {
            break;
        }
    }
    complaints
}

/// The path element of a list item; `None` in atomic lists.
pub(super) fn element_of<'v, 's: 'v>(shape: &Shape<'s>, item: &'v Value) -> Option<Result<Element<'v>, String>> {
    match shape {
        Shape::Leaf | Shape::Map => None,
        Shape::Keyed(keys, items) => Some(items.key_of(keys, item)),
        Shape::Set => Some(match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
            scalar => Ok(Element::Value(std::borrow::Cow::Borrowed(scalar))),
        }),
    }
}

/// The path elements of all items; `None` if the list is atomic or an item has none, so that it must be taken as a whole.
pub(super) fn elements_of<'v, 's: 'v>(shape: &Shape<'s>, items: &'v [Value]) -> Option<Vec<Element<'v>>> {
    items.iter().map(|item| element_of(shape, item)?.ok()).collect()
}
