//! Messages: from a datagram to a question, from an answer to a datagram.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

use crate::zone::{self, Answer, Zone};

/// UDP payload we offer and accept at most: fits the smallest IPv6 MTU (DNS flag day 2020).
pub const PAYLOAD_BYTES: u16 = 1232;
const PLAIN_PAYLOAD_BYTES: u16 = 512;

/// A question worth an answer.
#[derive(Clone, Debug)]
pub struct Request {
    pub message: Message,
    pub query: Query,
}

impl Request {
    /// The same question of another name and kind.
    pub fn about(&self, name: &Name, kind: RecordType) -> Self {
        let mut query = Query::query(name.clone(), kind);
        query.set_query_class(self.query.query_class());
        let mut message = self.message.clone();
        message.queries = vec![query.clone()];
        Self { message, query }
    }
}

/// What came in.
#[derive(Debug)]
pub enum Received {
    Request(Box<Request>),
    /// Answered as it is: not implemented, malformed question.
    Reject(Box<Message>),
    /// Not a query at all: answering could feed a loop.
    Ignore,
}

pub fn receive(bytes: &[u8]) -> Received {
    let Ok(message) = Message::from_vec(bytes) else { return Received::Ignore };
    if message.metadata.message_type != MessageType::Query {
        return Received::Ignore;
    }
    let reject = |code| Received::Reject(Box::new(reply(&message, code)));
    if message.metadata.op_code != OpCode::Query {
        return reject(ResponseCode::NotImp);
    }
    let [query] = &message.queries[..] else { return reject(ResponseCode::FormErr) };
    if message.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        return reject(ResponseCode::BADVERS);
    }
    if !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
        return reject(ResponseCode::Refused);
    }
    let query = query.clone();
    Received::Request(Box::new(Request { message, query }))
}

/// An empty answer to `request`.
pub fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
    reply.metadata.recursion_desired = request.metadata.recursion_desired;
    reply.metadata.checking_disabled = request.metadata.checking_disabled;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD_BYTES);
        if u16::from(code) > 15 {
            edns.set_rcode_high((u16::from(code) >> 4) as u8);
        }
        reply.set_edns(edns);
    }
    reply
}

/// The zone's answer as a message; `None` where others have to be asked (also for the rest of an alias).
pub fn from_zone(request: &Request, answer: &Answer, zone: &Zone, turn: usize) -> Option<Message> {
    let mut message = reply(&request.message, ResponseCode::NoError);
    message.metadata.authoritative = true;
    match answer {
        Answer::Records { answers, additionals } => {
            message.add_answers(rotated(answers, turn));
            message.add_additionals(additionals.iter().cloned());
        }
        Answer::NoData => drop(message.add_authority(zone.soa())),
        Answer::NoName => {
            message.metadata.response_code = ResponseCode::NXDomain;
            message.add_authority(zone.soa());
        }
        Answer::Alias { .. } | Answer::NotOurs => return None,
    }
    Some(message)
}

/// Addresses that somebody wrote down for this very name.
pub fn fixed(request: &Request, addresses: &[IpAddr]) -> Message {
    let mut message = reply(&request.message, ResponseCode::NoError);
    message.metadata.authoritative = true;
    message.add_answers(zone::address_records(request.query.name(), addresses, request.query.query_type()));
    message
}

/// Clients take the first address: another one each time.
fn rotated(records: &[Record], turn: usize) -> impl Iterator<Item = Record> {
    let middle = if records.is_empty() { 0 } else { turn % records.len() };
    records[middle..].iter().chain(&records[..middle]).cloned()
}

/// Bytes for UDP: what does not fit the client's buffer is cut, with the flag that makes it come back over TCP.
pub fn encode_udp(request: &Message, message: &Message) -> Option<Vec<u8>> {
    let offered = request.edns.as_ref().map_or(PLAIN_PAYLOAD_BYTES, |edns| edns.max_payload());
    let limit = usize::from(offered.clamp(PLAIN_PAYLOAD_BYTES, PAYLOAD_BYTES));
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    // Hints are the first to go.
    let mut shorter = message.clone();
    shorter.additionals.clear();
    let bytes = shorter.to_vec().ok()?;
    if bytes.len() <= limit { Some(bytes) } else { shorter.truncate().to_vec().ok() }
}

/// Bytes for TCP, with their length before them.
pub fn encode_tcp(message: &Message) -> Option<Vec<u8>> {
    let bytes = message.to_vec().ok().filter(|bytes| bytes.len() <= usize::from(u16::MAX)).or_else(|| message.truncate().to_vec().ok())?;
    let mut framed = u16::try_from(bytes.len()).ok()?.to_be_bytes().to_vec();
    framed.extend(bytes);
    Some(framed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn garbage_is_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = receive(&bytes);
        }

        #[test]
        fn a_question_with_flipped_bytes_is_never_a_panic(changes in proptest::collection::vec((0usize..64, any::<u8>()), 1..6)) {
            let mut message = Message::query();
            message.add_query(Query::query("web.default.svc.cluster.local.".parse().unwrap(), hickory_proto::rr::RecordType::A));
            message.set_edns(Edns::new());
            let mut bytes = message.to_vec().unwrap();
            for (at, value) in changes {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            if let Received::Request(request) = receive(&bytes) {
                let zone = Zone::new("cluster.local").unwrap();
                let answer = zone.answer(request.query.name(), request.query.query_type());
                if let Some(message) = from_zone(&request, &answer, &zone, 1) {
                    prop_assert!(encode_udp(&request.message, &message).is_some());
                }
            }
        }
    }
}
