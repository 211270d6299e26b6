//! Amounts of resources such as `100m`, `1.5Gi`, `1e3`, with upstream's exactness and canonical form.
//!
//! Source: apimachinery `pkg/api/resource`. A value is `mantissa × 10^exponent` in 128 bits, nothing finer than 10⁻⁹ (more
//! precise input is rounded away from zero). Upstream takes numbers of any length; here more than 38 digits are refused.

use std::cmp::Ordering;
use std::fmt;

/// How a quantity was written and will be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// `k`, `M`, `m` … and no suffix.
    #[default]
    DecimalSi,
    /// `Ki`, `Mi` …
    BinarySi,
    /// `1e3`.
    DecimalExponent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    mantissa: i128,
    /// Power of ten; `-9 <= exponent`.
    exponent: i32,
    format: Format,
}

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

enum Scale {
    Ten(i32),
    Two(u32),
}

impl Quantity {
    pub fn new(value: i64, format: Format) -> Self {
        Self { mantissa: value.into(), exponent: 0, format }
    }
    pub fn from_milli(value: i64, format: Format) -> Self {
        Self { mantissa: value.into(), exponent: -3, format }
    }

    pub fn parse(text: &str) -> Result<Self, Error> {
        let (negative, whole, fraction, suffix) = split(text)?;
        let (scale, mut format) = interpret(suffix)?;
        let digits = format!("{}{}", whole.trim_start_matches('0'), fraction);
        let digits = digits.trim_start_matches('0');
        // Zeros at the end cost no digits of the mantissa: the canonical text of what was accepted is accepted again.
        let significant = digits.trim_end_matches('0');
        let mut mantissa: i128 = if significant.is_empty() { 0 } else { significant.parse().map_err(|_| Error::Numeric)? };
        let shift = |length: usize| i32::try_from(length).map_err(|_| Error::Numeric);
        let mut exponent = shift(digits.len() - significant.len())? - shift(fraction.len())?;
        match scale {
            Scale::Ten(power) => exponent = exponent.checked_add(power).ok_or(Error::Suffix)?,
            Scale::Two(power) => mantissa = mantissa.checked_mul(1 << power).ok_or(Error::Numeric)?,
        }
        if mantissa == 0 {
            exponent = 0;
        }
        if exponent < -9 {
            mantissa = divide_away_from_zero(mantissa, power_of_ten(-9_i32.saturating_sub(exponent)));
            exponent = -9;
        }
        let mut quantity = Self { mantissa, exponent, format };
        if format == Format::BinarySi {
            // Upstream caps binary quantities, and shows a fraction of one in decimal to avoid rounding.
            if quantity > Self::new(i64::MAX, format) {
                quantity = Self::new(i64::MAX, format);
            }
            if mantissa > 0 && quantity < Self::new(1, format) {
                format = Format::DecimalSi;
            }
        }
        quantity.format = format;
        if negative {
            quantity.mantissa = -quantity.mantissa;
        }
        Ok(quantity)
    }

    pub fn format(&self) -> Format {
        self.format
    }
    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }
    pub fn is_negative(&self) -> bool {
        self.mantissa < 0
    }
    /// In whole units, rounded away from zero; saturates at the ends of i64.
    pub fn value(&self) -> i64 {
        self.scaled(0)
    }
    /// In thousandths, rounded away from zero; saturates at the ends of i64.
    pub fn milli_value(&self) -> i64 {
        self.scaled(-3)
    }
    fn scaled(&self, exponent: i32) -> i64 {
        let shift = self.exponent.saturating_sub(exponent);
        let limit = if self.mantissa < 0 { i128::MIN } else { i128::MAX };
        let value = if shift >= 0 {
            self.mantissa.checked_mul(power_of_ten(shift)).unwrap_or(limit)
        } else {
            divide_away_from_zero(self.mantissa, power_of_ten(-shift))
        };
        i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
    }
    /// Whether the value is a whole number.
    pub fn is_integer(&self) -> bool {
        self.exponent >= 0 || self.mantissa % power_of_ten(-self.exponent) == 0
    }

    /// Both mantissas over the smaller exponent; saturating.
    fn aligned(self, other: Self) -> (i128, i128, i32) {
        let exponent = self.exponent.min(other.exponent);
        let over = |one: Self| one.mantissa.saturating_mul(power_of_ten(one.exponent.saturating_sub(exponent)));
        (over(self), over(other), exponent)
    }

    fn decimal(&self) -> String {
        let (mut mantissa, mut exponent) = (self.mantissa, self.exponent);
        while mantissa != 0 && mantissa % 10 == 0 {
            mantissa /= 10;
            exponent = exponent.saturating_add(1);
        }
        if mantissa == 0 {
            return "0".to_owned();
        }
        // An exponent that is a multiple of three, and where suffixes end, zeros instead.
        let mut zeros = exponent.rem_euclid(3);
        if self.format != Format::DecimalExponent && exponent > 18 {
            zeros = exponent - 18;
        }
        exponent -= zeros;
        let number = format!("{mantissa}{}", "0".repeat(usize::try_from(zeros).unwrap_or(0)));
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { number } else { format!("{number}e{exponent}") };
        }
        let suffix = DECIMAL.iter().find(|(_, power)| *power == exponent).map_or("", |(suffix, _)| suffix);
        format!("{number}{suffix}")
    }

    fn binary(&self) -> String {
        let mut number = self.mantissa.saturating_mul(power_of_ten(self.exponent.max(0))) / power_of_ten((-self.exponent).max(0));
        let mut suffix = "";
        for (next, _) in BINARY {
            if number % 1024 != 0 {
                break;
            }
            number /= 1024;
            suffix = next;
        }
        format!("{number}{suffix}")
    }
}

fn power_of_ten(power: i32) -> i128 {
    u32::try_from(power).ok().and_then(|power| 10_i128.checked_pow(power)).unwrap_or(i128::MAX)
}

fn divide_away_from_zero(value: i128, by: i128) -> i128 {
    let quotient = value / by;
    if value % by == 0 { quotient } else { quotient + value.signum() }
}

/// Sign, digits before and after the point, suffix.
fn split(text: &str) -> Result<(bool, &str, &str, &str), Error> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let digits = |part: &str| part.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = rest.split_at(digits(rest));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(after) => after.split_at(digits(after)),
        None => ("", rest),
    };
    let letters = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let number = letters.strip_prefix(['-', '+']).unwrap_or(letters);
    if text.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::Format);
    }
    if whole.is_empty() && fraction.is_empty() {
        return Err(Error::Numeric);
    }
    Ok((negative, whole, fraction, suffix))
}

fn interpret(suffix: &str) -> Result<(Scale, Format), Error> {
    if let Some((_, power)) = DECIMAL.iter().find(|(text, _)| *text == suffix) {
        return Ok((Scale::Ten(*power), Format::DecimalSi));
    }
    if let Some((_, power)) = BINARY.iter().find(|(text, _)| *text == suffix) {
        return Ok((Scale::Two(*power), Format::BinarySi));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(Error::Suffix)?;
    exponent.parse::<i32>().map(|power| (Scale::Ten(power), Format::DecimalExponent)).map_err(|_| Error::Suffix)
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that keeps the number whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = *self < Self::new(1024, self.format) && *self > Self::new(-1024, self.format);
        let text = match self.format {
            Format::BinarySi if !small && self.is_integer() => self.binary(),
            Format::BinarySi => Self { format: Format::DecimalSi, ..*self }.decimal(),
            _ => self.decimal(),
        };
        f.write_str(&text)
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;
    /// The sum in this quantity's format (in the other's where this is zero, as upstream); saturating.
    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        let (a, b, exponent) = self.aligned(other);
        Self { mantissa: a.saturating_add(b), exponent, format }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + Self { mantissa: other.mantissa.saturating_neg(), ..other }
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b, _) = self.aligned(*other);
        // Where both saturate, the larger exponent and mantissa are compared as floating point: exactness is long gone.
        if a == b && (a == i128::MAX || a == i128::MIN) {
            let estimate = |one: &Self| one.mantissa as f64 * 10_f64.powi(one.exponent);
            return estimate(self).total_cmp(&estimate(other));
        }
        a.cmp(&b)
    }
}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Quantity {}

impl std::str::FromStr for Quantity {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

/// The canonical text of a quantity given as JSON (a string, or a number as clients may write it); `None` where it is none.
pub fn canonical(value: &serde_json::Value) -> Option<String> {
    from_json(value).map(|quantity| quantity.to_string())
}

pub fn from_json(value: &serde_json::Value) -> Option<Quantity> {
    match value {
        serde_json::Value::String(text) => Quantity::parse(text).ok(),
        serde_json::Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_print_in_canonical_form() {
        let cases = [
            ("0", "0"),
            ("0.0", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("0.1", "100m"),
            ("100m", "100m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("10Ki", "10Ki"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("1E", "1E"),
            ("1Ei", "1Ei"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e-3", "12e-3"),
            ("-1.5", "-1500m"),
            ("+2", "2"),
            ("0.0000000001", "1n"),
            ("9223372036854775807", "9223372036854775807"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("100Ei", "9223372036854775807"),
            (".5", "500m"),
            ("1.", "1"),
        ];
        for (text, expected) in cases {
            assert_eq!(Quantity::parse(text).map(|quantity| quantity.to_string()), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_was_accepted_is_accepted_in_its_canonical_form() {
        for text in
            ["13333333303333333333333333333333330.0003E", "1e2147483647", "-10e2147483646", "170141183460469231731687303715884105727E"]
        {
            let quantity = Quantity::parse(text).expect(text);
            assert_eq!(Quantity::parse(&quantity.to_string()).as_ref(), Ok(&quantity), "{text}");
            assert!(quantity != Quantity::parse("1n").expect("a quantity"));
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for (text, expected) in [
            ("", Error::Format),
            ("1x", Error::Format),
            ("1 Gi", Error::Format),
            ("1.2.3", Error::Format),
            ("m", Error::Numeric),
            (".", Error::Numeric),
            ("1K", Error::Suffix),
            ("1KiB", Error::Format),
            ("1e", Error::Suffix),
            ("1mm", Error::Suffix),
        ] {
            assert_eq!(Quantity::parse(text).expect_err(text), expected, "{text}");
        }
    }

    #[test]
    fn values_round_away_from_zero_and_saturate() {
        let value = |text: &str| Quantity::parse(text).expect("a quantity");
        assert_eq!((value("1500m").value(), value("-1500m").value(), value("1n").milli_value()), (2, -2, 1));
        assert_eq!((value("2").milli_value(), value("1Gi").value()), (2000, 1 << 30));
        assert_eq!((value("1e30").value(), value("-1e30").value()), (i64::MAX, i64::MIN));
        assert!(value("1Gi") > value("1G") && value("1000m") == value("1") && value("1e40") > value("1e39"));
        assert_eq!((value("1Gi") - value("512Mi")).to_string(), "512Mi");
        assert_eq!((value("0") + value("1Mi")).to_string(), "1Mi");
        assert_eq!((value("500m") + value("0.5")).to_string(), "1");
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_stable_and_equal(text in r"-?[0-9]{1,20}(\.[0-9]{0,12})?(m|k|Ki|Mi|Gi|G|e3|E|n|u|)") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let printed = quantity.to_string();
                let again = Quantity::parse(&printed).expect("canonical text parses");
                prop_assert_eq!(again, quantity);
                prop_assert_eq!(again.to_string(), printed);
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = Quantity::parse(&text).map(|quantity| (quantity.to_string(), quantity.value(), quantity.milli_value()));
        }
    }
}
