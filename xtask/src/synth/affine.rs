//! MLX's affine quantisation of one group of weights, bit for bit as `mx.quantize` does it.
//!
//! A group of n weights becomes n codes of `bits` bits, packed little-endian without gaps, a
//! scale and a bias: w ≈ scale · code + bias. The end of the range that lies further from
//! zero is hit exactly, and zero itself is a code's value. Arithmetic is in f32; scale and
//! bias are rounded to the checkpoint's dtype afterwards.

/// Bits per weight that MLX's affine format knows.
pub(super) const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];

/// Group sizes that MLX's affine format knows.
pub(super) const GROUP_SIZES: [u16; 3] = [32, 64, 128];

/// The scale and bias of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Group {
    /// The step between two codes; negative where the maximum is the exact end.
    pub(super) scale: f32,
    /// The weight of code 0.
    pub(super) bias: f32,
}

/// Quantises one group, `weights.len()` a multiple of 8, and appends its codes
/// (`weights.len() · bits / 8` bytes) to `codes`.
pub(super) fn quantize_group(weights: &[f32], bits: u8, codes: &mut Vec<u8>) -> Group {
    let top = f32::from((1u16 << bits) - 1);
    let group = fit(weights, top);
    let width = usize::from(bits);
    for eight in weights.chunks_exact(8) {
        let mut packed = 0u64;
        for (place, weight) in eight.iter().enumerate() {
            let code = round_small(((weight - group.bias) / group.scale).clamp(0.0, top));
            packed |= u64::from(code) << (place * width);
        }
        codes.extend_from_slice(&packed.to_le_bytes()[..width]);
    }
    group
}

/// Chooses scale and bias for codes from 0 to `top`.
fn fit(weights: &[f32], top: f32) -> Group {
    const SMALLEST_STEP: f32 = 1e-7;
    let min = weights.iter().copied().fold(f32::INFINITY, f32::min);
    let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let step = ((max - min) / top).max(SMALLEST_STEP);
    let (edge, scale) = if min.abs() > max.abs() { (min, step) } else { (max, -step) };
    let steps_to_edge = (edge / scale).round_ties_even();
    if steps_to_edge == 0.0 {
        Group { scale, bias: 0.0 }
    } else {
        Group { scale: edge / steps_to_edge, bias: edge }
    }
}

/// Rounds `value` in 0..=255 to the nearest integer, ties to even: adding 2²³ leaves the
/// integer in the low bits of the mantissa, without a call into the maths library.
fn round_small(value: f32) -> u8 {
    let [low, ..] = (value + 8_388_608.0).to_bits().to_le_bytes();
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_ties_to_even() {
        for tenth in 0..=2550u16 {
            let value = f32::from(tenth) / 10.0;
            assert_eq!(f32::from(round_small(value)).to_bits(), value.round_ties_even().to_bits());
        }
    }

    #[test]
    fn constant_and_zero_groups_are_exact() {
        for value in [0.0f32, 0.25, -3.0] {
            let mut codes = Vec::new();
            let group = quantize_group(&[value; 32], 4, &mut codes);
            assert_eq!(codes.len(), 16);
            let code = f32::from(codes[0] & 15);
            assert_eq!((group.scale * code + group.bias).to_bits(), value.to_bits());
        }
    }
}
