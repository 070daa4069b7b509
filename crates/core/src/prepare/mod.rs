//! Preparation of a model's parameters at load time: types, layouts and derived matrices, in the form
//! in which the kernel set reads them.
//!
//! Nothing here runs per token. Copies are made at once, so that the files' pages can be dropped.

mod experts;
mod latent;

use std::ops::Range;

use mlx_ffi::{Array, Dtype, ops};

pub use self::latent::AbsorbedStorage;
use crate::Result;
use crate::kernels::MatrixForm;
use crate::layers::{Mxfp4Weight, Weight};
use crate::ops::Ops;
use crate::shape::{as_dtype, dims, int, ints, rows_cols};

impl Ops {
    /// A vector parameter (norm weight, bias) in the type that the kernel set reads.
    ///
    /// # Errors
    /// A conversion that cannot be built.
    pub fn vector(&self, array: Array) -> Result<Array> {
        converted(array, self.implementation().parameters().vectors)
    }

    /// A vector parameter plus `value`, in the type that [`Self::vector`] gives it.
    ///
    /// # Errors
    /// Errors of [`Self::vector`].
    pub fn shifted_vector(&self, array: Array, value: f64) -> Result<Array> {
        Ok(ops::add_scalar(&self.vector(array)?, value)?)
    }

    /// A matrix parameter in the types that the kernel set reads.
    ///
    /// # Errors
    /// A conversion that cannot be built.
    pub fn matrix(&self, weight: Weight) -> Result<Weight> {
        let layout = self.implementation().parameters();
        let floats = layout.matrices;
        Ok(match weight {
            Weight::Dense(array) => Weight::Dense(converted(array, floats)?),
            Weight::Affine(mut w) => {
                w.scales = converted(w.scales, floats)?;
                w.biases = converted(w.biases, floats)?;
                Weight::Affine(w)
            }
            Weight::Mxfp4(w) if layout.form == MatrixForm::Packed => Weight::Mxfp4(in_words(w)?),
            Weight::Mxfp4(w) => Weight::Mxfp4(w),
        })
    }

    /// The matrix `[rows, cols]` of a tensor of more dimensions, all but the first flattened.
    ///
    /// # Errors
    /// A tensor without dimensions.
    pub fn flat_matrix(&self, tensor: &Array) -> Result<Weight> {
        let rows = dims(tensor).first().copied().unwrap_or(0).max(1);
        let flat = ops::reshape(tensor, &ints([rows, tensor.size() / rows])?)?;
        self.matrix(Weight::Dense(flat))
    }

    /// Columns `columns` of a dense matrix, as rows: a copy.
    ///
    /// # Errors
    /// Columns that the matrix does not have.
    pub fn transposed(&self, matrix: &Array, columns: Range<usize>) -> Result<Array> {
        let part = ops::slice_axis(matrix, 1, int(columns.start)?, int(columns.end)?)?;
        let rows = ops::contiguous(&ops::swapaxes(&part, 0, 1)?)?;
        rows.eval()?;
        Ok(rows)
    }
}

fn converted(array: Array, dtype: Option<Dtype>) -> Result<Array> {
    match dtype {
        Some(dtype) => as_dtype(array, dtype),
        None => Ok(array),
    }
}

/// The matrix with its codes as MLX reads them, u32 `[rows, cols / 8]`.
fn in_words(w: Mxfp4Weight) -> Result<Mxfp4Weight> {
    if w.codes.dtype() == Dtype::Uint32 {
        return Ok(w);
    }
    let (rows, groups) = rows_cols(&w.scales);
    let bytes = ops::reshape(&w.codes, &ints([rows, groups * Mxfp4Weight::GROUP / 2])?)?;
    Mxfp4Weight::new(ops::view(&bytes, Dtype::Uint32)?, w.scales)
}
