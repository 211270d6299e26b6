use serde_json::json;

use crate::cost::{Cost, Sizes, Unknown};
use crate::{Activation, Budget, Env, EvalError, Type, Value};

fn env() -> Env {
    Env::new().with("self", Type::Dyn).with("oldSelf", Type::Dyn)
}

/// The value of an expression over a small object, as JSON; failures as text.
fn eval(source: &str) -> String {
    let object = json!({
        "a": 1, "b": "text", "list": [3, 1, 2], "names": ["x", "y"], "map": {"k": "v", "n": 2}, "f": 1.5, "t": true,
        "items": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]
    });
    let env = env();
    let program = match env.compile(source) {
        Ok(program) => program,
        Err(error) => return format!("compile: {}", error.issues[0].message),
    };
    let activation = Activation::new().with("self", Value::json(&object, &Type::Dyn));
    match program.evaluate(&activation, &mut Budget::default()) {
        Ok(value) => value.to_json().map_or_else(|| "no JSON".into(), |json| json.to_string()),
        Err(error) => format!("error: {error}"),
    }
}

#[test]
fn expressions_have_the_values_that_cel_gives_them() {
    let cases = [
        ("1 + 2 * 3", "7"),
        ("-(3) - -2", "-1"),
        ("7 / 2", "3"),
        ("-7 % 3", "-1"),
        ("1u + 2u", "3"),
        ("'a' + \"b\" + r'\\n'", "\"ab\\\\n\""),
        ("'\\u00e9'.size()", "1"),
        ("b'abc'", "\"YWJj\""),
        ("1 == 1.0 && 2u == 2", "compile: found no matching overload for '_==_' applied to '(int, double)'"),
        ("dyn(1) == 1.0 && 1 < 1.5", "true"),
        ("self.a == 1 && self.b == 'text'", "true"),
        ("has(self.a) && !has(self.zzz)", "true"),
        ("self.zzz == 1", "error: no such key: zzz"),
        ("self.zzz == 1 || true", "true"),
        ("true || self.zzz == 1", "true"),
        ("self.zzz == 1 && false", "false"),
        ("self.t ? 'yes' : 'no'", "\"yes\""),
        ("self.list.all(x, x > 0)", "true"),
        ("self.list.exists(x, x == 2)", "true"),
        ("self.list.exists_one(x, x > 1)", "false"),
        ("self.list.map(x, x * 2)", "[6,2,4]"),
        ("self.list.map(x, x > 1, x * 2)", "[6,4]"),
        ("self.list.filter(x, x > 1)", "[3,2]"),
        ("self.map.all(k, k != '')", "true"),
        ("[1, 2].all(x, [3, 4].exists(y, y > x))", "true"),
        ("self.list.all(i, v, v > i - 5)", "true"),
        ("self.list.exists(i, v, i == v)", "true"),
        ("self.list.existsOne(i, v, i == v)", "false"),
        ("self.names.transformList(i, v, string(i) + v)", "[\"0x\",\"1y\"]"),
        ("{'a': 1, 'b': 2}.transformMap(k, v, v + 1)", "{\"a\":2,\"b\":3}"),
        ("{'a': 1}.transformMapEntry(k, v, {string(v): k})", "{\"1\":\"a\"}"),
        ("self.list[0] + self.list[2]", "5"),
        ("self.list[9]", "error: index out of bounds: 9"),
        ("self.map['k']", "\"v\""),
        ("'k' in self.map && 3 in self.list", "true"),
        ("size(self.list) + self.b.size()", "7"),
        ("self.?zzz.orValue('none')", "\"none\""),
        ("self.map[?'k'].orValue('none')", "\"v\""),
        ("self.?map.?k.hasValue()", "true"),
        ("optional.of(3).optMap(x, x + 1).value()", "4"),
        ("optional.none().orValue(5)", "5"),
        ("[?self.?zzz, ?self.?a]", "[1]"),
        ("{?'x': self.?zzz, 'y': 1}", "{\"y\":1}"),
        ("cel.bind(x, self.a + 1, x * x)", "4"),
        ("1 / 0", "error: division by zero"),
        ("9223372036854775807 + 1", "error: integer overflow"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("type(1) == int && type('') == string", "true"),
        ("int('42') + int(1.9)", "43"),
        ("string(1.0)", "\"1\""),
        ("string(true)", "\"true\""),
        ("duration('1h30m') > duration('60m')", "true"),
        ("string(duration('1500ms'))", "\"1.5s\""),
        ("timestamp('2024-01-02T03:04:05Z').getFullYear()", "2024"),
        ("timestamp('2024-01-02T03:04:05Z').getDayOfWeek()", "2"),
        ("timestamp('2024-01-02T03:04:05Z') + duration('1h') > timestamp('2024-01-02T03:59:00Z')", "true"),
        ("timestamp('nonsense')", "compile: invalid timestamp argument"),
        ("'abc'.matches('[')", "compile: invalid matches argument"),
    ];
    for (source, wanted) in cases {
        assert_eq!(eval(source), wanted, "{source}");
    }
}

#[test]
fn the_libraries_answer_as_upstream() {
    let cases = [
        ("'hello'.charAt(1) + 'Hello'.lowerAscii()", "\"ehello\""),
        ("'a,b,c'.split(',')", "[\"a\",\"b\",\"c\"]"),
        ("'a,b,c'.split(',', 2)", "[\"a\",\"b,c\"]"),
        ("['a','b'].join('-')", "\"a-b\""),
        ("'hello'.substring(1, 3)", "\"el\""),
        ("'hello'.indexOf('l') + 'hello'.lastIndexOf('l')", "5"),
        ("' x '.trim()", "\"x\""),
        ("'aaa'.replace('a', 'b', 2)", "\"bba\""),
        ("'%s is %d and %.2f'.format(['x', 3, 1.5])", "\"x is 3 and 1.50\""),
        ("'%s'.format([[1, 2]])", "\"[1, 2]\""),
        ("'abc 123'.find('[0-9]+')", "\"123\""),
        ("'1 2 3'.findAll('[0-9]', 2)", "[\"1\",\"2\"]"),
        ("[3, 1, 2].sum() + [1, 2].max() + [1, 2].min()", "9"),
        ("[1, 2, 2].isSorted() && ![2, 1].isSorted()", "true"),
        ("[1, 2, 1].indexOf(1) + [1, 2, 1].lastIndexOf(1)", "2"),
        ("sets.contains([1, 2, 3], [1, 2]) && sets.intersects([1], [1, 2]) && sets.equivalent([1, 1], [1])", "true"),
        ("[3, 1, 2].sort()", "[1,2,3]"),
        ("self.items.sortBy(x, -x.port).map(x, x.name)", "[\"b\",\"a\"]"),
        ("[1, 2, 3].slice(1, 3)", "[2,3]"),
        ("[[1], [2, 3]].flatten()", "[1,2,3]"),
        ("[1, 1, 2].distinct()", "[1,2]"),
        ("lists.range(3)", "[0,1,2]"),
        ("url('https://user@a.b:80/p q?x=1&x=2').getHost()", "\"a.b:80\""),
        ("url('https://a.b:80/p?x=1&x=2').getQuery()", "{\"x\":[\"1\",\"2\"]}"),
        ("isURL('no url') || url('/path').getScheme() != ''", "false"),
        ("quantity('1Gi').isGreaterThan(quantity('1G'))", "true"),
        ("quantity('50k').add(quantity('20k')) == quantity('70k')", "true"),
        ("quantity('1.5').isInteger()", "false"),
        ("isQuantity('1x')", "false"),
        ("ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('::ffff:1.2.3.4')", "true"),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')", "true"),
        ("string(cidr('10.1.2.3/8').masked())", "\"10.0.0.0/8\""),
        ("ip.isCanonical('::1') && !ip.isCanonical('0:0::1')", "true"),
        ("semver('1.2.3').isLessThan(semver('1.10.0')) && semver('v1.2', true).minor() == 2", "true"),
        ("format.dns1123Label().validate('Bad').hasValue()", "true"),
        ("format.named('dns1123Label').value().validate('good')", "null"),
        ("!format.named('nope').hasValue()", "true"),
        ("format.dns1123Label().validate('a') == null", "false"),
        ("jsonpatch.escapeKey('a/b~c')", "\"a~1b~0c\""),
    ];
    for (source, wanted) in cases {
        assert_eq!(eval(source), wanted, "{source}");
    }
}

#[test]
fn wrong_expressions_are_refused_in_cel_gos_words() {
    let env = Env::new().with("self", Type::map(Type::String, Type::Int)).with("name", Type::String);
    let cases = [
        ("foo", "ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')\n | foo\n | ^"),
        ("name + 1", "ERROR: <input>:1:6: found no matching overload for '_+_' applied to '(string, int)'\n | name + 1\n | .....^"),
        ("name.x", "ERROR: <input>:1:5: type 'string' does not support field selection\n | name.x\n | ....^"),
        ("self.x ==", ""),
        ("[1, 'a']", "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^"),
        (
            "name.all(x, true)",
            "ERROR: <input>:1:1: expression of type 'string' cannot be range of a comprehension (must be list, map, or dynamic)\n | name.all(x, true)\n | ^",
        ),
        ("nope(1)", "ERROR: <input>:1:5: undeclared reference to 'nope' (in container '')\n | nope(1)\n | ....^"),
    ];
    for (source, wanted) in cases {
        let error = env.compile(source).expect_err(source).to_string();
        if wanted.is_empty() {
            assert!(error.contains("Syntax error"), "{error}");
        } else {
            assert_eq!(error, wanted, "{source}");
        }
    }
}

#[test]
fn an_evaluation_stops_when_its_budget_is_spent() {
    let numbers: Vec<i64> = (0..300).collect();
    let object = json!({ "n": numbers });
    let env = env();
    let program = env.compile("self.n.all(a, self.n.all(b, self.n.all(c, a + b + c >= 0)))").unwrap();
    let activation = Activation::new().with("self", Value::json(&object, &Type::Dyn));
    let mut budget = Budget::default();
    assert_eq!(program.evaluate(&activation, &mut budget).unwrap_err(), EvalError::CostExceeded);
    let mut small = Budget::new(100);
    assert_eq!(program.evaluate(&activation, &mut small).unwrap_err(), EvalError::BudgetExceeded);
    let interrupt = std::sync::atomic::AtomicBool::new(true);
    let mut interrupted = Budget::default().interrupted_by(&interrupt);
    assert_eq!(program.evaluate(&activation, &mut interrupted).unwrap_err(), EvalError::Interrupted);
}

#[test]
fn estimates_grow_with_the_declared_sizes() {
    struct Fixed(u64);
    impl Sizes for Fixed {
        fn max_size(&self, path: &[String]) -> Option<u64> {
            Some(if path.last().is_some_and(|last| last == "@items") { 10 } else { self.0 })
        }
    }
    let env = Env::new().with("self", Type::list(Type::String));
    let program = env.compile("self.all(x, x == 'abc')").unwrap();
    let (small, large) = (program.estimate(&Fixed(5)), program.estimate(&Fixed(500)));
    // Per item: the accumulator twice, not_strictly_false, the item, the comparison.
    assert_eq!(small, Cost { min: 2, max: 2 + 5 * 5 });
    assert_eq!(large.max, 2 + 500 * 5);
    assert!(program.estimate(&Unknown).max > 1 << 60);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_compiler_panic(text in "[-+*/%<>=!&|?:.,(){}\\[\\]a-z0-9'\" \\n]{0,40}") {
        let _ = env().compile(&text);
    }
}
