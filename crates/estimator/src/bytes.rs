//! Sizes as people write and read them.
//!
//! One parser serves `MLXCEL_MEMORY_LIMIT`, `--memory` and every other size that a person types:
//! `512MB`, `512M` and `512MiB` all mean 512·2²⁰ bytes. Output is always in KiB, MiB or GiB.

use crate::error::{EstimatorError, shortened};

/// 2¹⁰ bytes.
pub const KIB: u64 = 1 << 10;
/// 2²⁰ bytes.
pub const MIB: u64 = 1 << 20;
/// 2³⁰ bytes.
pub const GIB: u64 = 1 << 30;
/// 2⁴⁰ bytes.
pub const TIB: u64 = 1 << 40;

/// Units by their first letter; an empty unit is bytes.
const UNITS: [(&str, u64); 6] = [("", 1), ("B", 1), ("K", KIB), ("M", MIB), ("G", GIB), ("T", TIB)];

/// Reads a size: a number, which may have a fraction, and an optional unit with or without `B`
/// or `iB`, in any case. `name` is the flag or the variable, for the error.
///
/// # Errors
/// [`EstimatorError::BadValue`] for anything else, a size that is not positive, or one that
/// exceeds 64 bits.
///
/// ```
/// use mlxcel_estimator::parse_bytes;
/// assert_eq!(parse_bytes("MLXCEL_MEMORY_LIMIT", "512MB")?, 512 << 20);
/// assert_eq!(parse_bytes("--memory", "1.5 GiB")?, 3 << 29);
/// let error = parse_bytes("MLXCEL_MEMORY_LIMIT", "4 potatoes").unwrap_err();
/// assert!(error.to_string().starts_with("MLXCEL_MEMORY_LIMIT=4 potatoes: "));
/// # Ok::<(), mlxcel_estimator::EstimatorError>(())
/// ```
pub fn parse_bytes(name: &str, text: &str) -> Result<u64, EstimatorError> {
    size_of(text).map_err(|reason| EstimatorError::BadValue {
        name: name.to_owned(),
        value: shortened(text),
        reason: reason.to_owned(),
    })
}

fn size_of(text: &str) -> Result<u64, &'static str> {
    const EXAMPLES: &str = "a size such as 512MB or 24GiB is needed";
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at_checked(end).unwrap_or((trimmed, ""));
    let unit = unit_bytes(unit.trim()).ok_or(EXAMPLES)?;
    match product(number, unit) {
        Some(0) => Err("a size must be positive"),
        Some(bytes) => Ok(bytes),
        None if number.is_empty() => Err(EXAMPLES),
        None => Err("the number is not one, or is too large"),
    }
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let upper = unit.to_ascii_uppercase();
    let stem = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    UNITS.iter().find(|(known, _)| *known == stem).map(|(_, bytes)| *bytes)
}

/// `number × unit`, rounded down, in whole numbers so that large sizes stay exact.
fn product(number: &str, unit: u64) -> Option<u64> {
    const FRACTION_DIGITS: usize = 9;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let digits: String = fraction.chars().take(FRACTION_DIGITS).collect();
    let numerator: u128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let denominator = 10_u128.checked_pow(u32::try_from(digits.len()).ok()?)?;
    let part = numerator.checked_mul(u128::from(unit))?.checked_div(denominator)?;
    whole.checked_mul(unit)?.checked_add(u64::try_from(part).ok()?)
}

/// Writes a size in the largest of bytes, KiB, MiB and GiB that keeps it at or above one; GiB
/// with two decimals, the others with one.
///
/// ```
/// use mlxcel_estimator::format_bytes;
/// assert_eq!(format_bytes(652_606_260), "622.4 MiB");
/// assert_eq!(format_bytes(4 << 30), "4.00 GiB");
/// ```
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    match bytes {
        0..KIB => format!("{bytes} B"),
        KIB..MIB => with_decimals(bytes, KIB, 1, "KiB"),
        MIB..GIB => with_decimals(bytes, MIB, 1, "MiB"),
        _ => with_decimals(bytes, GIB, 2, "GiB"),
    }
}

/// `bytes / unit` with `decimals` decimals, rounded to nearest.
fn with_decimals(bytes: u64, unit: u64, decimals: usize, name: &str) -> String {
    let scale = if decimals == 1 { 10_u128 } else { 100 };
    let half = u128::from(unit).checked_div(2).unwrap_or(0);
    let rounded = u128::from(bytes).saturating_mul(scale).saturating_add(half);
    let tenths = rounded.checked_div(u128::from(unit)).unwrap_or(0);
    let whole = tenths.checked_div(scale).unwrap_or(0);
    let part = tenths.checked_rem(scale).unwrap_or(0);
    format!("{whole}.{part:0decimals$} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(parse_bytes("X", text).ok(), expected, "{text}");
    }

    #[test]
    fn units_mean_powers_of_two() {
        for text in
            ["512MB", "512M", "512MiB", "512mb", " 512 MiB ", "536870912", "536870912 B", "0.5GB"]
        {
            check(text, Some(512 * MIB));
        }
        check("24GiB", Some(24 * GIB));
        check("1.5T", Some(3 * TIB / 2));
        check(".5K", Some(512));
        check("16777215.999999999T", Some(18_446_744_073_709_550_516));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "4 potatoes",
            "-1GB",
            "NaN",
            "inf",
            "1e9",
            "0",
            "0MB",
            "1..5G",
            ".",
            "16777216T",
            "99999999999999999999",
            "5 GG",
            "0x10",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn output_rounds_to_nearest() {
        assert_eq!(format_bytes(1023), "1023 B");
        assert_eq!(format_bytes(12288), "12.0 KiB");
        assert_eq!(format_bytes(988_065_536), "942.3 MiB");
        assert_eq!(format_bytes(GIB + GIB / 100), "1.01 GiB");
        assert_eq!(format_bytes(u64::MAX), "17179869184.00 GiB");
    }
}
