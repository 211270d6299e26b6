//! What the functions do. A file per library, one [`call`].

pub mod authorizer;
pub mod convert;
pub mod formats;
mod lists;
mod net;
mod operators;
pub mod quantity;
pub mod semver;
mod strings;
pub mod time;
mod url;

use crate::error::{EvalError, no_such_overload};
use crate::value::Value;

pub use authorizer::Authorizer;
pub use formats::Format;
pub use net::{Cidr, Ip};
pub use semver::Semver;
pub use url::Url;

/// A value of one of Kubernetes' own types.
#[derive(Clone, Debug)]
pub enum Opaque {
    Quantity(meta::Quantity),
    Ip(Ip),
    Cidr(Cidr),
    Url(std::sync::Arc<Url>),
    Semver(std::sync::Arc<Semver>),
    Format(&'static Format),
    Authorizer(authorizer::Check),
}

impl Opaque {
    pub fn type_name(&self) -> &'static str {
        match self {
            Opaque::Quantity(_) => "kubernetes.Quantity",
            Opaque::Ip(_) => "net.IP",
            Opaque::Cidr(_) => "net.CIDR",
            Opaque::Url(_) => "kubernetes.URL",
            Opaque::Semver(_) => "kubernetes.Semver",
            Opaque::Format(_) => "kubernetes.NamedFormat",
            Opaque::Authorizer(check) => check.type_name(),
        }
    }
    pub fn equal(&self, other: &Opaque) -> bool {
        match (self, other) {
            (Opaque::Quantity(a), Opaque::Quantity(b)) => a.cmp(b).is_eq(),
            (Opaque::Ip(a), Opaque::Ip(b)) => a == b,
            (Opaque::Cidr(a), Opaque::Cidr(b)) => a == b,
            (Opaque::Url(a), Opaque::Url(b)) => a.text == b.text,
            (Opaque::Semver(a), Opaque::Semver(b)) => a.compare(b).is_eq(),
            (Opaque::Format(a), Opaque::Format(b)) => a.name == b.name,
            _ => false,
        }
    }
    /// The form in JSON and in `string(x)`.
    pub fn text(&self) -> Option<String> {
        match self {
            Opaque::Quantity(quantity) => Some(quantity.to_string()),
            Opaque::Ip(ip) => Some(ip.to_string()),
            Opaque::Cidr(cidr) => Some(cidr.to_string()),
            Opaque::Url(url) => Some(url.text.clone()),
            Opaque::Semver(version) => Some(version.to_string()),
            Opaque::Format(format) => Some(format.name.to_owned()),
            Opaque::Authorizer(_) => None,
        }
    }
    pub(crate) fn cost_size(&self) -> u64 {
        match self {
            Opaque::Ip(ip) => ip.bytes(),
            Opaque::Cidr(cidr) => u64::from(cidr.prefix).div_ceil(8).max(1),
            _ => 1,
        }
    }
}

pub(crate) type Called<'a> = Result<Value<'a>, EvalError>;

/// Calls a function with its receiver (if it is a method) and its arguments.
pub(crate) fn call<'a>(function: &str, args: &[Value<'a>]) -> Called<'a> {
    let found = operators::call(function, args)
        .or_else(|| convert::call(function, args))
        .or_else(|| strings::call(function, args))
        .or_else(|| lists::call(function, args))
        .or_else(|| time::call(function, args))
        .or_else(|| quantity::call(function, args))
        .or_else(|| url::call(function, args))
        .or_else(|| net::call(function, args))
        .or_else(|| semver::call(function, args))
        .or_else(|| formats::call(function, args))
        .or_else(|| authorizer::call(function, args));
    found.unwrap_or_else(|| Err(no_such_overload()))
}
