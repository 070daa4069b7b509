//! Layout of the matrices of a layer's experts.

use mlx_ffi::{Array, ops};

use super::in_words;
use crate::experts::ExpertMatrices;
use crate::kernels::MatrixForm;
use crate::layers::{AffineWeight, Mxfp4Weight, Weight};
use crate::ops::Ops;
use crate::shape::{int, ints, rows_cols};
use crate::{Error, Result};

impl Ops {
    /// The matrices of all experts in the form that the kernel set reads: host kernels read each where
    /// it is, MLX's one array (a copy).
    ///
    /// # Errors
    /// Matrices of different formats, for MLX.
    pub fn expert_matrices(&self, weights: Vec<Weight>) -> Result<ExpertMatrices> {
        match self.implementation().parameters().form {
            MatrixForm::InPlace => Ok(ExpertMatrices::Separate(weights)),
            MatrixForm::Packed => {
                let stacked = stack(&weights)?;
                mlx_ffi::eval(&stacked.arrays())?;
                Ok(ExpertMatrices::Stacked(stacked))
            }
        }
    }

    /// The `count` stacks of matrices whose rows are interleaved in `weight`, in the form that the
    /// kernel set reads: host kernels read each where it is, MLX's each by itself (a copy).
    ///
    /// # Errors
    /// Rows that do not divide, and a format other than MXFP4.
    pub fn deinterleave(&self, weight: &Weight, count: usize) -> Result<Vec<ExpertMatrices>> {
        let Weight::Mxfp4(matrix) = weight else {
            return Err(Error::Unsupported { feature: "interleaved matrices that are not MXFP4" });
        };
        let (rows, _) = weight.shape();
        let Some(0) = rows.checked_rem(count) else {
            return Err(Error::Indivisible { what: "interleaved rows", size: rows, parts: count });
        };
        let mut matrices = Vec::with_capacity(count);
        for index in 0..count {
            matrices.push(match self.implementation().parameters().form {
                MatrixForm::InPlace => {
                    ExpertMatrices::Interleaved { weight: weight.clone(), index, count }
                }
                MatrixForm::Packed => {
                    let own = every_nth_row(matrix, index, count)?;
                    mlx_ffi::eval(&own.arrays())?;
                    ExpertMatrices::Stacked(self.matrix(own)?)
                }
            });
        }
        Ok(matrices)
    }

    /// Values `index`, `index + count`, … of a vector parameter, in the type of the files.
    ///
    /// # Errors
    /// A number of values that does not divide.
    pub fn deinterleave_values(&self, values: &Array, index: usize, count: usize) -> Result<Array> {
        let size = values.size();
        let Some(0) = size.checked_rem(count) else {
            return Err(Error::Indivisible { what: "interleaved values", size, parts: count });
        };
        let own_shape = ints([size / count])?;
        let rows = ops::reshape(values, &ints([size / count, count])?)?;
        let own = ops::slice_axis(&rows, 1, int(index)?, int(index + 1)?)?;
        let flat = ops::contiguous(&ops::reshape(&own, &own_shape)?)?;
        flat.eval()?;
        Ok(flat)
    }
}

/// Rows `index`, `index + count`, … of an MXFP4 matrix, by themselves.
fn every_nth_row(matrix: &Mxfp4Weight, index: usize, count: usize) -> Result<Weight> {
    let words = in_words(matrix.clone())?;
    let codes = every_nth(&words.codes, index, count)?;
    let scales = every_nth(&words.scales, index, count)?;
    Ok(Weight::Mxfp4(Mxfp4Weight::new(codes, scales)?))
}

/// Rows `index`, `index + count`, … of an array.
fn every_nth(array: &Array, index: usize, count: usize) -> Result<Array> {
    let (rows, cols) = rows_cols(array);
    let groups = ops::reshape(array, &ints([rows / count, count * cols])?)?;
    let own = ops::slice_axis(&groups, 1, int(index * cols)?, int((index + 1) * cols)?)?;
    Ok(ops::contiguous(&own)?)
}

/// The matrices of `weights` one after the other.
fn stack(weights: &[Weight]) -> Result<Weight> {
    let mut dense = Vec::new();
    let mut affine = Vec::new();
    for weight in weights {
        match weight {
            Weight::Dense(array) => dense.push(array),
            Weight::Affine(w) => affine.push(w),
            Weight::Mxfp4(_) => {}
        }
    }
    if dense.len() == weights.len() {
        return Ok(Weight::Dense(ops::concatenate(&dense, 0)?));
    }
    match affine.as_slice() {
        [first, ..] if affine.len() == weights.len() && affine.iter().all(|w| alike(w, first)) => {
            stack_affine(&affine)
        }
        _ => Err(Error::Unsupported { feature: "a layer with experts of several formats" }),
    }
}

/// Returns true if two matrices have one quantisation.
fn alike(a: &AffineWeight, b: &AffineWeight) -> bool {
    a.bits == b.bits && a.group_size == b.group_size
}

/// Matrices of one quantisation, one after the other.
fn stack_affine(weights: &[&AffineWeight]) -> Result<Weight> {
    let codes: Vec<_> = weights.iter().map(|w| &w.codes).collect();
    let scales: Vec<_> = weights.iter().map(|w| &w.scales).collect();
    let biases: Vec<_> = weights.iter().map(|w| &w.biases).collect();
    Ok(Weight::Affine(AffineWeight::new(
        ops::concatenate(&codes, 0)?,
        ops::concatenate(&scales, 0)?,
        ops::concatenate(&biases, 0)?,
        weights[0].group_size,
        weights[0].bits,
    )?))
}
