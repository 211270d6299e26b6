use super::*;

fn job(spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "i"}]}}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        set(&mut object, &format!("spec.{key}"), value.clone());
    }
    Job.default(&mut object);
    Job.prepare_create(&mut object);
    object
}

fn complaints(object: &Value) -> Vec<String> {
    Job.validate(object).iter().map(ToString::to_string).collect()
}

#[test]
fn a_job_finds_its_pods_by_its_uid() {
    let object = job(json!({}));
    assert_eq!(complaints(&object), Vec::<String>::new());
    assert_eq!(object["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
    assert_eq!(object["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
    assert_eq!((&object["spec"]["completions"], &object["spec"]["backoffLimit"]), (&json!(1), &json!(6)));
    assert_eq!(Job.cells(&object, 0)[1..4], ["Running", "0/1", ""].map(Value::from));
}

#[test]
fn broken_jobs_are_explained() {
    let always = json!({"spec": {"restartPolicy": "Always", "containers": [{"name": "c", "image": "i"}]}});
    let rule = |rule: Value| json!({"podFailurePolicy": {"rules": [rule]}});
    let cases = [
        (json!({"template": always}), vec!["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]),
        (json!({"parallelism": -1}), vec!["spec.parallelism: Invalid value: -1: must be greater than or equal to 0"]),
        (json!({"completionMode": "Indexed", "parallelism": 1}), vec!["spec.completions: Required value: when completion mode is Indexed"]),
        (json!({"backoffLimitPerIndex": 1}), vec!["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"]),
        (
            json!({"completionMode": "Some"}),
            vec!["spec.completionMode: Unsupported value: \"Some\": supported values: \"NonIndexed\", \"Indexed\""],
        ),
        (
            json!({"managedBy": "me"}),
            vec!["spec.managedBy: Invalid value: \"me\": must be a domain-prefixed path (such as \"acme.io/foo\")"],
        ),
        (
            rule(json!({"action": "Ignore"})),
            vec!["spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required"],
        ),
        (
            rule(json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3, 0, 3]}})),
            vec![
                "spec.podFailurePolicy.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator",
                "spec.podFailurePolicy.rules[0].onExitCodes.values[2]: Duplicate value: 3",
                "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [3,0,3]: must be ordered",
            ],
        ),
        (
            json!({"completionMode": "Indexed", "completions": 3, "parallelism": 1, "successPolicy": {"rules": [{"succeededIndexes": "0,2-9"}]}}),
            vec![
                "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"0,2-9\": error parsing succeededIndexes: too large index: \"9\"",
            ],
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(complaints(&job(spec.clone())), expected, "{spec}");
    }
}

#[test]
fn a_job_keeps_its_template_unless_it_is_suspended() {
    let update = |old: &Value, path: &str, value: Value| -> Vec<String> {
        let mut new = old.clone();
        set(&mut new, path, value);
        Job.validate_update(&new, old, Part::Main).iter().map(|error| error.path.to_string()).collect()
    };
    let (running, suspended) = (job(json!({})), job(json!({"suspend": true})));
    let selector = json!({"zone": "a"});
    assert_eq!(update(&running, "spec.template.spec.nodeSelector", selector.clone()), ["spec.template"]);
    assert_eq!(update(&suspended, "spec.template.spec.nodeSelector", selector), Vec::<String>::new());
    assert_eq!(update(&suspended, "spec.template.spec.hostNetwork", json!(true)), ["spec.template"]);
    assert_eq!(update(&running, "spec.completions", json!(3)), ["spec.completions"]);
    assert_eq!(update(&running, "spec.parallelism", json!(3)), Vec::<String>::new());
}

#[test]
fn a_client_may_not_contradict_the_generated_selector() {
    let mut object = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    Job.default(&mut object);
    Job.prepare_create(&mut object);
    let expected = "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"batch.kubernetes.io/controller-uid\":\"u\"}}: \
                    `selector` not auto-generated";
    assert_eq!(complaints(&object), [expected]);
}
