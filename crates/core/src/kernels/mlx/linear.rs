//! Embeddings and matrix products.

use mlx_ffi::ops::{Orientation, Quantized};
use mlx_ffi::{Array, Dtype, ops};

use crate::Result;
use crate::layers::{Embedding, Linear, Weight};
use crate::quantized::{affine, mxfp4};
use crate::shape::{int, ints, rows_cols};

/// Rows `ids` of the table, floats of type `floats`.
pub(super) fn embed(ids: &[i32], table: &Embedding, floats: Option<Dtype>) -> Result<Array> {
    let ids = Array::from_slice(ids, &[int(ids.len())?])?;
    let stored = match &table.weight {
        Weight::Dense(array) => return Ok(ops::take(array, &ids, 0)?),
        Weight::Affine(w) => affine(w)?,
        Weight::Mxfp4(w) => mxfp4(w),
    };
    let biases = match &stored.biases {
        Some(biases) => Some(ops::take(biases, &ids, 0)?),
        None => None,
    };
    let rows = Quantized {
        weight: ops::take(&stored.weight, &ids, 0)?,
        scales: ops::take(&stored.scales, &ids, 0)?,
        biases,
        quantization: stored.quantization,
    };
    Ok(ops::dequantize(&rows, floats)?)
}

pub(super) fn linear(x: &Array, layer: &Linear) -> Result<Array> {
    let y = match &layer.weight {
        Weight::Dense(array) => ops::matmul(x, &ops::swapaxes(array, 0, 1)?)?,
        Weight::Affine(w) => ops::quantized_matmul(x, &affine(w)?, Orientation::Transposed)?,
        Weight::Mxfp4(w) => ops::quantized_matmul(x, &mxfp4(w), Orientation::Transposed)?,
    };
    match &layer.bias {
        Some(bias) => Ok(ops::add(&y, bias)?),
        None => Ok(y),
    }
}

pub(super) fn linear_per_head(x: &Array, weight: &Weight, heads: usize) -> Result<Array> {
    let (tokens, width) = rows_cols(x);
    let by_head = ops::reshape(x, &ints([tokens, heads, width / heads])?)?;
    let by_head = ops::transpose(&by_head, &[1, 0, 2])?;
    let y = match weight {
        Weight::Dense(array) => {
            ops::matmul(&by_head, &ops::swapaxes(&unfold(array, heads)?, -1, -2)?)?
        }
        Weight::Affine(w) => {
            ops::quantized_matmul(&by_head, &unfolded(affine(w)?, heads)?, Orientation::Transposed)?
        }
        Weight::Mxfp4(w) => {
            ops::quantized_matmul(&by_head, &unfolded(mxfp4(w), heads)?, Orientation::Transposed)?
        }
    };
    let rows = ints([tokens, weight.shape().0])?;
    Ok(ops::reshape(&ops::transpose(&y, &[1, 0, 2])?, &rows)?)
}

/// `[parts · rows, cols]` as `[parts, rows, cols]`.
pub(super) fn unfold(array: &Array, parts: usize) -> Result<Array> {
    let (rows, cols) = rows_cols(array);
    Ok(ops::reshape(array, &ints([parts, rows / parts, cols])?)?)
}

/// A quantised matrix as `parts` matrices one after the other.
pub(super) fn unfolded(w: Quantized, parts: usize) -> Result<Quantized> {
    Ok(Quantized {
        weight: unfold(&w.weight, parts)?,
        scales: unfold(&w.scales, parts)?,
        biases: w.biases.map(|biases| unfold(&biases, parts)).transpose()?,
        quantization: w.quantization,
    })
}
