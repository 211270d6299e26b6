//! Label and field selectors as text: what is read is written and read again as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meta::selector::{FieldSelector, LabelSelector};

fuzz_target!(|text: &str| {
    if let Ok(selector) = LabelSelector::parse(text) {
        let written = selector.to_string();
        let again = LabelSelector::parse(&written).unwrap_or_else(|error| panic!("{written:?}: {error}"));
        assert_eq!(again.to_string(), written);
        selector.matches(|key| (key.len() % 2 == 0).then_some("a"));
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        selector.matches(|_| Some("a"));
        selector.exact("metadata.name");
    }
});
