//! Answers of servers outside, kept for a while: by a hash of the question, so that no token stays in memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// Answers that are kept at most; beyond, those that are over make room, else nothing is kept.
const KEPT_MAX: usize = 8_192;

pub struct Answers<T>(Mutex<HashMap<[u8; 32], (T, Instant)>>);

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// A question's place among the answers.
#[derive(Clone, Copy)]
pub struct Key([u8; 32]);

impl Key {
    /// Of parts whose borders count.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

impl<T: Clone> Answers<T> {
    pub fn get(&self, key: Key) -> Option<T> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer, until) = answers.get(&key.0)?;
        (Instant::now() < *until).then(|| answer.clone())
    }

    pub fn keep(&self, key: Key, answer: T, time: Duration) {
        let Some(until) = Instant::now().checked_add(time).filter(|_| !time.is_zero()) else { return };
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= KEPT_MAX {
            let now = Instant::now();
            answers.retain(|_, (_, until)| now < *until);
        }
        if answers.len() < KEPT_MAX {
            answers.insert(key.0, (answer, until));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_known_for_its_time_and_for_its_question_only() {
        let answers = Answers::default();
        let key = |parts: &[&str]| Key::of(&parts.iter().map(|part| part.as_bytes()).collect::<Vec<_>>());
        answers.keep(key(&["ab", "c"]), 1, Duration::from_secs(60));
        answers.keep(key(&["over"]), 2, Duration::ZERO);
        assert_eq!([answers.get(key(&["ab", "c"])), answers.get(key(&["a", "bc"])), answers.get(key(&["over"]))], [Some(1), None, None]);
    }
}
