//! Named formats: `format.dns1123Label().validate(x)`.

use super::{Called, Opaque};
use crate::value::Value;

#[derive(Debug)]
pub struct Format {
    pub name: &'static str,
    /// For cost accounting (upstream: `Format.MaxRegexSize`).
    pub regex_size: u64,
    /// The complaints; none where the text has the form.
    pub check: fn(&str) -> Vec<String>,
}

fn prefix(check: fn(&str) -> Vec<String>, text: &str) -> Vec<String> {
    // The dash at the end is masked: a suffix will follow it.
    match text.strip_suffix('-') {
        Some(stem) => check(&format!("{stem}a")),
        None => check(text),
    }
}

fn complain(valid: bool, sentence: &str) -> Vec<String> {
    if valid { Vec::new() } else { vec![sentence.to_owned()] }
}

static ALL: [Format; 13] = [
    Format { name: "dns1123Label", regex_size: 30, check: meta::names::dns1123_label },
    Format { name: "dns1123Subdomain", regex_size: 60, check: meta::names::dns1123_subdomain },
    Format { name: "dns1035Label", regex_size: 30, check: meta::names::dns1035_label },
    Format { name: "qualifiedName", regex_size: 60, check: meta::names::qualified_name },
    Format { name: "dns1123LabelPrefix", regex_size: 30, check: |text| prefix(meta::names::dns1123_label, text) },
    Format { name: "dns1123SubdomainPrefix", regex_size: 60, check: |text| prefix(meta::names::dns1123_subdomain, text) },
    Format { name: "dns1035LabelPrefix", regex_size: 30, check: |text| prefix(meta::names::dns1035_label, text) },
    Format { name: "labelValue", regex_size: 40, check: meta::names::label_value },
    Format {
        name: "uri",
        regex_size: 128,
        check: |text| complain(matches!(super::url::call("isURL", &[Value::string(text)]), Some(Ok(Value::Bool(true)))), "invalid URI"),
    },
    Format { name: "uuid", regex_size: 128, check: |text| complain(is_uuid(text), "does not match the UUID format") },
    Format { name: "byte", regex_size: 128, check: |text| complain(is_base64(text), "invalid base64") },
    Format {
        name: "date",
        regex_size: 128,
        check: |text| complain(text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10, "invalid date"),
    },
    Format { name: "datetime", regex_size: 128, check: |text| complain(super::time::timestamp(text).is_ok(), "invalid datetime") },
];

pub fn is_uuid(text: &str) -> bool {
    // The dashes may be left out, as strfmt's pattern has it.
    let parts = [8, 4, 4, 4, 12];
    let bytes = text.as_bytes();
    let mut at = 0;
    for (number, length) in parts.into_iter().enumerate() {
        if number > 0 && bytes.get(at) == Some(&b'-') {
            at += 1;
        }
        if !bytes.get(at..at + length).is_some_and(|part| part.iter().all(u8::is_ascii_hexdigit)) {
            return false;
        }
        at += length;
    }
    at == bytes.len()
}

pub fn is_base64(text: &str) -> bool {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Called<'a>> {
    let find = |name: &str| ALL.iter().find(|format| format.name == name);
    Some(match (function, args) {
        ("format.named", [Value::String(name)]) => {
            Ok(find(name).map_or(Value::NONE, |format| Value::some(Value::Opaque(Opaque::Format(format)))))
        }
        ("validate", [Value::Opaque(Opaque::Format(format)), Value::String(text)]) => {
            let complaints = (format.check)(text);
            Ok(match complaints.is_empty() {
                true => Value::NONE,
                false => Value::some(Value::list(complaints.into_iter().map(Value::string).collect())),
            })
        }
        (_, []) => {
            let format = find(function.strip_prefix("format.")?)?;
            Ok(Value::Opaque(Opaque::Format(format)))
        }
        _ => return None,
    })
}
