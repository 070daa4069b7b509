//! Quantised weights in MLX's packed format.

use std::ffi::CStr;

use super::linalg::clamped_matrices;
use super::{Gather, make};
use crate::array::{Array, optional};
use crate::bindings as sys;
use crate::{Dtype, Error, Result};

/// Storage format of a group of weights.
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
    /// Storage format of a group.
    pub mode: Mode,
    /// Weights per group, along the last axis.
    pub group_size: i32,
    /// Bits per weight.
    pub bits: i32,
}

impl Quantization {
    /// Rejects numbers that MLX divides by before it checks them.
    fn check(self, op: &'static str) -> Result<()> {
        for (argument, value) in [("group_size", self.group_size), ("bits", self.bits)] {
            if value < 1 {
                return Err(Error::BadArgument { op, argument, value: value.into() });
            }
        }
        Ok(())
    }

    fn raw(self) -> sys::mlxcel_quantization {
        sys::mlxcel_quantization {
            mode: self.mode.name().as_ptr(),
            group_size: self.group_size,
            bits: self.bits,
        }
    }
}

/// A quantised matrix in the layout of checkpoints.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// The packed weights: `[rows, columns * bits / 32]`, `u32`.
    pub weight: Array,
    /// `[rows, columns / group_size]`.
    pub scales: Array,
    /// Shaped like `scales`; [`Mode::Affine`] only.
    pub biases: Option<Array>,
    /// Parameters of the quantisation.
    pub quantization: Quantization,
}

/// Orientation of the quantised matrix in a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    /// `x · wᵀ`: the matrix is `[outputs, inputs]`, as linear layers store it.
    Transposed,
    /// `x · w`.
    Plain,
}

/// Quantises a float matrix along its last axis.
///
/// # Errors
/// A group size or bit width that MLX does not support, or an axis that is not divisible.
pub fn quantize(w: &Array, quantization: Quantization) -> Result<Quantized> {
    quantization.check("quantize")?;
    let mut len = 0;
    let mut parts = Array::many_from_call("quantize", 3, |outs| {
        // SAFETY: `w` keeps its handle alive, `outs` has the three slots that the shim fills at most,
        // `len` is a local, and the mode is a static C string.
        unsafe { sys::mlxcel_quantize(outs, &mut len, w.raw(), quantization.raw()) }
    })?
    .into_iter();
    let weight = parts.next().expect("the shim returns 2 or 3 arrays");
    let scales = parts.next().expect("the shim returns 2 or 3 arrays");
    Ok(Quantized { weight, scales, biases: parts.next(), quantization })
}

/// Dequantises to `dtype`, by default the type of the scales (bf16 if they are not floats).
///
/// # Errors
/// Parts whose shapes or types do not match.
pub fn dequantize(w: &Quantized, dtype: Option<Dtype>) -> Result<Array> {
    w.quantization.check("dequantize")?;
    make!(
        "dequantize",
        mlxcel_dequantize(
            w.weight.raw(),
            w.scales.raw(),
            optional(w.biases.as_ref()),
            w.quantization.raw(),
            dtype.map_or(-1, Dtype::number)
        )
    )
}

/// `x`, `[…, inputs]`, times a quantised matrix.
///
/// # Errors
/// Shapes that do not match.
pub fn quantized_matmul(x: &Array, w: &Quantized, orientation: Orientation) -> Result<Array> {
    w.quantization.check("quantized_matmul")?;
    make!(
        "quantized_matmul",
        mlxcel_quantized_matmul(
            x.raw(),
            w.weight.raw(),
            w.scales.raw(),
            optional(w.biases.as_ref()),
            orientation == Orientation::Transposed,
            w.quantization.raw()
        )
    )
}

/// [`quantized_matmul`] of selected matrices, such as the experts that a router chose.
///
/// # Errors
/// Shapes that do not match, or an empty batch.
pub fn gather_qmm(
    x: &Array,
    w: &Quantized,
    orientation: Orientation,
    gather: Gather<'_>,
) -> Result<Array> {
    w.quantization.check("gather_qmm")?;
    let lhs = clamped_matrices("gather_qmm", gather.lhs, x)?;
    let rhs = clamped_matrices("gather_qmm", gather.rhs, &w.weight)?;
    make!(
        "gather_qmm",
        mlxcel_gather_qmm(
            x.raw(),
            w.weight.raw(),
            w.scales.raw(),
            optional(w.biases.as_ref()),
            optional(lhs.as_ref()),
            optional(rhs.as_ref()),
            orientation == Orientation::Transposed,
            w.quantization.raw(),
            gather.sorted
        )
    )
}
