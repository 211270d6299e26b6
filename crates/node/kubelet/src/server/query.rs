//! The query of a request, decoded.

/// Pairs in their order; a key may come again.
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: Option<&str>) -> Self {
        let pairs = text.unwrap_or("").split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == key).map(|(_, value)| value.as_str())
    }
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(other, _)| other == key).map(|(_, value)| value.as_str())
    }
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
    pub fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("true" | "1" | "True" | "TRUE"))
    }
    /// `Err` names the key whose value is not a number.
    pub fn number(&self, key: &str) -> Result<Option<u64>, String> {
        let parse = |text: &str| text.parse().map_err(|_| format!("invalid value {text:?} for {key}"));
        self.get(key).filter(|text| !text.is_empty()).map(parse).transpose()
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let ahead = rest.clone();
                let digits: Vec<u8> = ahead.take(2).collect();
                let code = std::str::from_utf8(&digits).ok().filter(|digits| digits.len() == 2);
                match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                    Some(code) => {
                        bytes.push(code);
                        rest.nth(1);
                    }
                    None => bytes.push(b'%'),
                }
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_and_encoded_values_come_out_as_they_were_meant() {
        let query = Query::parse(Some("command=sh&command=-c&command=echo%20a%26b+c&tty=1&bad=%zz&tailLines=x"));
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo a&b c"]);
        assert!(query.flag("tty") && !query.flag("absent"));
        assert_eq!(query.get("bad"), Some("%zz"));
        assert_eq!(query.number("tailLines").unwrap_err(), "invalid value \"x\" for tailLines");
    }
}
