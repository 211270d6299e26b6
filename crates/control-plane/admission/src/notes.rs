//! What plugins say beside their verdict: warnings for the client, annotations for the audit trail.

use std::sync::{Mutex, PoisonError};

/// Shared by the plugins that judge one write, some of which run at the same time.
#[derive(Debug, Default)]
pub struct Notes(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    warnings: Vec<String>,
    annotations: Vec<(String, String)>,
}

impl Notes {
    /// A sentence for a `Warning:` header.
    pub fn warn(&self, sentence: impl Into<String>) {
        self.said().warnings.push(sentence.into());
    }
    /// An annotation of the audit event; the first value of a key stays.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        let (key, value) = (key.into(), value.into());
        let mut said = self.said();
        if !said.annotations.iter().any(|(present, _)| *present == key) {
            said.annotations.push((key, value));
        }
    }
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.said().warnings)
    }
    pub fn take_annotations(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.said().annotations)
    }
    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
