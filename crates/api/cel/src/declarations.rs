//! Every function: its name and its overloads, written as their signatures.
//!
//! Source: the CEL language definition, cel-go `common/stdlib` and `ext`, apiserver `pkg/cel/library` (the environment of 1.37).

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::types::Type;

#[derive(Debug)]
pub struct Overload {
    /// Called as `receiver.f(args)`; the receiver is the first of `params`.
    pub method: bool,
    pub params: Vec<Type>,
    pub result: Type,
}

const LIST: &[&str] = &[CORE, CONVERSIONS, TIME, OPTIONALS, EXTENSIONS, KUBERNETES];

const CORE: &str = "
_?_:_(bool, A, A) A
_&&_(bool, bool) bool
_||_(bool, bool) bool
!_(bool) bool
@not_strictly_false(bool) bool
_==_(A, A) bool
_!=_(A, A) bool
_+_(int, int) int; (uint, uint) uint; (double, double) double; (string, string) string; (bytes, bytes) bytes; (list<A>, list<A>) list<A>; (timestamp, duration) timestamp; (duration, timestamp) timestamp; (duration, duration) duration
_-_(int, int) int; (uint, uint) uint; (double, double) double; (timestamp, timestamp) duration; (timestamp, duration) timestamp; (duration, duration) duration
_*_(int, int) int; (uint, uint) uint; (double, double) double
_/_(int, int) int; (uint, uint) uint; (double, double) double
_%_(int, int) int; (uint, uint) uint
-_(int) int; (double) double
_<_(bool, bool) bool; (int, int) bool; (int, double) bool; (int, uint) bool; (uint, uint) bool; (uint, double) bool; (uint, int) bool; (double, double) bool; (double, int) bool; (double, uint) bool; (string, string) bool; (bytes, bytes) bool; (timestamp, timestamp) bool; (duration, duration) bool
_<=_ = _<_
_>_ = _<_
_>=_ = _<_
@in(A, list<A>) bool; (A, map<A, B>) bool
_[_](list<A>, int) A; (map<A, B>, A) B; (optional<list<A>>, int) optional<A>; (optional<map<A, B>>, A) optional<B>
_[?_](list<A>, int) optional<A>; (map<A, B>, A) optional<B>; (optional<list<A>>, int) optional<A>; (optional<map<A, B>>, A) optional<B>
size(string) int; (bytes) int; (list<A>) int; (map<A, B>) int; string.() int; bytes.() int; list<A>.() int; map<A, B>.() int
matches(string, string) bool; string.(string) bool
contains string.(string) bool
startsWith string.(string) bool
endsWith string.(string) bool
";

const CONVERSIONS: &str = "
int(int) int; (uint) int; (double) int; (string) int; (timestamp) int; (duration) int
uint(uint) uint; (int) uint; (double) uint; (string) uint
double(double) double; (int) double; (uint) double; (string) double
string(string) string; (bool) string; (int) string; (uint) string; (double) string; (bytes) string; (timestamp) string; (duration) string; (net.IP) string; (net.CIDR) string
bytes(bytes) bytes; (string) bytes
bool(bool) bool; (string) bool
timestamp(timestamp) timestamp; (string) timestamp; (int) timestamp
duration(duration) duration; (string) duration; (int) duration
dyn(A) dyn
type(A) type
";

const TIME: &str = "
getFullYear timestamp.() int; timestamp.(string) int
getMonth = getFullYear
getDayOfYear = getFullYear
getDayOfMonth = getFullYear
getDate = getFullYear
getDayOfWeek = getFullYear
getHours timestamp.() int; timestamp.(string) int; duration.() int
getMinutes = getHours
getSeconds = getHours
getMilliseconds = getHours
";

const OPTIONALS: &str = "
optional.of(A) optional<A>
optional.ofNonZeroValue(A) optional<A>
optional.none() optional<A>
optional.unwrap(list<optional<A>>) list<A>
unwrapOpt list<optional<A>>.() list<A>
value optional<A>.() A
hasValue optional<A>.() bool
or optional<A>.(optional<A>) optional<A>
orValue optional<A>.(A) A
_?._(dyn, string) optional<dyn>
";

const EXTENSIONS: &str = "
charAt string.(int) string
indexOf string.(string) int; string.(string, int) int; list<A>.(A) int
lastIndexOf = indexOf
join list<string>.() string; list<string>.(string) string
lowerAscii string.() string
upperAscii string.() string
replace string.(string, string) string; string.(string, string, int) string
split string.(string) list<string>; string.(string, int) list<string>
substring string.(int) string; string.(int, int) string
trim string.() string
format string.(list<dyn>) string
strings.quote(string) string
slice list<A>.(int, int) list<A>
flatten list<A>.() list<dyn>; list<A>.(int) list<dyn>
distinct list<A>.() list<A>
reverse list<A>.() list<A>
sort list<A>.() list<A>
first list<A>.() optional<A>
last list<A>.() optional<A>
lists.range(int) list<int>
@sortByAssociatedKeys list<A>.(list<B>) list<A>
sets.contains(list<A>, list<A>) bool
sets.equivalent(list<A>, list<A>) bool
sets.intersects(list<A>, list<A>) bool
@mapInsert(map<A, B>, A, B) map<A, B>; (map<A, B>, map<A, B>) map<A, B>
";

const KUBERNETES: &str = "
isSorted list<int>.() bool; list<uint>.() bool; list<double>.() bool; list<bool>.() bool; list<string>.() bool; list<bytes>.() bool; list<timestamp>.() bool; list<duration>.() bool
sum list<int>.() int; list<uint>.() uint; list<double>.() double; list<duration>.() duration
min list<int>.() int; list<uint>.() uint; list<double>.() double; list<bool>.() bool; list<string>.() string; list<bytes>.() bytes; list<timestamp>.() timestamp; list<duration>.() duration
max = min
includes list<A>.(A) bool; dyn.(A) bool
find string.(string) string
findAll string.(string) list<string>; string.(string, int) list<string>
url(string) kubernetes.URL
isURL(string) bool
getScheme kubernetes.URL.() string
getHost kubernetes.URL.() string
getHostname kubernetes.URL.() string
getPort kubernetes.URL.() string
getEscapedPath kubernetes.URL.() string
getQuery kubernetes.URL.() map<string, list<string>>
quantity(string) kubernetes.Quantity
isQuantity(string) bool
sign kubernetes.Quantity.() int
isInteger kubernetes.Quantity.() bool
asInteger kubernetes.Quantity.() int
asApproximateFloat kubernetes.Quantity.() double
add kubernetes.Quantity.(kubernetes.Quantity) kubernetes.Quantity; kubernetes.Quantity.(int) kubernetes.Quantity
sub = add
isGreaterThan kubernetes.Quantity.(kubernetes.Quantity) bool; kubernetes.Semver.(kubernetes.Semver) bool
isLessThan = isGreaterThan
compareTo kubernetes.Quantity.(kubernetes.Quantity) int; kubernetes.Semver.(kubernetes.Semver) int
semver(string) kubernetes.Semver; (string, bool) kubernetes.Semver
isSemver(string) bool; (string, bool) bool
major kubernetes.Semver.() int
minor kubernetes.Semver.() int
patch kubernetes.Semver.() int
ip(string) net.IP; net.CIDR.() net.IP
isIP(string) bool
ip.isCanonical(string) bool
family net.IP.() int
isUnspecified net.IP.() bool
isLoopback net.IP.() bool
isLinkLocalMulticast net.IP.() bool
isLinkLocalUnicast net.IP.() bool
isGlobalUnicast net.IP.() bool
cidr(string) net.CIDR
isCIDR(string) bool
containsIP net.CIDR.(net.IP) bool; net.CIDR.(string) bool
containsCIDR net.CIDR.(net.CIDR) bool; net.CIDR.(string) bool
masked net.CIDR.() net.CIDR
prefixLength net.CIDR.() int
format.named(string) optional<kubernetes.NamedFormat>
validate kubernetes.NamedFormat.(string) optional<list<string>>
format.dns1123Label() kubernetes.NamedFormat
format.dns1123Subdomain() kubernetes.NamedFormat
format.dns1035Label() kubernetes.NamedFormat
format.qualifiedName() kubernetes.NamedFormat
format.dns1123LabelPrefix() kubernetes.NamedFormat
format.dns1123SubdomainPrefix() kubernetes.NamedFormat
format.dns1035LabelPrefix() kubernetes.NamedFormat
format.labelValue() kubernetes.NamedFormat
format.uri() kubernetes.NamedFormat
format.uuid() kubernetes.NamedFormat
format.byte() kubernetes.NamedFormat
format.date() kubernetes.NamedFormat
format.datetime() kubernetes.NamedFormat
jsonpatch.escapeKey(string) string
path kubernetes.authorization.Authorizer.(string) kubernetes.authorization.PathCheck
group kubernetes.authorization.Authorizer.(string) kubernetes.authorization.GroupCheck
serviceAccount kubernetes.authorization.Authorizer.(string, string) kubernetes.authorization.Authorizer
resource kubernetes.authorization.GroupCheck.(string) kubernetes.authorization.ResourceCheck
subresource kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
namespace kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
name kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
fieldSelector kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
labelSelector kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
check kubernetes.authorization.PathCheck.(string) kubernetes.authorization.Decision; kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.Decision
allowed kubernetes.authorization.Decision.() bool
reason kubernetes.authorization.Decision.() string
errored kubernetes.authorization.Decision.() bool
error kubernetes.authorization.Decision.() string
";

static TABLE: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(read);

/// The overloads of a function; empty where there is none of the name.
pub fn overloads(name: &str) -> &'static [Overload] {
    TABLE.get(name).map_or(&[], Vec::as_slice)
}

/// Whether a call `a.b(…)` is of a function whose name contains the dot.
pub fn is_namespaced(name: &str) -> bool {
    TABLE.contains_key(name)
}

fn read() -> HashMap<&'static str, Vec<Overload>> {
    let mut table = HashMap::new();
    let mut aliases = Vec::new();
    for line in LIST.iter().flat_map(|text| text.lines()).filter(|line| !line.is_empty()) {
        if let Some((name, other)) = line.split_once(" = ") {
            aliases.push((name, other));
            continue;
        }
        let name_end = line.find(|c| c == '(' || c == ' ').unwrap_or(line.len());
        // `_[_](` and the like contain no bracket of their own before the first parenthesis.
        let (name, signatures) = line.split_at(name_end);
        table.insert(name, signatures.split(';').map(|signature| overload(signature.trim())).collect());
    }
    for (name, other) in aliases {
        let line = LIST
            .iter()
            .flat_map(|text| text.lines())
            .find(|line| line.strip_prefix(other).is_some_and(|rest| rest.starts_with(['(', ' '])));
        let signatures = line.and_then(|line| line.get(other.len()..)).unwrap_or_default();
        table.insert(name, signatures.split(';').map(|signature| overload(signature.trim())).collect());
    }
    table
}

/// `receiver.(args) result` or `(args) result`.
fn overload(text: &'static str) -> Overload {
    let open = text.find('(').unwrap_or(0);
    let close = text.rfind(')').unwrap_or(open);
    let receiver = text[..open].trim_end_matches('.');
    let mut params: Vec<Type> = Vec::new();
    let method = !receiver.is_empty();
    if method {
        params.push(ty(receiver));
    }
    params.extend(split(text.get(open + 1..close).unwrap_or_default()).into_iter().map(ty));
    Overload { method, params, result: ty(text.get(close + 1..).unwrap_or_default().trim()) }
}

/// At commas outside angle brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() {
        parts.push(text[start..].trim());
    }
    parts
}

fn ty(text: &'static str) -> Type {
    let inner = |prefix: &str| text.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('>'));
    if let Some(inner) = inner("list<") {
        return Type::list(ty(inner));
    }
    if let Some(inner) = inner("optional<") {
        return Type::optional(ty(inner));
    }
    if let Some(inner) = inner("map<") {
        let parts = split(inner);
        return Type::map(parts.first().map_or(Type::Dyn, |part| ty(part)), parts.get(1).map_or(Type::Dyn, |part| ty(part)));
    }
    match text {
        "dyn" => Type::Dyn,
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::Type,
        "A" => Type::Param('A'),
        "B" => Type::Param('B'),
        other => Type::Opaque(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signature_is_read() {
        for (name, overloads) in TABLE.iter() {
            assert!(!overloads.is_empty(), "{name}");
            for overload in overloads {
                for found in overload.params.iter().chain([&overload.result]) {
                    let Type::Opaque(opaque) = found else { continue };
                    assert!(opaque.starts_with("kubernetes.") || opaque.starts_with("net."), "{name}: {opaque:?}");
                }
            }
        }
        assert_eq!(overloads("_+_").len(), 9);
        assert!(overloads("size").iter().any(|overload| overload.method));
        assert_eq!(overloads("_>_").len(), overloads("_<_").len());
    }
}
