//! Operations of image encoders.

use mlx_ffi::{Array, ops};

use super::Ops;
use crate::kernels::EncoderInputs;
use crate::layers::Weight;
use crate::shape::{as_dtype, ints, rows_cols, shape_error};
use crate::{Error, Result};

impl Ops {
    /// Values as activations for `weight`, `[rows, its columns]`.
    ///
    /// # Errors
    /// Values that are not whole rows.
    pub fn activations(&self, values: &[f32], weight: &Weight) -> Result<Array> {
        let (_, cols) = weight.shape();
        let Some(0) = values.len().checked_rem(cols) else {
            return Err(Error::Indivisible { what: "values", size: values.len(), parts: cols });
        };
        let array = Array::from_slice(values, &ints([values.len() / cols, cols])?)?;
        as_dtype(array, self.implementation().activation_dtype(weight))
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
        let inputs = encoder_inputs([q, k, v], heads)?;
        let all = segments.iter().try_fold(0usize, |sum, len| sum.checked_add(*len));
        if all != Some(rows_cols(q).0) || segments.contains(&0) {
            let expected = format!("segments of {segments:?} rows");
            return Err(shape_error("encoder_attention", "q", q, expected));
        }
        self.implementation().encoder_attention(inputs, segments)
    }

    /// [`Self::encoder_attention`] among the rows of one image, of which the first `real` are no
    /// padding: those attend to all rows, the padding only to those.
    ///
    /// # Errors
    /// Errors of [`Self::encoder_attention`], and no such number of rows.
    pub fn padded_encoder_attention(
        &self,
        [q, k, v]: [&Array; 3],
        heads: usize,
        real: usize,
    ) -> Result<Array> {
        let inputs = encoder_inputs([q, k, v], heads)?;
        let (rows, _) = rows_cols(q);
        if !(1..=rows).contains(&real) {
            let expected = format!("at least {real} rows, which is not 0");
            return Err(shape_error("encoder_attention", "q", q, expected));
        }
        self.implementation().padded_encoder_attention(inputs, real)
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
        let mut means = ops::reshape(x, &shape)?;
        for axis in [3, 1] {
            means = ops::mean(&means, axis, false)?;
        }
        let flat = ops::reshape(&means, &ints([small * small, width])?)?;
        Ok(ops::contiguous(&flat)?)
    }
}

/// Fails for shapes that differ and rows that are not `heads` heads.
fn encoder_inputs([q, k, v]: [&Array; 3], heads: usize) -> Result<EncoderInputs<'_>> {
    let (_, width) = rows_cols(q);
    let alike = k.shape() == q.shape() && v.shape() == q.shape();
    if !alike || heads == 0 || !width.is_multiple_of(heads) {
        let expected = format!("that of keys and values, rows of {heads} heads");
        return Err(shape_error("encoder_attention", "q", q, expected));
    }
    Ok(EncoderInputs { q, k, v, heads })
}
