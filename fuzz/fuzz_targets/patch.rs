//! The three patch engines. Byte 0 chooses the engine, byte 1 the kind; a zero byte parts the object from the patch.

#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::decode::{self, Mode};
use schema::{merge, table};

fuzz_target!(|input: &[u8]| {
    let [engine, choice, rest @ ..] = input else { return };
    let kinds: Vec<_> = table::kinds().collect();
    let Some((_, found)) = kinds.get(usize::from(*choice) % kinds.len()).copied() else { return };
    let Some(middle) = rest.iter().position(|byte| *byte == 0) else { return };
    let (Ok(object), patch) = (decode::parse_json(&rest[..middle]), &rest[middle + 1..]) else { return };
    let mut object = match decode::decode_type(object, found, Mode::Ignore) {
        Ok((object, _)) => object,
        Err(_) => return,
    };
    let done = match engine % 3 {
        0 => merge::json_patch(&mut object, patch).is_ok(),
        other => {
            let Ok(patch) = decode::parse_json(patch) else { return };
            if other == 1 {
                merge::json_merge_patch(&mut object, &patch.value);
                true
            } else {
                merge::strategic_merge_patch(&mut object, &patch.value, found).is_ok()
            }
        }
    };
    if done {
        // What a patch makes is a body again: accepted or refused, never more.
        let _ = decode::decode_type(object, found, Mode::Warn);
    }
});
