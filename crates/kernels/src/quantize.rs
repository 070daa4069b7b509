//! MLX's affine quantisation, bit for bit as `mx.quantize` does it on weights of a checkpoint's type.
//!
//! A group of n weights becomes n codes of `bits` bits, packed little-endian without gaps, a
//! scale and a bias: w ≈ scale · code + bias. The end of the range that lies further from
//! zero is hit exactly, and zero itself is a code's value. Arithmetic is in f32; scale and
//! bias are rounded to the checkpoint's type afterwards.
//!
//! Owns the arithmetic of one row. Rows are independent of each other; the caller reads and writes
//! them and spreads them over threads.

use crate::error::{KernelError, Result};
use crate::weights::{FloatType, Mxfp4, e8m0};

/// Bits per weight that MLX's affine format knows.
pub const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];

/// Group sizes that MLX's affine format knows.
pub const GROUP_SIZES: [u16; 3] = [32, 64, 128];

/// Parameters of a row's quantisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quantizer {
    bits: u8,
    group_size: u16,
    scale_type: FloatType,
}

/// Quantised rows: the bytes of three tensors, to be written one after the other.
#[derive(Clone, Debug, Default)]
pub struct QuantizedRows {
    /// `[rows, columns · bits / 8]` bytes.
    pub codes: Vec<u8>,
    /// `[rows, columns / group]` of the scale type.
    pub scales: Vec<u8>,
    /// `[rows, columns / group]` of the scale type.
    pub biases: Vec<u8>,
}

impl QuantizedRows {
    /// Clears the rows and keeps the memory.
    pub fn clear(&mut self) {
        self.codes.clear();
        self.scales.clear();
        self.biases.clear();
    }
}

impl Quantizer {
    /// `bits` of [`BITS`], groups of [`GROUP_SIZES`]; weights, scales and biases of `scale_type`.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] for any other number of bits or group size.
    pub fn new(bits: u8, group_size: u16, scale_type: FloatType) -> Result<Self> {
        if !BITS.contains(&bits) {
            let rule = "2, 3, 4, 5, 6 or 8 in MLX's affine format";
            return Err(KernelError::Dimension {
                what: "bits per weight",
                value: bits.into(),
                rule,
            });
        }
        if !GROUP_SIZES.contains(&group_size) {
            let (what, rule) = ("the group size", "32, 64 or 128 in MLX's affine format");
            return Err(KernelError::Dimension { what, value: group_size.into(), rule });
        }
        Ok(Self { bits, group_size, scale_type })
    }

    /// Bits per weight.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Weights that share a scale and a bias.
    #[must_use]
    pub fn group_size(&self) -> u16 {
        self.group_size
    }

    /// Appends one row of whole groups to `out`. The row is first rounded to the scale type, which
    /// is that of the checkpoint's weights, as mlx-lm does.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] for a row that does not divide into groups.
    pub fn push_row(&self, row: &mut [f32], out: &mut QuantizedRows) -> Result<()> {
        let group = usize::from(self.group_size);
        if !row.len().is_multiple_of(group) {
            let what = "a row's length";
            let rule = "a multiple of the group size";
            return Err(KernelError::Dimension { what, value: row.len(), rule });
        }
        self.scale_type.round_all(row);
        for weights in row.chunks_exact(group) {
            let group = quantize_group(weights, self.bits, &mut out.codes);
            self.scale_type.push(group.scale, &mut out.scales);
            self.scale_type.push(group.bias, &mut out.biases);
        }
        Ok(())
    }
}

/// Appends one row of whole groups in MXFP4: `row.len() / 2` bytes of codes, `row.len() / 32` of
/// scales. The scale is that of OCP's specification (the power of two of the largest element over
/// that of 6, the largest code), each element the nearest code's.
///
/// # Errors
/// [`KernelError::Dimension`] for a row that does not divide into groups of 32.
pub fn push_mxfp4_row(row: &[f32], codes: &mut Vec<u8>, scales: &mut Vec<u8>) -> Result<()> {
    /// Halfway between neighbouring magnitudes 0, ½, 1, 1½, 2, 3, 4, 6.
    const EDGES: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    if !row.len().is_multiple_of(Mxfp4::GROUP) {
        let what = "a row's length";
        let rule = "a multiple of the group size";
        return Err(KernelError::Dimension { what, value: row.len(), rule });
    }
    for group in row.chunks_exact(Mxfp4::GROUP) {
        let largest = group.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let exponent = u8::try_from(largest.to_bits() >> 23).unwrap_or(u8::MAX).saturating_sub(2);
        scales.push(exponent);
        let scale = e8m0(exponent);
        let code = |x: f32| {
            let magnitude = EDGES.iter().filter(|edge| x.abs() / scale > **edge).count();
            u8::try_from(magnitude).unwrap_or(7) | u8::from(x < 0.0) << 3
        };
        codes.extend(group.as_chunks::<2>().0.iter().map(|[a, b]| code(*a) | code(*b) << 4));
    }
    Ok(())
}

/// The scale and bias of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Group {
    /// The step between two codes; negative where the maximum is the exact end.
    scale: f32,
    /// The weight of code 0.
    bias: f32,
}

/// Quantises one group, `weights.len()` a multiple of 8, and appends its codes
/// (`weights.len() · bits / 8` bytes) to `codes`.
fn quantize_group(weights: &[f32], bits: u8, codes: &mut Vec<u8>) -> Group {
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
    use crate::weights::WeightMatrix;
    use safetensors::SafeTensors;

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

    /// Made by `xtask/golden/affine.py` with `mx.quantize`.
    const GOLDEN: &[u8] = include_bytes!("../../../xtask/golden/affine.safetensors");

    fn check(golden: &SafeTensors<'_>, quantizer: Quantizer, label: &str) {
        let weights = golden.tensor("weights").unwrap();
        let mut row: Vec<f32> = weights
            .data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        let mut rows = QuantizedRows::default();
        quantizer.push_row(&mut row, &mut rows).unwrap();
        let parts = [("codes", rows.codes), ("scales", rows.scales), ("biases", rows.biases)];
        for (part, bytes) in parts {
            let name = format!("{label}.{}.{}.{part}", quantizer.bits, quantizer.group_size);
            assert_eq!(bytes, golden.tensor(&name).unwrap().data(), "{name}");
        }
    }

    #[test]
    fn codes_scales_and_biases_are_those_of_mlx() {
        let golden = SafeTensors::deserialize(GOLDEN).unwrap();
        let types = [("f32", FloatType::F32), ("bf16", FloatType::Bf16), ("f16", FloatType::F16)];
        for (label, scale_type) in types {
            for (bits, group) in BITS.iter().flat_map(|b| GROUP_SIZES.map(|g| (*b, g))) {
                check(&golden, Quantizer::new(bits, group, scale_type).unwrap(), label);
            }
        }
    }

    #[test]
    fn unknown_widths_and_groups_are_refused() {
        for (bits, group) in [(7, 64), (0, 64), (16, 64), (4, 16), (4, 48), (4, 0)] {
            assert!(Quantizer::new(bits, group, FloatType::F32).is_err(), "{bits} {group}");
        }
        let quantizer = Quantizer::new(4, 64, FloatType::F32).unwrap();
        assert!(quantizer.push_row(&mut [0.0; 96], &mut QuantizedRows::default()).is_err());
    }

    #[test]
    fn rows_become_their_nearest_4_bit_floats() {
        let mut row = [0.0f32; 64];
        row[..6].copy_from_slice(&[6.0, -0.26, 2.4, -5.1, 0.24, 1.0]);
        row[32] = -0.03;
        let mut codes = Vec::new();
        let mut scales = Vec::new();
        push_mxfp4_row(&row, &mut codes, &mut scales).unwrap();
        let weights = WeightMatrix::mxfp4(1, 64, &codes, &scales).unwrap();
        let mut back = [f32::NAN; 64];
        weights.dequantize_row(0, &mut back).unwrap();
        assert_eq!(back[..6], [6.0, -0.5, 2.0, -6.0, 0.0, 1.0]);
        // 2⁻⁸, the power of two of 0.03 over 4, times 6 and 8: the former is the largest.
        assert_eq!((scales[1], back[32]), (127 - 8, -0.023_437_5));
        assert!(push_mxfp4_row(&row[..48], &mut codes, &mut scales).is_err());
    }
}
