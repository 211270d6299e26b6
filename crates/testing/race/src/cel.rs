//! What a CEL rule costs: to compile once, and to run over an object.

use std::hint::black_box;
use std::path::Path;

use anyhow::Context;
use cel::{Activation, Budget, Env, Program, Type, Value};
use serde_json::json;

use crate::Options;
use crate::measure::Spread;
use crate::report::{Outcome, spread};

const METHOD: &str = "\
Rules as CRDs and policies have them, over one object of a Deployment's size. Every rule runs in batches on one thread, all rules in turn in \
each round; a batch's time is the thread's processor time by the number of runs. The floor is the same comparison written in Rust over \
the same tree of values.";

/// Runs in a batch.
const BATCH: u32 = 2_000;

const RULES: [(&str, &str); 6] = [
    ("compare two fields", "self.spec.minReplicas <= self.spec.maxReplicas"),
    ("presence and choice", "!has(self.spec.paused) || self.spec.paused == false"),
    ("all over ten items", "self.spec.items.all(item, item.port > 0 && item.port < 65536)"),
    ("pairs of ten items", "self.spec.items.all(a, self.spec.items.exists_one(b, a.name == b.name))"),
    ("regular expression", "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')"),
    ("quantities", "quantity(self.spec.memory).isLessThan(quantity('2Gi'))"),
];

pub async fn race(options: &Options, _dir: &Path) -> anyhow::Result<Outcome> {
    let items: Vec<serde_json::Value> = (0..10).map(|n| json!({"name": format!("item-{n}"), "port": 8_000 + n})).collect();
    let object = json!({"metadata": {"name": "a-name"}, "spec": {"minReplicas": 1, "maxReplicas": 5, "memory": "1Gi", "items": items}});
    let env = Env::new().with("self", Type::Dyn);
    let compiled = RULES.iter().map(|(name, rule)| Ok((*name, env.compile(rule).with_context(|| name.to_string())?)));
    let programs: Vec<(&str, Program)> = compiled.collect::<anyhow::Result<_>>()?;
    let floor = || {
        let spec = &object["spec"];
        black_box(spec["minReplicas"].as_i64() <= spec["maxReplicas"].as_i64());
    };
    let compile = || drop(black_box(env.compile(RULES[0].1)));
    let mut rows: Vec<(String, Vec<f64>)> =
        vec![("floor: compare two fields in Rust".into(), Vec::new()), ("compile a rule".into(), Vec::new())];
    rows.extend(programs.iter().map(|(name, _)| ((*name).to_owned(), Vec::new())));
    for _ in 0..options.rounds {
        let mut at = 0;
        let mut take = |run: &dyn Fn()| {
            rows[at].1.push(micros(run));
            at += 1;
        };
        take(&floor);
        take(&compile);
        for (_, program) in &programs {
            take(&|| {
                let activation = Activation::new().with("self", Value::json(&object, &Type::Dyn));
                let _ = black_box(program.evaluate(&activation, &mut Budget::default()));
            });
        }
    }
    let mut figures = serde_json::Map::new();
    let mut table = Vec::new();
    for (name, micros) in &rows {
        let found = Spread::of(micros);
        table.push(vec![format!("{name}, µs"), spread(&found)]);
        figures.insert(name.clone(), json!({"microseconds": micros, "spread": found}));
    }
    Ok(Outcome { method: METHOD.into(), head: vec!["what", "median (least–most)"], rows: table, figures: figures.into() })
}

/// Processor time of one run, in microseconds.
fn micros(run: &dyn Fn()) -> f64 {
    let clock = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
    };
    let before = clock();
    for _ in 0..BATCH {
        run();
    }
    (clock() - before) / f64::from(BATCH)
}
