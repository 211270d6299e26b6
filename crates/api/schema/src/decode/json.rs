//! A JSON reader that keeps what serde_json forgets: repeated keys, and Go's wording of syntax errors.

use serde_json::{Map, Number, Value};

use super::{Error, Parsed};

/// How deep values may nest. Go allows 10,000; every walk over a value here is recursive, and no real object comes near.
const DEPTH_MAX: usize = 400;

/// Reads one JSON document. Repeated keys are reported with their path; the last one wins, as in Go.
pub fn parse_json(bytes: &[u8]) -> Result<Parsed, Error> {
    let mut reader = Reader { bytes, at: 0, depth: 0, duplicates: Vec::new(), keys: None };
    let value = reader.value()?;
    match reader.next_token() {
        None if reader.duplicates.is_empty() => Ok(value.into()),
        None => Ok(Parsed { value, duplicates: reader.duplicates, keys: keys(bytes) }),
        Some(byte) => Err(invalid(byte, "after top-level value")),
    }
}

/// The paths of all keys in the order of the document; read only where there is something to complain about.
fn keys(bytes: &[u8]) -> Vec<String> {
    let mut reader = Reader { bytes, at: 0, depth: 0, duplicates: Vec::new(), keys: Some(Vec::new()) };
    let _ = reader.value();
    reader.keys.unwrap_or_default()
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    duplicates: Vec<String>,
    /// Every key's path, where wanted; as with duplicates, its front comes on the way out.
    keys: Option<Vec<String>>,
}

fn syntax(message: impl Into<String>) -> Error {
    Error::Syntax(message.into())
}

fn end() -> Error {
    syntax("unexpected end of JSON input")
}

/// Go's quoting of the byte it did not expect.
fn invalid(byte: u8, context: &str) -> Error {
    let shown = match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        0..0x20 | 0x7f => format!("'\\x{byte:02x}'"),
        _ => format!("'{}'", char::from(byte)),
    };
    syntax(format!("invalid character {shown} {context}"))
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Skips white space and shows the next byte.
    fn next_token(&mut self) -> Option<u8> {
        while let Some(byte) = self.peek() {
            if !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    fn value(&mut self) -> Result<Value, Error> {
        match self.next_token().ok_or_else(end)? {
            b'{' => self.nested(Self::object),
            b'[' => self.nested(Self::array),
            b'"' => Ok(Value::String(self.string()?)),
            b't' => self.literal("true", Value::Bool(true)),
            b'f' => self.literal("false", Value::Bool(false)),
            b'n' => self.literal("null", Value::Null),
            b'-' | b'0'..=b'9' => self.number(),
            byte => Err(invalid(byte, "looking for beginning of value")),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Value, Error>) -> Result<Value, Error> {
        self.at += 1;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(syntax("exceeded max depth"));
        }
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn object(&mut self) -> Result<Value, Error> {
        let mut map = Map::new();
        if self.next_token().ok_or_else(end)? == b'}' {
            self.at += 1;
            return Ok(Value::Object(map));
        }
        loop {
            match self.next_token().ok_or_else(end)? {
                b'"' => {}
                byte => return Err(invalid(byte, "looking for beginning of object key string")),
            }
            let key = self.string()?;
            match self.next_token().ok_or_else(end)? {
                b':' => self.at += 1,
                byte => return Err(invalid(byte, "after object key")),
            }
            self.entry(&mut map, key)?;
            match self.next_token().ok_or_else(end)? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(Value::Object(map));
                }
                byte => return Err(invalid(byte, "after object key:value pair")),
            }
        }
    }

    /// Reads the value of `key`. Paths of duplicates are made on the way out, so that they cost nothing where there are none.
    fn entry(&mut self, map: &mut Map<String, Value>, key: String) -> Result<(), Error> {
        let (before, keys_before) = (self.duplicates.len(), self.keys.as_ref().map_or(0, Vec::len));
        if let Some(keys) = &mut self.keys {
            keys.push(key.clone());
        }
        let value = self.value()?;
        self.lead(before, keys_before + 1, &key);
        if let Some(known) = map.get_mut(&key) {
            *known = value;
            self.duplicates.push(key);
        } else {
            map.insert(key, value);
        }
        Ok(())
    }

    /// Puts `front` before the paths that were found inside it.
    fn lead(&mut self, duplicates_before: usize, keys_before: usize, front: &str) {
        let keys = self.keys.iter_mut().flatten().skip(keys_before);
        for path in self.duplicates.iter_mut().skip(duplicates_before).chain(keys) {
            let joint = if path.starts_with('[') { "" } else { "." };
            *path = format!("{front}{joint}{path}");
        }
    }

    fn array(&mut self) -> Result<Value, Error> {
        let mut items = Vec::new();
        if self.next_token().ok_or_else(end)? == b']' {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            let (before, keys_before) = (self.duplicates.len(), self.keys.as_ref().map_or(0, Vec::len));
            items.push(self.value()?);
            self.lead(before, keys_before, &format!("[{}]", items.len() - 1));
            match self.next_token().ok_or_else(end)? {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return Ok(Value::Array(items));
                }
                byte => return Err(invalid(byte, "after array element")),
            }
        }
    }

    fn literal(&mut self, word: &'static str, value: Value) -> Result<Value, Error> {
        for (at, expected) in word.bytes().enumerate() {
            match self.peek() {
                None => return Err(end()),
                Some(byte) if byte == expected => self.at += 1,
                Some(byte) => {
                    let context = format!("in literal {word} (expecting '{}')", char::from(expected));
                    debug_assert!(at > 0, "the first letter chose the word");
                    return Err(invalid(byte, &context));
                }
            }
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<Value, Error> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek().ok_or_else(end)? {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits(),
            byte => return Err(invalid(byte, "in numeric literal")),
        }
        let mut whole = true;
        if self.peek() == Some(b'.') {
            whole = false;
            self.at += 1;
            self.required_digits("after decimal point in numeric literal")?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            whole = false;
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.required_digits("in exponent of numeric literal")?;
        }
        let text = self.bytes.get(start..self.at).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
        number(text, whole)
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn required_digits(&mut self, context: &str) -> Result<(), Error> {
        match self.peek().ok_or_else(end)? {
            b'0'..=b'9' => self.digits(),
            byte => return Err(invalid(byte, context)),
        }
        Ok(())
    }

    /// Reads a string whose opening quote is next. Invalid UTF-8 and lone surrogates become U+FFFD, as in Go.
    fn string(&mut self) -> Result<String, Error> {
        self.at += 1;
        let mut text: Vec<u8> = Vec::new();
        loop {
            let start = self.at;
            while self.peek().is_some_and(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
                self.at += 1;
            }
            text.extend_from_slice(self.bytes.get(start..self.at).unwrap_or_default());
            match self.peek().ok_or_else(end)? {
                b'"' => {
                    self.at += 1;
                    return Ok(utf8(text));
                }
                b'\\' => {
                    self.at += 1;
                    self.escape(&mut text)?;
                }
                byte => return Err(invalid(byte, "in string literal")),
            }
        }
    }

    fn escape(&mut self, text: &mut Vec<u8>) -> Result<(), Error> {
        let byte = self.peek().ok_or_else(end)?;
        self.at += 1;
        let plain = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let decoded = self.unicode()?;
                text.extend_from_slice(decoded.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(invalid(byte, "in string escape code")),
        };
        text.push(plain);
        Ok(())
    }

    fn unicode(&mut self) -> Result<char, Error> {
        let first = self.hex()?;
        if (0xD800..0xDC00).contains(&first) && self.bytes.get(self.at..self.at + 2) == Some(br"\u") {
            let back = self.at;
            self.at += 2;
            let second = self.hex()?;
            if (0xDC00..0xE000).contains(&second) {
                let code = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex(&mut self) -> Result<u32, Error> {
        let mut code = 0;
        for _ in 0..4 {
            let byte = self.peek().ok_or_else(end)?;
            let digit = char::from(byte).to_digit(16).ok_or_else(|| invalid(byte, r"in \u hexadecimal character escape"))?;
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }
}

fn utf8(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|broken| String::from_utf8_lossy(broken.as_bytes()).into_owned())
}

fn number(text: &str, whole: bool) -> Result<Value, Error> {
    if whole {
        if let Ok(number) = text.parse::<i64>() {
            return Ok(Value::Number(number.into()));
        }
        if let Ok(number) = text.parse::<u64>() {
            return Ok(Value::Number(number.into()));
        }
    }
    let float = text.parse::<f64>().ok().and_then(Number::from_f64);
    let too_great = || Error::Type(format!("json: cannot unmarshal number {text} into Go value of type float64"));
    float.map(Value::Number).ok_or_else(too_great)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_read_as_serde_json_reads_them() {
        let texts = [
            r#"{"a": [1, -2, 3.5, 1e3, "x\n\u00e9\ud83d\ude00\/"], "b": {"c": null, "d": true, "e": false}, "": {}}"#,
            "[]",
            " \"text\" ",
            "0",
            "18446744073709551615",
            "-9223372036854775808",
        ];
        for text in texts {
            let expected: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse_json(text.as_bytes()).unwrap().value, expected, "{text}");
        }
    }

    #[test]
    fn syntax_errors_are_worded_as_in_go() {
        let cases: [(&str, &str); 14] = [
            ("", "unexpected end of JSON input"),
            ("{", "unexpected end of JSON input"),
            ("{\"a\"", "unexpected end of JSON input"),
            ("kind: Pod", "invalid character 'k' looking for beginning of value"),
            ("{a: 1}", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\": 1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("trve", "invalid character 'v' in literal true (expecting 'u')"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("\"a\nb\"", r"invalid character '\n' in string literal"),
            (r#""\q""#, "invalid character 'q' in string escape code"),
        ];
        for (text, message) in cases {
            assert_eq!(parse_json(text.as_bytes()).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn repeated_keys_are_reported_with_their_path_and_the_last_one_wins() {
        let text = r#"{"spec": {"replicas": 1, "list": [{}, {"a": 1, "a": 2}], "replicas": 3}, "spec2": 1, "spec2": 1}"#;
        let parsed = parse_json(text.as_bytes()).unwrap();
        assert_eq!(parsed.duplicates, ["spec.list[1].a", "spec.replicas", "spec2"]);
        assert_eq!(parsed.value["spec"]["replicas"], 3);
    }

    #[test]
    fn hostile_bytes_are_refused_without_harm() {
        assert_eq!(parse_json("[".repeat(100_000).as_bytes()).unwrap_err().to_string(), "exceeded max depth");
        assert_eq!(parse_json(b"\"\xff\xfe\"").unwrap().value, Value::String("\u{fffd}\u{fffd}".into()));
        assert_eq!(parse_json(br#""\ud800x""#).unwrap().value, Value::String("\u{fffd}x".into()));
        assert!(parse_json(b"1e999").is_err());
    }

    proptest::proptest! {
        #[test]
        fn what_serde_json_reads_is_read_alike(text in r#"([\[\]{}:, ]|-?[0-9]{1,3}(\.[0-9])?(e[0-9])?|"[a-b]?(\\n|\\u00e9)?"|true|false|null){1,12}"#) {
            match (serde_json::from_str::<Value>(&text), parse_json(text.as_bytes())) {
                (Ok(expected), Ok(parsed)) => proptest::prop_assert_eq!(parsed.value, expected),
                (Err(_), Err(_)) => {}
                (theirs, ours) => proptest::prop_assert!(false, "{:?} {:?}", theirs, ours),
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = parse_json(&bytes);
            let _ = crate::decode::parse_yaml(&bytes);
        }
    }
}
