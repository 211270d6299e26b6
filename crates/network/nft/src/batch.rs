//! One transaction: everything in it happens, or nothing.

use crate::expression::Expression;
use crate::set::{Element, Set};
use crate::socket::Socket;
use crate::wire::{self, Encoder};
use crate::{Error, Table, message, nfgenmsg};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Room below the 65,535 bytes of one nested attribute.
const ELEMENT_LIST_BYTES_MAX: usize = 60 << 10;

/// What a base chain hooks into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    pub kind: ChainKind,
    pub point: HookPoint,
    /// Lower comes first: -300 before connection tracking, -100 destination NAT, 0 filter, 100 source NAT.
    pub priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// Commands on one table in the order they are applied. Nothing is sent before [`Batch::commit`].
#[derive(Clone, Debug)]
pub struct Batch {
    table: Table,
    encoder: Encoder,
    /// What each message is about, by sequence number from 1; 0 is the begin mark.
    objects: Vec<String>,
    last: usize,
    sets: u32,
}

impl Batch {
    pub fn new(table: &Table) -> Self {
        let mut encoder = Encoder::new();
        mark(&mut encoder, BATCH_BEGIN, 0);
        Self { table: table.clone(), encoder, objects: vec![format!("batch on table {}", table.name)], last: 0, sets: 0 }
    }
    pub fn is_empty(&self) -> bool {
        self.objects.len() == 1
    }
    /// Bytes that will be sent.
    pub fn len_bytes(&self) -> usize {
        self.encoder.bytes().len()
    }

    /// An existing table is fine.
    pub fn add_table(&mut self) {
        let name = self.table.name.clone();
        self.command(message::NEW_TABLE, wire::CREATE, format!("add table {name}"), |body| {
            body.string(1, &name);
            body.u32_be(2, 0);
        });
    }
    pub fn delete_table(&mut self) {
        let name = self.table.name.clone();
        self.command(message::DEL_TABLE, 0, format!("delete table {name}"), |body| body.string(1, &name));
    }
    /// A regular chain, or a base chain when `hook` is given. An existing one with the same hook is fine.
    pub fn add_chain(&mut self, chain: &str, hook: Option<Hook>) {
        const POLICY_ACCEPT: u32 = 1;
        let table = self.table.name.clone();
        self.command(message::NEW_CHAIN, wire::CREATE, format!("add chain {chain}"), |body| {
            body.string(1, &table);
            body.string(3, chain);
            if let Some(hook) = hook {
                body.nested(4, |nested| {
                    nested.u32_be(1, hook.point as u32);
                    nested.u32_be(2, hook.priority.cast_unsigned());
                });
                body.u32_be(5, POLICY_ACCEPT);
                body.string(7, if hook.kind == ChainKind::Nat { "nat" } else { "filter" });
            }
        });
    }
    /// It must hold no rules and nothing may lead to it.
    pub fn delete_chain(&mut self, chain: &str) {
        let table = self.table.name.clone();
        self.command(message::DEL_CHAIN, 0, format!("delete chain {chain}"), |body| {
            body.string(1, &table);
            body.string(3, chain);
        });
    }
    /// Removes all rules of the chain.
    pub fn flush_chain(&mut self, chain: &str) {
        let table = self.table.name.clone();
        self.command(message::DEL_RULE, 0, format!("flush chain {chain}"), |body| {
            body.string(1, &table);
            body.string(2, chain);
        });
    }
    /// At the end of the chain.
    pub fn add_rule(&mut self, chain: &str, expressions: &[Expression]) {
        let table = self.table.name.clone();
        self.command(message::NEW_RULE, wire::CREATE | wire::APPEND, format!("add rule to chain {chain}"), |body| {
            body.string(1, &table);
            body.string(2, chain);
            body.nested(4, |list| expressions.iter().for_each(|expression| expression.encode(list)));
        });
    }
    /// An existing set of the same shape is fine.
    pub fn add_set(&mut self, set: &Set) {
        self.sets += 1;
        let (table, id) = (self.table.name.clone(), self.sets);
        self.command(message::NEW_SET, wire::CREATE, format!("add set {}", set.name), |body| set.encode(&table, id, body));
    }
    /// No rule may use it any more.
    pub fn delete_set(&mut self, set: &str) {
        let table = self.table.name.clone();
        self.command(message::DEL_SET, 0, format!("delete set {set}"), |body| {
            body.string(1, &table);
            body.string(2, set);
        });
    }
    /// Removes all elements.
    pub fn flush_set(&mut self, set: &str) {
        let table = self.table.name.clone();
        self.command(message::DEL_ELEMENT, 0, format!("flush set {set}"), |body| {
            body.string(1, &table);
            body.string(2, set);
        });
    }
    /// An equal element that exists is fine; a map's element with another value is an error: delete it first, in the same batch.
    pub fn add_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(message::NEW_ELEMENT, wire::CREATE, "add to", set, elements);
    }
    /// Every element must exist. Only keys matter.
    pub fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(message::DEL_ELEMENT, 0, "delete from", set, elements);
    }

    fn elements(&mut self, kind: u8, flags: u16, verb: &str, set: &str, mut elements: &[Element]) {
        const TABLE: u16 = 1;
        const SET: u16 = 2;
        const ELEMENTS: u16 = 3;
        const LIST_ELEM: u16 = 1;
        let table = self.table.name.clone();
        while !elements.is_empty() {
            let mut bytes = 0;
            let fitting = elements
                .iter()
                .take_while(|element| {
                    bytes += element.encoded_bytes_max();
                    bytes <= ELEMENT_LIST_BYTES_MAX
                })
                .count()
                .max(1);
            let (now, later) = elements.split_at(fitting);
            self.command(kind, flags, format!("{verb} set {set}"), |body| {
                body.string(TABLE, &table);
                body.string(SET, set);
                body.nested(ELEMENTS, |list| {
                    for element in now {
                        list.nested(LIST_ELEM, |nested| element.encode(nested));
                    }
                });
            });
            elements = later;
        }
    }

    fn command(&mut self, kind: u8, flags: u16, object: String, body: impl FnOnce(&mut Encoder)) {
        let sequence = u32::try_from(self.objects.len()).unwrap_or(u32::MAX);
        self.objects.push(object);
        self.last = self.encoder.position();
        let family = self.table.family;
        self.encoder.message(message::nftables(kind), wire::REQUEST | flags, sequence, |message| {
            message.raw(&nfgenmsg(family, 0));
            body(message);
        });
    }

    /// Applies all commands at once. On an error nothing has changed; it names the first object that the kernel refused.
    pub fn commit(mut self, socket: &mut Socket) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        // Success is silent unless asked for: one acknowledgement, for the last command.
        self.encoder.request_ack(self.last);
        mark(&mut self.encoder, BATCH_END, 0);
        socket.drain();
        socket.send(&self.encoder).map_err(|source| self.error(0, source))?;
        let last = u32::try_from(self.objects.len() - 1).unwrap_or(u32::MAX);
        let mut refused: Option<(u32, i32)> = None;
        socket
            .receive(|message| {
                let Some(errno) = message.errno() else { return false };
                if errno != 0 && refused.is_none() {
                    refused = Some((message.sequence, errno));
                }
                // An error on the begin mark means that the batch as a whole was refused; no more is to come.
                message.sequence == last || (message.sequence == 0 && errno != 0)
            })
            .map_err(|source| self.error(0, source))?;
        match refused {
            None => Ok(()),
            Some((sequence, errno)) => Err(self.error(sequence, std::io::Error::from_raw_os_error(errno))),
        }
    }

    fn error(&self, sequence: u32, source: std::io::Error) -> Error {
        let object = self.objects.get(sequence as usize).or(self.objects.first()).cloned().unwrap_or_default();
        Error::Refused { object, table: self.table.name.clone(), source }
    }
}

fn mark(encoder: &mut Encoder, kind: u16, sequence: u32) {
    encoder.message(kind, wire::REQUEST, sequence, |message| message.raw(&nfgenmsg(0, message::SUBSYSTEM_NFTABLES)));
}
