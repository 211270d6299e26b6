//! networking.k8s.io/v1 ServiceCIDR.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::Part;
use crate::checks::{Errors, sentences};
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, list};

pub const SERVICE_CIDR: Plain = Plain {
    status_keeps_metadata: true,
    keeps_status_at_creation: true,
    validate,
    validate_update,
    ..Plain::new(
        ("networking.k8s.io", "v1", "ServiceCIDR"),
        &[NAME, shown("CIDRs", "string", "Ranges of addresses of Services."), AGE],
        |object, now| vec![printing::joined(list(object, "spec.cidrs")), printing::age(object, now)],
    )
};

fn validate(object: &Value) -> Errors {
    let path = Path::new("spec").child("cidrs");
    let ranges: Vec<&str> = list(object, "spec.cidrs").iter().filter_map(Value::as_str).collect();
    let is_ipv6 = |range: &&str| names::parse_cidr(range).map(|(address, _)| address.is_ipv6());
    match ranges.as_slice() {
        [] => return vec![Error::required(&path, "at least one CIDR required")],
        [_, _, _, ..] => return vec![Error::invalid(&path, at(object, "spec").clone(), "may only hold up to 2 values")],
        [one, two] if is_ipv6(one).is_none_or(|first| is_ipv6(two).is_none_or(|second| first == second)) => {
            let sentence = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96";
            return vec![Error::invalid(&path, at(object, "spec").clone(), sentence)];
        }
        _ => {}
    }
    ranges.iter().enumerate().flat_map(|(index, range)| sentences(&path.index(index), *range, names::canonical_cidr(range))).collect()
}

/// A range of the other family may be added; the rest stays.
fn validate_update(new: &Value, old: &Value, part: Part) -> Errors {
    let path = Path::new("spec").child("cidrs");
    let (after, before) = (list(new, "spec.cidrs"), list(old, "spec.cidrs"));
    if part != Part::Main {
        return Errors::new();
    }
    if after.len() < before.len() {
        return vec![Error::invalid(&path, after.to_vec(), "field is immutable")];
    }
    let changed = after.iter().zip(before).enumerate().filter(|(_, (new, old))| new != old);
    changed.map(|(index, (new, _))| Error::invalid(&path.index(index), new.clone(), "field is immutable")).collect()
}
