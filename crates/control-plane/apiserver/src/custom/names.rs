//! Names of custom kinds live as long as the process: facts of kinds are `'static`, and each distinct one is kept once. A CRD costs some
//! hundred bytes of them, however often it is written.

use std::collections::{HashMap, HashSet};
use std::sync::{LazyLock, Mutex, PoisonError};

use rules::Column;
use schema::resources::{Resource, Subresource};

fn intern<T: ?Sized + std::hash::Hash + Eq>(known: &Mutex<HashSet<&'static T>>, value: Box<T>) -> &'static T {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known.get(&*value) {
        return found;
    }
    let kept: &'static T = Box::leak(value);
    known.insert(kept);
    kept
}

pub fn text(text: &str) -> &'static str {
    static KNOWN: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    intern(&KNOWN, text.into())
}

pub fn texts<'t>(texts: impl Iterator<Item = &'t str>) -> &'static [&'static str] {
    static KNOWN: LazyLock<Mutex<HashSet<&'static [&'static str]>>> = LazyLock::new(Mutex::default);
    intern(&KNOWN, texts.map(text).collect())
}

/// By what the facts say.
pub fn resource(facts: Resource) -> &'static Resource {
    static KNOWN: LazyLock<Mutex<HashMap<String, &'static Resource>>> = LazyLock::new(Mutex::default);
    let key = format!("{facts:?}");
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(key).or_insert_with(|| Box::leak(Box::new(facts)))
}

pub fn subresources(list: Vec<Subresource>) -> &'static [Subresource] {
    static KNOWN: LazyLock<Mutex<HashMap<String, &'static [Subresource]>>> = LazyLock::new(Mutex::default);
    let key = format!("{list:?}");
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(key).or_insert_with(|| Box::leak(list.into_boxed_slice()))
}

/// A column with these words.
pub fn column(name: &str, kind: &str, format: &str, description: &str, priority: i32) -> Column {
    Column { name: text(name), kind: text(kind), format: text(format), description: text(description), priority }
}
