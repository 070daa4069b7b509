//! Operations of image encoders, and what brings their results among the tokens.

use mlx_ffi::{Array, Dtype};

use super::{KernelSet, Ops, host, mlx, shape_error};
use crate::layers::Weight;
use crate::shape::{dims, int, ints, rows_cols};
use crate::{Error, Result};

impl Ops {
    /// Values as activations for `weight`, `[rows, its columns]`.
    ///
    /// # Errors
    /// Values that are not whole rows.
    pub fn activations(&self, values: &[f32], weight: &Weight) -> Result<Array> {
        let (_, cols) = weight.shape();
        if cols == 0 || !values.len().is_multiple_of(cols) {
            let what = format!("{} values are not rows of {cols}", values.len());
            return Err(Error::Config { what });
        }
        let array = Array::from_slice(values, &ints([values.len() / cols, cols])?)?;
        let floats = match (self.kernels(), weight) {
            (KernelSet::Host, _) => Dtype::Float32,
            (KernelSet::Mlx, Weight::Dense(array)) => array.dtype(),
            (KernelSet::Mlx, Weight::Affine(w)) => w.scales.dtype(),
            (KernelSet::Mlx, Weight::Mxfp4(_)) => Dtype::Bfloat16,
        };
        super::as_dtype(array, floats)
    }

    /// The matrix `[rows, cols]` of a tensor of more dimensions, all but the first in a row.
    ///
    /// # Errors
    /// A tensor without dimensions.
    pub fn flat_matrix(&self, tensor: &Array) -> Result<Weight> {
        let rows = dims(tensor).first().copied().unwrap_or(0).max(1);
        let flat = mlx_ffi::ops::reshape(tensor, &ints([rows, tensor.size() / rows])?)?;
        self.matrix(Weight::Dense(flat))
    }

    /// Attention within each of `segments`, numbers of rows one after the other, all rows of each
    /// among themselves and without a cache. `q`, `k` and `v` are `[rows, heads · head_dim]`, and so is
    /// the result; scores are scaled by `1/√head_dim`.
    ///
    /// # Errors
    /// Shapes that differ, heads that do not divide them, segments that are not all rows.
    pub fn encoder_attention(
        &self,
        [q, k, v]: [&Array; 3],
        heads: usize,
        segments: &[usize],
    ) -> Result<Array> {
        let (rows, width) = rows_cols(q);
        let alike = [k, v].iter().all(|x| x.shape() == q.shape());
        if !alike || heads == 0 || !width.is_multiple_of(heads) {
            let expected = format!("as keys and values, rows of {heads} heads");
            return Err(shape_error("encoder_attention", "q", q, expected));
        }
        let all = segments.iter().try_fold(0usize, |sum, len| sum.checked_add(*len));
        if all != Some(rows) || segments.contains(&0) {
            let expected = format!("segments of {segments:?} rows");
            return Err(shape_error("encoder_attention", "q", q, expected));
        }
        match self.kernels() {
            KernelSet::Host => host::encoder_attention(self, [q, k, v], heads, segments),
            KernelSet::Mlx => mlx::encoder_attention([q, k, v], heads, segments),
        }
    }

    /// Every `count` rows of `x`, `[rows, width]`, as one: `[rows / count, count · width]`.
    ///
    /// # Errors
    /// Rows that do not divide.
    pub fn joined_rows(&self, x: &Array, count: usize) -> Result<Array> {
        let (rows, width) = rows_cols(x);
        if count == 0 || !rows.is_multiple_of(count) {
            return Err(shape_error("joined_rows", "x", x, format!("a multiple of {count} rows")));
        }
        let joined = mlx_ffi::ops::reshape(x, &ints([rows / count, count * width])?)?;
        Ok(mlx_ffi::ops::contiguous(&joined)?)
    }

    /// Means over squares of `kernel` × `kernel` of the rows of `x`, `[side · side, width]`, which
    /// lie on a square row by row.
    ///
    /// # Errors
    /// Rows that are no square, or one that does not divide.
    pub fn average_pool(&self, x: &Array, kernel: usize) -> Result<Array> {
        let (rows, width) = rows_cols(x);
        let side = rows.isqrt();
        if kernel == 0 || side * side != rows || !side.is_multiple_of(kernel) {
            let expected = format!("a square of rows that {kernel} divides");
            return Err(shape_error("average_pool", "x", x, expected));
        }
        let small = side / kernel;
        let shape = ints([small, kernel, small, kernel, width])?;
        let mut sum = mlx_ffi::ops::reshape(x, &shape)?;
        for axis in [3, 1] {
            sum = mlx_ffi::ops::mean(&sum, axis, false)?;
        }
        let flat = mlx_ffi::ops::reshape(&sum, &ints([small * small, width])?)?;
        Ok(mlx_ffi::ops::contiguous(&flat)?)
    }

    /// `x` with `rows` in place of its rows from `start` on.
    ///
    /// # Errors
    /// Rows that do not fit.
    pub(crate) fn replace_rows(&self, x: &Array, start: usize, rows: &Array) -> Result<Array> {
        let ((all, width), (count, own)) = (rows_cols(x), rows_cols(rows));
        if own != width || start + count > all {
            let expected = format!("rows of {width} within {all}");
            return Err(shape_error("replace_rows", "rows", rows, expected));
        }
        let rows = super::as_dtype(rows.clone(), x.dtype())?;
        let (first, end) = ([int(start)?, 0], [int(start + count)?, int(width)?]);
        let replaced = mlx_ffi::ops::slice_update(x, &rows, &first, &end)?;
        Ok(mlx_ffi::ops::contiguous(&replaced)?)
    }
}
