//! Products.

use super::{make, ops};
use crate::Result;
use crate::array::{Array, optional};

ops! {
    /// The matrix product of the last two axes: `[…, m, k] · […, k, n]`.
    matmul(a: array, b: array) => mlxcel_matmul;
    /// `c + a · b`.
    addmm(c: array, a: array, b: array) => mlxcel_addmm;
    /// `a · H` along the last axis, of a power of two: H is the normalised Walsh–Hadamard matrix, its
    /// own inverse.
    hadamard_transform(a: array) => mlxcel_hadamard_transform;
}

/// The geometry of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// Distance between windows.
    pub stride: i32,
    /// Zeros before and after.
    pub padding: i32,
    /// Distance between the elements of a window.
    pub dilation: i32,
    /// Groups of channels that are convolved by themselves.
    pub groups: i32,
}

impl Default for Conv {
    /// Stride 1, no padding, dilation 1, one group.
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1, groups: 1 }
    }
}

/// `input`, `[batch, length, channels_in]`, convolved with `weight`, `[channels_out, window,
/// channels_in / groups]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn conv1d(input: &Array, weight: &Array, conv: Conv) -> Result<Array> {
    let (input, weight) = (input.raw(), weight.raw());
    let Conv { stride, padding, dilation, groups } = conv;
    make!("conv1d", mlxcel_conv1d(input, weight, stride, padding, dilation, groups))
}

/// Which matrices of a batch are multiplied; a side without indices is taken in order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gather<'a> {
    /// Indices into the batch of the left operand, `u32`.
    pub lhs: Option<&'a Array>,
    /// Indices into the batch of the right operand, `u32`.
    pub rhs: Option<&'a Array>,
    /// The caller has sorted `rhs`, which MLX may make use of.
    pub sorted: bool,
}

/// [`matmul`] of chosen matrices, such as those of the experts of a token.
///
/// # Errors
/// Shapes that do not fit.
pub fn gather_mm(a: &Array, b: &Array, gather: Gather<'_>) -> Result<Array> {
    let (a, b, sorted) = (a.raw(), b.raw(), gather.sorted);
    let (lhs, rhs) = (optional(gather.lhs), optional(gather.rhs));
    make!("gather_mm", mlxcel_gather_mm(a, b, lhs, rhs, sorted))
}
