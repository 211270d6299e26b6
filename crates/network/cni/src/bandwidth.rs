//! What a pod may send and receive: the annotations `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`, in bits a second.
//!
//! A token bucket (tbf) on either end of the pod's link: what is queued on the node's end is what the pod receives.

use std::collections::HashMap;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Upstream's bounds: 1k to 1P.
const BITS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// Bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    pub ingress: Option<u64>,
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// `Err` names the annotation that cannot be read.
    pub fn of(annotations: &HashMap<String, String>) -> Result<Self, String> {
        let read = |name: &str| match annotations.get(name) {
            None => Ok(None),
            Some(text) => match bits(text).filter(|bits| BITS.contains(bits)) {
                Some(bits) => Ok(Some(bits / 8)),
                None => Err(format!("annotation {name}: {text:?} is not a number of bits a second between 1k and 1P")),
            },
        };
        Ok(Self { ingress: read(INGRESS)?, egress: read(EGRESS)? })
    }
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// A quantity: `10M`, `1.5G`, `512Ki`, `100000`.
fn bits(text: &str) -> Option<u64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: f64 = match unit {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| (number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_quantities_of_bits_a_second() {
        for (text, bytes) in [("8M", Some(1_000_000)), ("1.5G", Some(187_500_000)), ("8Ki", Some(1024)), ("8000", Some(1000))] {
            let annotations = HashMap::from([(INGRESS.to_owned(), text.to_owned())]);
            assert_eq!(Bandwidth::of(&annotations), Ok(Bandwidth { ingress: bytes, egress: None }), "{text}");
        }
        for bad in ["", "fast", "1", "10MB", "-5M", "2P"] {
            assert!(Bandwidth::of(&HashMap::from([(EGRESS.to_owned(), bad.to_owned())])).unwrap_err().contains(EGRESS), "{bad}");
        }
    }
}
