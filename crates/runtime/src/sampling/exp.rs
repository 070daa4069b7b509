//! e^x, bit-identical on all platforms and fast over a whole vocabulary.
//!
//! `libm::expf` is portable too, but costs some 20 ns per logit, which for 150,000 logits is a
//! noticeable part of a small model's step. This version consists of additions and multiplications
//! only, which the compiler vectorises and which round identically everywhere.

/// Argument below which e^x is less than the smallest normal `f32`; the result is 0 there.
const UNDERFLOW: f32 = -87.0;

/// e^x for x ≤ 0 (−∞ included), to within two units in the last place.
///
/// x = n·ln 2 + r with |r| ≤ ½ ln 2: a Taylor polynomial gives e^r (the first omitted
/// term is below 2⁻²⁷ of it), and n goes into the exponent.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    /// ln 2 as a sum of two parts; n times the first part is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// Adding 1.5·2²³ rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let rounded = x.max(UNDERFLOW) * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x.max(UNDERFLOW) - n * LN_2[0]) - n * LN_2[1];
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + coefficient;
    }
    let power_of_2 = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    if x < UNDERFLOW { 0.0 } else { sum * power_of_2 }
}

/// Sums `value` over `terms` in a fixed order that allows eight additions at once.
pub(super) fn sum(terms: &[f32], value: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0.0; 8];
    let chunks = terms.chunks_exact(lanes.len());
    let remainder: f64 = chunks.remainder().iter().map(|term| f64::from(value(*term))).sum();
    for chunk in chunks {
        for (lane, term) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value(*term));
        }
    }
    lanes.iter().sum::<f64>() + remainder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_within_two_units_of_the_f64_function() {
        let mut worst = 0.0_f64;
        for step in 0..870_000_u32 {
            let x = f64::from(step) * -1e-4;
            #[expect(clippy::cast_possible_truncation, reason = "the argument is an f32")]
            let x = x as f32;
            let expected = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - expected) / expected).abs());
        }
        assert!(worst <= 2.0 * f64::from(f32::EPSILON), "{worst:e}");
    }

    #[test]
    fn the_ends_of_the_range_are_exact() {
        let bits = |x: f32| exp(x).to_bits();
        assert_eq!(bits(0.0), 1.0_f32.to_bits());
        assert_eq!(bits(-0.0), 1.0_f32.to_bits());
        for x in [f32::NEG_INFINITY, f32::MIN, -1000.0, -87.1] {
            assert_eq!(bits(x), 0.0_f32.to_bits());
        }
    }

    #[test]
    fn sums_every_term() {
        let terms: Vec<f32> = (1..=21_u16).map(f32::from).collect();
        assert!((sum(&terms, |term| 2.0 * term) - 462.0).abs() < 1e-9);
        assert!(sum(&[], |term| term).abs() < 1e-9);
    }
}
