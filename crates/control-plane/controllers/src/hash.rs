//! Names for templates.

use serde::Serialize;

/// FNV-1a over the JSON of `value` and the collision count, in upstream's alphabet of letters and digits that form no words.
pub(crate) fn of(value: &impl Serialize, collisions: i32) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    if collisions > 0 {
        bytes.extend(collisions.to_le_bytes());
    }
    let fnv = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    fnv.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}
