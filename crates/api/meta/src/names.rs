//! Which names, label keys and values, ports and the like the API allows, and why not, in upstream's sentences.
//!
//! Every check returns its complaints; an empty list means valid. Source: apimachinery `pkg/util/validation` and
//! `pkg/api/validate/content` (1.37). The regular expressions appear in the sentences only: the checks are byte loops.

use std::net::IpAddr;

const LABEL_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FORMAT: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1035_FORMAT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FORMAT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

pub const DNS1123_LABEL_LENGTH_MAX: usize = 63;
pub const DNS1123_SUBDOMAIN_LENGTH_MAX: usize = 253;
pub const LABEL_VALUE_LENGTH_MAX: usize = 63;
/// The keys and values of all annotations together, in bytes.
pub const ANNOTATIONS_SIZE_MAX: usize = 256 * 1024;

fn characters_max(length: usize) -> String {
    format!("must be no more than {length} characters")
}

fn bytes_max(length: usize) -> String {
    format!("must be no more than {length} bytes")
}

/// The sentence of a text that does not have its form: what is expected, examples, the regular expression.
pub fn regex_error(sentence: &str, format: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{sentence} (regex used for validation is '{format}')");
    }
    let quoted: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{sentence} (e.g. {}regex used for validation is '{format}')", quoted.join("or "))
}

/// `first` and `last` decide the ends, `inner` everything between.
fn has_form(text: &str, first: fn(u8) -> bool, inner: fn(u8) -> bool, last: fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        [only] => first(*only) && last(*only),
        [start, middle @ .., end] => first(*start) && last(*end) && middle.iter().all(|byte| inner(*byte)),
    }
}

fn lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn lower_alphanumeric_or_dash(byte: u8) -> bool {
    lower_alphanumeric(byte) || byte == b'-'
}

fn alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

fn label_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

fn is_label_form(text: &str) -> bool {
    has_form(text, lower_alphanumeric, lower_alphanumeric_or_dash, lower_alphanumeric)
}

fn is_subdomain_form(text: &str) -> bool {
    text.split('.').all(is_label_form)
}

/// An RFC 1123 label: a namespace's name, a container's, a volume's.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if text.len() > DNS1123_LABEL_LENGTH_MAX {
        complaints.push(characters_max(DNS1123_LABEL_LENGTH_MAX));
    }
    if !is_label_form(text) {
        if is_subdomain_form(text) {
            complaints.push("must not contain dots".to_owned());
        } else {
            let sentence = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
                            and must start and end with an alphanumeric character";
            complaints.push(regex_error(sentence, LABEL_FORMAT, &["my-name", "123-abc"]));
        }
    }
    complaints
}

/// An RFC 1123 subdomain: the name of most objects.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if text.len() > DNS1123_SUBDOMAIN_LENGTH_MAX {
        complaints.push(characters_max(DNS1123_SUBDOMAIN_LENGTH_MAX));
    }
    if !is_subdomain_form(text) {
        let sentence = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                        and must start and end with an alphanumeric character";
        complaints.push(regex_error(sentence, SUBDOMAIN_FORMAT, &["example.com"]));
    }
    complaints
}

/// A DNS-1035 label: a Service's name.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if text.len() > DNS1123_LABEL_LENGTH_MAX {
        complaints.push(characters_max(DNS1123_LABEL_LENGTH_MAX));
    }
    if !has_form(text, |byte| byte.is_ascii_lowercase(), lower_alphanumeric_or_dash, lower_alphanumeric) {
        let sentence = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
                        character, and end with an alphanumeric character";
        complaints.push(regex_error(sentence, DNS1035_FORMAT, &["my-name", "abc-123"]));
    }
    complaints
}

/// What stands as one segment of a path: the names of RBAC objects.
pub fn path_segment(text: &str) -> Vec<String> {
    if matches!(text, "." | "..") {
        return vec![format!("may not be '{text}'")];
    }
    ["/", "%"].iter().filter(|part| text.contains(**part)).map(|part| format!("may not contain '{part}'")).collect()
}

/// A label key or another qualified name: `name` or `prefix.example.com/name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let sentence = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let examples = &["MyName", "my.name", "123-abc"];
    let mut complaints = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                complaints.push("prefix part must be non-empty".to_owned());
            } else {
                complaints.extend(dns1123_subdomain(prefix).into_iter().map(|complaint| format!("prefix part {complaint}")));
            }
            *name
        }
        _ => {
            let form = regex_error(sentence, QUALIFIED_FORMAT, examples);
            return vec![format!("a valid label key {form} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
    };
    if name.is_empty() {
        complaints.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_VALUE_LENGTH_MAX {
        complaints.push(format!("name part {}", bytes_max(LABEL_VALUE_LENGTH_MAX)));
    }
    if !has_form(name, alphanumeric, label_character, alphanumeric) {
        complaints.push(format!("name part {}", regex_error(sentence, QUALIFIED_FORMAT, examples)));
    }
    complaints
}

/// A label's value; empty is valid.
pub fn label_value(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if text.len() > LABEL_VALUE_LENGTH_MAX {
        complaints.push(bytes_max(LABEL_VALUE_LENGTH_MAX));
    }
    if !text.is_empty() && !has_form(text, alphanumeric, label_character, alphanumeric) {
        let sentence = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                        and must start and end with an alphanumeric character";
        let format = format!("({QUALIFIED_FORMAT})?");
        complaints.push(regex_error(sentence, &format, &["MyValue", "my_value", "12345"]));
    }
    complaints
}

/// A port's name in a pod template (`http`), at most 15 characters.
pub fn port_name(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if text.len() > 15 {
        complaints.push(characters_max(15));
    }
    if text.is_empty() || !text.bytes().all(lower_alphanumeric_or_dash) {
        complaints.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        complaints.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        complaints.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        complaints.push("must not begin or end with a hyphen".to_owned());
    }
    complaints
}

pub fn in_range(value: i64, min: i64, max: i64) -> Vec<String> {
    if (min..=max).contains(&value) { Vec::new() } else { vec![format!("must be between {min} and {max}, inclusive")] }
}

pub fn port_number(port: i64) -> Vec<String> {
    in_range(port, 1, 65535)
}

/// An environment variable's name. Upstream's relaxed form, the default since 1.32: printable ASCII without `=`.
pub fn env_var_name(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if text.is_empty() {
        complaints.push("environment variable name must be non-empty".to_owned());
    }
    if text.chars().any(|c| !(' '..='~').contains(&c) || c == '=') {
        complaints.push("a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned());
    }
    complaints
}

/// A key of a ConfigMap's or Secret's data.
pub fn config_map_key(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if text.len() > DNS1123_SUBDOMAIN_LENGTH_MAX {
        complaints.push(characters_max(DNS1123_SUBDOMAIN_LENGTH_MAX));
    }
    if text.is_empty() || !text.bytes().all(label_character) {
        let sentence = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        complaints.push(regex_error(sentence, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    match text {
        "." => complaints.push("must not be '.'".to_owned()),
        ".." => complaints.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => complaints.push("must not start with '..'".to_owned()),
        _ => {}
    }
    complaints
}

/// `25%`: digits and a percent sign.
pub fn percent(text: &str) -> Vec<String> {
    let digits = text.strip_suffix('%').unwrap_or("");
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Vec::new();
    }
    let sentence = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![regex_error(sentence, "[0-9]+%", &["1%", "93%"])]
}

pub fn http_header_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Vec::new();
    }
    let sentence = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_error(sentence, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

/// A subdomain whose labels may hold underscores: a DNS search path.
pub fn dns1123_subdomain_with_underscore(text: &str) -> Vec<String> {
    const FORMAT: &str = r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
    let mut complaints = Vec::new();
    if text.len() > DNS1123_SUBDOMAIN_LENGTH_MAX {
        complaints.push(characters_max(DNS1123_SUBDOMAIN_LENGTH_MAX));
    }
    let label = |label: &str| {
        let rest = label.strip_prefix('_').unwrap_or(label);
        has_form(rest, lower_alphanumeric, |byte| lower_alphanumeric_or_dash(byte) || byte == b'_', lower_alphanumeric)
    };
    if !text.split('.').all(label) {
        let sentence = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', \
                        and must start and end with an alphanumeric character";
        complaints.push(regex_error(sentence, FORMAT, &["example.com"]));
    }
    complaints
}

/// `*.example.com`: an Ingress host.
pub fn wildcard_dns1123_subdomain(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if text.len() > DNS1123_SUBDOMAIN_LENGTH_MAX {
        complaints.push(characters_max(DNS1123_SUBDOMAIN_LENGTH_MAX));
    }
    if !text.strip_prefix("*.").is_some_and(is_subdomain_form) {
        let sentence = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of \
                        lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        complaints.push(regex_error(sentence, &format!(r"\*\.{SUBDOMAIN_FORMAT}"), &["*.example.com"]));
    }
    complaints
}

/// `acme.io/foo`: the name of a signer or controller. The second part may be any path of URL characters.
pub fn domain_prefixed_path(text: &str) -> Vec<String> {
    let Some((host, path)) = text.split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty()) else {
        return vec!["must be a domain-prefixed path (such as \"acme.io/foo\")".to_owned()];
    };
    let mut complaints = dns1123_subdomain(host);
    if !path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte)) {
        complaints.push(regex_error("Invalid path", r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", &[]));
    }
    complaints
}

/// A domain of at least three segments: the name of a webhook.
pub fn fully_qualified(text: &str) -> Vec<String> {
    let complaints = dns1123_subdomain(text);
    if !complaints.is_empty() {
        return vec![complaints.join(",")];
    }
    if text.split('.').count() < 3 {
        return vec!["should be a domain with at least three segments separated by dots".to_owned()];
    }
    Vec::new()
}

/// An identifier of C: the names of CEL variables and of attributes of devices.
pub fn c_identifier(text: &str) -> Vec<String> {
    let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    if text.bytes().next().is_some_and(first) && text.bytes().all(|byte| first(byte) || byte.is_ascii_digit()) {
        return Vec::new();
    }
    let sentence =
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'";
    vec![regex_error(sentence, "[A-Za-z_][A-Za-z0-9_]*", &["my_name", "MY_NAME", "MyName"])]
}

/// An IPv4 address whose octets have leading zeros, which libraries read in different ways.
fn without_leading_zeros(text: &str) -> Option<IpAddr> {
    let octet = |octet: &str| octet.bytes().all(|byte| byte.is_ascii_digit()).then(|| octet.parse::<u8>().ok()).flatten();
    let octets: Vec<u8> = text.split('.').map(octet).collect::<Option<_>>()?;
    <[u8; 4]>::try_from(octets).ok().map(IpAddr::from)
}

/// An IPv4 or IPv6 address, in any unambiguous form (KEP-4858).
pub fn ip(text: &str) -> Vec<String> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
            vec!["must not be an IPv4-mapped IPv6 address".to_owned()]
        }
        Ok(_) => Vec::new(),
        Err(_) if without_leading_zeros(text).is_some() => vec!["must not have leading 0s".to_owned()],
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

/// An IPv4 or IPv6 address as it prints itself.
pub fn canonical_ip(text: &str) -> Vec<String> {
    let complaints = ip(text);
    match text.parse::<IpAddr>() {
        Ok(address) if complaints.is_empty() && address.to_string() != text => {
            vec![format!("must be in canonical form (\"{address}\")")]
        }
        _ => complaints,
    }
}

/// The network of `10.0.0.0/8`: its address and prefix length. Bits beyond the prefix are not looked at.
pub fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let plain = length.bytes().all(|byte| byte.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    let length: u8 = length.parse().ok().filter(|_| plain)?;
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
}

/// The first address of the network that `address` lies in.
pub fn network_of(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

/// A network, in any unambiguous form (KEP-4858).
pub fn cidr(text: &str) -> Vec<String> {
    let Some((address, length)) = parse_cidr(text) else {
        let sloppy = text.split_once('/').is_some_and(|(address, length)| {
            let address = address.parse::<IpAddr>().ok().or_else(|| without_leading_zeros(address));
            let max = if address.is_some_and(|address| address.is_ipv6()) { 128 } else { 32 };
            let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            address.is_some() && digits && length.parse::<u32>().is_ok_and(|length| length <= max)
        });
        let sentence = match sloppy {
            true => "must not have leading 0s in IP or prefix length",
            false => "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        };
        return vec![sentence.to_owned()];
    };
    if matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some()) {
        return vec!["must not have an IPv4-mapped IPv6 address".to_owned()];
    }
    if network_of(address, length) != address {
        return vec!["must not have bits set beyond the prefix length".to_owned()];
    }
    Vec::new()
}

/// A network as it prints itself.
pub fn canonical_cidr(text: &str) -> Vec<String> {
    let complaints = cidr(text);
    match parse_cidr(text) {
        Some((address, length)) if complaints.is_empty() && format!("{address}/{length}") != text => {
            vec![format!("must be in canonical form (\"{address}/{length}\")")]
        }
        _ => complaints,
    }
}

/// The letters of generated suffixes: no vowels and no digits that read like them, so that no words appear.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// `length` random characters of upstream's alphabet (`rand.String`).
pub fn random_suffix(length: usize) -> String {
    let mut text = String::with_capacity(length);
    let mut bytes = [0_u8; 32];
    while text.len() < length {
        fill(&mut bytes);
        // 243 is the largest multiple of 27 in a byte: above it the first letters would come more often.
        let fair = bytes.iter().filter(|byte| **byte < 243).map(|byte| char::from(SUFFIX_ALPHABET[usize::from(*byte % 27)]));
        text.extend(fair.take(length - text.len()));
    }
    text
}

/// A name from `metadata.generateName`: cut to 58 bytes, five random characters appended.
pub fn generate_name(base: &str) -> String {
    let mut cut = base.len().min(58);
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{}", &base[..cut], random_suffix(5))
}

/// A random UUID (version 4) as text: `metadata.uid`.
pub fn uid() -> String {
    let mut bytes = [0_u8; 16];
    fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 0xf] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    text
}

/// Random bytes, fetched for many names at once: every request has an id, and a call of the kernel costs as much as reading an object.
/// Names are unique, not secret; no byte is used twice, and no process here forks and goes on.
fn fill(bytes: &mut [u8]) {
    const RESERVE: usize = 1_024;
    thread_local! {
        static RESERVED: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    RESERVED.with_borrow_mut(|reserved| {
        if reserved.len() < bytes.len() {
            reserved.resize(RESERVE.max(bytes.len()), 0);
            // The kernel's generator cannot fail once the machine has booted; a name without randomness must never be made.
            getrandom::fill(reserved).expect("the kernel's random generator answers");
        }
        let rest = reserved.split_off(reserved.len() - bytes.len());
        bytes.copy_from_slice(&rest);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_right_form_pass_and_others_are_explained() {
        type Check = fn(&str) -> Vec<String>;
        let long = "a".repeat(64);
        let cases: &[(Check, &str, &str)] = &[
            (dns1123_label, "web-1", ""),
            (dns1123_label, "a.b", "must not contain dots"),
            (
                dns1123_label,
                "Web",
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an \
                 alphanumeric character (e.g. 'my-name', or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            ),
            (dns1123_label, &long, "must be no more than 63 characters"),
            (dns1123_subdomain, "a.b-c.d", ""),
            (
                dns1123_subdomain,
                "a..b",
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end \
                 with an alphanumeric character (e.g. 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            ),
            (dns1035_label, "web", ""),
            (
                dns1035_label,
                "1web",
                "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end \
                 with an alphanumeric character (e.g. 'my-name', or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
            ),
            (path_segment, "system:node", ""),
            (path_segment, "a/b%", "may not contain '/'|may not contain '%'"),
            (qualified_name, "kubernetes.io/hostname", ""),
            (qualified_name, "/x", "prefix part must be non-empty"),
            (label_value, "", ""),
            (
                label_value,
                "a b",
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                 with an alphanumeric character (e.g. 'MyValue', or 'my_value', or '12345', regex used for validation is \
                 '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
            (port_name, "http", ""),
            (port_name, "80", "must contain at least one letter (a-z)"),
            (config_map_key, "a.yaml", ""),
            (config_map_key, "..", "must not be '..'"),
            (env_var_name, "A B", ""),
            (percent, "25%", ""),
            (ip, "10.0.0.300", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
            (ip, "010.0.0.3", "must not have leading 0s"),
            (ip, "::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address"),
            (canonical_ip, "FE80::1", "must be in canonical form (\"fe80::1\")"),
            (cidr, "10.0.0.0/8", ""),
            (cidr, "10.0.0.1/8", "must not have bits set beyond the prefix length"),
            (cidr, "10.0.0.0/08", "must not have leading 0s in IP or prefix length"),
            (cidr, "10.0.0.0", "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
            (canonical_cidr, "FD00::/8", "must be in canonical form (\"fd00::/8\")"),
            (wildcard_dns1123_subdomain, "*.a.b", ""),
            (dns1123_subdomain_with_underscore, "_tcp.a_b.c", ""),
            (domain_prefixed_path, "acme.io/x", ""),
            (domain_prefixed_path, "acme.io", "must be a domain-prefixed path (such as \"acme.io/foo\")"),
            (fully_qualified, "a.b", "should be a domain with at least three segments separated by dots"),
        ];
        for (check, text, expected) in cases {
            assert_eq!(check(text).join("|"), *expected, "{text:?}");
        }
    }

    #[test]
    fn generated_names_fit_a_label_and_use_no_vowels() {
        let name = generate_name(&"x".repeat(80));
        assert_eq!(name.len(), 63);
        assert!(generate_name("web-").strip_prefix("web-").is_some_and(|suffix| suffix.len() == 5));
        assert!(random_suffix(200).bytes().all(|byte| SUFFIX_ALPHABET.contains(&byte)));
    }

    #[test]
    fn uids_are_random_version_four_uuids() {
        let one = uid();
        assert_eq!(one.len(), 36);
        assert_eq!(&one[14..15], "4");
        assert_ne!(one, uid());
    }
}
