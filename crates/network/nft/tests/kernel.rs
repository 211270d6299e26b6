//! Transactions on a real kernel, in a namespace of their own. Needs root.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use nft::{Batch, ChainKind, Element, Error, Expression, Field, Hook, HookPoint, MapsTo, Register, Set, Socket, Table, Value, Verdict};
use rustix::thread::UnshareFlags;

/// Runs `test` on a thread with its own network namespace, which dies with the thread.
fn in_new_namespace(test: impl FnOnce(&mut Socket) + Send) {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: only this thread's network namespace changes, and the thread ends here.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare needs root");
                test(&mut Socket::netfilter().unwrap());
            })
            .join()
            .unwrap();
    });
}

fn table() -> Table {
    Table::inet("probe")
}

fn key(last: u8, port: u16) -> Value {
    Value::new().address(IpAddr::from([10, 96, 0, last])).protocol(6).port(port)
}

fn verdict_map() -> Set {
    Set {
        name: "map".into(),
        key: vec![Field::Ipv4, Field::Protocol, Field::Port],
        maps_to: Some(MapsTo::Verdict),
        dynamic: false,
        intervals: false,
    }
}

/// A table with a base chain, a chain and a verdict map with one element.
fn install(socket: &mut Socket) {
    let mut batch = Batch::new(&table());
    batch.add_table();
    batch.add_set(&verdict_map());
    batch.add_chain("target", None);
    batch.add_chain("base", Some(Hook { kind: ChainKind::Filter, point: HookPoint::Output, priority: 0 }));
    batch.add_rule("target", &[Expression::Counter, Expression::Verdict(Verdict::Accept)]);
    batch.add_elements("map", &[Element::verdict(key(1, 80), Verdict::Goto("target".into()))]);
    batch.commit(socket).unwrap();
}

#[test]
fn what_was_committed_is_read_back_and_deleting_the_table_is_idempotent() {
    in_new_namespace(|socket| {
        install(socket);
        assert_eq!(table().chains(socket).unwrap(), ["target", "base"]);
        assert_eq!(table().sets(socket).unwrap(), ["map"]);
        assert_eq!(table().elements(socket, "map").unwrap(), [Element::verdict(key(1, 80), Verdict::Goto("target".into()))]);
        table().delete(socket).unwrap();
        table().delete(socket).unwrap();
        assert!(!table().exists(socket).unwrap());
        assert!(table().chains(socket).unwrap().is_empty());
    });
}

#[test]
fn a_refused_batch_names_its_object_and_changes_nothing() {
    in_new_namespace(|socket| {
        install(socket);
        let mut batch = Batch::new(&table());
        batch.add_elements("map", &[Element::verdict(key(2, 80), Verdict::Drop)]);
        batch.add_elements("missing", &[Element::key(key(3, 80))]);
        let Error::Refused { object, source, .. } = batch.commit(socket).unwrap_err();
        assert_eq!((object.as_str(), source.kind()), ("add to set missing", std::io::ErrorKind::NotFound));
        assert_eq!(table().elements(socket, "map").unwrap().len(), 1);
        let mut batch = Batch::new(&table());
        batch.delete_chain("target");
        let Error::Refused { object, source, .. } = batch.commit(socket).unwrap_err();
        assert_eq!((object.as_str(), source.raw_os_error()), ("delete chain target", Some(libc::EBUSY)));
        install(socket);
    });
}

#[test]
fn an_element_can_be_replaced_and_a_name_reused_within_one_batch() {
    in_new_namespace(|socket| {
        install(socket);
        let mut batch = Batch::new(&table());
        batch.delete_elements("map", &[Element::key(key(1, 80))]);
        batch.flush_chain("target");
        batch.delete_chain("target");
        batch.add_chain("target", None);
        batch.add_elements("map", &[Element::verdict(key(1, 80), Verdict::Jump("target".into()))]);
        batch.commit(socket).unwrap();
        assert_eq!(table().elements(socket, "map").unwrap(), [Element::verdict(key(1, 80), Verdict::Jump("target".into()))]);
    });
}

#[test]
fn tens_of_thousands_of_elements_travel_in_one_batch() {
    in_new_namespace(|socket| {
        install(socket);
        let elements: Vec<Element> = (1..50_000).map(|port| Element::verdict(key(9, port), Verdict::Goto("target".into()))).collect();
        let mut batch = Batch::new(&table());
        batch.add_elements("map", &elements);
        assert!(batch.len_bytes() > 1 << 20);
        batch.commit(socket).unwrap();
        assert_eq!(table().elements(socket, "map").unwrap().len(), 50_000);
    });
}

#[test]
fn every_expression_is_understood_by_the_kernel() {
    use nft::{Ct, FIB_DESTINATION, Family, FibResult, Header, Meta, Reject};
    let register = Register::at;
    in_new_namespace(|socket| {
        let mut batch = Batch::new(&table());
        batch.add_table();
        let dynamic = Set {
            name: "seen".into(),
            key: vec![Field::Ipv4],
            maps_to: Some(MapsTo::Fields(vec![Field::Mark])),
            dynamic: true,
            intervals: false,
        };
        batch.add_set(&dynamic);
        batch.add_set(&Set { name: "names".into(), key: vec![Field::InterfaceName], maps_to: None, dynamic: false, intervals: false });
        for (chain, kind, point, priority) in [
            ("raw", ChainKind::Filter, HookPoint::Prerouting, -300),
            ("in", ChainKind::Filter, HookPoint::Input, 0),
            ("dnat", ChainKind::Nat, HookPoint::Prerouting, -100),
            ("snat", ChainKind::Nat, HookPoint::Postrouting, 100),
        ] {
            batch.add_chain(chain, Some(Hook { kind, point, priority }));
        }
        batch.add_rule("raw", &[Expression::Notrack]);
        batch.add_rule("in", &[Expression::Ct { key: Ct::Mark, to: register(0) }, Expression::Reject(Reject::PortUnreachable)]);
        let tcp = [Expression::Meta { key: Meta::Protocol, to: register(0) }, Expression::Equal { register: register(0), value: vec![6] }];
        batch.add_rule("in", &[&tcp[..], &[Expression::Reject(Reject::TcpReset)]].concat());
        batch.add_rule(
            "in",
            &[
                Expression::Meta { key: Meta::IncomingName, to: register(0) },
                Expression::Contains { set: "names".into(), key: register(0), invert: true },
                Expression::Verdict(Verdict::Drop),
            ],
        );
        let mut dnat = Expression::is_family(Family::Ipv4, register(0)).to_vec();
        dnat.extend([
            Expression::Fib { result: FibResult::AddressType, inputs: FIB_DESTINATION, to: register(0) },
            Expression::source(Family::Ipv4, register(0)),
            Expression::Random { to: register(1), modulus: 3, offset: 10 },
            Expression::Remember { set: "seen".into(), key: register(0), data: Some(register(1)), timeout: Duration::from_secs(5) },
            Expression::Lookup { map: "seen".into(), key: register(0), to: register(1) },
            Expression::Payload { header: Header::Transport, offset: 2, bytes: 2, to: register(2) },
            Expression::Immediate { to: register(3), value: vec![10, 0, 0, 1] },
            Expression::Dnat { family: Family::Ipv4, address: register(3), port: Some(register(2)) },
        ]);
        batch.add_rule("dnat", &dnat);
        batch.add_rule("snat", &[Expression::Counter, Expression::Masquerade]);
        batch.commit(socket).unwrap();
    });
}
