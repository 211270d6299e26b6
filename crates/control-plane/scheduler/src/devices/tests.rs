//! Claims against devices, as cases: what is published, what is asked for, what a node gives.

use k8s_openapi::api::resource::v1::ResourceClaim;
use serde_json::{Value, json};

use super::*;

const DRIVER: &str = "gpu.example.com";

/// One node, `n1`, whose pool has these devices; more slices by hand.
struct Case {
    name: &'static str,
    devices: Value,
    slice: Value,
    rules: Value,
    claims: Vec<Value>,
    /// The devices of each request in order, or the objection.
    expected: &'static str,
}

fn case(name: &'static str, devices: Value, claim: Value, expected: &'static str) -> Case {
    Case { name, devices, slice: json!({}), rules: json!([]), claims: vec![claim], expected }
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// A device with attributes and capacity.
fn device(name: &str, model: &str, more: Value) -> Value {
    let mut device = json!({ "name": name, "attributes": { "model": { "string": model } }, "capacity": { "memory": { "value": "10Gi" } } });
    device.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    device
}

/// Requests as a claim has them; each value is the request's `exactly`.
fn exactly(requests: &[(&str, Value)]) -> Value {
    let request = |(name, more): &(&str, Value)| {
        let mut exactly = json!({ "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1 });
        exactly.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "name": name, "exactly": exactly })
    };
    json!({ "requests": requests.iter().map(request).collect::<Vec<_>>() })
}

fn selected(expression: &str) -> Value {
    json!({ "selectors": [{ "cel": { "expression": expression } }] })
}

fn claim(name: &str, devices: Value) -> ResourceClaim {
    object(json!({ "metadata": { "namespace": "a", "name": name, "uid": name, "resourceVersion": "1" }, "spec": { "devices": devices } }))
}

fn pod(claims: usize) -> Pod {
    let claims: Vec<Value> = (0..claims).map(|at| json!({ "name": format!("c{at}"), "resourceClaimName": format!("c{at}") })).collect();
    object(json!({ "metadata": { "namespace": "a", "name": "p", "uid": "p" }, "spec": { "containers": [], "resourceClaims": claims } }))
}

fn node(name: &str) -> Details {
    let mut node = Details { name: name.into(), ..Details::default() };
    node.facts.labels.insert("kubernetes.io/hostname".into(), name.into());
    node
}

fn empty() -> Devices {
    Devices::of(Lists::default())
}

fn slice(name: &str, pool: &str, devices: &Value, more: &Value) -> ResourceSlice {
    let mut spec = json!({
        "driver": DRIVER, "nodeName": "n1", "pool": { "name": pool, "generation": 1, "resourceSliceCount": 1 }, "devices": devices,
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    spec.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    object(json!({ "metadata": { "name": name }, "spec": spec }))
}

fn world(case: &Case) -> Devices {
    let mut world = empty();
    world.invalidate();
    let class = |name: &str, spec: Value| object(json!({ "metadata": { "name": name }, "spec": spec }));
    world.classes.apply(class("gpu", selected("device.driver == 'gpu.example.com'")));
    world.classes.apply(class("large", selected("device.capacity['gpu.example.com'].memory.compareTo(quantity('20Gi')) >= 0")));
    world.slices.apply(slice("n1", "n1", &case.devices, &case.slice));
    for (at, rule) in case.rules.as_array().unwrap().iter().enumerate() {
        world.rules.apply(object(json!({ "metadata": { "name": at.to_string() }, "spec": rule })));
    }
    for (at, devices) in case.claims.iter().enumerate() {
        world.claims.apply(claim(&format!("c{at}"), devices.clone()));
    }
    world.refresh();
    world
}

/// The devices by request, or why not.
fn outcome(world: &Devices, pod: &Pod, node: &Details) -> String {
    let needs = match world.needs(pod) {
        Ok(needs) => needs.unwrap(),
        Err(why) => return why,
    };
    if let Some(objection) = needs.objection(node) {
        return objection.reasons.join("; ");
    }
    let decision = needs.decide(node).unwrap();
    let results = decision.claims.iter().flat_map(|(_, allocation)| allocation.as_ref()?.devices.as_ref()?.results.clone());
    results.flatten().map(|result| format!("{}={}", result.request, result.device)).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_node_gives_what_the_claims_ask_for_or_says_why_not() {
    let two = || json!([device("a", "old", json!({})), device("b", "new", json!({}))]);
    let tainted = |effect: &str| json!({ "taints": [{ "key": "example.com/broken", "value": "yes", "effect": effect }] });
    let numa = |number: i64| json!({ "attributes": { "numa": { "int": number } } });
    let quarters = json!([
        device("whole", "m", json!({ "consumesCounters": [{ "counterSet": "gpu", "counters": { "memory": { "value": "40Gi" } } }] })),
        device("half-0", "m", json!({ "consumesCounters": [{ "counterSet": "gpu", "counters": { "memory": { "value": "20Gi" } } }] })),
        device("half-1", "m", json!({ "consumesCounters": [{ "counterSet": "gpu", "counters": { "memory": { "value": "20Gi" } } }] })),
    ]);
    let counters = json!({ "sharedCounters": [{ "name": "gpu", "counters": { "memory": { "value": "40Gi" } } }] });
    let shared = json!([device("s", "m", json!({ "allowMultipleAllocations": true }))]);
    let six = || json!({ "capacity": { "requests": { "memory": "6Gi" } } });
    let alternatives = |first: &str, second: &str| {
        json!({ "requests": [{ "name": "r", "firstAvailable": [
            { "name": "first", "deviceClassName": first, "allocationMode": "ExactCount", "count": 1 },
            { "name": "second", "deviceClassName": second, "allocationMode": "ExactCount", "count": 2 },
        ] }] })
    };
    let constrained = |constraint: Value| {
        let mut claim = exactly(&[("x", json!({})), ("y", json!({}))]);
        claim["constraints"] = json!([constraint]);
        claim
    };
    let mut cases = vec![
        case("the first that is free", two(), exactly(&[("r", json!({}))]), "r=a"),
        case("each request another one", two(), exactly(&[("r", json!({})), ("s", json!({}))]), "r=a s=b"),
        case("a selector selects", two(), exactly(&[("r", selected("device.attributes['gpu.example.com'].model == 'new'"))]), "r=b"),
        case(
            "an earlier request makes way for a later one",
            two(),
            exactly(&[("any", json!({})), ("old", selected("device.attributes['gpu.example.com'].model == 'old'"))]),
            "any=b old=a",
        ),
        case("more than there are", two(), exactly(&[("r", json!({ "count": 3 }))]), "cannot allocate all claims"),
        case("several for one request", two(), exactly(&[("r", json!({ "count": 2 }))]), "r=a r=b"),
        case("all of them", two(), exactly(&[("r", json!({ "allocationMode": "All" }))]), "r=a r=b"),
        case("all of none", json!([]), exactly(&[("r", json!({ "allocationMode": "All" }))]), "cannot allocate all claims"),
        case(
            "a class that does not exist",
            two(),
            exactly(&[("r", json!({ "deviceClassName": "no" }))]),
            "request r: device class no does not exist",
        ),
        case(
            "a selector that does not compile",
            two(),
            exactly(&[("r", selected("device.nothing"))]),
            "claim a/c0: selector #0: CEL compile error",
        ),
        case(
            "an attribute that is not there",
            two(),
            exactly(&[("r", selected("device.attributes['gpu.example.com'].no == 1"))]),
            "claim a/c0: selector #0: CEL runtime error",
        ),
        case("the first alternative", two(), alternatives("gpu", "gpu"), "r/first=a"),
        case("the second alternative", two(), alternatives("large", "gpu"), "r/second=a r/second=b"),
        case("no alternative", two(), alternatives("large", "large"), "cannot allocate all claims"),
        case(
            "a tainted device",
            json!([device("a", "m", tainted("NoSchedule")), device("b", "m", json!({}))]),
            exactly(&[("r", json!({}))]),
            "r=b",
        ),
        case("a taint without effect", json!([device("a", "m", tainted("None"))]), exactly(&[("r", json!({}))]), "r=a"),
        case(
            "a tolerated taint",
            json!([device("a", "m", tainted("NoExecute"))]),
            exactly(&[("r", json!({ "tolerations": [{ "key": "example.com/broken", "operator": "Equal", "value": "yes" }] }))]),
            "r=a",
        ),
        case(
            "the same attribute",
            json!([device("a", "m", numa(0)), device("b", "m", numa(1)), device("c", "m", numa(1))]),
            constrained(json!({ "matchAttribute": "gpu.example.com/numa" })),
            "x=b y=c",
        ),
        case(
            "different attributes",
            json!([device("a", "m", numa(1)), device("b", "m", numa(1)), device("c", "m", numa(2))]),
            constrained(json!({ "distinctAttribute": "gpu.example.com/numa" })),
            "x=a y=c",
        ),
        case(
            "a constraint of another request",
            json!([device("a", "m", numa(0)), device("b", "m", numa(1))]),
            constrained(json!({ "matchAttribute": "gpu.example.com/numa", "requests": ["x"] })),
            "x=a y=b",
        ),
        Case {
            slice: counters.clone(),
            ..case("a whole or its halves", quarters.clone(), exactly(&[("r", json!({ "count": 2 }))]), "r=half-0 r=half-1")
        },
        Case {
            slice: counters,
            ..case("no more than the counters", quarters, exactly(&[("r", json!({ "count": 3 }))]), "cannot allocate all claims")
        },
        case("a share of a device", shared.clone(), exactly(&[("r", six())]), "r=s"),
        case("two shares are too much", shared.clone(), exactly(&[("r", six()), ("s", six())]), "cannot allocate all claims"),
        case(
            "a capacity that it does not have",
            shared,
            exactly(&[("r", json!({ "capacity": { "requests": { "no": "1" } } }))]),
            "cannot allocate all claims",
        ),
        Case {
            slice: json!({ "nodeName": null, "allNodes": true }),
            ..case("devices of all nodes", two(), exactly(&[("r", json!({}))]), "r=a")
        },
        Case {
            slice: json!({ "nodeName": null, "nodeSelector": { "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": ["n2"] }] }] } }),
            ..case("devices of other nodes", two(), exactly(&[("r", json!({}))]), "cannot allocate all claims")
        },
        Case {
            slice: json!({ "pool": { "name": "n1", "generation": 1, "resourceSliceCount": 2 } }),
            ..case("a pool that is not whole", two(), exactly(&[("r", json!({}))]), "cannot allocate all claims")
        },
        Case {
            slice: json!({ "pool": { "name": "n1", "generation": 1, "resourceSliceCount": 2 } }),
            ..case(
                "all of a pool that is not whole",
                two(),
                exactly(&[("r", json!({ "allocationMode": "All" }))]),
                "claim a/c0, request r: asks for all devices, but resource pool gpu.example.com/n1 is currently being updated",
            )
        },
        Case {
            rules: json!([{ "deviceSelector": { "driver": DRIVER, "pool": "n1", "device": "a" }, "taint": { "key": "example.com/admin", "effect": "NoSchedule" } }]),
            ..case("an administrator's rule", two(), exactly(&[("r", json!({}))]), "r=b")
        },
    ];
    let both = vec![exactly(&[("r", json!({}))]), exactly(&[("r", json!({}))])];
    cases.push(Case { claims: both, ..case("two claims", two(), json!({}), "r=a r=b") });
    for case in &cases {
        let got = outcome(&world(case), &pod(case.claims.len()), &node("n1"));
        let prefix = case.expected.starts_with("claim") && got.starts_with(case.expected);
        assert!(got == case.expected || prefix, "{}: {got}", case.name);
    }
}

#[test]
fn what_is_promised_counts_until_it_is_written_or_given_up() {
    let devices = json!([device("a", "m", json!({}))]);
    let case = Case { claims: vec![exactly(&[("r", json!({}))]); 2], ..case("", devices, json!({}), "") };
    let mut world = world(&case);
    let of = |name: &str| -> Pod {
        let claims = json!([{ "name": "c", "resourceClaimName": name }]);
        object(
            json!({ "metadata": { "namespace": "a", "name": name, "uid": name }, "spec": { "containers": [], "resourceClaims": claims } }),
        )
    };
    let (first, second) = (of("c0"), of("c1"));
    let decide = |world: &Devices, pod: &Pod| world.needs(pod).unwrap().unwrap().decide(&node("n1"));
    let decision = decide(&world, &first).unwrap();
    world.assume(&first.key(), &decision);
    assert!(decide(&world, &second).is_none());
    assert!(world.needs(&first).is_err_and(|why| why == "resource claim a/c0 is in the process of being allocated"));

    world.release(&first.key());
    assert!(decide(&world, &second).is_some(), "given up");

    let written = |revision: &str, allocation: Value| -> ResourceClaim {
        let mut claim = json!(claim("c0", case.claims[0].clone()));
        claim["metadata"]["resourceVersion"] = revision.into();
        claim["status"] = json!({ "allocation": allocation });
        object(claim)
    };
    let decision = decide(&world, &first).unwrap();
    world.assume(&first.key(), &decision);
    world.settle(&first.key(), &[(decision.claims[0].0.key(), 7)]);
    assert!(decide(&world, &second).is_none(), "written, and not yet seen");
    world.claims.apply(written("7", json!(decision.claims[0].1)));
    assert_eq!(world.observe(&decision.claims[0].0.key()), Help::Users);
    assert!(decide(&world, &second).is_none(), "seen");
    world.claims.apply(written("8", Value::Null));
    assert_eq!(world.observe(&decision.claims[0].0.key()), Help::All);
    assert!(decide(&world, &second).is_some(), "given back");
}

#[test]
fn an_administrators_claim_shares_a_device_that_is_in_use() {
    let devices = json!([device("a", "m", json!({}))]);
    let mut case = Case { claims: vec![exactly(&[("r", json!({}))]); 2], ..case("", devices, json!({}), "") };
    case.claims[1] = exactly(&[("r", json!({ "adminAccess": true }))]);
    let world = world(&case);
    let decision = world.needs(&pod(2)).unwrap().unwrap().decide(&node("n1")).unwrap();
    let results: Vec<_> = decision
        .claims
        .iter()
        .map(|(_, allocation)| allocation.as_ref().unwrap().devices.clone().unwrap().results.unwrap()[0].clone())
        .collect();
    assert_eq!((results[0].device.as_str(), results[1].device.as_str(), results[1].admin_access), ("a", "a", Some(true)));
}

#[test]
fn an_allocation_says_where_it_can_be_used_and_how_its_devices_are_set_up() {
    let mut claim = exactly(&[("r", json!({}))]);
    let parameters = |value: &str| json!({ "driver": DRIVER, "parameters": { "is": value } });
    claim["config"] = json!([{ "opaque": parameters("claim") }]);
    let case = case("", json!([device("a", "m", json!({}))]), claim, "");
    let mut world = world(&case);
    world.classes.apply(object(
        json!({ "metadata": { "name": "gpu", "resourceVersion": "2" }, "spec": { "config": [{ "opaque": parameters("class") }] } }),
    ));
    world.refresh();
    let decision = world.needs(&pod(1)).unwrap().unwrap().decide(&node("n1")).unwrap();
    let expected = json!({
        "devices": {
            "results": [{ "request": "r", "driver": DRIVER, "pool": "n1", "device": "a" }],
            "config": [{ "source": "FromClass", "opaque": parameters("class") }, { "source": "FromClaim", "opaque": parameters("claim") }],
        },
        "nodeSelector": { "nodeSelectorTerms": [{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n1"] }] }] },
    });
    assert_eq!(json!(decision.claims[0].1), expected);
}
