//! Quantities: the canonical text is canonical, and means the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meta::quantity::Quantity;

fuzz_target!(|text: &str| {
    let Ok(quantity) = Quantity::parse(text) else { return };
    let written = quantity.to_string();
    let again = Quantity::parse(&written).unwrap_or_else(|error| panic!("{written:?}: {error}"));
    // 62.5Ki is written 64000, which is decimal from then on and written 64k (as upstream): stable from the second time.
    let settled = again.to_string();
    assert_eq!(Quantity::parse(&settled).map(|third| third.to_string()), Ok(settled));
    assert_eq!((again.value(), again.milli_value()), (quantity.value(), quantity.milli_value()), "{text:?} and {written:?}");
    assert_eq!((again.is_zero(), again.is_negative()), (quantity.is_zero(), quantity.is_negative()));
});
