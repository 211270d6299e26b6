//! scheduling.k8s.io/v1beta1 PodGroup and v1alpha3 CompositePodGroup.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::Part;
use crate::checks::{Errors, conditions, fixed, formed};
use crate::devices::each_once;
use crate::groups::{self, Members};
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME};
use crate::value::{at, has, list, text};

pub const POD_GROUP: Plain = Plain {
    status_keeps_metadata: true,
    validate: |object| {
        let (spec, path) = (at(object, "spec"), Path::new("spec"));
        let mut errors = groups::validate(spec, &path, Members::Pods);
        if has(spec, "workloadRef") {
            errors.extend(groups::workload_reference(spec, &path));
        } else if has(spec, "parentCompositePodGroupName") {
            errors.push(Error::required(&path.child("workloadRef"), "must be set when `parentCompositePodGroupName` is set"));
        }
        errors.extend(formed(spec, &path, "parentCompositePodGroupName", names::dns1123_subdomain));
        errors
    },
    validate_update: |new, old, part| if part == Part::Status { status(new) } else { update(new, old, Members::Pods) },
    ..Plain::new(("scheduling.k8s.io", "v1beta1", "PodGroup"), &[NAME, AGE], |object, now| vec![printing::age(object, now)])
};

pub const COMPOSITE_POD_GROUP: Plain = Plain {
    status_keeps_metadata: true,
    validate: |object| {
        let (spec, path) = (at(object, "spec"), Path::new("spec"));
        let mut errors = groups::validate(spec, &path, Members::Groups);
        if has(spec, "workloadRef") {
            errors.extend(groups::workload_reference(spec, &path));
        } else {
            errors.push(Error::required(&path.child("workloadRef"), ""));
        }
        errors.extend(formed(spec, &path, "parentCompositePodGroupName", names::dns1123_subdomain));
        errors
    },
    validate_update: |new, old, part| if part == Part::Status { status(new) } else { update(new, old, Members::Groups) },
    ..Plain::new(("scheduling.k8s.io", "v1alpha3", "CompositePodGroup"), &[NAME, AGE], |object, now| vec![printing::age(object, now)])
};

fn update(new: &Value, old: &Value, members: Members) -> Errors {
    let (new, old, path) = (at(new, "spec"), at(old, "spec"), Path::new("spec"));
    let mut errors = groups::validate_update(new, old, &path, members);
    let fields = ["workloadRef", "parentCompositePodGroupName"];
    errors.extend(fields.into_iter().flat_map(|field| fixed(&path.child(field), at(new, field), at(old, field))));
    errors
}

fn status(new: &Value) -> Errors {
    let (status, path) = (at(new, "status"), Path::new("status"));
    let mut errors = conditions(list(status, "conditions"), &path.child("conditions"));
    let claims = list(new, "spec.resourceClaims");
    errors.extend(each_once(status, &path, "resourceClaimStatuses", 4, "name", |given, path| {
        let name = text(given, "name");
        let mut errors = formed(given, path, "resourceClaimName", names::dns1123_subdomain);
        if !claims.iter().any(|claim| text(claim, "name") == name) {
            errors.push(Error::invalid(&path.child("name"), name, "must match the name of an entry in `spec.resourceClaims`"));
        }
        errors
    }));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rules;
    use serde_json::json;

    #[test]
    fn a_group_has_one_policy_and_keeps_it() {
        let group =
            json!({"spec": {"schedulingPolicy": {"gang": {"minCount": 3}}, "resourceClaims": [{"name": "c", "resourceClaimName": "x"}]}});
        assert_eq!(POD_GROUP.validate(&group), []);
        for (pointer, value, message) in [
            ("/schedulingPolicy", json!({}), "spec.schedulingPolicy: Invalid value: \"\": must specify one of: `basic`, `gang`"),
            (
                "/schedulingPolicy",
                json!({"basic": {}, "gang": {"minCount": 1}}),
                "spec.schedulingPolicy: Invalid value: \"{`basic`, `gang`}\": must specify exactly one of: `basic`, `gang`",
            ),
            ("/schedulingPolicy/gang/minCount", json!(0), "spec.schedulingPolicy.gang.minCount: Required value"),
            (
                "/schedulingPolicy/gang/minCount",
                json!(-1),
                "spec.schedulingPolicy.gang.minCount: Invalid value: -1: must be greater than or equal to 1",
            ),
            (
                "/resourceClaims/0/resourceClaimName",
                json!(null),
                "spec.resourceClaims[0]: Invalid value: \"\": must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
        ] {
            let mut changed = group.clone();
            *changed["spec"].pointer_mut(pointer).unwrap() = value;
            let errors: Vec<_> = POD_GROUP.validate(&changed).iter().map(ToString::to_string).collect();
            assert_eq!(errors, [message]);
        }
        let mut more = group.clone();
        more["spec"]["schedulingPolicy"]["gang"]["minCount"] = 4.into();
        assert_eq!(POD_GROUP.validate_update(&more, &group, Part::Main), []);
        more["spec"]["priority"] = 4.into();
        more["spec"]["schedulingPolicy"] = json!({"basic": {}});
        let errors: Vec<_> = POD_GROUP.validate_update(&more, &group, Part::Main).iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "spec.schedulingPolicy.basic: Invalid value: null: field is immutable",
                "spec.schedulingPolicy.gang: Invalid value: null: field cannot be cleared once set",
                "spec.priority: Invalid value: null: field is immutable",
            ]
        );
    }

    #[test]
    fn a_status_names_claims_of_the_group() {
        let group = json!({"spec": {}, "status": {"resourceClaimStatuses": [{"name": "d"}]}});
        let errors = POD_GROUP.validate_update(&group, &group, Part::Status);
        let message =
            "status.resourceClaimStatuses[0].name: Invalid value: \"d\": must match the name of an entry in `spec.resourceClaims`";
        assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), [message]);
    }
}
