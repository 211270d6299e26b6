//! Expressions: compiled, priced, evaluated under a small budget over an object with every type of JSON; what they cost stays below the price.

#![no_main]

use std::sync::OnceLock;

use cel::cost::Unknown;
use cel::{Activation, Budget, Env, Type, Value};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// Enough for any short expression, little enough for thousands of runs a second.
const BUDGET: u64 = 20_000;

fn object() -> &'static serde_json::Value {
    static OBJECT: OnceLock<serde_json::Value> = OnceLock::new();
    OBJECT.get_or_init(|| {
        json!({"name": "a-name", "replicas": 3, "ratio": 0.5, "large": i64::MAX, "on": true, "none": null, "list": [1, 2, 3],
            "names": ["a", "b", "ä", ""], "map": {"k": "v", "a b": 1}, "items": [{"name": "x", "port": 80}, {"name": "y"}],
            "time": "2026-11-21T00:00:00Z", "duration": "1h2m", "quantity": "1Gi", "address": "10.0.0.1", "cidr": "fd00::/8",
            "url": "https://example.com:80/a?b=c", "version": "1.2.3-rc.1"})
    })
}

fuzz_target!(|source: &str| {
    let env = Env::new().with("self", Type::Dyn).with("oldSelf", Type::Dyn);
    let Ok(program) = env.compile(source) else { return };
    let price = program.estimate(&Unknown);
    assert!(price.min <= price.max, "{source:?}: {price:?}");
    let self_ = Value::json(object(), &Type::Dyn);
    let activation = Activation::new().with("self", self_.clone()).with("oldSelf", self_);
    let mut budget = Budget::new(BUDGET);
    let outcome = program.evaluate(&activation, &mut budget);
    assert!(budget.remaining <= BUDGET);
    if outcome.is_ok() {
        let spent = BUDGET - budget.remaining;
        assert!(spent <= price.max, "{source:?} cost {spent}, its price is {price:?}");
    }
});
