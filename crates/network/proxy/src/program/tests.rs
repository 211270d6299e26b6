use proptest::prelude::*;

use super::*;

fn frontend(address: u8, protocol: u8) -> Frontend {
    Frontend { family: Family::V4, address: (address != 0).then(|| [10, 96, 0, address].into()), protocol, port: 80 }
}

fn endpoint(number: u8) -> Endpoint {
    Endpoint { address: [10, 244, 0, number].into(), port: 8080 }
}

fn balanced(frontend: Frontend, endpoints: &[u8]) -> Plan {
    let endpoints: Vec<Endpoint> = endpoints.iter().copied().map(endpoint).collect();
    let action = match endpoints.is_empty() {
        true => Action::Reject,
        false => Action::Balance(Balance { endpoints, local: None, masquerade: Masquerade::NonPods, affinity_seconds: None }),
    };
    Plan { frontends: BTreeMap::from([(frontend, action)]), ..Plan::default() }
}

fn owner(name: &str) -> Owner {
    Owner::Service("a".into(), name.into())
}

#[test]
fn a_removed_endpoint_costs_two_elements() {
    let mut program = Program::default();
    program.update(vec![(owner("web"), balanced(frontend(1, 6), &[1, 2, 3, 4]))]);
    let change = program.update(vec![(owner("web"), balanced(frontend(1, 6), &[1, 3, 4]))]);
    let at = |index| Key::Endpoint(frontend(1, 6), index);
    assert_eq!(change.delete, BTreeSet::from([at(1), at(3)]));
    assert_eq!(change.add, BTreeMap::from([(at(1), Value::Endpoint(endpoint(4)))]), "the last one fills the hole");
    assert_eq!((change.new_chains.len(), change.unused_chains.len()), (0, 0));
}

#[test]
fn a_service_of_many_endpoints_has_a_chain_of_its_number() {
    let mut program = Program::default();
    let plan = |count: u8| vec![(owner("web"), balanced(frontend(1, 6), &(1..=count).collect::<Vec<_>>()))];
    let (plain, chosen) = (Key::Plain(frontend(1, 6), Plain::NonPods), Key::Frontend(frontend(1, 6)));
    for (count, gone, new, chains) in
        [(16, None, plain, (0, 0)), (17, Some(plain), chosen, (1, 0)), (18, Some(chosen), chosen, (1, 1)), (3, Some(chosen), plain, (0, 1))]
    {
        let change = program.update(plan(count));
        assert_eq!(change.delete.iter().find(|key| !matches!(key, Key::Endpoint(..))), gone.as_ref(), "{count}");
        assert!(change.add.contains_key(&new), "{count}");
        assert_eq!((change.new_chains.len(), change.unused_chains.len()), chains, "{count}");
    }
}

#[test]
fn a_replaced_endpoint_touches_its_own_element_only() {
    let mut program = Program::default();
    program.update(vec![(owner("web"), balanced(frontend(1, 6), &[1, 2, 3]))]);
    let change = program.update(vec![(owner("web"), balanced(frontend(1, 6), &[1, 3, 9]))]);
    assert_eq!(change.add, BTreeMap::from([(Key::Endpoint(frontend(1, 6), 1), Value::Endpoint(endpoint(9)))]));
    assert!(program.update(vec![(owner("web"), balanced(frontend(1, 6), &[9, 3, 1]))]).is_empty(), "order does not matter");
}

#[test]
fn the_first_owner_keeps_a_frontend_and_the_second_is_woken_when_it_is_free() {
    let mut program = Program::default();
    program.update(vec![(owner("first"), balanced(frontend(1, 6), &[1]))]);
    assert!(program.update(vec![(owner("second"), balanced(frontend(1, 6), &[2]))]).is_empty());
    let change = program.update(vec![(owner("first"), Plan::default())]);
    assert_eq!(change.retry, BTreeSet::from([owner("second")]));
    assert!(!program.update(vec![(owner("second"), balanced(frontend(1, 6), &[2]))]).is_empty());
}

#[test]
fn a_frontend_can_change_hands_within_one_batch() {
    let mut program = Program::default();
    program.update(vec![(owner("a"), balanced(frontend(1, 6), &[1]))]);
    let change = program.update(vec![(owner("b"), balanced(frontend(1, 6), &[2])), (owner("a"), Plan::default())]);
    assert_eq!(change.add[&Key::Endpoint(frontend(1, 6), 0)], Value::Endpoint(endpoint(2)));
    assert!(change.delete.contains(&Key::Endpoint(frontend(1, 6), 0)));
}

#[test]
fn udp_clients_of_removed_endpoints_are_forgotten_and_tcp_clients_are_not() {
    for (protocol, expected) in [(17, 1), (6, 0)] {
        let mut program = Program::default();
        program.update(vec![(owner("dns"), balanced(frontend(1, protocol), &[1, 2]))]);
        let more = program.update(vec![(owner("dns"), balanced(frontend(1, protocol), &[1, 2, 3]))]);
        assert_eq!(more.forget.len(), 0);
        let fewer = program.update(vec![(owner("dns"), balanced(frontend(1, protocol), &[1, 3]))]);
        assert_eq!(fewer.forget.len(), expected, "protocol {protocol}");
    }
}

/// What the kernel would hold.
#[derive(Default)]
struct Kernel {
    rows: BTreeMap<Key, Value>,
    chains: BTreeSet<Chain>,
}

impl Kernel {
    /// As strict as nftables: deletes must hit, adds must not collide, chains in use exist.
    fn apply(&mut self, change: &Change) {
        for key in &change.delete {
            assert!(self.rows.remove(key).is_some(), "delete of {key:?}, which is not there");
        }
        for chain in &change.new_chains {
            assert!(self.chains.insert(*chain), "{chain:?} exists");
        }
        for (key, value) in &change.add {
            assert!(self.rows.insert(*key, *value).is_none(), "{key:?} exists");
        }
        for chain in &change.unused_chains {
            assert!(self.chains.remove(chain));
        }
        let used: BTreeSet<Chain> =
            self.rows.values().filter_map(|value| if let Value::Chain(chain) = value { Some(*chain) } else { None }).collect();
        assert_eq!(used, self.chains);
    }
    fn endpoints(&self, frontend: Frontend) -> BTreeSet<Endpoint> {
        let of_frontend = self.rows.iter().filter(|(key, _)| matches!(key, Key::Endpoint(of, _) if *of == frontend));
        of_frontend.filter_map(|(_, value)| if let Value::Endpoint(endpoint) = value { Some(*endpoint) } else { None }).collect()
    }
}

fn any_plan(address: u8) -> impl Strategy<Value = Plan> {
    (proptest::collection::btree_set(1u8..24, 0..20), any::<bool>(), proptest::collection::btree_set(1u8..5, 0..3)).prop_map(
        move |(endpoints, gone, local)| {
            if gone {
                return Plan::default();
            }
            let mut plan = balanced(frontend(address, 17), &endpoints.into_iter().collect::<Vec<_>>());
            plan.local_addresses = local.into_iter().map(|number| endpoint(number).address).collect();
            plan
        },
    )
}

proptest! {
    #[test]
    fn changes_keep_the_kernel_equal_to_the_plans(steps in proptest::collection::vec((any_plan(0), any_plan(1), any_plan(2)), 1..12)) {
        let (mut program, mut kernel) = (Program::default(), Kernel::default());
        for (first, second, third) in steps {
            let wanted = [first.clone(), second.clone(), third.clone()];
            let change = program.update(vec![(owner("0"), first), (owner("1"), second), (owner("2"), third)]);
            kernel.apply(&change);
            for plan in &wanted {
                for (frontend, endpoints) in endpoints(plan) {
                    prop_assert_eq!(kernel.endpoints(frontend), endpoints);
                }
            }
            let hairpins: BTreeSet<IpAddr> = wanted.iter().flat_map(|plan| plan.local_addresses.clone()).collect();
            let held: BTreeSet<IpAddr> = kernel.rows.keys().filter_map(|key| if let Key::Hairpin(address) = key { Some(*address) } else { None }).collect();
            prop_assert_eq!(held, hairpins);
        }
    }
}
