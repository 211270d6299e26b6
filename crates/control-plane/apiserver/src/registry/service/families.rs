//! `ipFamilyPolicy` and `ipFamilies`: what a Service did not say is inferred, what the cluster cannot give is refused.
//!
//! Source: `initIPFamilyFields` in `pkg/registry/core/service/storage/alloc.go`, KEP-563.

use meta::field::{Error, Path};
use serde_json::{Value, json};

use super::{Ranges, family_of, strings};

/// Completes both fields of a Service's spec, and takes the second address from one that no longer wants two.
pub fn settle(spec: &mut Value, old: Option<&Value>, ranges: &Ranges) -> Result<(), Vec<Error>> {
    if spec["clusterIP"] == "None" && spec["selector"].as_object().is_none_or(serde_json::Map::is_empty) {
        settle_selectorless(spec, ranges);
        return Ok(());
    }
    if let Some(old) = old {
        give_up_second(spec, old);
    }
    infer_policy(spec);
    refuse(spec, ranges)?;
    infer_families(spec, ranges);
    Ok(())
}

/// Whoever writes the endpoints of such a Service may give it both families, whatever the cluster has.
fn settle_selectorless(spec: &mut Value, ranges: &Ranges) {
    let mut families = strings(&spec["ipFamilies"]);
    if families.is_empty() {
        families.extend(ranges.networks.first().map(|network| network.family().to_owned()));
    }
    if families.len() == 1 && spec["ipFamilyPolicy"].is_null() && ranges.networks.len() > 1 || spec["ipFamilyPolicy"] == "RequireDualStack"
    {
        complete(&mut families);
    }
    spec["ipFamilies"] = json!(families);
    if policy(spec).is_empty() {
        spec["ipFamilyPolicy"] = "RequireDualStack".into();
    }
}

fn complete(families: &mut Vec<String>) {
    if let [only] = families.as_slice() {
        families.push(if only == "IPv4" { "IPv6" } else { "IPv4" }.to_owned());
    }
}

fn policy(spec: &Value) -> &str {
    spec["ipFamilyPolicy"].as_str().unwrap_or_default()
}

/// Down to SingleStack with the fields as they were: the second of each goes.
fn give_up_second(spec: &mut Value, old: &Value) {
    if policy(spec) != "SingleStack" || policy(old) == "SingleStack" {
        return;
    }
    for field in ["clusterIPs", "ipFamilies"] {
        if spec[field] == old[field]
            && let Some(list) = spec[field].as_array_mut()
        {
            list.truncate(1);
        }
    }
}

fn infer_policy(spec: &mut Value) {
    if policy(spec).is_empty() {
        let two = spec["clusterIPs"].as_array().is_some_and(|list| list.len() > 1)
            || spec["ipFamilies"].as_array().is_some_and(|list| list.len() > 1);
        spec["ipFamilyPolicy"] = if two { "RequireDualStack" } else { "SingleStack" }.into();
    }
}

fn refuse(spec: &Value, ranges: &Ranges) -> Result<(), Vec<Error>> {
    let path = Path::new("spec");
    let mut errors = Vec::new();
    let (addresses, families) = (strings(&spec["clusterIPs"]), strings(&spec["ipFamilies"]));
    if policy(spec) == "SingleStack" {
        let sentence = "may not be 'SingleStack' when multiple values are specified";
        if addresses.len() > 1 {
            errors.push(Error::invalid(&path.child("ipFamilyPolicy"), policy(spec), sentence));
        } else if families.len() > 1 {
            errors.push(Error::invalid(&path.child("ipFamilyPolicy"), policy(spec), sentence));
        }
    }
    if policy(spec) == "RequireDualStack" && ranges.networks.len() < 2 {
        let sentence = "this cluster is not configured for dual-stack services";
        errors.push(Error::invalid(&path.child("ipFamilyPolicy"), policy(spec), sentence));
    }
    for (index, family) in families.iter().enumerate() {
        if ranges.of(family).is_none() {
            errors.push(Error::invalid(&path.child("ipFamilies").index(index), family.as_str(), "not configured on this cluster"));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// From the addresses, then the cluster's first, then the other one where two are wanted and there are two.
fn infer_families(spec: &mut Value, ranges: &Ranges) {
    let mut families = strings(&spec["ipFamilies"]);
    let addresses = strings(&spec["clusterIPs"]);
    let given = addresses.iter().filter_map(|text| text.parse().ok()).map(family_of);
    for (index, family) in given.enumerate() {
        if index >= families.len() {
            families.push(family.to_owned());
        }
    }
    if families.is_empty() {
        families.extend(ranges.networks.first().map(|network| network.family().to_owned()));
    }
    if ranges.networks.len() > 1 && matches!(policy(spec), "PreferDualStack" | "RequireDualStack") {
        complete(&mut families);
    }
    spec["ipFamilies"] = json!(families);
}

#[cfg(test)]
mod tests {
    use super::super::Network;
    use super::*;

    fn ranges(families: &[&str]) -> Ranges {
        let network = |family: &&str| match *family {
            "IPv4" => Network { first: "10.96.0.0".parse().unwrap(), prefix: 16 },
            _ => Network { first: "fd00:96::".parse().unwrap(), prefix: 112 },
        };
        Ranges { networks: families.iter().map(network).collect(), ..Ranges::default() }
    }

    #[test]
    fn a_service_gets_the_families_it_asks_for_or_the_clusters_first() {
        let selector = json!({"a": "b"});
        let cases = [
            (json!({}), &["IPv4", "IPv6"][..], "SingleStack IPv4"),
            (json!({}), &["IPv6", "IPv4"], "SingleStack IPv6"),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), &["IPv4", "IPv6"], "PreferDualStack IPv4,IPv6"),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), &["IPv4"], "PreferDualStack IPv4"),
            (json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}), &["IPv4", "IPv6"], "RequireDualStack IPv6,IPv4"),
            (json!({"ipFamilies": ["IPv6", "IPv4"]}), &["IPv4", "IPv6"], "RequireDualStack IPv6,IPv4"),
            (json!({"ipFamilies": ["IPv6"]}), &["IPv4", "IPv6"], "SingleStack IPv6"),
            (json!({"clusterIP": "fd00:96::7", "clusterIPs": ["fd00:96::7"]}), &["IPv4", "IPv6"], "SingleStack IPv6"),
            (json!({"clusterIP": "None", "clusterIPs": ["None"]}), &["IPv4", "IPv6"], "SingleStack IPv4"),
        ];
        for (mut spec, families, expected) in cases {
            spec["selector"] = selector.clone();
            settle(&mut spec, None, &ranges(families)).unwrap();
            assert_eq!(format!("{} {}", policy(&spec), strings(&spec["ipFamilies"]).join(",")), expected, "{spec}");
        }
    }

    #[test]
    fn what_the_cluster_does_not_have_is_refused_by_field() {
        let cases = [
            (
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (json!({"ipFamilies": ["IPv6"]}), "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"),
        ];
        for (mut spec, expected) in cases {
            let errors = settle(&mut spec, None, &ranges(&["IPv4"])).unwrap_err();
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn single_stack_gives_the_second_address_back() {
        let old = json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["10.96.0.9", "fd00:96::9"], "clusterIP": "10.96.0.9"});
        let mut new = old.clone();
        new["ipFamilyPolicy"] = "SingleStack".into();
        settle(&mut new, Some(&old), &ranges(&["IPv4", "IPv6"])).unwrap();
        assert_eq!((&new["ipFamilies"], &new["clusterIPs"]), (&json!(["IPv4"]), &json!(["10.96.0.9"])));
    }
}
