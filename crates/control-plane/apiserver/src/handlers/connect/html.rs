//! Links in HTML that comes through a proxy: those to the backend's own root lead below the proxy's path.
//!
//! Only the values of attributes change; every other byte stays. Source: apimachinery `pkg/util/proxy/transport.go`.

/// The attributes that hold URLs, by element.
const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text, whatever it looks like.
const RAW: [&str; 4] = ["script", "style", "textarea", "title"];

/// Rewrites a page. `to` gives another URL for one, or none where it stays.
pub fn rewrite(page: &str, to: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(page.len() + 256);
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let length = if tag.starts_with("<!--") {
            tag.find("-->").map_or(tag.len(), |end| end + 3)
        } else if tag[1..].starts_with(|first: char| first.is_ascii_alphabetic()) {
            element(tag, &to, &mut out)
        } else {
            out.push('<');
            rest = &tag[1..];
            continue;
        };
        if tag.starts_with("<!--") {
            out.push_str(&tag[..length]);
        }
        rest = &tag[length..];
    }
    out.push_str(rest);
    out
}

/// Writes the start tag that `text` begins with, and what is raw text after it; returns how many bytes that was.
fn element(text: &str, to: &impl Fn(&str) -> Option<String>, out: &mut String) -> usize {
    let name_end = text[1..].find(|c: char| c.is_whitespace() || c == '>' || c == '/').map_or(text.len(), |end| end + 1);
    let name = text[1..name_end].to_ascii_lowercase();
    let links = ATTRIBUTES.iter().find(|(element, _)| *element == name).map_or(&[][..], |(_, links)| links);
    let mut written = 0;
    let mut at = name_end;
    while let Some(attribute) = attribute(text, at) {
        let value = &text[attribute.value.0..attribute.value.1];
        let key = text[attribute.key.0..attribute.key.1].to_ascii_lowercase();
        if links.contains(&key.as_str())
            && let Some(new) = to(&value.replace("&amp;", "&"))
        {
            out.push_str(&text[written..attribute.value.0]);
            out.push_str(&new.replace('&', "&amp;").replace('"', "&#34;").replace('\'', "&#39;"));
            written = attribute.value.1;
        }
        at = attribute.end;
    }
    let mut end = text[at..].find('>').map_or(text.len(), |end| at + end + 1);
    if RAW.contains(&name.as_str()) {
        let close = format!("</{name}");
        end = text[end..].to_ascii_lowercase().find(&close).map_or(text.len(), |found| end + found);
    }
    out.push_str(&text[written..end]);
    end
}

/// Where the key and the value of an attribute are, and where what follows begins.
struct Attribute {
    key: (usize, usize),
    value: (usize, usize),
    end: usize,
}

/// The next attribute of a tag; none before its end. All places are boundaries of characters: only ASCII bytes part them.
fn attribute(text: &str, from: usize) -> Option<Attribute> {
    let bytes = text.as_bytes();
    let skip = |mut at: usize, wanted: &dyn Fn(u8) -> bool| {
        while bytes.get(at).is_some_and(|byte| wanted(*byte)) {
            at += 1;
        }
        at
    };
    let space = |byte: u8| byte.is_ascii_whitespace();
    let start = skip(from, &|byte| space(byte) || byte == b'/');
    let key_end = skip(start, &|byte| !space(byte) && !matches!(byte, b'=' | b'>' | b'/'));
    if key_end == start {
        // The end of the tag, or an `=` that belongs to nothing.
        return (bytes.get(start) == Some(&b'=')).then(|| Attribute { key: (start, start), value: (start, start), end: start + 1 });
    }
    let equals = skip(key_end, &space);
    if bytes.get(equals) != Some(&b'=') {
        return Some(Attribute { key: (start, key_end), value: (key_end, key_end), end: key_end });
    }
    let begin = skip(equals + 1, &space);
    match bytes.get(begin) {
        Some(quote @ (b'"' | b'\'')) => {
            let end = skip(begin + 1, &|byte| byte != *quote);
            Some(Attribute { key: (start, key_end), value: (begin + 1, end), end: (end + 1).min(bytes.len()) })
        }
        _ => {
            let end = skip(begin, &|byte| !space(byte) && byte != b'>');
            Some(Attribute { key: (start, key_end), value: (begin, end), end })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_the_root_change_and_nothing_else() {
        let to = |url: &str| url.starts_with('/').then(|| format!("/own{url}"));
        let cases = [
            (r#"<a href="/rewriteme">test</a>"#, r#"<a href="/own/rewriteme">test</a>"#),
            ("<A class=x HREF='/a?b=1&amp;c=2'>é</A>", "<A class=x HREF='/own/a?b=1&amp;c=2'>é</A>"),
            ("<img src=/a.png alt=/b><br/>", "<img src=/own/a.png alt=/b><br/>"),
            ("<a href=relative><p href=/x>", "<a href=relative><p href=/x>"),
            ("<!-- <a href=\"/x\"> --><link href = \"/x\"/>", "<!-- <a href=\"/x\"> --><link href = \"/own/x\"/>"),
            ("<script src=\"/s.js\">'<a href=\"/x\">'</script>", "<script src=\"/own/s.js\">'<a href=\"/x\">'</script>"),
            ("1 < 2 <a", "1 < 2 <a"),
            ("<a href=\"/x", "<a href=\"/own/x"),
            ("<a = href=/x>", "<a = href=/own/x>"),
            ("", ""),
        ];
        for (page, wanted) in cases {
            assert_eq!(rewrite(page, to), wanted, "{page}");
        }
    }
}
