//! JSON patch (RFC 6902) with the deviations that upstream's library has and clients rely on.
//!
//! Own code rather than a crate: `replace` of a missing object field adds it, `test` of a missing field against `null`
//! passes, array indices may be negative, the sum of copied bytes is limited, and errors are worded by path.

use serde_json::Value;

use super::Error;

/// Operations that one patch may contain.
pub const OPERATIONS_MAX: usize = 10_000;
/// Bytes of JSON that the `copy` operations of one patch may add together.
pub const COPY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Levels of nesting that the patched object may have: what the JSON reader accepts.
const DEPTH_MAX: usize = 127;

/// Applies the JSON patch document `patch` to `target`.
pub fn json_patch(target: &mut Value, patch: &[u8]) -> Result<(), Error> {
    let operations = operations(patch).map_err(|why| Error::Malformed(format!("error decoding patch: {why}")))?;
    if operations.len() > OPERATIONS_MAX {
        return Err(Error::TooManyOperations(operations.len()));
    }
    let mut session = Session { depth_bound: depth(target), document: target.clone(), copied_bytes: 0 };
    for operation in operations {
        session.run(operation).map_err(Error::DoesNotApply)?;
        session.check_depth().map_err(Error::DoesNotApply)?;
    }
    *target = session.document;
    Ok(())
}

/// The document as a list of objects, or what Go's decoder says about it.
fn operations(patch: &[u8]) -> Result<Vec<serde_json::Map<String, Value>>, String> {
    let wrong = |value: &Value, wanted: &str| {
        format!("json: cannot unmarshal {} into Go value of type jsonpatch.{wanted}", super::json_type(value))
    };
    let document = crate::decode::parse_json(patch).map_err(|error| error.to_string())?.value;
    let items = match document {
        Value::Array(items) => items,
        other => return Err(wrong(&other, "Patch")),
    };
    let object = |item| match item {
        Value::Object(members) => Ok(members),
        other => Err(wrong(&other, "Operation")),
    };
    items.into_iter().map(object).collect()
}

struct Session {
    document: Value,
    copied_bytes: usize,
    /// `depth(document) <= depth_bound`: moves can nest without bound, and every walk over the result recurses.
    depth_bound: usize,
}

impl Session {
    fn run(&mut self, mut operation: serde_json::Map<String, Value>) -> Result<(), String> {
        let value = operation.remove("value");
        let kind = operation.get("op").and_then(Value::as_str).unwrap_or("unknown");
        let path = operation.get("path").and_then(Value::as_str);
        let from = operation.get("from").and_then(Value::as_str);
        let path = path.ok_or_else(|| format!("{kind} operation failed to decode path: missing value"));
        let from = from.ok_or_else(|| format!("{kind} operation failed to decode from: missing value"));
        match kind {
            "add" => self.add(path?, value.unwrap_or(Value::Null)),
            "remove" => self.remove(path?),
            "replace" => self.replace(path?, value.unwrap_or(Value::Null)),
            "move" => self.relocate(from?, path?),
            "copy" => self.copy(from?, path?),
            "test" => self.test(path?, value.unwrap_or(Value::Null)),
            other => Err(format!("Unexpected kind: {other}")),
        }
    }

    fn add(&mut self, path: &str, value: Value) -> Result<(), String> {
        self.raise_depth(path, depth(&value));
        let missing = || format!("add operation does not apply: doc is missing path: \"{path}\": missing value");
        let (container, key) = locate_mut(&mut self.document, path).ok_or_else(missing)?;
        insert(container, &key, value).map_err(|why| format!("error in add for path: '{path}': {why}"))
    }

    fn remove(&mut self, path: &str) -> Result<(), String> {
        let missing = || format!("remove operation does not apply: doc is missing path: \"{path}\": missing value");
        let (container, key) = locate_mut(&mut self.document, path).ok_or_else(missing)?;
        take(container, &key).map(drop).map_err(|why| format!("error in remove for path: '{path}': {why}"))
    }

    fn replace(&mut self, path: &str, value: Value) -> Result<(), String> {
        self.raise_depth(path, depth(&value));
        if path.is_empty() {
            if !value.is_object() && !value.is_array() {
                return Err("replace operation value must be object or array".to_owned());
            }
            self.document = value;
            return Ok(());
        }
        let missing = || format!("replace operation does not apply: doc is missing path: {path}: missing value");
        let (container, key) = locate_mut(&mut self.document, path).ok_or_else(missing)?;
        match container {
            Value::Object(fields) => {
                fields.insert(key, value);
            }
            Value::Array(items) => {
                let position = index(&key, items.len())
                    .map_err(|_| format!("replace operation does not apply: doc is missing key: {path}: missing value"))?;
                if let Some(slot) = items.get_mut(position) {
                    *slot = value;
                }
            }
            _ => return Err(missing()),
        }
        Ok(())
    }

    fn relocate(&mut self, from: &str, path: &str) -> Result<(), String> {
        let missing = || format!("move operation does not apply: doc is missing from path: {from}: missing value");
        let (container, key) = locate_mut(&mut self.document, from).ok_or_else(missing)?;
        let value = take(container, &key).map_err(|why| format!("error in move for path: '{key}': {why}"))?;
        self.raise_depth(path, self.depth_bound);
        let missing = || format!("move operation does not apply: doc is missing destination path: {path}: missing value");
        let (container, key) = locate_mut(&mut self.document, path).ok_or_else(missing)?;
        insert(container, &key, value).map_err(|why| format!("error in move for path: '{path}': {why}"))
    }

    fn copy(&mut self, from: &str, path: &str) -> Result<(), String> {
        let missing = || format!("copy operation does not apply: doc is missing from path: {from}: missing value");
        let (container, key) = locate(&self.document, from).ok_or_else(missing)?;
        let value = get(container, &key).map_err(|why| format!("error in copy for from: '{from}': {why}"))?;
        let value = value.cloned().unwrap_or(Value::Null);
        self.copied_bytes += serde_json::to_vec(&value).map_or(0, |bytes| bytes.len());
        if self.copied_bytes > COPY_BYTES_MAX {
            return Err(format!(
                "Unable to complete the copy, the accumulated size increase of copy is {}, exceeding the limit {COPY_BYTES_MAX}",
                self.copied_bytes
            ));
        }
        self.raise_depth(path, self.depth_bound);
        let missing = || format!("copy operation does not apply: doc is missing destination path: {path}: missing value");
        let (container, key) = locate_mut(&mut self.document, path).ok_or_else(missing)?;
        insert(container, &key, value).map_err(|why| format!("error while adding value during copy: {why}"))
    }

    fn test(&mut self, path: &str, expected: Value) -> Result<(), String> {
        let failed = || Err(format!("testing value {path} failed: test failed"));
        if path.is_empty() {
            return if self.document == expected { Ok(()) } else { failed() };
        }
        let missing = || format!("test operation does not apply: is missing path: {path}: missing value");
        let (container, key) = locate(&self.document, path).ok_or_else(missing)?;
        let found = get(container, &key).map_err(|why| format!("error in test for path: '{path}': {why}"))?;
        if *found.unwrap_or(&Value::Null) == expected { Ok(()) } else { failed() }
    }

    fn raise_depth(&mut self, path: &str, value_depth: usize) {
        let place = path.bytes().filter(|&byte| byte == b'/').count();
        self.depth_bound = self.depth_bound.max(place.saturating_add(value_depth));
    }

    fn check_depth(&mut self) -> Result<(), String> {
        if self.depth_bound <= 2 * DEPTH_MAX {
            return Ok(());
        }
        self.depth_bound = depth(&self.document);
        if self.depth_bound > DEPTH_MAX {
            return Err(format!("the patched object is nested more than {DEPTH_MAX} levels deep"));
        }
        Ok(())
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn unescape(token: &str) -> String {
    // One pass: `~01` is `~1`, not `/`.
    let mut text = String::with_capacity(token.len());
    let mut rest = token;
    while let Some(position) = rest.find('~') {
        text.push_str(&rest[..position]);
        let (replacement, skip) = match rest.as_bytes().get(position + 1) {
            Some(b'0') => ('~', 2),
            Some(b'1') => ('/', 2),
            _ => ('~', 1),
        };
        text.push(replacement);
        rest = &rest[position + skip..];
    }
    text.push_str(rest);
    text
}

/// The tokens after the first slash; `None` where the path has no slash at all.
fn tokens(path: &str) -> Option<(Vec<String>, String)> {
    let (_, path) = path.split_once('/')?;
    let mut tokens: Vec<String> = path.split('/').map(unescape).collect();
    let last = tokens.pop()?;
    Some((tokens, last))
}

/// The container that the path's last token stands in.
fn locate<'a>(document: &'a Value, path: &str) -> Option<(&'a Value, String)> {
    let (parents, last) = tokens(path)?;
    let mut container = document;
    for token in &parents {
        container = get(container, token).ok()??;
    }
    (container.is_object() || container.is_array()).then_some((container, last))
}

fn locate_mut<'a>(document: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (parents, last) = tokens(path)?;
    let mut container = document;
    for token in &parents {
        container = match container {
            Value::Object(fields) => fields.get_mut(token)?,
            Value::Array(items) => {
                let position = index(token, items.len()).ok()?;
                items.get_mut(position)?
            }
            _ => return None,
        };
    }
    (container.is_object() || container.is_array()).then_some((container, last))
}

/// An existing position in an array of `length` items.
fn index(token: &str, length: usize) -> Result<usize, String> {
    let number: i64 = token.parse().map_err(|_| format!("value was not a proper array index: '{token}'"))?;
    let invalid = || format!("Unable to access invalid index: {number}: invalid index referenced");
    let position = if number < 0 { number + length as i64 } else { number };
    usize::try_from(position).ok().filter(|&position| position < length).ok_or_else(invalid)
}

/// A missing field of an object is `None`, a missing item of an array an error.
fn get<'a>(container: &'a Value, key: &str) -> Result<Option<&'a Value>, String> {
    match container {
        Value::Object(fields) => Ok(fields.get(key)),
        Value::Array(items) => index(key, items.len()).map(|position| items.get(position)),
        _ => Err("missing value".to_owned()),
    }
}

fn insert(container: &mut Value, key: &str, value: Value) -> Result<(), String> {
    match container {
        Value::Object(fields) => {
            fields.insert(key.to_owned(), value);
        }
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            let position = index(key, items.len() + 1)?;
            items.insert(position, value);
        }
        _ => return Err("missing value".to_owned()),
    }
    Ok(())
}

fn take(container: &mut Value, key: &str) -> Result<Value, String> {
    match container {
        Value::Object(fields) => fields.remove(key).ok_or_else(|| format!("Unable to remove nonexistent key: {key}: missing value")),
        Value::Array(items) => Ok(items.remove(index(key, items.len())?)),
        _ => Err("missing value".to_owned()),
    }
}
