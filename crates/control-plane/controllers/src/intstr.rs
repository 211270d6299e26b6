//! Numbers that may be given as a percentage (`25%`) of another.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What becomes of a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Up,
    Down,
}

/// `value`, or its share of `total`; what is no number counts as zero (validation refuses it).
pub(crate) fn scaled(value: &IntOrString, total: i32, round: Round) -> i32 {
    let text = match value {
        IntOrString::Int(number) => return *number,
        IntOrString::String(text) => text,
    };
    let percent: i64 = text.strip_suffix('%').and_then(|number| number.parse().ok()).unwrap_or(0);
    let parts = i64::from(total).saturating_mul(percent);
    let share = match round {
        Round::Up => parts.saturating_add(99).div_euclid(100),
        Round::Down => parts.div_euclid(100),
    };
    i32::try_from(share).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_a_share_rounded_as_asked() {
        let text = |text: &str| IntOrString::String(text.into());
        let cases = [
            (IntOrString::Int(3), 10, 3, 3),
            (text("25%"), 10, 3, 2),
            (text("0%"), 10, 0, 0),
            (text("x"), 10, 0, 0),
            (text("100%"), 7, 7, 7),
        ];
        for (value, total, up, down) in cases {
            assert_eq!((scaled(&value, total, Round::Up), scaled(&value, total, Round::Down)), (up, down), "{value:?}");
        }
    }
}
