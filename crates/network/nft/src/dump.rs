//! Reading back what the kernel holds of one table.

use std::time::Duration;

use crate::set::{Data, Element, Value, Verdict};
use crate::socket::Socket;
use crate::wire::{Attributes, Encoder};
use crate::{Error, Table, message, nfgenmsg};

/// Bytes of `nfgenmsg` before the attributes.
const HEADER: usize = 4;

impl Table {
    /// Names of the table's chains; empty when there is no such table.
    pub fn chains(&self, socket: &mut Socket) -> Result<Vec<String>, Error> {
        self.names(socket, message::GET_CHAIN, "list chains", 3)
    }
    /// Names of the table's sets and maps; empty when there is no such table.
    pub fn sets(&self, socket: &mut Socket) -> Result<Vec<String>, Error> {
        self.names(socket, message::GET_SET, "list sets", 2)
    }
    pub fn exists(&self, socket: &mut Socket) -> Result<bool, Error> {
        let mut found = false;
        let family = self.family;
        socket
            .dump(
                message::nftables(message::GET_TABLE),
                |body| body.raw(&nfgenmsg(family, 0)),
                |message| {
                    found |= message.attributes(HEADER).string(1) == Some(&self.name);
                },
            )
            .map_err(|source| self.refused("list tables", source))?;
        Ok(found)
    }
    /// The elements of a set or map.
    pub fn elements(&self, socket: &mut Socket, set: &str) -> Result<Vec<Element>, Error> {
        const LIST: u16 = 3;
        let mut elements = Vec::new();
        let request = |body: &mut Encoder| {
            body.raw(&nfgenmsg(self.family, 0));
            body.string(1, &self.name);
            body.string(2, set);
        };
        socket
            .dump(message::nftables(message::GET_ELEMENT), request, |message| {
                elements.extend(message.attributes(HEADER).nested(LIST).filter_map(|(_, value)| element(Attributes(value))));
            })
            .map_err(|source| self.refused(&format!("list elements of set {set}"), source))?;
        Ok(elements)
    }
    /// Removes the table with everything in it. No such table is fine.
    pub fn delete(&self, socket: &mut Socket) -> Result<(), Error> {
        if !self.exists(socket)? {
            return Ok(());
        }
        let mut batch = crate::Batch::new(self);
        batch.delete_table();
        batch.commit(socket)
    }

    fn names(&self, socket: &mut Socket, kind: u8, step: &str, name_attribute: u16) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        let request = |body: &mut Encoder| {
            body.raw(&nfgenmsg(self.family, 0));
            body.string(1, &self.name);
        };
        let result = socket.dump(message::nftables(kind), request, |message| {
            let attributes = message.attributes(HEADER);
            if attributes.string(1) == Some(&self.name)
                && let Some(name) = attributes.string(name_attribute)
            {
                names.push(name.to_owned());
            }
        });
        match result {
            Err(source) if source.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(source) => Err(self.refused(step, source)),
            Ok(()) => Ok(names),
        }
    }
    fn refused(&self, object: &str, source: std::io::Error) -> Error {
        Error::Refused { object: object.to_owned(), table: self.name.clone(), source }
    }
}

fn element(attributes: Attributes<'_>) -> Option<Element> {
    let key = Value(attributes.nested(1).get(1)?.to_vec());
    let data = attributes.nested(2);
    let data = match (data.get(1), data.get(2)) {
        (Some(value), _) => Some(Data::Value(Value(value.to_vec()))),
        (_, Some(verdict)) => Some(Data::Verdict(decode_verdict(Attributes(verdict))?)),
        _ => None,
    };
    let timeout = attributes.get(4).and_then(|bytes| bytes.try_into().ok()).map(|bytes| Duration::from_millis(u64::from_be_bytes(bytes)));
    let key_end = attributes.nested(10).get(1).map(|bytes| Value(bytes.to_vec()));
    Some(Element { key, key_end, data, timeout })
}

fn decode_verdict(attributes: Attributes<'_>) -> Option<Verdict> {
    let chain = || attributes.string(2).map(str::to_owned);
    match attributes.u32_be(1)?.cast_signed() {
        0 => Some(Verdict::Drop),
        1 => Some(Verdict::Accept),
        -3 => Some(Verdict::Jump(chain()?)),
        -4 => Some(Verdict::Goto(chain()?)),
        -5 => Some(Verdict::Return),
        _ => None,
    }
}
