//! A bad cable: a table of its own in the node's namespace, before everything else.

use nft::{Batch, ChainKind, Element, Expression, Field, Hook, HookPoint, Meta, Register, Set, Socket, Table, Value, Verdict};

const CHAIN: &str = "incoming";
const UNLUCKY: &str = "unlucky";
const LINK: &[u8; 5] = b"eth0\0";

/// Drops so many of a hundred packets that come in over the node's link; `None`: none any more. In the namespace of the calling thread.
pub fn set(table: &Table, percent: Option<u8>) -> anyhow::Result<()> {
    let mut socket = Socket::netfilter()?;
    table.delete(&mut socket)?;
    let Some(percent) = percent else { return Ok(()) };
    let register = Register::at(0);
    let mut batch = Batch::new(table);
    batch.add_table();
    batch.add_set(&Set { name: UNLUCKY.into(), key: vec![Field::Mark], maps_to: None, dynamic: false, intervals: false });
    let numbers: Vec<Element> = (0..percent).map(|number| Element::key(Value::new().mark(number.into()))).collect();
    batch.add_elements(UNLUCKY, &numbers);
    // Before connection tracking, as a cable would.
    batch.add_chain(CHAIN, Some(Hook { kind: ChainKind::Filter, point: HookPoint::Prerouting, priority: -400 }));
    batch.add_rule(
        CHAIN,
        &[
            Expression::Meta { key: Meta::IncomingName, to: register },
            Expression::Equal { register, value: LINK.to_vec() },
            Expression::Random { to: register, modulus: 100, offset: 0 },
            Expression::Contains { set: UNLUCKY.into(), key: register, invert: false },
            Expression::Counter,
            Expression::Verdict(Verdict::Drop),
        ],
    );
    Ok(batch.commit(&mut socket)?)
}
