//! Operations of image encoders, and what brings their results among the tokens.

use mlx_ffi::{Array, Dtype};

use super::{Activation, KernelSet, Ops, host, mlx, shape_error};
use crate::attention::AttentionSpec;
use crate::batch::Batch;
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

    /// The same among the rows of one image of which only the first `real` show something of it: those
    /// see all rows, the others only those.
    ///
    /// # Errors
    /// As [`Self::encoder_attention`], and no such number of rows.
    pub fn padded_encoder_attention(
        &self,
        [q, k, v]: [&Array; 3],
        heads: usize,
        real: usize,
    ) -> Result<Array> {
        let (rows, width) = rows_cols(q);
        let alike = [k, v].iter().all(|x| x.shape() == q.shape());
        if !alike || heads == 0 || !width.is_multiple_of(heads) || !(1..=rows).contains(&real) {
            let expected =
                format!("as keys and values, rows of {heads} heads, {real} of them real");
            return Err(shape_error("encoder_attention", "q", q, expected));
        }
        match self.kernels() {
            KernelSet::Host => host::padded_encoder_attention(self, [q, k, v], heads, real),
            KernelSet::Mlx => mlx::padded_encoder_attention([q, k, v], heads, real),
        }
    }

    /// See [`Batch::cross_attention`].
    pub(crate) fn cross_attention(
        &self,
        batch: &Batch,
        layer: usize,
        q: &Array,
        spec: &AttentionSpec,
    ) -> Result<Array> {
        let expected = [batch.positions().len(), spec.query_heads() * spec.layout().key_dim];
        if dims(q) != expected {
            return Err(shape_error("cross_attention", "q", q, format!("{expected:?}")));
        }
        match self.kernels() {
            KernelSet::Host => host::cross_attention(self, batch, layer, q, spec),
            KernelSet::Mlx => mlx::cross_attention(batch, layer, q, spec),
        }
    }

    /// Each row of `x`, `[rows, width]`, times its factor.
    ///
    /// # Errors
    /// Another number of factors.
    pub(crate) fn scale_rows(&self, x: &Array, factors: &[f32]) -> Result<Array> {
        let factors = Array::from_slice(factors, &ints([factors.len(), 1])?)?;
        self.gated(&super::as_dtype(factors, x.dtype())?, x, Activation::Identity)
    }

    /// The rows of `parts`, of one width, one after the other; a vector is a row.
    ///
    /// # Errors
    /// Widths that differ.
    pub fn stacked_rows(&self, parts: &[&Array]) -> Result<Array> {
        let rows = |part: &&Array| -> Result<Array> {
            let (rows, width) = rows_cols(part);
            Ok(mlx_ffi::ops::reshape(part, &ints([rows, width])?)?)
        };
        let parts = parts.iter().map(rows).collect::<Result<Vec<_>>>()?;
        let stacked = mlx_ffi::ops::concatenate(&parts.iter().collect::<Vec<_>>(), 0)?;
        Ok(mlx_ffi::ops::contiguous(&stacked)?)
    }

    /// `x`, `[rows, width]`, with `count` more rows of zeros.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn padded_rows(&self, x: &Array, count: usize) -> Result<Array> {
        let zeros = Array::zeros(&ints([count, rows_cols(x).1])?, x.dtype())?;
        self.stacked_rows(&[x, &zeros])
    }

    /// In each row the elements of `first`, and behind them those of `others`, of one shape, in turn:
    /// the first of each, then the second of each.
    ///
    /// # Errors
    /// Shapes that differ, or no others.
    pub fn joined_in_turn(&self, first: &Array, others: &[Array]) -> Result<Array> {
        let (rows, width) = rows_cols(first);
        let turns = mlx_ffi::ops::stack(&others.iter().collect::<Vec<_>>(), -1)?;
        let turns = mlx_ffi::ops::reshape(&turns, &ints([rows, width * others.len()])?)?;
        let joined = mlx_ffi::ops::concatenate(&[first, &turns], 1)?;
        Ok(mlx_ffi::ops::contiguous(&joined)?)
    }

    /// Each row of `x`, `[rows, width]`, as `count` rows: `[rows · count, width / count]`.
    ///
    /// # Errors
    /// A width that does not divide.
    pub fn parted_rows(&self, x: &Array, count: usize) -> Result<Array> {
        let (rows, width) = rows_cols(x);
        if count == 0 || !width.is_multiple_of(count) {
            return Err(shape_error("parted_rows", "x", x, format!("rows of {count} parts")));
        }
        let parts = mlx_ffi::ops::reshape(x, &ints([rows * count, width / count])?)?;
        Ok(mlx_ffi::ops::contiguous(&parts)?)
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
