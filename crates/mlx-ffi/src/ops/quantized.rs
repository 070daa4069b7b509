//! Quantised weights, in MLX's packing.

use std::ffi::CStr;

use super::{Gather, make};
use crate::array::{Array, optional};
use crate::bindings as sys;
use crate::{Dtype, Result};

/// How each group of weights is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Integers with a scale and a bias per group.
    Affine,
    /// 4-bit floats (E2M1), groups of 32, a power-of-two scale (E8M0), no bias.
    Mxfp4,
    /// 8-bit floats (E4M3), groups of 32, a power-of-two scale (E8M0), no bias.
    Mxfp8,
    /// 4-bit floats (E2M1), groups of 16, an 8-bit float scale (E4M3), no bias.
    Nvfp4,
}

impl Mode {
    fn name(self) -> &'static CStr {
        match self {
            Self::Affine => c"affine",
            Self::Mxfp4 => c"mxfp4",
            Self::Mxfp8 => c"mxfp8",
            Self::Nvfp4 => c"nvfp4",
        }
    }
}

/// The parameters of a quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quantization {
    /// How each group is stored.
    pub mode: Mode,
    /// Weights per group, along the last axis.
    pub group_size: i32,
    /// Bits per weight.
    pub bits: i32,
}

impl Quantization {
    fn raw(self) -> sys::mlxcel_quantization {
        sys::mlxcel_quantization {
            mode: self.mode.name().as_ptr(),
            group_size: self.group_size,
            bits: self.bits,
        }
    }
}

/// A quantised matrix, as checkpoints hold it.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// The packed weights: `[rows, columns * bits / 32]`, `u32`.
    pub weight: Array,
    /// `[rows, columns / group_size]`.
    pub scales: Array,
    /// As `scales`; [`Mode::Affine`] only.
    pub biases: Option<Array>,
    /// How it is stored.
    pub quantization: Quantization,
}

/// Whether the quantised matrix is `[outputs, inputs]`, as linear layers store it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    /// `x · wᵀ`.
    Transposed,
    /// `x · w`.
    Plain,
}

/// Quantises a float matrix along its last axis.
///
/// # Errors
/// A group size or number of bits that MLX does not have, or an axis that does not divide.
pub fn quantize(w: &Array, quantization: Quantization) -> Result<Quantized> {
    let mut len = 0;
    let mut parts = Array::many_from_call("quantize", 3, |outs| {
        // SAFETY: a live handle, three slots and one for their number; the mode is a static string.
        unsafe { sys::mlxcel_quantize(outs, &mut len, w.raw(), quantization.raw()) }
    })?
    .into_iter();
    let mut next = || parts.next().expect("the shim returns 2 or 3 arrays");
    let (weight, scales) = (next(), next());
    let biases = (len == 3).then(next);
    Ok(Quantized { weight, scales, biases, quantization })
}

/// The float matrix, in `dtype`, or that of the scales (bf16 where they are no floats).
///
/// # Errors
/// Parts that do not belong together.
pub fn dequantize(w: &Quantized, dtype: Option<Dtype>) -> Result<Array> {
    let (weight, scales) = (w.weight.raw(), w.scales.raw());
    let (biases, quantization) = (optional(w.biases.as_ref()), w.quantization.raw());
    let number = dtype.map_or(-1, Dtype::number);
    make!("dequantize", mlxcel_dequantize(weight, scales, biases, quantization, number))
}

/// `x`, `[…, inputs]`, times a quantised matrix.
///
/// # Errors
/// Shapes that do not fit.
pub fn quantized_matmul(x: &Array, w: &Quantized, orientation: Orientation) -> Result<Array> {
    let (x, weight, scales) = (x.raw(), w.weight.raw(), w.scales.raw());
    let (biases, quantization) = (optional(w.biases.as_ref()), w.quantization.raw());
    let transposed = orientation == Orientation::Transposed;
    make!(
        "quantized_matmul",
        mlxcel_quantized_matmul(x, weight, scales, biases, transposed, quantization)
    )
}

/// [`quantized_matmul`] of chosen matrices, such as those of the experts of a token.
///
/// # Errors
/// Shapes that do not fit.
pub fn gather_qmm(
    x: &Array,
    w: &Quantized,
    orientation: Orientation,
    gather: Gather<'_>,
) -> Result<Array> {
    let (x, weight, scales) = (x.raw(), w.weight.raw(), w.scales.raw());
    let (biases, quantization) = (optional(w.biases.as_ref()), w.quantization.raw());
    let (lhs, rhs, sorted) = (optional(gather.lhs), optional(gather.rhs), gather.sorted);
    let transposed = orientation == Orientation::Transposed;
    make!(
        "gather_qmm",
        mlxcel_gather_qmm(x, weight, scales, biases, lhs, rhs, transposed, quantization, sorted)
    )
}
