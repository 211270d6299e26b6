//! Answers as bytes, for questions that come again: a datagram that differs from an earlier one in its id only gets the earlier answer with
//! the new id, as long as nothing that may be answered has changed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

/// Per socket; then it starts anew.
const ENTRIES_MAX: usize = 16_384;
/// Longer questions are rare, and the memory is theirs who send them.
const QUESTION_BYTES_MAX: usize = 160;
pub const ID_BYTES: usize = 2;

/// Counts the changes of everything that answers are made of.
#[derive(Debug, Default)]
pub struct Generation(AtomicU64);

impl Generation {
    pub fn advance(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// An answer, and what is counted of it.
#[derive(Debug)]
pub struct Kept {
    pub bytes: Vec<u8>,
    pub kind: RecordType,
    pub code: ResponseCode,
}

/// One socket's answers.
#[derive(Debug, Default)]
pub struct Fast {
    generation: u64,
    answers: HashMap<Vec<u8>, Kept>,
}

impl Fast {
    /// The answer to these very bytes but for the id, which is to be put into its first bytes.
    pub fn get(&mut self, question: &[u8], generation: u64) -> Option<&Kept> {
        if self.generation != generation {
            self.answers.clear();
            self.generation = generation;
        }
        self.answers.get(question.get(ID_BYTES..)?)
    }

    /// Keeps an answer of our own authority, made in `generation`, unless the order of its addresses has to change each time.
    pub fn put(&mut self, question: &[u8], message: &Message, bytes: &[u8], generation: u64) {
        let ours = message.metadata.authoritative && message.answers.len() <= 1;
        if !ours || question.len() > QUESTION_BYTES_MAX || self.generation != generation {
            return;
        }
        if self.answers.len() >= ENTRIES_MAX {
            self.answers.clear();
        }
        if let Some(key) = question.get(ID_BYTES..) {
            let kind = message.queries.first().map_or(RecordType::ANY, |query| query.query_type());
            self.answers.insert(key.to_vec(), Kept { bytes: bytes.to_vec(), kind, code: message.metadata.response_code });
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::OpCode;

    use super::*;

    #[test]
    fn an_answer_is_given_again_until_something_changes() {
        let mut fast = Fast::default();
        let mut message = Message::error_msg(1, OpCode::Query, ResponseCode::NXDomain);
        message.metadata.authoritative = true;
        assert!(fast.get(b"\0\x01question", 7).is_none());
        fast.put(b"\0\x01question", &message, b"\0\x01answer", 7);
        assert_eq!(fast.get(b"\x12\x34question", 7).unwrap().bytes, b"\0\x01answer", "whatever the id");
        assert!(fast.get(b"\x12\x34Question", 7).is_none(), "the spelling is part of the answer");
        assert!(fast.get(b"\x12\x34question", 8).is_none());
        fast.put(b"\0\x01question", &message, b"\0\x01late", 7);
        assert!(fast.get(b"\0\x01question", 8).is_none(), "made before the change");
        assert!(fast.get(b"\0", 8).is_none());
    }
}
