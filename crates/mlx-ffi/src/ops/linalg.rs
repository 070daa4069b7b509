//! Matrix products and convolutions.

use super::shape::clamped_indices;
use super::{make, ops};
use crate::array::{Array, optional};
use crate::{Error, Result};

ops! {
    /// The matrix product of the last two axes: `[…, m, k] · […, k, n]`.
    matmul(a: array, b: array) => mlxcel_matmul;
    /// `c + a · b`.
    addmm(c: array, a: array, b: array) => mlxcel_addmm;
    /// `a · H` along the last axis, whose size is a power of two. H is the normalised Walsh–Hadamard
    /// matrix, its own inverse.
    hadamard_transform(a: array) => mlxcel_hadamard_transform;
}

/// The geometry of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// Distance between windows.
    pub stride: i32,
    /// Zeros added at both ends.
    pub padding: i32,
    /// Distance between the elements of a window.
    pub dilation: i32,
    /// Groups of channels that are convolved separately.
    pub groups: i32,
}

impl Default for Conv {
    /// Stride 1, no padding, dilation 1, one group.
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1, groups: 1 }
    }
}

impl Conv {
    /// Rejects values that MLX divides by or sizes buffers with unchecked.
    fn check(self) -> Result<()> {
        let limits = [
            ("stride", self.stride, 1),
            ("padding", self.padding, 0),
            ("dilation", self.dilation, 1),
            ("groups", self.groups, 1),
        ];
        for (argument, value, least) in limits {
            if value < least {
                return Err(Error::BadArgument { op: "conv1d", argument, value: value.into() });
            }
        }
        Ok(())
    }
}

/// Convolution of `input`, `[batch, length, channels_in]`, with `weight`, `[channels_out, window,
/// channels_in / groups]`.
///
/// # Errors
/// Shapes that do not match, or a geometry outside its domain.
pub fn conv1d(input: &Array, weight: &Array, conv: Conv) -> Result<Array> {
    conv.check()?;
    make!(
        "conv1d",
        mlxcel_conv1d(
            input.raw(),
            weight.raw(),
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups
        )
    )
}

/// Selection of matrices from the batches of both operands; a side without indices is taken in order.
/// Indices beyond the batch are clamped to its last matrix.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gather<'a> {
    /// Indices into the batch of the left operand, `u32`.
    pub lhs: Option<&'a Array>,
    /// Indices into the batch of the right operand, `u32`.
    pub rhs: Option<&'a Array>,
    /// Declares that `rhs` is sorted, which lets MLX choose a faster kernel.
    pub sorted: bool,
}

/// [`matmul`] of selected matrices, such as the experts that a router chose.
///
/// # Errors
/// Shapes that do not match, or an empty batch.
pub fn gather_mm(a: &Array, b: &Array, gather: Gather<'_>) -> Result<Array> {
    let lhs = clamped_matrices("gather_mm", gather.lhs, a)?;
    let rhs = clamped_matrices("gather_mm", gather.rhs, b)?;
    make!(
        "gather_mm",
        mlxcel_gather_mm(
            a.raw(),
            b.raw(),
            optional(lhs.as_ref()),
            optional(rhs.as_ref()),
            gather.sorted
        )
    )
}

/// `indices` clamped to the batch of matrices that `operand` holds.
pub(super) fn clamped_matrices(
    op: &'static str,
    indices: Option<&Array>,
    operand: &Array,
) -> Result<Option<Array>> {
    let Some(indices) = indices else { return Ok(None) };
    let shape = operand.shape();
    let outer = &shape[..shape.len().saturating_sub(2)];
    // A batch beyond the range of the type has every index that fits the limit.
    let batch = outer.iter().try_fold(1_i32, |batch, &dim| batch.checked_mul(dim));
    clamped_indices(op, indices, batch.unwrap_or(i32::MAX)).map(Some)
}
