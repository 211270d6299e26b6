//! Answers from outside, for a short while. CoreDNS' `cache 30`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

/// Longer TTLs are cut to this, for names that exist and names that do not.
const TTL_SECONDS_MAX: u32 = 30;
const ENTRIES_MAX: usize = 4096;

/// What distinguishes questions. The name is lower case; DNSSEC data is only for those who ask.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    name: Name,
    kind: RecordType,
    class: DNSClass,
    dnssec: bool,
}

impl Key {
    pub fn of(query: &Query, message: &Message) -> Self {
        let dnssec = message.metadata.checking_disabled || message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        Self { name: query.name().to_lowercase(), kind: query.query_type(), class: query.query_class(), dnssec }
    }
}

#[derive(Debug)]
struct Entry {
    message: Message,
    stored: Instant,
    expires: Instant,
}

/// At most [`ENTRIES_MAX`] answers.
#[derive(Debug, Default)]
pub struct Cache(HashMap<Key, Entry>);

impl Cache {
    /// The stored answer with its TTLs counted down.
    pub fn get(&mut self, key: &Key, now: Instant) -> Option<Message> {
        let entry = self.0.get(key)?;
        if entry.expires <= now {
            self.0.remove(key);
            return None;
        }
        let age = u32::try_from(now.duration_since(entry.stored).as_secs()).unwrap_or(u32::MAX);
        let mut message = entry.message.clone();
        for record in message.answers.iter_mut().chain(&mut message.authorities).chain(&mut message.additionals) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    /// Failures and cut answers are not stored.
    pub fn put(&mut self, key: Key, message: &Message, now: Instant) {
        let Some(ttl) = ttl_seconds(message).filter(|ttl| *ttl > 0) else { return };
        if self.0.len() >= ENTRIES_MAX {
            self.make_room(now);
        }
        let expires = now + Duration::from_secs(ttl.into());
        self.0.insert(key, Entry { message: message.clone(), stored: now, expires });
    }

    /// First what is old; if all are young, half of them as the hash has it: cheaper than order, and nobody can choose which.
    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, entry| entry.expires > now);
        if self.0.len() >= ENTRIES_MAX {
            let mut keep = false;
            self.0.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
    }
}

fn ttl_seconds(message: &Message) -> Option<u32> {
    if message.metadata.truncation {
        return None;
    }
    let positive = message.answers.iter().map(|record| record.ttl).min();
    let negative = || {
        message.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        })
    };
    match message.metadata.response_code {
        ResponseCode::NoError => positive.or_else(negative),
        ResponseCode::NXDomain => negative(),
        _ => None,
    }
    .map(|ttl| ttl.min(TTL_SECONDS_MAX))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::A;

    use super::*;

    fn answer(ttl: u32, code: ResponseCode) -> (Key, Message) {
        let query = Query::query("Example.org.".parse().unwrap(), RecordType::A);
        let mut message = Message::error_msg(1, hickory_proto::op::OpCode::Query, code);
        message.add_query(query.clone());
        message.add_answer(Record::from_rdata(query.name().clone(), ttl, RData::A(A([192, 0, 2, 1].into()))));
        (Key::of(&query, &message), message)
    }

    #[test]
    fn answers_live_as_long_as_their_ttl_and_at_most_half_a_minute() {
        for (ttl, alive_after, dead_after) in [(10, 9, 10), (3600, 29, 30)] {
            let (mut cache, now) = (Cache::default(), Instant::now());
            let (key, message) = answer(ttl, ResponseCode::NoError);
            cache.put(key.clone(), &message, now);
            let found = cache.get(&key, now + Duration::from_secs(alive_after)).unwrap();
            assert_eq!(u64::from(found.answers[0].ttl), u64::from(ttl) - alive_after);
            assert!(cache.get(&key, now + Duration::from_secs(dead_after)).is_none());
        }
    }

    #[test]
    fn failures_and_zero_ttls_are_not_kept_and_the_size_is_bounded() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for (ttl, code) in [(10, ResponseCode::ServFail), (0, ResponseCode::NoError)] {
            let (key, message) = answer(ttl, code);
            cache.put(key.clone(), &message, now);
            assert!(cache.get(&key, now).is_none());
        }
        let (key, message) = answer(10, ResponseCode::NoError);
        for number in 0..ENTRIES_MAX + 10 {
            cache.put(Key { name: format!("n{number}.").parse().unwrap(), ..key.clone() }, &message, now);
        }
        assert!(cache.0.len() <= ENTRIES_MAX);
    }
}
