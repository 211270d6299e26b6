//! nftables over netlink, without the `nft` binary: one table of our own, changed by transactions.
//!
//! Way in: open a [`Socket`] in the network namespace that is meant (it belongs to the calling thread's), fill a [`Batch`] on a
//! [`Table`] with chains, rules of [`Expression`]s, named [`Set`]s and maps and their [`Element`]s, and [`Batch::commit`] it:
//! one `sendto`, all or nothing. [`Table::chains`], [`Table::sets`] and [`Table::elements`] read back what is there. [`conntrack`]
//! forgets connections. [`wire`] and [`Socket::route`] serve others who speak netlink.
//!
//! Invariants of absence: no anonymous sets (a large batch of them is quadratic in the kernel), no foreign table is read or
//! changed, no tasks, no threads.

pub mod conntrack;
pub mod wire;

mod batch;
mod dump;
mod expression;
mod set;
mod socket;

pub use batch::{Batch, ChainKind, Hook, HookPoint};
pub use expression::{
    ADDRESS_TYPE_LOCAL, CT_STATE_ESTABLISHED, CT_STATE_INVALID, CT_STATE_NEW, CT_STATE_RELATED, CT_STATUS_DNAT, Ct, Expression,
    FIB_DESTINATION, FIB_INCOMING, FIB_SOURCE, Family, FibResult, Header, Meta, Register, Reject,
};
pub use set::{Data, Element, Field, MapsTo, Set, Value, Verdict};
pub use socket::Socket;

/// A table of both IP families (`inet`), named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    family: u8,
    pub name: String,
}

impl Table {
    pub fn inet(name: &str) -> Self {
        const NFPROTO_INET: u8 = 1;
        Self { family: NFPROTO_INET, name: name.to_owned() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel said no, or could not be reached. Nothing of the batch was applied.
    #[error("nftables table {table}: {object}")]
    Refused { object: String, table: String, source: std::io::Error },
}

/// Message types: subsystem in the high byte.
mod message {
    pub const SUBSYSTEM_NFTABLES: u16 = 10;
    const SUBSYSTEM_CONNTRACK: u16 = 1;

    pub const NEW_TABLE: u8 = 0;
    pub const GET_TABLE: u8 = 1;
    pub const DEL_TABLE: u8 = 2;
    pub const NEW_CHAIN: u8 = 3;
    pub const GET_CHAIN: u8 = 4;
    pub const DEL_CHAIN: u8 = 5;
    pub const NEW_RULE: u8 = 6;
    pub const DEL_RULE: u8 = 8;
    pub const NEW_SET: u8 = 9;
    pub const GET_SET: u8 = 10;
    pub const DEL_SET: u8 = 11;
    pub const NEW_ELEMENT: u8 = 12;
    pub const GET_ELEMENT: u8 = 13;
    pub const DEL_ELEMENT: u8 = 14;
    pub const CT_GET: u8 = 1;
    pub const CT_DELETE: u8 = 2;

    pub fn nftables(kind: u8) -> u16 {
        SUBSYSTEM_NFTABLES << 8 | u16::from(kind)
    }
    pub fn conntrack(kind: u8) -> u16 {
        SUBSYSTEM_CONNTRACK << 8 | u16::from(kind)
    }
}

/// The header of every nfnetlink message.
fn nfgenmsg(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}
