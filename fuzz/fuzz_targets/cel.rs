//! CEL as text: parsed, checked, priced and, over an object, evaluated within its budget. A zero byte parts the expression from the object.

#![no_main]

use cel::cost::Unknown;
use cel::{Activation, Budget, Env, Type, Value};
use libfuzzer_sys::fuzz_target;

/// What one evaluation may cost here: a tenth of a real call's, so that inputs are many.
const BUDGET: u64 = 100_000;

fuzz_target!(|input: &str| {
    let (source, object) = input.split_once('\0').unwrap_or((input, "{\"a\":1,\"b\":[1,2],\"c\":\"x\",\"m\":{\"k\":true}}"));
    let object: serde_json::Value = serde_json::from_str(object).unwrap_or_default();
    let typed = Type::map(Type::String, Type::Dyn);
    for (of_self, value) in [(Type::Dyn, &Type::Dyn), (typed.clone(), &typed)] {
        let Ok(program) = Env::new().with("self", of_self.clone()).compile(source) else { continue };
        let cost = program.estimate(&Unknown);
        assert!(cost.min <= cost.max, "{cost:?}");
        let evaluate = || {
            let activation = Activation::new().with("self", Value::json(&object, value));
            let mut budget = Budget::new(BUDGET);
            program.evaluate(&activation, &mut budget).map(|value| value.to_json()).map_err(|error| error.to_string())
        };
        assert_eq!(evaluate(), evaluate(), "{source:?}");
    }
});
