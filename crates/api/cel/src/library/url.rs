//! URLs: an absolute URI or an absolute path, as Go's `url.ParseRequestURI` takes them.

use std::sync::Arc;

use super::{Called, Opaque};
use crate::error::EvalError;
use crate::value::Value;

#[derive(Debug)]
pub struct Url {
    pub text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Url {
    fn parse(text: &str) -> Result<Self, EvalError> {
        let wrong = |why: &str| EvalError::failed(format!("URL parse error during conversion from string: parse {text:?}: {why}"));
        if text.is_empty() {
            return Err(wrong("empty url"));
        }
        if text.chars().any(|c| c.is_ascii_control()) {
            return Err(wrong("net/url: invalid control character in URL"));
        }
        let (scheme, rest) = match scheme(text) {
            Some(at) => (text[..at].to_ascii_lowercase(), &text[at + 1..]),
            None if text.starts_with('/') => (String::new(), text),
            None => return Err(wrong("invalid URI for request")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        if !rest.starts_with('/') && scheme.is_empty() {
            return Err(wrong("invalid URI for request"));
        }
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) if !scheme.is_empty() || !text.starts_with("///") => {
                let end = rest.find('/').unwrap_or(rest.len());
                (&rest[..end], &rest[end..])
            }
            _ => ("", rest),
        };
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        if !host_is_valid(host) {
            return Err(wrong("invalid character in host name"));
        }
        if !escapes_are_valid(path) {
            return Err(wrong("invalid URL escape"));
        }
        Ok(Url { text: text.to_owned(), scheme, host: host.to_owned(), path: escaped(path), query: query.to_owned() })
    }

    fn port_at(&self) -> Option<usize> {
        let after = self.host.rfind(']').map_or(0, |at| at + 1);
        self.host[after..].rfind(':').map(|at| after + at)
    }
    fn hostname(&self) -> &str {
        let host = &self.host[..self.port_at().unwrap_or(self.host.len())];
        host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
    }
    fn port(&self) -> &str {
        self.port_at().map_or("", |at| &self.host[at + 1..])
    }
}

fn scheme(text: &str) -> Option<usize> {
    let at = text.find(':')?;
    let valid = text[..at]
        .chars()
        .enumerate()
        .all(|(number, c)| c.is_ascii_alphabetic() || (number > 0 && (c.is_ascii_digit() || matches!(c, '+' | '-' | '.'))));
    (at > 0 && valid).then_some(at)
}

fn host_is_valid(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let Some((inner, port)) = rest.split_once(']') else { return false };
        return inner.parse::<std::net::Ipv6Addr>().is_ok() && port_is_valid(port);
    }
    let (name, port) = host.rfind(':').map_or((host, ""), |at| host.split_at(at));
    !name.contains([' ', '<', '>', '"', ':', '^', '`', '{', '|', '}', '\\']) && port_is_valid(port)
}

fn port_is_valid(port: &str) -> bool {
    port.is_empty() || port.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn escapes_are_valid(path: &str) -> bool {
    path.split('%').skip(1).all(|rest| rest.as_bytes().get(..2).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit)))
}

/// What Go's `EscapedPath` would add.
fn escaped(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(byte as char),
            b'-' | b'_' | b'.' | b'~' | b'$' | b'&' | b'+' | b',' | b'/' | b':' | b';' | b'=' | b'@' | b'%' | b'!' | b'\'' | b'('
            | b')' | b'*' | b'[' | b']' => out.push(byte as char),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while let Some(&byte) = bytes.get(at) {
        let hex =
            bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok()).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match (byte, hex) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Called<'a>> {
    Some(match (function, args) {
        ("url", [Value::String(text)]) => Url::parse(text).map(|url| Value::Opaque(Opaque::Url(Arc::new(url)))),
        ("isURL", [Value::String(text)]) => Ok(Value::Bool(Url::parse(text).is_ok())),
        (_, [Value::Opaque(Opaque::Url(url))]) => match function {
            "getScheme" => Ok(Value::string(url.scheme.as_str())),
            "getHost" => Ok(Value::string(url.host.as_str())),
            "getHostname" => Ok(Value::string(url.hostname())),
            "getPort" => Ok(Value::string(url.port())),
            "getEscapedPath" => Ok(Value::string(url.path.as_str())),
            "getQuery" => Ok(query(&url.query)),
            _ => return None,
        },
        _ => return None,
    })
}

fn query<'a>(text: &str) -> Value<'a> {
    let mut entries: Vec<(String, Vec<Value<'a>>)> = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (unescape(key), Value::string(unescape(value)));
        match entries.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push(value),
            None => entries.push((key, vec![value])),
        }
    }
    Value::map(entries.into_iter().map(|(key, values)| (Value::string(key), Value::list(values))).collect())
}
