//! Server-side apply and the tracking of updates. Byte 0 chooses the kind, byte 1 forces; a zero byte parts the live object from what is
//! applied.

#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::apply::{self, Manager};
use schema::decode::{self, Mode};
use schema::table;

fuzz_target!(|input: &[u8]| {
    let [choice, force, rest @ ..] = input else { return };
    let kinds: Vec<_> = table::kinds().collect();
    let Some(((group, version, _), found)) = kinds.get(usize::from(*choice) % kinds.len()).copied() else { return };
    let Some(middle) = rest.iter().position(|byte| *byte == 0) else { return };
    let read = |bytes: &[u8]| decode::parse_yaml(bytes).ok().map(|parsed| parsed.value);
    let live = read(&rest[..middle]).and_then(|live| decode::decode_type(live, found, Mode::Ignore).ok()).map(|(live, _)| live);
    let Some(applied) = read(&rest[middle + 1..]) else { return };
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let manager = |name| Manager { name, subresource: "", api_version: &api_version, time: "2026-01-01T00:00:00Z", reset: &["status"] };
    let Ok(merged) = apply::apply(live.as_ref(), &applied, &manager("fuzz"), force % 2 == 1, found) else { return };
    let Ok((merged, _)) = decode::decode_type(merged, found, Mode::Ignore) else { return };
    // The same again changes nothing.
    if let Ok(again) = apply::apply(Some(&merged), &applied, &manager("fuzz"), true, found)
        && let Ok((again, _)) = decode::decode_type(again, found, Mode::Ignore)
    {
        assert_eq!(again, merged, "applying is idempotent");
    }
    let mut updated = merged.clone();
    apply::update(live.as_ref(), &mut updated, &manager("other"), found);
});
